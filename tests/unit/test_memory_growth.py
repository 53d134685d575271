# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a guest in need is given: enough, and no greed."""

from __future__ import annotations

import pytest
from kvmsched.model import (
    BalloonMove,
)
from kvmsched.policy import memory
from kvmsched.policy.memory.safeties import Safeties
from memory_worlds import (
    AUTO,
    EAGER,
    MIB,
    STARVED_OF_8G,
    WASTEFUL,
    a_tick_ago,
    auto_plan,
    decide,
    domain,
    moves,
    pair,
    record,
    snapshot,
    uuid_of,
)


def test_who_needs_nearly_all_gets_all() -> None:
    """The last 15M would be less than a command moves, and stay unmet for ever."""
    guest = domain("db", 900, 1024, unused=20, usable=116)
    (move,) = decide(snapshot([guest]), EAGER).moves
    assert isinstance(move, BalloonMove) and move.after_kib == 1024 * MIB


@pytest.mark.parametrize(("original", "gifts", "paid"), [(1024, 5, False), (1024, 4, True), (2048, 5, True)])
def test_who_fills_whatever_it_gets_is_fed_from_what_is_free_alone(original: int, gifts: int, paid: bool) -> None:
    """Others would want theirs again when nothing is free any more. Up to its original it gets what it had."""
    greedy = domain("db", **STARVED_OF_8G, record=record(original, original, 2048))
    both = [greedy, domain("idle", **WASTEFUL)]
    history = a_tick_ago(gifts=gifts, pressed=True)
    full = snapshot(both, available=1024)
    assert ("idle" in moves(auto_plan(full, history))) == paid
    assert "idle" in moves(auto_plan(full, history, Safeties(bottomless=False)))
    plan, later = memory.decide(pair(snapshot(both)), AUTO, history)
    assert set(moves(plan)) == {"db"} and later.domains[uuid_of("db")].gifts == gifts + 1


def test_a_gift_that_ends_a_need_is_no_greed() -> None:
    content = domain("db", 2048, 8192, unused=400, usable=500, record=record(1024, 1024, 2048))
    later = memory.decide(pair(snapshot([content])), AUTO, a_tick_ago(gifts=7, pressed=True))[1]
    assert later.domains[uuid_of("db")].gifts == 0
