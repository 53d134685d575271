# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is remembered between two memory passes."""

from __future__ import annotations

from dataclasses import replace

from kvmsched.model import Snapshot
from kvmsched.policy import memory
from kvmsched.policy.memory.history import MemoryHistory
from memory_worlds import (
    AUTO,
    HOUR_S,
    MIB,
    NOW_S,
    domain,
    snapshot,
    uuid_of,
)


def at(now: Snapshot, after_s: float) -> Snapshot:
    return replace(now, wall_s=NOW_S + after_s, monotonic_s=NOW_S + after_s)


def test_the_worst_rise_is_remembered_for_a_day_and_longer() -> None:
    history = MemoryHistory()
    for step, usable in enumerate((2500, 2500, 1500, 900, 2500)):
        guest = domain("web", 4096, unused=500, usable=usable, last_update_s=int(NOW_S) + 5 * step)
        history = memory.decide([at(snapshot([guest]), 5 * step)], AUTO, history)[1]
    assert history.domains[uuid_of("web")].worst_kib == 1600 * MIB, "over two readings"
    for day, worst in ((1.1, 1600), (2.3, 0)):
        after_s = int(day * 24 * HOUR_S)
        guest = domain("web", 4096, unused=500, usable=2500, last_update_s=int(NOW_S) + after_s)
        history = memory.decide([at(snapshot([guest]), after_s)], AUTO, history)[1]
        known = history.domains[uuid_of("web")]
        assert max(known.worst_kib, known.worst_old_kib) == worst * MIB
