# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a guest is left alone: reasons with their codes, and each code explained in the docs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from kvmsched.config import MemoryPolicy
from kvmsched.model import MemoryCode
from kvmsched.policy import memory
from kvmsched.policy.memory.history import MemoryHistory, Seen
from memory_worlds import MIB, NOW_S, decide, domain, pair, record, skips, snapshot

EAGER = MemoryPolicy(reclaim="eager")
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
    rises = Seen(int(NOW_S) - 6, 4096 * MIB, used_kib=1400 * MIB, used_s=int(NOW_S) - 6, grew_kib=100 * MIB)
    plan, _history = memory.decide([snapshot([young])], EAGER, MemoryHistory(domains={young.uuid: rises}))
    assert skips(plan) == codes and bool(plan.moves) is not bool(codes)
    if uptime_s == 30:
        assert "its use still rises by " in plan.skips[0].reason


def test_a_release_leaves_who_is_busy_as_it_is() -> None:
    """Both ways: who would be grown, and who would be shrunk."""
    for original in (3072, 1024):
        busy = domain("db", 2048, 4096, usable=1500, record=record(original, 4096, 2048), busy="a job is under way")
        plan, _history = memory.release(pair(snapshot([busy])), EAGER)
        assert not plan.moves and skips(plan) == {"db": "busy"}
        assert list(map(str, plan.not_restored)) == ["db: a job is under way"]
