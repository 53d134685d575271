# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which vCPUs should share a core: those that their guest takes for threads of one (decision 55b).

A guest that knows its cores lays its work on one thread of each, and which thread that is changes faster than passes
come. Where threads of two of its cores share one of the host, they are busy at the same time and slow each other down.
Mean loads do not show that. So it is a tie-break: vCPUs change places only where as much is served as before.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Iterator, Optional, Sequence

from .certainty import BETTER_SHARE, LEAST_DROP, LEAST_WORK, Judge
from .problem import NOWHERE
from .world import World

# So many exchanges are judged in a pass: each costs as much as to judge a plan.
_TRIES = 32


def told_threads(world: World) -> bool:
    """Return whether host and some guest have cores of several threads."""
    return world.problem.smt and any(seat.domain.guest_threads > 1 for seat in world.seats)


def together(world: World, where: Sequence[int], judge: Judge, most: Optional[int] = None) -> list[int]:
    """Return *where*, but with threads of one guest core on one core where that costs nothing; at most *most* swaps."""
    best, base = list(where), judge.gain(where)
    cores = _Cores(world)
    swaps = 0
    for _try, (item, other) in zip(range(_TRIES), cores.swaps(best)):
        if swaps == most:
            break
        tried = list(best)
        tried[item], tried[other] = best[other], best[item]
        found = judge.gain(tried)
        if (
            found.work > base.work - LEAST_WORK
            and found.share * BETTER_SHARE > base.share
            and found.drop > base.drop - LEAST_DROP
        ):
            best[item], best[other] = tried[item], tried[other]
            swaps += 1
    return best


class _Cores:
    """The host core of each bin, and the items of each guest core."""

    def __init__(self, world: World) -> None:
        self._world, problem = world, world.problem
        self._core = [min((b, *mates)) if mates else NOWHERE for b, mates in enumerate(problem.mates)]
        self._inside = [frozenset(bins) for bins in problem.classes]
        self._group: dict[int, tuple[int, int]] = {}
        self._members: dict[tuple[int, int], list[int]] = defaultdict(list)
        for item, (seat, owner) in enumerate(zip(world.seats, problem.owner)):
            if seat.domain.guest_threads > 1:
                group = owner, seat.vcpu.id // seat.domain.guest_threads
                self._group[item] = group
                self._members[group].append(item)

    def swaps(self, where: list[int]) -> Iterator[tuple[int, int]]:
        """Yield the exchanges that bring a vCPU to its guest core's others; *where* may change in between."""
        for _group, members in sorted(self._members.items()):
            homes = Counter(self._core[where[i]] for i in members if where[i] != NOWHERE)
            homes.pop(NOWHERE, None)
            if len(homes) < 2:
                continue
            home = min(homes, key=lambda core: (-homes[core], core))
            taken = {where[i] for i in members}
            for item in members:
                if where[item] != NOWHERE and self._core[where[item]] != home and not self._stays(item):
                    other = self._partner(where, item, home, taken)
                    if other is not None:
                        yield item, other

    def _stays(self, item: int) -> bool:
        return self._world.problem.stays[item]

    def _partner(self, where: Sequence[int], item: int, home: int, taken: set[int]) -> Optional[int]:
        """Return who on core *home* has a load nearest to that of *item*, and leaves none of its own there."""
        problem, mean = self._world.problem, self._world.mean
        here = [i for i, b in enumerate(where) if b != NOWHERE and self._core[b] == home]
        groups = Counter(self._group.get(i) for i in here)
        fitting = [
            other
            for other in here
            if where[other] not in taken
            and not problem.stays[other]
            and (other not in self._group or groups[self._group[other]] == 1)
            and where[other] in self._inside[problem.reach[item]]
            and where[item] in self._inside[problem.reach[other]]
        ]
        return min(fitting, key=lambda other: (abs(mean[other] - mean[item]), other), default=None)
