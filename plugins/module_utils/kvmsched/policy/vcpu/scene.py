# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All that one decision is made from, put together in the order in which it becomes known."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Optional, Sequence

from ...config import VcpuPolicy
from ...model import Domain, Move, PinMove, Snapshot, Vcpu, VcpuFigures
from ...units import CpuSet
from .allowed import Masks, check_pcpus
from .dedicated import Dedication
from .demand import Loads, measure
from .eligibility import Eligible, dedication_on, eligible, masks_for
from .history import Smoothed, VcpuHistory
from .hold import ONCE_S, content_items, last_move, resting_items, rooted
from .numa import at_home
from .problem import NOWHERE
from .safeties import Safeties
from .smoothing import PASSING_FOREIGN, lasting_foreign, remembered_foreign, remembered_loads
from .world import World, build


@dataclass(frozen=True)
class Scene:
    """What is known in a pass.

    ``past`` is the history that is still valid. ``patient``: there was one, so this is a daemon, whose
    hold and max_moves are there to keep it calm (a module's are its user's word). ``single``: one window
    is all that is known. ``smoothed`` and ``foreign`` are what the next pass will remember of loads.
    ``resting``: which items stay whatever they want.
    """

    now: Snapshot
    policy: VcpuPolicy
    safeties: Safeties
    past: VcpuHistory
    patient: bool
    single: bool
    dedicated: Dedication
    masks: Masks
    eligible: Eligible
    loads: Loads
    smoothed: dict[str, Smoothed]
    foreign: dict[int, Smoothed]
    world: World
    resting: Sequence[bool]

    @property
    def measured(self) -> bool:
        """Return whether any load is known: it takes two snapshots."""
        return self.loads.window_s > 0

    @functools.cached_property
    def figures(self) -> VcpuFigures:
        """Return the figures as everything is now."""
        return self.world.figures(self.world.allowed.now)

    def figures_after(self, moves: Sequence[Move]) -> VcpuFigures:
        """Return the figures once *moves*, which may lead to any set, are made."""
        after = {(move.uuid, move.id): move.after for move in moves if isinstance(move, PinMove)}
        seats = [s._replace(now=after.get((s.domain.uuid, s.vcpu.id), s.now)) for s in self.world.seats]
        world = replace(self.world, seats=seats)
        bin_of = {pcpu: b for b, pcpus in enumerate(world.bins) for pcpu in pcpus}
        places = [{bin_of.get(pcpu, NOWHERE) for pcpu in seat.now} for seat in seats]
        return world.figures([place.pop() if len(place) == 1 else NOWHERE for place in places])


def look(
    snapshots: Sequence[Snapshot], policy: VcpuPolicy, history: Optional[VcpuHistory], safeties: Safeties
) -> Scene:
    """Return the scene that *snapshots* (oldest first) show. ValueError, in one line, for a wrong policy."""
    if not snapshots:
        raise ValueError("snapshots: got none, needed: at least one")
    now = snapshots[-1]
    past = history if history is not None and history.valid_at(now.monotonic_s) else VcpuHistory()
    check_pcpus(now, policy, first=past.number == 0)
    loads = measure(snapshots, safeties.confined)
    dedicated = dedication_on(now, policy) if safeties.dedicated else Dedication()
    masks = masks_for(now, policy, dedicated, loads) if safeties.allowed else _Anywhere(now, policy)
    chosen = eligible(now, policy, past, masks, dedicated)
    smoothed = remembered_loads(now, loads, past, policy.half_life_s)
    single = history is None
    world, resting = _world(now, policy, past, chosen, masks, loads, smoothed, safeties)
    if single and safeties.doubt:
        world = contented(world, resting)
    return Scene(
        now=now,
        policy=policy,
        safeties=safeties,
        past=past,
        patient=history is not None and policy.max_moves != 0,
        single=single,
        dedicated=dedicated,
        masks=masks,
        eligible=chosen,
        loads=loads,
        smoothed=smoothed,
        foreign=remembered_foreign(now, loads, past),
        world=world,
        resting=resting,
    )


def as_auto(scene: Scene) -> Scene:
    """Return *scene* with what floats left to the kernel: what `floating: auto` would see at the same moment."""
    return _under(scene, replace(scene.policy, floating="auto"))


def by_pcpu(scene: Scene) -> Scene:
    """Return *scene* as it is on single pCPUs, where groups are asked for."""
    return _under(scene, replace(scene.policy, granularity="pcpu"))


def _under(scene: Scene, policy: VcpuPolicy) -> Scene:
    known = (scene.past, scene.eligible, scene.masks, scene.loads, scene.smoothed, scene.safeties)
    world, resting = _world(scene.now, policy, *known)
    return replace(scene, policy=policy, world=world, resting=resting)


def _world(
    now: Snapshot,
    policy: VcpuPolicy,
    past: VcpuHistory,
    chosen: Eligible,
    masks: Masks,
    loads: Loads,
    smoothed: dict[str, Smoothed],
    safeties: Safeties,
) -> tuple[World, Sequence[bool]]:
    """Return the placement problem, and who stays in it: who may go where, then who keeps its cell, then who rests."""
    lasting = lasting_foreign(loads, past, PASSING_FOREIGN if safeties.passing else 0.0)
    world = build(now, policy, chosen, masks, loads, smoothed, lasting)
    last = [last_move(seat, now, past) for seat in world.seats]
    world = replace(world, problem=at_home(world, now.host.topology, rooted(world, policy, chosen, last, now)))
    stays = resting_items(world, policy, last, safeties)
    recent = [move is not None and move.since_s < ONCE_S for move in last]
    return replace(world, problem=replace(world.problem, stays=stays), recent=recent), stays


def contented(world: World, resting: Sequence[bool]) -> World:
    """Return *world* where those stay that rest, and those that would get no more elsewhere."""
    stays = [one or other for one, other in zip(resting, content_items(world))]
    return replace(world, problem=replace(world.problem, stays=stays))


def later(scene: Scene, where: Sequence[int]) -> Scene:
    """Return what the next pass would find if everything went *where* it is said to, and wanted what it does now."""
    world = scene.world.after(where)
    moved = [now != then for now, then in zip(scene.world.allowed.now, where)]
    resting = [r or (m and scene.policy.cooldown_s > 0) for r, m in zip(scene.resting, moved)]
    return replace(scene, world=contented(world, resting) if scene.safeties.doubt else world, resting=resting)


def in_cells(scene: Scene) -> Scene:
    """Return *scene* with each domain kept in the cell that it has."""
    world = replace(scene.world, problem=scene.world.allowed)
    problem = at_home(world, scene.now.host.topology, frozenset(world.problem.owner))
    return replace(scene, world=replace(world, problem=replace(problem, stays=scene.world.problem.stays)))


class _Anywhere(Masks):
    """Every online pCPU is allowed to all: what a pass without this safety would think."""

    def allowed(self, domain: Domain, vcpu: Vcpu) -> CpuSet:
        return self.online
