# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of reasons for leaving a domain alone, and its documentation."""

from __future__ import annotations

import re
import typing
from dataclasses import replace
from pathlib import Path

import pytest
from kvmsched.config import Selection
from kvmsched.model import (
    VcpuCode,
)
from kvmsched.policy.vcpu.eligibility import REASONS
from vcpu_worlds import POLICY, codes, one_pass, own, pinned_guest

DOCS = Path(__file__).resolve().parents[2] / "docs" / "vcpu.md"


def test_the_documentation_lists_every_code_in_the_order_of_the_table() -> None:
    codes = list(typing.get_args(VcpuCode))
    assert re.findall(r"^ *\| `([a-z-]+)` \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE) == codes
    assert list(dict.fromkeys(code for code, _reason in REASONS)) == codes[: len({code for code, _reason in REASONS})]


def test_a_guest_that_has_a_part_of_the_cache_stays_and_has_nothing_of_its_own() -> None:
    tuned = pinned_guest("tuned", "4 5", definitions="4 5", fields={"cachetune": True})
    assert own(tuned).pcpus == frozenset()
    plan = one_pass(tuned, pinned_guest("float", "0 0", 0.9, fields={"cachetune": True}))
    assert plan.moves == () and set(codes(plan).values()) == {"cachetune"}


@pytest.mark.parametrize(("selection", "left"), [(("*",), True), (("vm*",), False), (("vm",), False)])
def test_a_guest_that_another_program_manages_is_moved_only_if_it_is_named(
    selection: tuple[str, ...], left: bool
) -> None:
    plan = one_pass(
        pinned_guest("vm", "0 0", 0.9, fields={"managed_by": "nova"}),
        policy=replace(POLICY, selection=Selection(selection)),
    )
    assert codes(plan) == ({"vm": "managed"} if left else {}) and bool(plan.moves) != left
