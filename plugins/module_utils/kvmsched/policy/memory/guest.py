# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the snapshots say of one domain: frozen facts, and the one reason, if any, to skip it."""

from __future__ import annotations

from typing import NamedTuple, Optional, Union

from ...config import MemoryPolicy, MemorySettings
from ...model import BALLOON_TOLERANCE_KIB, Balloon, Domain, Skip, Snapshot
from . import eligibility
from .eligibility import Case, Reason, skip
from .history import MemoryHistory
from .limits import Limits, limits_of
from .locked import locked_looks
from .reading import NOTHING, Samples, measure
from .requests import Request, memory_record, original_of, request_of
from .safeties import ALL_ON, Safeties
from .sampling import is_slow

# QEMU's own memory beside the guest's, at least: a cgroup's limit holds both.
QEMU_OVERHEAD_KIB = 64 * 1024

# What others leave unused covers an honest need in a few passes; more gifts than that have no end.
BOTTOMLESS_GIFTS = 5


class Guest(NamedTuple):
    """One domain that the policy may touch, as this pass sees it.

    ``expected_kib`` is the size to expect: actual, or a higher target that was not reached yet.
    ``pending_kib`` is a target not reached yet; for ``late`` and ``unheard`` see requests.Request. ``ceiling_kib`` is
    how far it may grow, ``hard_ceiling_kib`` how far it could if nobody had set it a ceiling. ``lower_kib`` is L,
    below which no target goes (decision 1), ``soft_kib`` the same with a cushion and the coming rise.
    ``fresh``: its reading, all from ``settled`` to ``futile``, says something of now; see reading.Reading.
    ``still``: it had the same size at the earlier sample. ``locked``: see locked_looks(). ``lately_kib`` is what it
    was given in the last minutes, ``gifts`` how often it was given something since it was last out of need.
    ``unanswered``: it did not take yet what it was given. ``slow``: nothing is taken from it by default, for it tells
    too seldom how it does. ``skip`` says why it is skipped, if it is.
    ``original_kib`` is what it had before our first change, ``debt_kib`` what we took of that and nobody asked
    us to (decision 42a). ``worst_kib`` is the worst rise of its use that was seen lately (42b).
    """

    domain: Domain
    balloon: Balloon
    limits: Limits
    uuid: str
    actual_kib: int
    expected_kib: int
    pending_kib: Optional[int]
    late: bool
    unheard: bool
    ceiling_kib: int
    hard_ceiling_kib: int
    original_kib: int
    debt_kib: int
    worst_kib: int
    lower_kib: int
    soft_kib: int
    still: bool
    fresh: bool
    settled: bool
    risen: bool
    unused_kib: int
    usable_kib: int
    available_kib: int
    blind: bool
    used_kib: int
    rise_kib: int
    hidden_kib: int
    swapping: bool
    rebooted: bool
    futile: bool
    starved: bool
    wasteful: bool
    locked: int
    lately_kib: int
    gifts: int
    unanswered: bool
    slow: bool
    skip: Optional[Reason] = None

    @property
    def judged(self) -> bool:
        """Return whether demand is known and nothing stands in the way."""
        return self.skip is None and self.fresh

    @property
    def shrinkable(self) -> bool:
        """Return whether memory may be taken from it in this pass."""
        willing = self.limits.mode != "grow-only" and not self.inhibited and not self.slow
        return self.judged and self.settled and willing and self.pending_kib is None

    @property
    def inhibited(self) -> bool:
        """Return whether the host would keep what it gives: nothing is taken from it, but it may be in need itself."""
        return self.futile or self.locked > 0 or bool(self.balloon.inhibitors)

    @property
    def pressed(self) -> bool:
        """Return whether it needs more than it has, now or soon."""
        below_floor = self.actual_kib < min(self.limits.floor_kib, self.ceiling_kib) - BALLOON_TOLERANCE_KIB
        return self.starved or self.swapping or self.soon_starved or below_floor

    @property
    def soon_starved(self) -> bool:
        """Return whether it will starve before the next pass, if its demand goes on to rise as it did."""
        return self.rise_kib > 0 and self.available_kib - self.rise_kib < self.limits.starvation_kib

    @property
    def bottomless(self) -> bool:
        """Return whether it grew beyond its original, and was in need again after each of several gifts."""
        return self.gifts >= BOTTOMLESS_GIFTS and self.expected_kib > self.original_kib + BALLOON_TOLERANCE_KIB

    @property
    def only_rises(self) -> bool:
        """Return whether nothing but a forecast says that it needs more."""
        below_floor = self.expected_kib < min(self.limits.floor_kib, self.ceiling_kib) - BALLOON_TOLERANCE_KIB
        return self.fresh and not (self.starved or self.swapping or below_floor)

    @property
    def dying(self) -> bool:
        """Return whether it is about to be killed by its own kernel, or lives on its swap (decision 45)."""
        return self.fresh and (self.available_kib * 2 < self.limits.survival_kib or self.swapping)

    @property
    def busy_kib(self) -> int:
        """Return what it needs to have at once: its size, less what it could still get."""
        return max(0, (self.expected_kib if self.unheard else self.actual_kib) - self.available_kib)


class GuestReader:
    """Read domains of one pass: the newest snapshot in the light of the earlier ones and of history."""

    def __init__(
        self,
        snapshots: tuple[Snapshot, ...],
        policy: MemoryPolicy,
        history: MemoryHistory,
        safeties: Safeties = ALL_ON,
    ) -> None:
        self.wall_s = snapshots[-1].wall_s
        self.policy, self.history, self.safeties = policy, history, safeties
        self._samples = Samples(snapshots)
        self._plain: dict[int, Limits] = {}
        self._careful = safeties.slow and policy.takes == "auto"
        # Who asks for eager takes has asked for all that they take, as long as he does.
        self._owes = safeties.debts and policy.takes != "eager"

    def read(self, domain: Domain, release: bool = False) -> Union[Guest, Skip]:
        """Return the domain's Guest, or the Skip that says why it is not this policy's business at all.

        *release*: what was changed is put back whatever the settings say now. Where they can't be
        understood there is no knowing how far the domain may shrink, so it only grows.
        """
        try:
            limits = self._limits(domain)
        except ValueError as error:
            if not release:
                return skip(domain, "bad-policy", str(error))
            limits = limits_of(MemorySettings(mode="grow-only"), self.policy, _maximum(domain))
        balloon = eligibility.in_scope(domain, limits, release)
        if not isinstance(balloon, Balloon):
            return skip(domain, *balloon)
        seen = self.history.domains.get(domain.uuid)
        request = request_of(domain, balloon, seen, self.wall_s)
        if not self.safeties.stuck:
            request = Request(balloon.actual_kib)
        record = memory_record(domain)
        original_kib = original_of(record, balloon, self.safeties.person)
        limits = limits.beside(original_kib)
        case = Case(domain, balloon, record, limits, request, seen, self.policy, self.wall_s, self.safeties)
        hard_kib = _hard_ceiling(case)
        ceiling_kib = _ceiling(case, hard_kib)
        guest = self._guest(case, original_kib, ceiling_kib, hard_kib, eligibility.unknown(case, ceiling_kib))
        if guest.skip is None and (reason := eligibility.known_skip(case, guest)) is not None:
            return guest._replace(skip=reason)
        if guest.skip is None and request.gone:
            return guest._replace(pending_kib=None, expected_kib=guest.actual_kib)
        return guest

    def _guest(
        self, case: Case, original_kib: int, ceiling_kib: int, hard_ceiling_kib: int, reason: Optional[Reason]
    ) -> Guest:
        """Return the facts; *reason* is why its statistics say nothing of now."""
        limits, balloon, request = case.limits, case.balloon, case.request
        reading = NOTHING if reason is not None else measure(case, self._samples)
        fresh = reason is None
        lower_kib = max(limits.floor_kib, reading.used_kib + limits.starvation_kib) if fresh else 0
        soft_kib = max(limits.floor_kib, reading.used_kib + reading.rise_kib + limits.cushion_kib) if fresh else 0
        starved = fresh and reading.available_kib < limits.starvation_kib
        return Guest(
            domain=case.domain,
            balloon=balloon,
            limits=limits,
            uuid=case.domain.uuid,
            actual_kib=balloon.actual_kib,
            expected_kib=request.expected_kib,
            pending_kib=request.pending_kib,
            late=request.late,
            unheard=request.unheard,
            ceiling_kib=ceiling_kib,
            hard_ceiling_kib=hard_ceiling_kib,
            original_kib=original_kib,
            debt_kib=_debt(case, min(original_kib, ceiling_kib)) if self._owes else 0,
            worst_kib=_worst(case) if self.safeties.keep else 0,
            lower_kib=lower_kib,
            soft_kib=soft_kib,
            still=self._samples.still(case.domain.uuid, balloon),
            fresh=fresh,
            settled=reading.settled,
            risen=reading.risen,
            unused_kib=reading.unused_kib,
            usable_kib=reading.usable_kib,
            available_kib=reading.available_kib,
            blind=reading.blind,
            used_kib=reading.used_kib,
            rise_kib=reading.rise_kib,
            hidden_kib=reading.hidden_kib,
            swapping=reading.swapping,
            rebooted=reading.rebooted,
            futile=reading.futile,
            starved=starved,
            wasteful=fresh and reading.unused_kib > limits.waste_kib and not starved,
            locked=locked_looks(balloon, case.seen, case.safeties),
            lately_kib=case.seen.lately_kib(case.wall_s) if case.seen and case.seen.given_kib else 0,
            gifts=case.seen.gifts if case.seen else 0,
            unanswered=request.expected_kib > balloon.actual_kib and case.safeties.answers,
            slow=self._careful and fresh and is_slow(balloon, case.wall_s),
            skip=reason,
        )

    def _limits(self, domain: Domain) -> Limits:
        maximum_kib = _maximum(domain)
        if self.policy.rules or domain.owner.settings or domain.owner.error:
            return limits_of(self.policy.settings_for(domain), self.policy, maximum_kib)
        known = self._plain.get(maximum_kib)
        if known is None:
            known = limits_of(self.policy.settings_for(domain), self.policy, maximum_kib)
            self._plain[maximum_kib] = known
        return known


def _debt(case: Case, original_kib: int) -> int:
    return max(0, original_kib - case.request.expected_kib - case.record.ordered_kib) if case.record else 0


def _worst(case: Case) -> int:
    return max(case.seen.worst_kib, case.seen.worst_old_kib) if case.seen else 0


def _maximum(domain: Domain) -> int:
    return domain.balloon.most_kib if domain.balloon else 0


def _ceiling(case: Case, hard_kib: int) -> int:
    """Return how far it may grow: the kernel throttles a QEMU above its memory.high (decision 44)."""
    if case.balloon.high_kib is not None and case.safeties.high:
        hard_kib = min(hard_kib, case.balloon.high_kib - _overhead(case))
    return min(case.limits.ceiling_kib, hard_kib)


def _hard_ceiling(case: Case) -> int:
    """Return how far it could grow: its maximum, and the limit on its QEMU process.

    Beside what it holds, for it may have that already without having said so.
    """
    balloon = case.balloon
    ceiling_kib = balloon.most_kib
    if balloon.limit_kib is not None:
        ceiling_kib = min(ceiling_kib, balloon.limit_kib - _overhead(case))
    return ceiling_kib


def _overhead(case: Case) -> int:
    return max(QEMU_OVERHEAD_KIB, (case.balloon.rss_kib or 0) - case.request.expected_kib)
