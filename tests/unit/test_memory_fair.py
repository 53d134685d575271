# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Strategy ``fair``: what only that strategy does."""

from __future__ import annotations

from kvmsched.policy import memory
from memory_worlds import (
    EAGER,
    MIB,
    NOW_S,
    RESERVE_1G,
    WASTEFUL,
    domain,
    moves,
    seen,
    skips,
    snapshot,
)


def test_a_domain_that_turned_often_rests() -> None:
    turned = seen(actual_kib=4096 * MIB, direction=1, moved_s=NOW_S - 20, reversals=2)
    now = snapshot([domain("db", **WASTEFUL)])
    assert skips(memory.decide([now], EAGER, turned)[0]) == {"db": "resting"}
    needed = snapshot([domain("db", **WASTEFUL)], available=1000)
    plan = memory.decide([needed], RESERVE_1G, turned)[0]
    assert moves(plan) == {"db": -126}, "need takes it all the same: the reserve and a tenth, less what is there"
