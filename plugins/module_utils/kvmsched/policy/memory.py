# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The memory policy: which balloons should change, by how much and why. Pure functions of what was observed.

Read in this order: memory_reading (what is known of a domain), memory_supply (what the host can
give, and sharing), memory_strategies (who gives, who gets), and here, where a plan is made of it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Iterable, Optional, Sequence

from ..config import MemoryPolicy
from ..model import (
    BALLOON_TOLERANCE_KIB,
    Adoption,
    Balloon,
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
from .memory_reading import Guest, Reader, human_period, memory_record, pending, set_by_human, skip
from .memory_release import again, retarget, way_back
from .memory_strategies import Draft, fair, pairwise
from .memory_supply import Grant, HostState, Need, at_risk, by_uuid, grant, host_state, risks, rooms_of

__all__ = ["MemoryHistory", "decide", "fund", "release"]

# A domain that did not move for this long has no direction left to turn from.
QUIET_S = 600

# Why a domain is left alone that may still be sent elsewhere.
_RESTLESS = ("settling", "stuck")
# Why waste stays although nobody forbids taking it.
_LIMITS = ("at-floor", "band")


# ---------------------------------------------------------------- the three questions


def decide(
    snapshots: Sequence[Snapshot], policy: MemoryPolicy, history: Optional[MemoryHistory] = None
) -> tuple[MemoryPlan, MemoryHistory]:
    """Return the plan for the newest of *snapshots* (oldest first), and what the next pass should be handed.

    Two snapshots a statistics tick apart, or one and *history*, prove that a domain is at rest; without
    that it may be grown if it starves, never shrunk. Same input, same plan, in any order of domains.
    """
    scene = _Scene(snapshots, policy, history or MemoryHistory(), release=False)
    if policy.strategy == "pairwise":
        draft = pairwise(scene.guests, scene.host, policy)
    else:
        draft = fair(scene.guests, scene.host, policy, scene.history.domains, scene.now.wall_s)
    balloons = [*_takes(draft), *_gives(draft)]
    balloons += _withdrawals(scene.guests, balloons)
    moves: list[Move] = [*balloons, *_reminders(scene.guests, balloons), *_periods(scene.guests, policy)]
    return scene.plan(draft, moves), scene.remember(moves)


def release(
    snapshots: Sequence[Snapshot], policy: MemoryPolicy, history: Optional[MemoryHistory] = None
) -> tuple[MemoryPlan, MemoryHistory]:
    """Return the plan that brings every chosen domain back to its record's originals, as far as is safe (decision 2).

    Statistics periods stand last in the plan, only for domains whose memory this plan brings home.
    What can't be restored yet is in ``not_restored``, a line each: a later release goes on.
    """
    scene = _Scene(snapshots, policy, history or MemoryHistory(), release=True)
    back = way_back(scene.guests, scene.host)
    balloons = [*_takes(back.draft), *_gives(back.draft), *back.retargets]
    moves: list[Move] = [*balloons, *_withdrawals(scene.guests, balloons), *back.periods]
    plan = scene.plan(back.draft, moves)
    left = (*back.left.values(), *policy.selection.unseen(scene.now))
    return replace(plan, not_restored=left, unmet=()), scene.remember(moves)


def fund(plan: MemoryPlan, policy: MemoryPolicy, planned: Snapshot, now: Snapshot) -> tuple[BalloonMove, ...]:
    """Return the gives of *plan* that *now* proves payable, reduced where it does not pay them whole (decision 6).

    *planned* is the snapshot that the plan was made from; of *now*, read after the takes were sent, only
    the numbers count. What was asked of a balloon and has not arrived is no memory: supply is what is
    free now, and what arrived is in there already.
    """
    balloons = [move for move in plan.moves if isinstance(move, BalloonMove)]
    current = replace(now, domains=_updated(planned, now, {move.uuid for move in balloons if not move.gives}))
    reader = Reader((planned, current), policy, MemoryHistory())
    domains = {domain.uuid: domain for domain in current.domains}
    free, claims = [], []
    for move in balloons:
        guest = reader.read(domains[move.uuid], release=True) if move.gives and move.uuid in domains else None
        if not isinstance(guest, Guest):
            continue
        if move.after_kib <= guest.held_kib + BALLOON_TOLERANCE_KIB:
            free.append(move)
        else:
            claims.append((move, _claim(guest, move)))
    in_need = [need.guest for _move, need in claims if need.guest.starved or need.guest.dying]
    host = host_state(current, policy, {uuid: at_risk(domain, None) for uuid, domain in domains.items()}, in_need, "ok")
    return (*free, *_pay(claims, host))


# ---------------------------------------------------------------- what a pass works on


class _Scene:
    """One pass: the chosen domains as Guests in the order of their UUIDs, the host, and what is remembered."""

    def __init__(
        self, snapshots: Sequence[Snapshot], policy: MemoryPolicy, history: MemoryHistory, release: bool
    ) -> None:
        self.policy, self.history = policy, history
        self.now = snapshots[-1]
        self.skips: list[Skip] = []
        guests: list[Guest] = []
        reader = Reader(tuple(snapshots), policy, history)
        for domain in self.now.domains:
            if policy.selection.matches(domain):
                read = reader.read(domain, release)
                if isinstance(read, Guest):
                    guests.append(read)
                else:
                    self.skips.append(read)
        self.guests = by_uuid(guests)
        self._by_uuid = {guest.uuid: guest for guest in self.guests}
        self._risks = risks(self.now, self._by_uuid, history.domains)
        in_need = (guest for guest in self.guests if guest.starved or guest.dying)
        self.host = host_state(self.now, policy, self._risks, in_need, history.level)

    def plan(self, draft: Draft, moves: Sequence[Move]) -> MemoryPlan:
        after_kib = {move.uuid: move.after_kib for move in moves if isinstance(move, BalloonMove)}
        limited = {note.uuid for note in draft.notes if note.code in _LIMITS}
        skipped = [skip(guest.domain, *guest.skip) for guest in self.guests if guest.skip is not None]
        unmet = [missing for guest in self.guests for missing in _unmet(guest, after_kib, self.host)]
        return MemoryPlan(
            before=_figures(self.guests, self.host, {}, limited),
            after=_figures(self.guests, self.host, after_kib, limited),
            moves=tuple(moves),
            skips=tuple(sorted([*self.skips, *skipped, *draft.notes], key=lambda s: (s.uuid, s.code))),
            unmet=tuple(unmet),
            adoptions=tuple(_adoption(guest) for guest in self.guests if _adopts(guest)),
            unmatched=self.policy.selection.unmatched(self.now.domains),
            warnings=tuple(_warnings(self.guests, self.host, draft, after_kib)),
            supply_kib=self.host.supply_kib,
        )

    def remember(self, moves: Sequence[Move]) -> MemoryHistory:
        directions = {move.uuid: 1 if move.gives else -1 for move in moves if isinstance(move, BalloonMove)}
        before = self.history.domains
        domains = {}
        for domain in self.now.domains:
            guest, seen = self._by_uuid.get(domain.uuid), before.get(domain.uuid)
            if domain.balloon is not None:
                turn, risk_kib = directions.get(domain.uuid, 0), self._risks[domain.uuid]
                domains[domain.uuid] = _remembered(domain.balloon, guest, seen, turn, risk_kib, self.now.wall_s)
        for lost in self.now.skips:
            if lost.uuid in before:
                domains[lost.uuid] = before[lost.uuid]
        return MemoryHistory(self.host.level, domains)


def _remembered(
    balloon: Balloon, guest: Optional[Guest], seen: Optional[Seen], turn: int, risk_kib: int, wall_s: float
) -> Seen:
    """What the next pass should know of a domain; *turn* is the direction of its move in this one."""
    if guest is None or not guest.fresh:
        if seen is None:
            return Seen(balloon.last_update_s, balloon.actual_kib, at_risk_kib=risk_kib)
        return seen if seen.at_risk_kib == risk_kib else replace(seen, at_risk_kib=risk_kib)
    old = seen or Seen(0, 0)
    record = memory_record(guest.domain)
    asked_s = record.when_s if record else 0
    stuck = guest.unheard or (guest.skip is not None and guest.skip[0] == "stuck")
    # While it may have more than it says, what it uses is not known: the answer would look like a rise.
    known = (guest.settled or guest.risen) and (guest.unheard or guest.held_kib == guest.actual_kib)
    quiet = wall_s - old.moved_s > QUIET_S
    return Seen(
        last_update_s=balloon.last_update_s,
        actual_kib=balloon.actual_kib,
        used_kib=guest.used_kib if known else old.used_kib,
        used_s=balloon.last_update_s if known else old.used_s,
        rss_kib=balloon.rss_kib,
        swap_in_kib=balloon.swap_in_kib,
        swap_out_kib=balloon.swap_out_kib,
        major_faults=balloon.major_faults,
        at_risk_kib=risk_kib,
        direction=turn or (0 if quiet else old.direction),
        moved_s=wall_s if turn else old.moved_s,
        reversals=(0 if quiet else old.reversals) + (1 if turn * old.direction < 0 and not quiet else 0),
        stuck_asked_s=asked_s if stuck else old.stuck_asked_s,
        stuck_times=_stuck_times(old, stuck, asked_s, guest.pending_kib is None),
        futile_s=(old.futile_s or wall_s) if guest.futile else 0.0,
        booted_s=wall_s if guest.rebooted else old.booted_s,
    )


def _stuck_times(old: Seen, stuck: bool, asked_s: int, arrived: bool) -> int:
    """How many requests in a row were ignored: one more for a new request, none once one was followed."""
    if stuck:
        return old.stuck_times + (1 if asked_s != old.stuck_asked_s else 0)
    return 0 if arrived and asked_s != old.stuck_asked_s else old.stuck_times


# ---------------------------------------------------------------- moves


def _takes(draft: Draft) -> list[BalloonMove]:
    return [
        BalloonMove(t.guest.domain.name, t.guest.uuid, t.guest.actual_kib, t.guest.actual_kib - t.kib, t.why)
        for t in draft.takes
    ]


def _gives(draft: Draft) -> list[BalloonMove]:
    return [_give(grant) for grant in sorted(draft.grants, key=lambda grant: grant.need.guest.uuid)]


def _give(grant: Grant) -> BalloonMove:
    guest, need = grant.need.guest, grant.need
    reason = need.why
    if grant.kib < need.total_kib:
        short_kib = need.total_kib - grant.kib
        reason += f", host short {mib(short_kib)}, share by weight {guest.limits.weight:g}"
    if grant.on_credit:
        reason += ", on credit: it would die"
    after_kib = guest.held_kib + grant.kib
    return BalloonMove(guest.domain.name, guest.uuid, guest.actual_kib, after_kib, reason, grant.on_credit)


def _withdrawals(guests: Iterable[Guest], moves: Iterable[BalloonMove]) -> list[BalloonMove]:
    """Call back takes under way that would by now lead below L: the guest's use grew meanwhile.

    It costs the host nothing, for what has not arrived was never counted.
    """
    moved = {move.uuid for move in moves}
    return [
        retarget(guest, asked_kib, min(guest.actual_kib, guest.soft_kib), f"used {mib(guest.used_kib)} by now")
        for guest in guests
        # Even what counts as gone: it is still asked for, and a driver that comes back follows it.
        if guest.uuid not in moved and (asked_kib := pending(guest.domain)) is not None and _overtaken(guest, asked_kib)
    ]


def _reminders(guests: Iterable[Guest], moves: Iterable[BalloonMove]) -> list[BalloonMove]:
    """Ask again for gives of which nothing was heard; it costs the host nothing, for they are promised already."""
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
        PeriodMove(guest.domain.name, guest.uuid, 0, after_s, "it reports no statistics")
        for guest in guests
        if guest.skip is not None and guest.skip[0] == "no-stats"
        if guest.balloon.period_s <= 0 < after_s and not human_period(guest.domain)
    ]


def _adopts(guest: Guest) -> bool:
    record = memory_record(guest.domain)
    human = guest.skip is not None and guest.skip[0] == "human"
    return human and record is not None and set_by_human(record, guest.balloon)


def _adoption(guest: Guest) -> Adoption:
    reason = f"somebody set {mib(guest.actual_kib)}: its new original"
    return Adoption(guest.domain.name, guest.uuid, reason, memory_kib=guest.actual_kib)


# ---------------------------------------------------------------- funding


def _updated(planned: Snapshot, now: Snapshot, taken: set[str]) -> tuple[Domain, ...]:
    """The domains of *now* by number, of *planned* by definition: a re-read may leave the rest out.

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
        rooms=definition.balloon.rooms,
        cells=definition.balloon.cells,
        period_s=definition.balloon.period_s,
    )
    return replace(definition, balloon=balloon, record=None if taken else definition.record)


def _claim(guest: Guest, move: BalloonMove) -> Need:
    """The part of *move* that is still to be paid, as a need."""
    kib = max(0, min(move.after_kib, guest.hard_ceiling_kib) - guest.held_kib)
    floor_kib = max(0, guest.limits.floor_kib - guest.held_kib)
    survive_kib = max(0, guest.lower_kib - guest.held_kib - floor_kib) if guest.fresh else 0
    return Need(guest, floor_kib, survive_kib, kib, move.reason).at_most(kib)


def _pay(claims: Sequence[tuple[BalloonMove, Need]], host: HostState) -> list[BalloonMove]:
    if host.supply_kib is None:
        return []
    needs = [need for _move, need in claims]
    grants = grant(needs, host.supply_kib, host.credit_kib, host.level == "low", host.rooms_kib)
    paid = {grant.need.guest.uuid: grant for grant in grants}
    return [_paid(move, paid[move.uuid], host) for move, _need in claims if move.uuid in paid]


def _paid(move: BalloonMove, grant: Grant, host: HostState) -> BalloonMove:
    after_kib = grant.need.guest.held_kib + grant.kib
    reason = move.reason
    if after_kib < move.after_kib:
        reason += f", {mib(move.after_kib)} planned but the host has {mib(max(0, host.supply_kib or 0))} by now"
    return replace(move, after_kib=after_kib, reason=reason, on_credit=grant.on_credit)


# ---------------------------------------------------------------- figures


def _figures(guests: Sequence[Guest], host: HostState, after_kib: dict[str, int], limited: set[str]) -> MemoryFigures:
    """The host in figures; *after_kib* maps UUID to a new target, and the rest follows from it."""
    starved = wasteful = unknown = bound = unused_kib = usable_kib = actual_kib = freed_kib = 0
    for guest in guests:
        change_kib = after_kib.get(guest.uuid, guest.actual_kib) - guest.actual_kib
        actual_kib += guest.actual_kib + change_kib
        freed_kib += _freed(guest, change_kib)
        if not guest.fresh:
            unknown += 1
            continue
        # A balloon takes free pages first, then cache.
        unused = max(0, guest.unused_kib + change_kib)
        usable = guest.usable_kib + change_kib
        unused_kib += unused
        usable_kib += usable
        if usable < guest.limits.starvation_kib:
            starved += 1
            bound += guest.ceiling_kib - guest.held_kib - change_kib < guest.limits.min_change_kib
        elif unused > guest.limits.waste_kib:
            wasteful += 1
            bound += guest.uuid in limited
    available_kib = None if host.available_kib is None else host.available_kib + freed_kib
    return MemoryFigures(
        starved, wasteful, unknown, unused_kib, usable_kib, actual_kib, available_kib, host.reserve_kib, bound
    )


def _freed(guest: Guest, change_kib: int) -> int:
    """What the host gets of a change, at once: of a take what was resident, of a give the opposite of all."""
    if change_kib >= 0:
        return -change_kib
    resident_kib = min(guest.balloon.rss_kib or 0, guest.actual_kib)
    return max(0, resident_kib - guest.actual_kib - change_kib)


def _unmet(guest: Guest, after_kib: dict[str, int], host: HostState) -> list[Unmet]:
    """What keeps *guest* starved, or below its floor, after this plan."""
    if not guest.judged or not (guest.starved or guest.actual_kib < guest.limits.floor_kib):
        return []
    target_kib = max(guest.held_kib, after_kib.get(guest.uuid, 0))
    kib = (guest.lower_kib if guest.starved else guest.limits.floor_kib) - target_kib
    if kib <= BALLOON_TOLERANCE_KIB:
        return []
    state = f"usable {mib(guest.usable_kib)}, starvation {mib(guest.limits.starvation_kib)}"
    rooms = [(host.rooms_kib[name], name) for name in rooms_of(guest.balloon) if name in host.rooms_kib]
    if guest.ceiling_kib - target_kib < guest.limits.min_change_kib:
        why = f"at its limit {mib(guest.ceiling_kib)}"
    elif host.supply_kib is None:
        why = "the host's memory is not known"
    elif host.level == "low":
        why = "host level low: growth is frozen"
    elif rooms and min(rooms)[0] < host.supply_kib:
        why = f"{min(rooms)[1]}, where its memory has to be, has {mib(max(0, min(rooms)[0]))} to give"
    else:
        why = f"the host has {mib(max(0, host.supply_kib))} to give"
    return [Unmet(guest.domain.name, guest.uuid, kib, f"{state}, {why}")]


def _warnings(guests: Sequence[Guest], host: HostState, draft: Draft, after_kib: dict[str, int]) -> Iterable[str]:
    if host.supply_kib is None:
        yield "the host's memory is not known: nothing is given"
    low = [g for g in guests if g.judged and g.limits.floor_kib - g.ceiling_kib <= 0]
    missing = [g.limits.floor_kib - max(g.held_kib, after_kib.get(g.uuid, 0)) for g in low]
    short = [kib for kib in missing if kib > BALLOON_TOLERANCE_KIB]
    if short:
        yield f"floors can't be met: {len(short)} domains are {mib(sum(short))} below theirs, and the host has no more"
    taken_kib = sum(take.kib for take in draft.takes)
    if host.short_kib > taken_kib:
        below = mib(host.short_kib - taken_kib)
        yield f"host level {host.level}: {below} below its reserve, and the domains can give no more in this pass"
