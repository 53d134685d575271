# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the host can give: its level, its supply, and the rooms that only some guests share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Iterable, Mapping, Optional, Sequence

from ...config import MemoryPolicy
from ...model import BalloonMove, RoomRequest, Snapshot
from .cache import NOTHING_LENT, Lent
from .charges import callable_kib, uncharged_kib, untouched_kib
from .guest import Guest
from .history import MemoryHistory, OwnUse
from .levels import LEVEL_LEAVE, LOW_PSI_FULL_PCT, level_of
from .requests import pending
from .rooms import RoomState, room_name, rooms, rooms_of
from .safeties import Safeties

# A host that reads this much back from its own swap for so long is in danger, whatever MemAvailable says. What it reads
# for a moment somebody touched anew: a login, a job of the night.
HOST_SWAP_IN_KIB_PER_S = 1024
HOST_SWAP_IN_S = 10
# How far back the host's own growth is looked for, and how often it is noted.
GROWTH_S = 600
NOTED_S = 60
# What is really free is never paid out whole in one pass: what is promised may be touched at the same time.
CREDIT_SHARE = 0.5

# Who asks for room starts a guest at once, and both clocks count seconds.
CLOCK_S = 1.0

# The name of what all guests share.
HOST = ""


@dataclass
class HostState:
    """The host as this pass sees it, in KiB; ``supply_kib`` may be negative, and is None where memory is not known.

    ``available_kib`` is MemAvailable; the supply has the ZFS cache beside it. ``grants_kib`` is as much of the supply
    as may be given in this pass: of that cache no more than is seen to come, and ``lent`` is how that stands.
    ``missing_kib`` is what is missing to the reserve, ``short_kib`` the part of it that is to be taken from domains
    (decision 20a). ``pool_kib`` is what ``reclaim: lazy`` keeps ready above the reserve for sudden need.
    ``at_risk_kib`` is what domains may still touch of what they were promised, ``claimed_kib`` the part of that which
    domains in need will touch for certain. ``callable_kib`` is what idle domains may call back, by the name of what it
    would come from: the host's (HOST) and, of those in a room, that room's. ``free_kib`` is what is really free above
    the reserve, ``lends``: a part of that may be spent on survival (decision 45). ``newcomer_kib`` is kept for a guest
    that is to start, in ``newcomer_room``, too, if it asked for one. ``swapping_s`` is since when the host goes on
    reading from its swap, None where it does not. ``owing_kib`` is what was given on credit and is not covered yet.
    ``rooms`` is what only some domains share, by its name.
    """

    level: str
    available_kib: Optional[int]
    reserve_kib: Optional[int]
    at_risk_kib: int
    claimed_kib: int
    supply_kib: Optional[int]
    rooms: Mapping[str, RoomState]
    missing_kib: int = 0
    short_kib: int = 0
    pool_kib: int = 0
    callable_kib: Mapping[str, int] = field(default_factory=dict)
    free_kib: int = 0
    lends: bool = False
    swapping_s: Optional[float] = None
    grants_kib: int = 0
    lent: Lent = NOTHING_LENT
    newcomer_kib: int = 0
    newcomer_room: Optional[str] = None
    owing_kib: int = 0

    @property
    def tight(self) -> bool:
        """Return whether donors go down to L at once."""
        return self.level in ("hard", "low") and self.short_kib > 0

    def credit_after(self, taken_kib: int) -> int:
        """Return what may be spent on survival once *taken_kib* arrived."""
        return max(0, int((self.free_kib + taken_kib) * CREDIT_SHARE)) if self.lends else 0

    def lacks_for_survival(self, kib: int) -> int:
        """Return what has to arrive until so much may be spent on survival."""
        return max(0, int(kib / CREDIT_SHARE) - self.free_kib) if kib and self.lends else 0

    def asked_of(self, name: str) -> int:
        """Return what is kept for a newcomer of the host's (HOST), or of a room."""
        return self.newcomer_kib if name in (HOST, self.newcomer_room) else 0

    @property
    def kept_kib(self) -> dict[str, int]:
        """Return what is kept from comfort, of the host's and of each room: it may be called back, or is asked for."""
        return {name: self.callable_kib.get(name, 0) + self.asked_of(name) for name in (HOST, *self.rooms)}

    @property
    def rooms_kib(self) -> dict[str, int]:
        """Return the supply of each room, by its name."""
        return {name: room.supply_kib for name, room in self.rooms.items()}


def host_state(
    snapshots: Sequence[Snapshot],
    policy: MemoryPolicy,
    risks_kib: Mapping[str, int],
    guests: Mapping[str, Guest],
    history: MemoryHistory,
    safeties: Safeties,
) -> HostState:
    """Return the host's supply (decision 19) and level, where *risks_kib* is at_risk() of all its domains by UUID."""
    snapshot = snapshots[-1]
    at_risk_kib = sum(risks_kib.values())
    pressed = {guest.uuid for guest in guests.values() if guest.starved or guest.dying}
    claimed_kib = sum(risks_kib[uuid] for uuid in pressed)
    memory = snapshot.host.memory
    states = rooms(snapshot, risks_kib, history.lent, safeties, pressed, policy.room.cells if policy.room else None)
    if memory is None:
        return HostState("ok", None, None, at_risk_kib, claimed_kib, None, states, owing_kib=history.credit_kib)
    arc_kib = (memory.arc_kib or 0) if safeties.caches else 0
    reserve_kib = policy.reserve_kib(memory.total_kib)
    counted_kib = memory.available_kib + arc_kib
    level = level_of(counted_kib, reserve_kib, memory.psi_full_avg10_pct or 0.0, history.level)
    # Aim where the level ends, not at its edge.
    wanted_kib = reserve_kib if level == "ok" else int(reserve_kib * LEVEL_LEAVE)
    missing_kib = short_kib = max(0, wanted_kib - counted_kib)
    waits = (memory.psi_full_avg10_pct or 0.0) > LOW_PSI_FULL_PCT
    swapping_s = swapping_since(snapshots, history)
    thrashing = waits or (swapping_s is not None and snapshot.wall_s - swapping_s >= HOST_SWAP_IN_S)
    if policy.takes == "auto" and safeties.danger and not thrashing:
        short_kib = missing_kib and min(missing_kib, untouched_of(snapshot) + growth_kib(snapshot, history))
    free_kib = memory.available_kib - reserve_kib - claimed_kib - swapped_of(snapshot)
    spare_kib = memory.available_kib - reserve_kib - at_risk_kib
    # What is promised and not charged for may come true at once: no more than half of what is free (decision 46).
    spare_kib -= max(0, uncharged_kib(guests) - max(0, counted_kib - reserve_kib) // 2)
    lent = history.lent.get(HOST, NOTHING_LENT).now(arc_kib, memory.available_kib)
    return HostState(
        level=level,
        available_kib=memory.available_kib,
        reserve_kib=reserve_kib,
        at_risk_kib=at_risk_kib,
        claimed_kib=claimed_kib,
        supply_kib=spare_kib + arc_kib,
        rooms=states,
        missing_kib=missing_kib,
        short_kib=short_kib,
        pool_kib=min(reserve_kib, memory.total_kib // 20) if policy.takes == "lazy" else 0,
        callable_kib=callable_of(snapshot) if policy.takes == "auto" else {},
        free_kib=free_kib,
        lends=safeties.survival and not waits and swapping_s is None,
        swapping_s=swapping_s,
        grants_kib=min(spare_kib + arc_kib, max(0, spare_kib) + lent.lendable_kib) if arc_kib else spare_kib,
        lent=lent,
        newcomer_kib=still_asked_kib(policy.room, snapshot),
        newcomer_room=room_name(policy.room),
        owing_kib=min(history.credit_kib, max(0, -spare_kib - arc_kib)),
    )


def still_asked_kib(request: Optional[RoomRequest], snapshot: Snapshot) -> int:
    """Return what is still to be kept for a newcomer: a domain that started since it was asked for is one."""
    if request is None:
        return 0
    since_s = request.since_s - CLOCK_S
    came = [d.balloon for d in snapshot.domains if d.balloon and d.started_s is not None and d.started_s >= since_s]
    return max(0, request.kib - sum(balloon.maximum_kib for balloon in came))


def swapping_since(snapshots: Sequence[Snapshot], history: MemoryHistory) -> Optional[float]:
    """Return when a look first said that the host reads back from its own swap; None where this one does not."""
    if not _swaps_in(snapshots, history):
        return None
    now_s = snapshots[-1].wall_s
    return now_s if history.swapping_s is None else min(history.swapping_s, now_s)


def _swaps_in(snapshots: Sequence[Snapshot], history: MemoryHistory) -> bool:
    now = snapshots[-1]
    memory, before = now.host.memory, snapshots[0].host.memory
    if memory is None or memory.swap_in_kib is None:
        return False
    points = [(history.wall_s, history.swap_in_kib)]
    points += [(snapshots[0].wall_s, before.swap_in_kib)] if before is not None else []
    known = [(now.wall_s - wall_s, memory.swap_in_kib - kib) for wall_s, kib in points if kib is not None]
    return any(read_kib > HOST_SWAP_IN_KIB_PER_S * apart_s for apart_s, read_kib in known if apart_s > 0)


def untouched_of(snapshot: Snapshot) -> int:
    """Return what all domains together may still touch of what they were promised."""
    balloons = [(domain, domain.balloon) for domain in snapshot.domains if domain.balloon is not None]
    lost_kib = sum(skip.untouched_kib for skip in snapshot.skips)
    return lost_kib + sum(untouched_kib(b, b.rss_kib, pending(d) or 0) for d, b in balloons)


def swapped_of(snapshot: Snapshot) -> int:
    """Return what of all domains lies in the host's swap: it comes back when it is needed."""
    return sum(domain.balloon.swapped_kib or 0 for domain in snapshot.domains if domain.balloon is not None)


def callable_of(snapshot: Snapshot) -> dict[str, int]:
    """Return what domains may call back, by the name of what it would come from."""
    found = {HOST: 0}
    for domain in snapshot.domains:
        if (kib := callable_kib(domain)) and domain.balloon is not None:
            for name in (HOST, *rooms_of(domain.balloon)):
                found[name] = found.get(name, 0) + kib
    return found


def own_use_kib(snapshot: Snapshot) -> Optional[int]:
    """Return what the host itself uses, all but its domains; None where one of them does not tell what it holds."""
    memory = snapshot.host.memory
    held_kib = [domain.balloon.rss_kib for domain in snapshot.domains if domain.balloon is not None]
    if memory is None or snapshot.skips or None in held_kib:
        return None
    return memory.total_kib - memory.available_kib - sum(kib or 0 for kib in held_kib)


def growth_kib(snapshot: Snapshot, history: MemoryHistory) -> int:
    """Return by how much the host's own use grew lately."""
    now_kib = own_use_kib(snapshot)
    known_kib = [noted.own_kib for noted in history.own_use if noted.wall_s >= snapshot.wall_s - GROWTH_S]
    return max(0, now_kib - min(known_kib)) if now_kib is not None and known_kib else 0


def noted(snapshot: Snapshot, history: MemoryHistory) -> tuple[OwnUse, ...]:
    """Return what is remembered of the host's own use, a note a minute."""
    own_kib = own_use_kib(snapshot)
    kept = tuple(one for one in history.own_use if 0 <= snapshot.wall_s - one.wall_s <= GROWTH_S)
    if own_kib is None or (kept and snapshot.wall_s - kept[-1].wall_s < NOTED_S):
        return kept
    return (*kept, OwnUse(snapshot.wall_s, own_kib))


def owing_after(host: HostState, given_kib: int, taken_kib: int) -> int:
    """Return what is given on credit and not covered, once so much was given and taken."""
    supply_kib = host.supply_kib or 0
    more_kib = max(0, given_kib - taken_kib - max(0, supply_kib))
    return min(host.owing_kib + more_kib, max(0, given_kib - taken_kib - supply_kib))


def lent_after(host: HostState, moves: Iterable[BalloonMove], guests: Mapping[str, Guest]) -> dict[str, Lent]:
    """Return what *moves* leave to be seen to come from caches, by room; the host's own has no name."""
    changes = [(guests[move.uuid], move.after_kib - guests[move.uuid].expected_kib) for move in moves]
    lent = {HOST: host.lent.more(sum(kib for _guest, kib in changes) - _plain_kib(host.supply_kib or 0, host.lent))}
    for name, room in host.rooms.items():
        given_kib = sum(kib for guest, kib in changes if name in rooms_of(guest.balloon))
        lent[name] = room.lent.more(given_kib - _plain_kib(room.supply_kib, room.lent))
    return {name: state for name, state in lent.items() if state.cache_kib}


def _plain_kib(supply_kib: int, lent: Lent) -> int:
    return max(0, supply_kib - lent.cache_kib)


def by_uuid(guests: Iterable[Guest]) -> list[Guest]:
    return sorted(guests, key=lambda guest: guest.uuid)
