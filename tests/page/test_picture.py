# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``kvmsched replay --png`` with the real matplotlib, which no other test needs."""

from __future__ import annotations

from pathlib import Path

from face import REPOSITORY, ok
from test_replay import EAGER, day_of_memory

PYTHON = REPOSITORY / ".build/page/bin/python"


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    day_of_memory(tmp_path / "r", EAGER, passes=12)
    ok("replay", str(tmp_path / "r"), "--untouched", "--png", str(tmp_path / "p.png"), python=str(PYTHON))
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
