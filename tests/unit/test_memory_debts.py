# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was taken below an original is owed, and goes back; each test also without its safety."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from kvmsched import baseline
from kvmsched.config import MemoryPolicy
from kvmsched.model import (
    BalloonMove,
)
from kvmsched.policy import memory
from kvmsched.policy.memory.safeties import Safeties
from kvmsched.units import Amount
from memory_worlds import (
    AUTO,
    EDGE,
    GIB,
    HOST_UUID,
    MIB,
    NOW_S,
    OWED,
    RESERVE,
    STARVES,
    WASTEFUL,
    auto_plan,
    domain,
    in_room,
    lazy_moves,
    moves,
    owed,
    pair,
    record,
    snapshot,
    uuid_of,
)


def test_what_a_room_gives_to_a_need_it_does_not_give_back_to_who_is_owed_it() -> None:
    auto = MemoryPolicy(host_reserve=Amount(kib=RESERVE * MIB))
    now = in_room(snapshot([owed("web", 1000), domain("db", 2 * GIB, 4 * GIB, **STARVES)]), 500 + EDGE)
    assert lazy_moves(now, auto) == {"db": 129, "web": 371}


def test_a_debt_goes_back_whole_and_at_once_when_its_guest_starves() -> None:
    assert moves(auto_plan(snapshot([OWED]))) == {"db": 1000}
    assert moves(auto_plan(snapshot([OWED]), safeties=Safeties(debts=False))) == {"db": 129}


def test_a_debt_comes_before_comfort() -> None:
    other = domain("app", 2048, 8192, unused=20, usable=140)
    plan = auto_plan(snapshot([OWED, other], available=1024 + 500))
    assert moves(plan) == {"db": 490, "app": 10} or moves(plan) == {"db": 500}


def test_cache_yields_to_a_debt_and_to_no_growth() -> None:
    cache = domain("cache", 8192, unused=100, usable=6000)
    assert moves(auto_plan(snapshot([OWED, cache], available=1024)))["cache"] == -1000
    grows = replace(OWED, record=None)
    assert moves(auto_plan(snapshot([grows, cache], available=1024))) == {}


@pytest.mark.parametrize(
    ("kept", "policy", "back"),
    [
        (record(4096, 4096, 2048), AUTO, 2048),
        (record(4096, 4096, 2048), replace(AUTO, reclaim="eager"), 0),
        (record(4096, 4096, 2048), replace(AUTO, strategy="pairwise"), 0),
    ],
)
def test_a_host_that_was_eager_owes_once_it_is_no_more(kept: Any, policy: MemoryPolicy, back: int) -> None:
    now = snapshot([domain("db", 2048, 4096, unused=200, usable=400, record=kept)], available=16384)
    assert moves(auto_plan(now, policy=policy)).get("db", 0) == back


def test_what_was_ordered_is_not_owed() -> None:
    """The record tells how much of what lacks was taken by order, and what is given pays the rest first."""
    taken = BalloonMove("db", uuid_of("db"), 4096 * MIB, 3096 * MIB, "idle", ordered_kib=1000 * MIB)
    guest = domain("db", 4096, unused=200, usable=400)
    kept = baseline.intend(None, guest, taken, HOST_UUID, int(NOW_S))
    more = BalloonMove("db", uuid_of("db"), 3096 * MIB, 2596 * MIB, "needed")
    kept = baseline.intend(kept, guest, more, HOST_UUID, int(NOW_S) - 60)
    assert kept.memory is not None and kept.memory.ordered_kib == 1000 * MIB
    assert baseline.encode(kept).count("ordered_kib") == 1
    lean = domain("db", 2596, 4096, unused=200, usable=400, record=kept)
    assert moves(auto_plan(snapshot([lean]))) == {"db": 500}
    back = BalloonMove("db", uuid_of("db"), 2596 * MIB, 3896 * MIB, "needed")
    kept = baseline.intend(kept, lean, back, HOST_UUID, int(NOW_S))
    assert kept.memory is not None and kept.memory.ordered_kib == 200 * MIB


@pytest.mark.parametrize("ask", [memory.decide, memory.release])
def test_a_dimm_that_is_plugged_ends_no_debt(ask: Any) -> None:
    taken = BalloonMove("db", uuid_of("db"), 4096 * MIB, 3072 * MIB, "needed")
    kept = baseline.intend(None, domain("db", 4096, 8192), taken, HOST_UUID, int(NOW_S) - 3600)
    guest = domain("db", 3072 + 2048, 8192 + 2048, unused=200, usable=400)
    guest = replace(guest, record=baseline.resized(kept, guest.balloon))
    plan, _history = ask(pair(snapshot([guest])), AUTO)
    assert moves(plan) == {"db": 1024} and plan.adoptions == () and plan.owed_kib == {guest.uuid: 1024 * MIB}


def test_what_has_grown_and_serves_nothing_pays_debts_back() -> None:
    content = replace(OWED, balloon=replace(OWED.balloon, usable_kib=400 * MIB, unused_kib=200 * MIB))
    grown = domain("grown", 4048, 8192, unused=2000, usable=2100, record=record(3048, 3048, 4048))
    plan = auto_plan(snapshot([content, grown, domain("web", **WASTEFUL)], available=1024))
    assert moves(plan)["grown"] == -1000 and "web" not in moves(plan)


def test_a_guest_whose_memory_the_host_would_keep_gets_back_what_it_is_owed() -> None:
    """That is a reason not to take from it, and none not to give."""
    plugged = owed("db", 1024)
    assert plugged.balloon is not None
    plugged = replace(plugged, balloon=replace(plugged.balloon, inhibitors=("hostdev",)))
    assert moves(memory.repay(pair(snapshot([plugged])), AUTO)[0]) == {"db": 1024}
    assert moves(auto_plan(snapshot([plugged]))) == {"db": 1024}
