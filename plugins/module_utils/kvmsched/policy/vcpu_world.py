# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From what was observed to the placement problem: pCPUs become bins, vCPUs with a known load become items."""

from __future__ import annotations

import functools
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Mapping, Optional, Sequence

from ..config import VcpuPolicy
from ..model import Pcpu, Snapshot, VcpuFigures
from ..units import CpuSet
from .vcpu_cells import Cells, home_cells
from .vcpu_history import PastMove, VcpuHistory, key_of
from .vcpu_load import Demand, Loads
from .vcpu_placement import IDLE, NOWHERE, Problem, kappa, load_bound
from .vcpu_turns import Masks, Seat, Turns, pin_records

# A vCPU is not sent back to where it came from for this many passes: the guard against ping-pong.
NO_RETURN_PASSES = 3

# A vCPU that waits on a saturated pCPU moves only for at least this much more of a pCPU than it gets where it is.
BETTER_SHARE = 0.05

# How far an estimate may be off, as a part of the demand that was waited for and not seen running.
UNSURE_PART = 0.5


@dataclass(frozen=True)
class World:
    """The problem and what its indices stand for.

    Per bin: ``bins`` (its pCPUs), ``rivals`` (what the vCPUs want that are no items) and ``foreign``.
    Per item: ``seats``, ``demands`` and ``doubt`` (how far its load may be off). ``floating`` is load
    that lies evenly over a set before it is placed. ``allowed`` is the problem without the
    restrictions that are ours alone (cells, cool-down): the bounds are taken from it.
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
    masks: Masks,
    loads: Loads,
    estimates: Mapping[str, float],
    foreign: Mapping[int, float],
) -> World:
    """The problem of one pass. *estimates* are the loads to plan with by vCPU, *foreign* what counts by pCPU."""
    topology = snapshot.host.topology
    bins = bins_of(topology.pcpus, turns.usable, topology.isolated, policy.granularity)
    bin_of = {pcpu: b for b, pcpus in enumerate(bins) for pcpu in pcpus}
    picked = _Picked(loads, bin_of, masks)
    for seat in turns.seats:
        picked.take(seat, estimates)
    rest = _Rest(snapshot, loads, masks, bins, bin_of, picked.keys, foreign)
    mates, weights = _smt(topology.pcpus, bins, bin_of, policy.granularity)
    load = [estimates[key_of(seat.domain, seat.vcpu)] for seat in picked.seats]
    classes = _Classes(bins)
    allowed = Problem(
        capacity=[len(pcpus) for pcpus in bins],
        fixed=rest.fixed,
        mates=mates,
        kappa=weights,
        load=load,
        now=picked.now,
        owner=_owners(picked.seats),
        reach=[classes.of(seat.allowed) for seat in picked.seats],
        classes=classes.bins,
        held=[False] * len(load),
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
    world = replace(world, problem=_restricted(world, snapshot, turns, history))
    return replace(world, problem=replace(world.problem, held=_held(world, snapshot, policy, history)))


class _Picked:
    """The vCPUs that become items: those with a known load, but for idle ones that float."""

    def __init__(self, loads: Loads, bin_of: Mapping[int, int], masks: Masks) -> None:
        self._loads, self._bin_of, self._masks = loads, bin_of, masks
        self.seats: list[Seat] = []
        self.demands: list[Demand] = []
        self.now: list[int] = []
        self.keys: set[tuple[str, int]] = set()

    def take(self, seat: Seat, estimates: Mapping[str, float]) -> None:
        key = (seat.domain.uuid, seat.vcpu.id)
        demand = self._loads.demand.get(key)
        if demand is None:
            return
        bin_ = self._bin(seat)
        floats = bin_ == NOWHERE and bool(seat.now & seat.allowed)
        if floats and estimates[key_of(seat.domain, seat.vcpu)] <= IDLE + self._loads.resolution:
            return
        self.seats.append(seat)
        self.demands.append(demand)
        self.now.append(bin_)
        self.keys.add(key)

    def _bin(self, seat: Seat) -> int:
        """The one bin that holds all of where the vCPU can run, or NOWHERE."""
        if len(seat.now) == 1:
            (pcpu,) = seat.now
            return self._bin_of[pcpu] if pcpu in seat.allowed else NOWHERE
        if not seat.now <= seat.allowed:
            return NOWHERE
        bins = {self._bin_of.get(pcpu, NOWHERE) for pcpu in seat.now}
        return bins.pop() if len(bins) == 1 else NOWHERE


class _Rest:
    """What the items find there: foreign load, and other vCPUs, spread evenly over where they can run."""

    def __init__(
        self,
        snapshot: Snapshot,
        loads: Loads,
        masks: Masks,
        bins: Sequence[CpuSet],
        bin_of: Mapping[int, int],
        items: set[tuple[str, int]],
        foreign: Mapping[int, float],
    ) -> None:
        self.foreign = [sum(foreign.get(pcpu, 0.0) for pcpu in pcpus) for pcpus in bins]
        self.fixed = list(self.foreign)
        self.rivals: list[list[float]] = [[] for _each in bins]
        spread: dict[CpuSet, float] = defaultdict(float)
        for domain in snapshot.domains:
            for vcpu in domain.vcpus:
                demand = loads.demand.get((domain.uuid, vcpu.id))
                if demand is None or (domain.uuid, vcpu.id) in items:
                    continue
                place = masks.runs_on(domain, vcpu)
                spread[place] += demand.low
                if len(place) == 1:
                    (pcpu,) = place
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


def _restricted(world: World, snapshot: Snapshot, turns: Turns, history: VcpuHistory) -> Problem:
    """The problem with each item kept in its home cell and from where it came lately."""
    problem = world.problem
    cells = Cells(snapshot.host.topology, world.bins)
    if not cells.several and not history.moves:
        return problem
    homes = home_cells(problem, cells, _rooted(world, snapshot, turns, history)) if cells.several else None
    classes = _Classes(world.bins)
    narrowed: dict[tuple[int, Optional[int], Optional[CpuSet]], tuple[int, frozenset[int]]] = {}
    reach = []
    now = list(problem.now)
    for item, seat in enumerate(world.seats):
        past = _past_move(history, seat)
        recent = past is not None and history.number - past.number <= NO_RETURN_PASSES
        back = past.before - past.after if past is not None and recent else None
        kind = (problem.reach[item], homes[item] if homes is not None else None, back)
        if kind not in narrowed:
            bins = _narrowed(world, cells, problem.classes[kind[0]], kind[1], kind[2])
            narrowed[kind] = classes.of_bins(bins), frozenset(bins)
        number, inside = narrowed[kind]
        if now[item] != NOWHERE and now[item] not in inside:
            now[item] = NOWHERE
        reach.append(number)
    return replace(problem, reach=reach, classes=classes.bins, now=now)


def _narrowed(
    world: World, cells: Cells, bins: Sequence[int], home: Optional[int], back: Optional[CpuSet]
) -> tuple[int, ...]:
    """*bins* in the cell *home*, and not *back* where the vCPU came from: as far as that leaves any."""
    if home is not None:
        bins = [b for b in bins if cells.of_bin[b] == home] or bins
    if back:
        bins = [b for b in bins if world.bins[b].isdisjoint(back)] or bins
    return tuple(bins)


def _past_move(history: VcpuHistory, seat: Seat) -> Optional[PastMove]:
    """The last move of a vCPU, if it came about and nobody undid it."""
    past = history.moves.get(key_of(seat.domain, seat.vcpu))
    return past if past is not None and past.after == seat.vcpu.pin else None


# A domain does not change its cell again for this long (numad keeps 300 s): its memory has to follow.
CELL_COOLDOWN_S = 300.0


def _rooted(world: World, snapshot: Snapshot, turns: Turns, history: VcpuHistory) -> frozenset[int]:
    """The owners that keep their cell: moved within its cool-down, or with a pinned vCPU that can't come along."""
    rooted = set()
    owners = {}
    items = set()
    for owner, seat in zip(world.problem.owner, world.seats):
        owners[seat.domain.uuid] = owner
        items.add((seat.domain.uuid, seat.vcpu.id))
        since_s = _since_move_s(seat, snapshot, history)
        if since_s is not None and since_s < CELL_COOLDOWN_S:
            rooted.add(owner)
    for seat in turns.seats:
        if len(seat.now) == 1 and (seat.domain.uuid, seat.vcpu.id) not in items and seat.domain.uuid in owners:
            rooted.add(owners[seat.domain.uuid])
    return frozenset(rooted)


def _since_move_s(seat: Seat, snapshot: Snapshot, history: VcpuHistory) -> Optional[float]:
    """How long ago a vCPU was moved by us: from the history, else from the record on its domain."""
    past = _past_move(history, seat)
    if past is not None:
        return snapshot.monotonic_s - past.when_s
    for record in pin_records(seat.domain, snapshot):
        if record.thread == "vcpu" and record.id == seat.vcpu.id and record.intended == seat.vcpu.pin:
            return snapshot.wall_s - record.when_s
    return None


def _held(world: World, snapshot: Snapshot, policy: VcpuPolicy, history: VcpuHistory) -> list[bool]:
    """Which items stay: those in their cool-down, and those that would get no more anywhere else."""
    problem = world.problem
    held = [False] * len(problem.load)
    best: dict[int, list[tuple[float, int]]] = {}
    for item, seat in enumerate(world.seats):
        now, reach = problem.now[item], problem.reach[item]
        if now == NOWHERE:
            continue
        if policy.cooldown_s:
            since_s = _since_move_s(seat, snapshot, history)
            held[item] = since_s is not None and since_s < policy.cooldown_s
        if contended(world.demands[item]):
            if reach not in best:
                shares = _newcomer_shares(world)
                best[reach] = sorted(((shares[b], b) for b in problem.classes[reach]), reverse=True)[:2]
            share = next((share for share, b in best[reach] if b != now), 0.0)
            held[item] = held[item] or share < world.demands[item].run + BETTER_SHARE
    return held


# ---------------------------------------------------------------- shares of a contended bin


def contended(demand: Demand) -> bool:
    """Whether a vCPU waited on a saturated pCPU: what it wants is known only to be more than it got."""
    return demand.low > demand.run + BETTER_SHARE


def _newcomer_shares(world: World) -> list[float]:
    """The share of a pCPU that one more busy vCPU would get on each bin, by the kernel's fair scheduling."""
    wanted = wanted_on(world, world.problem.now)
    return [fair_share(world, b, [*wants, 1.0]) for b, wants in enumerate(wanted)]


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
