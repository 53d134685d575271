# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the vCPU policy remembers from pass to pass: plain data, handed in and handed back."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Optional

from ..model import Domain, Vcpu
from ..units import CpuSet


@dataclass(frozen=True)
class Smoothed:
    """A load over time: exponentially weighted mean and variance, as fractions of one pCPU."""

    mean: float
    variance: float = 0.0

    @property
    def high(self) -> float:
        """Mean and one standard deviation: what it usually stays below."""
        return min(1.0, self.mean + math.sqrt(self.variance))

    def then(self, load: float, weight: float) -> Smoothed:
        """The same after one more *load*, which counts *weight* (0 to 1) of the whole.

        West (1979), "Updating mean and variance estimates", with exponential weights.
        """
        error = load - self.mean
        return Smoothed(self.mean + weight * error, (1 - weight) * (self.variance + weight * error * error))


@dataclass(frozen=True)
class PastMove:
    """A pin that was planned: it counts only while the vCPU is pinned to ``after``. ``number`` is that of the pass."""

    before: CpuSet
    after: CpuSet
    when_s: float
    number: int


@dataclass(frozen=True)
class VcpuHistory:
    """All that is remembered between two passes; times are the snapshots' monotonic seconds.

    ``loads`` and ``moves`` go by vCPU (see key_of), ``foreign`` by pCPU, ``mismatches`` (passes in a
    row that found a domain's affinity changed past libvirt) and ``backed_off`` (until when it is
    left alone for that) by domain UUID. ``held`` counts the passes in a row that found a reason to
    act and waited; ``settled_average`` is the average load per pCPU when last there was nothing to do.
    """

    number: int = 0
    stamp_s: float = 0.0
    settled_average: Optional[float] = None
    held: int = 0
    loads: dict[str, Smoothed] = field(default_factory=dict)
    foreign: dict[int, Smoothed] = field(default_factory=dict)
    moves: dict[str, PastMove] = field(default_factory=dict)
    mismatches: dict[str, int] = field(default_factory=dict)
    backed_off: dict[str, float] = field(default_factory=dict)

    def valid_at(self, monotonic_s: float) -> bool:
        """False after the host was booted again: its monotonic clock starts anew."""
        return monotonic_s >= self.stamp_s


def key_of(domain: Domain, vcpu: Vcpu) -> str:
    """One vCPU of one run of a domain: its id changes when it starts again."""
    return f"{domain.uuid}/{domain.id}/{vcpu.id}"
