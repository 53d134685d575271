# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of reasons for leaving a domain alone, and its documentation."""

from __future__ import annotations

import re
import typing
from pathlib import Path

from kvmsched.model import VcpuCode
from kvmsched.policy.vcpu.eligibility import REASONS

DOCS = Path(__file__).resolve().parents[2] / "docs" / "vcpu.md"


def test_the_documentation_lists_every_code_in_the_order_of_the_table() -> None:
    codes = list(typing.get_args(VcpuCode))
    assert re.findall(r"^ *\| `([a-z-]+)` \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE) == codes
    assert list(dict.fromkeys(code for code, _reason in REASONS)) == codes[: len({code for code, _reason in REASONS})]
