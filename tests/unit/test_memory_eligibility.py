# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every reason to leave a guest alone is explained in the docs, and no other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from kvmsched.model import MemoryCode

DOCS = Path(__file__).resolve().parents[2] / "docs" / "memory.md"


def test_the_docs_explain_each_code_in_its_order() -> None:
    explained = re.findall(r"^\| `([a-z-]+)` \|", DOCS.read_text(), re.MULTILINE)
    assert explained == list(get_args(MemoryCode))
