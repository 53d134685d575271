# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How scarce memory is shared among those who need it: weighted max-min, the most urgent part of each need first."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Callable, Iterable, Mapping, Optional, Sequence

from ...model import BALLOON_TOLERANCE_KIB, Skip
from ...units import mib
from .guest import Guest
from .rooms import rooms_fed_by, rooms_of
from .supply import HOST, HostState

# So little is worth a command where a guest would die without it.
LEAST_SURVIVAL_KIB = 8 * 1024

_NOTHING_KEPT: Mapping[str, int] = MappingProxyType({})


def water_fill(claims: Sequence[int], weights: Sequence[float], pool: int) -> list[int]:
    """Share *pool* by weighted max-min: each gets min(claim, level * weight), with the highest level that it allows.

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

    ``survive_kib`` keeps it alive (decision 45), ``floor_kib`` brings it to its floor, ``debt_kib`` to its original,
    ``comfort_kib`` into the middle of its band, with what its demand is rising by. ``why`` has its numbers.
    """

    guest: Guest
    survive_kib: int
    floor_kib: int
    debt_kib: int
    comfort_kib: int
    why: str

    @property
    def urgent_kib(self) -> int:
        """Return the part without which it dies, or is below its floor."""
        return self.survive_kib + self.floor_kib

    @property
    def total_kib(self) -> int:
        """Return all of it."""
        return self.survive_kib + self.floor_kib + self.debt_kib + self.comfort_kib

    def at_most(self, kib: int) -> Need:
        """Return the same need cut down to *kib*, comfort first."""
        survive_kib = min(self.survive_kib, kib)
        floor_kib = min(self.floor_kib, kib - survive_kib)
        debt_kib = min(self.debt_kib, kib - survive_kib - floor_kib)
        comfort_kib = min(self.comfort_kib, kib - survive_kib - floor_kib - debt_kib)
        return Need(self.guest, survive_kib, floor_kib, debt_kib, comfort_kib, self.why)


@dataclass
class Grant:
    """What a domain gets of its need, in KiB; ``on_credit`` if part of it is beyond the supply formula."""

    need: Need
    kib: int
    on_credit: bool = False


@dataclass(frozen=True)
class Funds:
    """What may be given in a pass, in KiB, by the name of what it is taken from.

    All of it is the host's (HOST), in a room also that room's. ``credit_kib`` is really free, whatever was promised:
    for survival. ``kept_kib`` is kept from comfort: idle domains may call it back, or a newcomer needs it.
    ``frozen``: nobody grows but who is dying (host level low).
    """

    pools_kib: Mapping[str, int]
    credit_kib: Mapping[str, int]
    kept_kib: Mapping[str, int]
    frozen: bool


def funds_of(host: HostState, takes: Sequence[Take]) -> Funds:
    """Return what *host* can give, and what *takes* bring.

    Of what is really left in a room half is for who is dying there: others may touch what they were promised.
    """
    whole_kib = sum(take.kib for take in takes)
    pools_kib = {HOST: host.grants_kib + whole_kib}
    credit_kib = {HOST: host.credit_after(whole_kib)}
    for name, room in host.rooms.items():
        taken_kib = taken_in(name, takes)
        pools_kib[name] = room.grants_kib + taken_kib
        credit_kib[name] = max(pools_kib[name], (room.free_kib + taken_kib) // 2)
    return Funds(pools_kib, credit_kib, host.kept_kib, host.level == "low")


def taken_in(room: str, takes: Sequence[Take]) -> int:
    """Return what *takes* bring to one room."""
    return sum(take.kib for take in takes if room in rooms_fed_by(take.guest.balloon))


def granted_in(room: str, grants: Sequence[Grant]) -> int:
    """Return what *grants* take out of one room."""
    return sum(one.kib for one in grants if room in rooms_of(one.need.guest.balloon))


def grant(needs: Sequence[Need], funds: Funds) -> list[Grant]:
    """Share *funds*: a person's floors, survival, default floors, debts, comfort; each by weighted max-min.

    Nobody gets more than is left in the tightest of his rooms: to go beyond a cgroup's limit, or what a cell has,
    costs a QEMU its life. What survival and debts lack then is paid from what is really free (decisions 45, 42a).
    """
    served = [need for need in needs if need.guest.dying or not funds.frozen]
    paid = _worthwhile(served, funds.pools_kib, funds.kept_kib)
    rest = [_rest(need, paid.get(need.guest.uuid, 0)) for need in served]
    left_kib = dict(funds.credit_kib)
    for need in served:
        spend(left_kib, pools_of(need), paid.get(need.guest.uuid, 0))
    credit = _worthwhile([need for need in rest if need.total_kib], left_kib)
    return [
        Grant(need, paid.get(uuid, 0) + credit.get(uuid, 0), on_credit=uuid in credit)
        for need in served
        for uuid in (need.guest.uuid,)
        if uuid in paid or uuid in credit
    ]


def fit(needs: Sequence[Need], host: HostState) -> list[Need]:
    """Return *needs* as far as there is room for them: what can't be had must not be taken from others."""
    shares = _worthwhile(needs, host.rooms_kib)
    return [need.at_most(shares[need.guest.uuid]) for need in needs if need.guest.uuid in shares]


def _rest(need: Need, paid_kib: int) -> Need:
    """Return what survival, and the debt, still lack, once *paid_kib* was paid of the whole need."""
    return Need(need.guest, max(0, need.survive_kib + need.debt_kib - paid_kib), 0, 0, 0, need.why)


def left_of(host: HostState, draft: Draft) -> dict[str, int]:
    """Return what the grants of *draft* leave of all that *host* and takes can give, by name."""
    left_kib = dict(funds_of(host, draft.takes).pools_kib)
    for one in draft.grants:
        spend(left_kib, pools_of(one.need), one.kib)
    return left_kib


def pools_of(need: Need) -> tuple[str, ...]:
    """Return the names of all that a need is paid from."""
    return (HOST, *rooms_of(need.guest.balloon))


def spend(left_kib: dict[str, int], pools: Sequence[str], kib: int) -> None:
    """Take *kib* off each of *pools*."""
    for name in pools:
        if name in left_kib:
            left_kib[name] -= kib


def _worthwhile(
    needs: Sequence[Need], pools_kib: Mapping[str, int], kept_kib: Mapping[str, int] = _NOTHING_KEPT
) -> dict[str, int]:
    """Share the pools so that each share is worth a command: of those too thin, the better half stays."""
    served = list(needs)
    while served:
        shares = _by_urgency(served, pools_kib, kept_kib)
        fat: list[Need] = []
        thin: list[Need] = []
        for need, kib in zip(served, shares):
            (fat if kib >= _least(need) else thin).append(need)
        if not thin:
            return {need.guest.uuid: kib for need, kib in zip(served, shares) if kib > 0}
        served = fat + sorted(thin, key=_precedence)[: len(thin) // 2]
    return {}


def _least(need: Need) -> int:
    """Return the least share worth a command: who is dying lives a little longer on very little."""
    least_kib = min(need.guest.limits.min_change_kib, need.total_kib)
    return min(least_kib, LEAST_SURVIVAL_KIB) if need.guest.dying else least_kib


def _precedence(need: Need) -> tuple[bool, float, float, float, str]:
    """Return who goes first where shares are thin: urgent need, larger weight, then who got least for it lately."""
    guest, weight = need.guest, need.guest.limits.weight
    left = guest.available_kib / guest.limits.starvation_kib
    return not need.urgent_kib, -weight, guest.lately_kib / weight, left, guest.uuid


# A person's floor goes before survival, one of ours after it.
_PARTS: tuple[Callable[[Need], int], ...] = (
    lambda need: need.floor_kib if need.guest.limits.floor_set else 0,
    lambda need: need.survive_kib,
    lambda need: 0 if need.guest.limits.floor_set else need.floor_kib,
    lambda need: need.debt_kib,
    lambda need: need.comfort_kib,
)


def _by_urgency(needs: Sequence[Need], pools_kib: Mapping[str, int], kept_kib: Mapping[str, int]) -> list[int]:
    """Return each need's share: one part of all needs after the other. *kept_kib* is no comfort's."""
    left_kib = dict(pools_kib)
    weights = [need.guest.limits.weight for need in needs]
    pools = [pools_of(need) for need in needs]
    shares = [0] * len(needs)
    for part in _PARTS:
        if part is _PARTS[-1]:
            left_kib = {name: kib - kept_kib.get(name, 0) for name, kib in left_kib.items()}
        for index, kib in enumerate(max_min([part(need) for need in needs], weights, pools, left_kib)):
            shares[index] += kib
            spend(left_kib, pools[index], kib)
    return shares


def max_min(
    claims: Sequence[int], weights: Sequence[float], pools: Sequence[Sequence[str]], left_kib: Mapping[str, int]
) -> list[int]:
    """Share by weighted max-min over pools that overlap: a share grows until its claim is met or a pool of it is empty.

    *claims* and *left_kib* are KiB, *pools* the names of those that each claim is paid from; KiB for each claim out.
    All open shares grow together, by weight, from one event to the next: a claim is met, or a pool is empty.
    O(m log m) for m memberships. (Bertsekas and Gallager, Data Networks, 6.5.2.)
    """
    open_ = {index for index, kib in enumerate(claims) if kib > 0}
    scarce = _scarce(claims, pools, left_kib, open_)
    shares = [kib if index in open_ else 0 for index, kib in enumerate(claims)]
    open_ = {index for index in open_ if any(name in scarce for name in pools[index])}
    for name in scarce:
        scarce[name].weight = sum(weights[index] for index in scarce[name].members)
    empty_at = [(pool.empty_at, name) for name, pool in scarce.items()]
    heapq.heapify(empty_at)

    def close(index: int, level: float) -> None:
        open_.discard(index)
        for name in pools[index]:
            if name in scarce:
                scarce[name].leave(weights[index], level)

    for index in sorted(open_, key=lambda index: claims[index] / weights[index]):
        while index in open_:
            # It is in a scarce pool, which is there until all its members left.
            level, name = empty_at[0]
            if level < scarce[name].empty_at:
                # Members left it since: it lasts longer than it seemed.
                heapq.heapreplace(empty_at, (scarce[name].empty_at, name))
            elif claims[index] <= level * weights[index]:
                close(index, claims[index] / weights[index])
            else:
                heapq.heappop(empty_at)
                for member in [one for one in scarce[name].members if one in open_]:
                    shares[member] = int(level * weights[member])
                    close(member, level)
    return shares


class _Pool:
    """A pool that can't meet all claims: what is left of it at a *level*, the share for a weight of 1."""

    def __init__(self, left_kib: int) -> None:
        self.members: list[int] = []
        self.count = 0
        self.weight = self._level = 0.0
        self._left = max(0.0, left_kib)

    @property
    def empty_at(self) -> float:
        """Return the level at which it will be empty, if all that are in it now go on."""
        return self._level + self._left / self.weight if self.count else math.inf

    def leave(self, weight: float, level: float) -> None:
        """Note that one of its members takes no more from this *level* on."""
        self._left = max(0.0, self._left - self.weight * (level - self._level))
        self._level = level
        self.count -= 1
        self.weight -= weight


def _scarce(
    claims: Sequence[int], pools: Sequence[Sequence[str]], left_kib: Mapping[str, int], open_: Iterable[int]
) -> dict[str, _Pool]:
    """Return the pools that can't meet the claims of all that are in them."""
    asked_kib = dict.fromkeys(left_kib, 0)
    for index in open_:
        for name in pools[index]:
            if name in asked_kib:
                asked_kib[name] += claims[index]
    found = {name: _Pool(left_kib[name]) for name, kib in asked_kib.items() if kib > left_kib[name]}
    for index in sorted(open_):
        for name in pools[index]:
            if name in found:
                found[name].members.append(index)
                found[name].count += 1
    return found


# ---------------------------------------------------------------- a draft of a plan


@dataclass
class Take:
    """What is taken from a guest; ``ordered_kib`` of it because somebody asked for that: it is not owed."""

    guest: Guest
    kib: int
    why: str
    ordered_kib: int = 0


@dataclass(frozen=True)
class Loan:
    """What would be borrowed from guests below their originals, and what more would be granted for that, in KiB."""

    borrowed_kib: int
    more_kib: int


@dataclass
class Draft:
    """A plan before it is moves: ``needs`` are all that were found, ``grants`` what they get.

    ``notes`` says why waste stays, ``declined`` which loan was too dear.
    """

    takes: list[Take] = field(default_factory=list)
    needs: list[Need] = field(default_factory=list)
    grants: list[Grant] = field(default_factory=list)
    notes: list[Skip] = field(default_factory=list)
    declined: Optional[Loan] = None

    @property
    def granted_kib(self) -> int:
        """Return the sum of all grants."""
        return sum(grant.kib for grant in self.grants)

    @property
    def borrowed_kib(self) -> int:
        """Return what is taken from guests below their originals."""
        below_kib = [take.guest.original_kib - take.guest.actual_kib + take.kib for take in self.takes]
        return sum(max(0, min(kib, take.kib)) for kib, take in zip(below_kib, self.takes))


def pay(draft: Draft, host: HostState) -> None:
    """Grant the draft's needs out of the host's supply and the draft's takes."""
    if host.supply_kib is not None:
        draft.grants = grant(draft.needs, funds_of(host, draft.takes))


def symptoms(guest: Guest) -> str:
    """Return why *guest* needs memory, with its numbers."""
    limits = guest.limits
    words = []
    if guest.expected_kib < limits.floor_kib - BALLOON_TOLERANCE_KIB:
        words.append(f"below its floor {mib(limits.floor_kib)}")
    sign = "<" if guest.starved else ">="
    usable = f"usable {mib(guest.available_kib)} {sign} {mib(limits.starvation_kib)}"
    words.append(f"{usable}, used {mib(guest.busy_kib)}")
    if guest.debt_kib:
        words.append(f"owed {mib(guest.debt_kib)}")
    if guest.rise_kib:
        words.append(f"rising by {mib(guest.rise_kib)}")
    if guest.swapping:
        words.append("swapping")
    return ", ".join(words)
