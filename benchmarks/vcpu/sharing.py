# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a Linux kernel shares pCPUs among threads with affinity masks: who runs how much, and who waits how long.

Independent of the policy on purpose: the judge must not share the code that it judges.
"""

from __future__ import annotations

import collections
import math
from typing import Dict, FrozenSet, List, NamedTuple, Optional, Sequence, Tuple

Mask = FrozenSet[int]
_EPSILON = 1e-9


class Claim(NamedTuple):
    """What one thread asks for: ``want`` as a share of a pCPU (0 to 1), its ``weight``, and where it may run."""

    want: float
    weight: float
    mask: Mask


class Shared(NamedTuple):
    """Who got what: ``runs`` by claim, ``busy`` by pCPU, ``flows`` by mask and pCPU."""

    runs: List[float]
    busy: Dict[int, float]
    flows: Dict[Mask, Dict[int, float]]


def share(claims: Sequence[Claim]) -> Shared:
    """Share the pCPUs by weighted max-min fairness, where a thread may spread over its whole mask.

    That is the kernel's aim: no thread can get more but at the cost of one that has less for its
    weight. With single pCPUs as masks it is fair scheduling of each pCPU alone. What is not needed to
    serve more lies as evenly as the masks allow.
    """
    by_mask: Dict[Mask, List[int]] = {}
    for index, claim in enumerate(claims):
        by_mask.setdefault(claim.mask, []).append(index)
    runs = [0.0] * len(claims)
    flows: Dict[Mask, Dict[int, float]] = {}
    for masks in _components(list(by_mask)):
        part = {mask: by_mask[mask] for mask in masks}
        if len(masks) == 1:
            (mask,) = masks
            _fill(claims, part[mask], float(len(mask)), runs)
            each = sum(runs[i] for i in part[mask]) / len(mask)
            flows[mask] = dict.fromkeys(mask, each)
        else:
            _share_overlapping(claims, part, runs)
            totals = {mask: sum(runs[i] for i in items) for mask, items in part.items()}
            flows.update(_flow(totals, {p: 1.0 for mask in masks for p in mask}).flows)
    busy: Dict[int, float] = {}
    for flow in flows.values():
        for pcpu, amount in flow.items():
            busy[pcpu] = busy.get(pcpu, 0.0) + amount
    return Shared(runs, busy, flows)


def waits(claims: Sequence[Claim], shared: Shared) -> List[float]:
    """The share of time that each thread stands runnable in the queue though it gets all it wants: random arrivals.

    A thread that wakes up finds the queue as it is without it (the arrival theorem, Lavenberg and
    Reiser 1980); the queue of *n* pCPUs that serve one mask is Sakasegawa's (1977) approximation of
    M/M/n, which for one pCPU is u / (1 - u). Against the exact machine-repair queue it is right within
    a few points up to 90 % load.
    """
    by_mask: Dict[Mask, List[int]] = {}
    for index, claim in enumerate(claims):
        by_mask.setdefault(claim.mask, []).append(index)
    totals = {mask: sum(flow.values()) for mask, flow in shared.flows.items()}
    result = [0.0] * len(claims)
    for mask, items in by_mask.items():
        size = len(mask)
        crowd = 0.0
        for other, flow in shared.flows.items():
            inside = sum(amount for pcpu, amount in flow.items() if pcpu in mask)
            if inside <= _EPSILON:
                continue
            part = inside / totals[other] / size
            crowd += sum(_seen(part * shared.runs[i]) for i in by_mask[other])
        used = sum(shared.busy.get(pcpu, 0.0) for pcpu in mask) / size
        power = math.sqrt(2 * (size + 1)) - 2
        for i in items:
            run = shared.runs[i]
            others = crowd - _seen(run / size)
            queue = others / (1 - others) if others < 1 else math.inf
            taken = max(0.0, min(1.0, used - run / size))
            result[i] = min(1.0 - run, run / size * queue * (taken**power if power > 0 else 1.0))
    return result


def _seen(run: float) -> float:
    return run / (1 + run)


# ---------------------------------------------------------------- max-min


def _fill(claims: Sequence[Claim], items: Sequence[int], capacity: float, runs: List[float]) -> None:
    """Weighted max-min of *capacity* among *items*."""
    left, weight = capacity, sum(claims[i].weight for i in items)
    for i in sorted(items, key=lambda i: claims[i].want / claims[i].weight):
        claim = claims[i]
        runs[i] = min(claim.want, max(0.0, left) * claim.weight / weight)
        left -= runs[i]
        weight -= claim.weight
        if weight <= _EPSILON * claim.weight:
            weight = claim.weight


def _components(masks: Sequence[Mask]) -> List[List[Mask]]:
    """The masks in groups that have no pCPU in common with each other."""
    parent: Dict[int, int] = {}

    def root(pcpu: int) -> int:
        while parent.setdefault(pcpu, pcpu) != pcpu:
            parent[pcpu] = parent[parent[pcpu]]
            pcpu = parent[pcpu]
        return pcpu

    for mask in masks:
        first = root(next(iter(mask)))
        for pcpu in mask:
            parent[root(pcpu)] = first
    groups: Dict[int, List[Mask]] = {}
    for mask in masks:
        groups.setdefault(root(next(iter(mask))), []).append(mask)
    return list(groups.values())


def _share_overlapping(claims: Sequence[Claim], part: Dict[Mask, List[int]], runs: List[float]) -> None:
    """Weighted max-min where masks overlap: the tightest set of masks first, then the rest without its pCPUs."""
    room = {p: 1.0 for mask in part for p in mask}
    todo = list(part.items())
    while todo:
        level, tight = _bottleneck(claims, [(mask.intersection(room), items) for mask, items in todo], room)
        if level is None:
            for _mask, items in todo:
                for i in items:
                    runs[i] = claims[i].want
            return
        rest = []
        gone: set = set()
        for (mask, items), full in zip(todo, tight):
            if not full:
                rest.append((mask, items))
                continue
            gone |= mask
            for i in items:
                runs[i] = min(claims[i].want, level * claims[i].weight)
        room = {p: size for p, size in room.items() if p not in gone}
        todo = rest


def _bottleneck(
    claims: Sequence[Claim], todo: Sequence[Tuple[Mask, List[int]]], room: Dict[int, float]
) -> Tuple[Optional[float], List[bool]]:
    """The highest level (run / weight) that all can reach, and which masks are then full; None: all wants fit.

    Newton's method on the level, by minimum cuts (Dinkelbach 1967): each cut lowers it.
    """
    merged: Dict[Mask, List[int]] = {}
    for mask, items in todo:
        merged.setdefault(mask, []).extend(items)
    level: Optional[float] = None
    tight: frozenset = frozenset()
    while True:
        totals = {mask: _demand(claims, items, level) for mask, items in merged.items()}
        cut = _flow(totals, room).cut
        if not cut:
            return level, [mask in tight for mask, _items in todo]
        inside = [i for mask in cut for i in merged[mask]]
        capacity = sum(room[p] for p in frozenset().union(*cut))
        lower = _level(claims, inside, capacity)
        if level is not None and lower >= level - _EPSILON:
            return lower, [mask in cut for mask, _items in todo]
        level, tight = lower, cut


def _demand(claims: Sequence[Claim], items: Sequence[int], level: Optional[float]) -> float:
    if level is None:
        return sum(claims[i].want for i in items)
    return sum(min(claims[i].want, level * claims[i].weight) for i in items)


def _level(claims: Sequence[Claim], items: Sequence[int], capacity: float) -> float:
    """The level at which *items* fill *capacity*."""
    left, weight = capacity, sum(claims[i].weight for i in items)
    for i in sorted(items, key=lambda i: claims[i].want / claims[i].weight):
        claim = claims[i]
        if claim.want * weight > left * claim.weight:
            return left / weight
        left -= claim.want
        weight -= claim.weight
    return math.inf


# ---------------------------------------------------------------- flow


class _Flow(NamedTuple):
    flows: Dict[Mask, Dict[int, float]]
    cut: FrozenSet[Mask]


def _flow(totals: Dict[Mask, float], room: Dict[int, float]) -> _Flow:
    """A maximum flow from masks to pCPUs, as even as it goes; ``cut`` are the masks that can't have their total."""
    used = dict.fromkeys(room, 0.0)
    flows: Dict[Mask, Dict[int, float]] = {}
    left: Dict[Mask, float] = {}
    for mask in sorted(totals, key=lambda m: (len(m), min(m, default=0))):
        flows[mask] = _pour(totals[mask], sorted(mask), used, room)
        left[mask] = totals[mask] - sum(flows[mask].values())
    for mask in totals:
        while left[mask] > _EPSILON:
            got = _augment(mask, left[mask], flows, used, room)
            if got <= 0:
                break
            left[mask] -= got
    short = [mask for mask in totals if left[mask] > _EPSILON]
    return _Flow(flows, frozenset(_reachable(short, flows)))


def _pour(amount: float, pcpus: Sequence[int], used: Dict[int, float], room: Dict[int, float]) -> Dict[int, float]:
    """Fill the emptiest of *pcpus* first, up to one level or as far as there is room."""
    order = sorted(pcpus, key=lambda p: used[p])
    level, count = 0.0, 0
    held = 0.0
    for count, pcpu in enumerate(order, 1):
        held += used[pcpu]
        level = (amount + held) / count
        if count == len(order) or level <= used[order[count]]:
            break
    poured = {}
    for pcpu in order[:count]:
        gain = min(level, room[pcpu]) - used[pcpu]
        if gain > 0:
            poured[pcpu] = gain
            used[pcpu] += gain
    return poured


def _augment(
    start: Mask, amount: float, flows: Dict[Mask, Dict[int, float]], used: Dict[int, float], room: Dict[int, float]
) -> float:
    """Push up to *amount* more from *start* along one path of other masks that make room; return what went through."""
    came: Dict[Mask, Tuple[Optional[Mask], int]] = {start: (None, -1)}
    queue = collections.deque([start])
    while queue:
        mask = queue.popleft()
        for pcpu in mask:
            if room[pcpu] - used[pcpu] > _EPSILON:
                return _push(mask, pcpu, amount, came, flows, used, room)
            for other, flow in flows.items():
                if other not in came and flow.get(pcpu, 0.0) > _EPSILON:
                    came[other] = (mask, pcpu)
                    queue.append(other)
    return 0.0


def _push(
    last: Mask,
    free: int,
    amount: float,
    came: Dict[Mask, Tuple[Optional[Mask], int]],
    flows: Dict[Mask, Dict[int, float]],
    used: Dict[int, float],
    room: Dict[int, float],
) -> float:
    path = []
    mask: Optional[Mask] = last
    amount = min(amount, room[free] - used[free])
    while mask is not None:
        before, via = came[mask]
        path.append((mask, before, via))
        if before is not None:
            amount = min(amount, flows[mask][via])
        mask = before
    used[free] += amount
    to = free
    for mask, _before, via in path:
        flows[mask][to] = flows[mask].get(to, 0.0) + amount
        if via >= 0:
            flows[mask][via] -= amount
        to = via
    return amount


def _reachable(short: Sequence[Mask], flows: Dict[Mask, Dict[int, float]]) -> List[Mask]:
    """All masks whose flow stands in the way of the *short* ones, and these."""
    found = list(short)
    seen = set(found)
    for mask in found:
        for pcpu in mask:
            for other, flow in flows.items():
                if other not in seen and flow.get(pcpu, 0.0) > _EPSILON:
                    seen.add(other)
                    found.append(other)
    return found
