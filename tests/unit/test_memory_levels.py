# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The level of a host, and that it is left only above its entry."""

from __future__ import annotations

from kvmsched.policy import memory
from kvmsched.policy.memory.levels import level_of
from memory_worlds import (
    RESERVE_1G,
    WASTEFUL,
    domain,
    pair,
    snapshot,
)


def test_levels_are_left_only_above_their_entry() -> None:
    reserve = 1000
    assert [level_of(kib, reserve, 0, "ok") for kib in (1000, 999, 499, 249)] == ["ok", "soft", "hard", "low"]
    assert level_of(1050, reserve, 0, "soft") == "soft"
    assert level_of(1100, reserve, 0, "soft") == "ok"
    assert level_of(520, reserve, 0, "hard") == "hard"
    assert level_of(520, reserve, 0, "soft") == "soft"
    assert level_of(9999, reserve, 11, "ok") == "low"
    assert level_of(9999, reserve, 7, "low") == "low"
    assert level_of(9999, reserve, 4, "low") == "ok"
    assert level_of(0, 0, 0, "ok") == "ok", "no reserve, no level"


def test_the_level_is_remembered() -> None:
    tight = snapshot([domain("web", **WASTEFUL)], available=1000)
    history = memory.decide(pair(tight), RESERVE_1G)[1]
    assert history.level == "soft"
    easier = snapshot([domain("web", **WASTEFUL)], available=1100)
    assert memory.decide(pair(easier), RESERVE_1G, history)[1].level == "soft"
