# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The placement problem in numbers: items (vCPUs) in bins (a pCPU, or a group of them), and what no plan can beat.

The *pressure* on a bin is its load per pCPU, plus kappa times that of each SMT sibling: two busy
threads of a core slow each other down. Without SMT it is the load per pCPU.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, replace
from typing import Optional, Sequence

# What a second busy thread adds to the work that a core gets done (numad: 20 %, vendors: 20-30 %).
SMT_GAIN = 0.25

# Loads below this difference are equal: far below any measurement, far above rounding.
EPSILON = 1e-9

NOWHERE = -1


def kappa(threads: int) -> float:
    """Return how much a busy sibling weighs: *threads* busy ones share 1 + SMT_GAIN per extra thread.

    For two threads this is (1 - g) / (1 + g).
    """
    return 0.0 if threads < 2 else (threads / (1 + SMT_GAIN * (threads - 1)) - 1) / (threads - 1)


@dataclass(frozen=True)
class Problem:
    """Items and bins, by index. Loads are in pCPUs.

    Per bin: ``capacity`` (its number of pCPUs; a weak one is less), ``fixed`` (load that no move changes), ``mates``
    (SMT siblings that are bins too), ``kappa``. Per item: ``load``, ``owner`` (its domain) and
    ``stays`` (it stays where it is). ``reach`` is its index in ``classes``, which list the bins that it may be given.
    ``now`` is its bin, one of those, or NOWHERE if it has none.
    """

    capacity: Sequence[float]
    fixed: Sequence[float]
    mates: Sequence[Sequence[int]]
    kappa: Sequence[float]
    load: Sequence[float]
    now: Sequence[int]
    owner: Sequence[int]
    reach: Sequence[int]
    classes: Sequence[Sequence[int]]
    stays: Sequence[bool]

    @property
    def smt(self) -> bool:
        return any(self.mates)

    @property
    def uneven(self) -> bool:
        """Return whether a vCPU gets more done alone on one bin than on another."""
        return len(set(self.capacity)) > 1

    def on_bins(self, where: Sequence[int], load: Optional[Sequence[float]] = None) -> list[float]:
        """Return the load of each bin, in pCPUs, if every item is *where*; *load* replaces the items' own."""
        totals = list(self.fixed)
        for bin_, weight in zip(where, self.load if load is None else load):
            if bin_ != NOWHERE:
                totals[bin_] += weight
        return totals

    def pressures(self, totals: Sequence[float]) -> list[float]:
        """Return the pressure on each bin that holds *totals*."""
        if not self.smt:
            return [total / size for total, size in zip(totals, self.capacity)]
        return [
            total / size + (k * sum([totals[mate] for mate in mates]) if mates else 0.0)
            for total, size, k, mates in zip(totals, self.capacity, self.kappa, self.mates)
        ]

    def work(self, totals: Sequence[float], variance: Optional[Sequence[float]] = None) -> float:
        """Return the work that bins with *totals* get done, in pCPUs: a pressure above 1 slows all of its load down.

        With the *variance* of each total it is the mean over time, if totals vary normally.
        """
        pressures = self.pressures(totals)
        if variance is None:
            return sum(t if p <= 1 else t / p for t, p in zip(totals, pressures))
        spread = [math.sqrt(max(0.0, v)) / size for v, size in zip(variance, self.capacity)]
        return sum(t * (1 - _excess(p, s) / p) for t, p, s in zip(totals, pressures, spread) if p > 0)

    def imbalance(self, totals: Sequence[float]) -> float:
        """Return the standard deviation of the pressure over all pCPUs.

        Scaled so that an even host shows its plain load.
        """
        pcpus = sum(self.capacity)
        if not pcpus:
            return 0.0
        shown = self.pressures(totals)
        if self.smt:
            shown = [p / (1 + k * len(mates)) for p, k, mates in zip(shown, self.kappa, self.mates)]
        mean = sum(map(operator.mul, shown, self.capacity)) / pcpus
        return math.sqrt(sum(size * (x - mean) ** 2 for x, size in zip(shown, self.capacity)) / pcpus)


def _excess(mean: float, spread: float) -> float:
    """Return the mean of what is above 1 of a normal variable: the loss function of inventory theory."""
    if spread <= EPSILON or abs(mean - 1) > 5 * spread:
        return max(0.0, mean - 1)
    z = (mean - 1) / spread
    return spread * math.exp(-z * z / 2) / math.sqrt(2 * math.pi) + (mean - 1) * (1 + math.erf(z / math.sqrt(2))) / 2


# ---------------------------------------------------------------- parts that have nothing to do with each other


def components(problem: Problem) -> list[tuple[list[int], list[int]]]:
    """Yield (bins, items) of each part of the problem that shares no bin with another one."""
    parent = list(range(len(problem.capacity)))

    def root(b: int) -> int:
        while parent[b] != b:
            parent[b] = parent[parent[b]]
            b = parent[b]
        return b

    def join(bins: Sequence[int]) -> None:
        for b in bins[1:]:
            parent[root(b)] = root(bins[0])

    for bins in problem.classes:
        join(bins)
    for b, mates in enumerate(problem.mates):
        join([b, *mates])
    parts: dict[int, tuple[list[int], list[int]]] = {}
    for b in range(len(problem.capacity)):
        parts.setdefault(root(b), ([], []))[0].append(b)
    for i, reach in enumerate(problem.reach):
        parts[root(problem.classes[reach][0])][1].append(i)
    return [parts[key] for key in sorted(parts)]


def part_of(problem: Problem, bins: Sequence[int], items: Sequence[int]) -> Problem:
    """Return the sub-problem of *bins* and *items*, indexed anew in their order."""
    if len(bins) == len(problem.capacity):
        return problem
    new_bin = {b: index for index, b in enumerate(bins)}
    used = sorted({problem.reach[i] for i in items})
    new_class = {c: index for index, c in enumerate(used)}
    return replace(
        problem,
        capacity=[problem.capacity[b] for b in bins],
        fixed=[problem.fixed[b] for b in bins],
        mates=[[new_bin[mate] for mate in problem.mates[b]] for b in bins],
        kappa=[problem.kappa[b] for b in bins],
        load=[problem.load[i] for i in items],
        now=[new_bin.get(problem.now[i], NOWHERE) for i in items],
        owner=[problem.owner[i] for i in items],
        reach=[new_class[problem.reach[i]] for i in items],
        classes=[[new_bin[b] for b in problem.classes[c]] for c in used],
        stays=[problem.stays[i] for i in items],
    )
