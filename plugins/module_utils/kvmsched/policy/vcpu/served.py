# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who gets how much of the pCPUs: shares as the Linux kernel gives them, by weight, where threads may run in sets."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Collection, Iterable, Mapping, NamedTuple, Optional, Sequence

from ...units import CpuSet

# cpu.weight of a cgroup that nobody changed (kernel documentation, cgroup-v2.rst).
DEFAULT_WEIGHT = 100.0

# What the kernel gives a cgroup with cpu.idle=1, whose cpu.weight reads 0: 3 beside 1024 (WEIGHT_IDLEPRIO in
# kernel/sched/sched.h).
IDLE_WEIGHT = 100.0 * 3 / 1024

# Rounds in which sets that overlap make room for each other: each brings them closer to an even level.
_ROUNDS = 12


class Claim(NamedTuple):
    """What one thread asks for: ``want`` as a share of a pCPU (0 to 1), its ``weight``, and where it may run."""

    want: float
    weight: float
    place: CpuSet


def thread_weight(guest_weight: Optional[float], want: float, wanted_by_guest: float) -> float:
    """Return the weight of a vCPU that wants *want* beside those of others.

    A guest's cgroup has one weight, which its vCPUs share by their load: calc_group_shares() in the
    kernel's kernel/sched/fair.c. Without a weight (None) threads compete one by one.
    """
    if guest_weight is None:
        return 1.0
    return max(guest_weight, IDLE_WEIGHT) / DEFAULT_WEIGHT / (1 + max(0.0, wanted_by_guest - want))


def fair_shares(wants: Sequence[float], weights: Sequence[float], capacity: float) -> list[float]:
    """Return what each gets of *capacity*: weighted max-min fairness, nobody more than it wants."""
    if sum(wants) <= capacity:
        return list(wants)
    shares = [0.0] * len(wants)
    left, weight = capacity, sum(weights)
    for i in sorted(range(len(wants)), key=lambda i: wants[i] / weights[i]):
        shares[i] = min(wants[i], max(0.0, left) * weights[i] / weight) if weight > 0 else 0.0
        left -= shares[i]
        weight -= weights[i]
    return shares


def level(claims: Sequence[tuple[float, float]], capacity: float) -> float:
    """Return what the (want, weight) of *claims* that get less than they want get for their weight; inf: all get it."""
    if sum(want for want, _weight in claims) <= capacity + 1e-9:
        return math.inf
    left, weight = capacity, sum(weight for _want, weight in claims)
    for want, own in by_content(claims):
        if want * weight > left * own:
            return left / weight
        left -= want
        weight -= own
    return math.inf


def by_content(claims: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the (want, weight) of *claims* in the order in which a rising level contents them."""
    return sorted(claims, key=lambda claim: claim[0] / claim[1])


def newcomer_level(claims: Sequence[tuple[float, float]], weight: float, capacity: float) -> float:
    """Return the level() beside one more claim of *weight* that wants all; *claims* are by_content()."""
    left, weight = capacity, weight + sum([own for _want, own in claims])
    for want, own in claims:
        if want * weight > left * own:
            break
        left -= want
        weight -= own
    return left / weight


def served(claims: Sequence[Claim], pcpus: Collection[int]) -> list[float]:
    """Return what each of *claims* runs, as a share of a pCPU, on the *pcpus* that are online.

    A thread may spread over its whole set. The kernel evens out the load of what overlaps, so first
    each set's wants are laid as evenly as its limits allow; that serves the most. Then each pCPU is
    shared by weight. Within a set all threads have the same access to all of its pCPUs.
    """
    by_place: dict[CpuSet, list[int]] = defaultdict(list)
    for index, claim in enumerate(claims):
        by_place[claim.place.intersection(pcpus)].append(index)
    by_place.pop(frozenset(), None)
    poured = pour({place: sum(claims[i].want for i in items) for place, items in by_place.items()})
    granted = _granted(claims, by_place, poured)
    runs = [0.0] * len(claims)
    for place, items in by_place.items():
        shares = fair_shares([claims[i].want for i in items], [claims[i].weight for i in items], granted[place])
        for i, share in zip(items, shares):
            runs[i] = share
    return runs


def pour(
    wants: Mapping[CpuSet, float], filled: Sequence[float] = (), size: Sequence[float] = ()
) -> dict[CpuSet, dict[int, float]]:
    """Return how each set's want lies on its pCPUs, all as evenly as the sets allow.

    Instead of pCPUs the sets may hold bins, with what each has already (*filled*) and its *size* in pCPUs.
    """
    total: dict[int, float] = defaultdict(float, enumerate(filled))
    poured: dict[CpuSet, dict[int, float]] = {}
    wide = []
    for place, want in sorted(wants.items(), key=lambda item: (len(item[0]), sorted(item[0]))):
        poured[place] = _fill(want, place, total, size)
        if len(place) > 1:
            wide.append(place)
    for _round in range(_ROUNDS if len(wide) > 1 else 0):
        for place in wide:
            for pcpu, part in poured[place].items():
                total[pcpu] -= part
            poured[place] = _fill(wants[place], place, total, size)
    return poured


def _fill(want: float, place: Iterable[int], total: dict[int, float], size: Sequence[float]) -> dict[int, float]:
    """Pour *want* on those of *place* with the lowest total for their size, and add it there."""
    order = sorted((total[p] / size[p], p) for p in place) if size else sorted((total[p], p) for p in place)
    volume, room, level, count = want, 0.0, 0.0, 0
    for count, (_low, pcpu) in enumerate(order, 1):
        volume += total[pcpu]
        room += size[pcpu] if size else 1
        level = volume / room
        if count == len(order) or level <= order[count][0]:
            break
    filled = {p: max(0.0, level * (size[p] if size else 1) - total[p]) for _low, p in order[:count]}
    for pcpu, part in filled.items():
        total[pcpu] += part
    return filled


def _granted(
    claims: Sequence[Claim], by_place: dict[CpuSet, list[int]], poured: dict[CpuSet, dict[int, float]]
) -> dict[CpuSet, float]:
    """Return what all the threads of each set get together."""
    on: dict[int, list[tuple[CpuSet, float]]] = defaultdict(list)
    for place, parts in poured.items():
        for pcpu, part in parts.items():
            on[pcpu].append((place, part))
    granted: dict[CpuSet, float] = defaultdict(float)
    for here in on.values():
        wants: list[float] = []
        weights: list[float] = []
        whose: list[CpuSet] = []
        if sum(part for _place, part in here) <= 1 or len(here) == 1:
            for place, part in here:
                granted[place] += min(1.0, part)
            continue
        for place, part in here:
            whole = sum(poured[place].values())
            fraction = part / whole if whole > 0 else 0.0
            for i in by_place[place] if fraction > 0 else ():
                wants.append(claims[i].want * fraction)
                weights.append(claims[i].weight * fraction)
                whose.append(place)
        for place, share in zip(whose, fair_shares(wants, weights, 1.0)):
            granted[place] += share
    return granted
