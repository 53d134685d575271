# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From what was observed to the placement problem: pCPUs become bins, vCPUs with a known load become items."""

from __future__ import annotations

import functools
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Collection, Mapping, Optional, Sequence

from ...config import VcpuPolicy
from ...model import Domain, Pcpu, Snapshot, Vcpu, VcpuFigures
from ...units import CpuSet
from .allowed import Masks, Seat
from .bounds import load_bound
from .demand import Demand, Loads, VcpuKey
from .eligibility import Eligible
from .history import Smoothed, key_of
from .idle import is_idle
from .problem import NOWHERE, Problem, kappa
from .records import narrowed_from
from .served import by_content, level, newcomer_level, pour, thread_weight
from .speed import ALL, demand_at, load_at, speed_on, speeds

# How far an estimate may be off, as a part of the demand that was waited for and not seen running.
UNSURE_PART = 0.5


@dataclass(frozen=True)
class World:
    """The problem and what its indices stand for.

    Per bin: ``bins`` (its pCPUs), ``pinned`` (load that no move changes and that can't leave it) and
    ``others`` (the parts of that, each with its weight).
    Per item: ``seats``, ``demands``, ``weights`` (see thread_weight()) and ``doubt`` (how far its load may be off).
    Over time: the ``mean`` and ``variance`` of its load, and ``recent``: we moved it in the last ten minutes.
    ``floating``: the load of what the kernel balances within a set by itself. ``allowed`` is the problem without
    the restrictions that are ours alone (cells, cool-down): the bounds are taken from it.
    ``outside``: the load of each online pCPU that is in no bin.
    """

    bins: Sequence[CpuSet]
    problem: Problem
    allowed: Problem
    seats: Sequence[Seat]
    demands: Sequence[Demand]
    doubt: Sequence[float]
    mean: Sequence[float]
    variance: Sequence[float]
    pinned: Sequence[float]
    floating: Mapping[CpuSet, float]
    weights: Sequence[float]
    others: Sequence[Sequence[tuple[float, float]]]
    recent: Sequence[bool] = ()
    outside: Mapping[int, float] = field(default_factory=dict)

    @functools.cached_property
    def bin_of(self) -> dict[int, int]:
        """Return the bin of each pCPU."""
        return {pcpu: b for b, pcpus in enumerate(self.bins) for pcpu in pcpus}

    def totals(
        self,
        where: Sequence[int],
        load: Optional[Sequence[float]] = None,
        floats: Optional[Mapping[CpuSet, float]] = None,
    ) -> list[float]:
        """Return the load of each bin, in pCPUs, where the kernel lays what *floats* as evenly as its sets allow."""
        load = self.problem.load if load is None else load
        return self.laid(self.stacked(where, load), where, load, floats)

    def stacked(self, where: Sequence[int], load: Sequence[float]) -> list[float]:
        """Return the load of each bin, in pCPUs, without what floats."""
        totals = list(self.pinned)
        for bin_, weight in zip(where, load):
            if bin_ != NOWHERE:
                totals[bin_] += weight
        return totals

    def laid(
        self,
        totals: list[float],
        where: Sequence[int],
        load: Sequence[float],
        floats: Optional[Mapping[CpuSet, float]] = None,
    ) -> list[float]:
        """Return *totals*, the load of each bin, after what floats was laid over them."""
        floating = dict(self.floating if floats is None else floats)
        if NOWHERE in where:
            for item, bin_ in enumerate(where):
                if bin_ == NOWHERE:
                    place = self.seats[item].now
                    floating[place] = floating.get(place, 0.0) + load[item]
        if floating:
            self._lay(floating, totals)
        return totals

    def _lay(self, floating: Mapping[CpuSet, float], totals: list[float]) -> None:
        """Pour what floats over the bins of its sets; what lies on pCPUs that are in no bin is left out."""
        wants: dict[CpuSet, float] = {}
        for place, weight in floating.items():
            inside = [self.bin_of[pcpu] for pcpu in place if pcpu in self.bin_of]
            if inside:
                bins = frozenset(inside)
                wants[bins] = wants.get(bins, 0.0) + weight * len(inside) / len(place)
        for parts in pour(wants, totals, self.problem.capacity).values():
            for bin_, part in parts.items():
                totals[bin_] += part

    @functools.cached_property
    def bound(self) -> float:
        """Return a load per pCPU that the fullest bin has wherever the items are put."""
        totals, pcpus = self.totals(self.allowed.now), sum(self.problem.capacity)
        return max(load_bound(self.bare), sum(totals) / pcpus if pcpus else 0.0)

    @functools.cached_property
    def bare(self) -> Problem:
        """Return the problem without what floats, which the kernel may lay anywhere: bounds are proven for it."""
        return replace(self.allowed, fixed=self.pinned)

    def figures(self, where: Sequence[int]) -> VcpuFigures:
        totals = self.totals(where)
        sizes = self.problem.capacity
        levels = [total / size for total, size in zip(totals, sizes)]
        return VcpuFigures(
            pcpus=sum(map(len, self.bins)),
            average_pct=_pct(sum(totals) / sum(sizes) if sizes else 0.0),
            max_pct=_pct(max(levels, default=0.0)),
            imbalance_pct=_pct(self.problem.imbalance(totals)),
            bound_pct=_pct(self.bound),
            max_all_pct=_pct(max((*levels, *self.outside.values()), default=0.0)),
        )

    def at(self, where: Sequence[int], stays: Sequence[bool]) -> Problem:
        """Return the problem with the items *where* they are said to be; *stays* marks those that stay, in any cell."""
        problem = self.problem
        inside = [frozenset(bins) for bins in problem.classes]
        classes, reach = list(problem.classes), list(problem.reach)
        for item, bin_ in enumerate(where):
            if bin_ != NOWHERE and bin_ not in inside[reach[item]]:
                classes.append((bin_,))
                reach[item] = len(classes) - 1
        return replace(problem, now=where, stays=stays, classes=classes, reach=reach)

    def with_loads(self, load: Sequence[float]) -> World:
        """Return the same world with other loads of the items, which are sure."""
        return replace(
            self,
            problem=replace(self.problem, load=load),
            allowed=replace(self.allowed, load=load),
            mean=load,
            variance=[0.0] * len(load),
        )

    def after(self, where: Sequence[int]) -> World:
        """Return the world as the next window would show it, with the items *where* they are said to be."""
        levels = self.levels(where, range(len(self.bins)))
        demands = [
            demand if bin_ == NOWHERE else self._foreseen(item, levels[bin_], self.bins[bin_])
            for item, (demand, bin_) in enumerate(zip(self.demands, where))
        ]
        return replace(
            self,
            problem=replace(self.problem, now=where),
            allowed=replace(self.allowed, now=where),
            demands=demands,
            doubt=[min(d, UNSURE_PART * (new.high - new.run)) for d, new in zip(self.doubt, demands)],
        )

    def _foreseen(self, item: int, served: float, place: CpuSet) -> Demand:
        """Return what an item would show that wants what it does now, where *served* is had for its weight."""
        want = self.mean[item]
        run = min(want, served * self.weights[item])
        return Demand(run, want - run, want, want, place)

    def levels(self, where: Sequence[int], bins: Collection[int]) -> list[float]:
        """Return what vCPUs get for their weight on each of *bins*, in pCPUs; infinite where all have all they want."""
        claims: dict[int, list[tuple[float, float]]] = {b: list(self.others[b]) for b in bins}
        for item, bin_ in enumerate(where):
            if bin_ in claims:
                claims[bin_].append((self.mean[item], self.weights[item]))
        return [level(claims[b], self.problem.capacity[b]) for b in bins]

    def run(self, item: int, where: Sequence[int]) -> float:
        """Return what *item* runs, in pCPUs, with all items *where* they are said to be."""
        (served,) = self.levels(where, [where[item]])
        return min(self.mean[item], served * self.weights[item])

    def newcomer_share(self, bin_: int, weight: float) -> float:
        """Return what one more vCPU of *weight* that wants all would get on a bin, in pCPUs."""
        return min(1.0, weight * newcomer_level(self._highs[bin_], weight, self.problem.capacity[bin_]))

    @functools.cached_property
    def _highs(self) -> list[list[tuple[float, float]]]:
        """Return what the vCPUs of each bin may want at most, each with its weight: who is content first, first."""
        claims = [list(others) for others in self.others]
        for item, bin_ in enumerate(self.problem.now):
            if bin_ != NOWHERE:
                claims[bin_].append((self.demands[item].high, self.weights[item]))
        return [by_content(of) for of in claims]


def _pct(fraction: float) -> float:
    return round(100 * fraction, 2)


# ---------------------------------------------------------------- bins


def bins_of(pcpus: Sequence[Pcpu], usable: CpuSet, isolated: CpuSet, granularity: str) -> list[CpuSet]:
    """Return the usable pCPUs in groups of *granularity*, by their least id.

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
    eligible: Eligible,
    masks: Masks,
    loads: Loads,
    estimates: Mapping[str, Smoothed],
    foreign: Mapping[int, float],
) -> World:
    """Return the problem of one pass, without the limits that are ours alone.

    *estimates* are the loads to plan with by vCPU, *foreign* what counts by pCPU.
    """
    topology = snapshot.host.topology
    bins = bins_of(topology.pcpus, eligible.usable, topology.isolated, policy.granularity)
    bin_of = {pcpu: b for b, pcpus in enumerate(bins) for pcpu in pcpus}
    known = _known(eligible.seats, estimates)
    speed = speeds(topology)
    picked = _Picked(loads, bin_of, known, speed)
    weight_of = _Weights(snapshot, loads)
    # Where loads are equal, planners move the first: one with a greater weight gains more by it. Of a group it is one
    # whose own pCPU is the fullest.
    crowd = _crowds(loads) if policy.granularity != "pcpu" else {}
    weighed = [(weight_of(seat.domain, seat.vcpu), crowd.get(seat.now, 0.0), seat) for seat in eligible.seats]
    for weight, _crowd, seat in sorted(weighed, key=lambda rank: (-rank[0], -rank[1])):
        if policy.floating == "place" or not _left_to_kernel(seat, policy, masks, snapshot.host.uuid):
            picked.take(seat, weight)
    rest = _Rest(loads, bins, bin_of, picked.keys, foreign, known, weight_of.known, speed)
    mates, weights = _smt(topology.pcpus, bins, bin_of, policy.granularity)
    classes, resolution = Classes(bins), loads.resolution
    allowed = Problem(
        capacity=[sum(speed.get(pcpu, 1.0) for pcpu in pcpus) if speed else len(pcpus) for pcpus in bins],
        fixed=rest.evenly,
        mates=mates,
        kappa=weights,
        load=picked.load,
        now=picked.now,
        owner=_owners(picked.seats),
        reach=[classes.of(seat.allowed) for seat in picked.seats],
        classes=classes.bins,
        stays=[False] * len(picked.load),
    )
    return World(
        bins=bins,
        problem=allowed,
        allowed=allowed,
        seats=picked.seats,
        demands=picked.demands,
        doubt=[resolution + UNSURE_PART * (demand.high - demand.run) for demand in picked.demands],
        mean=[estimate.mean for estimate in picked.smoothed],
        variance=[estimate.variance for estimate in picked.smoothed],
        weights=picked.weights,
        others=rest.others,
        pinned=rest.pinned,
        floating=rest.floating,
        outside={p: max(busy, rest.outside.get(p, 0.0)) for p, busy in loads.busy.items() if p not in bin_of},
    )


def _crowds(loads: Loads) -> dict[CpuSet, float]:
    """Return what all vCPUs that run on one pCPU alone want there."""
    crowds: dict[CpuSet, float] = defaultdict(float)
    for demand in loads.demand.values():
        if len(demand.place) == 1:
            crowds[demand.place] += demand.low
    return crowds


class _Weights:
    """The weight of each vCPU with a known load beside those of others: see thread_weight()."""

    def __init__(self, snapshot: Snapshot, loads: Loads) -> None:
        self.known: dict[VcpuKey, float] = {}
        for domain in snapshot.domains:
            keys = [(domain.uuid, vcpu.id) for vcpu in domain.vcpus]
            wants = {key: loads.demand[key].low for key in keys if key in loads.demand}
            total = sum(wants.values())
            self.known.update({key: thread_weight(domain.cpu_weight, want, total) for key, want in wants.items()})

    def __call__(self, domain: Domain, vcpu: Vcpu) -> float:
        return self.known.get((domain.uuid, vcpu.id), 1.0)


def _known(seats: Sequence[Seat], estimates: Mapping[str, Smoothed]) -> dict[VcpuKey, Smoothed]:
    """Return the smoothed load of each vCPU that has one."""
    found = (((seat.domain.uuid, seat.vcpu.id), estimates.get(key_of(seat.domain, seat.vcpu))) for seat in seats)
    return {key: load for key, load in found if load is not None}


def _left_to_kernel(seat: Seat, policy: VcpuPolicy, masks: Masks, host_uuid: str) -> bool:
    """Return whether the kernel balances a vCPU within its set, or will: what we narrowed floats, too (decision 54).

    That takes two balanced pCPUs: on isolated ones it balances nothing.
    """
    if policy.floating == "auto" and not masks.floats_in(seat.allowed):
        ruled = masks.ruled(seat.domain)
        if ruled is not None and not masks.floats_in(ruled):
            return False
    original = narrowed_from(seat.domain, seat.vcpu, host_uuid, masks.balanced)
    return len(seat.now & masks.balanced) > 1 or original is not None


class _Picked:
    """The vCPUs that become items: those with a known load, but for idle ones that float."""

    def __init__(
        self,
        loads: Loads,
        bin_of: Mapping[int, int],
        known: Mapping[VcpuKey, Smoothed],
        speed: Mapping[int, float],
    ) -> None:
        self._speed = speed
        self._demand, self._resolution, self._bin_of, self._known = loads.demand, loads.resolution, bin_of, known
        self._bins: dict[CpuSet, int] = {}
        self.seats: list[Seat] = []
        self.demands: list[Demand] = []
        self.weights: list[float] = []
        self.load: list[float] = []
        self.smoothed: list[Smoothed] = []
        self.now: list[int] = []
        self.keys: set[VcpuKey] = set()

    def take(self, seat: Seat, weight: float) -> None:
        key = (seat.domain.uuid, seat.vcpu.id)
        demand = self._demand.get(key)
        if demand is None:
            return
        bin_ = self._bin(seat)
        estimate = self._known[key]
        if self._speed:
            pace = speed_on(demand.place, self._speed)
            demand, estimate = demand_at(demand, pace), load_at(estimate, pace)
        load = estimate.high if estimate.high < ALL else 1.0
        if bin_ == NOWHERE and is_idle(load, self._resolution) and not seat.now.isdisjoint(seat.allowed):
            return
        self.seats.append(seat)
        self.demands.append(demand)
        self.weights.append(weight)
        self.load.append(load)
        self.smoothed.append(estimate)
        self.now.append(bin_)
        self.keys.add(key)

    def _bin(self, seat: Seat) -> int:
        """Return the one bin that holds all of where the vCPU can run, or NOWHERE."""
        bin_ = self._bins.get(seat.now)
        if bin_ is None:
            bins = {self._bin_of.get(pcpu, NOWHERE) for pcpu in seat.now}
            bin_ = self._bins[seat.now] = bins.pop() if len(bins) == 1 else NOWHERE
        if len(seat.now) == 1 and len(seat.vcpu.pin) > 1 and len(seat.vcpu.pin & seat.allowed) > 1:
            # Its set has isolated pCPUs, and the kernel uses one of it: nobody chose that one.
            return NOWHERE
        return bin_ if bin_ != NOWHERE and seat.now <= seat.allowed else NOWHERE


class _Rest:
    """What the items find there: foreign load and other vCPUs, ``pinned`` or ``floating`` within a set of pCPUs."""

    def __init__(
        self,
        loads: Loads,
        bins: Sequence[CpuSet],
        bin_of: Mapping[int, int],
        items: set[VcpuKey],
        foreign: Mapping[int, float],
        known: Mapping[VcpuKey, Smoothed],
        weights: Mapping[VcpuKey, float],
        speed: Mapping[int, float],
    ) -> None:
        self._bin_of = bin_of
        self.pinned = [sum(foreign.get(p, 0.0) * speed.get(p, 1.0) for p in pcpus) for pcpus in bins]
        self.others = [[(load, 1.0)] if load else [] for load in self.pinned]
        self.floating: dict[CpuSet, float] = defaultdict(float)
        self.outside: dict[int, float] = defaultdict(float)
        for key, demand in loads.demand.items():
            if key in items:
                continue
            if len(demand.place) == 1:
                (pcpu,) = demand.place
                load = known[key].mean if key in known else demand.low
                if pcpu in bin_of:
                    load *= speed.get(pcpu, 1.0)
                    self.pinned[bin_of[pcpu]] += load
                    self.others[bin_of[pcpu]].append((load, weights[key]))
                else:
                    self.outside[pcpu] += load
            elif demand.place:
                load = known[key].mean if key in known else demand.low
                self.floating[demand.place] += load * speed_on(demand.place, speed)

    @property
    def evenly(self) -> list[float]:
        """Return the load of each bin if what floats lay evenly over its set: what planners may count on."""
        fixed = list(self.pinned)
        for place, load in self.floating.items():
            for pcpu in place:
                if pcpu in self._bin_of:
                    fixed[self._bin_of[pcpu]] += load / len(place)
        return fixed


class Classes:
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
    """Return the sibling bins of each bin, and how much their load weighs; groups hold whole cores and have none."""
    mates: list[tuple[int, ...]] = [()] * len(bins)
    weights = [0.0] * len(bins)
    for pcpu in pcpus if granularity == "pcpu" else ():
        if pcpu.id in bin_of and len(pcpu.siblings) > 1:
            b = bin_of[pcpu.id]
            mates[b] = tuple(sorted(bin_of[s] for s in pcpu.siblings if s != pcpu.id and s in bin_of))
            weights[b] = kappa(len(pcpu.siblings))
    return mates, weights
