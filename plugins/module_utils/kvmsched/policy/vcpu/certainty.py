# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a plan is worth its moves, however the loads are read; and which of its moves are."""

from __future__ import annotations

import functools
import heapq
from typing import Iterable, Optional, Sequence

from .planners import Assignment
from .problem import EPSILON, NOWHERE, Problem
from .world import World

# A plan that serves less than this much more, as a share of one pCPU, serves the same.
LEAST_WORK = 0.01

# What each move of a plan must serve on average, in pCPUs, to be made for that: where passes are far between, a second
# of a pCPU until the next one.
WORK_PER_MOVE = 0.01
_WORK_PER_MOVE_S = 1.0

# At equal work, the worst-served vCPU must get so many times as much.
BETTER_SHARE = 1.10

# A plan that evens out less than this does nothing: a tenth of a point.
LEAST_DROP = 0.001


class Gain:
    """What a plan that takes ``moves`` moves brings. Each figure is worked out when it is asked for."""

    def __init__(self, judge: Judge, after: Sequence[int]) -> None:
        self._judge, self._after = judge, after
        self._moves = judge.moves(after)
        self.moves = len(self._moves)

    @functools.cached_property
    def work(self) -> float:
        """Return how much more work is served, in pCPUs."""
        return self._judge.work(self._after, self._moves) if self._moves else 0.0

    @functools.cached_property
    def drop(self) -> float:
        """Return by how much the imbalance surely falls, as a fraction."""
        return self._judge.drop(self._after, self._moves) if self._moves else 0.0

    @functools.cached_property
    def share(self) -> float:
        """Return how many times as much the worst-served vCPU gets for its weight, on the pCPUs that change.

        That is asked only where as much work is done.
        """
        return self._judge.share(self._after, self._moves) if self._moves and abs(self.work) < LEAST_WORK else 1.0

    def worth(self, threshold_pct: float) -> str:
        """Return why it is worth it: work; at equal work, share; at equal shares, imbalance. Empty: it is not."""
        if self.moves and self.work >= max(LEAST_WORK, self._judge.work_per_move * self.moves):
            return "work"
        if self.work <= -LEAST_WORK:
            return ""
        if self.share >= BETTER_SHARE:
            return "share"
        even = self.share > 1 / BETTER_SHARE and self.drop >= max(threshold_pct / 100, LEAST_DROP)
        return "imbalance" if even else ""


class Judge:
    """Says what going from *before* to other places brings.

    Work is what is served in the mean over time. The imbalance must fall by the loads planned with,
    with every wait believed in full. From a single window (*doubt*) it must also fall with each load read in the
    direction that makes the plan less useful. So noise between equals moves nothing. A daemon sees
    loads again and again, and needs no such doubt.

    Many plans are judged, so what is the same for all of them is worked out once.
    """

    def __init__(self, world: World, before: Sequence[int], doubt: bool = True, window_s: float = 0.0) -> None:
        self._world, self._before, self._doubt = world, before, doubt
        self.work_per_move = min(WORK_PER_MOVE, _WORK_PER_MOVE_S / window_s) if window_s else WORK_PER_MOVE
        self._planned = _Assumption(world, before, world.problem.load)
        self._mean = _Assumption(world, before, world.mean)
        self._variance = [0.0] * len(world.bins)
        for bin_, part in zip(before, world.variance):
            if bin_ != NOWHERE:
                self._variance[bin_] += part
        self._work = world.problem.work(self._mean.totals, _if_any(self._variance))

    @functools.cached_property
    def _raised(self) -> _Assumption:
        """Return the loads with every wait believed in full."""
        loads = [min(1.0, load + d.high - d.low) for load, d in zip(self._world.problem.load, self._world.demands)]
        return _Assumption(self._world, self._before, loads)

    @functools.cached_property
    def _doubted(self) -> dict[int, list[float]]:
        """Return the loads less (-1) or more (1) their doubt: not below what ran, nor over a whole pCPU."""
        world = self._world
        load, doubt = world.problem.load, world.doubt
        runs = [demand.run for demand in world.demands]
        return {
            -1: [max(x if x < run else run, x - d) for x, d, run in zip(load, doubt, runs)],
            1: [max(x, min(1.0, x + d)) for x, d in zip(load, doubt)],
        }

    @functools.cached_property
    def _stacked(self) -> dict[int, list[float]]:
        """Return each bin's load, without what floats, if that of all its items is less (-1), sure, or more (1)."""
        readings = {side: self._world.stacked(self._before, loads) for side, loads in self._doubted.items()}
        return {0: self._planned.stacked, **readings}

    def gain(self, after: Sequence[int]) -> Gain:
        """Return what going to *after* brings."""
        return Gain(self, after)

    def moves(self, after: Sequence[int]) -> _Moves:
        """Return what moves on the way to *after*."""
        return [(i, old, new) for i, (old, new) in enumerate(zip(self._before, after)) if old != new]

    def work(self, after: Sequence[int], moves: _Moves) -> float:
        """Return how much more work is served in the mean over time, in pCPUs."""
        variance = _changed(self._variance, ((old, new, self._world.variance[i]) for i, old, new in moves))
        return self._world.problem.work(self._mean.after(after, moves), _if_any(variance)) - self._work

    def drop(self, after: Sequence[int], moves: _Moves) -> float:
        """Return by how much the imbalance falls by each reading."""
        drop = self._drop(self._planned, after, moves)
        if drop > 0:
            drop = min(drop, self._drop(self._raised, after, moves))
        if drop > 0 and self._doubt:
            drop = min(drop, self._doubted_drop(after, moves))
        return drop

    def share(self, after: Sequence[int], moves: _Moves) -> float:
        """Return by what factor the least that a vCPU gets for its weight rises, on the pCPUs that change."""
        touched = {b for _item, old, new in moves for b in (old, new)} - {NOWHERE}
        then, now = min(self._world.levels(self._before, touched)), min(self._world.levels(after, touched))
        return 1.0 if then == now else now / then

    def _drop(self, reading: _Assumption, after: Sequence[int], moves: _Moves) -> float:
        """Return by how much the imbalance falls, by one reading."""
        return reading.imbalance - self._world.problem.imbalance(reading.after(after, moves))

    def _doubted_drop(self, after: Sequence[int], moves: _Moves) -> float:
        """Return the same where loads are less on bins that the plan relieves, and more on those that it burdens."""
        world, planned = self._world, self._planned
        change = [b - a for a, b in zip(planned.totals, planned.after(after, moves))]
        side = [(c > EPSILON) - (c < -EPSILON) for c in change]
        stacked = [self._stacked[s][b] for b, s in enumerate(side)]
        loads = {0: world.problem.load, **self._doubted}
        parts = ((old, new, loads[side[old] if old != NOWHERE else 0][i]) for i, old, new in moves)
        then = world.laid(_changed(stacked, parts), after, loads[0])
        return world.problem.imbalance(world.laid(stacked, self._before, loads[0])) - world.problem.imbalance(then)


# Item, the bin that it leaves and the one that it goes to; NOWHERE: none.
_Moves = Sequence[tuple[int, int, int]]


class _Assumption:
    """Loads as they may be, and what they make of the bins as everything is *before*."""

    def __init__(self, world: World, before: Sequence[int], load: Sequence[float]) -> None:
        self._world, self._load = world, load
        self.stacked = world.stacked(before, load)
        self.totals = world.laid(list(self.stacked), before, load)

    @functools.cached_property
    def imbalance(self) -> float:
        return self._world.problem.imbalance(self.totals)

    def after(self, after: Sequence[int], moves: _Moves) -> list[float]:
        """Return the load of each bin once everything is where *after* says, which takes *moves*."""
        stacked = _changed(self.stacked, ((old, new, self._load[i]) for i, old, new in moves))
        return self._world.laid(stacked, after, self._load)


def _changed(totals: Sequence[float], parts: Iterable[tuple[int, int, float]]) -> list[float]:
    """Return *totals* by bin after each of *parts* left one bin for another."""
    changed = list(totals)
    for old, new, part in parts:
        if old != NOWHERE:
            changed[old] -= part
        if new != NOWHERE:
            changed[new] += part
    return changed


def _if_any(variance: Sequence[float]) -> Optional[Sequence[float]]:
    return variance if any(variance) else None


def ordered(world: World, where: Sequence[int]) -> list[int]:
    """Return the items that move to *where*: what has no place first, then what evens out most beside those before.

    What brings nothing after those before it comes last. A move's gain falls as others are made, so
    one that is still the best when it is worked out anew is the best (lazy greedy, Minoux 1978).
    """
    problem: Problem = world.allowed
    load = problem.load
    moved = [i for i, (now, then) in enumerate(zip(problem.now, where)) if now != then]
    order = sorted((i for i in moved if problem.now[i] == NOWHERE), key=lambda i: (-load[i], i))
    state = Assignment(problem, [0.0] * len(problem.capacity), 0.0)
    for item in order:
        state.put(item, where[item])

    def entry(item: int) -> tuple[float, int]:
        return -load[item] * state.gain(load[item], problem.now[item], where[item]), item

    heap = [entry(i) for i in moved if problem.now[i] != NOWHERE]
    heapq.heapify(heap)
    while heap:
        rank, item = heapq.heappop(heap)
        fresh = entry(item)
        if heap and fresh > heap[0] and fresh[0] > rank + EPSILON:
            heapq.heappush(heap, fresh)
            continue
        state.put(item, where[item])
        order.append(item)
    return order


def cut(world: World, where: Sequence[int], order: Sequence[int], count: int) -> list[int]:
    """Return *where*, but with the first *count* of the moves in *order* only."""
    kept = list(world.allowed.now)
    for item in order[:count]:
        kept[item] = where[item]
    return kept
