# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How much each vCPU wants to run and what else a pCPU has to do, from the counters of two snapshots.

All loads are fractions of one pCPU over the window between the two.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Iterable, Mapping, NamedTuple, Optional, Sequence

from ...model import Domain, Snapshot, Vcpu
from ...units import CpuSet
from .allowed import Affinity
from .idle import ramp, wants_more
from .served import thread_weight

# A pCPU that was busy for more than the second share of the window could not serve all that was wanted; below the
# first it could. Between them run-queue delay is believed in part.
NEARLY_SATURATED, SATURATED = 0.90, 0.97

# vcpu.N.time is utime + stime of the thread, which the kernel reports in ticks (proc_pid_stat(5)).
TICK_S = 0.01

# A vCPU that waits on a saturated pCPU moves only for at least this much more of a pCPU than it gets where it is.
BETTER_SHARE = 0.05

VcpuKey = tuple[str, int]


class Demand(NamedTuple):
    """What one vCPU wants: between ``low`` and ``high``.

    It ran for ``run`` and was runnable, but waiting, for ``wait``. ``high`` = run + wait, at most 1
    and its quota: right for a vCPU that never has enough. ``low`` counts the wait only as far as its
    pCPU was saturated: elsewhere a wait is short queueing, and all work was served (decision 25).
    The wait of a vCPU that got less than its fair share counts in neither: see idle.wants_more(). ``place`` is
    where the kernel could put it.
    """

    run: float
    wait: float
    low: float
    high: float
    place: CpuSet


@dataclass(frozen=True)
class Loads:
    """Loads over a window. A vCPU that is not in ``demand`` has no known load.

    ``busy`` is the non-idle share of each pCPU, ``foreign`` the part of it that no vCPU of any
    domain used: host processes, interrupts, emulator and I/O threads. ``settled``: that is known to
    stay there; what the kernel can move lies evenly over the pCPUs that it may use then.
    """

    window_s: float = 0.0
    demand: Mapping[VcpuKey, Demand] = field(default_factory=dict)
    busy: Mapping[int, float] = field(default_factory=dict)
    foreign: Mapping[int, float] = field(default_factory=dict)
    settled: bool = False

    @property
    def resolution(self) -> float:
        """Return the least load that can be told from none: one clock tick of the window."""
        return TICK_S / self.window_s if self.window_s else 0.0


def measure(snapshots: Sequence[Snapshot], confined: bool = True) -> Loads:
    """Return the loads between the first and the last of *snapshots*.

    Some loads are unknown, which is not 0: of one snapshot only, of a vCPU or domain that is new, by a counter that is
    missing or went back. (A domain that started again has a new id.) Without *confined*, foreign load that
    is not bound to one pCPU is taken to run anywhere.
    """
    first, last = snapshots[0], snapshots[-1]
    window_s = last.monotonic_s - first.monotonic_s
    if window_s <= 0:
        return Loads()
    rates = _rates(first, last, window_s)
    runs_on = Affinity(last).runs_on
    places = [runs_on(domain, vcpu) for domain, vcpu, _run, _wait in rates]
    pinned, floating = _sum_by_place(zip(places, (run for _domain, _vcpu, run, _wait in rates)))
    online = [pcpu.id for pcpu in last.host.topology.pcpus]
    busy = _busy(first, last, window_s, online, pinned, floating)
    foreign = _foreign(busy, pinned, floating)
    bound = _bound(first, last, window_s)
    sets = _confined(first, last, window_s) if confined else {}
    settled = bound is not None and sets is not None
    if bound is not None and sets is not None:
        foreign = _spread(foreign, bound, sets, last.host.topology.isolated)
    weights = _weights(rates)
    contention = _Contention(
        busy, ((place, run / weight) for (_d, _v, run, _w), place, weight in zip(rates, places, weights))
    )
    demand = {}
    for (domain, vcpu, run, wait), place, weight in zip(rates, places, weights):
        saturation, level = contention.on(place)
        most = 1.0 if domain.vcpu_quota is None else min(1.0, domain.vcpu_quota)
        high = max(run, min(most, run + wait * wants_more(run, level * weight)))
        demand[domain.uuid, vcpu.id] = Demand(run, wait, run + saturation * (high - run), high, place)
    return Loads(window_s, demand, busy, foreign, settled=settled)


def _weights(rates: Sequence[tuple[Domain, Vcpu, float, float]]) -> list[float]:
    """Return the weight of each vCPU beside those of others: see thread_weight()."""
    wanted: dict[str, float] = defaultdict(float)
    for domain, _vcpu, run, wait in rates:
        wanted[domain.uuid] += min(1.0, run + wait)
    return [thread_weight(d.cpu_weight, min(1.0, run + wait), wanted[d.uuid]) for d, _vcpu, run, wait in rates]


def _rates(first: Snapshot, last: Snapshot, window_s: float) -> list[tuple[Domain, Vcpu, float, float]]:
    """Yield domain, vCPU, share run and share waited (0 to 1) of each vCPU that is known."""
    before = {(d.uuid, d.id): d.vcpus for d in first.domains}
    window_ns = window_s * 1e9
    rates = []
    for domain in last.domains:
        earlier = {vcpu.id: vcpu for vcpu in before.get((domain.uuid, domain.id), ())}
        for vcpu in domain.vcpus:
            old = earlier.get(vcpu.id)
            run_ns = _grown(old.time_ns, vcpu.time_ns) if old else None
            if old is None or run_ns is None:
                continue
            wait_ns = _grown(old.delay_ns, vcpu.delay_ns) or 0
            rates.append((domain, vcpu, min(1.0, run_ns / window_ns), wait_ns / window_ns))
    return rates


def _grown(before: Optional[int], after: Optional[int]) -> Optional[int]:
    """Return the growth of a counter; None if it is not known or went back."""
    if before is None or after is None or after < before:
        return None
    return after - before


def _sum_by_place(runs: Iterable[tuple[CpuSet, float]]) -> tuple[dict[int, float], dict[CpuSet, float]]:
    """Return what ran on one pCPU for sure, by pCPU; what floated, by the set that it floats over."""
    pinned: dict[int, float] = defaultdict(float)
    floating: dict[CpuSet, float] = defaultdict(float)
    for place, run in runs:
        if len(place) == 1:
            (pcpu,) = place
            pinned[pcpu] += run
        elif place:
            floating[place] += run
    return pinned, floating


def _busy(
    first: Snapshot,
    last: Snapshot,
    window_s: float,
    online: Sequence[int],
    pinned: Mapping[int, float],
    floating: Mapping[CpuSet, float],
) -> dict[int, float]:
    """Return the non-idle share of each pCPU; where the host does not tell, what its vCPUs ran."""
    managed = dict.fromkeys(online, 0.0)
    for pcpu, run in pinned.items():
        if pcpu in managed:
            managed[pcpu] += run
    for place, run in floating.items():
        for pcpu in place:
            if pcpu in managed:
                managed[pcpu] += run / len(place)
    busy = {}
    for pcpu in online:
        grown_ns = _grown(first.host.busy_ns.get(pcpu), last.host.busy_ns.get(pcpu))
        busy[pcpu] = min(1.0, managed[pcpu] if grown_ns is None else grown_ns / (window_s * 1e9))
    return busy


def _foreign(
    busy: Mapping[int, float], pinned: Mapping[int, float], floating: Mapping[CpuSet, float]
) -> dict[int, float]:
    """Return busy time that no vCPU explains. What floated is taken to have run where busy time is left to explain."""
    left = {pcpu: max(0.0, share - pinned.get(pcpu, 0.0)) for pcpu, share in busy.items()}
    for place, run in sorted(floating.items(), key=lambda item: (len(item[0]), sorted(item[0]))):
        room = sum(left.get(pcpu, 0.0) for pcpu in place)
        if room > 0:
            stays = max(0.0, 1 - run / room)
            for pcpu in place:
                if pcpu in left:
                    left[pcpu] *= stays
    return left


def _bound(first: Snapshot, last: Snapshot, window_s: float) -> Optional[dict[int, float]]:
    """Return the share of each pCPU that interrupts and processes confined to it took, where that is known."""
    before, after = first.host.bound_ns, last.host.bound_ns
    if before is None or after is None:
        return None
    return {pcpu: (_grown(before.get(pcpu), ns) or 0) / (window_s * 1e9) for pcpu, ns in after.items()}


def _confined(first: Snapshot, last: Snapshot, window_s: float) -> Optional[dict[CpuSet, float]]:
    """Set of pCPUs -> the load of work that may run on all of these and nowhere else, where that is known."""
    if first.host.foreign_ns is None or last.host.foreign_ns is None:
        return None
    before = {part.pcpus: part.time_ns for part in first.host.foreign_ns}
    grown = ((part.pcpus, _grown(before.get(part.pcpus, 0), part.time_ns)) for part in last.host.foreign_ns)
    return {pcpus: ns / (window_s * 1e9) for pcpus, ns in grown if ns}


def _spread(
    foreign: Mapping[int, float], bound: Mapping[int, float], confined: Mapping[CpuSet, float], isolated: CpuSet
) -> dict[int, float]:
    """Spread what of *foreign* is not *bound* to its pCPU evenly over where it may run: the kernel moves it there.

    It was seen where vCPUs left room in this window, so counting it there would keep them where they are.
    What is not *confined* may run anywhere. No part counts for more than was seen where it may run.
    """
    placed = {pcpu: min(share, bound.get(pcpu, 0.0)) for pcpu, share in foreign.items()}
    left = {pcpu: share - placed[pcpu] for pcpu, share in foreign.items()}
    anywhere = frozenset(foreign) - isolated
    for pcpus, load in sorted(confined.items(), key=lambda part: (len(part[0]), sorted(part[0]))):
        _take(left, placed, (pcpus & frozenset(foreign)) - isolated or pcpus & frozenset(foreign), load)
    _take(left, placed, anywhere, sum(left[pcpu] for pcpu in anywhere))
    return {pcpu: share + left[pcpu] for pcpu, share in placed.items()}


def _take(left: dict[int, float], placed: dict[int, float], pcpus: CpuSet, load: float) -> None:
    """Count *load*, as far as it was seen on *pcpus*, evenly on them."""
    seen = sum(left[pcpu] for pcpu in pcpus)
    part = min(load, seen)
    if part <= 0:
        return
    for pcpu in pcpus:
        left[pcpu] *= 1 - part / seen
        placed[pcpu] += part / len(pcpus)


class _Contention:
    """How far the pCPUs of a set could not serve what was wanted: 0 (they could) to 1; and its level.

    The level is the most that one vCPU ran there for its weight: the kernel gives each as much, if it asks
    for it. Of a set it is the least: what floats may have run where others got little.
    """

    def __init__(self, busy: Mapping[int, float], runs: Iterable[tuple[CpuSet, float]]) -> None:
        self._busy = busy
        self._known: dict[CpuSet, tuple[float, float]] = {}
        by_place: dict[CpuSet, float] = {}
        for place, run in runs:
            by_place[place] = max(run, by_place.get(place, 0.0))
        self._most = dict.fromkeys(busy, 0.0)
        for place, run in by_place.items():
            for pcpu in place:
                self._most[pcpu] = max(run, self._most.get(pcpu, 0.0))

    def on(self, place: CpuSet) -> tuple[float, float]:
        if place not in self._known:
            mean = sum(self._busy.get(pcpu, 0.0) for pcpu in place) / len(place) if place else 0.0
            saturation = ramp(mean, NEARLY_SATURATED, SATURATED)
            self._known[place] = saturation, min((self._most[pcpu] for pcpu in place), default=0.0)
        return self._known[place]


def has_spare(pcpus: CpuSet, loads: Loads) -> bool:
    """Return whether *pcpus* could serve all that runs there, and all that may run there among others."""
    wanted = sum(demand.low for demand in loads.demand.values() if not pcpus.isdisjoint(demand.place))
    return wanted + sum(loads.foreign.get(pcpu, 0.0) for pcpu in pcpus) < SATURATED * len(pcpus)


def contended(demand: Demand) -> bool:
    """Return whether a vCPU waited on a saturated pCPU: what it wants is known only to be more than it got."""
    return demand.low > demand.run + BETTER_SHARE
