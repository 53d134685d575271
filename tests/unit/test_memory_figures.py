# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a plan says in figures and words: waste, debts, what to do, and what to warn of."""

from __future__ import annotations

from dataclasses import replace

from kvmsched.config import MemorySettings
from kvmsched.model import HostMemory
from kvmsched.policy import memory
from kvmsched.policy.memory.history import MemoryHistory
from memory_worlds import (
    AUTO,
    MIB,
    OWED,
    STARVED_OF_8G,
    WASTEFUL,
    auto_plan,
    domain,
    on_credit,
    pair,
    record,
    snapshot,
)


def test_what_is_wasted_and_owed_is_told_with_the_option_that_takes_it() -> None:
    content = replace(OWED, balloon=replace(OWED.balloon, usable_kib=400 * MIB, unused_kib=200 * MIB))
    plan = auto_plan(snapshot([content, domain("web", **WASTEFUL)], available=1100))
    assert plan.after.wasted_kib == 1700 * MIB and plan.after.owed_kib == 1000 * MIB
    assert plan.note == "1700M of waste stays with the guests: to take it would help nobody now; reclaim=eager takes it"
    eager = auto_plan(snapshot([domain("web", **WASTEFUL)]), policy=replace(AUTO, reclaim="eager"))
    assert eager.note == ""


def test_a_frozen_host_says_what_to_do() -> None:
    now = snapshot([domain("db", **{**STARVED_OF_8G, "usable": 100})], available=4096)
    now = replace(now, host=replace(now.host, memory=HostMemory(32768 * MIB, 4096 * MIB, psi_full_avg10_pct=25.0)))
    assert "free memory on the host, or move a guest away" in auto_plan(now).unmet[0].reason


def test_nobody_is_told_to_take_what_no_option_takes() -> None:
    now = snapshot([domain("web", 4096, unused=2000, usable=2500)])
    assert "1700M of waste" in auto_plan(now).note
    assert auto_plan(now, policy=replace(AUTO, settings=MemorySettings(mode="grow-only"))).note == ""


def test_who_did_not_take_what_it_was_given_is_not_told_that_the_host_has_no_more() -> None:
    now = snapshot([domain("db", 2048, 8192, unused=10, usable=20, record=record(2048, 2048, 2100, 5))])
    (unmet,) = auto_plan(now).unmet
    assert "2100M was asked, it has 2048M: it gets more once it took that" in unmet.reason


def test_credit_above_the_reserve_is_warned_of() -> None:
    owes = replace(MemoryHistory(), credit_kib=3000 * MIB)
    plan, _history = memory.decide(pair(on_credit()), AUTO, owes)
    assert [line for line in plan.warnings if "on credit, more than the reserve 1024M" in line]
    assert not [line for line in auto_plan(on_credit()).warnings if "credit" in line]
