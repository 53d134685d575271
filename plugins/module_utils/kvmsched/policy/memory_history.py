# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is remembered between two memory passes: plain data, handed in and handed back.

A pass without it is safe: it only knows less (no rise of demand over time, no back-off).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional


# Not frozen, unlike all other data: a thousand are made in every pass, and freezing them costs a tenth of it.
@dataclass
class Seen:
    """One domain as the last pass saw it; fields named as in Balloon are the last reading, in KiB.

    ``used_kib`` is what the last settled reading said was used, and ``used_s`` when that was taken.
    ``moved_s`` and ``direction`` (1 given, -1 taken, 0 none) are its last planned move, ``reversals``
    how often the direction turned lately. ``stuck_asked_s`` is the record's time of the last request
    that it did not follow, ``stuck_times`` how many such requests in a row. ``futile_s`` is when the
    host was found to keep what it gave back, ``booted_s`` when a reboot was seen. All times are wall
    clock. ``at_risk_kib`` is what it may still touch beyond ``rss``, for a pass that can't observe it.
    """

    last_update_s: int
    actual_kib: int
    used_kib: Optional[int] = None
    used_s: int = 0
    rss_kib: Optional[int] = None
    swap_in_kib: Optional[int] = None
    swap_out_kib: Optional[int] = None
    major_faults: Optional[int] = None
    at_risk_kib: int = 0
    direction: int = 0
    moved_s: float = 0.0
    reversals: int = 0
    stuck_asked_s: int = 0
    stuck_times: int = 0
    futile_s: float = 0.0
    booted_s: float = 0.0


@dataclass(frozen=True)
class MemoryHistory:
    """``level`` is the host's state at the last pass, ``domains`` maps UUID to what was seen of it."""

    level: str = "ok"
    domains: dict[str, Seen] = field(default_factory=dict)
