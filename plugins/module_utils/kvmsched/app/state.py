# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the daemon remembers from pass to pass, kept over a restart: a small file in its state directory."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from typing import Optional

from ..model import from_json, parse_json, to_json
from ..policy.memory import MemoryHistory
from ..policy.vcpu import VcpuHistory
from .status import write_atomically

FORMAT = 1
# Demand that was seen so long ago says little of now, and no domain that did not move since has a direction.
OLDEST_S = 600


@dataclass(frozen=True)
class State:
    """Both histories, in which boot they were saved (monotonic times start anew with it), and how long after it."""

    boot_id: str
    saved_s: float
    memory: MemoryHistory
    vcpu: VcpuHistory
    format: int = FORMAT


def directory() -> str:
    """systemd's StateDirectory=, or where it would be."""
    return (os.environ.get("STATE_DIRECTORY") or "/var/lib/kvmsched").split(":")[0]


def save(memory: MemoryHistory, vcpu: VcpuHistory) -> None:
    """Keep both; OSError if that can't be."""
    os.makedirs(directory(), mode=0o700, exist_ok=True)
    state = State(_boot_id(), _now_s(), memory, vcpu)
    write_atomically(_path(), json.dumps(to_json(state)), 0o600)


def load() -> Optional[State]:
    """What was kept; None if nothing was, ValueError with one line why it is of no use."""
    try:
        with open(_path(), "rb") as file:
            data = parse_json(file.read())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"{_path()} can't be read: {error.strerror}") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(f"{_path()} is of another format than {FORMAT}")
    state = from_json(State, data)
    age_s = _now_s() - state.saved_s
    if state.boot_id != _boot_id() or age_s < 0:
        raise ValueError("the host was booted since")
    if age_s > OLDEST_S:
        raise ValueError(f"it is {age_s:.0f} s old, more than {OLDEST_S} s")
    return state


def _path() -> str:
    return os.path.join(directory(), "state.json")


def _now_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
