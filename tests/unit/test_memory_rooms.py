# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rooms that only some guests share: limits of cgroups, cells, and ``memory.high``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Optional

import pytest
from kvmsched.config import MemoryPolicy
from kvmsched.model import (
    BalloonMove,
    Cell,
    Memnode,
    MemoryRecord,
    Record,
    Skip,
    Topology,
)
from kvmsched.policy import memory
from kvmsched.policy.memory.safeties import Safeties
from kvmsched.units import Amount
from memory_worlds import (
    DYING,
    EAGER,
    EDGE,
    GIB,
    HOST_UUID,
    LAZY,
    MIB,
    NOW_S,
    QEMU,
    SLICE,
    STARVED,
    STARVES,
    WASTEFUL,
    decide,
    domain,
    in_a_slice,
    in_room,
    its_comfort,
    lazy_moves,
    lazy_pass,
    moves,
    pair,
    record,
    snapshot,
    swaps,
    with_cells,
    with_host,
)


def test_a_strict_numatune_is_limited_by_its_cells() -> None:
    now = snapshot([domain("db", cells=frozenset({1}), **STARVED)])
    cells = (Cell(0, free_kib=9999 * MIB), Cell(1, free_kib=100 * MIB))
    plan = decide(replace(now, host=replace(now.host, topology=Topology((), cells))), EAGER)
    assert moves(plan) == {"db": 100}


def test_a_limit_that_guests_share_is_given_to_them_once() -> None:
    now = in_a_slice(176 + EDGE, domain("db", **STARVED), domain("app", **{**STARVED, "usable": 90}))
    plan = decide(now, MemoryPolicy())
    assert moves(plan) == {"app": 91, "db": 85}, "both off the starvation line, and what is left in halves"
    assert moves(decide(in_a_slice(260 + EDGE, *now.domains), MemoryPolicy())) == {"app": 133, "db": 127}
    plan = decide(in_a_slice(60 + EDGE, *now.domains), MemoryPolicy(min_change=Amount(kib=40 * MIB)))
    assert moves(plan) == {"app": 60}, "a share of 30M is not worth a command: all goes to who has less left"
    assert [unmet.domain for unmet in plan.unmet] == ["db"]
    assert f"{SLICE}, where its memory must be, has 60M to give" in plan.unmet[0].reason
    assert moves(decide(in_a_slice(-5, *now.domains), MemoryPolicy())) == {}


def test_what_guests_of_a_limit_may_still_touch_is_not_given_again() -> None:
    untouched = domain("big", 4096, rss_kib=3160 * MIB, usable=200)
    assert moves(decide(in_a_slice(1176, domain("db", **STARVED), untouched), EAGER)) == {"db": 129}
    short = in_a_slice(1010, domain("db", **STARVED), untouched)
    assert moves(decide(short, EAGER)) == {"db": 54}, "survival is paid from what is really left there"


def test_who_wastes_within_a_full_limit_pays_for_who_starves_there() -> None:
    """The host itself has enough, so nobody else would have to."""
    lazy = MemoryPolicy(reclaim="lazy", host_reserve=Amount(kib=1024 * MIB))
    now = in_a_slice(EDGE, domain("db", **STARVED), domain("web", **WASTEFUL))
    outside = domain("other", **WASTEFUL)
    plan = decide(replace(now, domains=(*now.domains, outside)), lazy)
    assert moves(plan) == {"web": -129, "db": 129}
    assert memory.fund(plan, lazy, now, now) == (), "what was not given back yet is not there"


@pytest.mark.parametrize("strategy", ["fair", "pairwise"])
@pytest.mark.parametrize("unused", [None, 500, 2000])
def test_who_has_no_room_takes_nothing_from_who_has(strategy: str, unused: Optional[int]) -> None:
    """Neither its turn, nor its share, nor what a neighbour would give in vain."""
    policy = MemoryPolicy(strategy=strategy)
    stuck = domain("stuck", cells=frozenset({1}), **{**STARVED, "usable": 80})
    others = [domain("db", **STARVED)]
    others += [domain("web", **{**WASTEFUL, "unused": unused})] if unused else []
    here = Topology((), (Cell(0), Cell(1, free_kib=0)))
    for available in (17000, 1638 + 150):
        with_it, without = (snapshot(domains, available=available) for domains in ([stuck, *others], others))
        with_it = replace(with_it, host=replace(with_it.host, topology=here))
        plan = decide(with_it, policy)
        assert moves(plan) == moves(decide(without, policy)), available
        assert moves(plan).get("db", 0) > 0 and "stuck" in [unmet.domain for unmet in plan.unmet]


def test_who_has_no_room_costs_nobody_its_cache() -> None:
    stuck = domain("stuck", cells=frozenset({1}), **STARVED)
    web = domain("web", 8192, unused=200, usable=6000)
    now = snapshot([stuck, web], available=1700)
    plan = decide(replace(now, host=replace(now.host, topology=Topology((), (Cell(1, free_kib=0),)))), EAGER)
    assert moves(plan) == {}


def test_cells_that_guests_share_are_given_to_them_once() -> None:
    guests = [domain("db", cells=frozenset({1}), **STARVED), domain("app", cells=frozenset({1}), **STARVED)]
    now = snapshot(guests)
    now = replace(now, host=replace(now.host, topology=Topology((), (Cell(0), Cell(1, free_kib=230 * MIB)))))
    assert sum(moves(decide(now, EAGER)).values()) == 230


@pytest.fixture
def halves() -> dict[str, Any]:
    """A guest whose cells are bound to a cell of the host each."""
    parts = tuple(Memnode(frozenset({cell}), 2 * GIB * MIB) for cell in (0, 1))
    return {"cells": frozenset({0, 1}), "memnodes": parts}


def test_a_guest_with_memnodes_gets_what_its_tightest_cell_has(halves: dict[str, Any]) -> None:
    """All of it may lie there, and what that cell can't hold gets the QEMU killed."""
    now = snapshot([domain("db", **halves, **STARVED)])
    for left in [(100, 9999), (9999, 100)]:
        assert moves(decide(with_cells(now, *_cells(*left)), EAGER)) == {"db": 100}
    whole = snapshot([domain("db", cells=frozenset({0, 1}), **STARVED)])
    assert moves(decide(with_cells(whole, *_cells(60, 60)), EAGER)) == {"db": 120}, "that may lie in any of both"


def test_what_a_guest_with_memnodes_may_still_touch_is_kept_in_each_of_its_cells(halves: dict[str, Any]) -> None:
    """But in none more than its own cells there can hold."""
    big = domain("big", 4 * GIB, rss=1 * GIB, unused=200, usable=3000, **halves)
    for cell in (0, 1):
        db = domain("db", cells=frozenset({cell}), **STARVED)
        now = with_cells(snapshot([db, big]), *_cells(2 * GIB + 90, 2 * GIB + 90))
        assert moves(decide(now, EAGER)) == {"db": 90}, cell


@pytest.mark.parametrize("strategy", ["fair", "pairwise"])
def test_where_a_guest_with_memnodes_gives_is_not_known(halves: dict[str, Any], strategy: str) -> None:
    """Who starves in one of its cells might get nothing by that."""
    policy = MemoryPolicy(strategy=strategy, reclaim="lazy", host_reserve=Amount(kib=1024 * MIB))
    db = domain("db", cells=frozenset({0}), **STARVED)
    web = domain("web", **WASTEFUL, **halves)
    plan = decide(with_cells(snapshot([db, web]), *_cells(0, 0)), policy)
    assert moves(plan) == {}
    assert "cells 0, where its memory must be, has 0M" in plan.unmet[0].reason


def _cells(*left: int) -> list[Cell]:
    """Return cells with so many MiB left each."""
    return [Cell(number, free_kib=mib * MIB) for number, mib in enumerate(left)]


def test_who_is_dying_in_a_room_is_fed_from_half_of_what_is_really_left_there() -> None:
    """Others there were promised more than is left, but it is not touched yet."""
    promised = domain("big", 4 * GIB, rss=1 * GIB, unused=200, usable=3000)
    now = in_room(snapshot([domain("db", 2 * GIB, 4 * GIB, **DYING), promised]), 56)
    assert lazy_moves(now) == {"db": 28}
    assert lazy_moves(now, safeties=Safeties(rooms=False)) == {}
    comfortable = in_room(snapshot([domain("db", 2 * GIB, 4 * GIB, **STARVES), promised]), 56)
    assert lazy_moves(comfortable) == {}


def test_the_last_of_a_hard_limit_keeps_somebody_alive_and_nothing_else() -> None:
    """Beyond it a QEMU is killed: by what it needs itself, or what khugepaged took meanwhile."""
    starves = snapshot([domain("db", 2 * GIB, 4 * GIB, rss=2 * GIB + QEMU, **STARVES)])
    policy = replace(LAZY, min_change=Amount(kib=8 * MIB))
    assert lazy_moves(in_room(starves, EDGE + 30), policy) == {"db": 30}
    assert lazy_moves(in_room(starves, EDGE + 30), policy, Safeties(edge=False)) == {"db": EDGE + 30}
    assert lazy_moves(in_room(starves, EDGE), policy) == {"db": EDGE // 2}, "survival, and half of what is there"
    assert lazy_moves(in_room(starves, EDGE - 2), policy) == {}
    young = snapshot([domain("db", 2 * GIB, 4 * GIB, rss=2 * GIB + QEMU - 44, **DYING)])
    assert lazy_moves(in_room(young, 56), policy) == {"db": 12}, "what its QEMU may still take is kept already"
    assert lazy_moves(in_room(starves, None, high_left=EDGE), policy) == {"db": EDGE}, "there it is throttled"


@pytest.mark.parametrize(
    ("left", "actual", "more", "fills", "warns"),
    [
        (1000, 1 * GIB, {}, True, True),
        (1000, 1 * GIB, {}, False, False),
        (3100, 1 * GIB, {}, True, False),
        (1000, 3 * GIB + 100, {}, True, False),
        (1000, 1 * GIB, {"rss": 3 * GIB + QEMU + 100}, True, False),
        (1000, 1 * GIB, {"inhibitors": ("hugepages",)}, True, False),
        (9000, 1 * GIB, {"limit_kib": 2 * GIB * MIB, "rss": 1 * GIB + QEMU}, True, True),
        (9000, 1 * GIB, {"limit_kib": 5 * GIB * MIB, "rss": 1 * GIB + QEMU}, True, False),
    ],
)
def test_it_warns_of_a_hard_limit_that_khugepaged_fills_with_what_balloons_took(
    left: int, actual: int, more: dict[str, Any], fills: bool, warns: bool
) -> None:
    now = in_room(snapshot([domain("db", actual, 4 * GIB, unused=400, usable=900, **more)]), left)
    memory_now = now.host.memory
    assert memory_now
    now = with_host(now, memory=replace(memory_now, fills_holes=fills))
    found = [line for line in lazy_pass(now)[0].warnings if "khugepaged" in line]
    assert len(found) == warns
    assert all(("db" if "limit_kib" in more else SLICE) in line and "max_ptes_none" in line for line in found)


@pytest.mark.parametrize("swapped", [0, 40])
def test_what_is_really_left_in_a_room_is_not_given_again_and_again_before_it_is_touched(swapped: int) -> None:
    """56M were left in machine.slice, as on an emulated KVM host; all else of this host is made up."""
    promised = domain("big", 4 * GIB, rss=1 * GIB, unused=200, usable=3000, swapped_kib=swapped * MIB)
    size, given = 2 * GIB, []
    for _turn in range(6):
        dying = domain("db", size, 4 * GIB, **{**DYING, "usable": 5 + sum(given)}, rss=2 * GIB + QEMU)
        now = in_room(snapshot([dying, promised]), 56)
        plan, _history = lazy_pass(now)
        funded = memory.fund(plan, LAZY, now, now)
        assert [move.after_kib for move in funded] == [m.after_kib for m in plan.moves if isinstance(m, BalloonMove)]
        given.append(moves(plan).get("db", 0))
        size += given[-1]
    assert given == ([28, 14, 0, 0, 0, 0] if not swapped else [8, 0, 0, 0, 0, 0])


def test_memory_high_bounds_growth_and_takes_nothing() -> None:
    throttled = domain("db", 2 * GIB, 8 * GIB, high_kib=(2 * GIB + QEMU + 30) * MIB, **STARVES)
    policy = replace(LAZY, min_change=Amount(kib=8 * MIB))
    assert lazy_moves(snapshot([throttled]), policy) == {"db": 30}
    assert lazy_moves(snapshot([throttled]), policy, Safeties(high=False))["db"] > 100
    above = domain("db", 2 * GIB, 8 * GIB, high_kib=1 * GIB * MIB, unused=400, usable=1000)
    assert lazy_moves(snapshot([above])) == {}


def test_a_release_goes_home_above_memory_high() -> None:
    """It was there before us."""
    small = domain("db", 2 * GIB, 8 * GIB, high_kib=1 * GIB * MIB, usable=900, record=record(4 * GIB, 4 * GIB, 2 * GIB))
    plan = memory.release(pair(snapshot([small])), LAZY)[0]
    assert moves(plan) == {"db": 2 * GIB} and plan.not_restored == ()


def test_memory_high_of_a_room_bounds_growth_and_costs_its_neighbours_nothing() -> None:
    guests = [domain("db", 2 * GIB, 8 * GIB, **STARVES), domain("web", 4 * GIB, unused=2000, usable=2500)]
    policy = replace(LAZY, min_change=Amount(kib=8 * MIB))
    assert lazy_moves(in_room(snapshot(guests), 9000, high_left=30), policy) == {"db": 30}
    assert lazy_moves(in_room(snapshot(guests), None, high_left=30), policy) == {"db": 30}
    assert lazy_moves(in_room(snapshot(guests), 9000, high_left=30), policy, Safeties(high=False))["db"] > 100


# What who starves in a room gets there, whatever others may still touch.
SURVIVAL = 150 - 96


@pytest.mark.parametrize(("rooms", "charged"), [((SLICE,), True), (None, True), ((), False)])
def test_who_cannot_be_observed_is_charged_in_its_rooms(rooms: Optional[tuple[str, ...]], charged: bool) -> None:
    """Where they are not known, in all of them."""
    now = in_a_slice(3200, swaps())
    lost = Skip("sleeper", "sleeper", "hung", "it does not answer", untouched_kib=3000 * MIB, rooms=rooms)
    assert moves(its_comfort(replace(now, skips=(lost,)))) == {"db": 200 if charged else 3129}


def test_what_may_be_called_back_is_no_comfort_in_a_room() -> None:
    """Its balloon may deflate at any time, up to the limit of all that are in it."""
    lean = domain("web", 4 * GIB, 8 * GIB, unused=900, usable=900, autodeflate=True, record=by_order(8, 4))
    assert moves(its_comfort(in_a_slice(4300, swaps(), lean))) == {"db": 4300 - EDGE - 4 * GIB}
    elsewhere = in_a_slice(4300, swaps())
    assert moves(its_comfort(replace(elsewhere, domains=(*elsewhere.domains, lean)))) == {"db": 3129}


def by_order(original: int, now: int) -> Record:
    """The record of a guest of which that was taken by order, in GiB."""
    part = MemoryRecord(original * GIB * MIB, original * GIB * MIB, now * GIB * MIB, int(NOW_S) - 3600)
    return Record(HOST_UUID, 1, memory=replace(part, ordered_kib=(original - now) * GIB * MIB))
