# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory that QEMU can't give back: locked, pinned, or on huge pages. A guest would lose it for nothing."""

from __future__ import annotations

from typing import Optional

from ...model import Balloon
from .history import DomainHistory
from .safeties import Safeties

# So much of a guest's size makes its balloon useless; below the second share it is useful again.
LOCKED_SHARE = 0.5
FREE_SHARE = 0.25
# For so many looks in a row it must be below that: a device that is replugged pins all again.
LOOKS = 2


def locked_kib(balloon: Balloon) -> int:
    """Return how much of the guest QEMU can't give back, as far as is known."""
    return (balloon.locked_kib or 0) + balloon.huge_kib


def locked_looks(balloon: Balloon, seen: Optional[DomainHistory], safeties: Safeties) -> int:
    """Return for how many more looks nothing may be taken from it (decision 50a)."""
    if not safeties.locked:
        return 0
    if locked_kib(balloon) >= LOCKED_SHARE * balloon.actual_kib > 0:
        return LOOKS
    before = seen.locked if seen is not None else 0
    known_free = balloon.locked_kib is not None and locked_kib(balloon) < FREE_SHARE * balloon.actual_kib
    return max(0, before - 1) if known_free else before
