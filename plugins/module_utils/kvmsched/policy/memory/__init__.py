# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The memory policy: which balloons should change, by how much and why. Pure functions of what was observed.

Read in this order:
- limits, requests, reading, guest: what is known of one domain. eligibility: why it is skipped.
- charges: what was promised and not touched. locked: what QEMU can't give back.
- levels, cache, rooms, supply: what the host can give. growth: what a guest needs.
- sharing: how the one meets the other. donors: who gives first. idle: who gives without need.
- fair, pairwise: the strategies. newcomer: room for a guest to start. debts: what is owed.
- restore: the way back. figures: the plan in figures.
- history: what is remembered. safeties: what a test may switch off. sampling: when two samples are worth a plan.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Callable, Iterable, Mapping, Optional, Sequence

from ...config import MemoryPolicy, idle_rules
from ...model import (
    BALLOON_TOLERANCE_KIB,
    Adoption,
    BalloonMove,
    Domain,
    MemoryCode,
    MemoryPlan,
    Move,
    PeriodMove,
    Skip,
    Snapshot,
)
from ...units import mib
from . import debts, fair, newcomer, pairwise
from .charges import filled, risks
from .eligibility import period_set_by_person, skip
from .figures import figures_after, figures_of, note_of, unmet_of, warnings_of
from .guest import Guest, GuestReader
from .history import MemoryHistory, remembered
from .requests import memory_record, pending, set_by_person
from .restore import again, release_memory, retarget
from .safeties import ALL_ON, Safeties
from .sharing import Draft, Grant, Need, funds_of, grant
from .supply import HostState, by_uuid, host_state, lent_after, noted, owing_after

__all__ = ["Learn", "MemoryHistory", "Safeties", "decide", "fund", "judge", "release", "repay"]
# Returns what the next pass should be handed, once it is told which moves of a plan were made.
Learn = Callable[[Iterable[Move]], MemoryHistory]
# Why a domain is skipped that may still be sent elsewhere.
_RESTLESS: tuple[MemoryCode, ...] = ("settling", "stuck")
# Why waste stays although nobody forbids taking it.
_LIMITS: tuple[MemoryCode, ...] = ("at-floor", "band")


# ---------------------------------------------------------------- the three questions


def decide(
    snapshots: Sequence[Snapshot],
    policy: MemoryPolicy,
    history: Optional[MemoryHistory] = None,
    safeties: Safeties = ALL_ON,
) -> tuple[MemoryPlan, MemoryHistory]:
    """Return the plan for the newest of *snapshots* (oldest first), and what to hand on where all of it is made.

    Two snapshots a statistics period apart, or one and *history*, prove that a domain is at rest; without
    that it may be grown if it starves, never shrunk. Same input, same plan, in any order of domains.
    """
    plan, learn = judge(snapshots, policy, history, safeties)
    return plan, learn(plan.moves)


def repay(
    snapshots: Sequence[Snapshot],
    policy: MemoryPolicy,
    history: Optional[MemoryHistory] = None,
    safeties: Safeties = ALL_ON,
) -> tuple[MemoryPlan, MemoryHistory]:
    """Return the plan that gives every chosen domain what is owed to it, as far as the host has it, and nothing else.

    Owed is what was taken below a domain's original without anybody asking for it: see debts.
    """
    scene = _Scene(snapshots, policy, history or MemoryHistory(), safeties, release=False)
    draft = Draft()
    debts.repay_all(draft, scene.guests, scene.host)
    moves = _gives(draft)
    return scene.plan(draft, moves), scene.remember(moves)


def release(
    snapshots: Sequence[Snapshot],
    policy: MemoryPolicy,
    history: Optional[MemoryHistory] = None,
    safeties: Safeties = ALL_ON,
) -> tuple[MemoryPlan, MemoryHistory]:
    """Return the plan that brings every chosen domain back to its record's originals, as far as is safe (decision 2).

    Statistics periods stand last in the plan, only for domains whose memory this plan restores.
    What can't be restored yet is in ``not_restored``, a line each: a later release goes on.
    """
    plan, learn = judge(snapshots, policy, history, safeties, release=True)
    return plan, learn(plan.moves)


def judge(
    snapshots: Sequence[Snapshot],
    policy: MemoryPolicy,
    history: Optional[MemoryHistory] = None,
    safeties: Safeties = ALL_ON,
    release: bool = False,
) -> tuple[MemoryPlan, Learn]:
    """Return the plan of decide(), or of release(), and what learns from the moves that are made of it.

    For who may make less than was planned: what only was planned must not count as given.
    """
    scene = _Scene(snapshots, policy, history or MemoryHistory(), safeties, release)
    return (_released(scene) if release else _decided(scene)), scene.remember


def fund(
    plan: MemoryPlan,
    policy: MemoryPolicy,
    planned: Snapshot,
    now: Snapshot,
    history: Optional[MemoryHistory] = None,
    safeties: Safeties = ALL_ON,
) -> tuple[BalloonMove, ...]:
    """Return the gives of *plan* that *now* proves payable, reduced where it does not pay them whole (decision 6).

    *planned* is the snapshot that the plan was made from, *history* what it was made with; of *now*, read
    after the takes were sent, only the numbers count. What was asked of a balloon and has not arrived is
    no memory: supply is what is free now, and what arrived is in there already.
    """
    balloons = [move for move in plan.moves if isinstance(move, BalloonMove)]
    current = replace(now, domains=_updated(planned, now, {move.uuid for move in balloons if not move.gives}))
    history = history or MemoryHistory()
    reader = GuestReader((planned, current), policy, history, safeties)
    domains = {domain.uuid: domain for domain in current.domains}
    free, claims = [], []
    for move in balloons:
        guest = reader.read(domains[move.uuid], release=True) if move.gives and move.uuid in domains else None
        if not isinstance(guest, Guest):
            continue
        if move.after_kib <= guest.expected_kib + BALLOON_TOLERANCE_KIB:
            free.append(move)
        else:
            claims.append((move, _claim(guest, move)))
    known = {need.guest.uuid: need.guest for _move, need in claims}
    # One look does not tell who boots: those are charged at their maximum as in the plan.
    booting = {skip.uuid for skip in plan.skips if skip.code == "booting"}
    asked = [d for d in current.domains if pending(d) is not None or d.uuid in booting]
    for guest in (reader.read(domain, release=True) for domain in asked):
        if isinstance(guest, Guest):
            known[guest.uuid] = guest._replace(skip=("booting", "")) if guest.uuid in booting else guest
    risks_kib = risks(current, known, history.domains, safeties)
    host = host_state((planned, current), policy, risks_kib, known, history, safeties)
    return (*free, *_pay(claims, host))


def _decided(scene: _Scene) -> MemoryPlan:
    policy = scene.policy
    if policy.strategy == "pairwise":
        draft = pairwise.draft_of(scene.guests, scene.host, policy)
    else:
        seen, wall_s = scene.history.domains, scene.now.wall_s
        draft = fair.draft_of(scene.guests, scene.host, policy, seen, wall_s, scene.safeties)
    balloons = [*_takes(draft), *_gives(draft)]
    balloons += _withdrawals(scene.guests, balloons)
    return scene.plan(draft, [*balloons, *_reminders(scene.guests, balloons), *_periods(scene.guests, policy)])


def _released(scene: _Scene) -> MemoryPlan:
    apart = [d for d in scene.now.domains if d.balloon and d.balloon.virtio_mem and scene.selection.matches(d)]
    back = release_memory(scene.guests, apart, scene.host)
    scene.guests = [back.adopted.get(guest.uuid, guest) for guest in scene.guests]
    balloons = [*_takes(back.draft), *_gives(back.draft), *back.retargets]
    plan = scene.plan(back.draft, [*balloons, *_withdrawals(scene.guests, balloons), *back.periods])
    left = (*back.left.values(), *scene.selection.unseen(scene.now))
    return replace(plan, not_restored=left, unmet=())


# ---------------------------------------------------------------- what a pass works on


class _Scene:
    """One pass: the chosen domains as Guests in the order of their UUIDs, the host, and what is remembered."""

    def __init__(
        self,
        snapshots: Sequence[Snapshot],
        policy: MemoryPolicy,
        history: MemoryHistory,
        safeties: Safeties,
        release: bool,
    ) -> None:
        self.policy, self.history, self.safeties = policy, history, safeties
        self.now = snapshots[-1]
        self.selection = policy.selection.among(self.now)
        self.skips: list[Skip] = []
        guests: list[Guest] = []
        reader = GuestReader(tuple(snapshots), policy, history, safeties)
        for domain in self.now.domains:
            if self.selection.matches(domain):
                read = reader.read(domain, release)
                if isinstance(read, Guest):
                    guests.append(read)
                else:
                    self.skips.append(read)
        self.guests = by_uuid(guests)
        self._by_uuid = {guest.uuid: guest for guest in self.guests}
        self._risks = risks(self.now, self._by_uuid, history.domains, safeties)
        self.host = host_state(snapshots, policy, self._risks, self._by_uuid, history, safeties)

    def plan(self, draft: Draft, moves: Sequence[Move]) -> MemoryPlan:
        after_kib = {move.uuid: move.after_kib for move in moves if isinstance(move, BalloonMove)}
        limited = {note.uuid for note in draft.notes if note.code in _LIMITS}
        skipped = [skip(guest.domain, *guest.skip) for guest in self.guests if guest.skip is not None]
        seen, wall_s = self.history.domains, self.now.wall_s
        unmet = [m for g in self.guests for m in unmet_of(g, after_kib, self.host, seen.get(g.uuid), wall_s)]
        before = figures_of(self.guests, self.host, {}, limited)
        return MemoryPlan(
            before=before,
            after=figures_after(before, self.guests, self.host, after_kib, limited),
            note=note_of(self.guests, after_kib, self.policy, draft.declined),
            moves=tuple(moves),
            skips=tuple(sorted([*self.skips, *skipped, *draft.notes], key=lambda s: (s.uuid, s.code))),
            unmet=tuple(unmet),
            adoptions=tuple(_adoption(guest) for guest in self.guests if _adopts(guest, after_kib)),
            unmatched=self.selection.unmatched(self.now.domains),
            idle_rules=idle_rules(self.policy.rules, self.now),
            warnings=tuple(warnings_of(self.guests, self.host, draft, after_kib, filled(self.now))),
            supply_kib=self.host.supply_kib,
            room=newcomer.figures_of(draft, self.host, self.policy),
            owed_kib={guest.uuid: guest.debt_kib for guest in self.guests if guest.debt_kib},
        )

    def remember(self, made: Iterable[Move]) -> MemoryHistory:
        """Return what the next pass should be handed: what was read, and which moves of the plan were *made*."""
        # A record of another version may hold a move of who is none of ours here.
        balloons = [move for move in made if isinstance(move, BalloonMove) and move.uuid in self._by_uuid]
        directions = {move.uuid: 1 if move.gives else -1 for move in balloons}
        before = self.history.domains
        domains = {}
        for domain in self.now.domains:
            guest, seen = self._by_uuid.get(domain.uuid), before.get(domain.uuid)
            if domain.balloon is not None:
                direction, risk_kib = directions.get(domain.uuid, 0), self._risks[domain.uuid]
                domains[domain.uuid] = remembered(domain.balloon, guest, seen, direction, risk_kib, self.now.wall_s)
        for lost in self.now.skips:
            if lost.uuid in before:
                domains[lost.uuid] = before[lost.uuid]
        whole_kib = 0
        for move in balloons:
            given_kib = move.after_kib - self._by_uuid[move.uuid].expected_kib
            if given_kib > 0:
                domains[move.uuid] = domains[move.uuid].given(given_kib, self.now.wall_s)
                whole_kib += given_kib
        taken_kib = sum(move.before_kib - move.after_kib for move in balloons if not move.gives)
        memory = self.now.host.memory
        return MemoryHistory(
            level=self.host.level,
            domains=domains,
            lent=lent_after(self.host, balloons, self._by_uuid),
            wall_s=self.now.wall_s,
            swap_in_kib=memory.swap_in_kib if memory else None,
            swapping_s=self.host.swapping_s,
            own_use=noted(self.now, self.history),
            credit_kib=owing_after(self.host, whole_kib, taken_kib),
        )


# ---------------------------------------------------------------- moves


def _takes(draft: Draft) -> list[BalloonMove]:
    return [
        BalloonMove(
            t.guest.domain.name,
            t.guest.uuid,
            t.guest.actual_kib,
            t.guest.actual_kib - t.kib,
            t.why,
            ordered_kib=t.ordered_kib,
        )
        for t in draft.takes
    ]


def _gives(draft: Draft) -> list[BalloonMove]:
    return [_give(grant) for grant in sorted(draft.grants, key=lambda grant: grant.need.guest.uuid)]


def _give(grant: Grant) -> BalloonMove:
    guest, need = grant.need.guest, grant.need
    reason = need.why
    if grant.kib < need.total_kib:
        short_kib = need.total_kib - grant.kib
        reason += f", {mib(short_kib)} less than it needs, share by weight {guest.limits.weight:g}"
    if grant.on_credit:
        reason += ", on credit: it is free now, but promised to other guests, who may still touch it"
    after_kib = guest.expected_kib + grant.kib
    return BalloonMove(guest.domain.name, guest.uuid, guest.actual_kib, after_kib, reason, grant.on_credit)


def _withdrawals(guests: Iterable[Guest], moves: Iterable[BalloonMove]) -> list[BalloonMove]:
    """Call back takes under way that would lead below L, because the guest's use grew meanwhile.

    It costs the host nothing, for what has not arrived was never counted.
    """
    moved = {move.uuid for move in moves}
    return [
        retarget(guest, asked_kib, min(guest.actual_kib, guest.soft_kib), f"its use grew to {mib(guest.used_kib)}")
        for guest in guests
        # Even what counts as gone: it is still asked for, and a driver that comes back follows it.
        if guest.uuid not in moved and (asked_kib := pending(guest.domain)) is not None and _overtaken(guest, asked_kib)
    ]


def _reminders(guests: Iterable[Guest], moves: Iterable[BalloonMove]) -> list[BalloonMove]:
    """Ask again for gives that brought no answer; it costs the host nothing, for they are promised already."""
    moved = {move.uuid for move in moves}
    return [
        again(guest, guest.pending_kib)
        for guest in guests
        if guest.unheard and guest.pending_kib is not None and guest.uuid not in moved
        if guest.skip is None or guest.skip[0] in _RESTLESS
    ]


def _overtaken(guest: Guest, pending_kib: int) -> bool:
    if not guest.fresh or (guest.skip and guest.skip[0] not in _RESTLESS):
        return False
    return pending_kib < min(guest.actual_kib, guest.lower_kib) - BALLOON_TOLERANCE_KIB


def _periods(guests: Iterable[Guest], policy: MemoryPolicy) -> list[PeriodMove]:
    """Switch statistics on where they are off: the domain is judged from the next pass on (decision 14)."""
    after_s = policy.stats_period_s
    return [
        PeriodMove(guest.domain.name, guest.uuid, 0, after_s, "it reports no statistics, and can't be judged without")
        for guest in guests
        if guest.skip is not None and guest.skip[0] == "no-stats"
        if guest.balloon.period_s <= 0 < after_s and not period_set_by_person(guest.domain)
    ]


def _adopts(guest: Guest, after_kib: Mapping[str, int]) -> bool:
    """Return whether its size is a person's; what a dying guest gets beside it must not make that size ours."""
    record = memory_record(guest.domain)
    if record is None or not set_by_person(record, guest.balloon):
        return False
    if guest.skip is None:
        return guest.uuid in after_kib
    return guest.skip[0] == "human" and (guest.settled or not guest.fresh)


def _adoption(guest: Guest) -> Adoption:
    reason = f"somebody set {mib(guest.actual_kib)}: that is its new original, and what a release restores"
    return Adoption(guest.domain.name, guest.uuid, reason, memory_kib=guest.actual_kib)


# ---------------------------------------------------------------- funding


def _updated(planned: Snapshot, now: Snapshot, taken: set[str]) -> tuple[Domain, ...]:
    """Return the domains of *now* by number, of *planned* by definition: a re-read may leave the rest out.

    What was pending of a domain that was taken from since is pending no more.
    """
    definitions = {domain.uuid: domain for domain in planned.domains}
    return tuple(_renumbered(definitions.get(d.uuid), d, d.uuid in taken) for d in now.domains)


def _renumbered(definition: Optional[Domain], now: Domain, taken: bool) -> Domain:
    if definition is None or definition.balloon is None or now.balloon is None:
        return now
    balloon = replace(
        now.balloon,
        device=definition.balloon.device,
        autodeflate=definition.balloon.autodeflate,
        inhibitors=definition.balloon.inhibitors,
        limit_kib=definition.balloon.limit_kib,
        high_kib=definition.balloon.high_kib,
        fixed_kib=definition.balloon.fixed_kib,
        huge_kib=definition.balloon.huge_kib,
        rooms=definition.balloon.rooms,
        cells=definition.balloon.cells,
        memnodes=definition.balloon.memnodes,
        period_s=definition.balloon.period_s,
    )
    return replace(definition, balloon=balloon, record=None if taken else definition.record)


def _claim(guest: Guest, move: BalloonMove) -> Need:
    """Return the part of *move* that is still to be paid, as a need."""
    kib = max(0, min(move.after_kib, guest.hard_ceiling_kib) - guest.expected_kib)
    survive_kib = max(0, guest.busy_kib + guest.limits.survival_kib - guest.expected_kib) if guest.starved else 0
    if move.on_credit and not guest.fresh:
        survive_kib = kib
    floor_kib = max(0, guest.limits.floor_kib - guest.expected_kib - survive_kib)
    debt_kib = max(0, guest.debt_kib - survive_kib - floor_kib)
    return Need(guest, survive_kib, floor_kib, debt_kib, kib, move.reason).at_most(kib)


def _pay(claims: Sequence[tuple[BalloonMove, Need]], host: HostState) -> list[BalloonMove]:
    if host.supply_kib is None:
        return []
    needs = [need for _move, need in claims]
    # Who may grow while the host's level is low was judged by the plan: a guest that swaps is not seen to in one look.
    grants = grant(needs, replace(funds_of(host, []), frozen=False))
    paid = {grant.need.guest.uuid: grant for grant in grants}
    return [_paid(move, paid[move.uuid], host) for move, _need in claims if move.uuid in paid]


def _paid(move: BalloonMove, grant: Grant, host: HostState) -> BalloonMove:
    after_kib = grant.need.guest.expected_kib + grant.kib
    reason = move.reason
    if after_kib < move.after_kib:
        now = mib(max(0, host.supply_kib or 0))
        reason += f", {mib(move.after_kib)} planned, but the host has only {now} to give now"
    return replace(move, after_kib=after_kib, reason=reason, on_credit=grant.on_credit)
