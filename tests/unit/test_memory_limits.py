# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One domain's settings: the least change, and of what percentages are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from kvmsched.app.status import describe_domains
from kvmsched.config import MemoryPolicy, MemorySettings, Rule
from kvmsched.model import Owner
from kvmsched.policy import memory
from kvmsched.policy.memory.limits import limits_of
from kvmsched.policy.vcpu.demand import Loads
from kvmsched.units import Amount
from memory_worlds import (
    AUTO,
    DYING,
    GIB,
    MIB,
    RESERVE,
    auto_plan,
    domain,
    lazy_moves,
    moves,
    pair,
    record,
    skips,
    snapshot,
)


def test_the_least_change_never_keeps_a_big_guest_wasteful() -> None:
    """2 % of 64 GiB is more than the whole band between size thresholds."""
    limits = limits_of(MemorySettings(), MemoryPolicy(), 65536 * MIB)
    assert limits.min_change_kib == 75 * MIB
    assert limits_of(MemorySettings(), MemoryPolicy(), 512 * MIB).min_change_kib == 16 * MIB
    assert limits_of(MemorySettings(), MemoryPolicy(strategy="pairwise"), 512 * MIB).min_change_kib == 8 * MIB


def test_nobody_pays_for_a_floor_that_nobody_set() -> None:
    """Of 64G it has 2 and uses less than 1: a tenth of its maximum is more than it ever had."""
    calm = domain("calm", 2 * GIB, 64 * GIB, unused=900, usable=1200)
    idle = [domain(f"idle{number}", 16 * GIB, unused=9000, usable=12000) for number in range(3)]
    assert moves(auto_plan(snapshot([calm, *idle], available=RESERVE))) == {}
    assert moves(auto_plan(snapshot([calm], available=30000))) == {}
    (told,) = describe_domains(snapshot([calm]), None, None, Loads(), MemoryPolicy(), {})
    assert told.floor_kib == 2 * GIB * MIB, "explain says so"
    asked = replace(calm, owner=Owner({"floor": "6G"}))
    assert moves(auto_plan(snapshot([asked, *idle], available=RESERVE)))["calm"] == 4 * GIB


def test_what_grew_from_below_a_default_floor_is_released_to_where_it_was() -> None:
    grown = domain("db", 8 * GIB, 64 * GIB, unused=6000, usable=7000, record=record(2 * GIB, 2 * GIB, 8 * GIB))
    plan, _history = memory.release(pair(snapshot([grown], available=30000)), AUTO)
    assert moves(plan) == {"db": -6 * GIB} and plan.not_restored == ()
    forged = replace(grown, record=record(1, 1, 8 * GIB))
    assert moves(memory.release(pair(snapshot([forged], available=30000)), AUTO)[0]) == {"db": 8 * -GIB + 1192 + 150}


def test_floors_are_of_what_a_balloon_can_have() -> None:
    """60G of NVDIMM: a tenth of them would be a floor far above the guest's memory."""
    pmem = domain("pmem", 2 * GIB, 64 * GIB, unused=200, usable=400, fixed_kib=60 * GIB * MIB)
    dying = domain("dying", 2 * GIB, 4 * GIB, **DYING)
    now = snapshot([pmem, dying], available=RESERVE + 200)
    assert lazy_moves(now) == {"dying": 200}
    percent = MemoryPolicy(reclaim="lazy", rules=(Rule("pmem", memory={"floor": Amount(pct=90)}),))
    assert lazy_moves(snapshot([pmem]), percent)["pmem"] == pytest.approx(0.9 * 4096 - 2048, abs=1)
    (told,) = describe_domains(snapshot([pmem]), None, None, Loads(), MemoryPolicy(), {})
    assert told.floor_kib == 4 * GIB * MIB // 10


@pytest.mark.parametrize(("ask", "skipped"), [(memory.decide, {"pmem": "bad-policy"}), (memory.release, {})])
def test_an_owner_whose_percent_come_to_nothing_ends_no_pass(ask: Any, skipped: dict[str, str]) -> None:
    """They are more than nothing of its maximum, but most of that is NVDIMM."""
    owner = Owner({"starvation": "0.00005%", "waste": "0.0002%"})
    odd = {"fixed_kib": 60 * GIB * MIB, "owner": owner, "record": record(1024, 1024, 256)}
    pmem = domain("pmem", 256, 61 * GIB, unused=10, usable=10, **odd)
    others = [domain(f"n{i}", 1024, 4096, record=record(2048, 2048, 1024), **DYING) for i in range(3)]
    plan, _history = ask(pair(snapshot([pmem, *others], available=RESERVE + 20)), AUTO)
    assert plan.moves and skips(plan) == skipped


def test_no_threshold_is_nothing() -> None:
    nothing = MemorySettings(starvation=Amount(pct=1), waste=Amount(pct=2))
    assert limits_of(nothing, MemoryPolicy(), 0).starvation_kib == 1


@pytest.mark.parametrize("ask", [memory.decide, memory.repay])
def test_a_least_change_of_nothing_moves_nobody_by_nothing(ask: Any) -> None:
    now = snapshot([domain("calm", 4096, 8192, unused=200, usable=600)])
    plan, _history = ask(pair(now), replace(AUTO, min_change=Amount(kib=0)))
    assert plan.moves == ()
