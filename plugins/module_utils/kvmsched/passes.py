# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One pass over a host: observe -> decide -> apply. Modules, daemon and command line all run these."""

from __future__ import annotations

import contextlib
import os
import time
import traceback
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Collection, Generic, Iterable, Iterator, Optional, Sequence, TypeVar, Union

from . import baseline, leases, lock
from .config import MemoryPolicy, Policy, Selection, VcpuPolicy
from .hypervisor import ALL_PARTS, Change, Hypervisor, Unavailable, XmlOf, acting_refusal
from .model import (
    BALLOON_TOLERANCE_KIB,
    Adoption,
    BalloonMove,
    Domain,
    Failure,
    FailureCode,
    Left,
    MemoryPlan,
    Move,
    Outcome,
    PeriodMove,
    Record,
    Skip,
    SkipCode,
    Snapshot,
    VcpuPlan,
)
from .policy import memory, vcpu
from .policy.memory.sampling import EVENT_S, LONGEST_PERIOD_S, all_reported, next_report_s, ripe
from .units import first_of, one_line

# Guests answer a little after their period is over, and last_update counts whole seconds.
_TICK_SLACK_S = 0.7
_POLL_S = 0.5
# A standing pass takes the domains' XML for what it was, unless something happened, for no longer than this.
_ANEW_S = 60.0
# Who could not be asked may answer another time.
_UNREACHED: tuple[SkipCode, ...] = ("busy", "hung")


class PassError(Exception):
    """A pass that failed as a whole (decision 9); the text is one line for people."""


def told(error: Exception) -> str:
    """Return what ended a pass, in one line: a foreseen error says it itself, any other is a mistake of ours."""
    if isinstance(error, (PassError, Unavailable, lock.LockError)) or error.__class__ is ValueError:
        return str(error)
    where = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{os.path.basename(where.filename)}:{where.lineno}"
    return (
        f"a mistake of kvmsched: {type(error).__name__} at {place}: {one_line(error, 200)}; KVMSCHED_DEBUG=1 tells more"
    )


def trace(error: Exception) -> str:
    """Return where a mistake of kvmsched happened, for who debugs it; empty for what was foreseen."""
    if isinstance(error, (PassError, Unavailable)):
        return ""
    return "".join(traceback.format_exception(type(error), error, error.__traceback__))


@dataclass(frozen=True)
class Trouble:
    """Why one resource's pass failed: ``reason`` is one line, ``away``: libvirt was, ``trace``: see trace().

    It holds no exception: that would keep all of its pass alive, and libvirt's connection with it.
    """

    reason: str
    away: bool = False
    trace: str = ""


@dataclass(frozen=True)
class Conduct:
    """How a pass is carried out. ``check``: nothing is written, and the connection is read-only.

    ``daemon_pid`` is that of another process that acts on this host (0: its pid is not known): nothing
    is written then either, and the result says so. ``sets_periods``: statistics periods are set even
    in ``check``, for without statistics nothing can be planned (decision 14). Without ``pins``, pins are only planned.
    ``standing``: it is the daemon's own.
    """

    uri: str = "qemu:///system"
    check: bool = False
    deadline_s: float = 10.0
    lock_timeout_s: float = 10.0
    holder: str = "kvmsched"
    daemon_pid: Optional[int] = None
    sets_periods: bool = False
    pins: bool = True
    standing: bool = False

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
    pass as a whole failed (decision 9), though single moves may have been made. ``not_restored`` are the
    domains that a release leaves changed: as it planned, or as they then were. Where its record asks for more than is
    allowed, or can't be read, that is a warning. It fails the release of a domain that was named, never of a host.
    """

    snapshot: Snapshot
    plan: P
    history: H
    outcome: Outcome
    timings_s: dict[str, float]
    not_restored: tuple[Left, ...] = ()
    warnings: tuple[str, ...] = ()
    failed: Optional[str] = None

    @property
    def skips(self) -> tuple[Skip, ...]:
        """Return all skips: of what could not be observed, and of what the policy skipped."""
        return (*self.snapshot.skips, *self.plan.skips)


MemoryResult = Result[MemoryPlan, memory.MemoryHistory]
VcpuResult = Result[VcpuPlan, vcpu.VcpuHistory]
AnyResult = Result[Any, Any]

# ---------------------------------------------------------------- the passes


def run_memory(
    how: Conduct,
    policy: MemoryPolicy,
    release: bool = False,
    history: Optional[memory.MemoryHistory] = None,
) -> MemoryResult:
    """Balance (or *release*) the memory of the domains of one host, once. Raises PassError."""
    how = _beside_daemon(how, release)
    policy = policy if release else _with_room(how, policy)
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
        plan, learn = memory.judge(samples, policy, release=True)
        gives = tuple(move for move in plan.moves if isinstance(move, BalloonMove) and move.gives)
        plan = replace(plan, moves=gives, not_restored=())
        watch.lap("decide")
        work = _Work(host, samples[-1], how)
        if how.writes:
            _move_memory(work, plan, policy, release=False)
            watch.lap("apply")
        result = _result(plan, learn(work.moves), work, watch)
        # Nobody comes back to them but another rescue.
        missed = [skip for skip in result.skips if skip.code in _UNREACHED] or result.outcome.failures
        if missed and not result.failed:
            names = ", ".join(one.domain for one in missed)
            result = replace(result, failed=f"not all were looked after, run it again: {names}")
        return result


def run_repay(how: Conduct, policy: MemoryPolicy) -> MemoryResult:
    """Give domains back what is owed to them, as far as the host has it, and change nothing else. Raises PassError."""
    # To look is allowed beside a daemon, too: it says what could go back.
    how = _beside_daemon(how, release=not how.check)
    policy = _with_room(how, policy)
    with _session(how, "memory") as (host, watch):
        samples = _sample_memory(host)
        watch.lap("observe")
        plan, learnt = memory.repay(samples, policy)
        watch.lap("decide")
        work = _Work(host, samples[-1], how)
        if how.writes:
            with work.accounted():
                _move_memory(work, plan, policy, release=False)
        watch.lap("apply")
        return _result(plan, learnt, work, watch)


def run_info(how: Conduct, interval_s: float) -> tuple[list[Snapshot], dict[str, float]]:
    """Return two snapshots *interval_s* apart, read-only, and the seconds by phase. Raises PassError."""
    with _session(replace(how, check=True), *ALL_PARTS) as (host, watch):
        samples = _sample_load(host, interval_s)
        watch.lap("observe")
        return samples, watch.laps_s


def run_snapshots(how: Conduct, interval_s: float) -> list[Snapshot]:
    """Return two snapshots that both passes can plan from: *interval_s* apart at least, read-only. Raises PassError."""
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
    plan, learn = memory.judge(samples, policy, history, release=release)
    watch.lap("decide")
    if work.how.writes:
        with work.accounted():
            work.adopt(plan.adoptions)
            _move_memory(work, plan, policy, release, history)
            if release:
                _strike_restored(work, plan, policy.selection, memory=True, pins=False)
    elif work.how.sets_periods:
        work.make(move for move in plan.moves if isinstance(move, PeriodMove))
    watch.lap("apply")
    return _result(plan, learn(work.moves), work, watch, policy.selection)


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
    if work.how.writes and (work.how.pins or release):
        with work.accounted():
            work.adopt(plan.adoptions)
            work.make(plan.moves)
            if release:
                _strike_restored(work, plan, policy.selection, memory=False, pins=True)
    watch.lap("apply")
    return _result(plan, learnt, work, watch, policy.selection)


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
    """What came of a tick. A resource that was not due, or whose pass failed, has no result."""

    snapshot: Snapshot
    memory: Optional[MemoryResult] = None
    vcpu: Optional[VcpuResult] = None
    failed: dict[str, Trouble] = field(default_factory=dict)


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
        changed: Optional[Collection[str]] = None,
    ) -> Tick:
        """Observe once, and let each resource that is given a turn have its pass. PassError if nothing can be seen.

        *changed* are the UUIDs of the domains that something happened to since the last tick; None: not known.
        """
        with _acquired(self.how):
            if changed is not None and time.monotonic() < self._anew_s:
                with contextlib.suppress(_Outdated):
                    return self._tick("new", memory_turn, vcpu_turn, changed)
            return self._tick("all", memory_turn, vcpu_turn)

    def _tick(
        self,
        xml_of: XmlOf,
        memory_turn: Optional[Turn[MemoryPolicy, memory.MemoryHistory]],
        vcpu_turn: Optional[Turn[VcpuPolicy, vcpu.VcpuHistory]],
        anew: Collection[str] = (),
    ) -> Tick:
        watch = _Watch()
        now = self._host.observe(xml_of, anew)
        watch.lap("observe")
        # One for both: what memory wrote into a domain's record, the pins' part must find there.
        work = _Work(self._host, now, self.how, outdated=xml_of != "all")
        results: dict[str, Any] = {}
        failed: dict[str, Trouble] = {}
        if memory_turn is not None:
            at_once = replace(_with_room(self.how, memory_turn.policy), arrival_timeout_s=0.0)
            with _noted(failed, "memory"):
                samples = memory_turn.samples(now)
                results["memory"] = _memory_pass(work, samples, at_once, memory_turn.history, False, watch)
        if vcpu_turn is not None:
            calm = vcpu.budgeted(vcpu_turn.policy, now)
            with _noted(failed, "vcpu"):
                samples, watch = vcpu_turn.samples(now), watch.again()
                results["vcpu"] = _vcpu_pass(work, samples, calm, vcpu_turn.history, False, watch)
        if xml_of == "all":
            self._anew_s = time.monotonic() + _ANEW_S
        if work.wrote or now.skips or any(domain.busy for domain in now.domains):
            self._anew_s = 0.0
        return Tick(now, **results, failed=failed)


@contextlib.contextmanager
def _noted(failed: dict[str, Trouble], resource: str) -> Iterator[None]:
    """Note why the pass of one resource failed, whatever it was: the other one has its pass all the same."""
    try:
        yield
    except _Outdated:
        raise
    except Exception as error:
        failed[resource] = Trouble(told(error), isinstance(error, Unavailable), trace(error))


# ---------------------------------------------------------------- observe


def _sample_load(host: Hypervisor, interval_s: float) -> list[Snapshot]:
    first = host.observe("none")
    time.sleep(interval_s)
    return [first, host.observe()]


def _sample_memory(host: Hypervisor, least_s: float = 0.0) -> list[Snapshot]:
    """Return two samples with a report of every domain's driver between them, and no balloon moving if possible.

    They are at least *least_s* apart.
    """
    first = host.observe()
    end_s = time.monotonic() + 2 * LONGEST_PERIOD_S
    while True:
        time.sleep(max(_until_tick_s(first), first.monotonic_s + least_s - time.monotonic()))
        # A run that began meanwhile is read whole: without its XML it would seem to have no record, and get a new one.
        last = host.observe("new")
        if time.monotonic() >= end_s or ripe(first, last):
            return [first, last]
        if all_reported(first, last):
            first = last


def _until_tick_s(snapshot: Snapshot) -> float:
    wait_s = next_report_s(snapshot) + _TICK_SLACK_S - time.time()
    return min(max(wait_s, _POLL_S), LONGEST_PERIOD_S)  # the wall clock may have been set back


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
        self.not_restored: Optional[list[Left]] = None
        self.broken: Optional[str] = None
        self._domains = {domain.uuid: domain for domain in planned.domains}

    @contextlib.contextmanager
    def accounted(self) -> Iterator[None]:
        """Have the pass fail where libvirt goes away while changes are made, and still tell what it changed."""
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
        """Return what was planned from, with the records as they are now."""
        return replace(self.planned, domains=tuple(self._domains.get(d.uuid, d) for d in self.planned.domains))

    def memory_is_back(self, uuid: str, now: Snapshot) -> bool:
        """Return whether a domain has its original memory again."""
        domain, here = self._domains.get(uuid), now.domain(uuid)
        if domain is None or domain.record is None or here is None:
            return False
        left = baseline.without_restored(replace(domain.record, period=None), here, memory=True, pins=False)
        return left is None or left.memory is None

    def outcome(self) -> Outcome:
        """Return what came of all that was tried since the last call."""
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


def _move_memory(
    work: _Work,
    plan: MemoryPlan,
    policy: MemoryPolicy,
    release: bool,
    history: Optional[memory.MemoryHistory] = None,
) -> None:
    """Take, see it arrive, then give what is proven to be there; statistics periods first, or last in a release."""
    if not plan.moves:
        return
    balloons = [move for move in plan.moves if isinstance(move, BalloonMove)]
    periods = [move for move in plan.moves if isinstance(move, PeriodMove)]
    if not release:
        work.make(periods)
    taken = work.make(move for move in balloons if not move.gives)
    # What can be paid whole before anything arrived does not wait for it: whoever starves has no time.
    funded = memory.fund(plan, policy, work.planned, work.planned, history)
    given = work.make(move for move in funded if taken and move in balloons)
    now = _wait_for(work.host, taken, policy.arrival_timeout_s, work.planned)
    rest = replace(plan, moves=tuple(move for move in plan.moves if move not in given))
    given += work.make(memory.fund(rest, policy, work.current(), now, history))
    if policy.arrival_timeout_s:
        now = _wait_for(work.host, given, policy.arrival_timeout_s, now)
    sent = [*taken, *given]
    if release and any(_seems_there(move, work.planned) for move in sent):
        # What was called back looked at home all the while: only a later event tells where its balloon is.
        time.sleep(EVENT_S)
        now = _wait_for(work.host, sent, policy.arrival_timeout_s, work.host.observe("none"))
    if release:
        # Without statistics no later release could shrink a domain that is not back yet, if any could.
        beyond = {left.uuid for left in plan.not_restored}
        work.make(move for move in periods if move.uuid in beyond or work.memory_is_back(move.uuid, now))


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
    """Return whether a balloon has the size that *move* gives it, by libvirt's word."""
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
    selection = selection.among(now)
    left: dict[str, Left] = {}
    changes = []
    for domain in filter(selection.matches, now.domains):
        record = domain.record
        if record is not None:
            record = baseline.without_restored(record, domain, memory=memory, pins=pins)
            changes.append(Change(domain, record))
        owed = baseline.left_of(record, domain, memory=memory, pins=pins)
        if owed is not None:
            left[domain.uuid] = owed
    before = len(work.failures)
    work.write(change for change in changes if change.record != change.domain.record)
    failed = {f.uuid: Left(f.domain, f.uuid, f.reason) for f in work.failures if f.code != "gone"}
    unstruck = {failure.uuid for failure in work.failures[before:]} & failed.keys()
    told = [one for one in plan.not_restored if one.uuid in left and one.uuid not in failed]
    untold = (left.keys() | unstruck) - {one.uuid for one in told}
    others = [failed.get(uuid) or left[uuid] for uuid in untold]
    work.not_restored = [*told, *sorted(others, key=str), *selection.unseen(now)]


def _unwatched(result: Result[MemoryPlan, memory.MemoryHistory]) -> Iterable[str]:
    """Say which guests a single pass leaves slim: without autodeflate only a next pass helps them (decision 23)."""
    taken = {m.uuid for m in result.outcome.moves if isinstance(m, BalloonMove) and not m.gives}
    domains = [d for d in result.snapshot.domains if d.uuid in taken and d.balloon and not d.balloon.autodeflate]
    if domains:
        names = first_of([domain.name for domain in domains])
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
        """Return a watch for another pass on the same observation."""
        return _Watch(self.laps_s["observe"])

    def lap(self, phase: str) -> None:
        now_s = time.monotonic()
        self.laps_s[phase] += round(now_s - self._began_s, 3)
        self._began_s = now_s


def releases(how: Conduct, policy: Policy, selection: Selection) -> list[tuple[str, Callable[[], AnyResult]]]:
    """Return the passes that give the domains of *selection* back what they had, in their order.

    The policy's own selection does not count: an earlier policy may have changed others.
    """
    vcpu, memory = replace(policy.vcpu, selection=selection), replace(policy.memory, selection=selection)
    return [
        ("vcpu", lambda: run_vcpu(how, vcpu, release=True)),
        ("memory", lambda: run_memory(how, memory, release=True)),
    ]


def _beside_daemon(how: Conduct, release: bool) -> Conduct:
    """Return *how*, aware of an acting daemon: it alone writes on its host (decision 8). Raises PassError."""
    refusal = acting_refusal(how.uri)
    if refusal and not how.check:
        raise PassError(refusal)
    pid = None if refusal else lock.acting_daemon(how.uri)
    if pid is not None and release:
        raise PassError(
            f"managed by the daemon (pid {pid}), which would undo it: stop kvmsched, pause it or set mode observe"
        )
    return replace(how, daemon_pid=pid)


def _with_room(how: Conduct, policy: MemoryPolicy) -> MemoryPolicy:
    """Return *policy* with what somebody asked to be kept on this host for a guest that is to start."""
    if policy.room is not None or acting_refusal(how.uri):
        return policy
    return replace(policy, room=leases.room(how.uri))


def _pauses(how: Conduct) -> Iterable[str]:
    """Say that the daemon pauses, where this pass is somebody else's: it is not stopped by that."""
    lease = None if how.standing or acting_refusal(how.uri) else leases.read(how.uri, "pause")
    if lease is not None and how.writes:
        until = time.strftime("%H:%M", time.localtime(leases.ends_at(lease)))
        yield f"kvmsched is paused here until {until}: its daemon changes nothing, this pass did"


@contextlib.contextmanager
def _session(how: Conduct, *parts: str) -> Iterator[tuple[Hypervisor, _Watch]]:
    """Open the host for one pass: see _acquired()."""
    host = _host(how, parts)
    with contextlib.closing(host), _acquired(how):
        yield host, _Watch()


def _host(how: Conduct, parts: Sequence[str] = ALL_PARTS) -> Hypervisor:
    try:
        return Hypervisor(how.uri, read_only=how.read_only, deadline_s=how.deadline_s, parts=parts)
    except ValueError as error:
        raise PassError(str(error)) from None


@contextlib.contextmanager
def _acquired(how: Conduct) -> Iterator[None]:
    """Lock the host if anything may be written; whatever goes wrong with it as a whole becomes a PassError."""
    try:
        with contextlib.nullcontext() if how.read_only else lock.acquire(how.uri, how.lock_timeout_s, how.holder):
            yield
    except (Unavailable, lock.LockError, ValueError) as error:
        raise PassError(str(error)) from error


def _result(plan: P, history: H, work: _Work, watch: _Watch, selection: Optional[Selection] = None) -> Result[P, H]:
    how: Conduct = work.how
    snapshot, broken, outcome = work.planned, work.broken, work.outcome()
    warnings = [*plan.warnings, *_pauses(how)]
    if how.daemon_pid is not None:
        alone = "it alone writes here, this pass changed nothing; kvmsched pause lets others"
        warnings.append(f"managed by the daemon (pid {how.daemon_pid}): {alone}")
    if outcome.failures:
        first, number = outcome.failures[0], len(outcome.failures)
        count = "1 change failed" if number == 1 else f"{number} changes failed"
        warnings.append(f"{count}, {first.domain}: {first.reason}")
    left = tuple(plan.not_restored if work.not_restored is None else work.not_restored)
    # Where libvirt went away meanwhile, nobody knows what is left.
    left = () if broken else left
    named = (selection or Selection()).among(snapshot).names
    lenient = [one for one in left if one.limited and not named(Domain(one.uuid, one.domain, 0))]
    warnings += map(str, lenient)
    failed = broken or _failure(snapshot, outcome, [one for one in left if one not in lenient])
    return Result(snapshot, plan, history, outcome, watch.laps_s, left, tuple(warnings), failed)


# Of a domain that starts, ends or migrates in this very moment: the host is well, and so is the pass.
_PASSING: tuple[FailureCode, ...] = ("gone", "busy")
# Whose own XML can't be read is skipped, and no failure of the pass, too.
_ITS_OWN: tuple[FailureCode, ...] = ("unreadable", *_PASSING)


def _failure(snapshot: Snapshot, outcome: Outcome, left: Sequence[Left]) -> Optional[str]:
    """Return why the pass failed as a whole, if it did (decision 9)."""
    lost = [skip for skip in snapshot.skips if skip.code not in _ITS_OWN]
    if not snapshot.domains and lost:
        return f"no domain could be observed, {lost[0].domain}: {lost[0].reason}"
    refused = [failure for failure in outcome.failures if failure.code not in _PASSING]
    if refused and not outcome.moves:
        return f"every change failed, {refused[0].domain}: {refused[0].reason}"
    if left:
        return "not all could be restored, run it again: " + "; ".join(map(str, left))
    return None
