# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One domain's settings: the least change, and of what percentages are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from kvmsched.config import MemoryPolicy, MemorySettings, Rule
from kvmsched.policy import memory
from kvmsched.policy.memory.limits import limits_of
from kvmsched.units import Amount
from memory_worlds import (
    AUTO,
    DYING,
    GIB,
    MIB,
    RESERVE,
    domain,
    lazy_moves,
    pair,
    snapshot,
)


def test_the_least_change_never_keeps_a_big_guest_wasteful() -> None:
    """2 % of 64 GiB is more than the whole band between size thresholds."""
    limits = limits_of(MemorySettings(), MemoryPolicy(), 65536 * MIB)
    assert limits.min_change_kib == 75 * MIB
    assert limits_of(MemorySettings(), MemoryPolicy(), 512 * MIB).min_change_kib == 16 * MIB
    assert limits_of(MemorySettings(), MemoryPolicy(strategy="pairwise"), 512 * MIB).min_change_kib == 8 * MIB


def test_floors_are_of_what_a_balloon_can_have() -> None:
    """60G of NVDIMM: a tenth of them would be a floor far above the guest's memory."""
    pmem = domain("pmem", 2 * GIB, 64 * GIB, unused=200, usable=400, fixed_kib=60 * GIB * MIB)
    dying = domain("dying", 2 * GIB, 4 * GIB, **DYING)
    now = snapshot([pmem, dying], available=RESERVE + 200)
    assert lazy_moves(now) == {"dying": 200}
    percent = MemoryPolicy(reclaim="lazy", rules=(Rule("pmem", memory={"floor": Amount(pct=90)}),))
    assert lazy_moves(snapshot([pmem]), percent)["pmem"] == pytest.approx(0.9 * 4096 - 2048, abs=1)


@pytest.mark.parametrize("ask", [memory.decide, memory.repay])
def test_a_least_change_of_nothing_moves_nobody_by_nothing(ask: Any) -> None:
    now = snapshot([domain("calm", 4096, 8192, unused=200, usable=600)])
    plan, _history = ask(pair(now), replace(AUTO, min_change=Amount(kib=0)))
    assert plan.moves == ()
