# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which moves of a plan serve somebody on the pCPUs themselves: those into a part of a group, or beside memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Mapping, Sequence

from ...units import CpuSet
from .allowed import Seat
from .certainty import LEAST_WORK, ordered
from .problem import NOWHERE
from .proposal import Decision, moved
from .scene import Scene, by_pcpu
from .width import new_pins
from .world import World

# So many moves are judged one by one in a pass: each costs as much as to judge a plan.
_TRIES = 32


def that_serve(scene: Scene, decision: Decision) -> tuple[Decision, dict[int, CpuSet]]:
    """Return *decision* without the moves that serve nobody in a part of a group, or beside its memory; and its pins.

    A plan of groups takes it that the kernel balances load within each. It does not do so with a pin to one pCPU.
    Who was pinned away from its memory is placed beside it, which is no gain where all is full.
    """
    proposal, world = decision.proposal, scene.world
    now, pins = world.allowed.now, new_pins(scene, proposal.where)
    free = {i for i in pins if now[i] != NOWHERE or world.seats[i].now <= world.seats[i].allowed}
    parts = {i for i in free if pins[i] < world.bins[proposal.where[i]]}
    parts |= {i for i in pins if now[i] == NOWHERE and _only_away_from_memory(scene, world.seats[i])}
    if not parts:
        return decision, pins
    fine = by_pcpu(scene).world

    def work(where: Sequence[int]) -> float:
        return _work(fine, world, new_pins(scene, where))

    kept = [bin_ if i in parts else where for i, (bin_, where) in enumerate(zip(now, proposal.where))]
    least = LEAST_WORK if "work" in proposal.triggers else -LEAST_WORK
    whole, done = work(proposal.where), work(kept)
    enough = whole >= done + least
    for item in [i for i in ordered(world, proposal.where) if i in parts][:_TRIES]:
        tried = [*kept]
        tried[item] = proposal.where[item]
        found = work(tried)
        if found >= done + LEAST_WORK:
            kept, done = tried, found
    if enough and whole > done - LEAST_WORK:
        return decision, pins
    why = "moves that would serve nobody, where a pin gets a part of a group only or goes to its memory, are left out"
    note = f"{proposal.note}; {why}" if proposal.note and moved(world, kept) else why
    return replace(decision, proposal=replace(proposal, where=kept, note=note)), new_pins(scene, kept)


def _only_away_from_memory(scene: Scene, seat: Seat) -> bool:
    """Return whether *seat* may run where it is pinned, but for its memory that is elsewhere."""
    if scene.masks.numa(seat.domain, seat.vcpu) is None or not seat.now.isdisjoint(seat.allowed):
        return False
    domain, vcpu = replace(seat.domain, numa_pcpus=None), replace(seat.vcpu, numa_pcpus=None)
    return seat.now <= scene.masks.allowed(domain, vcpu)


def _work(fine: World, world: World, pins: Mapping[int, CpuSet]) -> float:
    """Return what is served in *fine*, which knows single pCPUs, with the *pins* of items of *world* set."""
    after = {(world.seats[i].domain.uuid, world.seats[i].vcpu.id): pin for i, pin in pins.items()}
    seats = [seat._replace(now=after.get((seat.domain.uuid, seat.vcpu.id), seat.now)) for seat in fine.seats]
    where = [fine.bin_of.get(min(seat.now), NOWHERE) if len(seat.now) == 1 else NOWHERE for seat in seats]
    return fine.problem.work(replace(fine, seats=seats).totals(where, fine.mean))
