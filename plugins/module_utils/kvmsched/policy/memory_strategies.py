# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The two strategies: ``fair`` serves every domain in one pass, ``pairwise`` one pair, as kvmsched's first rules do.

Both return a Draft: what is taken from whom, and what is granted to whom. Guests come sorted by UUID.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Callable, Mapping, Optional, Sequence

from ..config import MemoryPolicy
from ..model import BALLOON_TOLERANCE_KIB, Skip
from ..units import mib
from .memory_history import Seen
from .memory_reading import Guest, skip
from .memory_supply import Grant, HostState, Need, fit, grant, rooms_of, water_fill

# A swapping guest needs at least this share of its memory more: what it holds in swap is not told.
SWAP_BOOST = 0.25
# After its demand turned this often a domain keeps what it got for a while, twice as long for each further turn.
FREE_REVERSALS = 2
REST_S = 30
REST_MAX_S = 600


@dataclass
class Take:
    guest: Guest
    kib: int
    why: str


@dataclass
class Draft:
    """``needs`` are all that were found, ``grants`` what they get; ``notes`` says why waste stays."""

    takes: list[Take] = field(default_factory=list)
    needs: list[Need] = field(default_factory=list)
    grants: list[Grant] = field(default_factory=list)
    notes: list[Skip] = field(default_factory=list)


@dataclass
class Donor:
    """What a domain can do without, in KiB: ``surplus_kib`` of memory that serves nothing, ``cache_kib`` beyond it."""

    guest: Guest
    surplus_kib: int
    cache_kib: int
    taken_kib: int = 0
    cached_kib: int = 0


# ---------------------------------------------------------------- fair


def fair(
    guests: Sequence[Guest], host: HostState, policy: MemoryPolicy, seen: Mapping[str, Seen], wall_s: float
) -> Draft:
    """Every domain by its need, out of what the host has, then surplus, then cache; waste goes back to the host."""
    needs = [need for need in map(_need, guests) if need is not None]
    needy = {need.guest.uuid for need in needs}
    donors = [_donor(guest, host) for guest in guests if guest.shrinkable and guest.uuid not in needy]
    draft = Draft(needs=needs)
    for donor in donors:
        _cap(donor)
        if policy.reclaim == "eager" and donor.guest.wasteful:
            _reclaim(donor, draft, seen.get(donor.guest.uuid), wall_s)
    collect(donors, needs, host, policy)
    draft.takes = [_take(donor) for donor in donors if donor.taken_kib or donor.cached_kib]
    draft.notes += [_grow_only(guest) for guest in guests if _kept_by_mode(guest)]
    pay(draft, host)
    return draft


def _need(guest: Guest) -> Optional[Need]:
    """What *guest* needs beyond what it holds: its floor, and more if it starves, swaps or soon will."""
    if not guest.judged:
        return None
    limits, held_kib = guest.limits, guest.held_kib
    pressed = guest.starved or guest.swapping or guest.soon_starved
    floor_kib = min(limits.floor_kib, guest.ceiling_kib) - held_kib
    if floor_kib <= BALLOON_TOLERANCE_KIB:
        if not pressed:
            return None
        floor_kib = 0
    survive_kib = comfort_kib = 0
    if pressed:
        base_kib = held_kib + floor_kib
        survive_kib = max(0, min(guest.lower_kib, guest.ceiling_kib) - base_kib)
        # What was just promised is not raised for nothing: a driver that is stuck would be promised all there is.
        least_kib = held_kib + (limits.min_change_kib if held_kib == guest.actual_kib or guest.late else 0)
        target_kib = max(demand(guest), least_kib)
        if guest.ceiling_kib - target_kib < limits.min_change_kib:
            # What would be left of it is too little for a command: it would never be given.
            target_kib = guest.ceiling_kib
        comfort_kib = max(0, min(target_kib, guest.ceiling_kib) - base_kib - survive_kib)
    total_kib = floor_kib + survive_kib + comfort_kib
    if total_kib == 0 or (not floor_kib and total_kib < limits.min_change_kib):
        return None
    return Need(guest, floor_kib, survive_kib, comfort_kib, _symptoms(guest))


def demand(guest: Guest) -> int:
    """What it would need to stand in the middle of its band, soon: used + rise + headroom, in KiB.

    What it swapped out since the last reading, or a share of its size while it swaps, is demand that
    its used memory can't show. Headroom is (starvation + waste) / 2 (decision 18).
    """
    boost_kib = int(guest.actual_kib * SWAP_BOOST) if guest.swapping else 0
    return guest.used_kib + guest.rise_kib + max(guest.hidden_kib, boost_kib) + guest.limits.middle_kib


def _donor(guest: Guest, host: HostState) -> Donor:
    """What *guest* can do without: at most half of its unused memory, or of what it could give at all, in one pass.

    Where the host is tight nothing but L holds.
    """
    limits = guest.limits
    movable_kib = max(0, guest.actual_kib - guest.soft_kib)
    idle_kib = guest.unused_kib - limits.middle_kib
    if not host.tight:
        idle_kib = min(idle_kib, guest.unused_kib // 2)
    surplus_kib = max(0, min(max(idle_kib, guest.actual_kib - limits.ceiling_kib), movable_kib))
    if host.tight:
        return Donor(guest, surplus_kib, max(0, guest.actual_kib - guest.lower_kib - surplus_kib))
    return Donor(guest, surplus_kib, max(0, movable_kib // 2 - surplus_kib))


def _cap(donor: Donor) -> None:
    """Mark what *donor* holds above its ceiling to be taken, as far as it can do without."""
    kib = min(donor.guest.actual_kib - donor.guest.limits.ceiling_kib, donor.surplus_kib)
    if kib >= donor.guest.limits.min_change_kib:
        donor.taken_kib = kib


def _reclaim(donor: Donor, draft: Draft, seen: Optional[Seen], wall_s: float) -> None:
    """Mark all that *donor* wastes to be taken, or note why it stays."""
    guest = donor.guest
    if donor.surplus_kib < guest.limits.min_change_kib:
        draft.notes.append(_limit(guest))
    elif _resting(seen, wall_s):
        why = (
            f"unused {mib(guest.unused_kib)} stays for a while: its demand turned {seen.reversals if seen else 0} times"
        )
        draft.notes.append(skip(guest.domain, "resting", why))
    else:
        donor.taken_kib = donor.surplus_kib


def _resting(seen: Optional[Seen], wall_s: float) -> bool:
    """Whether its demand went up and down so often that what it wastes now will be needed again (ping-pong)."""
    if seen is None or seen.direction <= 0 or seen.reversals < FREE_REVERSALS:
        return False
    rest_s = min(REST_MAX_S, REST_S << min(seen.reversals - FREE_REVERSALS, 10))
    return 0 <= wall_s - seen.moved_s < rest_s


def _limit(guest: Guest) -> Skip:
    """Why waste can't be taken: the floor, or usable memory so far below unused that the thresholds can't both hold."""
    waste = f"unused {mib(guest.unused_kib)} > {mib(guest.limits.waste_kib)}"
    if guest.actual_kib - guest.limits.floor_kib < guest.limits.min_change_kib:
        return skip(guest.domain, "at-floor", f"{waste}, but {mib(guest.limits.floor_kib)} is its floor")
    kept = f"but usable {mib(guest.usable_kib)} is to stay above {mib(guest.limits.cushion_kib)}"
    least = f"a change below {mib(guest.limits.min_change_kib)} is not made"
    return skip(guest.domain, "band", f"{waste}, {kept}, and {least}")


def _kept_by_mode(guest: Guest) -> bool:
    return guest.judged and guest.wasteful and guest.limits.mode == "grow-only"


def _grow_only(guest: Guest) -> Skip:
    return skip(guest.domain, "grow-only", f"unused {mib(guest.unused_kib)} stays: mode grow-only")


# ---------------------------------------------------------------- taking


def collect(donors: Sequence[Donor], needs: Sequence[Need], host: HostState, policy: MemoryPolicy) -> None:
    """Mark what *donors* must give beyond what is taken already, for *needs*, the pool and the reserve."""
    if host.supply_kib is None:
        return
    fitting = fit(needs, host.rooms_kib)
    wanted_kib = sum(need.total_kib for need in fitting) + host.pool_kib
    taken_kib = sum(donor.taken_kib for donor in donors)
    _take_surplus(donors, max(wanted_kib - host.supply_kib, host.short_kib) - taken_kib)
    for name, left_kib in host.rooms_kib.items():
        needed_kib = sum(need.total_kib for need in needs if name in rooms_of(need.guest.balloon))
        inside = [donor for donor in donors if name in rooms_of(donor.guest.balloon)]
        if needed_kib:
            _take_surplus(inside, needed_kib - left_kib - sum(donor.taken_kib for donor in inside))
    _take_cache(donors, fitting, host, policy)


def _take_surplus(donors: Sequence[Donor], lack_kib: int) -> None:
    """Take idle memory, from who has most for its weight first: few commands, and it costs nobody anything."""
    for donor in sorted(donors, key=lambda d: (-d.surplus_kib / d.guest.limits.weight, d.guest.uuid)):
        if lack_kib <= 0:
            return
        least_kib = donor.guest.limits.min_change_kib
        if donor.surplus_kib <= donor.taken_kib or donor.surplus_kib < least_kib:
            continue
        kib = min(donor.surplus_kib, max(donor.taken_kib + lack_kib, least_kib))
        lack_kib -= kib - donor.taken_kib
        donor.taken_kib = kib


def _take_cache(donors: Sequence[Donor], needs: Sequence[Need], host: HostState, policy: MemoryPolicy) -> None:
    """Take page cache for what surplus could not cover: from who holds most for its weight, by weighted max-min.

    The host's reserve and urgent needs come before anybody's cache; comfort competes with it.
    ``cache: keep`` yields only to a host in trouble.
    """
    taken_kib = sum(donor.taken_kib for donor in donors)
    funds_kib = max(0, (host.supply_kib or 0) + taken_kib)
    urgent_kib = max(0, sum(need.urgent_kib for need in needs) - funds_kib)
    comfort_kib = max(0, sum(need.total_kib for need in needs) - funds_kib - urgent_kib)
    short_kib = max(0, host.short_kib - taken_kib)
    if policy.cache == "keep":
        urgent_kib, comfort_kib, short_kib = 0, 0, short_kib if host.tight else 0
    if urgent_kib + comfort_kib + short_kib == 0:
        return
    caches = [donor.cache_kib for donor in donors]
    whole_kib = max(1, sum(need.comfort_kib for need in needs))
    comforts = [need.comfort_kib * comfort_kib // whole_kib for need in needs]
    weights = [guest.limits.weight for guest in [*(d.guest for d in donors), *(n.guest for n in needs)]]
    pool_kib = max(0, sum(caches) - urgent_kib - short_kib)
    kept = water_fill(caches + comforts, weights, pool_kib)
    for donor, kept_kib in zip(donors, kept):
        kib = donor.cache_kib - kept_kib
        if kib > BALLOON_TOLERANCE_KIB and donor.taken_kib + kib >= donor.guest.limits.min_change_kib:
            donor.cached_kib = kib


def _take(donor: Donor) -> Take:
    guest = donor.guest
    whys = []
    if donor.taken_kib:
        if guest.actual_kib > guest.limits.ceiling_kib:
            whys.append(f"above its ceiling {mib(guest.limits.ceiling_kib)}")
        else:
            whys.append(f"unused {mib(guest.unused_kib)}, {mib(donor.taken_kib)} of it serves nothing")
    if donor.cached_kib:
        whys.append(f"{mib(donor.cached_kib)} of its cache is needed more elsewhere, weight {guest.limits.weight:g}")
    whys.append(f"used {mib(guest.used_kib)}, usable {mib(guest.usable_kib)}")
    return Take(guest, donor.taken_kib + donor.cached_kib, ", ".join(whys))


# ---------------------------------------------------------------- giving


def pay(draft: Draft, host: HostState) -> None:
    """Grant the draft's needs out of the host's supply and the draft's takes."""
    if host.supply_kib is None:
        return
    pool_kib = host.supply_kib + sum(take.kib for take in draft.takes)
    rooms_kib = {name: left_kib + _taken_in(name, draft) for name, left_kib in host.rooms_kib.items()}
    draft.grants = grant(draft.needs, pool_kib, host.credit_kib, host.level == "low", rooms_kib)


def _taken_in(room: str, draft: Draft) -> int:
    return sum(take.kib for take in draft.takes if room in rooms_of(take.guest.balloon))


def _symptoms(guest: Guest) -> str:
    limits = guest.limits
    words = []
    if guest.held_kib < limits.floor_kib - BALLOON_TOLERANCE_KIB:
        words.append(f"below its floor {mib(limits.floor_kib)}")
    sign = "<" if guest.starved else "of"
    words.append(f"usable {mib(guest.usable_kib)} {sign} {mib(limits.starvation_kib)}, used {mib(guest.used_kib)}")
    if guest.rise_kib:
        words.append(f"rising by {mib(guest.rise_kib)}")
    if guest.swapping:
        words.append("swapping")
    return ", ".join(words)


# ---------------------------------------------------------------- pairwise


def pairwise(guests: Sequence[Guest], host: HostState, policy: MemoryPolicy) -> Draft:
    """The four cases: from the most wasteful to the most starved, from the host, back to the host, or nothing.

    Only domains that can give or get a change worth a command are ranked (decision 17). A host below
    its reserve takes what it misses from all, as in ``fair``.
    """
    draft = Draft()
    wasteful = [g for g in guests if g.shrinkable and g.wasteful]
    halved = _most([g for g in wasteful if _half(g) >= g.limits.min_change_kib], _waste)
    rooms = {g.uuid: _room(g, host, halved) for g in guests if g.judged and g.starved}
    starved = _most([g for g in guests if rooms.get(g.uuid, -1) >= g.limits.min_change_kib], _deficit)
    relieved = _most([g for g in wasteful if _spare(g) >= g.limits.min_change_kib], _waste)
    if starved is not None and halved is not None:
        draft.takes = [_halve(starved, halved, rooms[starved.uuid])]
        draft.needs = [_seed_need(starved, draft.takes[0].kib)]
    elif starved is not None:
        draft.needs = [_seed_need(starved, min(starved.limits.waste_kib, rooms[starved.uuid]))]
    elif relieved is not None and (policy.reclaim == "eager" or (host.supply_kib or 0) < host.pool_kib):
        draft.takes = [Take(relieved, _spare(relieved), _wasted(relieved, "what is above goes back to the host"))]
    _refill(draft, guests, host, policy)
    stay = [g for g in wasteful if _spare(g) < g.limits.min_change_kib]
    draft.notes = [_limit(guest) for guest in stay] + [_grow_only(guest) for guest in guests if _kept_by_mode(guest)]
    pay(draft, host)
    return draft


def _halve(starved: Guest, wasteful: Guest, room_kib: int) -> Take:
    """Half of what *wasteful* has unused, as far as it can spare that and *starved* can hold it."""
    kib = min(_half(wasteful), room_kib)
    return Take(wasteful, kib, _wasted(wasteful, f"half of it, at most, for {starved.domain.name}"))


def _refill(draft: Draft, guests: Sequence[Guest], host: HostState, policy: MemoryPolicy) -> None:
    """Take what a host below its reserve misses, beside the takes of the draft."""
    short_kib = host.short_kib - sum(take.kib for take in draft.takes)
    if host.supply_kib is None or short_kib <= 0:
        return
    taken = {take.guest.uuid for take in draft.takes}
    donors = [_donor(g, host) for g in guests if g.shrinkable and not g.starved and g.uuid not in taken]
    _take_surplus(donors, short_kib)
    _take_cache(donors, [], replace(host, short_kib=short_kib), policy)
    draft.takes += [_take(donor) for donor in donors if donor.taken_kib or donor.cached_kib]


def _seed_need(guest: Guest, kib: int) -> Need:
    whole = Need(guest, 0, max(0, guest.lower_kib - guest.held_kib), kib, _symptoms(guest))
    return whole.at_most(kib)


def _most(guests: Sequence[Guest], measure: Callable[[Guest], int]) -> Optional[Guest]:
    """The guest with the largest *measure*; the first by UUID where several have it."""
    return min(guests, key=lambda guest: (-measure(guest), guest.uuid), default=None)


def _deficit(guest: Guest) -> int:
    return guest.limits.starvation_kib - guest.usable_kib


def _waste(guest: Guest) -> int:
    return guest.unused_kib - guest.limits.waste_kib


def _room(guest: Guest, host: HostState, donor: Optional[Guest]) -> int:
    """How much more it can hold, where *donor* gives half of what it has unused."""
    shared = [name for name in rooms_of(guest.balloon) if name in host.rooms_kib]
    given = dict.fromkeys(rooms_of(donor.balloon), _half(donor)) if donor else {}
    return min([guest.ceiling_kib - guest.held_kib, *(host.rooms_kib[name] + given.get(name, 0) for name in shared)])


def _half(guest: Guest) -> int:
    """Half of its unused memory, or what it can do without if that is less."""
    return min(guest.unused_kib // 2, guest.actual_kib - guest.soft_kib)


def _spare(guest: Guest) -> int:
    """How much of its waste it can do without: what keeps a cushion of usable memory stays.

    It ends half a least change inside the threshold, for on its very edge noise makes it wasteful again.
    """
    return min(_waste(guest) + guest.limits.min_change_kib // 2, guest.actual_kib - guest.soft_kib)


def _wasted(guest: Guest, where: str) -> str:
    return f"unused {mib(guest.unused_kib)} > {mib(guest.limits.waste_kib)}: {where}"
