# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The vCPU policy: which pins should change, to what and why. Pure functions of what was observed.

Read in this order:

- demand, idle: what vCPUs want.
- allowed, dedicated, records, eligibility: who may be moved, and where.
- world, problem: both as a placement problem. numa, hold: what else keeps a vCPU where it is.
- bounds, planners, search: few moves to balance. certainty: is it worth it. cores: who shares one at equal work.
- proposal: what to do in this pass. width: how wide its pins may be. serving: which of them serve somebody.
- outcome: the plan of that.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Optional, Sequence

from ...config import VcpuPolicy
from ...model import Snapshot, VcpuPlan
from .floating import fences
from .history import VcpuHistory, key_of
from .hold import budgeted
from .outcome import about_placing, budget_left, history_of, plan_of
from .problem import NOWHERE
from .proposal import decide_on
from .restore import release_pins
from .safeties import ALL, Safeties
from .scene import as_auto, look
from .serving import that_serve

__all__ = ["Safeties", "VcpuHistory", "budgeted", "decide", "release"]


def decide(
    snapshots: Sequence[Snapshot], policy: VcpuPolicy, history: Optional[VcpuHistory] = None, safeties: Safeties = ALL
) -> tuple[VcpuPlan, VcpuHistory]:
    """Return the plan for the newest of *snapshots* (oldest first), and what the next pass should be handed.

    Load is what the counters grew between the first and the last snapshot; from a single one nothing
    is known and nothing moves. Same input, same plan, in any order of domains. ValueError, in one
    line, where the policy names a pCPU that is not online: in a first pass any, later on all of them.
    """
    scene = look(snapshots, policy, history, safeties)
    decision, pins = that_serve(scene, decide_on(scene))
    moving = [scene.world.seats[item] for item in pins]
    found = fences(scene, budget_left(scene, len(moving)), {key_of(seat.domain, seat.vcpu) for seat in moving})
    placed = [item for item in pins if scene.world.allowed.now[item] == NOWHERE]
    placing = about_placing(scene, placed, as_auto(scene)) if placed else ""
    return plan_of(scene, decision.proposal, pins, found, placing), history_of(scene, decision, pins, found)


def release(
    snapshots: Sequence[Snapshot], policy: VcpuPolicy, history: Optional[VcpuHistory] = None
) -> tuple[VcpuPlan, VcpuHistory]:
    """Return the plan that gives every chosen thread with a record its original affinity back, bit for bit.

    What can't be restored is in ``not_restored``, a line each. The history forgets the moves.
    """
    policy = replace(policy, pcpus=None, selection=policy.selection.among(snapshots[-1]))
    scene = look(snapshots, policy, history, ALL)
    back = release_pins(scene.now, policy, scene.dedicated)
    plan = VcpuPlan(
        before=scene.figures,
        after=scene.figures_after(back.moves),
        moves=back.moves,
        skips=back.skips,
        unmatched=policy.selection.unmatched(scene.now.domains),
        not_restored=back.not_restored,
        adoptions=back.adoptions,
        trigger="release" if back.moves else "",
        measured=scene.measured,
    )
    return plan, replace(scene.past, moves={}, held=0, settled_average=None)
