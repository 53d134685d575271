# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Planners: from where the vCPUs are to a target pressure, with few moves.

No single heuristic is best everywhere, so several are run and the plan that meets the target with
the fewest moves is kept. Small problems are then searched for the fewest moves there are.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, bisect_right, insort
from itertools import accumulate
from typing import Callable, Iterable, Iterator, Optional, Sequence

from .bounds import moves_bound, targets
from .idle import IDLE
from .problem import EPSILON, NOWHERE, Problem, components, part_of
from .search import SEARCH_ITEMS, fewest_moves

# How far above its lower bound the pressure on a pCPU may stay: 5 points.
SLACK = 0.05

# Beyond this number of items only the first two planners, the fastest, are run; and the second one only if the plan of
# the first has more than so many times the moves that any plan needs. Where all pCPUs are full anyhow the first has to
# do: the second one was seen to serve 0.02 % more there, for half as many moves again.
FEW_ITEMS = 600
_GOOD_ENOUGH = 1.05

# A move that serves less than this much more, in pCPUs, is not added to a plan; and so many are at most.
MUCH_WORK = 0.10
_MORE_MOVES = 16

_Where = list[int]


def rebalance(problem: Problem, slack: float = SLACK) -> _Where:
    """Return the bin of each item by the best plan that was found: on target, or close to it, with few moves."""
    where = list(problem.now)
    for bins, items in components(problem):
        if not items:
            continue
        part = part_of(problem, bins, items)
        for index, bin_ in zip(items, best_plan(part, targets(part, slack), slack)):
            where[index] = bins[bin_] if bin_ != NOWHERE else NOWHERE
    return where


def more_work(problem: Problem, where: Sequence[int]) -> _Where:
    """Return *where*, with single moves added that let much more work be served.

    Where one bin can't meet its target, that of the others is too high: they may stay full beside an idle one.
    Siblings of a core share their work, so with SMT nothing is added, but where some pCPUs are weaker than others.
    """
    state = Assignment(problem, [0.0] * len(problem.capacity), 0.0, where)
    for _round in range(0 if problem.smt and not problem.uneven else _MORE_MOVES):
        full = [b for b, pressure in enumerate(state.pressure) if pressure > 1 + EPSILON]
        if not full or min(state.pressure) > 1 - MUCH_WORK:
            break
        step = max(_single_moves(state, full), default=(0.0, 0, 0))
        if step[0] < MUCH_WORK:
            break
        state.put(-step[1], -step[2])
    return state.where


def _single_moves(state: Assignment, full: Iterable[int]) -> Iterator[tuple[float, int, int]]:
    """Yield (work that is served more, -item, -bin) of the moves from *full* bins to the emptiest one of each item."""
    problem = state.problem
    emptiest = [min((state.pressure[b], b) for b in bins) if bins else None for bins in problem.classes]
    for source in full:
        spare = (state.pressure[source] - 1) * problem.capacity[source]
        for item in state.movable(source):
            found, load = emptiest[problem.reach[item]], problem.load[item]
            if found is not None:
                free = (1 - found[0]) * problem.capacity[found[1]]
                yield min(load, spare) - max(0.0, load - free), -item, -found[1]


def best_plan(problem: Problem, aim: Sequence[float], slack: float = SLACK) -> _Where:
    """Return the plan of the portfolio that meets *aim*, or comes closest to it, with the fewest moves."""
    best = _best(problem, aim, slack)
    short = best.unmet()
    if short > EPSILON and len(problem.load) <= FEW_ITEMS:
        # No plan meets the target: what can be reached becomes the target, perhaps with fewer moves.
        best = min(best, _best(problem, [a + short for a in aim], slack), key=lambda s: _rank(s, aim, slack))
    return best.where


def _best(problem: Problem, aim: Sequence[float], slack: float) -> Assignment:
    states = [Assignment(problem, aim, slack)]
    if NOWHERE not in problem.now and states[0].unmet() <= EPSILON:
        return states[0]
    few = len(problem.load) <= FEW_ITEMS
    enough = moves_bound(problem, max(aim)) * (1.0 if few else _GOOD_ENOUGH)
    for planner in _PLANNERS if few else _PLANNERS[: 1 if min(aim) > 1 else 2]:
        state = Assignment(problem, aim, slack)
        planner(state)
        _take_back(state)
        states.append(state)
        if state.moved() <= enough and state.unmet() <= EPSILON:
            break
    best = min(states, key=lambda s: _rank(s, aim, slack))
    found = fewest_moves(problem, aim, slack, best.moved() if best.unmet() <= EPSILON else None)
    return best if found is None else Assignment(problem, aim, slack, found)


def _rank(state: Assignment, aim: Sequence[float], slack: float) -> tuple[bool, float, int, float]:
    judged = state if state.aim is aim else Assignment(state.problem, aim, slack, state.where)
    unmet = judged.unmet()
    return NOWHERE in judged.where, round(unmet, 6) if unmet > EPSILON else 0.0, judged.moved(), judged.energy()


# ---------------------------------------------------------------- an assignment under construction


class Assignment:
    """Where each item is, with the pressure on each bin kept up to date.

    A bin's limit is its aim. With an item that alone is more than that on any bin it may be given, it is what that
    comes to at best, plus the slack.
    """

    def __init__(
        self, problem: Problem, aim: Sequence[float], slack: float, where: Optional[Sequence[int]] = None
    ) -> None:
        self.problem, self.aim, self.slack = problem, aim, slack
        self.where = list(problem.now if where is None else where)
        self.on: list[list[int]] = [[] for _each in problem.capacity]
        for item, bin_ in enumerate(self.where):
            if bin_ != NOWHERE:
                self.on[bin_].append(item)
        self.pressure = problem.pressures(problem.on_bins(self.where))
        self._inside = [frozenset(bins) for bins in problem.classes]
        # By class, the least pressure on a bin without items; by bin, what its largest item is at best, once asked for.
        empty = problem.pressures(problem.fixed)
        self._lowest = [min((empty[b] for b in bins), default=0.0) for bins in problem.classes]
        self._largest: dict[int, float] = {}

    def put(self, item: int, bin_: int) -> None:
        """Take *item* from where it is and put it on *bin_* (NOWHERE: in hand)."""
        old = self.where[item]
        if old != NOWHERE:
            self.on[old].remove(item)
            self._add(old, -self.problem.load[item])
        if bin_ != NOWHERE:
            self.on[bin_].append(item)
            self._add(bin_, self.problem.load[item])
        self.where[item] = bin_
        self._largest.pop(old, None)
        self._largest.pop(bin_, None)

    def _add(self, bin_: int, load: float) -> None:
        self.pressure[bin_] += load / self.problem.capacity[bin_]
        for mate in self.problem.mates[bin_]:
            self.pressure[mate] += self.problem.kappa[bin_] * load

    def alone(self, item: int, bin_: int) -> float:
        """Return the pressure of *item* alone on a bin of this size that has as little else as any that it may have."""
        problem = self.problem
        return self._lowest[problem.reach[item]] + problem.load[item] / problem.capacity[bin_]

    def limit(self, bin_: int, item: int = NOWHERE) -> float:
        """Return how much pressure *bin_* may be under, with *item* beside those that it has."""
        largest = self._largest.get(bin_)
        if largest is None:
            load, reach, size = self.problem.load, self.problem.reach, self.problem.capacity[bin_]
            alone = [self._lowest[reach[i]] + load[i] / size for i in self.on[bin_]]
            largest = self._largest[bin_] = max(alone, default=0.0)
        if item != NOWHERE:
            largest = max(largest, self.alone(item, bin_))
        return max(self.aim[bin_], largest + self.slack)

    def excess(self, bin_: int) -> float:
        """Return how much too much pressure *bin_* is under; 0 for a bin without items, which no plan can relieve."""
        if self.pressure[bin_] <= self.aim[bin_] or not self.on[bin_]:
            return 0.0
        return max(0.0, self.pressure[bin_] - self.limit(bin_))

    def unmet(self) -> float:
        """Return the largest excess of all."""
        return max(map(self.excess, range(len(self.on))), default=0.0)

    def fits(self, item: int, bin_: int) -> bool:
        """Return whether neither *bin_* nor its mates go over their limit with *item*."""
        if self.overfills(item, bin_):
            return False
        for mate in self.problem.mates[bin_]:
            after = self.pressure[mate] + self.problem.kappa[bin_] * self.problem.load[item] - EPSILON
            if self.on[mate] and after > self.aim[mate] and after > self.limit(mate):
                return False
        return True

    def overfills(self, item: int, bin_: int) -> bool:
        load = self.problem.load[item]
        after = self.pressure[bin_] + load / self.problem.capacity[bin_] - EPSILON
        return after > self.aim[bin_] and after > self.limit(bin_, item)

    def may_be(self, item: int, bin_: int) -> bool:
        """Return whether *item* may be given *bin_*."""
        return bin_ in self._inside[self.problem.reach[item]]

    def crowds(self, item: int, bin_: int) -> bool:
        """Return whether *bin_* is a single pCPU that holds another vCPU of the same domain."""
        if self.problem.capacity[bin_] > 1:
            return False
        owner = self.problem.owner
        return any(owner[other] == owner[item] for other in self.on[bin_] if other != item)

    def gain(self, load: float, source: int, target: int) -> float:
        """Return what moving *load* does for the sum of load x pressure, over twice the load: positive is better."""
        problem = self.problem
        own = load * (1 / problem.capacity[source] + 1 / problem.capacity[target]) / 2
        if target in problem.mates[source]:
            own *= 1 - problem.kappa[source]
        return self.pressure[source] - self.pressure[target] - own

    def movable(self, bin_: int) -> list[int]:
        """Return the items on *bin_* that may leave it, largest first."""
        load, stays = self.problem.load, self.problem.stays
        return sorted((i for i in self.on[bin_] if not stays[i] and load[i] > 0), key=lambda i: (-load[i], i))

    def moved(self) -> int:
        """Return the number of moves; giving a bin to an item that had none is free."""
        return sum(1 for now, then in zip(self.problem.now, self.where) if now not in (then, NOWHERE))

    def energy(self) -> float:
        """Return the sum of load x pressure: the lower, the more even."""
        return sum(p * p * size for p, size in zip(self.pressure, self.problem.capacity))


# ---------------------------------------------------------------- evict what is too much, then place it


def _evict_and_place(state: Assignment, shrink_all: bool, tightest: bool) -> None:
    """Take the fewest items off each bin that has too much, and place them, largest first; then repair the rest."""
    in_hand = [i for i, bin_ in enumerate(state.where) if bin_ == NOWHERE]
    over = [b for b in range(len(state.on)) if state.excess(b) > EPSILON]
    for round_ in range(_ROUNDS):
        # First the fewest; what then found no place anywhere stays, and smaller ones that do find one go instead.
        most = math.inf if round_ == 0 else _largest_that_fits(state)
        for bin_ in sorted(over, key=lambda b: (-state.excess(b), b)):
            for item in _to_evict(state, bin_, most, shrink_all):
                state.put(item, NOWHERE)
                in_hand.append(item)
        shelves = _Shelves(state)
        for item in sorted(in_hand, key=lambda i: (-state.problem.load[i], i)):
            state.put(item, _place_for(state, shelves, item, tightest))
        in_hand = []
        over = [b for b in range(len(state.on)) if state.excess(b) > EPSILON]
        if not over:
            return
    _repair(state)


def _largest_that_fits(state: Assignment) -> float:
    """Return the largest load that fits into some bin under its aim."""
    sizes = state.problem.capacity
    return max((state.aim[b] - state.pressure[b]) * sizes[b] for b in range(len(sizes)))


def _to_evict(state: Assignment, bin_: int, most: float, shrink_all: bool) -> list[int]:
    """Return the fewest items, each at most *most*, that take off *bin_* what is too much; none larger than it must be.

    An item that would fill the bin alone stays, if it is enough to move the others.
    """
    load = state.problem.load
    need = state.excess(bin_) * state.problem.capacity[bin_]
    items = state.movable(bin_)
    if need <= EPSILON or not items:
        return []
    if state.alone(items[0], bin_) + state.slack >= state.limit(bin_) - EPSILON:
        if sum(load[i] for i in items[1:]) < need - EPSILON:
            return items[:1]
        items = items[1:]
    items = [i for i in items if load[i] <= most]
    sums = list(accumulate(load[i] for i in items))
    count = bisect_left(sums, need - EPSILON) + 1
    if count > len(items):
        return items
    chosen, spare = items[:count], items[count:]
    surplus = sums[count - 1] - need
    for position in range(0 if shrink_all else count - 1, count):
        smaller = _smallest_from(spare, load, load[chosen[position]] - surplus - EPSILON)
        if smaller is not None and load[spare[smaller]] < load[chosen[position]]:
            surplus -= load[chosen[position]] - load[spare[smaller]]
            chosen[position], spare[smaller] = spare[smaller], chosen[position]
            spare.sort(key=lambda i: (-load[i], i))
    return chosen


def _smallest_from(items: Sequence[int], load: Sequence[float], least: float) -> Optional[int]:
    """Return the position, in *items* (largest first), of the smallest one that is at least *least*."""
    count = sum(1 for i in items if load[i] >= least)
    return count - 1 if count else None


class _Shelves:
    """The bins of each class in the order of their pressure. Pressure only rises here, so stale entries are too low."""

    def __init__(self, state: Assignment) -> None:
        self._state = state
        self._of: dict[int, list[tuple[float, int]]] = {}

    def of(self, reach: int) -> list[tuple[float, int]]:
        if reach not in self._of:
            self._of[reach] = sorted((self._state.pressure[b], b) for b in self._state.problem.classes[reach])
        return self._of[reach]

    def fresh(self, shelf: list[tuple[float, int]], index: int) -> Optional[int]:
        """Return the bin at *index*, or None if its entry was stale and has gone to its right place."""
        pressure, bin_ = shelf[index]
        if self._state.pressure[bin_] == pressure:
            return bin_
        del shelf[index]
        insort(shelf, (self._state.pressure[bin_], bin_))
        return None


# How many bins are tried that fit by pressure, before one with a vCPU of the same domain is taken after all.
_TRIES = 64

# How often what found no place is replaced by smaller items before single steps have to do.
_ROUNDS = 3


def _place_for(state: Assignment, shelves: _Shelves, item: int, tightest: bool) -> int:
    """Return the bin for an item in hand: where it fits, apart from its own domain; else the emptiest, or back home."""
    shelf = shelves.of(state.problem.reach[item])
    candidates = _by_fit(state, shelves, shelf, item) if tightest else _by_pressure(shelves, shelf)
    fallback = NOWHERE
    for tried, bin_ in enumerate(candidates):
        if state.fits(item, bin_):
            if not state.crowds(item, bin_):
                return bin_
            fallback = bin_ if fallback == NOWHERE else fallback
        elif not tightest and state.overfills(item, bin_):
            break
        if tried >= _TRIES:
            break
    if fallback != NOWHERE:
        return fallback
    return _emptiest_or_home(state, shelves, shelf, item)


def _by_pressure(shelves: _Shelves, shelf: list[tuple[float, int]]) -> Iterable[int]:
    index = 0
    while index < len(shelf):
        bin_ = shelves.fresh(shelf, index)
        if bin_ is not None:
            yield bin_
            index += 1


def _by_fit(state: Assignment, shelves: _Shelves, shelf: list[tuple[float, int]], item: int) -> Iterable[int]:
    """Yield the fullest bins first, from where the item fits by its aim."""
    if not shelf:
        return
    first = shelf[0][1]
    highest = state.aim[first] - state.problem.load[item] / state.problem.capacity[first]
    index = bisect_right(shelf, (highest + EPSILON, len(state.on))) - 1
    if index < 0:
        yield first
    while index >= 0:
        bin_ = shelves.fresh(shelf, index)
        if bin_ is not None:
            yield bin_
        index -= 1


def _emptiest_or_home(state: Assignment, shelves: _Shelves, shelf: list[tuple[float, int]], item: int) -> int:
    emptiest = next(iter(_by_pressure(shelves, shelf)))
    home = state.problem.now[item]
    if home == NOWHERE:
        return emptiest
    # In hand, an item is on neither: it moves if that leaves the more loaded of the two with less.
    better = state.pressure[emptiest] + IDLE < state.pressure[home]
    return emptiest if better else home


# ---------------------------------------------------------------- step by step


def _repair(state: Assignment) -> None:
    """Make, while a bin has too much, the move or swap that evens out most (steepest descent)."""
    over = {b for b in range(len(state.on)) if state.excess(b) > EPSILON}
    for _round in range(2 * len(state.on) + 50):
        if not over:
            return
        bin_ = max(over, key=lambda b: (state.excess(b), -b))
        step = _best_step(state, bin_) if state.excess(bin_) > EPSILON else None
        if step is None:
            over.discard(bin_)
            continue
        for item, target in step:
            state.put(item, target)
        over.add(step[0][1])


def _best_step(state: Assignment, bin_: int) -> Optional[list[tuple[int, int]]]:
    """Return the move off *bin_*, or the swap, that gains most; a swap, two pins, must gain twice as much."""
    load = state.problem.load
    best_gain, best = EPSILON, None
    receivers: dict[int, list[tuple[int, list[int]]]] = {}
    for item in state.movable(bin_):
        reach = state.problem.reach[item]
        if reach not in receivers:
            receivers[reach] = [(target, state.movable(target)) for target in _emptiest(state, reach, bin_)]
        for target, others in receivers[reach]:
            if state.crowds(item, target):
                continue
            gain = load[item] * state.gain(load[item], bin_, target)
            if gain > best_gain:
                best_gain, best = gain, [(item, target)]
            for other in others:
                weight = load[item] - load[other]
                if weight <= EPSILON or not state.may_be(other, bin_):
                    continue
                gain = weight * state.gain(weight, bin_, target) / 2
                if gain > best_gain:
                    best_gain, best = gain, [(item, target), (other, bin_)]
    return best


def _emptiest(state: Assignment, reach: int, but: int, count: int = 0) -> list[int]:
    count = count or (len(state.on) if len(state.where) <= SEARCH_ITEMS else 4)
    ranked = heapq.nsmallest(count + 1, [(state.pressure[b], b) for b in state.problem.classes[reach]])
    return [b for _rank, b in ranked if b != but][:count]


def _descend(state: Assignment) -> None:
    """Descend most steeply from where everything is."""
    _place_unplaced(state)
    _repair(state)


def _busiest_to_freest(state: Assignment) -> None:
    """Move, again and again, the vCPU nearest to half the gap from the busiest bin to the freest."""
    _place_unplaced(state)
    load = state.problem.load
    for _round in range(2 * len(state.on) + 50):
        excess, bin_ = max(((state.excess(b), -b) for b in range(len(state.on))), default=(0.0, 0))
        if excess <= EPSILON:
            return
        source = -bin_
        options = []
        for item in state.movable(source):
            for target in _emptiest(state, state.problem.reach[item], source, 1):
                half = (state.pressure[source] - state.pressure[target]) / 2
                if state.gain(load[item], source, target) > EPSILON:
                    options.append((abs(load[item] - half), item, target))
        if not options:
            return
        _cost, item, target = min(options)
        state.put(item, target)


def _place_unplaced(state: Assignment) -> None:
    shelves = _Shelves(state)
    unplaced = [i for i, bin_ in enumerate(state.where) if bin_ == NOWHERE]
    for item in sorted(unplaced, key=lambda i: (-state.problem.load[i], i)):
        state.put(item, _place_for(state, shelves, item, tightest=False))


def _take_back(state: Assignment) -> None:
    """Leave where it was what fits there after all."""
    problem = state.problem
    moved = [i for i, bin_ in enumerate(state.where) if problem.now[i] not in (bin_, NOWHERE)]
    for item in sorted(moved, key=lambda i: (problem.load[i], i)):
        if state.fits(item, problem.now[item]):
            state.put(item, problem.now[item])


_PLANNERS: list[Callable[[Assignment], None]] = [
    lambda state: _evict_and_place(state, shrink_all=False, tightest=False),
    lambda state: _evict_and_place(state, shrink_all=False, tightest=True),
    lambda state: _evict_and_place(state, shrink_all=True, tightest=False),
    lambda state: _evict_and_place(state, shrink_all=True, tightest=True),
    _descend,
    _busiest_to_freest,
]
