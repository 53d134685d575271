# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All worlds."""

from __future__ import annotations

from . import faults, fleets, troubles
from .drawing import KINDS, Kind, draw

__all__ = ["KINDS", "Kind", "draw", "faults", "fleets", "troubles"]
