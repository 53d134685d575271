# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What guests can do without, and who pays for whom; each test also without its safety."""

from __future__ import annotations

from typing import Any, Optional

import pytest
from kvmsched.config import MemoryPolicy
from kvmsched.model import Domain
from kvmsched.policy import memory
from kvmsched.policy.memory.safeties import Safeties
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
    record,
    snapshot,
)


def test_what_only_rises_is_paid_from_what_is_free() -> None:
    rising = domain("db", 4000, 8192, unused=50, usable=250)
    history = a_tick_ago(actual_kib=4000 * MIB, used_kib=3550 * MIB, used_s=int(NOW_S) - 6, grew_kib=150 * MIB)
    now = snapshot([rising, domain("web", **WASTEFUL)], available=1124)
    assert moves(auto_plan(now, history)) == {"db": 100}


def test_nothing_is_taken_that_could_not_be_granted() -> None:
    promised = domain("big", 65536, rss=6144, last_update_s=0)
    now = snapshot([domain("db", **STARVED_OF_8G), domain("web", **WASTEFUL), promised], available=30000, total=98304)
    assert moves(auto_plan(now)) == {"db": 54}
    assert moves(auto_plan(now, safeties=Safeties(useful=False))).keys() == {"db", "web"}


def crowd(number: int, **more: Any) -> list[Domain]:
    """Guests of 8G that use a fifth of it, and touched no more."""
    return [domain(f"idle{one}", 8192, unused=6000, usable=6400, rss=2200, **more) for one in range(number)]


def test_what_only_some_lack_is_not_worth_a_hole_of_promises() -> None:
    """To fill it first would take gigabytes from guests that may want them again, for one that lacks 100M."""
    short = domain("db", 3996, 8192, unused=60, usable=130)
    now = snapshot([short, *crowd(4)], available=24500, total=32768)
    plan = auto_plan(now)
    assert (plan.supply_kib or 0) < -600 * MIB
    assert moves(plan) == {"db": 20}, "what keeps it alive, from what is really free"
    assert ": 75M more for those in need would cost them 843M; " in plan.note
    assert moves(auto_plan(now, safeties=Safeties(useful=False)))["idle0"] < -600
    some = snapshot([short, *crowd(4)], available=25200, total=32768)
    assert -70 * MIB < (auto_plan(some).supply_kib or 0) < 0
    assert {name for name, mib in moves(auto_plan(some)).items() if mib < 0}, "a small one is"


def test_what_it_is_owed_goes_back_to_who_starves_from_what_is_really_free() -> None:
    owed = domain("db", 6144, 8192, unused=20, usable=40, record=record(8192, 6144, 6144))
    now = snapshot([owed, *crowd(4)], available=24500, total=32768)
    assert (auto_plan(now).supply_kib or 0) < -600 * MIB
    assert moves(auto_plan(now)) == {"db": 2048}
    assert [move.on_credit for move in memory.fund(auto_plan(now), AUTO, now, now)] == [True]


def test_a_donor_keeps_most_of_what_it_has_unused_and_its_worst_rise() -> None:
    now = snapshot([domain("db", 4000, 8192, usable=0), domain("web", 4096, unused=600, usable=700)], available=1024)
    assert moves(auto_plan(now))["web"] == -180
    assert moves(auto_plan(now, safeties=Safeties(keep=False)))["web"] < -200
    bursts = a_tick_ago("web", actual_kib=4096 * MIB, worst_old_kib=450 * MIB)
    assert moves(auto_plan(now, bursts))["web"] == -100, "700 usable, less 450 and its starvation line"


def test_what_only_some_have_beyond_their_originals_is_asked_back_first() -> None:
    grown = domain("grown", 3000, 8192, unused=900, usable=1500, record=record(2048, 2048, 3000))
    now = snapshot([domain("db", 4000, 8192, usable=0), grown, domain("web", **WASTEFUL)], available=1024)
    assert moves(auto_plan(now)) == {"db": 225, "grown": -225}


@pytest.mark.parametrize("reclaim", [None, "eager"])
@pytest.mark.parametrize("available", [1700, 1500, 1000])
def test_a_cache_that_is_shared_reaches_who_needs_it_also_where_the_host_lacks_some(
    available: int, reclaim: Optional[str]
) -> None:
    """What the host lacks is covered first, or the cache would fill that hole and nobody would get anything."""
    share = MemoryPolicy(reclaim=reclaim, cache="share")
    cache = domain("cache", 8192, unused=100, usable=6000)
    db = domain("db", 2048, 8192, unused=20, usable=80)
    plan = auto_plan(snapshot([cache, db], available=available), policy=share)
    assert moves(plan)["db"] == 145, moves(plan)
    assert moves(plan).get("cache", 0) <= min(0, available - 1638 - 145)


@pytest.mark.parametrize("reclaim", [None, "eager"])
def test_no_cache_is_taken_for_a_need_that_all_caches_could_not_reach(reclaim: Optional[str]) -> None:
    share = MemoryPolicy(reclaim=reclaim, cache="share")
    promised = domain("asleep", 9000, rss=1064, unused=200, usable=250)
    cache = domain("cache", 8192, unused=100, usable=6000)
    db = domain("db", 2048, 8192, unused=20, usable=80)
    far = snapshot([cache, db, promised], available=2600)
    assert moves(auto_plan(far, policy=share)) == {"db": 70}, "it survives from what is really free"


@pytest.mark.parametrize(("usable", "deep"), [(20, True), (100, False)])
def test_for_who_dies_below_its_original_a_donor_gives_what_it_keeps(usable: int, deep: bool) -> None:
    dies = domain("db", 2048, 4096, unused=5, usable=usable, record=record(3048, 3048, 2048))
    now = snapshot([dies, domain("web", 4096, unused=600, usable=700)], available=1024)
    assert (moves(auto_plan(now))["web"] < -400) is deep
