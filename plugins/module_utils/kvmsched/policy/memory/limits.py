# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One domain's settings in KiB, for its maximum."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...config import MemoryPolicy, MemorySettings
from ...model import BALLOON_TOLERANCE_KIB

# Usable memory without which a guest does not survive, in KiB and as a share of its maximum: whatever its band says.
SURVIVAL_LEAST_KIB = 150 * 1024
SURVIVAL_SHARE = 0.01

# No guest whose kernel drives a balloon lives in less: a record that says so was forged.
LEAST_ORIGINAL_KIB = 64 * 1024


@dataclass(frozen=True)
class Limits:
    """One domain's settings in KiB, for its maximum.

    ``floor_set``: the floor is a person's. ``middle_kib`` is where a move aims, inside the band between starvation and
    waste. ``cushion_kib`` is the usable memory that a donor keeps, so that noise does not starve it at once.
    ``survival_kib`` is the usable memory without which it does not survive: not more for a wide band in percent
    (decision 45).
    """

    starvation_kib: int
    survival_kib: int
    waste_kib: int
    floor_kib: int
    floor_set: bool
    ceiling_kib: int
    min_change_kib: int
    middle_kib: int
    cushion_kib: int
    weight: float
    mode: str
    reclaim: str

    def beside(self, original_kib: int) -> Limits:
        """Return the same for a domain that had so much at first: a floor that nobody set is no more than that.

        What lives in less needs nothing, and a release has to bring it back there.
        """
        least_kib = max(original_kib, LEAST_ORIGINAL_KIB)
        return self if self.floor_set or self.floor_kib <= least_kib else replace(self, floor_kib=least_kib)


def limits_of(settings: MemorySettings, policy: MemoryPolicy, maximum_kib: int) -> Limits:
    """Return *settings* in KiB for a domain with that maximum."""
    # Need is measured by it: where a percentage comes to nothing it is the least there is.
    starvation_kib, waste_kib = max(1, settings.starvation_kib(maximum_kib)), settings.waste_kib(maximum_kib)
    return Limits(
        starvation_kib=starvation_kib,
        survival_kib=min(starvation_kib, max(SURVIVAL_LEAST_KIB, int(maximum_kib * SURVIVAL_SHARE))),
        waste_kib=waste_kib,
        floor_kib=settings.floor_kib(maximum_kib),
        floor_set=settings.floor is not None,
        ceiling_kib=settings.ceiling_kib(maximum_kib),
        min_change_kib=_min_change(policy, maximum_kib, waste_kib - starvation_kib),
        middle_kib=(starvation_kib + waste_kib) // 2,
        cushion_kib=starvation_kib + (waste_kib - starvation_kib) // 4,
        weight=settings.weight,
        mode=settings.mode,
        reclaim=settings.reclaim,
    )


def _min_change(policy: MemoryPolicy, maximum_kib: int, band_kib: int) -> int:
    """Return the least change worth a command: 8M pairwise, max(16M, 2 %) fair (decision 17).

    The 2 % end at half the band: a move from its edge to its middle is that large. A larger
    least change would leave a big guest with size thresholds wasteful for ever.
    """
    if policy.min_change is not None:
        # Less than a balloon may miss its target by is no change.
        return max(BALLOON_TOLERANCE_KIB, policy.min_change.of(maximum_kib))
    if policy.strategy == "pairwise":
        return 8 * 1024
    return max(16 * 1024, min(maximum_kib // 50, band_kib // 2))
