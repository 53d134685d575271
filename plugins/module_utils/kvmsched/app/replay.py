# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``kvmsched replay``: what policies would have done with a recorded host, what was done, and what nobody did.

One process plays one of these. See twin for what is foretold, docs/replay.md for what that is worth.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import time
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from multiprocessing import connection
from typing import Any, Callable, Iterable, Iterator, Mapping, Optional, Sequence, Union

from .. import config
from ..model import MemoryPlan, Move, Outcome, RoomRequest, Snapshot, VcpuPlan, to_json
from ..passes import Result as PassResult
from ..passes import told
from ..policy import memory as memory_policy
from ..policy import vcpu as vcpu_policy
from ..policy.memory import MemoryHistory
from ..policy.vcpu import VcpuHistory
from ..twin import cpu
from ..twin.errors import Errors, Watch
from ..twin.host import Costs, Seen, Twin
from ..twin.score import Figures, GuestStory, PastMove, Score
from ..units import one_line
from .bundle import Bundle, Decided
from .live_status import status_of
from .record import SUFFIX, Look, RecordError, Span, apart, read, span
from .status import KEPT_MOVES, DomainMove, Status
from .traces import Trace, is_trace

RECORDED, UNTOUCHED = "as recorded", "untouched"
# A pass is due a little before its period is over: looks come by a clock of their own.
_EARLY = 0.9
_APART_S = 1.0
COLUMNS = 480


@dataclass(frozen=True)
class Source:
    """What is replayed: records, or one trace on a host of so many pCPUs and so much memory."""

    paths: tuple[str, ...]
    pcpus: int = 0
    memory_kib: Optional[int] = None
    step_s: float = 0.0

    @property
    def trace(self) -> bool:
        return any(is_trace(path) for path in self.paths)

    def open(self, lost: Callable[[str], None]) -> tuple[Span, Iterator[Look]]:
        """Its span, and its looks; *lost* is told of what can't be read. RecordError, OSError."""
        if not self.trace:
            return span(self.paths), _thinned(apart(read(self.paths, lost)), self.step_s)
        if len(self.paths) != 1:
            raise RecordError(f"got {len(self.paths)} traces, expected one")
        if not self.pcpus:
            raise RecordError(
                f"{self.paths[0]}: got no record (*{SUFFIX}), and as a trace it has no host:"
                " --pcpus says how many pCPUs that is to have"
            )
        trace = Trace(self.paths[0], self.pcpus, self.memory_kib)
        return trace.span(), _thinned(trace.looks(), self.step_s)


def _thinned(looks: Iterator[Look], step_s: float) -> Iterator[Look]:
    """Looks that are at least *step_s* apart, and the last one; each with what happened at those passed over."""
    last_s: Optional[float] = None
    newest: Optional[Look] = None
    passed: list[Look] = []
    for look in looks:
        now_s = look.snapshot.monotonic_s
        if last_s is None or look.begins or now_s < last_s or now_s - last_s >= step_s - 0.5:
            last_s = now_s
            yield replace(look, passed=tuple(passed))
            passed, newest = [], None
        else:
            passed += [look] if _happened(look) else []
            newest = look
    if newest is not None:
        yield replace(newest, passed=tuple(look for look in passed if look is not newest))


def _happened(look: Look) -> bool:
    """Whether something was changed, or told, at this look."""
    return bool(look.rebooted) or any(decided.changes for decided in look.decided.values())


@dataclass(frozen=True)
class Job:
    """One column of the table: ``document`` is the policy of a candidate, None of what was recorded or untouched."""

    name: str
    document: Optional[Mapping[str, Any]] = None


@dataclass(frozen=True)
class Verified:
    """How many passes decided the same again, of those that the record holds decisions of."""

    passes: int = 0
    same: int = 0
    moves: int = 0
    first: str = ""


@dataclass(frozen=True)
class Result:
    """What one job came to. ``skips`` count passes by the code for which guests were skipped."""

    name: str
    figures: Figures
    errors: Errors = Errors()
    verified: Verified = Verified()
    acted: bool = False
    guests: tuple[GuestStory, ...] = ()
    moves: tuple[PastMove, ...] = ()
    busy_pct: Mapping[int, Sequence[Optional[float]]] = field(default_factory=dict)
    skips: Mapping[str, int] = field(default_factory=dict)
    host: str = ""
    begin_s: float = 0.0
    end_s: float = 0.0
    lost: tuple[str, ...] = ()


# ---------------------------------------------------------------- passes, again


class Passes:
    """The two passes of a policy with what they remember, as the daemon makes them."""

    _learn: memory_policy.Learn

    def __init__(self, policy: config.Policy) -> None:
        self.policy = policy
        self.memory: tuple[MemoryHistory, Optional[Snapshot]] = (MemoryHistory(), None)
        self.vcpu: tuple[VcpuHistory, Optional[Snapshot]] = (VcpuHistory(), None)

    def begin(self, frame: Bundle) -> None:
        """Go on with what was handed to the passes of a frame."""
        by_time = {snapshot.monotonic_s: snapshot for snapshot in frame.snapshots}
        befores = {name: by_time.get(when_s) for name, when_s in (frame.last_s or {}).items()}
        self.memory = frame.history.memory or MemoryHistory(), befores.get("memory")
        self.vcpu = frame.history.vcpu or VcpuHistory(), befores.get("vcpu")

    def heard(self, look: Look) -> None:
        """Note what libvirt told before a look: who was reset."""
        history, before = self.memory
        for one in (*look.passed, look):
            for uuid, when_s in one.rebooted.items():
                history = history.rebooted(uuid, when_s)
        self.memory = history, before

    def forget(self, resource: str) -> None:
        """As the daemon does after a pass that failed."""
        if resource == "memory":
            self.memory = MemoryHistory(), None
        else:
            self.vcpu = VcpuHistory(), None

    def decide_memory(self, now: Snapshot, room: Optional[RoomRequest]) -> tuple[MemoryPlan, MemoryHistory]:
        """The plan, and the history that it was made with. All of it counts as made until made_memory() is told."""
        history, before = self.memory
        policy = replace(self.policy.memory, room=room)
        plan, self._learn = memory_policy.judge([now] if before is None else [before, now], policy, history)
        self.memory = self._learn(plan.moves), now
        return plan, history

    def made_memory(self, moves: Iterable[Move]) -> None:
        """Go on from those *moves* that were made of the last plan."""
        self.memory = self._learn(moves), self.memory[1]

    def decide_vcpu(self, now: Snapshot) -> VcpuPlan:
        history, before = self.vcpu
        calm = vcpu_policy.budgeted(self.policy.vcpu, now)
        plan, learnt = vcpu_policy.decide([now] if before is None else [before, now], calm, history)
        self.vcpu = learnt, now
        return plan


# ---------------------------------------------------------------- the jobs

Progress = Callable[[float], None]


def play(source: Source, job: Job, progress: Progress = lambda _part: None, picture: bool = False) -> Result:
    """Play one job over the whole record. RecordError, ConfigError, OSError."""
    lost: dict[str, None] = {}
    covered, looks = source.open(lost.setdefault)
    player: Optional[_Player] = None
    for number, look in enumerate(looks):
        if player is None:
            judge = config.load_daemon(look.frame.policy)
            columns = _columns(source, covered) if picture else None
            score = Score(judge.memory, covered.begin_s, covered.end_s, columns)
            player = _player(job, score, source)
        with _in_one_line(look):
            player.look(look)
        if number % 20 == 0:
            progress(_part(look.snapshot.wall_s, covered))
    if player is None:
        raise RecordError("got no look, expected at least one")
    progress(1.0)
    return replace(player.result(job.name), begin_s=covered.begin_s, end_s=covered.end_s, lost=tuple(lost))


@contextlib.contextmanager
def _in_one_line(look: Look) -> Iterator[None]:
    """RecordError for a policy that names a pCPU which that host does not have, or a number that nothing has."""
    try:
        yield
    except config.ConfigError:
        raise
    except (ValueError, OverflowError) as error:
        raise RecordError(f"at {look.snapshot.wall_s:.0f}: {one_line(error)}") from None


def _columns(source: Source, covered: Span) -> int:
    """So many that each has a look, at most COLUMNS."""
    looks = covered.looks - 1
    if source.step_s:
        looks = min(looks, int((covered.end_s - covered.begin_s) / source.step_s))
    return max(1, min(COLUMNS, looks))


def _part(wall_s: float, covered: Span) -> float:
    whole_s = covered.end_s - covered.begin_s
    return min(1.0, max(0.0, (wall_s - covered.begin_s) / whole_s)) if whole_s > 0 else 1.0


def _player(job: Job, score: Score, source: Source) -> _Player:
    if job.document is None and job.name == RECORDED:
        return _Recorded(score, exact=source.step_s <= 0)
    twin = Twin(released=job.document is None, foretold=source.trace)
    return _Twinned(score, twin, None if job.document is None else config.load_daemon(job.document))


class _Player:
    """What all jobs have in common: the score, and what the whole record says of itself."""

    def __init__(self, score: Score) -> None:
        self.score = score
        self.acted = False
        self.host = ""
        self.skips: Counter[str] = Counter()

    def look(self, look: Look) -> None:
        self.acted = self.acted or look.frame.acted
        self.host = look.snapshot.host.name
        self.play(look)

    def play(self, look: Look) -> None:
        raise NotImplementedError

    def result(self, name: str) -> Result:
        score = self.score
        return Result(
            name,
            score.figures(),
            acted=self.acted,
            guests=tuple(sorted(score.guests.values(), key=lambda story: story.name)),
            moves=tuple(score.moves),
            busy_pct=score.busy_pct,
            skips=dict(self.skips),
            host=self.host,
        )

    def count(self, plan: Any, elapsed_s: float) -> None:
        self.skips.update({skip.code for skip in plan.skips})
        if isinstance(plan, MemoryPlan):
            self.score.unmet(plan.unmet, elapsed_s)


class _Recorded(_Player):
    """What was recorded, as it was; and whether the same decisions come out again, where *exact*."""

    def __init__(self, score: Score, exact: bool) -> None:
        super().__init__(score)
        self._exact = exact
        self._before: Optional[Snapshot] = None
        self._watch = Watch()
        self._passes: Optional[Passes] = None
        self._verified = Verified()

    def play(self, look: Look) -> None:
        now, before = look.snapshot, self._before
        self._before = now
        window = None
        if before is not None and now.monotonic_s > before.monotonic_s:
            window = cpu.window(before, now)
        self.score.add(Seen(now, window, window.seen if window else None, Costs()))
        self._watch.look(now)
        for one in (*look.passed, look):
            for decided in one.decided.values():
                self.score.move(decided.changes, one.snapshot)
        if look.begins:
            self._passes = Passes(config.load_daemon(look.frame.policy))
            self._passes.begin(look.frame)
        if self._exact and self._passes is not None:
            self._passes.heard(look)
            for resource, decided in look.decided.items():
                self._verify(self._passes, resource, decided, now, look.frame.room, window.seconds if window else 0.0)

    def _verify(
        self,
        passes: Passes,
        resource: str,
        decided: Decided,
        now: Snapshot,
        room: Optional[RoomRequest],
        elapsed_s: float,
    ) -> None:
        if decided.forgot:
            passes.forget(resource)
        if decided.failed and not decided.moves:
            return
        plan: Any
        if resource == "memory":
            plan, _history = passes.decide_memory(now, room)
            passes.made_memory(decided.changes)
        else:
            plan = passes.decide_vcpu(now)
        self.count(plan, elapsed_s)
        again, was = ([replace(move, reason="") for move in moves] for moves in (plan.moves, decided.moves))
        known = self._verified
        first = known.first
        if again != was and not first:
            first = f"{resource} at {now.wall_s:.0f}: {_list(was)} was recorded, {_list(again)} comes out"
        self._verified = Verified(known.passes + 1, known.same + (again == was), known.moves + len(was), first)

    def result(self, name: str) -> Result:
        return replace(super().result(name), errors=self._watch.errors(), verified=self._verified)


def _list(moves: Sequence[Move]) -> str:
    return "; ".join(map(str, moves[:5])) or "nothing"


class _Twinned(_Player):
    """A twin of the host, with the passes of a policy, or without any."""

    def __init__(self, score: Score, twin: Twin, policy: Optional[config.Policy]) -> None:
        super().__init__(score)
        self._twin, self._policy = twin, policy
        self._passes: Optional[Passes] = None

    def play(self, look: Look) -> None:
        seen = self._twin.look(look.snapshot)
        self.score.add(seen)
        if self._policy is None:
            return
        if self._passes is None:
            self._passes = Passes(self._policy)
            self._passes.begin(look.frame)
        self._passes.heard(look)
        elapsed_s = seen.window.seconds if seen.window else 0.0
        daemon, now = self._policy.daemon, seen.snapshot
        if self._due(now, self._passes.memory[1], daemon.memory_period_s, "memory" in look.decided):
            plan, history = self._passes.decide_memory(now, look.frame.room)
            self.count(plan, elapsed_s)
            policy = replace(self._policy.memory, room=look.frame.room)
            moves = self._twin.carry_out_memory(plan, policy, now, history)
            self._passes.made_memory(moves)
            self.score.move(moves, now)
        period_s = max(daemon.vcpu_period_s, self._policy.vcpu.interval_s)
        if self._due(now, self._passes.vcpu[1], period_s, "vcpu" in look.decided):
            pins = self._passes.decide_vcpu(now)
            self.count(pins, elapsed_s)
            if daemon.mode != "grow-only":
                self.score.move(self._twin.carry_out_pins(pins, now), now)

    @staticmethod
    def _due(now: Snapshot, last: Optional[Snapshot], period_s: float, event: bool) -> bool:
        if last is None:
            return True
        elapsed_s = now.monotonic_s - last.monotonic_s
        return elapsed_s >= _EARLY * period_s or (event and elapsed_s >= _APART_S)


# ---------------------------------------------------------------- one instant


def instant(paths: Sequence[str], until_s: float) -> Optional[Status]:
    """The host as a daemon saw it at the last look until *until_s*, and decided; None if the record begins later.

    RecordError, ConfigError, OSError.
    """
    frames, number = 0, 0
    for index, look in enumerate(apart(read(paths))):
        if look.snapshot.wall_s > until_s:
            break
        # What is remembered is known from a frame on.
        frames, number = (index if look.begins else frames), index + 1
    if not number:
        return None
    seen = _Instant()
    for index, look in enumerate(apart(read(paths))):
        if index >= number:
            break
        with _in_one_line(look):
            seen.move(look)
            if index >= frames:
                seen.decide(look)
    return seen.status()


def last_plans(
    read_again: Callable[[], Iterable[Look]], document: Optional[Mapping[str, Any]]
) -> dict[str, PassResult[Any, Any]]:
    """What both passes come to at the last look of a record, by another policy than its own if *document* is given.

    What is remembered until then is what the record's own policy learnt. It is read twice. RecordError, ConfigError,
    OSError.
    """
    seen = _Instant()
    frames = [index for index, look in enumerate(apart(read_again())) if look.begins]
    last: Optional[Look] = None
    for index, look in enumerate(apart(read_again())):
        if last is not None:
            with _in_one_line(last):
                seen.decide(last)
        last = look if index >= frames[-1] else None
    if last is None:
        raise RecordError("got no look, expected at least one")
    with _in_one_line(last):
        seen.decide(last, None if document is None else config.load_daemon(document))
    return seen.results()


def instant_s(at: time.struct_time, covered: Span) -> float:
    """The end of the second *at*; without a date (1900) that is the last such time that the record has."""
    if at.tm_year > 1900:
        return time.mktime(at) + _SECOND
    end = time.localtime(covered.end_s)
    # Days are not all of one length.
    today_s, yesterday_s = (
        time.mktime((end.tm_year, end.tm_mon, end.tm_mday - ago, at.tm_hour, at.tm_min, at.tm_sec, 0, 0, -1)) + _SECOND
        for ago in (0, 1)
    )
    return today_s if today_s <= covered.end_s + _SECOND else yesterday_s


def is_over(covered: Span, until_s: float) -> bool:
    """Whether a record ends so long before *until_s* that it tells nothing of that time: a few looks."""
    between_s = (covered.end_s - covered.begin_s) / max(1, covered.looks - 1)
    return until_s - covered.end_s > _FEW * between_s + _SECOND


_FEW = 3
# Who asks for a second means all of it.
_SECOND = 1.0


class _Instant:
    """What is known at a look: the samples and plans of the last passes, and the moves until then."""

    def __init__(self) -> None:
        self._moves: dict[str, deque[DomainMove]] = {}
        self._passes: Optional[Passes] = None
        self._memory: Any = None
        self._vcpu: Any = None
        self._samples: list[Snapshot] = []

    def move(self, look: Look) -> None:
        for resource, decided in look.decided.items():
            for move in decided.changes:
                moves = self._moves.setdefault(move.uuid, deque(maxlen=KEPT_MOVES))
                moves.append(DomainMove(look.snapshot.wall_s, resource, str(move), move.reason))

    def decide(self, look: Look, policy: Optional[config.Policy] = None) -> None:
        """Decide as was decided then, or by another *policy*."""
        now = look.snapshot
        if look.begins or self._passes is None:
            self._passes = Passes(config.load_daemon(look.frame.policy))
            self._passes.begin(look.frame)
        self._passes.policy = policy or self._passes.policy
        self._passes.heard(look)
        # Who only looked decided nothing: each look is a pass then.
        turns = look.decided or {"memory": Decided(), "vcpu": Decided()}
        for resource, decided in turns.items():
            if decided.forgot:
                self._passes.forget(resource)
        if "memory" in turns:
            plan, history = self._passes.decide_memory(now, look.frame.room)
            self._passes.made_memory(turns["memory"].changes)
            self._memory = PassResult(now, plan, history, Outcome(), {}, warnings=plan.warnings)
        if "vcpu" in turns:
            pins = self._passes.decide_vcpu(now)
            self._vcpu = PassResult(now, pins, self._passes.vcpu[0], Outcome(), {}, warnings=pins.warnings)
        self._samples = [*self._samples[-1:], now]

    def results(self) -> dict[str, PassResult[Any, Any]]:
        found = {"memory": self._memory, "vcpu": self._vcpu}
        return {name: result for name, result in found.items() if result is not None}

    def status(self) -> Optional[Status]:
        if self._passes is None or self._memory is None or self._vcpu is None:
            return None
        uri = self._samples[-1].host.uri
        found = status_of(uri, self._samples, self._passes.policy, self._memory, self._vcpu, self._moves)
        return replace(found, mode="record", effective_mode="record")


# ---------------------------------------------------------------- all of them


def play_all(
    source: Source, jobs: Sequence[Job], progress: Progress = lambda _part: None, picture: bool = False
) -> list[Result]:
    """Play all jobs, each in a process of its own, as many at a time as there are CPUs. ReplayError, in one line."""
    context = multiprocessing.get_context("fork")
    # No lock: who is killed while it holds one would have this process wait for ever.
    parts = context.Array("d", len(jobs), lock=False)
    waiting, at_once = deque(enumerate(jobs)), len(os.sched_getaffinity(0))
    running: dict[Any, tuple[int, Any]] = {}
    answers: dict[int, Result] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                number, job = waiting.popleft()
                answer, says = context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(says, parts, number, source, job, picture), daemon=True)
                process.start()
                # It has the only end that is written to: if it dies, the other end tells.
                says.close()
                running[answer] = number, process
            for told_ in connection.wait(list(running), 0.5):
                number, process = running.pop(told_)
                answers[number] = _answer(told_)
                process.join()
            progress(sum(parts[:]) / len(jobs))
    finally:
        for _number, process in running.values():
            process.terminate()
            process.join()
    return [answers[number] for number in range(len(jobs))]


def _answer(answer: Any) -> Result:
    try:
        told_ = answer.recv()
    except EOFError:
        raise ReplayError("the process of a replay was killed, for lack of memory most likely") from None
    if isinstance(told_, Result):
        return told_
    raise ReplayError(str(told_))


class ReplayError(Exception):
    """A replay that could not be; the text is one line."""


def _work(says: Any, parts: Any, number: int, source: Source, job: Job, picture: bool) -> None:
    """Say the result, or in one line why there is none: an exception of ours may not cross processes."""
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        says.send(_result_of(source, job, functools.partial(parts.__setitem__, number), picture))


def _result_of(source: Source, job: Job, progress: Progress, picture: bool) -> Union[Result, str]:
    try:
        return play(source, job, progress, picture)
    except config.ConfigError as error:
        return f"{job.name}: {error.mistakes[0]}"
    except OSError as error:
        return f"{error.filename or ', '.join(source.paths)}: {error.strerror}"
    except RecordError as error:
        return str(error)
    except Exception as error:
        return f"{job.name}: {told(error)}"


def first_frame(paths: Sequence[str]) -> Optional[Bundle]:
    """The first frame of these records. ReplayError, in one line."""
    try:
        look = next(iter(read(paths)), None)
    except RecordError as error:
        raise ReplayError(str(error)) from None
    except OSError as error:
        raise ReplayError(f"{error.filename}: {error.strerror}") from None
    return look.frame if look is not None else None


def values(result: Result) -> dict[str, Any]:
    """A result in figures, as JSON has it."""
    return {
        "figures": to_json(result.figures),
        "model_errors": to_json(result.errors),
        "decided_anew": to_json(result.verified),
        "acted": result.acted,
        "skips": dict(result.skips),
        "not_read": list(result.lost),
    }


# ---------------------------------------------------------------- the table

_ROWS: tuple[tuple[str, Callable[[Figures], str]], ...] = (
    ("CPU demand unserved", lambda f: f"{f.unserved_pct:.2f} %"),
    ("  in the worst minute", lambda f: f"{f.worst_minute_pct:.1f} %"),
    ("CPU waiting / running", lambda f: f"{f.waiting_pct:.1f} %"),
    ("pins moved", lambda f: f"{f.pin_moves}"),
    ("guests starved", lambda f: duration(f.starved_s)),
    ("guests killed, likely", lambda f: f"{f.killed}"),
    ("read again", lambda f: f"{f.read_gib:.2f} GiB"),
    ("memory returned", lambda f: f"{f.returned_gib:.2f} GiB"),
    ("memory moved", lambda f: f"{f.memory_moves}"),
)


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min"


def cells(results: Sequence[Result]) -> list[list[str]]:
    """The table: a row of names, then one for each figure."""
    return [["", *(result.name for result in results)]] + [
        [title, *(show(result.figures) for result in results)] for title, show in _ROWS
    ]


def table(results: Sequence[Result]) -> list[str]:
    """The table as lines of text."""
    rows = cells(results)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]


def notes(results: Sequence[Result]) -> list[str]:
    """What must be known to believe the table: caveats, the model's own error, whether the decisions come out again."""
    first = results[0]
    lines = []
    if first.acted:
        lines.append(
            "A daemon acted on this host meanwhile: what it would have been untouched is estimated, and "
            f"{first.figures.unseen_pct:.1f} % of the CPU demand may never have been seen."
        )
    for result in results:
        if result.verified.passes:
            checked = result.verified
            lines.append(
                f"Decided anew from the record: {checked.same} of {checked.passes} passes come to the same,"
                f" {checked.moves} moves."
            )
            lines += [f"  The first that does not: {checked.first}"] if checked.first else []
        lines += _errors(result.errors)
    lines += dict.fromkeys(f"Not read: {line}" for result in results for line in result.lost)
    if not any(result.errors.cpu_cases or result.errors.memory_cases for result in results):
        lines.append("No move was recorded, so how well the model foretells moves on this host is not known.")
    return lines


def _errors(errors: Errors) -> list[str]:
    lines = []
    if errors.cpu_cases:
        lines.append(
            f"The model's error after recorded pins: {errors.run_points:.1f} points of run, {errors.wait_points:.1f} of"
            f" waiting, mean of {errors.cpu_cases} vCPUs beside them (as before: {errors.run_points_before:.1f} and"
            f" {errors.wait_points_before:.1f})."
        )
    if errors.memory_cases:
        lines.append(
            f"The model's error after recorded balloons: {errors.usable_mib:.0f} MiB of usable memory, mean of"
            f" {errors.memory_cases} (as before: {errors.usable_mib_before:.0f})."
        )
    if errors.worse:
        lines.append(
            f"Of {' and '.join(errors.worse)} it foretells less than who says that nothing changes: do not rely on that"
            " here."
        )
    return lines
