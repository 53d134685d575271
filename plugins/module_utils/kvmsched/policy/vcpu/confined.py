# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests that lack pCPUs while others idle, because their own definition forbids these: no plan can help them."""

from __future__ import annotations

from typing import Optional, Sequence

from ...units import CpuSet, first_of, format_cpuset
from .allowed import Affinity
from .idle import IDLE
from .problem import NOWHERE
from .world import World

# A pCPU that is wanted by more than the first share is full, by less than the second it is idle.
_FULL, _IDLE = 1.05, 0.50


def confined(world: World, where: Sequence[int], affinity: Affinity) -> Optional[str]:
    """Return one line on the guests whose vCPUs are on full pCPUs while all idle ones are forbidden to them."""
    levels = [total / size for total, size in zip(world.totals(where), world.problem.capacity)]
    full = _pcpus(world, [b for b, level in enumerate(levels) if level > _FULL])
    idle = _pcpus(world, [b for b, level in enumerate(levels) if level < _IDLE])
    if not full or not idle:
        return None
    names: dict[str, None] = {}
    places: CpuSet = frozenset()
    for seat, bin_, load in zip(world.seats, where, world.problem.load):
        here = seat.now if bin_ == NOWHERE else world.bins[bin_]
        if load > IDLE and here <= full and affinity.own(seat.domain, seat.vcpu).isdisjoint(idle):
            names[seat.domain.name] = None
            places |= here
    if not names:
        return None
    count = f"{len(idle)} idle pCPU{'s are' if len(idle) > 1 else ' is'}"
    waits = f"{first_of(list(names))}: wait on pCPU {format_cpuset(places)}"
    return f"{waits}, and {count} forbidden to them by their definition: widen that"


def _pcpus(world: World, bins: Sequence[int]) -> CpuSet:
    return frozenset().union(*(world.bins[b] for b in bins))
