# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What domains may still touch is not given to others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from kvmsched.model import (
    BalloonMove,
    Domain,
    Owner,
    Skip,
)
from kvmsched.policy import memory
from kvmsched.policy.memory.history import DomainHistory, MemoryHistory
from kvmsched.policy.memory.safeties import Safeties
from memory_worlds import (
    AUTO,
    GIB,
    LAZY,
    MIB,
    NOW_S,
    POOL,
    QEMU,
    RESERVE,
    RESERVE_1G,
    STARVED,
    STARVED_OF_8G,
    STARVES,
    a_tick_ago,
    decide,
    domain,
    its_comfort,
    lazy_moves,
    lazy_pass,
    moves,
    pair,
    record,
    skips,
    snapshot,
    swaps,
    uuid_of,
)


def test_a_domain_that_could_not_be_observed_counts_as_last_seen() -> None:
    lost = Skip("lost", uuid_of("lost"), "hung", "its monitor does not answer")
    now = snapshot([domain("db", **STARVED)], available=2048, skips=(lost,))
    history = MemoryHistory(domains={lost.uuid: DomainHistory(1, 4096 * MIB, at_risk_kib=924 * MIB)})
    plan, after = memory.decide(pair(now), RESERVE_1G, history)
    assert moves(plan) == {"db": 100}
    assert after.domains[lost.uuid].at_risk_kib == 924 * MIB


@pytest.mark.parametrize(
    "neighbour",
    [
        {"inhibitors": ("hugepages",), "rss_kib": 200 * MIB},  # its pages are in no rss
        {"rss_kib": (65536 + 80) * MIB, "last_update_s": 0},  # touched, and silent
    ],
)
def test_a_neighbour_that_can_touch_no_more_takes_nothing_from_what_is_given(neighbour: dict[str, Any]) -> None:
    host = snapshot([domain("db", **STARVED), domain("big", 65536, 65536, **neighbour)], available=20000)
    assert moves(decide(host, RESERVE_1G)) == {"db": 129}


def test_what_could_not_be_observed_may_still_touch_its_memory() -> None:
    lost = Skip("big", uuid_of("big"), "hung", "it did not answer", untouched_kib=15000 * MIB)
    host = snapshot([domain("db", **STARVED)], available=20000)
    free = decide(host, RESERVE_1G).supply_kib
    charged = decide(replace(host, skips=(lost,)), RESERVE_1G).supply_kib
    assert free is not None and charged is not None and free - charged == 15000 * MIB


def test_who_migrates_in_is_busy_and_what_it_will_have_is_not_given_to_others() -> None:
    """It is paused and hardly resident yet; in a moment it has all of its size."""
    needy = domain("db", 2 * GIB, 8 * GIB, **STARVES)
    comes = domain("comes", 4 * GIB, rss=100, unused=0, state="paused", busy="a job is under way", last_update_s=0)
    plan, _history = lazy_pass(snapshot([needy, comes], available=RESERVE + POOL + 3 * GIB))
    assert skips(plan) == {"comes": "busy"} and plan.supply_kib == (RESERVE + POOL + 3 * GIB - RESERVE - 4060) * MIB
    assert moves(plan) == {"db": 54} and [m.on_credit for m in plan.moves if isinstance(m, BalloonMove)] == [True]
    alone, _history = lazy_pass(snapshot([needy], available=RESERVE + POOL + 3 * GIB))
    assert moves(alone)["db"] > 100


# What a starved guest gets from what is really free, whatever others were promised.
SURVIVAL = 150 - 96


def deaf(age_s: int, **sizes: Any) -> Domain:
    """A guest that was given 9G and did not move; it touches no more than its 2G."""
    return domain("deaf", 2 * GIB, 16 * GIB, unused=400, usable=1000, record=record(2048, 2048, 11264, age_s), **sizes)


@pytest.mark.parametrize(("age_s", "fed"), [(3, False), (30, True), (4000, True)])
def test_what_a_deaf_guest_was_promised_is_there_for_others_once_it_should_be_there(age_s: int, fed: bool) -> None:
    now = snapshot([deaf(age_s), domain("db", 2 * GIB, 4 * GIB, **STARVES)], available=RESERVE + 8000)
    assert (lazy_moves(now)["db"] > SURVIVAL) is fed
    assert lazy_moves(now, safeties=Safeties(answers=False))["db"] == SURVIVAL


def test_a_deaf_guest_that_holds_more_than_it_says_is_charged_for_all() -> None:
    now = snapshot([deaf(30, rss=3 * GIB), domain("db", 2 * GIB, 4 * GIB, **STARVES)], available=RESERVE + 8000)
    assert lazy_moves(now)["db"] == SURVIVAL


def needy_fair() -> Domain:
    return domain("db", 4 * GIB, 32 * GIB, unused=400, usable=1000, owner=Owner({"floor": "20G"}))


def test_what_is_not_charged_may_be_half_of_what_is_free_at_most() -> None:
    """9G may come true at once: of 10G that are free 5 stay for that."""
    now = snapshot([deaf(30), needy_fair()], available=RESERVE + 10240)
    got = lazy_moves(now)["db"]
    assert got == pytest.approx(10240 - 64 - (9216 - 64 - 5120), abs=80)


def test_nobody_is_charged_for_nvdimm_while_it_boots() -> None:
    booting = domain("boot", 2 * GIB, 64 * GIB, usable=1000, fixed_kib=60 * GIB * MIB, started_s=NOW_S - 1)
    assert lazy_pass(snapshot([booting]))[0].supply_kib == (16384 - RESERVE - 2048) * MIB


def test_huge_pages_of_a_part_are_not_charged_and_the_rest_is() -> None:
    part = domain("vm", 8 * GIB, rss=1000, unused=400, usable=1000, huge_kib=4 * GIB * MIB)
    supply_kib = lazy_pass(snapshot([part]))[0].supply_kib
    assert supply_kib is not None
    assert (16384 - supply_kib // MIB) - RESERVE == pytest.approx(4 * GIB + QEMU - 1000, abs=1)
    whole = replace(part, balloon=replace(part.balloon, huge_kib=8 * GIB * MIB, inhibitors=("hugepages",)))
    assert lazy_pass(snapshot([whole]))[0].supply_kib == lazy_pass(snapshot([]))[0].supply_kib


def test_who_boots_is_charged_for_its_maximum_and_for_nothing_twice() -> None:
    """It was promised 200M and did not take them: all of that is part of its maximum."""
    counters = {"major_faults": 0, "unused": 100, "usable": 250}
    boots = domain("liar", 1661, 2 * GIB, **counters, record=record(1664, 1661, 1861, 60))
    before = MemoryHistory(domains={boots.uuid: DomainHistory(int(NOW_S) - 6, 1661 * MIB, major_faults=9)})
    full = domain("liar", 2 * GIB, rss=1661 + QEMU, usable=200)
    plan, _history = lazy_pass(snapshot([boots], available=900), LAZY, before)
    assert skips(plan) == {"liar": "booting"}
    assert plan.supply_kib == lazy_pass(snapshot([full], available=900))[0].supply_kib


def test_what_a_guest_was_just_given_is_charged_when_it_cannot_be_observed_any_more() -> None:
    """It is there for one of the two: who got it, and hangs since."""
    first, second = (domain(name, **STARVED_OF_8G, owner=Owner({"floor": "6G"})) for name in ("db", "app"))
    plan, after = memory.decide(pair(snapshot([first], available=1024 + 4300)), AUTO)
    lost = Skip("db", first.uuid, "hung", "its monitor does not answer")
    later = memory.decide(pair(snapshot([second], available=1024 + 4300, skips=(lost,))), AUTO, after)[0]
    assert moves(plan) == {"db": 4096} and moves(later).get("app", 0) <= 4300 - 4096


def test_a_run_that_starts_is_charged_at_its_maximum_whatever_is_remembered_of_an_earlier_one() -> None:
    starts = Skip("big", uuid_of("big"), "busy", "it is just starting", untouched_kib=8 * GIB * MIB)
    now = snapshot([domain("db", **STARVED_OF_8G)], available=1024 + 4000, skips=(starts,))
    earlier = MemoryHistory(domains={starts.uuid: DomainHistory(int(NOW_S) - 6, 8 * GIB * MIB)})
    assert memory.decide(pair(now), AUTO, earlier)[0].supply_kib == decide(now, AUTO).supply_kib == -4192 * MIB


@pytest.mark.parametrize("age_s", [5, 13, 300])
def test_who_was_reset_is_charged_at_its_maximum_until_its_driver_runs_again(age_s: int) -> None:
    """However long its boot takes: it is no guest that has just fallen silent."""
    web = domain("web", 2 * GIB, 8 * GIB, unused=500, usable=800, last_update_s=int(NOW_S) - age_s)
    now = snapshot([web, swaps()], available=1024 + 4000)
    told = {"last_update_s": int(NOW_S) - age_s, "pressed": True}
    plan = its_comfort(now, history=a_tick_ago("web", booted_s=NOW_S - age_s + 1, **told))
    assert plan.supply_kib == (4000 - (8 - 2) * GIB) * MIB and moves(plan) == {"db": SURVIVAL}
    for other_s in (NOW_S - age_s - 1, NOW_S + 3600):  # it told something since; the clock was set back since
        assert its_comfort(now, history=a_tick_ago("web", booted_s=other_s, **told)).supply_kib == 4000 * MIB
