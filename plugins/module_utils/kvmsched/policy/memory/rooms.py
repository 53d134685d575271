# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rooms: memory that only some guests share, be it below a limit of a cgroup or in the cells they are bound to."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Collection, Mapping, Optional

from ...model import Balloon, Cell, Room, RoomRequest, Snapshot
from ...units import CpuSet, format_cpuset
from .cache import NOTHING_LENT, Lent
from .safeties import Safeties

# The last of a group's hard limit pays for survival only: beyond it a QEMU is killed, whatever it needed a page for.
# What its guests may still touch is more than that, or less where khugepaged filled what balloons took. It fills no
# more in 10 s: it scans 4096 pages in that time (kernel, admin-guide/mm/transhuge).
GROUP_KEPT_KIB = 16 * 1024


@dataclass(frozen=True)
class RoomState:
    """What is left in a room, in KiB, and may be negative.

    ``supply_kib`` is left once those in it touched all that they were promised. ``grants_kib`` is as much of it
    as may be given in this pass: of caches no more than are seen to come. ``free_kib`` is really left now, less what
    those in need there will touch for certain, and what comes back from the host's swap (decision 45).
    ``lent`` is how that stands. ``throttled``: its memory.high is what it is short of, for which nothing is taken.
    """

    supply_kib: int
    grants_kib: int
    free_kib: int
    lent: Lent = NOTHING_LENT
    throttled: bool = False


def rooms_of(balloon: Balloon) -> tuple[str, ...]:
    """Return the names of the rooms a domain is in: cgroups with a limit, and the cells it is bound to."""
    return (*balloon.rooms, *map(cells_name, _bound(balloon)))


def rooms_fed_by(balloon: Balloon) -> tuple[str, ...]:
    """Return those of its rooms where all that it gives comes free: of memnodes it is not known which."""
    return balloon.rooms if balloon.memnodes else rooms_of(balloon)


def _bound(balloon: Balloon) -> list[CpuSet]:
    """Return the sets of cells that it is bound to, each memnode's by itself."""
    if balloon.memnodes:
        return [memnode.cells for memnode in balloon.memnodes]
    return [balloon.cells] if balloon.cells is not None else []


def _there(balloon: Balloon, name: str, kib: int) -> int:
    """Return how much of *kib* of its memory may lie in one room: all of it, as far as its memnode there holds that.

    Which part of its memory a balloon took, and which it did not touch yet, nobody tells.
    """
    return min([kib, *(memnode.kib for memnode in balloon.memnodes if cells_name(memnode.cells) == name)])


@functools.lru_cache(maxsize=256)
def cells_name(cells: CpuSet) -> str:
    return f"cells {format_cpuset(cells)}"


def room_name(request: Optional[RoomRequest]) -> Optional[str]:
    """Return the name of the room that the newcomer's cells are; None where it may be anywhere."""
    return cells_name(request.cells) if request is not None and request.cells is not None else None


def rooms(
    snapshot: Snapshot,
    risks_kib: Mapping[str, int],
    lent: Mapping[str, Lent],
    safeties: Safeties,
    pressed: Collection[str] = (),
    more: Optional[CpuSet] = None,
) -> dict[str, RoomState]:
    """Return each room by its name; *risks_kib* is what each domain may still touch, by UUID.

    Those in *pressed* will do so for certain. Who could not be observed counts in all rooms that it may be in.
    *more* are cells that are asked for, though no domain may be bound to them.
    """
    balloons = {domain.uuid: domain.balloon for domain in snapshot.domains if domain.balloon is not None}
    known = {room.name: room for room in snapshot.host.rooms}
    cells = {cells_name(bound): bound for balloon in balloons.values() for bound in _bound(balloon)}
    if more is not None:
        cells[cells_name(more)] = more
    at_risk_kib = dict.fromkeys([*known, *cells], 0)
    certain_kib = dict(at_risk_kib)
    for uuid, balloon in balloons.items():
        for name in rooms_of(balloon):
            if name in at_risk_kib:
                risk_kib = _there(balloon, name, risks_kib[uuid])
                at_risk_kib[name] += risk_kib
                certain_kib[name] += risk_kib if uuid in pressed else 0
                certain_kib[name] += _there(balloon, name, balloon.swapped_kib or 0)
    for lost in snapshot.skips:
        for name in at_risk_kib if lost.rooms is None else lost.rooms:
            if name in at_risk_kib and lost.uuid not in balloons:
                at_risk_kib[name] += risks_kib.get(lost.uuid, 0)
    found = {name: _group(room, at_risk_kib[name], safeties) for name, room in known.items()}
    by_id = {cell.id: cell for cell in snapshot.host.topology.cells}
    for name, ids in cells.items():
        here = [by_id[number] for number in ids if number in by_id]
        found[name] = _cells(here, at_risk_kib[name], lent.get(name, NOTHING_LENT), safeties)
    states = {name: state for name, state in found.items() if state is not None}
    # Without that safety nothing is there but what nobody was promised.
    free_kib = {name: state.free_kib - certain_kib[name] if safeties.rooms else 0 for name, state in states.items()}
    return {name: replace(state, free_kib=free_kib[name]) for name, state in states.items()}


def _group(room: Room, at_risk_kib: int, safeties: Safeties) -> Optional[RoomState]:
    """Return the tighter of a group's limits; above memory.high it is only throttled, and nothing is kept."""
    kept_kib = max(at_risk_kib, GROUP_KEPT_KIB if safeties.edge else 0)
    hard = [(room.left_kib - kept_kib, room.left_kib, False)] if room.left_kib is not None else []
    high_kib = room.high_left_kib if safeties.high else None
    high = [(high_kib - at_risk_kib, high_kib, True)] if high_kib is not None else []
    if not hard + high:
        return None
    supply_kib, left_kib, throttled = min(hard + high)
    return RoomState(supply_kib, supply_kib, left_kib, throttled=throttled)


def _cells(cells: list[Cell], at_risk_kib: int, lent: Lent, safeties: Safeties) -> RoomState:
    """Return what cells have: free above their watermarks, and half of what the kernel could free (decision 50)."""
    free_kib = sum(max(0, (cell.free_kib or 0) - (cell.low_kib or 0)) for cell in cells)
    cache_kib = sum((cell.clean_cache_kib or 0) // 2 + (cell.slab_kib or 0) // 2 for cell in cells)
    if not safeties.caches:
        cache_kib = 0
    lent = lent.now(cache_kib, free_kib)
    plain_kib = free_kib - at_risk_kib
    supply_kib = plain_kib + cache_kib
    grants_kib = min(supply_kib, max(0, plain_kib) + lent.lendable_kib) if cache_kib else plain_kib
    return RoomState(supply_kib, grants_kib, free_kib + lent.lendable_kib, lent)
