# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Host memory that the kernel has to free first: the ZFS cache, and the file pages of a cell (decision 50).

It counts in full where the question is whether the host is short. It is given in small parts, and the next part only
once the last one was seen to come: a cache may give way slowly, or not at all.
"""

from __future__ import annotations

from dataclasses import dataclass

# At most so much is given at once beyond what is free.
LOAN_KIB = 512 * 1024


@dataclass(frozen=True)
class Lent:
    """What was given beyond free memory and not seen to come yet; ``cache_kib`` and ``free_kib`` as they were then."""

    kib: int = 0
    cache_kib: int = 0
    free_kib: int = 0

    @property
    def lendable_kib(self) -> int:
        """Return how much more may be given beyond free memory."""
        return max(0, min(self.cache_kib, LOAN_KIB - self.kib))

    def now(self, cache_kib: int, free_kib: int) -> Lent:
        """Return what is still to come: a cache that shrank, or memory that became free, is what was waited for."""
        came_kib = max(0, self.cache_kib - cache_kib, free_kib - self.free_kib)
        return Lent(max(0, self.kib - came_kib), cache_kib, free_kib)

    def more(self, beyond_kib: int) -> Lent:
        """Return the same after *beyond_kib* more were given than was free."""
        return Lent(self.kib + max(0, beyond_kib), self.cache_kib, self.free_kib)


NOTHING_LENT = Lent()
