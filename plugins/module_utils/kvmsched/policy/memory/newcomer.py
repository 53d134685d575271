# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Room for a guest that is to start: kept for it, and made by the same safeties as everything else.

What serves nothing is taken first, then cache, down to what each donor must keep. What keeps guests alive, and what is
owed to who is in need, goes before the newcomer; anybody's comfort comes after it.
"""

from __future__ import annotations

from typing import Optional, Sequence

from ...config import MemoryPolicy
from ...model import RoomFigures, RoomRequest
from ...units import format_cpuset, mib
from .sharing import Draft, granted_in, taken_in
from .supply import HostState


def figures_of(draft: Draft, host: HostState, policy: MemoryPolicy) -> Optional[RoomFigures]:
    """Return how much of the room is there, and how much lacks once *draft* was carried out."""
    request, kib = policy.room, host.newcomer_kib
    if request is None or host.supply_kib is None:
        return None
    granted_kib = sum(grant.kib for grant in draft.grants)
    taken_kib = sum(take.kib for take in draft.takes)
    there = [host.supply_kib]
    after = [host.supply_kib + taken_kib - granted_kib]
    name = host.newcomer_room
    if name is not None and name in host.rooms:
        there.append(host.rooms[name].supply_kib)
        after.append(host.rooms[name].supply_kib + taken_in(name, draft.takes) - granted_in(name, draft.grants))
    lacks_kib = max(0, kib - min(after))
    why = _why(lacks_kib, taken_kib, request, after) if lacks_kib else ""
    return RoomFigures(kib, request.cells, max(0, min(kib, *there)), lacks_kib, why, request.since_s)


def _why(lacks_kib: int, taken_kib: int, request: RoomRequest, after: Sequence[int]) -> str:
    where = f"cells {format_cpuset(request.cells)} have" if request.cells and after[-1] < after[0] else "the host has"
    if taken_kib:
        return f"{where} {mib(lacks_kib)} too little, {mib(taken_kib)} are on their way, a later pass goes on"
    return f"{where} {mib(lacks_kib)} too little, and no guest can do without more in this pass"
