# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests that starved and fell silent are fed in steps."""

from __future__ import annotations

from typing import Any

import pytest
from kvmsched.model import Snapshot
from kvmsched.policy import memory
from kvmsched.policy.memory.history import MemoryHistory
from kvmsched.policy.memory.safeties import Safeties
from memory_worlds import (
    AUTO,
    MIB,
    NOW_S,
    a_tick_ago,
    auto_plan,
    domain,
    moves,
    pair,
    record,
    skips,
    snapshot,
    uuid_of,
)


def mute(age_s: int, fed_times: int = 0, fed_s: float = 0.0, **more: Any) -> tuple[Snapshot, MemoryHistory]:
    guest = domain("db", 2048, 8192, unused=5, usable=60, last_update_s=int(NOW_S) - age_s, **more)
    return snapshot([guest]), a_tick_ago(pressed=True, fed_times=fed_times, fed_s=fed_s)


def test_who_starved_and_fell_silent_is_fed_in_steps() -> None:
    now, history = mute(60)
    plan, after = memory.decide(pair(now), AUTO, history)
    assert moves(plan) == {"db": 512} and "has not answered for 60 s, step 1 of 3" in plan.moves[0].reason
    assert memory.fund(plan, AUTO, now, now)[0].after_kib == 2560 * MIB
    assert after.domains[uuid_of("db")].fed_times == 1
    assert moves(auto_plan(now, history, Safeties(mute=False))) == {}


def test_a_silent_guest_gets_its_original_first() -> None:
    now, history = mute(60, record=record(3000, 3000, 2048))
    assert moves(auto_plan(now, history)) == {"db": 952}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"fed_times": 3}, "3 of 3 steps"),
        ({"fed_times": 1, "fed_s": NOW_S - 5}, "1 of 3 steps"),
        ({"rss": 1800}, "0 of 3 steps"),
    ],
)
def test_a_silent_guest_is_not_fed_for_ever_nor_for_nothing(changes: dict[str, Any], told: str) -> None:
    now, history = mute(60, **changes)
    plan = auto_plan(now, history)
    assert moves(plan) == {} and told in plan.unmet[0].reason and "has not answered for 60 s" in plan.unmet[0].reason


def test_a_step_of_the_future_holds_up_no_other() -> None:
    """The clock was set back two hours between the two; nor is it told that a guest answers in the future."""
    now, history = mute(-7200, fed_times=1, fed_s=NOW_S + 7000)
    plan = auto_plan(now, history)
    assert moves(plan) == {"db": 512} and "has not answered for 0 s, step 2 of 3" in plan.moves[0].reason
    now, history = mute(-7200, fed_times=3)
    assert "has not answered for 0 s, 3 of 3 steps" in auto_plan(now, history).unmet[0].reason


def test_who_was_content_when_it_fell_silent_gets_nothing() -> None:
    now, _history = mute(60)
    assert moves(auto_plan(now, a_tick_ago())) == {} and skips(auto_plan(now, a_tick_ago())) == {"db": "stale"}


def test_a_reset_ended_what_a_silent_guest_was_in_need_of() -> None:
    """It boots, with all of its maximum."""
    now, _history = mute(60)
    assert moves(auto_plan(now, a_tick_ago(pressed=True, booted_s=NOW_S - 50))) == {}
