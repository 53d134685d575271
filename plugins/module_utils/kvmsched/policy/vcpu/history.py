# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the vCPU policy remembers from pass to pass: plain data, handed in and handed back."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Optional

from ...model import Domain, Vcpu
from ...units import CpuSet


@dataclass(frozen=True)
class Smoothed:
    """A load over time: exponentially weighted mean and variance, as fractions of one pCPU.

    ``hidden``: what the windows in a row count together in which contention hid it, up to the last one.
    ``refuted``: in one of those it was seen that what had been known before is no longer true.
    """

    mean: float
    variance: float = 0.0
    hidden: float = 0.0
    refuted: bool = False

    @property
    def high(self) -> float:
        """Return mean and one standard deviation: what it usually stays below."""
        return min(1.0, self.mean + math.sqrt(self.variance)) if self.variance else self.mean

    def then(self, load: float, weight: float, hidden: bool = False, refuted: bool = False) -> Smoothed:
        """Return the same after one more *load*, which counts *weight* (0 to 1) of the whole.

        West (1979), "Updating mean and variance estimates", with exponential weights.
        """
        error = load - self.mean
        mean = self.mean + weight * error
        # How a hidden load varies is not seen: the waits of short queues come and go.
        variance = self.variance if hidden else (1 - weight) * (self.variance + weight * error * error)
        return Smoothed(mean, variance, self.hidden + weight if hidden else 0.0, hidden and (refuted or self.refuted))


@dataclass(frozen=True)
class PlannedPin:
    """A pin that was planned: it counts only while the vCPU is pinned to ``after``. ``number`` is that of the pass."""

    before: CpuSet
    after: CpuSet
    when_s: float
    number: int


# A trial is judged by about its last windows: a calm night must not hide a day of waiting.
TRIAL_WINDOWS = 12


@dataclass(frozen=True)
class Trial:
    """A set that a floating vCPU was given by way of trial, in pass ``number``.

    ``wait`` is the share of time that it waited before, ``waited`` the mean since, in which the last of the
    ``windows`` count most.
    ``memory``: it was brought beside its memory.
    """

    after: CpuSet
    number: int
    wait: float
    waited: float = 0.0
    windows: int = 0
    memory: bool = False

    def then(self, wait: float) -> Trial:
        """Return the same after one more window."""
        count = self.windows + 1
        counted = min(count, TRIAL_WINDOWS)
        return replace(self, waited=self.waited + (wait - self.waited) / counted, windows=count)


@dataclass(frozen=True)
class VcpuHistory:
    """All that is remembered between two passes; times are the snapshots' monotonic seconds.

    ``loads``, ``moves`` and ``waited`` (the number of the last pass in which it waited long) go by vCPU (see key_of),
    ``foreign`` by pCPU. By domain UUID go ``mismatches`` (passes in a row that found its affinity changed past libvirt)
    and ``backed_off`` (until when it is skipped for that). ``held`` counts the passes in a row that found a reason
    to act and waited. By vCPU go ``trials`` (the sets on trial), ``planned`` (those that the last pass would begin) and
    ``resting`` (until when those rest whose trial failed). ``trials_begun`` and ``trials_undone`` count trials since
    the host was booted.
    ``settled_average`` is the average load per pCPU when last there was nothing to do.
    """

    number: int = 0
    stamp_s: float = 0.0
    settled_average: Optional[float] = None
    held: int = 0
    loads: dict[str, Smoothed] = field(default_factory=dict)
    foreign: dict[int, Smoothed] = field(default_factory=dict)
    moves: dict[str, PlannedPin] = field(default_factory=dict)
    waited: dict[str, int] = field(default_factory=dict)
    trials: dict[str, Trial] = field(default_factory=dict)
    planned: dict[str, Trial] = field(default_factory=dict)
    resting: dict[str, float] = field(default_factory=dict)
    trials_begun: int = 0
    trials_undone: int = 0
    mismatches: dict[str, int] = field(default_factory=dict)
    backed_off: dict[str, float] = field(default_factory=dict)

    def valid_at(self, monotonic_s: float) -> bool:
        """Return whether it is of this boot: after another one the monotonic clock starts anew."""
        return monotonic_s >= self.stamp_s


def key_of(domain: Domain, vcpu: Vcpu) -> str:
    """Return one vCPU of one run of a domain: its id changes when it starts again."""
    return f"{domain.uuid}/{domain.id}/{vcpu.id}"
