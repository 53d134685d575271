# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Idle memory is taken without need only from who can take it back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from kvmsched.config import MemoryPolicy, Rule
from kvmsched.policy import memory
from kvmsched.policy.memory.history import MemoryHistory
from memory_worlds import (
    AUTO,
    HOUR_S,
    MIB,
    NOW_S,
    STARVED_OF_8G,
    a_tick_ago,
    auto_plan,
    domain,
    moves,
    record,
    snapshot,
)


def idle(watched_s: int, **more: Any) -> MemoryHistory:
    """It left 3000M or more unused for so long, and is in the second window of an hour if that is more."""
    whole = {"idle_old_kib": 3000 * MIB} if watched_s >= HOUR_S else {}
    known = {
        "idle_kib": 3000 * MIB,
        "idle_s": NOW_S - (watched_s if watched_s < HOUR_S else 60),
        "actual_kib": 8192 * MIB,
    }
    return a_tick_ago("web", **{**known, **whole, **more})


OFFERED = replace(AUTO, rules=(Rule("web", {"reclaim": "idle"}),))


@pytest.mark.parametrize(
    ("policy", "balloon", "history", "taken"),
    [
        (OFFERED, {}, idle(HOUR_S), 3000 - 820),
        (OFFERED, {}, idle(HOUR_S - 60), 0),
        (OFFERED, {}, idle(HOUR_S, idle_kib=2500 * MIB), 2500 - 820),
        (OFFERED, {}, idle(HOUR_S, idle_old_kib=2400 * MIB), 2400 - 820),
        (OFFERED, {}, idle(HOUR_S, worst_kib=1500 * MIB), 1500),
        (OFFERED, {}, idle(HOUR_S, missed_s=NOW_S - 2 * HOUR_S), 0),
        (OFFERED, {}, idle(5 * HOUR_S, missed_s=NOW_S - 4 * HOUR_S), 3000 - 820),
        (AUTO, {}, idle(HOUR_S), 0),
        (AUTO, {"autodeflate": True}, idle(HOUR_S), 0),
        (AUTO, {"autodeflate": True}, idle(HOUR_S, returned_s=NOW_S - 9 * HOUR_S), 3000 - 820),
    ],
)
def test_idle_memory_is_taken_from_who_offers_it_or_can_take_it_back(
    policy: MemoryPolicy, balloon: dict[str, Any], history: MemoryHistory, taken: int
) -> None:
    now = snapshot([domain("web", 8192, unused=4000, usable=4100, **balloon)])
    plan = auto_plan(now, history, policy=policy)
    assert abs(moves(plan).get("web", 0) + taken) <= 1
    assert all(move.ordered_kib == move.before_kib - move.after_kib for move in plan.moves)
    assert moves(auto_plan(now, policy=policy)) == {}, "a pass without history takes nothing idle"


@pytest.mark.parametrize(("silent_s", "given"), [(900, {4500: 3181}), (901, {})])
def test_what_was_in_use_hours_ago_does_not_count_for_ever(silent_s: int, given: dict[int, int]) -> None:
    """The least of the last whole hour and since counts, less what it keeps, if it told of itself all the while."""
    history = a_tick_ago("web", idle_kib=10 * MIB, idle_s=NOW_S - HOUR_S, actual_kib=8192 * MIB)
    taken = {}
    for after_s in range(0, 2 * HOUR_S, silent_s):
        read_s = int(NOW_S) + after_s
        web = domain("web", 8192, unused=4000, usable=4100, last_update_s=read_s)
        plan, history = memory.decide([replace(snapshot([web]), wall_s=read_s + 1.0)], OFFERED, history)
        for change in moves(plan).values():
            taken[after_s] = -change
    assert taken == given


def test_what_idle_guests_may_call_back_is_no_comfort_of_others() -> None:
    lean = domain("web", 4096, 8192, unused=900, usable=900, record=record(8192, 8192, 4096))
    kept = lean.record
    assert kept is not None and kept.memory is not None
    lean = replace(lean, record=replace(kept, memory=replace(kept.memory, ordered_kib=4096 * MIB)))
    now = snapshot([domain("db", **STARVED_OF_8G), lean], available=1024 + 1000)
    assert moves(auto_plan(now)) == {"db": 54}, "survival, and no comfort"


def test_a_forged_record_calls_back_no_more_than_its_guest_lacks() -> None:
    def fed(ordered_kib: int, original: int = 4096) -> dict[str, int]:
        kept = record(original, original, 4096)
        assert kept.memory is not None
        forged = replace(kept, memory=replace(kept.memory, ordered_kib=ordered_kib))
        odd = domain("odd", 4096, 8192, unused=900, usable=900, record=forged)
        return moves(auto_plan(snapshot([domain("db", **STARVED_OF_8G), odd], available=1024 + 1000)))

    assert fed(10**14) == fed(0), "it lacks nothing"
    assert fed(10**14, 5000) == fed(904 * MIB, 5000)
