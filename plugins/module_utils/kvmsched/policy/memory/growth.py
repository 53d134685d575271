# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Growth: what a guest needs beyond what it holds, because it is below its floor, starves, swaps, or soon will."""

from __future__ import annotations

from typing import Optional

from ...model import BALLOON_TOLERANCE_KIB
from .guest import Guest
from .history import DomainHistory
from .mute import mute_need
from .safeties import Safeties
from .sharing import Need, symptoms

# A swapping guest needs at least this share of its memory more: what it holds in swap is not told.
SWAP_BOOST = 0.25


def need_of(guest: Guest, seen: Optional[DomainHistory], wall_s: float, safeties: Safeties) -> Optional[Need]:
    """Return what *guest* needs beyond what it holds: its floor, and more if it starves, swaps or soon will."""
    if not guest.judged:
        return mute_need(guest, seen, wall_s) if safeties.mute else None
    if guest.unanswered:
        return None
    limits, expected_kib, ceiling_kib = guest.limits, guest.expected_kib, guest.ceiling_kib
    if guest.blind and not guest.swapping:
        # What looks like use may be its cache: it has what it had, and more only if it swaps.
        ceiling_kib = min(ceiling_kib, max(guest.original_kib, expected_kib))
    floor_kib = min(limits.floor_kib, guest.ceiling_kib) - expected_kib
    floor_kib = floor_kib if floor_kib > BALLOON_TOLERANCE_KIB else 0
    if not (guest.starved or guest.swapping or guest.soon_starved):
        return Need(guest, 0, floor_kib, 0, 0, symptoms(guest)) if floor_kib else None
    growth_kib = max(0, ceiling_kib - expected_kib)
    # What was just promised is not raised for nothing: a driver that is stuck would be promised all there is.
    least_kib = limits.min_change_kib if expected_kib == guest.actual_kib or guest.late else 0
    wanted_kib = max(demand(guest) - expected_kib, least_kib, floor_kib, guest.debt_kib)
    # What would be left of it is too little for a command: it would never be given.
    wanted_kib = growth_kib if growth_kib - wanted_kib < limits.min_change_kib else wanted_kib
    survive_kib = min(max(0, guest.busy_kib + limits.survival_kib - expected_kib), growth_kib)
    floor_kib = max(0, floor_kib - survive_kib)
    debt_kib = min(max(0, guest.debt_kib - survive_kib - floor_kib), growth_kib)
    comfort_kib = max(0, wanted_kib - survive_kib - floor_kib - debt_kib)
    need = Need(guest, survive_kib, floor_kib, debt_kib, comfort_kib, symptoms(guest))
    need = need.at_most(max(growth_kib, floor_kib))
    worthwhile = need.total_kib >= limits.min_change_kib or floor_kib > 0
    return need if worthwhile and need.total_kib > 0 else None


def demand(guest: Guest) -> int:
    """Return what it would need to stand in the middle of its band, soon: used + rise + headroom, in KiB.

    What it swapped out since the last reading, or a share of its size while it swaps, is demand that
    its used memory can't show. Headroom is (starvation + waste) / 2 (decision 18).
    """
    # Of its size when it took its reading: what it was given since is no reason to give it more.
    read_kib = guest.actual_kib - (guest.available_kib - guest.usable_kib)
    boost_kib = int(max(0, read_kib) * SWAP_BOOST) if guest.swapping else 0
    return guest.busy_kib + guest.rise_kib + max(guest.hidden_kib, boost_kib) + guest.limits.middle_kib
