# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The vCPU policy: which pins should change, to what and why. Pure functions of what was observed.

Read in this order: vcpu_load (what vCPUs want), vcpu_turns (who may be moved, and where), vcpu_world
(both as a placement problem; vcpu_cells: its NUMA side), vcpu_placement (the problem and its lower
bounds), vcpu_planners (few moves to balance), and here, where is decided whether a plan is worth it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Optional, Sequence

from ..config import VcpuPolicy
from ..model import Domain, Move, PinMove, Skip, Snapshot, VcpuFigures, VcpuPlan
from ..units import CpuSet, format_cpuset
from .vcpu_history import PastMove, Smoothed, VcpuHistory, key_of
from .vcpu_load import Demand, measure
from .vcpu_placement import EPSILON, NOWHERE, Problem, moves_bound, reached_target
from .vcpu_planners import State, rebalance
from .vcpu_release import way_back
from .vcpu_threads import thread_moves
from .vcpu_turns import FOREIGN_PASSES, Masks, check_pcpus, turns
from .vcpu_world import BETTER_SHARE, World, build, contended, fair_share, wanted_on

__all__ = ["VcpuHistory", "decide", "release"]

# Foreign load up to this share of a pCPU is not proven to last by a single window: the pass itself, libvirt and
# whatever else wakes up for a moment make it. What two windows in a row have seen counts in full.
PASSING_FOREIGN = 0.30

# How fast foreign load is believed to be there to stay.
FOREIGN_HALF_LIFE_S = 60.0

# A vCPU that waits for this share of the time, and would not wait elsewhere, is a reason of its own to act.
WAIT_TRIGGER = 0.20

# A plan that evens out less than this does nothing: a tenth of a point.
_LEAST_DROP = 0.001


def decide(
    snapshots: Sequence[Snapshot], policy: VcpuPolicy, history: Optional[VcpuHistory] = None
) -> tuple[VcpuPlan, VcpuHistory]:
    """Return the plan for the newest of *snapshots* (oldest first), and what the next pass should be handed.

    Load is what the counters grew between the first and the last snapshot; from a single one nothing
    is known and nothing moves. Same input, same plan, in any order of domains. ValueError, in one
    line, where the policy names a pCPU that is not online.
    """
    return _Pass(snapshots, policy, history).decide()


def release(
    snapshots: Sequence[Snapshot], policy: VcpuPolicy, history: Optional[VcpuHistory] = None
) -> tuple[VcpuPlan, VcpuHistory]:
    """Return the plan that gives every chosen thread with a record its original affinity back, bit for bit.

    What can't be restored is in ``not_restored``, a line each. The history forgets the moves.
    """
    scene = _Pass(snapshots, replace(policy, pcpus=None), history)
    back = way_back(scene.now, policy)
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


# ---------------------------------------------------------------- one pass


@dataclass(frozen=True)
class _Draft:
    """Where each item should go, what made it so, and one line about it. ``urgent``: it may not wait."""

    where: Sequence[int]
    triggers: tuple[str, ...] = ()
    note: str = ""
    urgent: bool = False


class _Pass:
    def __init__(self, snapshots: Sequence[Snapshot], policy: VcpuPolicy, history: Optional[VcpuHistory]) -> None:
        if not snapshots:
            raise ValueError("snapshots: got none, needed: at least one")
        self.now, self.policy = snapshots[-1], policy
        check_pcpus(self.now, policy)
        # A module run has no history: its hold and max_moves are its user's word. A daemon's are there to keep it
        # calm, and a wait that another pCPU would end passes them by (decision 28); max_moves 0 is always kept.
        self.patient = history is not None and policy.max_moves != 0
        past = history if history is not None and history.valid_at(self.now.monotonic_s) else VcpuHistory()
        self.past = past
        self.masks = Masks(self.now, policy)
        self.turns = turns(self.now, policy, past, self.masks)
        self.loads = measure(snapshots, self.masks.runs_on)
        self.remembered = self._remembered_loads()
        self.foreign_memory = self._remembered_foreign()
        smooth = {key: load.high for key, load in self.remembered.items()}
        self.world = build(self.now, policy, past, self.turns, self.loads, smooth, self._lasting_foreign())

    @functools.cached_property
    def figures(self) -> VcpuFigures:
        return self.world.figures(self.world.allowed.now)

    def figures_after(self, moves: Sequence[Move]) -> VcpuFigures:
        """The figures once *moves*, which may lead to any set, are made."""
        after = {(move.uuid, move.id): move.after for move in moves if isinstance(move, PinMove)}
        seats = [s._replace(now=after.get((s.domain.uuid, s.vcpu.id), s.now)) for s in self.world.seats]
        world = replace(self.world, seats=seats)
        bin_of = {pcpu: b for b, pcpus in enumerate(world.bins) for pcpu in pcpus}
        places = [{bin_of.get(pcpu, NOWHERE) for pcpu in seat.now} for seat in seats]
        return world.figures([place.pop() if len(place) == 1 else NOWHERE for place in places])

    # ------------------------------------------------------------ loads over time

    def _weight(self, half_life_s: float) -> float:
        """What the newest window counts in an average with *half_life_s*; all, if nothing is to be remembered."""
        elapsed_s = self.now.monotonic_s - self.past.stamp_s
        return 1 - 0.5 ** (elapsed_s / half_life_s) if half_life_s > 0 else 1.0

    def _remembered_loads(self) -> dict[str, Smoothed]:
        """The smoothed load of each vCPU whose load is known, the newest window included."""
        weight = self._weight(self.policy.half_life_s)
        loads = {}
        for domain in self.now.domains:
            for vcpu in domain.vcpus:
                demand = self.loads.demand.get((domain.uuid, vcpu.id))
                if demand is not None:
                    key = key_of(domain, vcpu)
                    known = self.past.loads.get(key)
                    loads[key] = known.then(_credible(demand, known), weight) if known else Smoothed(demand.low)
        return loads

    def _remembered_foreign(self) -> dict[int, Smoothed]:
        weight = self._weight(FOREIGN_HALF_LIFE_S)
        known = self.past.foreign
        return {
            pcpu: known[pcpu].then(load, weight) if pcpu in known else Smoothed(load)
            for pcpu, load in self.loads.foreign.items()
        }

    def _lasting_foreign(self) -> dict[int, float]:
        """The foreign load of each pCPU that is there to stay: the kernel can move the rest away by itself."""
        if self.loads.settled:
            return dict(self.loads.foreign)
        known = self.past.foreign
        return {
            pcpu: min(load, known[pcpu].mean) if pcpu in known else max(0.0, load - PASSING_FOREIGN)
            for pcpu, load in self.loads.foreign.items()
        }

    # ------------------------------------------------------------ deciding

    def decide(self) -> tuple[VcpuPlan, VcpuHistory]:
        if not self.loads.window_s:
            draft = _Draft(self.world.allowed.now, note="no load is known from one snapshot: nothing moves")
            return self._plan(draft), self._history(draft, held=self.past.held, settled=self.past.settled_average)
        wanted = self._wanted()
        draft = self._patient(wanted)
        if draft is not wanted and self.patient:
            draft = self._relief(draft)
        moves = self._moved(draft)
        held = 0 if moves or not self._moved(wanted) else self.past.held + 1
        settled = self.past.settled_average
        if self._gate_open():
            settled = None if self._moved(wanted) else self._average
        return self._plan(draft), self._history(draft, held, settled)

    @property
    def _average(self) -> float:
        return self.figures.average_pct / 100

    def _moved(self, draft: _Draft) -> list[int]:
        return [i for i, (now, then) in enumerate(zip(self.world.allowed.now, draft.where)) if now != then]

    def _gate_open(self) -> bool:
        """The seed's gate: whether the average load changed dramatically since the host was last found settled."""
        kept = self.past.settled_average
        if kept is None or not self.policy.avg_change_pct:
            return True
        return abs(self._average - kept) * 100 >= self.policy.avg_change_pct * max(kept, _LEAST_DROP)

    def _wanted(self) -> _Draft:
        """What should be done if it may be done at once: place what floats, and balance if that is worth it."""
        placed = self._placed()
        triggers = ("placing",) if placed != list(self.world.allowed.now) else ()
        note = "placing what floats" if triggers else ""
        if not self._gate_open():
            kept = 100 * (self.past.settled_average or 0.0)
            gate = f"average load {100 * self._average:.1f} %, {kept:.1f} % when last settled: no dramatic change"
            return self._relief(_Draft(placed, triggers, gate))
        balanced = worthwhile(self.world, rebalance(self.world.problem))
        drop = least_drop(self.world, placed, balanced)
        if drop >= max(self.policy.threshold_pct / 100, _LEAST_DROP):
            note = f"imbalance falls by {100 * drop:.1f} points, threshold {self.policy.threshold_pct:g}"
            return _Draft(balanced, (*triggers, "imbalance"), note)
        return self._relief(_Draft(placed, triggers, note or self._why_not(placed, balanced, drop)))

    def _why_not(self, placed: Sequence[int], balanced: Sequence[int], drop: float) -> str:
        """One line on why nothing is balanced."""
        left, threshold = self.figures.imbalance_pct, self.policy.threshold_pct
        if balanced != placed:
            return (
                f"the best plan surely lowers the imbalance by {100 * max(0.0, drop):.1f} points only,"
                f" threshold {threshold:g}"
            )
        return "balanced" if left <= threshold else f"imbalance {left:.1f} points: no move is sure to lower it"

    def _placed(self) -> list[int]:
        """Everything where it is, but what has no place placed."""
        now = self.world.allowed.now
        if NOWHERE not in now:
            return list(now)
        return rebalance(self.world.at(now, held=[bin_ != NOWHERE for bin_ in now]))

    def _relief(self, draft: _Draft) -> _Draft:
        """*draft*, or more than it: vCPUs sent away from pCPUs where one waits that would not have to."""
        waiting = self._waiting(draft.where)
        if not waiting:
            return draft
        world = self.world.with_loads(self._raw_loads())
        held = [held or bin_ not in waiting for held, bin_ in zip(world.problem.held, draft.where)]
        world = replace(world, problem=world.at(draft.where, held))
        where = worthwhile(world, rebalance(world.problem))
        where = [then if now != NOWHERE else now for now, then in zip(draft.where, where)]
        # One pCPU of hundreds is little of the whole host's imbalance: what counts here is the pCPUs that change.
        if least_drop(world, draft.where, where, touched=True) < max(self.policy.threshold_pct / 100, _LEAST_DROP):
            return draft
        note = f"vCPUs wait for pCPU {_names(self.world, waiting)} and would not have to"
        return _Draft(where, (*draft.triggers, "wait"), note, urgent=True)

    def _raw_loads(self) -> list[float]:
        """The loads of this window alone, but where contention hides one that was known before."""
        known = [self.past.loads.get(key_of(seat.domain, seat.vcpu)) for seat in self.world.seats]
        return [_credible(demand, load) if load else demand.low for demand, load in zip(self.world.demands, known)]

    def _waiting(self, where: Sequence[int]) -> set[int]:
        """The bins where a vCPU waits that would get far more elsewhere (run-queue delay, decision 28)."""
        problem = self.world.problem
        return {
            where[i]
            for i, demand in enumerate(self.world.demands)
            if problem.now[i] == where[i] != NOWHERE
            and not problem.held[i]
            and contended(demand)
            and demand.wait >= WAIT_TRIGGER
        }

    def _patient(self, wanted: _Draft) -> _Draft:
        """What may be done in this pass: nothing before its hold is over, and no more than its budget."""
        moved = self._moved(wanted)
        if not moved or (wanted.urgent and self.patient):
            return wanted
        if self.past.held + 1 < self.policy.hold:
            note = f"{wanted.note}; held, pass {self.past.held + 1} of {self.policy.hold}"
            return _Draft(self.world.allowed.now, note=note)
        budget = self.policy.max_moves
        if budget is None or len(moved) <= budget:
            return wanted
        note = f"{wanted.note}; {budget} of {len(moved)} moves, as max_moves says"
        return replace(wanted, where=cut(self.world, wanted.where, budget), note=note)

    # ------------------------------------------------------------ the result

    def _plan(self, draft: _Draft) -> VcpuPlan:
        world, free = self.world, self.world.allowed
        moved = self._moved(draft)
        extra = thread_moves(self.now, self.policy, self.turns, self.masks) if self.loads.window_s else []
        if self.policy.max_moves is not None:
            extra = extra[: max(0, self.policy.max_moves - len(moved))]
        target = reached_target(free, draft.where)
        return VcpuPlan(
            before=self.figures,
            after=world.figures(draft.where),
            moves=(*self._moves(draft, moved), *extra),
            skips=(*self.turns.skips, *self._unknown()),
            adoptions=self.turns.adoptions,
            unmatched=self.policy.selection.unmatched(self.now.domains),
            warnings=self._warnings(),
            placed=sum(1 for item in moved if free.now[item] == NOWHERE) + len(extra),
            moves_bound=moves_bound(free, target),
            target_pct=round(100 * target, 2),
            trigger=", ".join((*(draft.triggers if moved else ()), *(("emulator",) if extra else ()))),
            note=draft.note,
            measured=self.measured,
        )

    @property
    def measured(self) -> bool:
        """Whether any load is known: it takes two snapshots."""
        return self.loads.window_s > 0

    def _moves(self, draft: _Draft, moved: Sequence[int]) -> list[PinMove]:
        """The pins to set: what leaves the fullest bins first."""
        world, before = self.world, self.world.allowed.now
        then, after = world.totals(before), world.totals(draft.where)
        level = [total / size for total, size in zip(then, world.problem.capacity)]
        ordered = sorted(moved, key=lambda i: (-level[before[i]] if before[i] != NOWHERE else 0.0, i))
        touched = {b for i in moved for b in (before[i], draft.where[i])} - {NOWHERE}
        changes = {b: _change(world, b, then, after) for b in touched}
        moves = []
        for item in ordered:
            seat, target = world.seats[item], draft.where[item]
            parts = [changes[b] for b in (before[item], target) if b != NOWHERE]
            floating = "" if before[item] != NOWHERE else "no place yet, "
            load = world.problem.load[item]
            moves.append(
                PinMove(
                    domain=seat.domain.name,
                    uuid=seat.domain.uuid,
                    id=seat.vcpu.id,
                    before=seat.vcpu.pin,
                    after=world.bins[target] & seat.allowed,
                    reason=f"{floating}load {100 * load:.0f} % of a pCPU; {', '.join(parts)}",
                    load=round(load, 4),
                )
            )
        return moves

    def _unknown(self) -> list[Skip]:
        """A line for each domain with vCPUs whose load is not known: those stay where they are."""
        missing: dict[str, tuple[Domain, list[int]]] = {}
        for seat in self.turns.seats:
            if (seat.domain.uuid, seat.vcpu.id) not in self.loads.demand:
                missing.setdefault(seat.domain.uuid, (seat.domain, []))[1].append(seat.vcpu.id)
        why = "new, restarted, or its counter went back" if self.loads.window_s else "there is one snapshot only"
        return [
            Skip(
                domain.name,
                uuid,
                "unknown-load",
                f"no load is known of {'vCPU' if len(ids) == 1 else 'vCPUs'} {format_cpuset(ids)}: {why}",
            )
            for uuid, (domain, ids) in missing.items()
        ]

    def _warnings(self) -> tuple[str, ...]:
        warnings = []
        if self.policy.emulator == "reserved" and not self.policy.reserved & self.masks.online:
            warnings.append("emulator: reserved needs reserved pCPUs that are online: nothing is moved")
        for domain in sorted(self.now.domains, key=lambda d: (d.name, d.uuid)):
            if domain.uuid in self.turns.mismatched and self._mismatches(domain.uuid) == FOREIGN_PASSES:
                warnings.append(
                    f"{domain.name}: its affinity was changed past libvirt in {FOREIGN_PASSES} passes in a row,"
                    f" left alone for {self.policy.grace_s} s"
                )
        return tuple(warnings)

    # ------------------------------------------------------------ the history

    def _mismatches(self, uuid: str) -> int:
        return self.past.mismatches.get(uuid, 0) + 1

    def _history(self, draft: _Draft, held: int, settled: Optional[float]) -> VcpuHistory:
        now_s = self.now.monotonic_s
        if not self.loads.window_s:
            return self.past
        mismatches = {uuid: self._mismatches(uuid) for uuid in sorted(self.turns.mismatched)}
        backed_off = {uuid: until_s for uuid, until_s in self.past.backed_off.items() if until_s > now_s}
        backed_off.update(
            {u: now_s + self.policy.grace_s for u, count in mismatches.items() if count >= FOREIGN_PASSES}
        )
        return VcpuHistory(
            number=self.past.number + 1,
            stamp_s=now_s,
            settled_average=settled,
            held=held,
            loads=self.remembered,
            foreign=self.foreign_memory,
            moves=self._past_moves(draft),
            mismatches=mismatches,
            backed_off=backed_off,
        )

    def _past_moves(self, draft: _Draft) -> dict[str, PastMove]:
        """The moves of this pass, and the earlier ones that still stand."""
        moves = {}
        if self.past.moves:
            pins = {key_of(domain, vcpu): vcpu.pin for domain in self.now.domains for vcpu in domain.vcpus}
            moves = {key: move for key, move in self.past.moves.items() if pins.get(key) == move.after}
        for item in self._moved(draft):
            seat = self.world.seats[item]
            after = self.world.bins[draft.where[item]] & seat.allowed
            key = key_of(seat.domain, seat.vcpu)
            moves[key] = PastMove(seat.vcpu.pin, after, self.now.monotonic_s, self.past.number)
        return moves


def _credible(demand: Demand, known: Smoothed) -> float:
    """The load to learn from a window: where contention hid it, what was known before, if that is possible."""
    return known.mean if contended(demand) and demand.run <= known.mean <= demand.high else demand.low


def _change(world: World, bin_: int, before: Sequence[float], after: Sequence[float]) -> str:
    size = world.problem.capacity[bin_]
    name = f"pCPU {format_cpuset(world.bins[bin_])}" if size == 1 else f"pCPUs {format_cpuset(world.bins[bin_])}"
    return f"{name} at {100 * before[bin_] / size:.0f} % -> {100 * after[bin_] / size:.0f} %"


def _names(world: World, bins: set[int]) -> str:
    pcpus: CpuSet = frozenset().union(*(world.bins[b] for b in bins))
    return format_cpuset(pcpus)


# ---------------------------------------------------------------- is it worth it


def least_drop(world: World, before: Sequence[int], after: Sequence[int], touched: bool = False) -> float:
    """By how much the imbalance falls from *before* to *after* at least, as a fraction, however loads are read.

    *touched*: the imbalance among the bins that change, instead of that of the whole host.

    Three readings: the loads planned with; every wait believed in full; and each load doubted in the
    direction that makes the plan less useful. A plan must be good under all of them: so noise
    between equals, and queueing that goes along with the vCPU, move nothing.
    """
    problem = world.problem
    moved = [(i, old, new) for i, (old, new) in enumerate(zip(before, after)) if old != new]
    if not moved:
        return 0.0
    among = sorted({b for _item, old, new in moved for b in (old, new) if b != NOWHERE}) if touched else None
    full = [min(1.0, load + d.high - d.low) for load, d in zip(problem.load, world.demands)]
    drops = []
    for load in (problem.load, full, _doubted(world, before, moved)):
        totals = problem.on_bins(before, load)
        then = problem.imbalance(totals, among)
        _shift(totals, moved, load)
        drops.append(then - problem.imbalance(totals, among))
    return min(drops)


_Moved = tuple[int, int, int]


def _shift(totals: list[float], moved: Sequence[_Moved], load: Sequence[float]) -> None:
    """Carry the *moved* items (item, old bin, new bin) over in *totals*."""
    for item, old, new in moved:
        if old != NOWHERE:
            totals[old] -= load[item]
        if new != NOWHERE:
            totals[new] += load[item]


def _doubted(world: World, before: Sequence[int], moved: Sequence[_Moved]) -> list[float]:
    """The loads, less their doubt on bins that the plan relieves, and more by it on bins that it burdens."""
    problem = world.problem
    change = [0.0] * len(problem.capacity)
    _shift(change, moved, problem.load)
    side = [(c > EPSILON) - (c < -EPSILON) for c in change]
    return [
        load if bin_ == NOWHERE or not side[bin_] else _shifted(load, side[bin_] * doubt, demand)
        for load, doubt, demand, bin_ in zip(problem.load, world.doubt, world.demands, before)
    ]


def _shifted(load: float, doubt: float, demand: Demand) -> float:
    """*load* moved by *doubt*, but not beyond what was seen running, nor over a whole pCPU."""
    return max(min(load, demand.run), load + doubt) if doubt < 0 else max(load, min(1.0, load + doubt))


def worthwhile(world: World, where: Sequence[int]) -> list[int]:
    """*where*, but for those moves of waiting vCPUs that would get them no more of a pCPU than they have now.

    What such a vCPU wants is known only to be more than it got: were it just that, its move would
    unload one pCPU as much as it loads another, and the next pass would send the next one back.
    """
    kept = list(where)
    now = world.allowed.now
    doubtful = [i for i, d in enumerate(world.demands) if contended(d) and NOWHERE != now[i] != kept[i]]
    wanted = wanted_on(world, kept) if doubtful else []
    for item in doubtful:
        share = fair_share(world, kept[item], wanted[kept[item]])
        if min(world.demands[item].high, share) < world.demands[item].run + BETTER_SHARE:
            kept[item] = now[item]
    return kept


def cut(world: World, where: Sequence[int], budget: int) -> list[int]:
    """At most *budget* of the moves to *where*: what has no place first, then what evens out most."""
    problem: Problem = world.allowed
    load = problem.load
    moved = [i for i, (now, then) in enumerate(zip(problem.now, where)) if now != then]
    placing = sorted((i for i in moved if problem.now[i] == NOWHERE), key=lambda i: (-load[i], i))[:budget]
    state = State(problem, [0.0] * len(problem.capacity), 0.0)
    for item in placing:
        state.put(item, where[item])
    rest = [i for i in moved if problem.now[i] != NOWHERE]

    def gain(item: int) -> float:
        return load[item] * state.gain(load[item], problem.now[item], where[item])

    for _turn in range(min(len(rest), budget - len(placing))):
        best = max(rest, key=lambda i: (gain(i), -i))
        if gain(best) <= 0:
            break
        state.put(best, where[best])
        rest.remove(best)
    return state.where
