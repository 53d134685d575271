# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a guest's statistics say: use, rest, rises and gifts since; some tests also without the safety."""

from __future__ import annotations

from dataclasses import replace

import pytest
from kvmsched import baseline
from kvmsched.model import BalloonMove
from kvmsched.policy import memory
from kvmsched.policy.memory.safeties import Safeties
from memory_worlds import (
    AUTO,
    EAGER,
    HOST_UUID,
    MIB,
    NOW_S,
    STARVED,
    STARVED_OF_8G,
    WASTEFUL,
    a_tick_ago,
    a_tick_before,
    auto_plan,
    domain,
    moves,
    pair,
    record,
    seen,
    skips,
    snapshot,
)


def test_one_sample_proves_no_rest_so_nobody_is_shrunk() -> None:
    now = snapshot([domain("web", **WASTEFUL), domain("db", **STARVED)])
    plan, _history = memory.decide([now], EAGER)
    assert moves(plan) == {"db": 129}
    assert skips(plan) == {"web": "settling"}


def test_history_is_as_good_as_a_first_sample() -> None:
    now = snapshot([domain("db", **WASTEFUL)])
    plan, _history = memory.decide([now], EAGER, seen(actual_kib=4096 * MIB))
    assert moves(plan) == {"db": -1000}


def test_two_samples_of_the_same_reading_prove_nothing() -> None:
    now = snapshot([domain("web", **WASTEFUL)])
    plan, _history = memory.decide([now, now], EAGER)
    assert skips(plan) == {"web": "settling"}


def test_a_give_that_arrived_before_the_reading_is_rest() -> None:
    """Else a domain that is given memory pass after pass could never be judged."""
    given = domain("db", 3000, 4096, unused=1000, usable=1200, record=record(1024, 2000, 3000, age_s=4))
    now = snapshot([given])
    before, _now = pair(now)
    balloon = replace(before.domains[0].balloon, actual_kib=2000 * MIB)
    older = replace(before, domains=(replace(given, balloon=balloon),))
    assert moves(memory.decide([older, now], EAGER)[0]) == {"db": -500}


def test_a_rise_is_measured_from_the_last_known_use() -> None:
    """Passes in which the domain was settling do not hide how fast its demand rose."""
    now = snapshot([domain("db", 4000, 8192, unused=50, usable=250)])
    history = seen(actual_kib=4000 * MIB, used_kib=3250 * MIB, used_s=int(NOW_S) - 11, grew_kib=200 * MIB)
    plan, _history = memory.decide([now], EAGER, history)
    # 500M in 10 s, for the 5 s between readings and the age of this one: 300M
    assert "rising by 300M" in plan.moves[0].reason
    assert moves(plan) == {"db": 3750 + 300 + 225 - 4000}


def test_memory_that_is_on_its_way_to_us_is_no_rise() -> None:
    """libvirt hears of a balloon's size once a second, and the guest's reading may be newer."""
    taken = domain("db", 4000, 8192, unused=1150, usable=1150, record=record(8192, 5000, 3000, age_s=2))
    history = seen(actual_kib=5000 * MIB, used_kib=1950 * MIB, used_s=int(NOW_S) - 6)
    plan, _history = memory.decide([snapshot([taken])], EAGER, history)
    assert not plan.moves and skips(plan) == {"db": "settling"}


def test_an_answer_is_no_rise_of_demand() -> None:
    """What it used was counted from too small a size before."""
    silent = domain("db", 2200, 16384, usable=100, record=record(4096, 2048, 4096, 30))
    before = snapshot([silent])
    history = memory.decide(pair(before), EAGER)[1]
    answered = domain("db", 4096, 16384, usable=100, record=record(4096, 2048, 4096, 30), last_update_s=int(NOW_S) + 4)
    later = replace(snapshot([answered]), wall_s=NOW_S + 5, monotonic_s=NOW_S + 5)
    plan = memory.decide([before, later], EAGER, history)[0]
    assert moves(plan)["db"] < 400 and "rising" not in plan.moves[0].reason


@pytest.mark.parametrize(("age_s", "given"), [(0, 0), (0, 129), (1, 129)])
def test_what_was_given_since_a_reading_is_not_given_again(age_s: int, given: int) -> None:
    """The gift arrived, which brought this pass forward; the reading is still the old one."""
    kept = record(2048, 2048, 2048 + given, age_s) if given else None
    now = snapshot([domain("db", **{**STARVED_OF_8G, "actual": 2048 + given}, record=kept)])
    assert moves(auto_plan(now)) == ({} if given else {"db": 129})
    assert moves(auto_plan(now, safeties=Safeties(one_gift=False))) == {"db": 129}


def test_gifts_of_several_passes_on_one_reading_count_together() -> None:
    """The record tells of the last one; the size at which the reading was first seen is remembered."""
    now = snapshot([domain("db", **{**STARVED_OF_8G, "actual": 2177}, record=record(2048, 2147, 2177, 0))])
    history = a_tick_ago(last_update_s=int(NOW_S) - 1, read_kib=2048 * MIB)
    assert moves(memory.decide([now], AUTO, history)[0]) == {}
    assert moves(memory.decide([now], AUTO, a_tick_ago())[0])["db"] > 0


def test_what_a_reading_says_of_rates_holds_until_the_next() -> None:
    """What it could not be given at once, it is given when takes arrive, not a reading later."""
    thrashing = domain("db", **{**STARVED_OF_8G, "swap_in": 500, "swap_out": 400})
    first, history = memory.decide([snapshot([thrashing])], AUTO, a_tick_ago(swap_in_kib=0, swap_out_kib=0))
    asked = moves(first)["db"]
    assert (
        asked > moves(auto_plan(snapshot([domain("db", **STARVED_OF_8G)])))["db"]
        and "swapping" in first.moves[0].reason
    )
    part = domain("db", **{**STARVED_OF_8G, "actual": 2088, "swap_in": 500, "swap_out": 400})
    fed = replace(part, record=record(2048, 2048, 2088, 0))
    plan, _history = memory.decide([snapshot([fed])], AUTO, history)
    assert moves(plan) == {"db": asked - 40}


def test_what_a_guest_took_by_itself_is_no_gift() -> None:
    by_itself = {**STARVED_OF_8G, "actual": 2300, "usable": 10, "autodeflate": True}
    plan = auto_plan(snapshot([domain("db", **by_itself, record=record(2048, 1900, 2000, 0))]))
    assert "usable 110M < 150M" in plan.moves[0].reason, "100M of 400M were ours"


def test_one_difference_is_noise_and_two_of_one_sign_are_a_rise() -> None:
    now = snapshot([domain("db", 4000, 8192, unused=50, usable=250)])
    once, twice = (
        a_tick_ago(actual_kib=4000 * MIB, used_kib=3550 * MIB, used_s=int(NOW_S) - 6, grew_kib=grew * MIB)
        for grew in (-20, 150)
    )
    assert moves(memory.decide([now], AUTO, once)[0]) == {}
    assert moves(memory.decide([now], AUTO, once, Safeties(two_rises=False))[0]) == {"db": 215}
    assert moves(memory.decide([now], AUTO, twice)[0]) == {"db": 215}


def test_without_usable_memory_caches_count_for_need_and_not_for_takes() -> None:
    server = domain("db", 8192, 16384, unused=60, usable=None, disk_caches_kib=4000 * MIB)
    assert moves(auto_plan(snapshot([server]))) == {}
    assert moves(auto_plan(snapshot([server]), safeties=Safeties(usable=False))) == {"db": 165}
    needy = domain("app", 4000, 8192, usable=0)
    share = replace(AUTO, cache="share")
    assert moves(auto_plan(snapshot([server, needy], available=1024), policy=share)) == {}


def test_a_take_that_was_called_back_is_no_gift() -> None:
    """1000M were being taken as its use grew. A second later it reports that nothing is left: it is dying."""
    taking = domain("db", 3500, 4096, unused=100, usable=400, record=record(3000, 4096, 3000, 4))
    now = snapshot([taking])
    plan = memory.decide([a_tick_before(now, actual_kib=4096 * MIB), now], AUTO)[0]
    (back,) = [move for move in plan.moves if isinstance(move, BalloonMove)]
    assert (back.before_kib, back.after_kib > 3000 * MIB) == (3000 * MIB, True)
    called = baseline.intend(taking.record, taking, back, HOST_UUID, int(NOW_S))
    arrived = domain("db", back.after_kib // MIB, 4096, unused=2, usable=5, last_update_s=int(NOW_S) + 1, record=called)
    later = replace(snapshot([arrived]), wall_s=NOW_S + 2, monotonic_s=NOW_S + 2)
    assert memory.decide([now, later], AUTO)[0].before.starved == 1
