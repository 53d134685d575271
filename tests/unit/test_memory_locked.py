# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory that QEMU holds locked is not taken."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Optional

import pytest
from kvmsched.model import Domain
from kvmsched.policy.memory.history import MemoryHistory
from kvmsched.policy.memory.safeties import Safeties
from memory_worlds import (
    EAGER,
    GIB,
    MIB,
    NOW_S,
    domain,
    lazy_moves,
    lazy_pass,
    moves,
    read_anew,
    skips,
    snapshot,
)


def locked(mib: Optional[int], **more: Any) -> Domain:
    return domain("vm", 8 * GIB, unused=3000, usable=4000, locked_kib=None if mib is None else mib * MIB, **more)


@pytest.mark.parametrize(("mib", "kept"), [(None, False), (0, False), (4000, False), (4096, True), (8300, True)])
def test_from_who_has_half_of_its_memory_locked_nothing_is_taken(mib: Optional[int], kept: bool) -> None:
    now = snapshot([locked(mib)])
    plan, _history = lazy_pass(now, EAGER)
    assert (skips(plan) == {"vm": "inhibited"}) is kept and (moves(plan) == {}) is kept
    assert lazy_moves(now, EAGER, Safeties(locked=False))["vm"] < -1000


def test_after_two_looks_below_a_quarter_it_may_give_again() -> None:
    history: Optional[MemoryHistory] = None
    now, kept = snapshot([]), []
    for mib in (8192, 3000, 2000, 8192, 2000, None, 2000, 2000):
        age_s = int(now.wall_s - NOW_S)
        now = read_anew(now)
        now = replace(now, domains=(locked(mib, last_update_s=int(NOW_S) + age_s + 5),))
        plan, history = lazy_pass(now, EAGER, history)
        kept.append(skips(plan).get("vm") == "inhibited")
    assert kept == [True, True, True, True, True, True, False, False]


def test_no_locked_memory_is_no_acquittal_of_what_the_definition_says() -> None:
    assert skips(lazy_pass(snapshot([locked(0, inhibitors=("hostdev (VFIO)",))]), EAGER)[0]) == {"vm": "inhibited"}
