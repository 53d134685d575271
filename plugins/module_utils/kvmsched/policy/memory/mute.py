# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests that starved and then fell silent: the memory they lack may be why they don't answer (decision 47)."""

from __future__ import annotations

from typing import Optional

from ...units import mib
from .guest import Guest
from .history import DomainHistory
from .sharing import Need

# After its original, each step is this share of its size; after so many steps without an answer it is skipped.
STEP_SHARE = 0.25
STEPS = 3
# It uses all that it has: less of its size is not resident.
RESIDENT_SHARE = 0.95


def mute_need(guest: Guest, seen: Optional[DomainHistory], wall_s: float) -> Optional[Need]:
    """Return the next step of a guest that was in need at its last reading and does not answer any more."""
    if not is_mute(guest, seen, wall_s) or seen is None or seen.fed_times >= STEPS:
        return None
    resident = (guest.balloon.rss_kib or 0) >= guest.actual_kib * RESIDENT_SHARE
    # A step of the future is none of now: the clock was set back since.
    early = 0 <= wall_s - seen.fed_s < 2 * guest.balloon.period_s
    if early or not resident or guest.pending_kib is not None:
        return None
    step_kib = guest.debt_kib or int(guest.actual_kib * STEP_SHARE)
    kib = min(step_kib, guest.ceiling_kib - guest.expected_kib)
    if kib < guest.limits.min_change_kib:
        return None
    age_s = max(0.0, wall_s - guest.balloon.last_update_s)
    why = f"it was in need and has not answered for {age_s:.0f} s, step {seen.fed_times + 1} of {STEPS}"
    return Need(guest, kib, 0, 0, 0, f"{why}, to {mib(guest.expected_kib + kib)}")


def is_mute(guest: Guest, seen: Optional[DomainHistory], wall_s: float) -> bool:
    """Return whether *guest* was in need at its last reading and does not answer any more; a reset ended that need."""
    if guest.skip is None or guest.skip[0] != "stale" or seen is None:
        return False
    return seen.pressed and not seen.boots(guest.balloon, wall_s)
