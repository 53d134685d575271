# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One pass over a host: observe -> decide -> apply. Modules, daemon and command line all run these."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Iterable, Iterator, Optional, Sequence, TypeVar, Union

from . import baseline, lock
from .config import MemoryPolicy, Selection, VcpuPolicy
from .hypervisor import ALL_PARTS, Change, Hypervisor, Reading, Unavailable, acting_refusal
from .model import (
    BALLOON_TOLERANCE_KIB,
    Adoption,
    BalloonMove,
    Domain,
    Failure,
    MemoryPlan,
    Move,
    Outcome,
    PeriodMove,
    Record,
    Skip,
    Snapshot,
    VcpuPlan,
)
from .policy import memory, vcpu
from .policy.memory_reading import EVENT_S

# The statistics of a domain that reports less often than this can't be sampled twice within one pass.
_LONGEST_TICK_S = 10
# Guests answer a little after their period is over, and last_update counts whole seconds.
_TICK_SLACK_S = 0.7
_POLL_S = 0.5
# A standing pass takes the domains' XML for what it was, unless something happened, for no longer than this.
_ANEW_S = 60.0


class PassError(Exception):
    """A pass that failed as a whole (decision 9); the text is one line for people."""


@dataclass(frozen=True)
class Conduct:
    """How a pass is carried out. ``check``: nothing is written, and the connection is read-only.

    ``daemon_pid`` is that of another process that acts on this host (0: its pid is not known): nothing
    is written then either, and the result says so. ``sets_periods``: statistics periods are set even
    in ``check``, for without statistics nothing can be planned (decision 14).
    """

    uri: str = "qemu:///system"
    check: bool = False
    deadline_s: float = 10.0
    lock_timeout_s: float = 10.0
    holder: str = "kvmsched"
    daemon_pid: Optional[int] = None
    sets_periods: bool = False

    @property
    def writes(self) -> bool:
        return not self.check and self.daemon_pid is None

    @property
    def read_only(self) -> bool:
        return not (self.writes or self.sets_periods)


P = TypeVar("P", MemoryPlan, VcpuPlan)
Q = TypeVar("Q", MemoryPolicy, VcpuPolicy)
H = TypeVar("H", memory.MemoryHistory, vcpu.VcpuHistory)


@dataclass(frozen=True)
class Result(Generic[P, H]):
    """What a pass planned and what came of it; ``history`` is what the next pass should be handed.

    ``timings_s`` is seconds by phase, waiting for samples included in observe; ``failed`` is why the
    pass as a whole failed (decision 9), though single moves may have been made. ``not_restored`` is a line for
    each domain that a release leaves changed: as it planned, or as it then was.
    """

    snapshot: Snapshot
    plan: P
    history: H
    outcome: Outcome
    timings_s: dict[str, float]
    not_restored: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    failed: Optional[str] = None

    @property
    def skips(self) -> tuple[Skip, ...]:
        """All skips: of what could not be observed, and of what the policy left alone."""
        return (*self.snapshot.skips, *self.plan.skips)


MemoryResult = Result[MemoryPlan, memory.MemoryHistory]
VcpuResult = Result[VcpuPlan, vcpu.VcpuHistory]

# ---------------------------------------------------------------- the passes


def run_memory(
    how: Conduct,
    policy: MemoryPolicy,
    release: bool = False,
    history: Optional[memory.MemoryHistory] = None,
) -> MemoryResult:
    """Balance (or *release*) the memory of the domains of one host, once. Raises PassError."""
    how = _beside_daemon(how, release)
    with _session(how, "memory") as (host, watch):
        samples = _sample_memory(host, EVENT_S if release else 0.0)
        watch.lap("observe")
        result = _memory_pass(_Work(host, samples[-1], how), samples, policy, history, release, watch)
        unwatched = _unwatched(result) if history is None and not release else ()
        return replace(result, warnings=(*result.warnings, *unwatched))


def run_vcpu(
    how: Conduct,
    policy: VcpuPolicy,
    release: bool = False,
    history: Optional[vcpu.VcpuHistory] = None,
) -> VcpuResult:
    """Balance (or *release*) the pins of one host's vCPUs, once, by their load over the interval. Raises PassError."""
    how = _beside_daemon(how, release)
    with _session(how, "vcpus") as (host, watch):
        samples = [host.observe()] if release else _sample_load(host, policy.interval_s)
        watch.lap("observe")
        return _vcpu_pass(_Work(host, samples[-1], how), samples, policy, history, release, watch)


def run_rescue(how: Conduct, policy: MemoryPolicy) -> MemoryResult:
    """Give domains back what they had before we took it, as far as the host has it; take from none. Raises PassError.

    For a host whose daemon failed: nobody will look after its slim guests (decision 23).
    """
    how = _beside_daemon(how, release=True)
    with _session(how, "memory") as (host, watch):
        samples = _sample_memory(host)
        watch.lap("observe")
        plan, learnt = memory.release(samples, policy)
        gives = tuple(move for move in plan.moves if isinstance(move, BalloonMove) and move.gives)
        plan = replace(plan, moves=gives, not_restored=())
        watch.lap("decide")
        work = _Work(host, samples[-1], how)
        if how.writes:
            _move_memory(work, plan, policy, release=False)
            watch.lap("apply")
        result = _result(plan, learnt, work, watch)
        # Nobody comes back to them but another rescue.
        missed = [skip for skip in result.skips if skip.code in ("busy", "hung")] or result.outcome.failures
        if missed and not result.failed:
            names = ", ".join(one.domain for one in missed)
            result = replace(result, failed=f"not all were looked after, run it again: {names}")
        return result


def run_info(how: Conduct, interval_s: float) -> tuple[list[Snapshot], dict[str, float]]:
    """Two snapshots *interval_s* apart over a read-only connection, and the seconds by phase. Raises PassError."""
    with _session(replace(how, check=True), *ALL_PARTS) as (host, watch):
        samples = _sample_load(host, interval_s)
        watch.lap("observe")
        return samples, watch.laps_s


def run_snapshots(how: Conduct, interval_s: float) -> list[Snapshot]:
    """Two snapshots that both passes can plan from: at least *interval_s* apart, read-only. Raises PassError."""
    with _session(replace(how, check=True), *ALL_PARTS) as (host, _watch):
        return _sample_memory(host, interval_s)


def _memory_pass(
    work: _Work,
    samples: Sequence[Snapshot],
    policy: MemoryPolicy,
    history: Optional[memory.MemoryHistory],
    release: bool,
    watch: _Watch,
) -> MemoryResult:
    judge = memory.release if release else memory.decide
    plan, learnt = judge(samples, policy, history)
    watch.lap("decide")
    if work.how.writes:
        with work.accounted():
            work.adopt(plan.adoptions)
            _move_memory(work, plan, policy, release)
            if release:
                _strike_restored(work, plan, policy.selection, memory=True, pins=False)
    elif work.how.sets_periods:
        work.make(move for move in plan.moves if isinstance(move, PeriodMove))
    watch.lap("apply")
    return _result(plan, learnt, work, watch)


def _vcpu_pass(
    work: _Work,
    samples: Sequence[Snapshot],
    policy: VcpuPolicy,
    history: Optional[vcpu.VcpuHistory],
    release: bool,
    watch: _Watch,
) -> VcpuResult:
    judge = vcpu.release if release else vcpu.decide
    plan, learnt = judge(samples, policy, history)
    watch.lap("decide")
    if work.how.writes:
        with work.accounted():
            work.adopt(plan.adoptions)
            work.make(plan.moves)
            if release:
                _strike_restored(work, plan, policy.selection, memory=False, pins=True)
    watch.lap("apply")
    return _result(plan, learnt, work, watch)


# ---------------------------------------------------------------- pass after pass


@dataclass(frozen=True)
class Turn(Generic[Q, H]):
    """One resource's part of a tick: its policy, the history that its last pass handed back, that pass's snapshot."""

    policy: Q
    history: H
    before: Optional[Snapshot] = None

    def samples(self, now: Snapshot) -> list[Snapshot]:
        return [now] if self.before is None else [self.before, now]


@dataclass(frozen=True)
class Tick:
    """What came of a tick. A resource that had no turn, or whose pass failed as ``failed`` tells, has no result."""

    snapshot: Snapshot
    memory: Optional[MemoryResult] = None
    vcpu: Optional[VcpuResult] = None
    failed: dict[str, str] = field(default_factory=dict)


class _Outdated(Exception):
    """What is to be changed was last read in an earlier tick."""


class Standing:
    """One host over one connection, passed over again and again: a daemon's form of the passes above.

    One observation serves both resources. Nothing is waited for: what was taken and has arrived by
    the next look is given, the rest is left to the next tick.

    Where nothing is to be done, most ticks read only what counts up, and take the domains' XML for
    what it was. That is right while nothing happened to them, and read anew at least once a minute;
    what is to be changed is always read anew before, and decided anew.
    """

    def __init__(self, how: Conduct) -> None:
        refusal = None if how.read_only else acting_refusal(how.uri)
        if refusal:
            raise PassError(refusal)
        self.how = how
        self._host = _host(how)
        self._anew_s = 0.0

    def close(self) -> None:
        self._host.close()

    def tick(
        self,
        memory_turn: Optional[Turn[MemoryPolicy, memory.MemoryHistory]],
        vcpu_turn: Optional[Turn[VcpuPolicy, vcpu.VcpuHistory]],
        quiet: bool = False,
    ) -> Tick:
        """Observe once, and let each resource that is given a turn have its pass. PassError if nothing can be seen.

        *quiet*: nothing is known to have happened to any domain since the last tick.
        """
        with _held(self.how):
            if quiet and time.monotonic() < self._anew_s:
                with contextlib.suppress(_Outdated):
                    return self._tick("new", memory_turn, vcpu_turn)
            return self._tick("all", memory_turn, vcpu_turn)

    def _tick(
        self,
        reading: Reading,
        memory_turn: Optional[Turn[MemoryPolicy, memory.MemoryHistory]],
        vcpu_turn: Optional[Turn[VcpuPolicy, vcpu.VcpuHistory]],
    ) -> Tick:
        watch = _Watch()
        now = self._host.observe(reading)
        watch.lap("observe")
        # One for both: what memory wrote into a domain's record, the pins' part must find there.
        work = _Work(self._host, now, self.how, outdated=reading != "all")
        results: dict[str, Any] = {}
        failed: dict[str, str] = {}
        if memory_turn is not None:
            at_once = replace(memory_turn.policy, arrival_timeout_s=0.0)
            with _noted(failed, "memory"):
                samples = memory_turn.samples(now)
                results["memory"] = _memory_pass(work, samples, at_once, memory_turn.history, False, watch)
        if vcpu_turn is not None:
            calm = budgeted(vcpu_turn.policy, now)
            with _noted(failed, "vcpu"):
                samples, watch = vcpu_turn.samples(now), watch.again()
                results["vcpu"] = _vcpu_pass(work, samples, calm, vcpu_turn.history, False, watch)
        if reading == "all":
            self._anew_s = time.monotonic() + _ANEW_S
        if work.wrote or now.skips or any(domain.busy for domain in now.domains):
            self._anew_s = 0.0
        return Tick(now, **results, failed=failed)


def budgeted(policy: VcpuPolicy, now: Snapshot) -> VcpuPolicy:
    """What a daemon may move in one pass unless its policy says so: max(2, 3 % of the vCPUs) (decision 28)."""
    if policy.max_moves is not None:
        return policy
    return replace(policy, max_moves=max(2, round(0.03 * sum(len(domain.vcpus) for domain in now.domains))))


@contextlib.contextmanager
def _noted(failed: dict[str, str], resource: str) -> Iterator[None]:
    """Note why the pass of one resource failed: the other one has its turn all the same."""
    try:
        yield
    except (Unavailable, ValueError) as error:
        failed[resource] = str(error)


# ---------------------------------------------------------------- observe


def _sample_load(host: Hypervisor, interval_s: float) -> list[Snapshot]:
    first = host.observe("none")
    time.sleep(interval_s)
    return [first, host.observe()]


def _sample_memory(host: Hypervisor, least_s: float = 0.0) -> list[Snapshot]:
    """Two samples with a tick of every domain's statistics between them, and no balloon moving if that can be had.

    They are at least *least_s* apart.
    """
    first = host.observe()
    end_s = time.monotonic() + 2 * _LONGEST_TICK_S
    while True:
        time.sleep(max(_until_tick_s(first), first.monotonic_s + least_s - time.monotonic()))
        # A run that began meanwhile is read whole: without its XML it would seem to have no record, and get a new one.
        last = host.observe("new")
        if time.monotonic() >= end_s or not _unripe(first, last):
            return [first, last]
        if _ticked(first, last):
            first = last


def _ticking(snapshot: Snapshot) -> list[Domain]:
    """The domains whose driver answers, often enough to wait for it."""
    return [
        domain
        for domain in snapshot.domains
        if domain.state == "running"
        and domain.balloon is not None
        and 0 < domain.balloon.period_s <= _LONGEST_TICK_S
        and snapshot.wall_s - domain.balloon.last_update_s <= 2 * domain.balloon.period_s + 2
    ]


def _until_tick_s(snapshot: Snapshot) -> float:
    ticks = [d.balloon.last_update_s + d.balloon.period_s for d in _ticking(snapshot) if d.balloon]
    wait_s = max(ticks, default=0) + _TICK_SLACK_S - time.time()
    return min(max(wait_s, _POLL_S), _LONGEST_TICK_S)  # the wall clock may have been set back


def _unripe(first: Snapshot, last: Snapshot) -> bool:
    return any(not _same_balloon(first, domain) for domain in _ticking(last)) or not _ticked(first, last)


def _ticked(first: Snapshot, last: Snapshot) -> bool:
    before = {d.uuid: d.balloon.last_update_s for d in first.domains if d.balloon}
    return all(d.balloon.last_update_s > before.get(d.uuid, 0) for d in _ticking(last) if d.balloon)


def _same_balloon(first: Snapshot, domain: Domain) -> bool:
    before = first.domain(domain.uuid)
    if before is None or before.balloon is None or domain.balloon is None:
        return True
    return abs(before.balloon.actual_kib - domain.balloon.actual_kib) <= BALLOON_TOLERANCE_KIB


# ---------------------------------------------------------------- apply


class _Work:
    """Carries moves out, each after its record; a domain that failed once gets no further change in this pass.

    Of what is *outdated* nothing is carried out: _Outdated is raised before the first change.
    """

    def __init__(self, host: Hypervisor, planned: Snapshot, how: Conduct, outdated: bool = False) -> None:
        self.host, self.planned, self.how = host, planned, how
        self.wrote = False
        self._outdated = outdated
        self.moves: list[Move] = []
        self.failures: list[Failure] = []
        self.not_restored: Optional[list[str]] = None
        self.broken: Optional[str] = None
        self._domains = {domain.uuid: domain for domain in planned.domains}

    @contextlib.contextmanager
    def accounted(self) -> Iterator[None]:
        """Where libvirt goes away while changes are made, the pass fails, and still tells what it changed."""
        try:
            yield
        except Unavailable as error:
            self.broken = str(error)

    def make(self, moves: Iterable[Move]) -> list[Move]:
        """Make *moves*; return those that were made."""
        by_domain: dict[str, list[Move]] = {}
        for move in moves:
            by_domain.setdefault(move.uuid, []).append(move)
        return self.write(
            Change(d, self._intended(d, by_domain[u]), tuple(by_domain[u])) for u, d in self._open(by_domain)
        )

    def adopt(self, adoptions: Iterable[Adoption]) -> None:
        by_uuid = {adoption.uuid: adoption for adoption in adoptions}
        host_uuid, now_s = self.planned.host.uuid, int(time.time())
        self.write(Change(d, baseline.adopt(d.record, d, by_uuid[u], host_uuid, now_s)) for u, d in self._open(by_uuid))

    def write(self, changes: Iterable[Change]) -> list[Move]:
        pending = list(changes)
        if not pending:
            return []
        if self._outdated:
            raise _Outdated
        self.wrote = True
        outcome = self.host.apply(pending)
        self.moves += outcome.moves
        self.failures += outcome.failures
        failed = {failure.uuid for failure in outcome.failures}
        for change in pending:
            uuid = change.domain.uuid
            if uuid in failed:
                self._domains.pop(uuid, None)
            else:
                self._domains[uuid] = replace(change.domain, record=change.record)
        return list(outcome.moves)

    def current(self) -> Snapshot:
        """What was planned from, with the records as they are by now."""
        return replace(self.planned, domains=tuple(self._domains.get(d.uuid, d) for d in self.planned.domains))

    def memory_is_back(self, uuid: str, now: Snapshot) -> bool:
        """Whether a domain has its original memory again."""
        domain, here = self._domains.get(uuid), now.domain(uuid)
        if domain is None or domain.record is None or here is None:
            return False
        left = baseline.without_restored(replace(domain.record, period=None), here, memory=True, pins=False)
        return left is None or left.memory is None

    def outcome(self) -> Outcome:
        """What came of all that was tried since the last call."""
        outcome = Outcome(tuple(self.moves), tuple(self.failures))
        self.moves, self.failures, self.broken = [], [], None
        return outcome

    def _open(self, uuids: Iterable[str]) -> list[tuple[str, Domain]]:
        return [(uuid, self._domains[uuid]) for uuid in uuids if uuid in self._domains]

    def _intended(self, domain: Domain, moves: Sequence[Move]) -> Optional[Record]:
        record = domain.record
        for move in moves:
            record = baseline.intend(record, domain, move, self.planned.host.uuid, int(time.time()))
        return record


def _move_memory(work: _Work, plan: MemoryPlan, policy: MemoryPolicy, release: bool) -> None:
    """Take, see it arrive, then give what is proven to be there; statistics periods first, or last in a release."""
    if not plan.moves:
        return
    balloons = [move for move in plan.moves if isinstance(move, BalloonMove)]
    periods = [move for move in plan.moves if isinstance(move, PeriodMove)]
    if not release:
        work.make(periods)
    taken = work.make(move for move in balloons if not move.gives)
    # What can be paid whole before anything arrived does not wait for it: whoever starves has no time.
    funded = memory.fund(plan, policy, work.planned, work.planned)
    given = work.make(move for move in funded if taken and move in balloons)
    now = _wait_for(work.host, taken, policy.arrival_timeout_s, work.planned)
    rest = replace(plan, moves=tuple(move for move in plan.moves if move not in given))
    given += work.make(memory.fund(rest, policy, work.current(), now))
    if policy.arrival_timeout_s:
        now = _wait_for(work.host, given, policy.arrival_timeout_s, now)
    sent = [*taken, *given]
    if release and any(_seems_there(move, work.planned) for move in sent):
        # What was called back looked at home all the while: only a later event tells where its balloon is.
        time.sleep(EVENT_S)
        now = _wait_for(work.host, sent, policy.arrival_timeout_s, work.host.observe("none"))
    if release:
        # Without statistics no later release could shrink a domain that is not back yet.
        work.make(move for move in periods if work.memory_is_back(move.uuid, now))


def _wait_for(host: Hypervisor, moves: Sequence[Move], timeout_s: float, now: Snapshot) -> Snapshot:
    """Observe, once at least, until all balloons are where *moves* send them or time is up; return the last look."""
    end_s = time.monotonic() + timeout_s
    while _under_way(moves, now):
        time.sleep(_POLL_S)
        now = host.observe("none")
        if time.monotonic() >= end_s:
            break
    return now


def _under_way(moves: Sequence[Move], now: Snapshot) -> bool:
    known = [move for move in moves if (domain := now.domain(move.uuid)) is not None and domain.balloon is not None]
    return any(isinstance(move, BalloonMove) and not _seems_there(move, now) for move in known)


def _seems_there(move: Move, now: Snapshot) -> bool:
    """Whether a balloon has the size that *move* gives it, by libvirt's word."""
    domain = now.domain(move.uuid)
    if not isinstance(move, BalloonMove) or domain is None or domain.balloon is None:
        return False
    return abs(domain.balloon.actual_kib - move.after_kib) <= BALLOON_TOLERANCE_KIB


def _strike_restored(
    work: _Work,
    plan: Union[MemoryPlan, VcpuPlan],
    selection: Selection,
    *,
    memory: bool,
    pins: bool,
) -> None:
    """Take off the record what is back at its original; tell of what is not, in the words of *plan* if it knew."""
    now = work.host.observe()
    left: dict[str, str] = {}
    changes = []
    for domain in filter(selection.matches, now.domains):
        record = domain.record
        if record is not None:
            record = baseline.without_restored(record, domain, memory=memory, pins=pins)
            changes.append(Change(domain, record))
        why = baseline.left_over(record, domain, memory=memory, pins=pins)
        if why is not None:
            left[domain.name] = why
    before = len(work.failures)
    work.write(change for change in changes if change.record != change.domain.record)
    failed = {failure.domain: failure.reason for failure in work.failures if failure.code != "gone"}
    unstruck = {failure.domain for failure in work.failures[before:]} & failed.keys()
    told = [line for line in plan.not_restored if _name(line) in left and _name(line) not in failed]
    untold = (left.keys() | unstruck) - {_name(line) for line in told}
    lines = [f"{name}: {failed.get(name) or left[name]}" for name in sorted(untold)]
    work.not_restored = [*told, *lines, *selection.unseen(now)]


def _name(line: str) -> str:
    return line.partition(": ")[0]


def _unwatched(result: Result[MemoryPlan, memory.MemoryHistory]) -> Iterable[str]:
    """Say which guests a single pass leaves slim: without autodeflate only a next pass helps them (decision 23)."""
    taken = {m.uuid for m in result.outcome.moves if isinstance(m, BalloonMove) and not m.gives}
    domains = [d for d in result.snapshot.domains if d.uuid in taken and d.balloon and not d.balloon.autodeflate]
    if domains:
        names = ", ".join(domain.name for domain in domains[:3])
        names += f" and {len(domains) - 3} more" if len(domains) > 3 else ""
        yield (
            f"memory was taken from {names}, without autodeflate:"
            " if they need it again, only another pass gives it back"
        )


# ---------------------------------------------------------------- around a pass


class _Watch:
    """How long each phase took."""

    def __init__(self, observe_s: float = 0.0) -> None:
        self.laps_s = {"observe": observe_s, "decide": 0.0, "apply": 0.0}
        self._began_s = time.monotonic()

    def again(self) -> _Watch:
        """A watch for another pass on the same observation."""
        return _Watch(self.laps_s["observe"])

    def lap(self, phase: str) -> None:
        now_s = time.monotonic()
        self.laps_s[phase] += round(now_s - self._began_s, 3)
        self._began_s = now_s


def _beside_daemon(how: Conduct, release: bool) -> Conduct:
    """*how*, aware of an acting daemon: it alone writes on its host (decision 8). Raises PassError if that can't do."""
    refusal = acting_refusal(how.uri)
    if refusal and not how.check:
        raise PassError(refusal)
    pid = None if refusal else lock.acting_daemon(how.uri)
    if pid is not None and release:
        raise PassError(f"managed by the daemon (pid {pid}), which would undo it: stop kvmsched or set mode observe")
    return replace(how, daemon_pid=pid)


@contextlib.contextmanager
def _session(how: Conduct, *parts: str) -> Iterator[tuple[Hypervisor, _Watch]]:
    """The host for one pass: see _held()."""
    host = _host(how, parts)
    with contextlib.closing(host), _held(how):
        yield host, _Watch()


def _host(how: Conduct, parts: Sequence[str] = ALL_PARTS) -> Hypervisor:
    try:
        return Hypervisor(how.uri, read_only=how.read_only, deadline_s=how.deadline_s, parts=parts)
    except ValueError as error:
        raise PassError(str(error)) from None


@contextlib.contextmanager
def _held(how: Conduct) -> Iterator[None]:
    """Lock the host if anything may be written; whatever goes wrong with it as a whole becomes a PassError."""
    try:
        with contextlib.nullcontext() if how.read_only else lock.hold(how.uri, how.lock_timeout_s, how.holder):
            yield
    except (Unavailable, lock.LockError, ValueError) as error:
        raise PassError(str(error)) from error


def _result(plan: P, history: H, work: _Work, watch: _Watch) -> Result[P, H]:
    how, snapshot, failed, outcome = work.how, work.planned, work.broken, work.outcome()
    warnings = list(plan.warnings)
    if how.daemon_pid is not None:
        warnings.append(f"managed by the daemon (pid {how.daemon_pid}): nothing is written by anybody else")
    if outcome.failures:
        first, number = outcome.failures[0], len(outcome.failures)
        who = "1 domain did not take its" if number == 1 else f"{number} domains did not take their"
        warnings.append(f"{who} change, {first.domain}: {first.reason}")
    left = tuple(plan.not_restored if work.not_restored is None else work.not_restored)
    failed = failed or _failure(snapshot, outcome, left)
    return Result(snapshot, plan, history, outcome, watch.laps_s, left, tuple(warnings), failed)


def _failure(snapshot: Snapshot, outcome: Outcome, left: Sequence[str]) -> Optional[str]:
    """Why the pass failed as a whole, if it did (decision 9)."""
    if not snapshot.domains and snapshot.skips:
        return f"no domain could be observed, {snapshot.skips[0].domain}: {snapshot.skips[0].reason}"
    if outcome.failures and not outcome.moves:
        return f"every change failed, {outcome.failures[0].domain}: {outcome.failures[0].reason}"
    if left:
        return "not all could be restored, run it again: " + "; ".join(left)
    return None
