# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's level: how far what is available is below the reserve. The lower, the harder guests are asked to give."""

from __future__ import annotations

# Host levels by what is available, as a share of the reserve; a level is left only this factor above its entry.
LEVEL_BELOW = {"soft": 1.0, "hard": 0.5, "low": 0.25}
LEVEL_LEAVE = 1.1
# Tasks that all stand still waiting for memory this share of the last 10 s: the host thrashes.
LOW_PSI_FULL_PCT = 10.0

_ORDER = ("ok", "soft", "hard", "low")


def level_of(available_kib: int, reserve_kib: int, psi_full_pct: float, before: str) -> str:
    """Return ok, soft, hard or low. What was entered is left only clearly above its entry (facts: ESX, hypeman)."""
    level = "ok"
    for name, share in LEVEL_BELOW.items():
        leave = LEVEL_LEAVE if _ORDER.index(before) >= _ORDER.index(name) else 1.0
        if available_kib < reserve_kib * share * leave:
            level = name
    thrashing_pct = LOW_PSI_FULL_PCT / 2 if before == "low" else LOW_PSI_FULL_PCT
    return "low" if psi_full_pct > thrashing_pct else level
