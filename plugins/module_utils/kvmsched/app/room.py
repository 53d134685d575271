# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``kvmsched room``: ask for room for a guest that is to start, and see the daemon or a pass make it."""

from __future__ import annotations

import time
from typing import Callable, Optional

from .. import leases, lock, passes, report
from ..config import MemoryPolicy
from ..leases import Lease
from ..model import RoomFigures, RoomRequest
from ..units import CpuSet
from . import status

_POLL_S = 1.0


def ask(uri: str, kib: int, cells: Optional[CpuSet]) -> Lease:
    """Ask for room from now on. OSError if not allowed."""
    return leases.write(uri, "room", leases.ROOM_S, RoomRequest(kib, cells, time.time()))


def told(uri: str, asked: Lease) -> Optional[RoomFigures]:
    """Return what the daemon's last pass came to; None if there was none since it was *asked*."""
    try:
        said = status.read(uri)
    except (OSError, ValueError):
        return None
    found = said.room if said else None
    return found if found and asked.room and found.since_s == asked.room.since_s else None


def wait_for_daemon(uri: str, asked: Lease) -> Optional[RoomFigures]:
    """Wait until the daemon has made the room, it acts no more, the lease is over, or other room was asked for."""
    while (found := told(uri, asked)) is None or found.lacks_kib:
        if leases.read(uri, "room") != asked or lock.acting_daemon(uri) is None:
            break
        time.sleep(_POLL_S)
    return found


def make(how: passes.Conduct, policy: MemoryPolicy, wait: bool, say: Callable[[str], None]) -> Optional[RoomFigures]:
    """Make a pass; with *wait*, further ones until the room is there or none brings it nearer. Raises PassError."""
    before_kib = None
    while True:
        result = passes.run_memory(how, policy)
        say(f"memory: {report.summary(result, check=False)}")
        found = result.plan.room
        if found is None or not found.lacks_kib or not wait or found.lacks_kib == before_kib:
            return found
        before_kib = found.lacks_kib
