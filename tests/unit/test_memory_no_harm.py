# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Several rules in one pass: credit, debts, stalled takes and seldom statistics harm nobody."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from kvmsched.config import Rule
from kvmsched.model import BalloonMove, Domain, Room, Skip, Snapshot
from kvmsched.policy import memory
from kvmsched.policy.memory.history import MemoryHistory
from kvmsched.policy.memory.safeties import Safeties
from kvmsched.units import Amount
from memory_worlds import (
    AUTO,
    MIB,
    NOW_S,
    STARVED_OF_8G,
    WASTEFUL,
    a_tick_ago,
    auto_plan,
    domain,
    moves,
    on_credit,
    pair,
    record,
    skips,
    snapshot,
)

# Its survival line is 110M away.
DYING_OF_4G: dict[str, Any] = {"actual": 4096, "maximum": 8192, "unused": 2, "usable": 40}

# ---------------------------------------------------------------- one guest in one pass


def test_what_is_asked_back_and_what_danger_takes_end_at_l_together() -> None:
    """It has 3072M more than its original, others are owed that, and the host is in danger at the same time."""
    grown = domain("grown", 4096, unused=1800, usable=2000, record=record(1024, 1024, 4096))
    owed = domain("owed", 2048, 8192, unused=20, usable=96, record=record(6144, 6144, 2048))
    fresh = domain("promised", 4096, 8192, usable=900, rss=1000)
    policy = replace(AUTO, host_reserve=Amount(kib=8192 * MIB))
    history = a_tick_ago("grown", actual_kib=4096 * MIB, worst_kib=1500 * MIB)
    target = 4096 + moves(auto_plan(snapshot([grown, owed, fresh], available=100), history, policy=policy))["grown"]
    assert target == 4096 - 2000 + 150, "all that it can give, and no more"


def test_nobody_gives_idle_memory_and_gets_his_debt_in_one_pass() -> None:
    guest = domain("db", 4096, 8192, unused=3000, usable=3200, record=record(6144, 6144, 4096))
    policy = replace(AUTO, rules=(Rule("db", {"reclaim": "idle"}),))
    history = a_tick_ago(actual_kib=4096 * MIB, idle_kib=3000 * MIB, idle_old_kib=3000 * MIB, idle_s=NOW_S - 60)
    plan = auto_plan(snapshot([guest], available=20000), history, policy=policy)
    assert [move.gives for move in plan.moves if isinstance(move, BalloonMove)] == [False]


# ---------------------------------------------------------------- funding knows what the plan knew


@pytest.mark.parametrize(("unknown", "available"), [("lost", 7000), ("booting", 7060)])
def test_a_take_that_stalls_is_not_paid_from_what_was_promised_to_others(unknown: str, available: int) -> None:
    lost = (Skip("lost", "lost", "hung", "hung", untouched_kib=6000 * MIB),)
    boots = [domain("boots", 2048, 8048, usable=1000, rss=2048, started_s=NOW_S - 1)]
    starved = domain("db", 2048, 8192, unused=100, usable=130)
    wasteful = domain("web", 8192, unused=4000, usable=4500)
    more = {"skips": lost} if unknown == "lost" else {}
    now = snapshot([starved, wasteful, *(boots if unknown == "booting" else [])], available=available, **more)
    plan = auto_plan(now)
    assert moves(plan)["web"] < 0 < moves(plan)["db"]
    assert [move.on_credit for move in memory.fund(plan, AUTO, now, now)] == [True], "survival, and nothing else"


def test_who_swaps_gets_what_was_planned_although_growth_is_frozen() -> None:
    """That it swaps is seen in two readings only, and funding has one."""
    guest = domain("db", 2048, 8192, unused=100, usable=200, swap_in=400)
    now = snapshot([guest], available=16384)
    assert now.host.memory is not None
    now = replace(now, host=replace(now.host, memory=replace(now.host.memory, psi_full_avg10_pct=20.0)))
    samples = [pair(now)[0], now]
    before = samples[0].domains[0]
    assert before.balloon is not None
    samples[0] = replace(samples[0], domains=(replace(before, balloon=replace(before.balloon, swap_in_kib=0)),))
    plan = memory.decide(samples, AUTO)[0]
    assert moves(plan)["db"] > 0
    funded = memory.fund(plan, AUTO, now, now)
    assert [move.after_kib for move in funded] == [m.after_kib for m in plan.moves if isinstance(m, BalloonMove)]


# ---------------------------------------------------------------- statistics that come too seldom


@pytest.mark.parametrize("how", [{"period_s": 30}, {"period_s": 8, "last_update_s": int(NOW_S) - 13}])
def test_by_default_nothing_is_taken_from_who_tells_too_seldom_how_it_does(how: dict[str, Any]) -> None:
    now = snapshot([domain("db", **STARVED_OF_8G), domain("slow", **WASTEFUL, **how)], available=1024)
    plan = auto_plan(now)
    assert moves(plan) == {} and skips(plan) == {"slow": "slow-stats"}
    assert "unused 2000M stays" in plan.skips[0].reason and "reclaim=auto" in plan.skips[0].reason
    assert moves(auto_plan(now, safeties=Safeties(slow=False)))["slow"] < 0
    for asked in ("eager", "lazy"):
        assert moves(auto_plan(now, policy=replace(AUTO, reclaim=asked)))["slow"] < 0


def test_statistics_every_ten_seconds_are_not_too_seldom() -> None:
    late = {"period_s": 10, "last_update_s": int(NOW_S) - 11}
    now = snapshot([domain("db", **STARVED_OF_8G), domain("idle", **WASTEFUL, **late)], available=1024)
    assert moves(auto_plan(now))["idle"] < 0


# ---------------------------------------------------------------- what was given on credit


def test_credit_is_remembered_until_the_host_has_covered_it() -> None:
    plan, history = memory.decide(pair(on_credit()), AUTO)
    (move,) = plan.moves
    assert isinstance(move, BalloonMove) and move.on_credit
    given_kib = move.after_kib - move.before_kib
    assert (plan.before.credit_kib, plan.after.credit_kib, history.credit_kib) == (0, given_kib, given_kib)
    quiet = {"unused": 50, "usable": 280}
    fed = domain("db", 2048 + given_kib // MIB, 8192, **quiet)
    for asleep_rss, owing_kib in ((2048, given_kib), (12200, 0)):
        asleep = domain("asleep", 12288, unused=250, usable=400, rss=asleep_rss)
        plan, _history = memory.decide(pair(snapshot([fed, asleep], available=3072)), AUTO, history)
        assert plan.before.credit_kib == owing_kib


def test_waste_covers_credit_before_it_comforts_anybody() -> None:
    """What is taken fills the hole first: what wants comfort gets nothing of it, and who dies is served."""
    asleep = domain("asleep", 12288, unused=250, usable=400, rss=12288 + 64 - 600)
    wants = [domain(name, 4096, 8192, unused=50, usable=100) for name in ("wants", "too")]
    wasteful = domain("idle", **{**WASTEFUL, "unused": 3000, "usable": 3500})
    now = snapshot([*wants, asleep, wasteful], available=1024)
    owes = replace(MemoryHistory(), credit_kib=500 * MIB)
    plan, history = memory.decide(pair(now), AUTO, owes)
    taken_kib = -moves(plan)["idle"] * MIB
    assert plan.before.credit_kib == 500 * MIB and history.credit_kib == 0
    assert 0 < sum(moves(plan)[one.name] for one in wants) * MIB <= taken_kib - 500 * MIB


def test_debts_are_asked_back_and_paid_in_one_pass_also_below_the_reserve() -> None:
    """Else a host that is a little short would leave the owed as they are, and the grown as they are."""
    grown = domain("grown", 6144, 8192, unused=3500, usable=3600, record=record(4096, 4096, 6144))
    owed = domain("owed", 4096, 8192, unused=300, usable=400, record=record(6144, 6144, 4096))
    plan = auto_plan(snapshot([grown, owed], available=1000))
    assert moves(plan)["grown"] == -2048 and moves(plan)["owed"] > 0


# ---------------------------------------------------------------- what a life costs


def idle_of_8g(count: int) -> list[Domain]:
    return [domain(f"idle{number}", 8192, unused=6000, usable=6500) for number in range(count)]


@pytest.mark.parametrize("idle", [2, 3, 4, 20])
def test_a_life_costs_others_no_more_where_they_could_cover_all_promises(idle: int) -> None:
    """One that was promised 8G has not touched half of it: to cover that first would take 4G from others."""
    asleep = domain("asleep", 8192, unused=250, usable=400, rss=4096)
    plan = auto_plan(snapshot([domain("db", **DYING_OF_4G), asleep, *idle_of_8g(idle)], available=1024))
    changes = moves(plan)
    assert changes.pop("db") == 110, "its survival line"
    assert sum(changes.values()) == -220, "half of what is really free is paid out"


@pytest.mark.parametrize("untouched", [4000, 7100, 9000])
def test_nor_does_it_in_a_full_room(untouched: int) -> None:
    """Whether all that others in it leave unused would cover what was promised there, or not."""
    asleep = domain("asleep", 12288, unused=250, usable=400, rss=12288 + 64 - untouched)
    plan = auto_plan(in_a_full_room(domain("db", **DYING_OF_4G), asleep, *idle_of_8g(4)))
    changes = moves(plan)
    assert changes.pop("db") == 110 and sum(changes.values()) == -220


def test_nobody_pays_for_a_life_that_lacks_less_than_a_command_is_worth() -> None:
    """It lacks 1M of its survival line, and is not dying."""
    asleep = domain("asleep", 8192, unused=250, usable=400, rss=4096)
    wants = domain("db", 4096, 8192, unused=2, usable=149)
    assert moves(auto_plan(snapshot([wants, asleep, *idle_of_8g(4)], available=1024))) == {}


def in_a_full_room(*domains: Domain) -> Snapshot:
    """A host with much to give, and these domains below a limit that leaves nothing."""
    inside = [replace(one, balloon=replace(one.balloon, rooms=("/slice",))) for one in domains if one.balloon]
    now = snapshot(inside)
    return replace(now, host=replace(now.host, rooms=(Room("/slice", 0),)))


def test_within_a_room_too_nobody_pays_for_a_forecast_or_for_who_has_no_end() -> None:
    rising = domain("db", 4000, 8192, unused=50, usable=250)
    rises = a_tick_ago(actual_kib=4000 * MIB, used_kib=3550 * MIB, used_s=int(NOW_S) - 6, grew_kib=150 * MIB)
    assert moves(auto_plan(in_a_full_room(rising, domain("idle", **WASTEFUL)), rises)) == {}
    greedy = domain("db", **STARVED_OF_8G, record=record(1024, 1024, 2048))
    full = in_a_full_room(greedy, domain("idle", **WASTEFUL))
    assert "idle" not in moves(auto_plan(full, a_tick_ago(gifts=5, pressed=True)))
    assert "idle" in moves(auto_plan(full, a_tick_ago(gifts=4, pressed=True))), (
        "who only starves there is paid by others"
    )
