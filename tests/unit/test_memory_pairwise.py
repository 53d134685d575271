# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Strategy ``pairwise``: what only that strategy does."""

from __future__ import annotations

from kvmsched.config import MemoryPolicy
from memory_worlds import (
    EDGE,
    STARVED,
    WASTEFUL,
    decide,
    domain,
    in_a_slice,
    moves,
)


def test_pairwise_gives_within_a_full_room_what_is_taken_there() -> None:
    now = in_a_slice(EDGE, domain("db", **STARVED), domain("web", **WASTEFUL))
    assert moves(decide(now, MemoryPolicy(strategy="pairwise"))) == {"web": -1000, "db": 1000}
