# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How much each vCPU wants to run and what else a pCPU has to do, from the counters of two snapshots.

All loads are fractions of one pCPU over the window between the two.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Callable, Iterable, Mapping, NamedTuple, Optional, Sequence

from ..model import Domain, Snapshot, Vcpu
from ..units import CpuSet
from .vcpu_placement import IDLE

# A pCPU that was busy for more than the second share of the window could not serve all that was wanted; below the
# first it could. Between them run-queue delay is believed in part.
NEARLY_SATURATED, SATURATED = 0.90, 0.97

# vcpu.N.time is utime + stime of the thread, which the kernel reports in ticks (proc_pid_stat(5)).
TICK_S = 0.01

VcpuKey = tuple[str, int]


class Demand(NamedTuple):
    """What one vCPU wants: between ``low`` and ``high``.

    It ran for ``run`` and was runnable, but waiting, for ``wait``. ``high`` = run + wait, at most 1
    and its quota: right for a vCPU that never has enough. ``low`` counts the wait only as far as its
    pCPU was saturated: elsewhere a wait is short queueing, and all work was served (decision 25).
    The wait of an idle vCPU beside busy ones counts in neither: see _bystander(). ``place`` is where
    the kernel could put it.
    """

    run: float
    wait: float
    low: float
    high: float
    place: CpuSet

    @property
    def unsure(self) -> float:
        """How much of the demand was never seen running."""
        return self.high - self.run


@dataclass(frozen=True)
class Loads:
    """Loads over a window. A vCPU that is not in ``demand`` has no known load.

    ``busy`` is the non-idle share of each pCPU, ``foreign`` the part of it that no vCPU of any
    domain used: host processes, interrupts, emulator and I/O threads. ``settled``: that is known to
    stay there; what the kernel can move lies evenly over all pCPUs then.
    """

    window_s: float = 0.0
    demand: Mapping[VcpuKey, Demand] = field(default_factory=dict)
    busy: Mapping[int, float] = field(default_factory=dict)
    foreign: Mapping[int, float] = field(default_factory=dict)
    settled: bool = False

    @property
    def resolution(self) -> float:
        """The least load that can be told from none: one tick of the window."""
        return TICK_S / self.window_s if self.window_s else 0.0


def measure(snapshots: Sequence[Snapshot], runs_on: Callable[[Domain, Vcpu], CpuSet]) -> Loads:
    """The loads between the first and the last of *snapshots*; *runs_on* says where a vCPU could really run.

    Unknown, which is not 0: one snapshot only, a vCPU or domain that is new (a domain that started
    again has a new id), a counter that is missing or went back.
    """
    first, last = snapshots[0], snapshots[-1]
    window_s = last.monotonic_s - first.monotonic_s
    if window_s <= 0:
        return Loads()
    rates = _rates(first, last, window_s)
    places = [runs_on(domain, vcpu) for domain, vcpu, _run, _wait in rates]
    pinned, floating = _sum_by_place(zip(places, (run for _domain, _vcpu, run, _wait in rates)))
    online = [pcpu.id for pcpu in last.host.topology.pcpus]
    busy = _busy(first, last, window_s, online, pinned, floating)
    foreign = _foreign(busy, pinned, floating)
    bound = _bound(first, last, window_s)
    if bound is not None:
        foreign = _evened(foreign, bound, last.host.topology.isolated)
    contention = _Contention(busy, zip(places, (run for _domain, _vcpu, run, _wait in rates)))
    demand = {
        (domain.uuid, vcpu.id): _demand(run, wait, place, *contention.on(place), domain.vcpu_quota)
        for (domain, vcpu, run, wait), place in zip(rates, places)
    }
    return Loads(window_s, demand, busy, foreign, settled=bound is not None)


def _rates(first: Snapshot, last: Snapshot, window_s: float) -> list[tuple[Domain, Vcpu, float, float]]:
    """(domain, vCPU, share run, share waited) of each vCPU that is known."""
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
    """The growth of a counter; None if it is not known or went back."""
    if before is None or after is None or after < before:
        return None
    return after - before


def _sum_by_place(runs: Iterable[tuple[CpuSet, float]]) -> tuple[dict[int, float], dict[CpuSet, float]]:
    """What ran on one pCPU for sure, by pCPU; what floated, by the set that it floats over."""
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
    """The non-idle share of each pCPU; where the host does not tell, what its vCPUs ran."""
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
    """Busy time that no vCPU explains. What floated is taken to have run where busy time is left to explain."""
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
    """The share of each pCPU that interrupts and processes confined to it took, where that is known."""
    before, after = first.host.bound_ns, last.host.bound_ns
    if before is None or after is None:
        return None
    return {pcpu: (_grown(before.get(pcpu), ns) or 0) / (window_s * 1e9) for pcpu, ns in after.items()}


def _evened(foreign: Mapping[int, float], bound: Mapping[int, float], isolated: CpuSet) -> dict[int, float]:
    """*foreign*, but what is not *bound* lies evenly: the kernel moves it to wherever the vCPUs leave room.

    It was seen where they left room in this window, so counting it there would keep them where they are.
    """
    stays = {pcpu: min(share, bound.get(pcpu, 0.0)) for pcpu, share in foreign.items()}
    shared = [pcpu for pcpu in foreign if pcpu not in isolated]
    each = sum(foreign[pcpu] - stays[pcpu] for pcpu in shared) / len(shared) if shared else 0.0
    return {pcpu: stays[pcpu] + each if pcpu not in isolated else share for pcpu, share in foreign.items()}


class _Contention:
    """How far the pCPUs of a set could not serve what was wanted: 0 (they could) to 1; and the most that one vCPU got.

    Of the latter the least over the set: what floats may have run where others got little.
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
            saturation = _ramp(mean, NEARLY_SATURATED, SATURATED)
            self._known[place] = saturation, min((self._most[pcpu] for pcpu in place), default=0.0)
        return self._known[place]


def _demand(run: float, wait: float, place: CpuSet, saturation: float, most: float, quota: Optional[float]) -> Demand:
    wanted = run + wait * (1 - _bystander(run, most)) if run < 2 * IDLE else run + wait
    high = max(run, min(1.0, wanted, 1.0 if quota is None else quota))
    return Demand(run, wait, run + saturation * (high - run), high, place)


def _bystander(run: float, most: float) -> float:
    """How surely a vCPU that waited wants no more than it ran: 0 (not at all) to 1.

    The kernel shares a pCPU fairly: what ran next to nothing, and far less than a neighbour got, did
    not ask for more. Its waits are those of short wake-ups behind the busy ones.
    """
    return 1 - max(_ramp(run, IDLE, 2 * IDLE), _ramp(run, most / 4, most / 2) if most else 1.0)


def _ramp(value: float, none: float, full: float) -> float:
    """0 up to *none*, 1 from *full*, in proportion between them: no estimate jumps at an edge."""
    return min(1.0, max(0.0, (value - none) / (full - none)))
