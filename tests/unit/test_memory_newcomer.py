# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Room for a guest that is to start, what is owed, and a host where nothing is taken."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Optional

import pytest
from kvmsched import config
from kvmsched.config import MemoryPolicy
from kvmsched.model import Cell, Domain, MemoryPlan, MemoryRecord, Record, RoomRequest, Snapshot, Topology
from kvmsched.policy import memory
from kvmsched.units import Amount
from memory_worlds import HOST_UUID, MIB, NOW_S, decide, domain, its_comfort, moves, pair, snapshot, swaps

RESERVE = MemoryPolicy(host_reserve=Amount(kib=1024 * MIB))
IDLE: dict[str, Any] = {"actual": 8192, "unused": 6000, "usable": 7000}
CACHED: dict[str, Any] = {"actual": 8192, "unused": 200, "usable": 6000}
STARVED: dict[str, Any] = {"actual": 2048, "maximum": 4096, "unused": 20, "usable": 96}


def asking(mib: int, cells: Optional[frozenset[int]] = None, policy: MemoryPolicy = RESERVE) -> MemoryPolicy:
    return replace(policy, room=RoomRequest(mib * MIB, cells, NOW_S - 60))


def room(plan: MemoryPlan) -> tuple[int, int, int]:
    """What is asked for, there and lacking, in MiB."""
    assert plan.room is not None
    return plan.room.kib // MIB, plan.room.there_kib // MIB, plan.room.lacks_kib // MIB


def test_what_is_there_is_kept_and_nobody_pays() -> None:
    plan = decide(snapshot([domain("idle", **IDLE)], available=10240), asking(8192))
    assert moves(plan) == {} and room(plan) == (8192, 8192, 0) and plan.room and not plan.room.why


def test_without_being_asked_nobody_pays() -> None:
    assert moves(decide(snapshot([domain("idle", **IDLE)], available=3072), RESERVE)) == {}


def test_what_serves_nothing_goes_before_cache() -> None:
    now = snapshot([domain("idle", **IDLE), domain("cached", **CACHED)], available=3072)
    plan = decide(now, asking(3600))
    taken = moves(plan)
    assert set(taken) == {"idle"} and taken["idle"] < 0
    asked, there, lacks = room(plan)
    assert (asked, there) == (3600, 3072 - 1024) and lacks == max(0, asked - there + taken["idle"])


def test_cache_goes_down_to_what_a_donor_keeps_and_what_lacks_is_told() -> None:
    now = snapshot([domain("cached", **CACHED)], available=3072)
    plan = decide(now, asking(32768))
    taken = moves(plan)["cached"]
    assert -6000 < taken < 0 and plan.room is not None
    assert abs(room(plan)[2] - (32768 - 2048 + taken)) <= 1 and "on their way" in plan.room.why
    nothing = decide(snapshot([domain("full", 8192)], available=3072), asking(32768))
    assert moves(nothing) == {} and nothing.room and "no guest can do without more" in nothing.room.why


def test_comfort_gets_none_of_it_and_survival_does() -> None:
    """A guest that starves is kept alive from it; what it would have beyond that, it does not get."""
    starved = domain("starved", **STARVED)
    free = moves(decide(snapshot([starved], available=3072), RESERVE))["starved"]
    kept = moves(decide(snapshot([starved], available=3072), asking(2048))).get("starved", 0)
    assert 0 <= kept < free
    dying = domain("starved", **{**STARVED, "usable": 10})
    alive = moves(decide(snapshot([dying], available=3072), asking(2048)))["starved"]
    assert alive >= 150 // 2 - 10


def test_who_started_since_is_who_it_was_for() -> None:
    came = domain("new", 4096, started_s=NOW_S - 5, rss=200, last_update_s=0, period_s=5)
    plan = decide(snapshot([came, domain("idle", **IDLE)], available=9000), asking(4096))
    assert room(plan) == (0, 0, 0) and "idle" not in moves(plan)
    other = decide(snapshot([replace(came, started_s=NOW_S - 3600)], available=9000), asking(4096))
    assert room(other)[0] == 4096


def test_who_may_give_nothing_gives_nothing() -> None:
    plan = decide(snapshot([domain("idle", **IDLE)], available=3072), replace(asking(8192), grow_only=True))
    assert moves(plan) == {} and room(plan)[2] == 8192 - 2048


def test_once_it_is_there_the_next_pass_takes_nothing() -> None:
    now = snapshot([domain("idle", **IDLE)], available=3072)
    taken = -moves(decide(now, asking(3072)))["idle"]
    after = domain("idle", **{**IDLE, "actual": 8192 - taken, "unused": 6000 - taken, "usable": 7000 - taken})
    assert moves(decide(snapshot([after], available=3072 + taken), asking(3072))) == {}


def test_pairwise_makes_room_too() -> None:
    policy = asking(6144, policy=replace(RESERVE, strategy="pairwise"))
    assert moves(decide(snapshot([domain("cached", **CACHED)], available=3072), policy))["cached"] < 0


def on_cells(now: Snapshot, *free_mib: int) -> Snapshot:
    cells = tuple(Cell(number, frozenset(), free_kib=mib * MIB) for number, mib in enumerate(free_mib))
    return replace(now, host=replace(now.host, topology=Topology((), cells)))


def test_in_cells_who_is_bound_there_gives() -> None:
    here, there = (domain(f"cell{n}", **IDLE, cells=frozenset({n})) for n in (0, 1))
    now = on_cells(snapshot([here, there], available=20000), 1000, 19000)
    plan = decide(now, asking(3000, frozenset({0})))
    assert set(moves(plan)) == {"cell0"} and plan.room and plan.room.cells == {0}
    assert room(plan)[1] <= 1000 and room(plan)[2] == max(0, 3000 - 1000 + moves(plan)["cell0"])
    cached = decide(
        on_cells(snapshot([domain("cell0", **CACHED, cells=frozenset({0})), there], available=20000), 1000, 19000),
        asking(3000, frozenset({0})),
    )
    assert set(moves(cached)) == {"cell0"}, "cache goes where the host has plenty, but its cell has not"
    lacking = decide(on_cells(snapshot([there], available=20000), 1000, 19000), asking(3000, frozenset({0})))
    assert moves(lacking) == {} and room(lacking)[2] >= 2000 and lacking.room and "cells 0" in lacking.room.why


def test_in_cells_comfort_gets_none_of_it_and_survival_does() -> None:
    """What survival takes of it lacks then, and that is told."""
    now = on_cells(snapshot([swaps(cells=frozenset({0}))], available=64096, total=131072), 4096, 60000)
    plan = its_comfort(now, asking(4096, frozenset({0})))
    assert moves(plan) == {"db": 150 - 96} and room(plan) == (4096, 4096, 54)
    assert moves(its_comfort(now))["db"] > 3000


# ---------------------------------------------------------------- what is owed


def owed(name: str, actual: int, original: int, ordered: int = 0) -> Domain:
    """A content guest that has *actual* of its *original*, of which *ordered* were taken because somebody asked."""
    part = MemoryRecord(original * MIB, actual * MIB, actual * MIB, int(NOW_S) - 3600, ordered_kib=ordered * MIB)
    return domain(name, actual, 8192, unused=200, usable=1000, record=Record(HOST_UUID, 1, memory=part))


def repay(*domains: Domain, available: int = 16384, policy: MemoryPolicy = RESERVE) -> dict[str, int]:
    return moves(memory.repay(pair(snapshot(domains, available=available)), policy)[0])


def test_what_is_owed_goes_back_and_nothing_else_happens() -> None:
    assert repay(owed("db", 2048, 4096), owed("by-order", 2048, 4096, 2048), domain("idle", **IDLE)) == {"db": 2048}


def test_of_what_was_partly_taken_by_order_the_rest_goes_back() -> None:
    assert repay(owed("db", 2048, 4096, 1024)) == {"db": 1024}


def test_only_what_the_host_has_beyond_its_reserve_goes_back() -> None:
    paid = repay(owed("db", 2048, 4096), available=2048)
    assert 0 < paid["db"] <= 1024
    assert repay(owed("db", 2048, 4096), available=1024) == {}


def test_what_is_kept_for_a_newcomer_pays_no_debt() -> None:
    assert repay(owed("db", 2048, 4096), available=2048, policy=asking(1024)) == {}


def test_the_largest_debt_goes_first() -> None:
    paid = repay(owed("small", 2048, 2560), owed("large", 2048, 6144), available=4096)
    assert "large" in paid and paid["large"] > paid.get("small", 0)


# ---------------------------------------------------------------- a host where nothing is taken


@pytest.mark.parametrize("mode", ["act", "grow-only"])
def test_grow_only_gives_and_never_takes(mode: str) -> None:
    document = {"daemon": {"mode": mode}, "memory": {"reclaim": "eager", "host_reserve": "1G"}}
    policy = config.load_daemon({**document, "rules": [{"match": "idle", "memory": {"mode": "auto"}}]}).memory
    done = moves(decide(snapshot([domain("idle", **IDLE), domain("starved", **STARVED)]), policy))
    assert done["starved"] > 0 and ("idle" in done) == (mode == "act")


def test_grow_only_is_the_daemons_word_not_a_passs() -> None:
    assert not config.load({"daemon": {"mode": "grow-only"}}).memory.grow_only
    ignored = config.load_daemon({"daemon": {"mode": "grow-only"}, "memory": {"mode": "ignore"}}).memory
    assert ignored.settings_for(domain("db", 1024)).mode == "ignore"
