# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`state: released`: each guest back to the memory and the statistics period of its record."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from kvmsched import baseline
from kvmsched.baseline import COPY
from kvmsched.config import MemoryPolicy, MemorySettings
from kvmsched.model import (
    BalloonMove,
    Domain,
    MemoryPlan,
    PeriodMove,
    PeriodRecord,
    Record,
    Skip,
)
from kvmsched.policy import memory
from kvmsched.units import Amount
from memory_worlds import (
    EAGER,
    HOST_UUID,
    MIB,
    NOW_S,
    RESERVE_1G,
    STARVED,
    TICK_S,
    WASTEFUL,
    a_tick_before,
    decide,
    domain,
    moves,
    pair,
    record,
    snapshot,
    uuid_of,
)


def test_what_was_given_to_a_guest_whose_memory_the_host_keeps_can_be_released() -> None:
    for size in (3000, 4096):
        guest = domain("db", size, 4096, inhibitors=("VFIO",), usable=size - 1000, record=record(2048, 2048, size))
        plan = memory.release(pair(snapshot([guest])), EAGER)[0]
        assert moves(plan) == {"db": 2048 - size} and plan.not_restored == ()


def with_period(current_s: int, original_s: int, intended_s: int, **more: Any) -> Domain:
    part = PeriodRecord(original_s, original_s, intended_s, int(NOW_S) - 60)
    old = more.pop("record", None) or Record(HOST_UUID, 1)
    return domain("db", period_s=current_s, record=replace(old, period=part), **{**WASTEFUL, **more})


def periods(plan: MemoryPlan) -> dict[str, int]:
    return {move.domain: move.after_s for move in plan.moves if isinstance(move, PeriodMove)}


def test_release_puts_the_period_back_last() -> None:
    now = snapshot([with_period(TICK_S, 0, TICK_S, record=record(5120, 5120, 4096), maximum=8192)])
    plan = memory.release(pair(now), EAGER)[0]
    assert moves(plan) == {"db": 1024} and isinstance(plan.moves[-1], PeriodMove)
    assert periods(plan) == {"db": 0} and plan.not_restored == ()


def test_release_keeps_the_period_while_memory_is_away() -> None:
    away = with_period(TICK_S, 0, TICK_S, record=record(5120, 5120, 4096), maximum=8192)
    plan = memory.release(pair(snapshot([away], available=1500)), RESERVE_1G)[0]
    assert periods(plan) == {} and "missing" in str(plan.not_restored[0])


def test_a_period_that_somebody_changed_is_left() -> None:
    assert periods(memory.release(pair(snapshot([with_period(7, 0, 5)])), EAGER)[0]) == {}
    plan = decide(snapshot([with_period(0, 0, 5)]), EAGER)
    assert periods(plan) == {} and "set to 0 by somebody" in plan.skips[0].reason


def test_release_of_what_cannot_be_judged_only_grows() -> None:
    """Settings that contradict each other say nothing of how far a domain may shrink."""
    odd = MemoryPolicy(reclaim="eager", settings=MemorySettings(starvation=Amount(kib=400 * MIB)))
    down = domain("down", record=record(2048, 2048, 4096), **WASTEFUL)
    up = domain("up", 1024, 4096, unused=0, usable=0, record=record(4096, 4096, 1024))
    plan = memory.release(pair(snapshot([down, up])), odd)[0]
    assert moves(plan) == {"up": 3072}
    assert [line.partition(":")[0] for line in map(str, plan.not_restored)] == ["down"]


def test_release_calls_back_what_was_sent_away_and_never_went() -> None:
    """However long ago: as long as the request may be carried out, a balloon that is home does not stay there."""
    for age_s in (1, 100000):
        home = domain("db", record=record(4096, 4096, 3096, age_s), **WASTEFUL)
        plan = memory.release(pair(snapshot([home])), EAGER)[0]
        assert [str(move) for move in plan.moves] == ["db: 3096M -> 4096M"] and plan.not_restored == ()


def test_a_limit_is_compared_with_what_a_guest_may_have_already() -> None:
    """QEMU's overhead is what it holds beyond that; by an old size it would be most of the limit."""
    guest = domain("db", 2048, 4096, usable=596, rss=4160, limit=5000, record=record(4096, 2048, 4096, 60))
    plan = memory.release(pair(snapshot([guest])), EAGER)[0]
    assert moves(plan) == {"db": 2048} and plan.not_restored == ()


@pytest.mark.parametrize(
    ("age_s", "state"),
    [(60, {"usable": 700}), (3600, {"usable": 700}), (60, {"last_update_s": 1}), (3600, {"last_update_s": 1})],
)
@pytest.mark.parametrize("actual", [2048, 1500])
def test_a_release_does_not_call_back_what_a_guest_may_have_and_need(
    actual: int, age_s: int, state: dict[str, Any]
) -> None:
    guest = domain("db", actual, 4096, record=record(2048, actual, 4096, age_s), **state)
    plan = memory.release(pair(snapshot([guest])), EAGER)[0]
    (move,) = plan.moves
    assert (
        isinstance(move, BalloonMove)
        and move.after_kib >= 4096 * MIB - 4
        and "may need that" in str(plan.not_restored[0])
    )
    driverless = replace(guest, balloon=replace(guest.balloon, last_update_s=0))
    (move,) = memory.release(pair(snapshot([driverless])), EAGER)[0].moves
    assert isinstance(move, BalloonMove) and move.after_kib == 2048 * MIB


def test_a_release_ends_at_the_original_to_the_page() -> None:
    """Asked for in vain, then for a page less, then for all of it."""
    twice = record(3072, 2048, 3072, 1)
    assert twice.memory
    twice = replace(twice, memory=replace(twice.memory, reach_kib=(2048 * MIB, 3072 * MIB)))
    steps = [(twice, 2048 * MIB, 3072 * MIB - 4), (record(3072, 2048, 3072, 3600), 2048 * MIB, 3072 * MIB - 4)]
    less = record(3072, 2048, 3072, 1)
    assert less.memory
    less = replace(less, memory=replace(less.memory, intended_kib=3072 * MIB - 4))
    steps.append((less, 3072 * MIB - 4, 3072 * MIB))
    for kept, actual_kib, target_kib in steps:
        guest = domain("db", record=kept, **STARVED)
        guest = replace(guest, balloon=replace(guest.balloon, actual_kib=actual_kib, usable_kib=500 * MIB))
        (move,) = memory.release(pair(snapshot([guest])), EAGER)[0].moves
        assert isinstance(move, BalloonMove) and move.after_kib == target_kib
        left = baseline.without_restored(kept, guest, memory=True, pins=False)
        assert left is not None, "until it was sent there"


@pytest.mark.parametrize(
    "silence", [{"period_s": 0}, {"last_update_s": 0}, {"last_update_s": 1}, {"inhibitors": ("VFIO",)}]
)
def test_a_give_is_given_again_where_no_statistics_flow(silence: dict[str, Any]) -> None:
    guest = domain("db", 2048, 4096, record=record(3072, 1024, 3072, 3600), **silence)
    assert moves(memory.release(pair(snapshot([guest])), RESERVE_1G)[0]) == {"db": 1024}


@pytest.mark.parametrize("age_s", [1, 60])
def test_a_take_that_may_never_have_been_made_is_made_by_a_release(age_s: int) -> None:
    """Its balloon is at rest, so what it uses is known."""
    guest = domain("db", record=record(3500, 4096, 3500, age_s), **WASTEFUL)
    plan = memory.release(pair(snapshot([guest])), EAGER)[0]
    assert moves(plan) == {"db": -596} and plan.not_restored == ()


def test_a_take_that_leads_below_the_original_is_called_back_even_while_it_moves() -> None:
    guest = domain("db", record=record(3500, 4096, 3000, 1), **WASTEFUL)
    now = snapshot([guest])
    plan = memory.release([a_tick_before(now, actual_kib=4200 * MIB), now], EAGER)[0]
    assert [str(move) for move in plan.moves] == ["db: 3000M -> 3500M"]
    moving = replace(guest, record=record(3500, 4096, 3600, 1))
    now = snapshot([moving])
    plan = memory.release([a_tick_before(now, actual_kib=4200 * MIB), now], EAGER)[0]
    assert plan.moves == () and tuple(map(str, plan.not_restored)) == ("db: on its way from 4096M to 3600M",)


MOVING = {"actual_kib": 4300 * MIB}


@pytest.mark.parametrize(
    ("kept", "state", "before", "target_mib", "told"),
    [
        (record(2048, 4400, 1500, 1), {"actual": 4096, "usable": 900}, MOVING, 3346, "it needs 3346M"),
        (record(2048, 4400, 2500, 1), {"actual": 4096, "usable": 900}, MOVING, 3383.5, "on its way"),
        (record(4096, 1500, 512, 1), {"actual": 1400, "usable": 300}, {}, 1287.5, "are missing"),
        (record(4096, 2100, 512, 1), {"actual": 2048, "usable": 300, "limit": 1900}, {}, 1935.5, "its limits allow"),
        (record(2048, 4096, 3000, 1), {"actual": 4096, "usable": 160}, {}, 4096, "it needs 4086M"),
        (record(2048, 4096, 3000, 900), {"actual": 4096, "usable": 160}, {}, 4096, "it needs 4086M"),
        (record(2048, 3000, 1500, 900), {"actual": 3000, "usable": 400}, {}, 2787.5, "mode is grow-only"),
    ],
)
def test_a_release_lets_no_request_lead_below_what_is_used_by_now(
    kept: Record, state: dict[str, Any], before: dict[str, int], target_mib: float, told: str
) -> None:
    now = snapshot([domain("db", maximum=8192, unused=50, record=kept, **state)], available=1024)
    policy = replace(RESERVE_1G, settings=MemorySettings(mode="grow-only" if told == "mode is grow-only" else "auto"))
    plan = memory.release([a_tick_before(now, **before), now], policy)[0]
    assert [move.after_kib / MIB for move in plan.moves if isinstance(move, BalloonMove)] == [target_mib]
    assert told in str(plan.not_restored[0])


@pytest.mark.parametrize("silence", [{"period_s": 0}, {"last_update_s": 0}, {"last_update_s": 1}])
def test_what_may_never_have_been_asked_shrinks_nobody_of_whom_nothing_is_known(silence: dict[str, Any]) -> None:
    """Calling a take back to the original would be one, had it never been made. A rescue would do so, too."""
    guest = domain("db", 3000, 8192, record=record(2048, 3000, 1500), **silence)
    plan = memory.release(pair(snapshot([guest])), EAGER)[0]
    assert [str(move) for move in plan.moves] == ["db: 1500M -> 3000M"]
    assert "not shrunk to its 2048M" in str(plan.not_restored[0])


def test_a_release_takes_no_promise_back_from_the_dying() -> None:
    guest = domain("db", 1024, 4096, unused=5, usable=20, record=record(1100, 1024, 3072, 1))
    plan = memory.release(pair(snapshot([guest])), EAGER)[0]
    assert moves(plan) == {"db": 2048} and "may need that" in str(plan.not_restored[0])


def test_what_was_promised_is_asked_for_again_though_the_host_has_no_more() -> None:
    guest = domain("db", 1024, 4096, rss=3000, record=record(4096, 1024, 2048), period_s=0)
    plan = memory.release(pair(snapshot([guest], available=1024)), RESERVE_1G)[0]
    assert moves(plan) == {"db": 1024} and "are missing" in str(plan.not_restored[0])


def test_a_release_asks_for_nothing_below_what_a_guest_has_when_its_limit_fell() -> None:
    guest = domain("db", 2048, 4096, limit=1900, record=record(3072, 1024, 3072, 1))
    plan = memory.release(pair(snapshot([guest])), EAGER)[0]
    assert plan.moves == () and "its limits allow" in str(plan.not_restored[0])


def test_a_guest_that_is_home_but_needs_more_is_not_called_back_from_it() -> None:
    needy = domain("db", 2048, 4096, unused=20, usable=96, record=record(2048, 2048, 3072, 1))
    plan = memory.release(pair(snapshot([needy])), EAGER)[0]
    assert moves(plan) == {"db": 1024} and "may need that" in str(plan.not_restored[0])


@pytest.mark.parametrize("silence", [{"period_s": 0}, {"last_update_s": 0}, {"last_update_s": 1}])
def test_release_leaves_what_somebody_set_on_a_guest_without_statistics(silence: dict[str, Any]) -> None:
    """At its maximum it may just boot; and a balloon that moves, or may between two events, is not known to stay."""
    theirs = domain("db", 2500, 4096, record=record(3072, 2048, 1024), **silence)
    plan = memory.release(pair(snapshot([theirs])), EAGER)[0]
    assert [adoption.memory_kib for adoption in plan.adoptions] == [2500 * MIB]
    assert plan.moves == () and plan.not_restored == ()
    for unsure in (
        pair(snapshot([domain("db", 4096, 4096, record=record(3072, 2048, 1024), **silence)])),
        [a_tick_before(snapshot([theirs]), actual_kib=2600 * MIB), snapshot([theirs])],
        [replace(snapshot([theirs]), monotonic_s=NOW_S - 1), snapshot([theirs])],
    ):
        plan = memory.release(unsure, EAGER)[0]
        assert plan.adoptions == () and plan.moves == ()
        assert "it is not known whether somebody set its" in str(plan.not_restored[0])


def test_release_names_whose_record_cannot_be_read_and_nobody_who_has_none_of_memory() -> None:
    damaged = domain("db", 4096, record_error="its record is damaged")
    pinned = domain("web", 4096, record=Record(HOST_UUID, 1), busy="a job is under way")
    copied = domain("copy", 4096, record_error=COPY)
    home = domain("home", 2048, 4096, record=record(2048, 3000, 2048), state="paused")
    hung = Skip("hung", uuid_of("hung"), "hung", "it did not answer in time")
    gone = Skip("gone", uuid_of("gone"), "gone", "it vanished meanwhile")
    now = snapshot([damaged, pinned, copied, home], skips=(hung, gone))
    plan = memory.release(pair(now), EAGER)[0]
    told, *others = map(str, plan.not_restored)
    assert told.startswith("db: its record is damaged: ") and uuid_of("db") in told
    assert others == ["hung: it did not answer in time"]


def test_a_period_that_was_recorded_and_never_set_is_set() -> None:
    """The pass died in between. What somebody switched off had been answered before."""
    lost = with_period(0, 0, 5, last_update_s=0)
    assert periods(decide(snapshot([lost]), EAGER)) == {"db": 5}
