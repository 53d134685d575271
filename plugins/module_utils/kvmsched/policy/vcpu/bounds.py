# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What no assignment can beat: the fullest bin, the moves to a target; and the pressure to aim at."""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import accumulate
from typing import Iterable, Iterator, Mapping, Sequence

from .idle import IDLE
from .problem import EPSILON, NOWHERE, Problem


def load_bound(problem: Problem) -> float:
    """Return a load per pCPU that the fullest bin has in any assignment of the items within their classes."""
    bound = max((fixed / size for fixed, size in zip(problem.fixed, problem.capacity)), default=0.0)
    for bins, loads in _confined(problem):
        bound = max(bound, _fluid(problem, bins, sum(loads)), *_pigeonholes(problem, bins, loads))
    for index, bins in enumerate(problem.classes):
        biggest = max((problem.load[i] for i, reach in enumerate(problem.reach) if reach == index), default=None)
        if biggest is not None:
            bound = max(bound, min((problem.fixed[b] + biggest) / problem.capacity[b] for b in bins))
    return bound


# Beyond this number of different sets only the widest are looked at: still a true bound, perhaps a weaker one.
_MOST_CLASSES = 64


def _confined(problem: Problem) -> Iterator[tuple[Sequence[int], list[float]]]:
    """Yield sets of bins, each with the loads, largest first, that can't leave it."""
    by_class = _by_class(problem)
    sets = {reach: frozenset(problem.classes[reach]) for reach in by_class}
    everything = frozenset().union(*sets.values())
    widest = sorted({everything, *sets.values()}, key=lambda s: (-len(s), sorted(s)))[:_MOST_CLASSES]
    for bins in widest:
        inside = [load for reach, loads in by_class.items() if sets[reach] <= bins for load in loads]
        if inside:
            yield sorted(bins), sorted(inside, reverse=True)


def _fluid(problem: Problem, bins: Iterable[int], load: float) -> float:
    """Return the level to which *load* fills *bins* above what is fixed there, were it a fluid."""
    filled = sorted((problem.fixed[b] / problem.capacity[b], problem.capacity[b]) for b in bins)
    size, volume = 0.0, load
    level = math.inf
    for fixed, capacity in filled:
        if level <= fixed:
            break
        size += capacity
        volume += fixed * capacity
        level = volume / size
    return level


def _pigeonholes(problem: Problem, bins: Sequence[int], loads: Sequence[float]) -> list[float]:
    """Return the bound of pigeonholes: k * m + 1 items in m bins put k + 1 into one, at least the smallest k + 1."""
    size = max(problem.capacity[b] for b in bins)
    fixed = min(problem.fixed[b] / problem.capacity[b] for b in bins)
    bounds = [0.0]
    m = len(bins)
    for k in range(1, 5):
        first = k * m + 1
        if first > len(loads):
            break
        bounds.append(fixed + sum(loads[first - k - 1 : first]) / size)
    return bounds


def moves_bound(problem: Problem, target: float) -> int:
    """Return how many moves any plan needs before each bin is at most *target*, or has one busy item at most.

    Per bin: the fewest items, largest first, that cover what is too much; or all but one of those
    that are not idle. An item without a bin costs no move here.
    """
    on: list[list[float]] = [[] for _each in problem.capacity]
    for load, bin_ in zip(problem.load, problem.now):
        if bin_ != NOWHERE:
            on[bin_].append(load)
    return sum(_fewest_out(problem, b, loads, target) for b, loads in enumerate(on))


def _fewest_out(problem: Problem, bin_: int, loads: list[float], target: float) -> int:
    excess = sum(loads) + problem.fixed[bin_] - target * problem.capacity[bin_] - EPSILON
    if excess <= 0:
        return 0
    ordered = sorted((load for load in loads if load > 0), reverse=True)
    enough = next((count for count, out in enumerate(accumulate(ordered), 1) if out >= excess), len(ordered))
    return max(0, min(enough, sum(1 for load in ordered if load > IDLE) - 1))


def reached_target(problem: Problem, where: Sequence[int]) -> float:
    """Return the least target, as moves_bound() means it, that the assignment *where* meets."""
    totals = problem.on_bins(where)
    awake = [0] * len(totals)
    for load, bin_ in zip(problem.load, where):
        if bin_ != NOWHERE and load > IDLE:
            awake[bin_] += 1
    return max((totals[b] / problem.capacity[b] for b in range(len(totals)) if awake[b] > 1), default=0.0)


# ---------------------------------------------------------------- targets


def targets(problem: Problem, slack: float) -> list[float]:
    """Return the pressure to aim at, per bin: the lexicographic lower bound plus *slack* (decision 26).

    The set of bins whose own items fill it highest sets the level of its bins; then the level is
    taken again over the rest. Items that fill a pCPU alone are set aside with it first.
    """
    left = frozenset(b for bins in problem.classes for b in bins)
    aim = [math.inf] * len(problem.capacity)
    loads = _by_class(problem)
    reach = {index: frozenset(problem.classes[index]) for index in loads}
    for _turn in range(_MOST_CLASSES):
        level, bins = _highest(problem, left, reach, loads)
        for b in bins:
            aim[b] = level + slack
        left -= bins
        if not left:
            break
        reach = {index: inside - bins for index, inside in reach.items() if not inside <= bins}
    return aim


def _by_class(problem: Problem) -> dict[int, list[float]]:
    """Return the loads of each class that has items."""
    loads: dict[int, list[float]] = defaultdict(list)
    for load, reach in zip(problem.load, problem.reach):
        loads[reach].append(load)
    return loads


def _highest(
    problem: Problem, left: frozenset[int], reach: Mapping[int, frozenset[int]], loads: Mapping[int, list[float]]
) -> tuple[float, frozenset[int]]:
    """Return the level and the set of bins, among those *left*, that is filled highest by the items it confines."""
    sets = sorted({left, *reach.values()}, key=lambda s: (-len(s), sorted(s)))[:_MOST_CLASSES]
    best, best_bins = -1.0, left
    for bins in sets:
        inside = [load for index, within in reach.items() if within <= bins for load in loads[index]]
        level = _level(problem, bins, sorted(inside, reverse=True))
        if level > best + EPSILON:
            best, best_bins = level, bins
    return best, best_bins


def _level(problem: Problem, bins: Iterable[int], loads: list[float]) -> float:
    """Return the level of *bins* under *loads* (largest first), without what fills a bin alone."""
    free = sorted(bins, key=lambda b: problem.fixed[b] / problem.capacity[b])
    heavier = 1 + max(problem.kappa[b] * len(problem.mates[b]) for b in free)
    size = problem.capacity[free[0]]
    while True:
        level = heavier * _fluid(problem, free, sum(loads))
        lowest = problem.fixed[free[0]] / problem.capacity[free[0]]
        alone = sum(1 for load in loads if lowest + load / size > level + EPSILON)
        if not alone or alone >= len(free):
            break
        loads, free = loads[alone:], free[alone:]
    return max(level, *_pigeonholes(problem, free, loads))
