# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How wide a pin may become: what others pinned is widened only if a rule says so (decision 54a)."""

from __future__ import annotations

from collections import Counter
from typing import Collection, Mapping, Sequence

from ...units import CpuSet
from .allowed import Seat
from .problem import kappa
from .proposal import moved
from .scene import Scene


def new_pins(scene: Scene, where: Sequence[int]) -> dict[int, CpuSet]:
    """Return the pin of each item that moves: the group where it goes, or as many pCPUs of that as it may have."""
    world = scene.world
    groups = {item: world.bins[where[item]] & world.seats[item].allowed for item in moved(world, where)}
    narrow = {item for item, group in groups.items() if not may_have(scene, world.seats[item], group)}
    return {**groups, **_parts(scene, groups, narrow)} if narrow else groups


def may_have(scene: Scene, seat: Seat, group: CpuSet) -> bool:
    """Return whether *seat* may be pinned to all of *group*: its original is as wide, or its rule says to widen."""
    return len(group) <= _width(scene, seat) or scene.policy.settings_for(seat.domain).widen


def _width(scene: Scene, seat: Seat) -> int:
    record = seat.domain.record.pin("vcpu", seat.vcpu.id) if seat.domain.record else None
    if record is None or record.set_by_person(seat.vcpu.pin):
        return len(seat.vcpu.pin)
    return len(scene.masks.original(seat.domain, record))


def _parts(scene: Scene, groups: Mapping[int, CpuSet], narrow: Collection[int]) -> dict[int, CpuSet]:
    """Return the least loaded pCPUs of its group for each of the *narrow* items, the heaviest first."""
    world, load = scene.world, Counter(scene.loads.foreign)
    siblings = {pcpu.id: pcpu.siblings for pcpu in scene.now.host.topology.pcpus}

    def felt(pcpu: int) -> float:
        beside = sum(load[sibling] for sibling in siblings[pcpu] if sibling != pcpu)
        return load[pcpu] + kappa(len(siblings[pcpu])) * beside

    def lay(place: CpuSet, want: float) -> None:
        load.update({pcpu: want / len(place) for pcpu in place})

    item_of = {(world.seats[item].domain.uuid, world.seats[item].vcpu.id): item for item in groups}
    for key, demand in scene.loads.demand.items():
        item = item_of.get(key)
        if item not in narrow:
            lay(demand.place if item is None else groups[item], demand.low)
    parts = {}
    for item in sorted(narrow, key=lambda item: (-world.problem.load[item], item)):
        best = sorted(groups[item], key=lambda pcpu: (felt(pcpu), pcpu))
        parts[item] = frozenset(best[: _width(scene, world.seats[item])])
        lay(parts[item], world.problem.load[item])
    return parts
