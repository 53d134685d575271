# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Leases: what somebody asks of this host for a while, such as room for a new guest. Each ends by itself.

A lease is a small file beside the host's lock. Who may act on this host may ask; daemon, modules and command read it
before each pass. It holds until its time is over or the host boots, whoever starts or stops meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass
from typing import Literal, Optional

from . import lock
from .model import RoomRequest, from_json, parse_json, to_json

# ``room``: keep memory for a guest that is to start. ``pause``: the daemon writes nothing.
Name = Literal["room", "pause"]
# How long room is held: long enough to start a guest by hand, short enough to be forgotten.
ROOM_S = 600.0
# Longer than any lease, and short enough to be read at once.
_LONGEST = 4096
# No lease lasts longer: what says so is damaged.
_LONGEST_S = 366 * 86400.0


@dataclass(frozen=True)
class Lease:
    """A lease of this boot, until ``until_s`` seconds after it: a clock that nobody sets."""

    boot_id: str
    until_s: float
    room: Optional[RoomRequest] = None

    @property
    def left_s(self) -> float:
        return self.until_s - boottime_s()


def write(uri: str, name: Name, seconds: float, room: Optional[RoomRequest] = None) -> Lease:
    """Ask for *seconds* from now and return the lease, which replaces an earlier one. OSError if not allowed."""
    lease = Lease(boot_id(), boottime_s() + seconds, room)
    lock.make_directory(uri)
    lock.write_atomically(_path(uri, name), json.dumps(to_json(lease)), 0o640)
    return lease


def read(uri: str, name: Name) -> Optional[Lease]:
    """Return the lease that holds now; None if there is none, or it is over, damaged or not for us to read."""
    try:
        descriptor = lock.open_regular(_path(uri, name), os.O_RDONLY)
        with os.fdopen(descriptor, "rb") as file:
            lease = from_json(Lease, parse_json(file.read(_LONGEST)))
    except (OSError, ValueError):
        return None
    return lease if lease.boot_id == boot_id() and 0 < lease.left_s <= _LONGEST_S else None


def room(uri: str) -> Optional[RoomRequest]:
    """Return the room that is to be kept on this host now."""
    lease = read(uri, "room")
    return lease.room if lease is not None else None


def end(uri: str, name: Name) -> bool:
    """End a lease; return whether there was one. OSError if not allowed."""
    held = read(uri, name) is not None
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_path(uri, name))
    return held


def stamp(uri: str) -> tuple[float, ...]:
    """Return what changes whenever somebody asks for a lease, or ends one. It costs two calls of stat."""
    return _modified_s(_path(uri, "room")), _modified_s(_path(uri, "pause"))


def _modified_s(path: str) -> float:
    try:
        return os.stat(path, follow_symlinks=False).st_mtime
    except OSError:
        return 0.0


def ends_at(lease: Lease) -> float:
    """Return when *lease* is over by the wall clock of now."""
    return time.time() + lease.left_s


def boottime_s() -> float:
    """Return the seconds since this host booted, time asleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """Return the kernel's name for this boot."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def _path(uri: str, name: Name) -> str:
    return os.path.join(lock.directory_for(uri), name)
