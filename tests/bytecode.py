# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was compiled once is not compiled again by pytest's next process, and nothing is written beside the sources.

pytest rewrites the assertions of all of Hypothesis and of each test file: seconds for each of its processes, where the
environment forbids bytecode. Import it before them.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.dont_write_bytecode = False
sys.pycache_prefix = str(Path(__file__).resolve().parents[1] / ".build/bytecode")
