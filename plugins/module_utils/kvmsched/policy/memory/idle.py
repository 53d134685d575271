# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Idle memory that a daemon takes without need: only from guests that can take it back, or whose owner says so.

What it takes was unused for an hour or more; the guest keeps what it may need (decision 42).
"""

from __future__ import annotations

from typing import Optional

from .donors import Donor
from .history import IDLE_S, DomainHistory

# So much longer than one window unused memory is watched after the guest took some of it back.
WARY_FACTOR = 4
# A guest keeps this share of its maximum unused.
IDLE_KEEP_SHARE = 0.1


def reclaim_idle(donor: Donor, seen: Optional[DomainHistory], wall_s: float) -> None:
    """Mark what *donor* left unused all the while, if it may be taken."""
    guest = donor.guest
    if seen is None or seen.idle_old_kib is None or guest.starved:
        return
    if guest.limits.reclaim != "idle" and not (guest.balloon.autodeflate and seen.returned_s):
        return
    if 0 <= wall_s - seen.missed_s < WARY_FACTOR * IDLE_S:
        return
    worst_kib = max(seen.worst_kib, seen.worst_old_kib)
    kept_kib = max(guest.limits.waste_kib, worst_kib, int(guest.balloon.maximum_kib * IDLE_KEEP_SHARE))
    kib = min(min(seen.idle_kib, seen.idle_old_kib, guest.unused_kib) - kept_kib, guest.actual_kib - guest.soft_kib)
    if kib >= guest.limits.min_change_kib and kib > donor.taken_kib:
        donor.order(kib)
