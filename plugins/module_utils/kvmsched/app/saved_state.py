# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the daemon remembers from pass to pass, kept over a restart: a small file in its state directory."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from typing import Any, Iterable, Optional

from .. import lock
from ..leases import boot_id, boottime_s
from ..model import from_json, parse_json, to_json
from ..policy.memory import MemoryHistory
from ..policy.vcpu import VcpuHistory
from ..units import one_line, shown

FORMAT = 1
# Demand that was seen so long ago says little of now, and no domain that did not move since has a direction.
OLDEST_S = 600
# It has about 1 KiB for each vCPU.
_LONGEST = 256 * 1024 * 1024
# What may be below zero: the sense of a move, and what changed.
_SIGNED = ("direction", "grew_kib", "own_kib")


@dataclass(frozen=True)
class SavedState:
    """Both histories, in which boot they were saved (monotonic times start anew with it), and how long after it."""

    boot_id: str
    saved_s: float
    memory: MemoryHistory
    vcpu: VcpuHistory
    format: int = FORMAT


def directory() -> str:
    """Return systemd's StateDirectory=, or where it would be."""
    return (os.environ.get("STATE_DIRECTORY") or "/var/lib/kvmsched").split(":")[0]


def save(memory: MemoryHistory, vcpu: VcpuHistory) -> None:
    """Keep both; OSError if that can't be."""
    os.makedirs(directory(), mode=0o700, exist_ok=True)
    state = SavedState(boot_id(), boottime_s(), memory, vcpu)
    lock.write_atomically(_path(), json.dumps(to_json(state)), 0o600)


def load() -> Optional[SavedState]:
    """Return what was kept; None if nothing was, ValueError with one line why it is of no use."""
    try:
        with os.fdopen(lock.open_regular(_path(), os.O_RDONLY), "rb") as file:
            text = file.read(_LONGEST + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"{_path()} can't be read: {error.strerror}") from None
    try:
        state = _decoded(text)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{_path()}: {one_line(error)}") from None
    age_s = boottime_s() - state.saved_s
    if state.boot_id != boot_id() or age_s < 0:
        raise ValueError("the host was booted since")
    if age_s > OLDEST_S:
        raise ValueError(f"it is {age_s:.0f} s old, more than {OLDEST_S} s")
    return state


def _decoded(text: bytes) -> SavedState:
    """Return the state that *text* is, as a whole: whoever damaged one number of it may have damaged others."""
    if len(text) > _LONGEST:
        raise ValueError(f"it has more than {_LONGEST} bytes")
    data = parse_json(text)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(f"it is of another format than {FORMAT}")
    for name, value in _numbers("state", data):
        if not math.isfinite(value) or abs(value) >= 2.0**63 or (value < 0 and not name.endswith(_SIGNED)):
            raise ValueError(f"{name}: got {shown(value)}, which nothing is counted in")
    return from_json(SavedState, data)


def _numbers(name: str, value: Any) -> Iterable[tuple[str, float]]:
    """Yield each number in *value*, and where it stands."""
    if isinstance(value, (int, float)):
        yield name, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _numbers(f"{name}.{key}", item)


def _path() -> str:
    return os.path.join(directory(), "state.json")
