# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What keeps a plan back: ``hold``, ``cooldown`` and ``max_moves``; which vCPUs and domains stay where they are."""

from __future__ import annotations

import heapq
import math
from dataclasses import replace
from typing import Collection, NamedTuple, Optional, Sequence

from ...config import VcpuPolicy
from ...model import Snapshot
from .allowed import Seat
from .demand import contended
from .eligibility import Eligible
from .history import VcpuHistory, key_of
from .problem import NOWHERE
from .records import pin_records
from .safeties import Safeties
from .world import World

# A vCPU that was moved stays for this many passes, whatever the cool-down: the guard against ping-pong.
REST_PASSES = 3

# A vCPU that waits must get at least so much more elsewhere, in pCPUs.
LEAST_GAIN = 0.03

# A vCPU is moved at most once in this time for reasons that only more windows can prove.
ONCE_S = 600.0


# What a daemon may move in one pass unless its policy says so: this part of the vCPUs, and so many at least.
_PART, _LEAST = 0.03, 2

# The same for a plan that serves clearly more: each pass that it waits is work not done.
_WORK_PART, _WORK_LEAST = 0.20, 4


def budgeted(policy: VcpuPolicy, now: Snapshot) -> VcpuPolicy:
    """Return *policy* with what a daemon may move in one pass unless it says so."""
    if policy.max_moves is not None:
        return policy
    vcpus = sum(len(domain.vcpus) for domain in now.domains)
    calm, work = max(_LEAST, round(_PART * vcpus)), max(_WORK_LEAST, round(_WORK_PART * vcpus))
    return replace(policy, max_moves=calm, work_moves=work)


def held_back(policy: VcpuPolicy, past: VcpuHistory) -> str:
    """Return why a plan waits: fewer passes in a row than ``hold`` says found a reason to act. Empty: it need not."""
    found = past.held + 1
    return f"held back: pass {found} of {policy.hold} (hold) that must find this" if found < policy.hold else ""


def budget(policy: VcpuPolicy, urgent: bool) -> Optional[int]:
    """Return how many moves a pass may make, more for an *urgent* plan; None: any number."""
    return policy.work_moves or policy.max_moves if urgent else policy.max_moves


class LastMove(NamedTuple):
    """How long ago a vCPU was moved by us, and how many passes, where that is known."""

    since_s: float
    passes: Optional[int] = None


def last_move(seat: Seat, snapshot: Snapshot, history: VcpuHistory) -> Optional[LastMove]:
    """Return the last move that came about and that nobody undid: from the history, else from the domain's record.

    Who lost its pCPU was put elsewhere by the kernel: that undid it.
    """
    if (seat.domain.record is None and not history.moves) or lost_its_pcpu(seat, snapshot):
        return None
    past = history.moves.get(key_of(seat.domain, seat.vcpu))
    if past is not None and past.after == seat.vcpu.pin:
        return LastMove(snapshot.monotonic_s - past.when_s, history.number - past.number)
    if seat.domain.record is not None:
        for record in pin_records(seat.domain, snapshot):
            if record.thread == "vcpu" and record.id == seat.vcpu.id and record.intended == seat.vcpu.pin:
                since_s = snapshot.wall_s - record.when_s
                # Of a pin from the future nobody knows when it was made: the clock was set back since.
                return LastMove(since_s if since_s >= 0 else math.inf)
    return None


def lost_its_pcpu(seat: Seat, snapshot: Snapshot) -> bool:
    """Return whether all pCPUs that a vCPU is pinned to went offline."""
    return seat.vcpu.pin.isdisjoint(snapshot.host.topology.online)


# A domain does not change its cell again for this long (numad keeps 300 s): its memory has to follow.
CELL_COOLDOWN_S = 300.0


def rooted(
    world: World, policy: VcpuPolicy, eligible: Eligible, last: Sequence[Optional[LastMove]], now: Snapshot
) -> frozenset[int]:
    """Return the owners that keep their cell: moved within its cool-down, or with a pinned vCPU that can't come along.

    That is the policy's own cool-down, if it is longer. An owner that lost a pCPU has none: it would be crowded into
    what is left of its cell.
    """
    cooldown_s = max(CELL_COOLDOWN_S, policy.cooldown_s)
    stays = set()
    owners = {}
    items = set()
    lost = {owner for owner, seat in zip(world.problem.owner, world.seats) if lost_its_pcpu(seat, now)}
    for owner, seat, move in zip(world.problem.owner, world.seats, last):
        owners[seat.domain.uuid] = owner
        items.add((seat.domain.uuid, seat.vcpu.id))
        if move is not None and move.since_s < cooldown_s and owner not in lost:
            stays.add(owner)
    for seat in eligible.seats:
        if len(seat.now) == 1 and (seat.domain.uuid, seat.vcpu.id) not in items and seat.domain.uuid in owners:
            stays.add(owners[seat.domain.uuid])
    return frozenset(stays)


def resting_items(
    world: World, policy: VcpuPolicy, last: Sequence[Optional[LastMove]], safeties: Safeties
) -> list[bool]:
    """Return which items stay: those that were moved lately."""
    problem = world.problem
    stays = [False] * len(problem.load)
    for item, move in enumerate(last):
        if move is not None and problem.now[item] != NOWHERE:
            resting = safeties.rest and move.passes is not None and move.passes <= REST_PASSES
            stays[item] = resting or move.since_s < policy.cooldown_s
    return stays


def _rounded(weight: float) -> float:
    """Return *weight* to 9 %, exact for powers of two: thousands of guests have few weights then."""
    return math.pow(2.0, round(8 * math.log2(weight)) / 8)


def _best_shares(
    world: World, kinds: Collection[tuple[int, float]]
) -> dict[tuple[int, float], list[tuple[float, int]]]:
    """Return, for each class of bins and weight, the two best shares that one more vCPU would get, and their bins.

    Who weighs less gets no more on any bin, so what a heavier one would get says where to stop looking.
    """
    best = {}
    known: dict[int, list[tuple[float, int]]] = {}
    for reach, weight in sorted(kinds, key=lambda kind: -kind[1]):
        shares = known.setdefault(reach, [(1.0, b) for b in world.problem.classes[reach]])
        two = [(-1.0, NOWHERE)] * 2
        for position, (most, bin_) in enumerate(shares):
            if most < two[1][0]:
                break
            share = world.newcomer_share(bin_, weight)
            shares[position] = share, bin_
            two = heapq.nlargest(2, [*two, (share, bin_)])
        shares.sort(reverse=True)
        best[reach, weight] = two
    return best


def content_items(world: World) -> list[bool]:
    """Return which waiting items would get no more on any other bin than they have.

    One window can't tell a vCPU that wants all from one that wants a little more than it gets. If its move
    unloads one pCPU as much as it loads another, the next pass would send the next one back.
    """
    problem = world.problem
    content = [False] * len(problem.load)
    waiting = [i for i, demand in enumerate(world.demands) if contended(demand) and problem.now[i] != NOWHERE]
    kinds = [(problem.reach[item], _rounded(world.weights[item])) for item in waiting]
    best = _best_shares(world, set(kinds))
    for item, kind in zip(waiting, kinds):
        share = next((share for share, b in best[kind] if b != problem.now[item]), 0.0)
        content[item] = share < world.demands[item].run + LEAST_GAIN
    return content
