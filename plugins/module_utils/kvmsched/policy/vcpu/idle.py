# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which vCPUs are idle and need no place of their own, and which want no more than they got: they wait for nothing."""

from __future__ import annotations

# An item up to this load counts as idle: it is not worth a place of its own (decision 27 says 2 %; but guests that
# did nothing at all were measured at 2.5 to 3.4 % under TCG, with statistics every second).
IDLE = 0.05


# What ran up to the first part of its share wants no more; from the second on it may want more.
_CONTENT, _WANTS_MORE = 0.5, 0.9


def is_idle(load: float, resolution: float) -> bool:
    """Return whether a floating vCPU with this *load* is left floating, for a pin would gain nothing (decision 27).

    *resolution* is the least load that can be told from none. Both are fractions of one pCPU.
    """
    return load <= IDLE + resolution


def wants_more(run: float, entitled: float) -> float:
    """Return how surely a vCPU that waited wants more than it ran: 0 (not at all) to 1.

    The kernel shares a pCPU fairly: what ran far less than its weight *entitled* it to did not ask for
    more. Its waits are those of short wake-ups behind the busy ones.
    """
    return ramp(run, _CONTENT * entitled, _WANTS_MORE * entitled) if entitled > 0 else 1.0


def ramp(value: float, none: float, full: float) -> float:
    """Return 0 up to *none*, 1 from *full*, in proportion between them: no estimate jumps at an edge."""
    return min(1.0, max(0.0, (value - none) / (full - none)))
