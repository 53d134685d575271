# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What should be done in this pass: place what floats, balance if that is worth it, end waits.

No more is done at once than hold and budget allow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Optional, Sequence

from ...units import CpuSet, format_cpuset
from .certainty import BETTER_SHARE, LEAST_DROP, LEAST_WORK, Gain, Judge, cut, ordered
from .cores import together, told_threads
from .demand import Demand, contended
from .history import key_of
from .hold import budget, held_back
from .idle import IDLE
from .numa import companions
from .planners import FEW_ITEMS, more_work, rebalance
from .problem import EPSILON, NOWHERE
from .scene import Scene, in_cells, later
from .smoothing import credible
from .world import World

# A vCPU that waits for this share of the time, and would not wait elsewhere, may be moved at once.
LARGE_WAIT = 0.50

# A wait is new if the vCPU did not wait so long in any of so many windows before.
NEW_WINDOWS = 6

# A plan does not wait where one more window like this one without it would cost so much work, in seconds of a pCPU.
# With a pass every 5 s that is 5 % of a pCPU; five minutes of load prove less than that, and cost it.
AT_ONCE_S = 0.25

# How many passes a module, which has no memory, thinks ahead.
_LOOKS = 8

# A pCPU with this load is full.
FULL = 0.97

# The part of what a plan brings that is kept when its least useful moves are left out.
ENOUGH = 0.9


@dataclass(frozen=True)
class Proposal:
    """Where each item should go, what made it so, and one line about it. ``urgent``: it does not wait for hold."""

    where: Sequence[int]
    triggers: tuple[str, ...] = ()
    note: str = ""
    urgent: bool = False


@dataclass(frozen=True)
class Decision:
    """A proposal, and what the next pass has to know.

    ``held`` is how often in a row a reason was found, ``settled`` the average load when nothing was to do.
    """

    proposal: Proposal
    held: int
    settled: Optional[float]


def decide_on(scene: Scene) -> Decision:
    """Return what should be done in this pass."""
    return _Proposer(scene).decide()


class _Proposer:
    def __init__(self, scene: Scene) -> None:
        self.scene, self.world, self.policy, self.past = scene, scene.world, scene.policy, scene.past

    def decide(self) -> Decision:
        if not self.scene.measured:
            proposal = Proposal(self.world.allowed.now, note="no load is known from one snapshot: nothing moves")
            return Decision(proposal, self.past.held, self.past.settled_average)
        wanted = self._foresighted() if self.scene.single else self._wanted()
        proposal = self._patient(wanted)
        if self.scene.patient:
            proposal = self._relief(proposal)
        waits = moved(self.world, wanted.where) and not moved(self.world, proposal.where)
        held = self.past.held + 1 if waits and held_back(self.policy, self.past) else 0
        settled = self.past.settled_average
        if self._gate_open():
            settled = None if moved(self.world, wanted.where) else self._average
        return Decision(proposal, held, settled)

    @property
    def _doubt(self) -> bool:
        return self.scene.safeties.doubt and not self.scene.patient

    @property
    def _average(self) -> float:
        return self.scene.figures.average_pct / 100

    def _worth(self, where: Sequence[int]) -> bool:
        return bool(self._judge(self._placed()).gain(where).worth(self.policy.threshold_pct))

    def _gate_open(self) -> bool:
        """Return whether the first kvmsched would act: the average load changed much since all was last settled."""
        kept = self.past.settled_average
        if kept is None or not self.policy.avg_change_pct:
            return True
        return abs(self._average - kept) * 100 >= self.policy.avg_change_pct * max(kept, LEAST_DROP)

    def _foresighted(self) -> Proposal:
        """Return what leaves the next pass nothing to do by the loads of now: it will remember nothing."""
        first = proposal = self._wanted()
        scene = self.scene
        for _round in range(_LOOKS if len(first.where) <= FEW_ITEMS else 0):
            if list(proposal.where) == list(scene.world.allowed.now):
                break
            scene = later(scene, proposal.where)
            proposal = _Proposer(scene)._wanted()
        if list(proposal.where) == list(first.where):
            return first
        found = self._judge(self._placed()).gain(proposal.where)
        why = found.worth(self.policy.threshold_pct)
        return self._praised(why, found, proposal.where, self._placing()) if why else first

    def _judge(self, before: Sequence[int]) -> Judge:
        return Judge(self.world, before, self._doubt, self.scene.loads.window_s)

    def _wanted(self) -> Proposal:
        """Return what should be done if it may be done at once."""
        return self._together(self._best())

    def _together(self, proposal: Proposal) -> Proposal:
        """Return *proposal* with threads of a guest core on one core: of a daemon one pair, where all else rests."""
        changes = moved(self.world, proposal.where)
        if not told_threads(self.world) or (changes and not self.scene.single):
            return proposal
        judge, most = self._judge(self._placed()), None if self.scene.single else 1
        where = together(self.world, proposal.where, judge, most)
        count = len(moved(self.world, where))
        # Half an exchange would pile up two on one pCPU.
        if list(where) == list(proposal.where) or count > (
            count if self.policy.max_moves is None else self.policy.max_moves
        ):
            return proposal
        if changes:
            return replace(proposal, where=where)
        return Proposal(where, ("siblings",), "vCPUs that a guest takes for threads of one core get one core")

    def _best(self) -> Proposal:
        """Return the best that can be done: place what floats, and balance if that is worth it."""
        placed, triggers = self._placed(), self._placing()
        if not self._gate_open():
            kept = 100 * (self.past.settled_average or 0.0)
            change = f"a change of less than {self.policy.avg_change_pct:g} % (avg_change_pct)"
            gate = f"average load {100 * self._average:.1f} %, {kept:.1f} % when last settled: {change}"
            return Proposal(placed, triggers, gate)
        balanced, found = self._balanced(placed)
        why = found.worth(self.policy.threshold_pct)
        if why:
            return self._praised(why, found, balanced, triggers)
        return Proposal(placed, triggers, "" if triggers else self._why_not(placed, balanced, found.drop))

    def _placing(self) -> tuple[str, ...]:
        return ("placing",) if NOWHERE in self.world.allowed.now else ()

    def _praised(self, why: str, found: Gain, where: Sequence[int], placing: tuple[str, ...]) -> Proposal:
        """Return what goes *where* it says for the sake of *why*. Of what is placed its plan tells otherwise."""
        note = "" if placing else self._praise(why, found, where)
        return Proposal(where, (*placing, why), note, found.work * self.scene.loads.window_s >= AT_ONCE_S)

    def _balanced(self, placed: Sequence[int]) -> tuple[list[int], Gain]:
        """Return the best plan that was found, without the moves that it needs least, and what it brings."""
        balanced = more_work(self.world.problem, rebalance(self.world.problem))
        judge = self._judge(placed)
        found = judge.gain(balanced)
        if found.work < LEAST_WORK and not found.worth(self.policy.threshold_pct):
            return balanced, found
        fewer = self._fewest(judge, balanced, found)
        return fewer, found if fewer == balanced else judge.gain(fewer)

    def _fewest(self, judge: Judge, balanced: Sequence[int], found: Gain) -> list[int]:
        """Return the first of the plan's moves, most useful first; the rest would not be worth a pass of its own."""
        order = ordered(self.world, balanced)
        low, high = 1, len(order)
        while low < high:
            count = (low + high) // 2
            tried = judge.gain(self._cut(balanced, order, count, found.work >= LEAST_WORK))
            if found.work >= LEAST_WORK:
                enough = tried.work >= ENOUGH * found.work
            else:
                enough = found.share < BETTER_SHARE * tried.share
            if enough and found.drop - tried.drop < max(self.policy.threshold_pct / 100, LEAST_DROP):
                high = count
            else:
                low = count + 1
        return self._cut(balanced, order, high, found.work >= LEAST_WORK)

    def _cut(self, where: Sequence[int], order: Sequence[int], count: int, work: bool) -> list[int]:
        """Return *where*, but with *count* of its moves at most; no guest is split over cells unless *work* pays that.

        A guest that may not leave its cell as a whole stays there, and those that come after it have their turn.
        """
        groups = {} if work else companions(self.world, self.scene.now.host.topology, where)
        if not groups:
            return cut(self.world, where, order, count)
        kept: dict[int, None] = {}
        for item in order:
            group = groups.get(item, [item])
            if item not in kept and len(kept) + len(group) <= count:
                kept.update(dict.fromkeys(group))
        return cut(self.world, where, list(kept), count)

    def _praise(self, why: str, found: Gain, where: Sequence[int]) -> str:
        if why == "work":
            return f"{100 * found.work:.0f} % of a pCPU more work is done"
        if why == "share" and math.isinf(found.share):
            return "the worst-served vCPU gets all that it wants"
        if why == "share":
            return self._about_worst(where)
        return f"imbalance falls by {100 * found.drop:.1f} points, threshold {self.policy.threshold_pct:g}"

    def _about_worst(self, where: Sequence[int]) -> str:
        """Say what the vCPU that gets least for its weight gets before and after, by the planned loads."""
        world, before = self.world, self.world.allowed.now
        touched = sorted({b for i in moved(world, where) for b in (before[i], where[i])})
        worst = touched[_least(world.levels(before, touched))]
        short = [i for i, b in enumerate(before) if b == worst and world.run(i, before) < world.mean[i] - EPSILON]
        if not short:
            return "those that get least for their weight get more"
        item = max(short, key=lambda i: (world.run(i, where) / world.run(i, before), -i))
        seat, then, now = world.seats[item], world.run(item, before), world.run(item, where)
        name = f"{seat.domain.name} vCPU {seat.vcpu.id}"
        return f"{name}, among the worst served, gets {100 * then:.0f} -> {100 * now:.0f} % of a pCPU"

    def _why_not(self, placed: Sequence[int], balanced: Sequence[int], drop: float) -> str:
        """Return one line on why nothing is balanced."""
        left, threshold = self.scene.figures.imbalance_pct, self.policy.threshold_pct
        if balanced != placed:
            return (
                f"the best plan surely lowers the imbalance by {100 * max(0.0, drop):.1f} points only,"
                f" threshold {threshold:g}"
            )
        if left > threshold:
            return f"imbalance {left:.1f} points: no move is sure to lower it"
        levels = [t / size for t, size in zip(self.world.totals(placed), self.world.problem.capacity)]
        levels += self.world.outside.values()
        if max(levels, default=0.0) >= FULL and min(levels, default=1.0) < IDLE:
            return "a pCPU is full and another one idle, but no vCPU may move there, or no more work would be done"
        return f"balanced: imbalance {left:.1f} points, threshold {threshold:g}"

    def _placed(self) -> list[int]:
        """Return everything where it is, but what has no place placed."""
        now = self.world.allowed.now
        if NOWHERE not in now:
            return list(now)
        return rebalance(self.world.at(now, stays=[bin_ != NOWHERE for bin_ in now]))

    def _relief(self, proposal: Proposal) -> Proposal:
        """Return *proposal*, with vCPUs sent away at once from pCPUs where one waits long and did not before."""
        waiting = self._waiting(proposal.where)
        if not waiting:
            return proposal
        world = self.world.with_loads(self._raw_loads())
        known = zip(world.problem.stays, self.world.recent, proposal.where)
        stays = [stay or recent or bin_ not in waiting for stay, recent, bin_ in known]
        world = replace(world, problem=world.at(proposal.where, stays))
        where = rebalance(world.problem)
        where = [then if now != NOWHERE else now for now, then in zip(proposal.where, where)]
        if Judge(world, proposal.where, self._doubt).gain(where).work < LEAST_WORK:
            return proposal
        note = f"vCPUs wait for pCPU {_names(self.world, waiting)}, and would not elsewhere"
        return Proposal(where, (*proposal.triggers, "wait"), note)

    def _raw_loads(self) -> list[float]:
        """Return the loads of this window alone, but where contention hides one that was known before."""
        known = [self.past.loads.get(key_of(seat.domain, seat.vcpu)) for seat in self.world.seats]
        return [
            demand.low if load is None or waits_long(demand) else credible(demand, load)
            for demand, load in zip(self.world.demands, known)
        ]

    def _waiting(self, where: Sequence[int]) -> set[int]:
        """Return the bins where a vCPU waits long that did not before."""
        problem, waited, number = self.world.problem, self.past.waited, self.past.number
        return {
            where[i]
            for i, (seat, demand) in enumerate(zip(self.world.seats, self.world.demands))
            if problem.now[i] == where[i] != NOWHERE
            and waits_long(demand)
            and number - waited.get(key_of(seat.domain, seat.vcpu), -NEW_WINDOWS if number else 0) >= NEW_WINDOWS
        }

    def _patient(self, wanted: Proposal) -> Proposal:
        """Return what may be done in this pass: nothing before its hold is over, and no more than its budget."""
        changes = moved(self.world, wanted.where)
        if not changes:
            return wanted
        waits = "" if wanted.urgent else held_back(self.policy, self.past)
        if waits:
            return Proposal(self.world.allowed.now, note="; ".join(filter(None, (wanted.note, waits))))
        most = budget(self.policy, wanted.urgent)
        if most is None or len(changes) <= most:
            return wanted
        order, work = ordered(self.world, wanted.where), "work" in wanted.triggers
        where = self._cut(wanted.where, order, most, work)
        if where != cut(self.world, wanted.where, order, most) and not self._worth(where):
            # Who may not change its cell keeps nobody from what can be done inside the cells.
            inside = _Proposer(in_cells(self.scene))._wanted()
            where = cut(self.world, inside.where, ordered(self.world, inside.where), most)
            wanted = replace(wanted, triggers=inside.triggers, note=inside.note)
        made = len(moved(self.world, where))
        note = "; ".join(filter(None, (wanted.note, f"{made} of {len(changes)} moves now (max_moves)")))
        return replace(wanted, where=where, note=note)


def waits_long(demand: Demand) -> bool:
    """Return whether a vCPU waited for a large part of the window, and wants more than it got."""
    return contended(demand) and demand.wait >= LARGE_WAIT


def moved(world: World, where: Sequence[int]) -> list[int]:
    """Return the items that are somewhere else than now."""
    return [i for i, (now, then) in enumerate(zip(world.allowed.now, where)) if now != then]


def _least(levels: Sequence[float]) -> int:
    return min(range(len(levels)), key=levels.__getitem__)


def _names(world: World, bins: set[int]) -> str:
    pcpus: CpuSet = frozenset().union(*(world.bins[b] for b in bins))
    return format_cpuset(pcpus)
