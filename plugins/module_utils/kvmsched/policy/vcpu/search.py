# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Search in small problems: fewer moves than the planners found, or a target that they missed.

First many cheap trials, which pack well; then a search that is exact if it ends in time.
"""

from __future__ import annotations

from bisect import insort
from typing import Iterator, Optional, Sequence

from .idle import IDLE
from .problem import EPSILON, NOWHERE, Problem

# Only where a search can end soon, and never for longer than this.
SEARCH_ITEMS = 80
_TRIALS = 200
_SEARCH_TRIES = 6000

_Where = list[int]


def fewest_moves(problem: Problem, aim: Sequence[float], slack: float, found: Optional[int]) -> Optional[_Where]:
    """Return an assignment that meets *aim* with fewer than *found* moves (None: no plan met it), or None.

    *slack* is added to what one large item puts on a bin. Problems with SMT, or with items that have
    no place yet, are left to the planners.
    """
    if len(problem.load) > SEARCH_ITEMS or problem.smt or NOWHERE in problem.now:
        return None
    best = None
    trials = _Trials(problem, aim)
    if trials.suitable:
        best = trials.fewest(found)
        found = found if best is None else _moved(problem, best)
    return _Search(problem, aim, slack).fewest(found) or best


def _moved(problem: Problem, where: Sequence[int]) -> int:
    return sum(1 for now, then in zip(problem.now, where) if now != then)


# ---------------------------------------------------------------- trials


class _Trials:
    """Take what is too much off each bin, a different choice each time, and pack it as tightly as it goes.

    What fits nowhere takes the place of the fewest smaller items that make room for it. The choices
    are drawn from a fixed sequence, so the same problem has the same trials.
    """

    def __init__(self, problem: Problem, aim: Sequence[float]) -> None:
        self._problem = problem
        self._full = [a * size + EPSILON for a, size in zip(aim, problem.capacity)]
        self._start = problem.on_bins(problem.now)
        self._sequence = _sequence()
        reach = problem.reach
        lowest = [min(problem.fixed[b] / problem.capacity[b] for b in bins) for bins in problem.classes]
        least = min(aim, default=0.0)
        size = min(problem.capacity, default=1)
        # An item that is over the aim wherever it is alone needs the exact search's exception for it.
        self.suitable = all(lowest[r] + load / size <= least + EPSILON for load, r in zip(problem.load, reach))

    def fewest(self, found: Optional[int]) -> Optional[_Where]:
        best = None
        for trial in range(_TRIALS):
            # Every other trial makes more room than is needed: sometimes only that lets the rest be packed.
            tighter = 0.0 if trial % 2 == 0 and found is not None else 0.15 * next(self._sequence)
            where = self._trial(1.0 - tighter, found)
            if where is not None and (found is None or _moved(self._problem, where) < found):
                best, found = where, _moved(self._problem, where)
        return best

    def _trial(self, part: float, found: Optional[int]) -> Optional[_Where]:
        problem = self._problem
        self._where, self._total = list(problem.now), list(self._start)
        in_hand = self._evicted(part)
        self._handled = set(in_hand)
        # A plan two moves above the best may still lose them when it is taken back; more are not worth the time.
        most = len(problem.load) if found is None else found + 1
        while in_hand:
            if len(self._handled) > most:
                return None
            in_hand.sort(key=lambda i: (problem.load[i], -i))
            item = in_hand.pop()
            bin_ = self._tightest(item)
            if bin_ == NOWHERE:
                ejected, bin_ = self._fewest_to_eject(item)
                if bin_ == NOWHERE:
                    return None
                for other in ejected:
                    self._take(other)
                in_hand += ejected
                self._handled.update(ejected)
            self._where[item] = bin_
            self._total[bin_] += problem.load[item]
        self._take_back()
        return self._where

    def _take(self, item: int) -> None:
        self._total[self._where[item]] -= self._problem.load[item]
        self._where[item] = NOWHERE

    def _evicted(self, part: float) -> list[int]:
        """Return what leaves the bins with more than *part* of what they may have: large items rather."""
        load, stays = self._problem.load, self._problem.stays
        over = {b for b, total in enumerate(self._total) if total > part * self._full[b]}
        order = sorted(
            (-load[i] * (0.25 + next(self._sequence)), i)
            for i, b in enumerate(self._where)
            if b in over and not stays[i]
        )
        out = []
        for _rank, item in order:
            bin_ = self._where[item]
            if self._total[bin_] > part * self._full[bin_]:
                self._take(item)
                out.append(item)
        for item in sorted(out, key=lambda i: (load[i], i)):
            home = self._problem.now[item]
            if self._total[home] + load[item] <= part * self._full[home]:
                self._where[item] = home
                self._total[home] += load[item]
        return [item for item in out if self._where[item] == NOWHERE]

    def _tightest(self, item: int) -> int:
        """Return the fullest bin that has room for *item*, or NOWHERE."""
        load, best, where = self._problem.load[item], -1.0, NOWHERE
        for bin_ in self._problem.classes[self._problem.reach[item]]:
            after = self._total[bin_] + load
            if after <= self._full[bin_] and after > best and not self._crowds(item, bin_):
                best, where = after, bin_
        return where

    def _crowds(self, item: int, bin_: int) -> bool:
        owner = self._problem.owner
        if self._problem.capacity[bin_] > 1:
            return False
        return any(b == bin_ and owner[i] == owner[item] and i != item for i, b in enumerate(self._where))

    def _fewest_to_eject(self, item: int) -> tuple[list[int], int]:
        """Return the fewest items, all smaller than *item*, that make room for it, and their bin."""
        problem, load = self._problem, self._problem.load
        on: dict[int, list[tuple[float, int]]] = {b: [] for b in problem.classes[problem.reach[item]]}
        for other, bin_ in enumerate(self._where):
            if bin_ in on and other not in self._handled and load[other] < load[item] and not problem.stays[other]:
                on[bin_].append((-load[other], other))
        best: tuple[int, float, int, list[int]] = (len(load) + 1, 0.0, NOWHERE, [])
        for bin_, others in on.items():
            need = self._total[bin_] + load[item] - self._full[bin_]
            out, gone = [], 0.0
            for weight, other in sorted(others):
                if gone >= need:
                    break
                out.append(other)
                gone -= weight
            if gone >= need and not self._crowds(item, bin_):
                best = min(best, (len(out), gone, bin_, out))
        return best[3], best[2]

    def _take_back(self) -> None:
        problem = self._problem
        moved = [i for i, bin_ in enumerate(self._where) if bin_ != problem.now[i]]
        for item in sorted(moved, key=lambda i: (problem.load[i], i)):
            home, load = problem.now[item], problem.load[item]
            if home in problem.classes[problem.reach[item]] and self._total[home] + load <= self._full[home]:
                self._total[self._where[item]] -= load
                self._total[home] += load
                self._where[item] = home


def _sequence() -> Iterator[float]:
    """Yield numbers from 0 to 1, always the same: Park and Miller (1988), the minimal standard generator."""
    value = 1
    while True:
        value = value * 48271 % 0x7FFFFFFF
        yield value / 0x7FFFFFFF


# ---------------------------------------------------------------- the fewest moves there are


class _Search:
    """Iterative deepening on the number of moves, from its lower bound up (IDA*, Korf 1985).

    Some item must leave an overfull bin, so only the moves off one such bin are tried at each step.
    A branch is cut where the lower bound on the moves still needed is more than is left. Bins of
    equal load are taken for equal, and no item moves twice. For problems without SMT.
    """

    def __init__(self, problem: Problem, aim: Sequence[float], slack: float) -> None:
        self._problem = problem
        self._where = list(problem.now)
        self._touched = list(problem.stays)
        self._tries = _SEARCH_TRIES
        sizes = problem.capacity
        self._total = problem.on_bins(problem.now)
        self._aim = [a * size + EPSILON for a, size in zip(aim, sizes)]
        lowest = [min(problem.fixed[b] / sizes[b] for b in bins) + slack for bins in problem.classes]
        self._lowest = [lowest[reach] for reach in problem.reach]
        # Per bin its items, largest first.
        self._on: list[list[tuple[float, int]]] = [[] for _each in sizes]
        for item, bin_ in enumerate(problem.now):
            if bin_ != NOWHERE:
                insort(self._on[bin_], (-problem.load[item], item))

    def fewest(self, found: Optional[int]) -> Optional[_Where]:
        """Return an assignment on target with fewer moves than *found*, or None. *found* None: none was found yet."""
        if NOWHERE in self._where:
            return None
        need = [self._fewest_out(b) for b in range(len(self._on))]
        least = sum(need)
        for depth in range(least, least + 9 if found is None else found):
            if self._descend(need, sum(need), depth, NOWHERE, 0):
                return self._where
            if self._tries <= 0:
                break
        return None

    def _fewest_out(self, bin_: int) -> int:
        """Return a lower bound on the moves off *bin_*."""
        excess = self._total[bin_] - self._aim[bin_]
        items = self._on[bin_]
        if excess <= 0 or not items or self._total[bin_] <= self._alone(bin_, *items[0]):
            return 0
        enough = awake = 0
        for load, _item in items:
            if excess > 0:
                excess += load
                enough += 1
            awake += -load > IDLE
        return max(1, min(enough, awake - 1))

    def _descend(self, need: list[int], needed: int, left: int, last_bin: int, last_rank: int) -> bool:
        """Return whether at most *left* more moves can bring *need*, which sums to *needed*, to nothing."""
        if not needed:
            return True
        source = max((b for b, count in enumerate(need) if count), key=lambda b: self._total[b] - self._aim[b])
        # What leaves a bin leaves it in the order of size: each set is tried once.
        first = last_rank if source == last_bin else 0
        items = list(self._on[source])
        for rank in range(first, len(items)):
            weight, item = items[rank]
            if self._touched[item] or (rank > first and items[rank - 1][0] == weight):
                continue
            for target in self._receivers(item, -weight, source, roomy=needed == left):
                if self._try(need, needed, left, item, source, target, rank):
                    return True
                if self._tries <= 0:
                    return False
        return False

    def _receivers(self, item: int, load: float, source: int, roomy: bool) -> list[int]:
        """Yield bins for *item*, the fullest first; *roomy*: only where it fits, as there is no move to spare."""
        total, owner = self._total, self._problem.owner
        seen: dict[tuple[float, float], int] = {}
        for target in self._problem.classes[self._problem.reach[item]]:
            after = total[target] + load
            if target == source or (roomy and after > self._aim[target] and after > self._limit(target, load, item)):
                continue
            if not any(owner[other] == owner[item] for _load, other in self._on[target]):
                seen.setdefault((total[target], self._aim[target]), target)
        return [seen[key] for key in sorted(seen, reverse=True)]

    def _alone(self, bin_: int, weight: float, item: int) -> float:
        """Return what *item* (of load -*weight*) alone may bring a bin of this size to."""
        return self._lowest[item] * self._problem.capacity[bin_] - weight + EPSILON

    def _limit(self, bin_: int, load: float, item: int) -> float:
        largest = self._alone(bin_, *self._on[bin_][0]) if self._on[bin_] else 0.0
        return max(largest, self._alone(bin_, -load, item))

    def _try(self, need: list[int], needed: int, left: int, item: int, source: int, target: int, rank: int) -> bool:
        self._tries -= 1
        before = need[source], need[target]
        self._put(item, source, target)
        need[source], need[target] = self._fewest_out(source), self._fewest_out(target)
        after = needed - sum(before) + need[source] + need[target]
        if after < left and self._descend(need, after, left - 1, source, rank):
            return True
        self._put(item, target, source)
        need[source], need[target] = before
        return False

    def _put(self, item: int, old: int, new: int) -> None:
        load = self._problem.load[item]
        self._on[old].remove((-load, item))
        insort(self._on[new], (-load, item))
        self._total[old] -= load
        self._total[new] += load
        self._where[item] = new
        self._touched[item] = new != self._problem.now[item]
