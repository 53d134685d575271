# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who would run how much, and who would wait, if vCPUs were pinned in another way."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Mapping, NamedTuple, Sequence

from ..model import Snapshot
from ..policy.vcpu.demand import Loads, VcpuKey, measure
from ..policy.vcpu.served import Claim, pour, served, thread_weight
from ..units import CpuSet

# Load at which a queue is taken to be as long as it gets.
_FULL = 0.98
# Who wakes runs before who runs already, so of the wait that equal turns would bring it has about half.
_OF_EQUAL_TURNS = 0.5
# Rounds in which those on one pCPU find out how often the others are ready, and when that is near enough.
_ROUNDS, _NEAR = 30, 1e-3


class Shares(NamedTuple):
    """What each vCPU runs and waits, as shares of the time, and how busy each pCPU is."""

    runs: Mapping[VcpuKey, float]
    waits: Mapping[VcpuKey, float]
    busy: Mapping[int, float]


@dataclass(frozen=True)
class Window:
    """What was wanted between two looks, by vCPU. ``seen`` is what came of it in ``places``.

    ``unseen`` is what may have been wanted beyond that: vCPUs that waited tell no more.
    """

    seconds: float
    wants: Mapping[VcpuKey, float]
    weights: Mapping[VcpuKey, float]
    places: Mapping[VcpuKey, CpuSet]
    foreign: Mapping[int, float]
    seen: Shares
    unseen: float = 0.0

    def shares(self, places: Mapping[VcpuKey, CpuSet]) -> Shares:
        """Return what would come of it where vCPUs may run in *places*: what was seen, and what the model changes."""
        if all(places.get(key, place) == place for key, place in self.places.items()):
            return self.seen
        before, after = self.model(self.places), self.model(places)
        runs = {
            key: _within(run + after.runs[key] - before.runs[key], max(run, self.wants[key]))
            for key, run in self.seen.runs.items()
        }
        waits = {
            key: _within(wait + after.waits[key] - before.waits[key], 1 - runs[key])
            for key, wait in self.seen.waits.items()
        }
        busy = {
            pcpu: _within(share + after.busy.get(pcpu, 0.0) - before.busy.get(pcpu, 0.0), 1.0)
            for pcpu, share in self.seen.busy.items()
        }
        return Shares(runs, waits, busy)

    def model(self, places: Mapping[VcpuKey, CpuSet]) -> Shares:
        """Return what the model says alone: shares as the kernel gives them, and queues in front of them."""
        keys = list(self.wants)
        where = [places.get(key, self.places[key]) for key in keys]
        claims = [Claim(self.wants[key], self.weights[key], place) for key, place in zip(keys, where)]
        others = [Claim(share, 1.0, frozenset({pcpu})) for pcpu, share in self.foreign.items() if share > 0]
        got = served([*claims, *others], list(self.foreign))
        busy = _laid([*where, *(claim.place for claim in others)], got, self.foreign)
        ready = _ready([*claims, *others], got)
        waits = {}
        for key, place, claim, run, share in zip(keys, where, claims, got, ready):
            lacks = max(0.0, claim.want - run)
            alone = len(place) == 1
            wait = max(lacks, _OF_EQUAL_TURNS * (share - run)) if alone else lacks + queued(run, place, busy)
            waits[key] = min(1 - run, wait)
        return Shares(dict(zip(keys, got)), waits, busy)


def _within(value: float, most: float) -> float:
    return min(max(0.0, value), max(0.0, most))


def _laid(places: Sequence[CpuSet], runs: Sequence[float], pcpus: Mapping[int, float]) -> dict[int, float]:
    """Return how busy each pCPU is, where what runs in a set lies over it as evenly as all sets allow."""
    totals: dict[CpuSet, float] = defaultdict(float)
    online = frozenset(pcpus)
    for place, run in zip(places, runs):
        totals[place & online] += run
    totals.pop(frozenset(), None)
    busy = dict.fromkeys(pcpus, 0.0)
    for parts in pour(totals).values():
        for pcpu, part in parts.items():
            busy[pcpu] += part
    return busy


def _ready(claims: Sequence[Claim], runs: Sequence[float]) -> list[float]:
    """Return the share of time in which each thread with one pCPU runs or waits, where all that are ready take turns.

    Mean value analysis: while it is ready, the others are there as often as they are ready themselves. Unlike a
    queue of random arrivals, that of a few threads does not grow beyond their number.
    """
    ready = list(runs)
    together: dict[CpuSet, list[int]] = defaultdict(list)
    for index, claim in enumerate(claims):
        if len(claim.place) == 1:
            together[claim.place].append(index)
    for items in together.values():
        for _round in range(_ROUNDS):
            total = sum(claims[i].weight * ready[i] for i in items)
            fresh = [min(1.0, runs[i] * (total / claims[i].weight + 1 - ready[i])) for i in items]
            near = all(abs(share - ready[i]) < _NEAR for share, i in zip(fresh, items))
            for share, i in zip(fresh, items):
                ready[i] = share
            if near:
                break
    return ready


def queued(run: float, place: CpuSet, busy: Mapping[int, float]) -> float:
    """Return the share of time that a thread of several pCPUs stands in the queue though it gets all it wants.

    Random arrivals find the queue as it is without them; that of *n* pCPUs is Sakasegawa's (1977) approximation of
    M/M/n.
    """
    size = len(place)
    if not size or run <= 0:
        return 0.0
    others = _within(sum(busy.get(pcpu, 0.0) for pcpu in place) / size - run / size, _FULL)
    power = math.sqrt(2 * (size + 1)) - 2
    return run / size * others / (1 - others) * (others**power if power > 0 else 1.0)


def window(before: Snapshot, now: Snapshot) -> Window:
    """Return what was wanted between two looks, and what came of it."""
    loads = measure([before, now])
    return Window(
        seconds=loads.window_s,
        wants={key: demand.low for key, demand in loads.demand.items()},
        weights=_weights(now, loads),
        places={key: demand.place for key, demand in loads.demand.items()},
        foreign={pcpu: loads.foreign.get(pcpu, 0.0) for pcpu in loads.busy},
        seen=Shares(
            {key: demand.run for key, demand in loads.demand.items()},
            {key: demand.wait for key, demand in loads.demand.items()},
            loads.busy,
        ),
        unseen=sum(demand.high - demand.low for demand in loads.demand.values()),
    )


def _weights(now: Snapshot, loads: Loads) -> dict[VcpuKey, float]:
    found = {}
    for domain in now.domains:
        keys = [(domain.uuid, vcpu.id) for vcpu in domain.vcpus]
        wants = {key: loads.demand[key].low for key in keys if key in loads.demand}
        total = sum(wants.values())
        found.update({key: thread_weight(domain.cpu_weight, want, total) for key, want in wants.items()})
    return found
