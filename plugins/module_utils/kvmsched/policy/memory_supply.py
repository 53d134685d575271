# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the host can give, and how scarce memory is shared among those who need it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable, Mapping, Optional, Sequence

from ..config import MemoryPolicy
from ..model import Balloon, Domain, Snapshot
from ..units import format_cpuset
from .memory_history import Seen
from .memory_reading import QEMU_OVERHEAD_KIB, Guest, pending

# Host levels by what is available, as a share of the reserve; a level is left only this factor above its entry.
LEVEL_BELOW = {"soft": 1.0, "hard": 0.5, "low": 0.25}
LEVEL_LEAVE = 1.1
# Tasks that all stand still waiting for memory this share of the last 10 s: the host thrashes.
LOW_PSI_FULL_PCT = 10.0

_ORDER = ("ok", "soft", "hard", "low")


@dataclass
class HostState:
    """The host as this pass sees it, in KiB; ``supply_kib`` may be negative, and is None where memory is not known.

    ``short_kib`` is what is missing to the reserve, ``pool_kib`` what ``reclaim: lazy`` keeps ready
    above it for sudden need, ``at_risk_kib`` what domains may still touch of what they were promised,
    ``claimed_kib`` the part of that which domains in need will touch for certain. ``rooms_kib`` is the
    supply of what only some domains share, by its name: see rooms_of().
    """

    level: str
    available_kib: Optional[int]
    reserve_kib: Optional[int]
    at_risk_kib: int
    claimed_kib: int
    supply_kib: Optional[int]
    short_kib: int
    pool_kib: int
    rooms_kib: Mapping[str, int]

    @property
    def tight(self) -> bool:
        """Whether donors go down to L at once."""
        return self.level in ("hard", "low")

    @property
    def credit_kib(self) -> int:
        """What is really free now, whatever was promised to those who are not in need (decision 19)."""
        return max(0, (self.available_kib or 0) - (self.reserve_kib or 0) - self.claimed_kib)


def host_state(
    snapshot: Snapshot, policy: MemoryPolicy, risks_kib: Mapping[str, int], in_need: Iterable[Guest], level_before: str
) -> HostState:
    """The host's supply (decision 19) and level, where *risks_kib* is at_risk() of all its domains by UUID."""
    at_risk_kib = sum(risks_kib.values())
    claimed_kib = sum(risks_kib[guest.uuid] for guest in in_need)
    memory = snapshot.host.memory
    rooms_kib = _rooms(snapshot, risks_kib)
    if memory is None:
        return HostState("ok", None, None, at_risk_kib, claimed_kib, None, 0, 0, rooms_kib)
    reserve_kib = policy.reserve_kib(memory.total_kib)
    level = level_of(memory.available_kib, reserve_kib, memory.psi_full_avg10_pct or 0.0, level_before)
    # Aim where the level ends, not at its edge.
    wanted_kib = reserve_kib if level == "ok" else int(reserve_kib * LEVEL_LEAVE)
    return HostState(
        level=level,
        available_kib=memory.available_kib,
        reserve_kib=reserve_kib,
        at_risk_kib=at_risk_kib,
        claimed_kib=claimed_kib,
        supply_kib=memory.available_kib - reserve_kib - at_risk_kib,
        short_kib=max(0, wanted_kib - memory.available_kib),
        pool_kib=min(reserve_kib, memory.total_kib // 20) if policy.reclaim == "lazy" else 0,
        rooms_kib=rooms_kib,
    )


def rooms_of(balloon: Balloon) -> tuple[str, ...]:
    """The names of what a domain shares with some others only: cgroups with a limit, and the cells it is bound to."""
    cells = (f"cells {format_cpuset(balloon.cells)}",) if balloon.cells is not None else ()
    return (*balloon.rooms, *cells)


def _rooms(snapshot: Snapshot, risks_kib: Mapping[str, int]) -> dict[str, int]:
    """What is left in each room, less what those in it may still touch."""
    rooms_kib = {room.name: room.left_kib for room in snapshot.host.rooms}
    free_kib = {cell.id: cell.free_kib or 0 for cell in snapshot.host.topology.cells}
    balloons = {domain.uuid: domain.balloon for domain in snapshot.domains if domain.balloon is not None}
    for balloon in balloons.values():
        if balloon.cells is not None:
            rooms_kib[rooms_of(balloon)[-1]] = sum(free_kib.get(cell, 0) for cell in balloon.cells)
    for uuid, balloon in balloons.items():
        for name in rooms_of(balloon):
            if name in rooms_kib:
                rooms_kib[name] -= risks_kib[uuid]
    return rooms_kib


def level_of(available_kib: int, reserve_kib: int, psi_full_pct: float, before: str) -> str:
    """ok, soft, hard or low. What was entered is left only clearly above its entry (facts: ESX, hypeman)."""
    level = "ok"
    for name, share in LEVEL_BELOW.items():
        leave = LEVEL_LEAVE if _ORDER.index(before) >= _ORDER.index(name) else 1.0
        if available_kib < reserve_kib * share * leave:
            level = name
    thrashing_pct = LOW_PSI_FULL_PCT / 2 if before == "low" else LOW_PSI_FULL_PCT
    return "low" if psi_full_pct > thrashing_pct else level


def at_risk(domain: Domain, guest: Optional[Guest]) -> int:
    """What *domain* may still touch beyond what QEMU holds: memory promised, and not to be given twice.

    rss holds QEMU's own memory too, so that is part of the charge: without it a host with many
    domains would sink below its reserve by as much for each.
    A domain that boots is charged at its maximum (decision 22). Where rss is not known nothing counts as touched.
    Huge pages are the host's to give no more, and not in rss: who has them is charged for QEMU's own memory alone.
    """
    balloon = domain.balloon
    if balloon is None:
        return 0
    if "hugepages" in balloon.inhibitors:
        return max(0, QEMU_OVERHEAD_KIB - (balloon.rss_kib or 0))
    charge_kib = guest.held_kib if guest is not None else max(balloon.actual_kib, pending(domain) or 0)
    if guest is not None and guest.skip is not None and guest.skip[0] == "booting":
        charge_kib = max(charge_kib, balloon.maximum_kib)
    return max(0, charge_kib + QEMU_OVERHEAD_KIB - (balloon.rss_kib or 0))


def risks(snapshot: Snapshot, guests: Mapping[str, Guest], seen: Mapping[str, Seen]) -> dict[str, int]:
    """at_risk() of all domains by UUID, chosen or not; one that could not be observed counts as last seen."""
    unobserved = {
        skip.uuid: seen[skip.uuid].at_risk_kib if skip.uuid in seen else skip.untouched_kib for skip in snapshot.skips
    }
    observed = {domain.uuid: at_risk(domain, guests.get(domain.uuid)) for domain in snapshot.domains}
    return {**unobserved, **observed}


# ---------------------------------------------------------------- sharing


def water_fill(claims: Sequence[int], weights: Sequence[float], pool: int) -> list[int]:
    """Weighted max-min: each gets min(claim, level * weight), with the highest level that *pool* allows.

    KiB in, KiB out; at most *pool* in sum. O(n log n). (Bertsekas and Gallager, Data Networks, 6.5.2.)
    """
    if sum(claims) <= pool:
        return list(claims)
    shares = [0] * len(claims)
    left, weight_left = max(0, pool), sum(weights)
    for index in sorted(range(len(claims)), key=lambda i: claims[i] / weights[i]):
        shares[index] = min(claims[index], int(left * weights[index] / weight_left))
        left -= shares[index]
        weight_left -= weights[index]
        if weight_left <= 0:
            break
    return shares


@dataclass
class Need:
    """What a domain needs beyond what it holds, in KiB, from urgent to comfortable.

    ``floor_kib`` brings it to its floor, ``survive_kib`` off the starvation line (to L), ``comfort_kib``
    into the middle of its band, with what its demand is rising by. ``why`` has its numbers.
    """

    guest: Guest
    floor_kib: int
    survive_kib: int
    comfort_kib: int
    why: str

    @property
    def urgent_kib(self) -> int:
        return self.floor_kib + self.survive_kib

    @property
    def total_kib(self) -> int:
        return self.floor_kib + self.survive_kib + self.comfort_kib

    def at_most(self, kib: int) -> Need:
        """The same need cut down to *kib*, comfort first."""
        floor_kib = min(self.floor_kib, kib)
        survive_kib = min(self.survive_kib, kib - floor_kib)
        return Need(self.guest, floor_kib, survive_kib, min(self.comfort_kib, kib - floor_kib - survive_kib), self.why)


@dataclass
class Grant:
    """What a domain gets of its need, in KiB; ``on_credit`` if part of it is beyond the supply formula."""

    need: Need
    kib: int
    on_credit: bool = False


def grant(
    needs: Sequence[Need], pool_kib: int, credit_kib: int, frozen: bool, rooms_kib: Mapping[str, int]
) -> list[Grant]:
    """Share *pool_kib* among *needs*: floors first, then survival, then comfort, each by weighted max-min.

    Domains about to die get the rest of their need from *credit_kib*, which is what is really free,
    less what this pool pays. *frozen*: nobody else grows (host level low). Nobody gets more than is left in
    its *rooms_kib*: to go beyond a cgroup's limit, or what a cell has, costs a QEMU its life.
    """
    served = fit([need for need in needs if need.guest.dying or not frozen], rooms_kib)
    grants = _worthwhile(served, pool_kib)
    credit_left_kib = credit_kib - sum(grants.values())
    unpaid = [need for need in served if need.guest.dying and grants.get(need.guest.uuid, 0) < need.total_kib]
    rest = [_rest(need, grants.get(need.guest.uuid, 0)) for need in unpaid]
    credit = _worthwhile(rest, credit_left_kib)
    return [
        Grant(need, grants.get(uuid, 0) + credit.get(uuid, 0), on_credit=uuid in credit)
        for need in served
        for uuid in (need.guest.uuid,)
        if uuid in grants or uuid in credit
    ]


def fit(needs: Sequence[Need], rooms_kib: Mapping[str, int]) -> list[Need]:
    """*needs* as far as there is room for them, the most urgent first: what can't be had must not be shared out."""
    left_kib = dict(rooms_kib)
    fitting = {}
    for need in sorted(needs, key=_urgency):
        names = [name for name in rooms_of(need.guest.balloon) if name in left_kib]
        kib = min([need.total_kib, *(left_kib[name] for name in names)])
        if kib == need.total_kib or kib >= need.guest.limits.min_change_kib:
            left_kib.update({name: left_kib[name] - kib for name in names})
            fitting[need.guest.uuid] = need.at_most(kib)
    return [fitting[need.guest.uuid] for need in needs if need.guest.uuid in fitting]


def _rest(need: Need, paid_kib: int) -> Need:
    return Need(need.guest, 0, 0, need.total_kib - paid_kib, need.why)


def _worthwhile(needs: Sequence[Need], pool_kib: int) -> dict[str, int]:
    """Share the pool so that each share is worth a command: of those too thin, the more urgent half stays."""
    served = list(needs)
    while served and pool_kib > 0:
        shares = _by_urgency(served, pool_kib)
        fat: list[Need] = []
        thin: list[Need] = []
        for need, kib in zip(served, shares):
            worthwhile = kib >= min(need.guest.limits.min_change_kib, need.total_kib)
            (fat if worthwhile else thin).append(need)
        if not thin:
            return {need.guest.uuid: kib for need, kib in zip(served, shares) if kib > 0}
        served = fat + sorted(thin, key=_urgency)[: len(thin) // 2]
    return {}


def _urgency(need: Need) -> tuple[float, str]:
    """Least usable memory for its starvation line first; ties by UUID."""
    return need.guest.usable_kib / need.guest.limits.starvation_kib, need.guest.uuid


def _by_urgency(needs: Sequence[Need], pool_kib: int) -> list[int]:
    weights = [need.guest.limits.weight for need in needs]
    shares = [0] * len(needs)
    for part in ("floor_kib", "survive_kib", "comfort_kib"):
        for index, kib in enumerate(water_fill([getattr(n, part) for n in needs], weights, pool_kib)):
            shares[index] += kib
            pool_kib -= kib
    return shares


def by_uuid(guests: Iterable[Guest]) -> list[Guest]:
    return sorted(guests, key=lambda guest: guest.uuid)
