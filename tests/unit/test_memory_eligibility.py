# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a guest is skipped: reasons with their codes, and each code explained in the docs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from kvmsched import baseline
from kvmsched.model import BalloonMove, MemoryCode
from kvmsched.policy import memory
from kvmsched.policy.memory.history import DomainHistory, MemoryHistory
from kvmsched.policy.memory.safeties import Safeties
from memory_worlds import (
    AUTO,
    EAGER,
    GIB,
    HOST_UUID,
    LAZY,
    MIB,
    NOW_S,
    STARVED,
    WASTEFUL,
    a_tick_ago,
    auto_plan,
    decide,
    domain,
    grown,
    lazy_pass,
    moves,
    pair,
    read_anew,
    record,
    seen,
    skips,
    snapshot,
    uuid_of,
)

DOCS = Path(__file__).resolve().parents[2] / "docs" / "memory.md"


def test_the_docs_explain_each_code_in_its_order() -> None:
    explained = re.findall(r"^\| `([a-z-]+)` \|", DOCS.read_text(), re.MULTILINE)
    assert explained == list(get_args(MemoryCode))


def test_more_usable_memory_than_its_size_is_an_old_word() -> None:
    plan = decide(snapshot([domain("db", 2048, 4096, unused=2400, usable=2500)]), EAGER)
    assert skips(plan) == {"db": "settling"} and not plan.moves
    assert plan.skips[0].reason.startswith("usable 2500M is more than its size of 2048M: ")


@pytest.mark.parametrize(("uptime_s", "codes"), [(4, {"db": "booting"}), (30, {"db": "booting"}), (60, {})])
def test_a_guest_whose_use_rises_while_it_is_young_still_boots(uptime_s: int, codes: dict[str, str]) -> None:
    young = domain("db", 4096, unused=2000, usable=2500, started_s=NOW_S - uptime_s)
    rises = DomainHistory(int(NOW_S) - 6, 4096 * MIB, used_kib=1400 * MIB, used_s=int(NOW_S) - 6, grew_kib=100 * MIB)
    plan, _history = memory.decide([snapshot([young])], EAGER, MemoryHistory(domains={young.uuid: rises}))
    assert skips(plan) == codes and bool(plan.moves) is not bool(codes)
    if uptime_s == 30:
        assert "its use still rises by " in plan.skips[0].reason


@pytest.mark.parametrize(("uptime_s", "word"), [(12, "started 12 s ago"), (61, "load virtio_balloon")])
def test_a_driver_that_may_still_be_loaded_is_not_told_to_be_missing(uptime_s: int, word: str) -> None:
    plan = auto_plan(snapshot([domain("db", 4096, last_update_s=0, started_s=NOW_S - uptime_s)]))
    assert [(skip.code, word in skip.reason) for skip in plan.skips] == [("no-driver", True)]


def test_a_release_leaves_who_is_busy_as_it_is() -> None:
    """Both ways: who would be grown, and who would be shrunk."""
    for original in (3072, 1024):
        busy = domain("db", 2048, 4096, usable=1500, record=record(original, 4096, 2048), busy="a job is under way")
        plan, _history = memory.release(pair(snapshot([busy])), EAGER)
        assert not plan.moves and skips(plan) == {"db": "busy"}
        assert list(map(str, plan.not_restored)) == ["db: a job is under way"]


def test_a_size_that_can_not_be_is_no_statistics() -> None:
    odd = domain("db", **WASTEFUL)
    assert odd.balloon is not None
    now = snapshot([replace(odd, balloon=replace(odd.balloon, void=True))])
    plan = decide(now, EAGER)
    assert skips(plan) == {"db": "no-stats"} and not moves(plan)


def test_a_reboot_is_remembered_for_its_grace() -> None:
    history = memory.decide(pair(snapshot([domain("db", swap_in=0, **WASTEFUL)])), EAGER)[1]
    rebooted = seen(actual_kib=4096 * MIB, swap_in_kib=9000)
    plan, history = memory.decide([snapshot([domain("db", swap_in=0, **WASTEFUL)])], EAGER, rebooted)
    assert skips(plan) == {"db": "booting"}
    assert history.domains[uuid_of("db")].booted_s == NOW_S


@pytest.mark.parametrize("inhibitors", [("hostdev (VFIO)",), ()])
def test_a_guest_whose_memory_the_host_would_keep_may_still_be_in_need(inhibitors: tuple[str, ...]) -> None:
    needy, rich = (domain("db", inhibitors=inhibitors, **state) for state in (STARVED, {**WASTEFUL, "maximum": 8192}))
    futile = seen(actual_kib=2048 * MIB, futile_s=NOW_S)
    plan = decide(snapshot([needy]), EAGER, futile)
    assert moves(plan) == {"db": 129} and not plan.skips
    plan = decide(snapshot([rich]), EAGER, futile)
    assert moves(plan) == {} and skips(plan) == {"db": "inhibited"}


@pytest.mark.parametrize(("size", "code"), [(4096, "inhibited"), (2048, "no-stats")])
def test_whose_memory_the_host_would_keep_is_asked_for_statistics_only_if_it_could_get_more(
    size: int, code: str
) -> None:
    guest = domain("db", size, 4096, inhibitors=("hostdev (VFIO)",), period_s=0)
    assert skips(decide(snapshot([guest]), EAGER)) == {"db": code}


def test_virtio_mem_is_skipped() -> None:
    """libvirt counts it as the balloon's size, and a target leaves it out: each give would be too large."""
    assert skips(decide(snapshot([domain("db", virtio_mem=True, **STARVED)]), EAGER)) == {"db": "no-balloon"}


def test_counters_that_fall_all_the_time_are_a_reboot_once_in_a_while() -> None:
    liar = domain("liar", 2 * GIB, 8 * GIB, unused=400, usable=1000, major_faults=1)
    now = snapshot([liar])
    seen = DomainHistory(int(NOW_S) - 6, 2 * GIB * MIB, major_faults=1000)
    first, history = lazy_pass(now, LAZY, MemoryHistory(domains={liar.uuid: seen}))
    assert skips(first) == {"liar": "booting"}
    fallen = read_anew(replace(now, domains=(replace(liar, balloon=replace(liar.balloon, major_faults=0)),)))
    again, _history = lazy_pass(fallen, LAZY, history)
    assert skips(again) == {}
    assert skips(lazy_pass(fallen, LAZY, history, Safeties(bounds=False))[0]) == {"liar": "booting"}
    restarted = replace(fallen, domains=(replace(fallen.domains[0], started_s=fallen.wall_s - 2),))
    assert skips(lazy_pass(restarted, LAZY, history)[0]) == {"liar": "booting"}


def test_a_persons_value_holds_for_its_grace_unless_its_guest_is_dying() -> None:
    for usable, fed in ((100, False), (20, True)):
        set_ = domain("db", 2048, 4096, unused=5, usable=usable, record=record(2048, 2048, 2048, 60))
        moving = [replace(pair(snapshot([set_]))[0], domains=(grown(set_),)), snapshot([set_])]
        plan = memory.decide(moving, AUTO)[0]
        assert (moves(plan) != {}) is fed
        assert moves(memory.decide(moving, AUTO, safeties=Safeties(person=False))[0]) != {}


def test_what_we_called_back_ourselves_is_nobody_elses_size() -> None:
    """Its use grew before its balloon moved. When it starves, half a minute later, it is fed."""
    busy = domain("db", 2048, 8192, unused=150, usable=170, record=record(2048, 2048, 1024, 2))
    (back,) = decide(snapshot([busy]), AUTO).moves
    assert isinstance(back, BalloonMove) and back.after_kib == 2048 * MIB
    kept = baseline.intend(busy.record, busy, back, HOST_UUID, int(NOW_S) - 30)
    starving = domain("db", 2048, 8192, unused=50, usable=100, record=kept)
    plan = decide(snapshot([starving]), AUTO)
    assert skips(plan) == {} and moves(plan)["db"] > 0


def test_what_a_person_took_is_owed_to_nobody_even_where_its_guest_is_dying() -> None:
    """Root in a guest may tell any size as well, and would have the caches of others up to its original."""
    small = domain("db", 256, 8192, usable=4, rss=8000, record=record(8192, 8192, 8000))
    now = snapshot([small, domain("web", 8192, unused=400, usable=6000)], available=1024)
    plan = auto_plan(now)
    assert moves(plan) == {"web": -120, "db": 120} and plan.owed_kib == {}
    # What it gets is not the first step to its original.
    assert [adoption.memory_kib for adoption in plan.adoptions] == [256 * MIB]


def test_a_guest_of_which_libvirt_told_a_reboot_boots() -> None:
    """Its counters may look as before: the next answer may be from before, or they grew past that again."""
    now = snapshot([domain("db", **WASTEFUL)])
    history = a_tick_ago(actual_kib=4096 * MIB).rebooted(uuid_of("db"), NOW_S - 3)
    plan, later = memory.decide([now], AUTO, history)
    assert skips(plan) == {"db": "booting"}
    assert later.domains[uuid_of("db")].booted_s == NOW_S - 3
    assert later.domains[uuid_of("db")].idle_s == NOW_S, "what was idle before says nothing"
    assert skips(memory.decide([now], AUTO, a_tick_ago(actual_kib=4096 * MIB))[0]) == {}


def test_each_reboot_that_libvirt_tells_of_counts_and_nobody_unknown_is_remembered() -> None:
    uuid = uuid_of("db")
    twice = a_tick_ago(booted_s=NOW_S - 50).rebooted(uuid, NOW_S - 30).rebooted(uuid, NOW_S - 1)
    assert twice.domains[uuid].booted_s == NOW_S - 1
    assert MemoryHistory().rebooted(uuid, NOW_S) == MemoryHistory()
