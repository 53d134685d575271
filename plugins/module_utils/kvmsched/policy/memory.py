# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The memory policy: which balloons should change, by how much and why. Pure functions of what was observed.

Read in this order: memory_reading (what is known of a domain), memory_supply (what the host can
give, and sharing), memory_strategies (who gives, who gets), and here, where a plan is made of it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Iterable, Mapping, Optional, Sequence

from ..config import MemoryPolicy
from ..model import (
    BALLOON_TOLERANCE_KIB,
    Adoption,
    BalloonMove,
    Domain,
    MemoryFigures,
    MemoryPlan,
    Move,
    PeriodMove,
    Skip,
    Snapshot,
    Unmet,
)
from ..units import mib
from .memory_history import MemoryHistory, Seen
from .memory_reading import Guest, Reader, human_period, memory_record, set_by_human, skip
from .memory_release import release_draft
from .memory_strategies import Draft, fair, pairwise
from .memory_supply import Grant, HostState, Need, at_risk, grant, host_state, total_at_risk

__all__ = ["MemoryHistory", "decide", "fund", "release"]

# A domain that did not move for this long has no direction left to turn from.
QUIET_S = 600


def decide(
    snapshots: Sequence[Snapshot], policy: MemoryPolicy, history: Optional[MemoryHistory] = None
) -> tuple[MemoryPlan, MemoryHistory]:
    """Return the plan for the newest of *snapshots* (oldest first), and what the next pass should be handed.

    Two snapshots a statistics tick apart, or one and *history*, prove that a domain is at rest; without
    that it may be grown if it starves, never shrunk. Same input, same plan, in any order of domains.
    """
    scene = _Scene(snapshots, policy, history, release=False)
    if policy.strategy == "pairwise":
        draft = pairwise(scene.guests, scene.host, policy)
    else:
        draft = fair(scene.guests, scene.host, policy, scene.history.domains, scene.now.wall_s)
    moves = [*_takes(draft), *_gives(draft), *_withdrawals(scene, draft), *_periods(scene)]
    adoptions = [_adoption(guest) for guest in scene.guests if _adopts(guest)]
    return scene.plan(draft, moves, adoptions), scene.remember(moves)


def release(
    snapshots: Sequence[Snapshot], policy: MemoryPolicy, history: Optional[MemoryHistory] = None
) -> tuple[MemoryPlan, MemoryHistory]:
    """Return the plan that brings every chosen domain back to its record's originals, as far as is safe (decision 2).

    Statistics periods stand last in the plan, only for domains whose memory this plan brings home.
    What can't be restored yet is in ``not_restored``, a line each: a later release goes on.
    """
    scene = _Scene(snapshots, policy, history, release=True)
    draft, moves, not_restored = release_draft(scene.guests, scene.host)
    adoptions = [_adoption(guest) for guest in scene.guests if _adopts(guest)]
    plan = scene.plan(draft, moves, adoptions)
    unreadable = [f"{d.name}: {d.record_error}" for d in scene.domains if d.record_error]
    return replace(plan, not_restored=(*unreadable, *not_restored), unmet=()), scene.remember(moves)


def fund(plan: MemoryPlan, policy: MemoryPolicy, planned: Snapshot, now: Snapshot) -> tuple[BalloonMove, ...]:
    """Return the gives of *plan* that *now* proves payable, reduced where it does not pay them whole (decision 6).

    *planned* is the snapshot that the plan was made from; of *now*, read after the takes were sent, only
    the numbers are used. What was asked of a balloon and has not arrived is no memory: supply is taken
    from what is free now, and what arrived is in there already.
    """
    gives = [move for move in plan.moves if isinstance(move, BalloonMove) and move.gives]
    taken = {move.uuid for move in plan.moves if isinstance(move, BalloonMove) and not move.gives}
    current = replace(now, domains=tuple(_updated(planned, now, taken)))
    reader = Reader((current,), policy, MemoryHistory())
    domains = {domain.uuid: domain for domain in current.domains}
    risk_kib = sum(at_risk(domain, None) for domain in current.domains)
    host = host_state(current, policy, risk_kib, "ok")
    free: list[BalloonMove] = []
    claims: dict[str, BalloonMove] = {}
    needs: list[Need] = []
    for move in gives:
        domain = domains.get(move.uuid)
        guest = reader.read(domain, release=True) if domain is not None else None
        if not isinstance(guest, Guest) or guest.domain.state != "running":
            continue
        kib = min(move.after_kib, guest.hard_ceiling_kib) - guest.held_kib
        if kib <= 0:
            free += [move] if move.after_kib <= guest.actual_kib + BALLOON_TOLERANCE_KIB else []
        else:
            claims[move.uuid] = move
            needs.append(_claim(guest, kib))
    frozen = host.level == "low"
    paid = grant(needs, host.supply_kib, host.credit_kib, frozen) if host.supply_kib is not None else []
    return (*free, *(_paid(claims[g.need.guest.uuid], g) for g in sorted(paid, key=lambda g: g.need.guest.uuid)))
