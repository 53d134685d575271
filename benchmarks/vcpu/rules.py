# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules that are measured: what a host has without kvmsched, rivals, and kvmsched as daemon and as module.

The rivals read loads by themselves, in few lines, so that they stay what they are when the policy changes.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace
from typing import Any, Deque, Dict, List, Optional, Sequence, Tuple

from kvmsched import config
from kvmsched.config import VcpuPolicy
from kvmsched.model import Snapshot
from kvmsched.policy import vcpu

from .host import FakeHost, Key
from .sharing import Mask

Changed = Dict[Key, Tuple[Mask, Mask]]

# A pCPU that was busy for this share of the window could not serve all: there, what waited is counted as wanted.
_FULL = 0.97

# What all smoothing rivals call a reason to act, and what they aim at (as measured for docs/vcpu.md).
_TRIGGER, _AIM = 1.25, 1.05


class Rule:
    """Nothing is changed: the host left alone."""

    def __init__(self, period_s: float = 0.0) -> None:
        self.period_s, self._next_s = period_s, 0.0

    def due(self, elapsed_s: float) -> bool:
        if elapsed_s < self._next_s:
            return False
        self._next_s = elapsed_s + self.period_s - 1e-6
        return True

    def restart(self) -> None:
        """The clock that periods go by starts anew."""
        self._next_s = 0.0

    def act(self, host: FakeHost, window: Sequence[Snapshot]) -> Changed:
        return {}


# ---------------------------------------------------------------- kvmsched


def daemon_policy(**more: Any) -> VcpuPolicy:
    """What the daemon takes where its policy says nothing, but for what is given."""
    return replace(config.load_daemon({}).vcpu, **more)


# Everything that floats gets a pin: what a module does, and what a daemon has to be told to do.
PLACE = {"floating": "place"}


class Daemon(Rule):
    """kvmsched's daemon: each pass is handed what the last one remembered."""

    def __init__(self, policy: Optional[VcpuPolicy] = None, period_s: float = 0.0) -> None:
        super().__init__(period_s)
        self.policy, self.history = policy or daemon_policy(), vcpu.VcpuHistory()
        self.notes: List[str] = []

    def act(self, host: FakeHost, window: Sequence[Snapshot]) -> Changed:
        plan, self.history = vcpu.decide(window, vcpu.budgeted(self.policy, window[-1]), self.history)
        self.notes.append(plan.note)
        return host.apply(plan, window[-1])


class Module(Rule):
    """kvmsched's module every five minutes: one window, no memory."""

    def __init__(self, policy: Optional[VcpuPolicy] = None, period_s: float = 300.0) -> None:
        super().__init__(period_s)
        self.policy = policy or VcpuPolicy()

    def act(self, host: FakeHost, window: Sequence[Snapshot]) -> Changed:
        plan, _history = vcpu.decide(window, self.policy)
        return host.apply(plan, window[-1])


# ---------------------------------------------------------------- rivals


class Rival(Rule):
    """What rivals have in common: smoothed loads, and one pCPU for each vCPU. What floats they place once."""

    def __init__(self, half_life_s: float = 0.0, period_s: float = 0.0) -> None:
        super().__init__(period_s)
        self._half_life_s = half_life_s
        self._known: Dict[Key, Tuple[float, float]] = {}

    def act(self, host: FakeHost, window: Sequence[Snapshot]) -> Changed:
        loads = self._smoothed(window)
        pcpus = sorted(host.topology.online)
        where = {key: min(pin) for key, pin in _pins(host).items() if len(pin) == 1}
        totals = dict.fromkeys(pcpus, 0.0)
        for key, pcpu in where.items():
            totals[pcpu] += loads.get(key, 0.0)
        new = {}
        for key in sorted(_pins(host).keys() - where.keys(), key=lambda k: (-loads.get(k, 0.0), k)):
            new[key] = min(pcpus, key=lambda p: (totals[p], p))
            totals[new[key]] += loads.get(key, 0.0)
        where.update(new)
        self.rearrange(loads, where, totals, window)
        return host.repin({key: frozenset({pcpu}) for key, pcpu in where.items()})

    def rearrange(
        self, loads: Dict[Key, float], where: Dict[Key, int], totals: Dict[int, float], window: Sequence[Snapshot]
    ) -> None:
        """Change *where* (and *totals* with it)."""

    def _smoothed(self, window: Sequence[Snapshot]) -> Dict[Key, float]:
        """Mean and one standard deviation of each vCPU's demand over time, exponentially weighted."""
        elapsed_s = window[-1].monotonic_s - window[0].monotonic_s
        weight = 1 - 0.5 ** (elapsed_s / self._half_life_s) if self._half_life_s > 0 else 1.0
        for key, load in demands(window).items():
            mean, variance = self._known.get(key, (load, 0.0))
            error = load - mean
            self._known[key] = mean + weight * error, (1 - weight) * (variance + weight * error * error)
        return {key: min(1.0, mean + math.sqrt(variance)) for key, (mean, variance) in self._known.items()}


class Static(Rival):
    """Pinned once, and never again."""


class BusiestToFreest(Rival):
    """Again and again the vCPU nearest to half the gap, from the busiest pCPU to the freest."""

    def rearrange(
        self, loads: Dict[Key, float], where: Dict[Key, int], totals: Dict[int, float], window: Sequence[Snapshot]
    ) -> None:
        average = sum(totals.values()) / len(totals)
        if max(totals.values()) <= _TRIGGER * average:
            return
        aim = _AIM * max([average, *loads.values()])
        on = _by_pcpu(where, totals)
        for _turn in range(len(where)):
            busiest, freest = max(totals, key=lambda p: (totals[p], -p)), min(totals, key=lambda p: (totals[p], p))
            gap = totals[busiest] - totals[freest]
            fits = [key for key in on[busiest] if 0 < loads.get(key, 0.0) < gap]
            if totals[busiest] <= aim or not fits:
                return
            key = min(fits, key=lambda k: (abs(loads[k] - gap / 2), k))
            _shift(key, freest, loads[key], where, totals, on)


class JointScenarios(Rival):
    """Keeps the last windows as scenarios, and makes the moves that lower the mean overload over them most.

    A scenario holds what all vCPUs wanted at the same time, so loads that peak together are kept apart.
    """

    def __init__(self, windows: int = 24, period_s: float = 0.0) -> None:
        super().__init__(0.0, period_s)
        self._windows: Deque[Dict[Key, float]] = deque(maxlen=windows)

    def rearrange(
        self, loads: Dict[Key, float], where: Dict[Key, int], totals: Dict[int, float], window: Sequence[Snapshot]
    ) -> None:
        self._windows.append(demands(window))
        scenarios = list(self._windows)
        count = len(scenarios)
        level = {pcpu: [0.0] * count for pcpu in totals}
        series = {key: [scenario.get(key, 0.0) for scenario in scenarios] for key in where}
        for key, pcpu in where.items():
            level[pcpu] = [a + b for a, b in zip(level[pcpu], series[key])]
        on = _by_pcpu(where, totals)
        budget = max(2, round(0.03 * len(where)))
        for _turn in range(budget):
            step = self._best(series, level, on)
            if step is None:
                return
            key, source, target = step
            level[source] = [a - b for a, b in zip(level[source], series[key])]
            level[target] = [a + b for a, b in zip(level[target], series[key])]
            _shift(key, target, loads.get(key, 0.0), where, totals, on)

    def _best(
        self, series: Dict[Key, List[float]], level: Dict[int, List[float]], on: Dict[int, List[Key]]
    ) -> Optional[Tuple[Key, int, int]]:
        overload = {pcpu: _overload(levels) for pcpu, levels in level.items()}
        sources = sorted(overload, key=lambda p: (-overload[p], p))[:3]
        targets = sorted(overload, key=lambda p: (overload[p] + 0.01 * sum(level[p]), p))[:6]
        best: Tuple[float, Optional[Tuple[Key, int, int]]] = (0.01 * len(next(iter(level.values()))), None)
        for source in sources:
            for key in on[source] if overload[source] > 0 else ():
                own = series[key]
                relief = overload[source] - _overload([a - b for a, b in zip(level[source], own)])
                if relief <= best[0]:
                    continue
                for target in targets:
                    if target != source:
                        gain = relief - _overload([a + b for a, b in zip(level[target], own)]) + overload[target]
                        if gain > best[0] + 1e-9:
                            best = gain, (key, source, target)
        return best[1]


class SwapAll(Rival):
    """The published first kvmsched: above 50 %, all of the busiest pCPU change places with all of the freest."""

    def rearrange(
        self, loads: Dict[Key, float], where: Dict[Key, int], totals: Dict[int, float], window: Sequence[Snapshot]
    ) -> None:
        busiest, freest = max(totals, key=lambda p: (totals[p], -p)), min(totals, key=lambda p: (totals[p], p))
        if totals[busiest] >= 0.5:
            other = {busiest: freest, freest: busiest}
            where.update({key: other[pcpu] for key, pcpu in where.items() if pcpu in other})


class FromScratch(Rival):
    """LPT: every vCPU, largest first, onto the emptiest pCPU, whatever it was on."""

    def rearrange(
        self, loads: Dict[Key, float], where: Dict[Key, int], totals: Dict[int, float], window: Sequence[Snapshot]
    ) -> None:
        if max(totals.values()) <= _TRIGGER * sum(totals.values()) / len(totals):
            return
        level = dict.fromkeys(totals, 0.0)
        for key in sorted(where, key=lambda k: (-loads.get(k, 0.0), k)):
            where[key] = min(level, key=lambda p: (level[p], p))
            level[where[key]] += loads.get(key, 0.0)


def _pins(host: FakeHost) -> Dict[Key, Mask]:
    return {(guest.uuid, n): pin for guest in host.guests for n, pin in enumerate(guest.pins)}


def _by_pcpu(where: Dict[Key, int], pcpus: Dict[int, float]) -> Dict[int, List[Key]]:
    on: Dict[int, List[Key]] = {pcpu: [] for pcpu in pcpus}
    for key, pcpu in where.items():
        on[pcpu].append(key)
    return on


def _shift(
    key: Key, target: int, load: float, where: Dict[Key, int], totals: Dict[int, float], on: Dict[int, List[Key]]
) -> None:
    source = where[key]
    totals[source] -= load
    totals[target] += load
    on[source].remove(key)
    on[target].append(key)
    where[key] = target


def _overload(levels: Sequence[float]) -> float:
    return sum(level - 1 for level in levels if level > 1)


def demands(window: Sequence[Snapshot]) -> Dict[Key, float]:
    """What each vCPU wanted: what it ran, and on a full pCPU what it waited as well."""
    first, last = window[0], window[-1]
    seconds = last.monotonic_s - first.monotonic_s
    if seconds <= 0:
        return {}
    full = {
        pcpu
        for pcpu, busy_ns in last.host.busy_ns.items()
        if busy_ns - first.host.busy_ns.get(pcpu, 0) >= _FULL * seconds * 1e9
    }
    before = {domain.uuid: domain.vcpus for domain in first.domains}
    result = {}
    for domain in last.domains:
        for old, new in zip(before.get(domain.uuid, ()), domain.vcpus):
            ran_ns = (new.time_ns or 0) - (old.time_ns or 0)
            waited_ns = (new.delay_ns or 0) - (old.delay_ns or 0)
            wanted_ns = ran_ns + waited_ns if new.affinity is not None and new.affinity <= full else ran_ns
            result[domain.uuid, new.id] = min(1.0, wanted_ns / (seconds * 1e9))
    return result
