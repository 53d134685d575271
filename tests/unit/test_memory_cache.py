# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory that the kernel has to free first: the ZFS cache, and file pages of a cell."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from kvmsched.config import MemoryPolicy
from kvmsched.model import Cell, Domain, HostMemory, Owner, Snapshot
from kvmsched.policy import memory
from kvmsched.policy.memory.safeties import Safeties
from memory_worlds import (
    DYING,
    GIB,
    MIB,
    cell,
    domain,
    lazy_moves,
    lazy_pass,
    moves,
    needy,
    owed,
    read_anew,
    snapshot,
    with_cells,
    with_host,
)

ZFS = MemoryPolicy(reclaim="lazy")


def zfs_host(*domains: Domain, available: int = 700, arc: int = 38 * GIB) -> Snapshot:
    """A host of 62G at whose rest almost nothing is available, for the cache holds it."""
    now = snapshot(domains, available=available, total=62 * GIB)
    sizes = HostMemory(62 * GIB * MIB, available * MIB, arc_kib=arc * MIB)
    return with_host(now, memory=sizes)


DB = domain("db", 4 * GIB, 8 * GIB, unused=60, usable=110)


WEB = domain("web", 4 * GIB, unused=500, usable=3000)


NO_CACHES = Safeties(caches=False)


def test_a_host_whose_zfs_cache_holds_its_memory_is_not_short() -> None:
    plan, _history = lazy_pass(zfs_host(DB, WEB), ZFS)
    assert moves(plan) == {"db": 115} and plan.warnings == ()
    assert (plan.before.host_available_kib, plan.before.host_arc_kib) == (700 * MIB, 38 * GIB * MIB)
    without = moves(lazy_pass(zfs_host(DB, WEB), ZFS, safeties=NO_CACHES)[0])
    assert without["web"] < -2000 and "db" not in without, "web pays for the cache, and db is frozen"


def test_a_zfs_cache_that_can_not_shrink_is_not_available() -> None:
    assert lazy_moves(zfs_host(DB, WEB, arc=0), ZFS) == lazy_moves(zfs_host(DB, WEB), ZFS, safeties=NO_CACHES)


def test_of_a_cache_a_part_is_given_and_the_next_once_that_was_seen_to_come() -> None:
    first = zfs_host(needy(8 * GIB))
    plan, history = lazy_pass(first, ZFS)
    assert moves(plan) == {"db": 512} and history.lent[""].kib == 512 * MIB
    touched = needy(8 * GIB + 512)
    stuck = read_anew(zfs_host(touched, available=188))
    plan, still = lazy_pass(stuck, ZFS, history)
    assert moves(plan) == {} and still.lent[""].kib == 512 * MIB, "nothing of it was seen to come"
    gave_way = read_anew(zfs_host(touched, arc=38 * GIB - 512))
    assert moves(lazy_pass(gave_way, ZFS, history)[0]) == {"db": 512}
    freed = read_anew(zfs_host(touched, available=700 + 512))
    assert moves(lazy_pass(freed, ZFS, history)[0]) == {"db": 512}
    half = read_anew(zfs_host(touched, arc=38 * GIB - 256))
    assert moves(lazy_pass(half, ZFS, history)[0]) == {"db": 256}


def test_what_is_free_is_given_whole_beside_a_part_of_the_cache() -> None:
    assert lazy_moves(zfs_host(needy(8 * GIB), available=3174 + 1000), ZFS) == {"db": 1512}


def test_a_plan_is_funded_out_of_the_cache_as_it_was_made() -> None:
    now = zfs_host(needy(8 * GIB))
    plan, _history = lazy_pass(now, ZFS)
    assert [move.after_kib for move in memory.fund(plan, ZFS, now, now)] == [(8 * GIB + 512) * MIB]


def test_what_was_lent_and_did_not_come_is_not_lent_again_for_a_take_that_stalls() -> None:
    policy = replace(ZFS, reclaim="eager")
    history = lazy_pass(zfs_host(needy(8 * GIB)), policy)[1]
    web = domain("web", 8192, unused=6000, usable=6500)
    stuck = read_anew(zfs_host(needy(8 * GIB + 512), web, available=188))
    plan = lazy_pass(stuck, policy, history)[0]
    assert moves(plan)["web"] < 0 < moves(plan)["db"]
    assert memory.fund(plan, policy, stuck, stuck, history) == ()


def bound(actual: int, **sizes: Any) -> Domain:
    return domain("db", actual, 32 * GIB, cells=frozenset({0}), **sizes)


def test_file_pages_of_a_cell_count_for_who_is_bound_to_it() -> None:
    now = with_cells(snapshot([bound(16 * GIB, **DYING)], available=70 * GIB, total=128 * GIB), cell())
    assert lazy_moves(now)["db"] == 220, "all that it needs"
    assert lazy_moves(now, safeties=NO_CACHES).get("db", 0) <= 20


@pytest.mark.parametrize(
    ("here", "most"),
    [
        (cell(free=100, low=100, clean=0, slab=0), 0),
        (cell(free=300, low=100, clean=0, slab=0), 200),
        (cell(free=0, low=0, clean=200, slab=100), 150),
        (cell(free=10, low=100, clean=400, slab=0), 200),
        (cell(free=0, low=0), 512),
    ],
)
def test_of_a_cell_what_is_free_above_its_watermark_and_half_of_its_caches(here: Cell, most: int) -> None:
    wanting = bound(8 * GIB, unused=400, usable=1000, owner=Owner({"floor": "20G"}))
    assert lazy_moves(with_cells(snapshot([wanting], available=70 * GIB, total=128 * GIB), here)).get("db", 0) == most


def test_debts_are_paid_out_of_a_cache_in_parts_too() -> None:
    assert lazy_moves(zfs_host(owed("web", 3000)), MemoryPolicy()) == {"web": 512}
