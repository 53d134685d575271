# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was asked of a balloon and whether it follows: stuck, lost, unheard and late requests."""

from __future__ import annotations

from dataclasses import replace
from typing import Optional

import pytest
from kvmsched import baseline
from kvmsched.config import MemoryPolicy
from kvmsched.model import (
    BalloonMove,
    MemoryPlan,
)
from kvmsched.policy import memory
from kvmsched.policy.memory.history import MemoryHistory
from kvmsched.policy.memory.safeties import Safeties
from memory_worlds import (
    EAGER,
    HOST_UUID,
    MIB,
    NOW_S,
    RESERVE_1G,
    STARVED,
    WASTEFUL,
    decide,
    domain,
    moves,
    pair,
    record,
    seen,
    skips,
    snapshot,
)


def stuck_at(age_s: int, times: int, asked_s: Optional[int] = None) -> MemoryPlan:
    asked = domain("db", record=record(4096, 4096, 3096, age_s), **WASTEFUL)
    history = seen(actual_kib=4096 * MIB, stuck_times=times, stuck_asked_s=asked_s or int(NOW_S) - age_s)
    return memory.decide(pair(snapshot([asked])), EAGER, history)[0]


@pytest.mark.parametrize(("times", "pause_s"), [(1, 120), (2, 240), (3, 480), (9, 1800)])
def test_a_stuck_balloon_is_skipped_twice_as_long_each_time(times: int, pause_s: int) -> None:
    assert skips(stuck_at(pause_s - 1, times)) == {"db": "stuck"}
    assert moves(stuck_at(pause_s, times)) == {"db": -1000}, "asked anew"


def test_a_stuck_take_is_called_back_once_the_guest_needs_what_it_would_lose() -> None:
    """It is still asked for: a driver that comes back would follow it below L."""
    asked = record(4096, 4096, 3096, age_s=60)
    for usable, told in ((1500, {}), (1000, {"db": 188})):
        now = snapshot([domain("db", 4096, 8192, unused=50, usable=usable, record=asked)])
        plan = memory.decide(pair(now), EAGER, seen(actual_kib=4096 * MIB))[0]
        assert skips(plan) == {"db": "stuck"} and moves(plan) == told


def test_ignored_requests_are_counted_and_forgotten() -> None:
    history: Optional[MemoryHistory] = None
    asked = domain("db", record=record(4096, 4096, 3096, 60), **WASTEFUL)
    for _turn in range(2):
        history = memory.decide(pair(snapshot([asked])), EAGER, history)[1]
    assert history is not None and history.domains[asked.uuid].stuck_times == 1, "one request, however often seen"
    followed = domain("db", record=record(4096, 4096, 3096, 6), **{**WASTEFUL, "actual": 3096})
    now = snapshot([replace(followed, balloon=replace(followed.balloon, last_update_s=int(NOW_S)))])
    assert memory.decide(pair(now), EAGER, history)[1].domains[asked.uuid].stuck_times == 0


def test_a_give_that_was_lost_is_given_again() -> None:
    """It costs no supply, for it is promised: should its pass have died, it never was. A release asks at once."""
    promised = domain("db", record=record(3072, 1024, 3072, 1), **STARVED)
    now = snapshot([promised], available=1024)
    plan = memory.release(pair(now), RESERVE_1G)[0]
    assert moves(plan) == {"db": 1024} and plan.not_restored == ()
    assert [move.after_kib for move in memory.fund(plan, RESERVE_1G, now, now)] == [3072 * MIB]


@pytest.mark.parametrize("age_s", [120, 3600, -3600])
def test_a_give_of_which_nothing_was_heard_is_asked_for_again_and_not_taken_from(age_s: int) -> None:
    """A driver that has it from its start says nothing: by the size from before it would use 1548M less than it does.

    So a page less is asked for, which it answers. A starved one is asked the same, and is promised no more.
    """
    silent = domain("db", record=record(4096, 1024, 3596, age_s), **{**WASTEFUL, "actual": 2048, "maximum": 4096})
    assert moves(decide(snapshot([replace(silent, record=None)]), EAGER)) == {}, "more usable than it has"
    silent = replace(silent, balloon=replace(silent.balloon, usable_kib=2000 * MIB))
    assert moves(decide(snapshot([replace(silent, record=None)]), EAGER))["db"] < 0
    assert moves(memory.release(pair(snapshot([silent])), EAGER)[0]) == {"db": 2048}
    (reminder,) = decide(snapshot([silent]), EAGER).moves
    assert isinstance(reminder, BalloonMove) and reminder.after_kib == 3596 * MIB - 4
    assert "asked again: 3596M was promised" in reminder.reason
    starved = domain("db", record=record(4096, 1024, 3072, age_s), **STARVED)
    assert moves(decide(snapshot([starved]), MemoryPolicy())) == {"db": 1024}


@pytest.mark.parametrize(("age_s", "asked"), [(5, {}), (10, {"db": 1024})])
def test_a_give_that_is_there_by_the_guests_own_word_is_asked_for_sooner(age_s: int, asked: dict[str, int]) -> None:
    """Not at once: libvirt hears of a size a second late."""
    guest = domain("db", 2048, 4096, unused=2400, usable=2500, record=record(4096, 1024, 3072, age_s))
    assert moves(decide(snapshot([guest]), EAGER)) == asked


@pytest.mark.parametrize("usable", [1500, 2500])
def test_a_driver_that_never_answers_is_asked_less_and_less_often(usable: int) -> None:
    """Though the guest's own statistics go on, and say that it starves, or has more than its size."""
    kept, history, asked_s = record(4096, 2048, 4096, 0), MemoryHistory(), []
    for second in range(0, 3600, 5):
        guest = domain("db", 2048, 4096, usable=usable, record=kept, last_update_s=int(NOW_S) + second)
        now = replace(snapshot([guest]), wall_s=NOW_S + second, monotonic_s=NOW_S + second)
        plan, history = memory.decide([now], EAGER, history)
        for move in plan.moves:
            assert isinstance(move, BalloonMove)
            kept = baseline.intend(kept, guest, move, HOST_UUID, int(NOW_S) + second)
            asked_s.append(second)
    assert 3 <= len(asked_s) <= 6 and asked_s == sorted(asked_s), asked_s
    pauses_s = [later - sooner for sooner, later in zip(asked_s, asked_s[1:])]
    assert pauses_s == sorted(pauses_s), "each pause longer than the one before"


def test_a_take_that_stopped_half_way_is_made_anew() -> None:
    guest = domain("db", 7900, 8192, unused=5400, usable=5500, record=record(8192, 8192, 6000, 36000))
    assert moves(decide(snapshot([guest]), EAGER))["db"] < 0


@pytest.mark.parametrize("age_s", [5, 11, 119])
@pytest.mark.parametrize("strategy", ["fair", "pairwise"])
def test_who_did_not_answer_the_last_promise_gets_no_new_one(age_s: int, strategy: str) -> None:
    starved = domain("db", 2048, 4096, unused=20, usable=96, record=record(1900, 1900, 3072, age_s))
    now = pair(snapshot([starved]))
    planned = moves(memory.decide(now, MemoryPolicy(strategy=strategy))[0])
    assert planned.get("db", 0) <= 1024
    more = moves(memory.decide(now, MemoryPolicy(strategy=strategy), safeties=Safeties(answers=False))[0])
    assert (more.get("db", 0) > 1024) is (age_s > 10 or strategy == "pairwise")


def test_a_take_that_counts_as_gone_is_called_back_when_it_would_lead_too_far() -> None:
    """Its QEMU keeps the target: a driver that comes back goes there."""
    guest = domain("db", 4096, 8192, unused=250, usable=600, record=record(8192, 4096, 2048, 3600))
    assert [str(move) for move in decide(snapshot([guest]), EAGER).moves] == ["db: 2048M -> 3684M"]
    restored = replace(guest, id=2)
    assert [str(move) for move in decide(snapshot([restored]), EAGER).moves] == ["db: 2048M -> 3684M"]
