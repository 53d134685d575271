# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From what was observed to the placement problem: pCPUs become bins, vCPUs with a known load become items."""

from __future__ import annotations

import functools
import heapq
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Mapping, NamedTuple, Optional, Sequence

from ..config import VcpuPolicy
from ..model import Pcpu, Snapshot, VcpuFigures
from ..units import CpuSet
from .vcpu_cells import Cells, home_cells
from .vcpu_history import VcpuHistory, key_of
from .vcpu_load import Demand, Loads, VcpuKey
from .vcpu_placement import IDLE, NOWHERE, Problem, kappa, load_bound
from .vcpu_turns import Seat, Turns, pin_records

# A vCPU that was moved stays for this many passes, whatever the cool-down: the guard against ping-pong.
REST_PASSES = 3

# A vCPU that waits on a saturated pCPU moves only for at least this much more of a pCPU than it gets where it is.
BETTER_SHARE = 0.05

# How far an estimate may be off, as a part of the demand that was waited for and not seen running.
UNSURE_PART = 0.5


@dataclass(frozen=True)
class World:
    """The problem and what its indices stand for.

    Per bin: ``bins`` (its pCPUs), ``rivals`` (what the vCPUs want that are no items) and ``foreign``.
    Per item: ``seats``, ``demands`` and ``doubt`` (how far its load may be off). ``allowed`` is the
    problem without the restrictions that are ours alone (cells, cool-down): the bounds are taken from it.
    """

    bins: Sequence[CpuSet]
    problem: Problem
    allowed: Problem
    seats: Sequence[Seat]
    demands: Sequence[Demand]
    doubt: Sequence[float]
    rivals: Sequence[Sequence[float]]
    foreign: Sequence[float]

    def totals(self, where: Sequence[int], load: Optional[Sequence[float]] = None) -> list[float]:
        """The load of each bin, in pCPUs; what has no bin lies evenly over where it can run."""
        totals = self.problem.on_bins(where, load)
        if NOWHERE not in where:
            return totals
        bin_of = {pcpu: b for b, pcpus in enumerate(self.bins) for pcpu in pcpus}
        floating: dict[CpuSet, float] = defaultdict(float)
        for item, bin_ in enumerate(where):
            if bin_ == NOWHERE:
                floating[self.seats[item].now] += self.problem.load[item] if load is None else load[item]
        for place, weight in floating.items():
            for pcpu in place:
                if pcpu in bin_of:
                    totals[bin_of[pcpu]] += weight / len(place)
        return totals

    @functools.cached_property
    def newcomer_shares(self) -> list[float]:
        """The share of a pCPU that one more busy vCPU would get on each bin, by the kernel's fair scheduling."""
        wanted = wanted_on(self, self.problem.now)
        return [fair_share(self, b, [*wants, 1.0]) for b, wants in enumerate(wanted)]

    @functools.cached_property
    def bound(self) -> float:
        """A load per pCPU that the fullest bin has wherever the items are put."""
        return load_bound(self.allowed)

    def figures(self, where: Sequence[int]) -> VcpuFigures:
        totals = self.totals(where)
        sizes = self.problem.capacity
        pcpus = sum(sizes)
        return VcpuFigures(
            pcpus=pcpus,
            average_pct=_pct(sum(totals) / pcpus if pcpus else 0.0),
            max_pct=_pct(max((total / size for total, size in zip(totals, sizes)), default=0.0)),
            imbalance_pct=_pct(self.problem.imbalance(totals)),
            bound_pct=_pct(self.bound),
        )

    def at(self, where: Sequence[int], held: Sequence[bool]) -> Problem:
        """The problem with the items *where* they are said to be; the *held* ones stay, out of their home cell too."""
        problem = self.problem
        inside = [frozenset(bins) for bins in problem.classes]
        classes, reach = list(problem.classes), list(problem.reach)
        for item, bin_ in enumerate(where):
            if bin_ != NOWHERE and bin_ not in inside[reach[item]]:
                classes.append((bin_,))
                reach[item] = len(classes) - 1
        return replace(problem, now=where, held=held, classes=classes, reach=reach)

    def with_loads(self, load: Sequence[float]) -> World:
        """The same world with other loads of the items."""
        return replace(self, problem=replace(self.problem, load=load), allowed=replace(self.allowed, load=load))


def _pct(fraction: float) -> float:
    return round(100 * fraction, 2)


# ---------------------------------------------------------------- bins


def bins_of(pcpus: Sequence[Pcpu], usable: CpuSet, isolated: CpuSet, granularity: str) -> list[CpuSet]:
    """The usable pCPUs in groups of *granularity*, by their least id.

    An isolated pCPU is a group of its own: a set of them would leave all vCPUs on its first one.
    """
    groups: dict[object, set[int]] = defaultdict(set)
    for pcpu in pcpus:
        if pcpu.id in usable:
            alone = granularity == "pcpu" or pcpu.id in isolated
            groups[("pcpu", pcpu.id) if alone else _group(pcpu, granularity)].add(pcpu.id)
    return sorted((frozenset(group) for group in groups.values()), key=min)


def _group(pcpu: Pcpu, granularity: str) -> tuple[object, ...]:
    if granularity == "core":
        return ("core", min(pcpu.siblings)) if pcpu.siblings else ("core", pcpu.socket, pcpu.die, pcpu.core)
    if granularity == "llc":
        return ("llc", min(pcpu.llc)) if pcpu.llc else ("die", pcpu.cell, pcpu.socket, pcpu.die)
    return ("cell", pcpu.cell)


# ---------------------------------------------------------------- the problem


def build(
    snapshot: Snapshot,
    policy: VcpuPolicy,
    history: VcpuHistory,
    turns: Turns,
    loads: Loads,
    estimates: Mapping[str, float],
    foreign: Mapping[int, float],
) -> World:
    """The problem of one pass. *estimates* are the loads to plan with by vCPU, *foreign* what counts by pCPU."""
    topology = snapshot.host.topology
    bins = bins_of(topology.pcpus, turns.usable, topology.isolated, policy.granularity)
    bin_of = {pcpu: b for b, pcpus in enumerate(bins) for pcpu in pcpus}
    picked = _Picked(loads, bin_of)
    for seat in turns.seats:
        picked.take(seat, estimates)
    rest = _Rest(loads, bins, bin_of, picked.keys, foreign)
    mates, weights = _smt(topology.pcpus, bins, bin_of, policy.granularity)
    classes = _Classes(bins)
    allowed = Problem(
        capacity=[len(pcpus) for pcpus in bins],
        fixed=rest.fixed,
        mates=mates,
        kappa=weights,
        load=picked.load,
        now=picked.now,
        owner=_owners(picked.seats),
        reach=[classes.of(seat.allowed) for seat in picked.seats],
        classes=classes.bins,
        held=[False] * len(picked.load),
    )
    world = World(
        bins=bins,
        problem=allowed,
        allowed=allowed,
        seats=picked.seats,
        demands=picked.demands,
        doubt=[loads.resolution + UNSURE_PART * demand.unsure for demand in picked.demands],
        rivals=rest.rivals,
        foreign=rest.foreign,
    )
    last = [_last_move(seat, snapshot, history) for seat in world.seats]
    world = replace(world, problem=_restricted(world, snapshot, turns, last))
    return replace(world, problem=replace(world.problem, held=_held(world, policy, last)))


class _Picked:
    """The vCPUs that become items: those with a known load, but for idle ones that float."""

    def __init__(self, loads: Loads, bin_of: Mapping[int, int]) -> None:
        self._loads, self._bin_of = loads, bin_of
        self._known: dict[CpuSet, int] = {}
        self.seats: list[Seat] = []
        self.demands: list[Demand] = []
        self.load: list[float] = []
        self.now: list[int] = []
        self.keys: set[VcpuKey] = set()

    def take(self, seat: Seat, estimates: Mapping[str, float]) -> None:
        key = (seat.domain.uuid, seat.vcpu.id)
        demand = self._loads.demand.get(key)
        if demand is None:
            return
        bin_ = self._bin(seat)
        load = estimates[key_of(seat.domain, seat.vcpu)]
        if bin_ == NOWHERE and load <= IDLE + self._loads.resolution and not seat.now.isdisjoint(seat.allowed):
            return
        self.seats.append(seat)
        self.demands.append(demand)
        self.load.append(load)
        self.now.append(bin_)
        self.keys.add(key)

    def _bin(self, seat: Seat) -> int:
        """The one bin that holds all of where the vCPU can run, or NOWHERE."""
        if seat.now not in self._known:
            bins = {self._bin_of.get(pcpu, NOWHERE) for pcpu in seat.now}
            self._known[seat.now] = bins.pop() if len(bins) == 1 else NOWHERE
        bin_ = self._known[seat.now]
        return bin_ if bin_ != NOWHERE and seat.now <= seat.allowed else NOWHERE


class _Rest:
    """What the items find there: foreign load, and other vCPUs, spread evenly over where they can run."""

    def __init__(
        self,
        loads: Loads,
        bins: Sequence[CpuSet],
        bin_of: Mapping[int, int],
        items: set[VcpuKey],
        foreign: Mapping[int, float],
    ) -> None:
        self.foreign = [sum(foreign.get(pcpu, 0.0) for pcpu in pcpus) for pcpus in bins]
        self.fixed = list(self.foreign)
        self.rivals: list[list[float]] = [[] for _each in bins]
        spread: dict[CpuSet, float] = defaultdict(float)
        for key, demand in loads.demand.items():
            if key in items:
                continue
            spread[demand.place] += demand.low
            if len(demand.place) == 1:
                (pcpu,) = demand.place
                if pcpu in bin_of:
                    self.rivals[bin_of[pcpu]].append(demand.high)
        for place, load in spread.items():
            for pcpu in place:
                if pcpu in bin_of:
                    self.fixed[bin_of[pcpu]] += load / len(place)


class _Classes:
    """The different sets of bins that items may be given, each listed once."""

    def __init__(self, bins: Sequence[CpuSet]) -> None:
        self._bins = bins
        self._by_mask: dict[CpuSet, int] = {}
        self._by_bins: dict[tuple[int, ...], int] = {}
        self.bins: list[tuple[int, ...]] = []

    def of(self, mask: CpuSet) -> int:
        if mask not in self._by_mask:
            found = tuple(b for b, pcpus in enumerate(self._bins) if not pcpus.isdisjoint(mask))
            self._by_mask[mask] = self.of_bins(found)
        return self._by_mask[mask]

    def of_bins(self, bins: tuple[int, ...]) -> int:
        if bins not in self._by_bins:
            self._by_bins[bins] = len(self.bins)
            self.bins.append(bins)
        return self._by_bins[bins]


def _owners(seats: Sequence[Seat]) -> list[int]:
    numbers: dict[str, int] = {}
    return [numbers.setdefault(seat.domain.uuid, len(numbers)) for seat in seats]


def _smt(
    pcpus: Sequence[Pcpu], bins: Sequence[CpuSet], bin_of: Mapping[int, int], granularity: str
) -> tuple[list[tuple[int, ...]], list[float]]:
    """The sibling bins of each bin, and how much their load weighs; groups hold whole cores and have none."""
    mates: list[tuple[int, ...]] = [()] * len(bins)
    weights = [0.0] * len(bins)
    for pcpu in pcpus if granularity == "pcpu" else ():
        if pcpu.id in bin_of and len(pcpu.siblings) > 1:
            b = bin_of[pcpu.id]
            mates[b] = tuple(sorted(bin_of[s] for s in pcpu.siblings if s != pcpu.id and s in bin_of))
            weights[b] = kappa(len(pcpu.siblings))
    return mates, weights


# ---------------------------------------------------------------- what we don't do, though it would be allowed


def _restricted(world: World, snapshot: Snapshot, turns: Turns, last: Sequence[Optional[_LastMove]]) -> Problem:
    """The problem with each item kept in its home cell."""
    problem = world.problem
    cells = Cells(snapshot.host.topology, world.bins)
    if not cells.several:
        return problem
    homes = home_cells(problem, cells, _rooted(world, turns, last))
    classes = _Classes(world.bins)
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


class _LastMove(NamedTuple):
    """How long ago a vCPU was moved by us, and how many passes, where that is known."""

    since_s: float
    passes: Optional[int] = None


def _last_move(seat: Seat, snapshot: Snapshot, history: VcpuHistory) -> Optional[_LastMove]:
    """The last move that came about and that nobody undid: from the history, else from the record on the domain."""
    past = history.moves.get(key_of(seat.domain, seat.vcpu)) if history.moves else None
    if past is not None and past.after == seat.vcpu.pin:
        return _LastMove(snapshot.monotonic_s - past.when_s, history.number - past.number)
    if seat.domain.record is not None:
        for record in pin_records(seat.domain, snapshot):
            if record.thread == "vcpu" and record.id == seat.vcpu.id and record.intended == seat.vcpu.pin:
                return _LastMove(snapshot.wall_s - record.when_s)
    return None


# A domain does not change its cell again for this long (numad keeps 300 s): its memory has to follow.
CELL_COOLDOWN_S = 300.0


def _rooted(world: World, turns: Turns, last: Sequence[Optional[_LastMove]]) -> frozenset[int]:
    """The owners that keep their cell: moved within its cool-down, or with a pinned vCPU that can't come along."""
    rooted = set()
    owners = {}
    items = set()
    for owner, seat, move in zip(world.problem.owner, world.seats, last):
        owners[seat.domain.uuid] = owner
        items.add((seat.domain.uuid, seat.vcpu.id))
        if move is not None and move.since_s < CELL_COOLDOWN_S:
            rooted.add(owner)
    for seat in turns.seats:
        if len(seat.now) == 1 and (seat.domain.uuid, seat.vcpu.id) not in items and seat.domain.uuid in owners:
            rooted.add(owners[seat.domain.uuid])
    return frozenset(rooted)


def _held(world: World, policy: VcpuPolicy, last: Sequence[Optional[_LastMove]]) -> list[bool]:
    """Which items stay: those that were moved lately, and those that would get no more anywhere else."""
    problem = world.problem
    held = [False] * len(problem.load)
    best: dict[int, list[tuple[float, int]]] = {}
    for item, move in enumerate(last):
        now, reach = problem.now[item], problem.reach[item]
        if now == NOWHERE:
            continue
        if move is not None:
            resting = move.passes is not None and move.passes <= REST_PASSES
            held[item] = resting or move.since_s < policy.cooldown_s
        if contended(world.demands[item]):
            if reach not in best:
                best[reach] = heapq.nlargest(2, ((world.newcomer_shares[b], b) for b in problem.classes[reach]))
            share = next((share for share, b in best[reach] if b != now), 0.0)
            held[item] = held[item] or share < world.demands[item].run + BETTER_SHARE
    return held


# ---------------------------------------------------------------- shares of a contended bin


def contended(demand: Demand) -> bool:
    """Whether a vCPU waited on a saturated pCPU: what it wants is known only to be more than it got."""
    return demand.low > demand.run + BETTER_SHARE


def wanted_on(world: World, where: Sequence[int]) -> list[list[float]]:
    """What all vCPUs on each bin may want at most."""
    wanted = [list(rivals) for rivals in world.rivals]
    for demand, bin_ in zip(world.demands, where):
        if bin_ != NOWHERE:
            wanted[bin_].append(demand.high)
    return wanted


def fair_share(world: World, bin_: int, wants: Sequence[float]) -> float:
    """The most that any of *wants* gets on *bin_*: max-min fair sharing, foreign load being one that wants its part.

    The kernel shares a pCPU fairly: foreign load that fills one that vCPUs left yields when they come.
    """
    left = float(world.problem.capacity[bin_])
    claims = sorted([*wants, world.foreign[bin_]])
    for position, want in enumerate(claims):
        level = left / (len(claims) - position)
        if want >= level:
            return min(1.0, level)
        left -= want
    return 1.0
