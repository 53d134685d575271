# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""NUMA cells: a domain stays in the cell that holds its memory, unless that cell is far busier than another one."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Optional, Sequence

from ...model import Topology
from ...units import CpuSet
from .problem import NOWHERE, Problem
from .world import Classes, World

# Below this load per pCPU a cell has no contention that would be worth remote memory.
BUSY_CELL = 0.60

# What a change of cell must take off the busier one, per pCPU and unit of ACPI SLIT distance: 10 points at 20.
COST_PER_DISTANCE = 0.005
_USUAL_DISTANCE = 20

# Domains that change their cell in one pass at most, beyond which a host is left to the next pass.
_MOST_CHANGES = 64


class Cells:
    """The cells that the bins lie in, each with its number of usable pCPUs."""

    def __init__(self, topology: Topology, bins: Sequence[CpuSet]) -> None:
        cell_of = {pcpu.id: pcpu.cell for pcpu in topology.pcpus}
        self.of_bin = [cell_of[min(pcpus)] for pcpus in bins]
        self.bins: dict[int, list[int]] = defaultdict(list)
        self.pcpus: dict[int, int] = defaultdict(int)
        for bin_, cell in enumerate(self.of_bin):
            self.bins[cell].append(bin_)
            self.pcpus[cell] += len(bins[bin_])
        self._distances = {cell.id: cell.distances for cell in topology.cells}

    @property
    def several(self) -> bool:
        return len(self.bins) > 1

    def distance(self, one: int, other: int) -> int:
        return self._distances.get(one, {}).get(other, _USUAL_DISTANCE)


def home_cells(problem: Problem, cells: Cells, settled: frozenset[int]) -> list[Optional[int]]:
    """Return each item's cell; None: it may go to any. Owners in *settled* keep the cell that they have.

    Where all placed vCPUs of a domain are in one cell, that is its home; where they are in several,
    each stays in its own. A domain without a place gets the freest cell that it fits in as a whole.
    """
    return _Homes(problem, cells, settled).find()


class _Homes:
    def __init__(self, problem: Problem, cells: Cells, settled: frozenset[int]) -> None:
        self._problem, self._cells, self._settled = problem, cells, settled
        self._home: list[Optional[int]] = [None] * len(problem.load)
        self._level = {c: sum(problem.fixed[b] for b in bins) / cells.pcpus[c] for c, bins in cells.bins.items()}
        self._totals = problem.on_bins(problem.now)
        self._members: dict[int, list[int]] = defaultdict(list)
        for item, owner in enumerate(problem.owner):
            self._members[owner].append(item)
        self._open = [self._cells_of(bins) for bins in problem.classes]

    def find(self) -> list[Optional[int]]:
        whole: dict[int, int] = {}
        homeless = []
        for owner, items in self._members.items():
            here = {self._cells.of_bin[self._problem.now[i]] for i in items if self._problem.now[i] != NOWHERE}
            for i in items:
                if self._problem.now[i] != NOWHERE:
                    self._settle([i], self._cells.of_bin[self._problem.now[i]])
            if len(here) == 1:
                whole[owner] = next(iter(here))
            if any(self._home[i] is None for i in items):
                homeless.append(owner)
        for owner in sorted(homeless, key=lambda o: (-self._demand(self._members[o]), o)):
            cell = self._house(owner, whole.get(owner))
            if cell is not None and owner not in whole:
                whole[owner] = cell
        self._relieve(whole)
        return self._home

    def _cells_of(self, bins: Sequence[int]) -> frozenset[int]:
        return frozenset(self._cells.of_bin[b] for b in bins)

    def _demand(self, items: Sequence[int]) -> float:
        return sum(self._problem.load[i] for i in items)

    def _settle(self, items: Sequence[int], cell: int) -> None:
        self._level[cell] += self._demand(items) / self._cells.pcpus[cell]
        for item in items:
            self._home[item] = cell

    def _fits(self, items: Sequence[int], cell: int) -> bool:
        if len(items) > self._cells.pcpus[cell]:
            return False
        return all(cell in self._open[self._problem.reach[i]] for i in items)

    def _house(self, owner: int, home: Optional[int]) -> Optional[int]:
        """Give the items of *owner* that have no place a cell: with the others, else the freest for all of them."""
        items = [i for i in self._members[owner] if self._home[i] is None]
        options = [home] if home is not None and self._fits(self._members[owner], home) else list(self._cells.bins)
        fitting = [cell for cell in options if self._fits(items, cell)]
        if not fitting:
            return None
        demand = self._demand(items)
        cell = min(fitting, key=lambda c: (self._level[c] + demand / self._cells.pcpus[c], c))
        self._settle(items, cell)
        return cell

    def _relieve(self, whole: dict[int, int]) -> None:
        """Send whole domains from the busiest cell to the freest, while that takes off more than it costs."""
        for _turn in range(_MOST_CHANGES):
            hot = max(self._level, key=lambda c: (self._level[c], -c))
            if self._level[hot] < BUSY_CELL:
                return
            best = max(self._changes(hot, whole), default=None)
            if best is None:
                return
            *_costs, owner, cool = best
            items = self._members[-owner]
            for item in items:
                if self._problem.now[item] != NOWHERE:
                    self._totals[self._problem.now[item]] -= self._problem.load[item]
            self._level[hot] -= self._demand(items) / self._cells.pcpus[hot]
            self._settle(items, -cool)
            whole[-owner] = -cool

    def _changes(self, hot: int, whole: dict[int, int]) -> list[tuple[float, float, float, int, int]]:
        """Yield (relief beyond cost, load of the fullest bin, -load, -owner, -cell) of the changes that pay."""
        changes = []
        for owner, home in whole.items():
            items = self._members[owner]
            if home != hot or owner in self._settled or any(self._home[i] != hot for i in items):
                continue
            demand = self._demand(items)
            placed = [self._problem.now[i] for i in items if self._problem.now[i] != NOWHERE]
            fullest = max((self._totals[b] for b in placed), default=0.0)
            for cool in self._cells.bins:
                if cool == hot or demand <= 0 or not self._fits(items, cool):
                    continue
                after = max(
                    self._level[hot] - demand / self._cells.pcpus[hot],
                    self._level[cool] + demand / self._cells.pcpus[cool],
                )
                relief = self._level[hot] - after - COST_PER_DISTANCE * self._cells.distance(hot, cool)
                if relief > 0:
                    changes.append((round(relief, 3), fullest, -demand, -owner, -cool))
        return changes


def at_home(world: World, topology: Topology, settled: frozenset[int]) -> Problem:
    """Return the problem with each item kept in its home cell; owners in *settled* keep the cell that they have."""
    problem = world.problem
    cells = Cells(topology, world.bins)
    if not cells.several:
        return problem
    homes = home_cells(problem, cells, settled)
    classes = Classes(world.bins)
    narrowed: dict[tuple[int, Optional[int]], tuple[int, frozenset[int]]] = {}
    reach = []
    now = list(problem.now)
    for item, kind in enumerate(zip(problem.reach, homes)):
        if kind not in narrowed:
            bins = problem.classes[kind[0]]
            inside = tuple(b for b in bins if cells.of_bin[b] == kind[1]) or tuple(bins)
            narrowed[kind] = classes.of_bins(inside), frozenset(inside)
        number, home = narrowed[kind]
        if now[item] != NOWHERE and now[item] not in home:
            now[item] = NOWHERE
        reach.append(number)
    return replace(problem, reach=reach, classes=classes.bins, now=now)


def companions(world: World, topology: Topology, where: Sequence[int]) -> dict[int, list[int]]:
    """Return, by item, all that move of a domain which leaves its cell by *where*: part of it alone would split it."""
    cells = Cells(topology, world.bins)
    if not cells.several:
        return {}
    here: dict[int, set[int]] = defaultdict(set)
    moving: dict[int, list[int]] = defaultdict(list)
    leaves = set()
    for item, (owner, now, then) in enumerate(zip(world.problem.owner, world.allowed.now, where)):
        if now == NOWHERE:
            continue
        here[owner].add(cells.of_bin[now])
        if now != then:
            moving[owner].append(item)
            if cells.of_bin[now] != cells.of_bin[then]:
                leaves.add(owner)
    return {item: moving[owner] for owner in leaves if len(here[owner]) == 1 for item in moving[owner]}
