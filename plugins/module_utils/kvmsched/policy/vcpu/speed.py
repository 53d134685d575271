# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hybrid hosts: what a pCPU of a weak class does beside a strong one. Loads there are told in strong pCPUs."""

from __future__ import annotations

from typing import Mapping

from ...model import Topology
from ...units import CpuSet
from .demand import Demand
from .history import Smoothed

# The kernel's cpu_capacity of the strongest.
STRONGEST = 1024

# Where the kernel names the classes but no capacity: a rough figure for any of them, not the rank of one core.
_OF_KIND = {"cpu_atom": 0.6, "cpu_lowpower": 0.4}

# A vCPU that wants so much of a pCPU wants all of it: among hogs weight decides who moves, not the last tick.
ALL = 0.98


def speeds(topology: Topology) -> dict[int, float]:
    """Return what each pCPU does beside the strongest; empty where all are alike."""
    if not any(pcpu.kind for pcpu in topology.pcpus):
        return {}
    told = {p.id: p.capacity / STRONGEST if p.capacity else _OF_KIND.get(p.kind, 1.0) for p in topology.pcpus}
    return told if len(set(told.values())) > 1 else {}


def speed_on(place: CpuSet, speed: Mapping[int, float]) -> float:
    """Return the mean speed of *place*."""
    return sum(speed.get(pcpu, 1.0) for pcpu in place) / len(place) if speed and place else 1.0


def demand_at(demand: Demand, speed: float) -> Demand:
    """Return *demand*, seen at *speed*, in strong pCPUs. Who wants all of a weak pCPU may want all of a strong one."""
    if speed == 1.0:
        return demand
    run, wait = demand.run * speed, demand.wait * speed
    return demand._replace(run=run, wait=wait, low=_at(demand.low, speed), high=_at(demand.high, speed))


def load_at(load: Smoothed, speed: float) -> Smoothed:
    """Return a smoothed load in the same way."""
    return load if speed == 1.0 else Smoothed(_at(load.mean, speed), load.variance * speed * speed, load.hidden)


def _at(load: float, speed: float) -> float:
    return load * speed if load < ALL else 1.0
