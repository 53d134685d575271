# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The four guests that the daemon is tried on, by hand and under systemd."""

from __future__ import annotations

from typing import Any

from lab import Guest

HOG, LAZY, BUSY, CALM = (f"kvmsched-test-{name}" for name in ("hog", "lazy", "busy", "calm"))


def four() -> list[Guest]:
    """Two guests with memory at odds, and two more that share pCPU 0 with all of them."""
    return [
        Guest(HOG, memory_mib=512, current_mib=256, hold_mib=180, cpu=[0.1], pin={0: "0"}),
        Guest(LAZY, memory_mib=512, cpu=[0.1], pin={0: "0"}),
        Guest(BUSY, memory_mib=256, hold_mib=60, cpu=[0.5], pin={0: "0"}),
        Guest(CALM, memory_mib=256, hold_mib=60, cpu=[0.4], pin={0: "0"}),
    ]


def nothing_due(domains: dict[str, dict[str, Any]]) -> bool:
    """Whether none is starved and none has waste, in a status: rest alone may end by itself, as a back-off does."""
    return all(
        domain["usable_kib"] >= domain["starvation_kib"] and domain["unused_kib"] <= domain["waste_kib"]
        for domain in domains.values()
    )
