# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Loads over time: what this pass learns from its window, and what it plans with."""

from __future__ import annotations

from typing import Mapping

from ...model import Snapshot
from .demand import Demand, Loads, contended
from .history import Smoothed, VcpuHistory, key_of

# Foreign load up to this share of a pCPU is not proven to last by a single window: the pass itself, libvirt and
# whatever else wakes up for a moment make it. What two windows in a row have seen counts in full.
PASSING_FOREIGN = 0.30

# Waits are believed once those of the windows before count so much of the average: a queue that chance made is gone.
LASTING_WAIT = 0.3

# A vCPU that ran so much more than is known of it, or can't have wanted as much, has changed.
REFUTING = 0.20

# How fast foreign load is believed to be there to stay.
FOREIGN_HALF_LIFE_S = 60.0


def remembered_loads(now: Snapshot, loads: Loads, past: VcpuHistory, half_life_s: float) -> dict[str, Smoothed]:
    """Return the smoothed load of each vCPU whose load is known, the newest window included."""
    weight = _weight(now, past, half_life_s)
    found = {}
    for domain in now.domains:
        for vcpu in domain.vcpus:
            demand = loads.demand.get((domain.uuid, vcpu.id))
            if demand is not None:
                key = key_of(domain, vcpu)
                known = past.loads.get(key)
                found[key] = (
                    known.then(credible(demand, known), weight, contended(demand), _refutes(demand, known))
                    if known
                    else Smoothed(demand.low)
                )
    return found


def remembered_foreign(now: Snapshot, loads: Loads, past: VcpuHistory) -> dict[int, Smoothed]:
    """Return the smoothed foreign load of each pCPU, the newest window included."""
    weight = _weight(now, past, FOREIGN_HALF_LIFE_S)
    known = past.foreign
    return {
        pcpu: known[pcpu].then(load, weight) if pcpu in known else Smoothed(load)
        for pcpu, load in loads.foreign.items()
    }


def lasting_foreign(loads: Loads, past: VcpuHistory, passing: float = PASSING_FOREIGN) -> Mapping[int, float]:
    """Return the foreign load of each pCPU that is there to stay: the kernel can move the rest away by itself."""
    if loads.settled:
        return loads.foreign
    known = past.foreign
    return {
        pcpu: min(load, known[pcpu].mean) if pcpu in known else max(0.0, load - passing)
        for pcpu, load in loads.foreign.items()
    }


def credible(demand: Demand, known: Smoothed) -> float:
    """Return the load to learn from a window: where contention hid it, what was known before, if that is possible.

    If it is not, a few windows prove only what ran: a short queue waits as long as a hog does.
    """
    if not contended(demand):
        return demand.low
    if demand.run <= known.mean <= demand.high and not known.refuted:
        return known.mean
    return demand.low if known.hidden >= LASTING_WAIT else demand.run


def _refutes(demand: Demand, known: Smoothed) -> bool:
    """Return whether a window in which contention hides the load shows that it is not what was *known*."""
    return not demand.run - REFUTING <= known.mean <= demand.high + REFUTING


def _weight(now: Snapshot, past: VcpuHistory, half_life_s: float) -> float:
    """Return what the newest window counts in an average with *half_life_s*; all, if nothing is to be remembered."""
    elapsed_s = now.monotonic_s - past.stamp_s
    return 1 - 0.5 ** (elapsed_s / half_life_s) if half_life_s > 0 else 1.0
