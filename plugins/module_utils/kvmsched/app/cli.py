# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``kvmsched``, the command: what is asked for in, one of the package's functions, what came of it out."""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import io
import json
import math
import os
import signal
import stat
import sys
import threading
import time
import traceback
from dataclasses import dataclass, replace
from typing import Any, Callable, Iterable, Mapping, Optional, Sequence, TextIO

from .. import __version__, config, leases, lock, model, passes, report
from ..hypervisor import acting_refusal
from ..passes import AnyResult
from ..policy.memory.sampling import LONGEST_PERIOD_S
from ..units import escaped, printable
from . import bundle, record, saved_state, status, status_text
from .arguments import UsageError, parse

DONE, FAILED, REFUSED, NO_DAEMON, WOULD_CHANGE = 0, 1, 2, 3, 3
# What a shell says of a command that such a signal ended.
INTERRUPTED, READER_GONE = 130, 141


class Failed(Exception):
    """What was asked for can't be done; the text is one line for people."""


class Refused(Exception):
    """What was asked for makes no sense; each of the arguments is one line for people."""


@dataclass(frozen=True)
class Terminal:
    """Where the command reads and writes."""

    out: TextIO
    err: TextIO

    def say(self, *lines: str) -> None:
        """Write lines for people; what a guest's name smuggles in reaches no terminal."""
        self.out.write("".join(printable(line) + "\n" for line in lines))
        self.out.flush()

    def json(self, value: Any) -> None:
        self.out.write(escaped(json.dumps(value, indent=2, ensure_ascii=False)) + "\n")


def main(arguments: Optional[Sequence[str]] = None, out: Optional[TextIO] = None, err: Optional[TextIO] = None) -> int:
    """Run one command; return its exit status. Never raises."""
    # A stream that was closed from the start is None.
    terminal = Terminal(out or sys.stdout or _nowhere(), err or sys.stderr or _nowhere())
    for stream in (terminal.out, terminal.err):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(arguments, terminal)
        terminal.out.flush()
    except BrokenPipeError:
        _silence(terminal.out)
        return READER_GONE
    except KeyboardInterrupt:
        code = _complain(terminal, INTERRUPTED, "interrupted")
    except OSError as error:
        code = _complain(terminal, FAILED, f"{error.filename or 'the output'}: {error.strerror or error}")
        _silence(terminal.out)
    return code


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")


def _run(arguments: Optional[Sequence[str]], terminal: Terminal) -> int:
    try:
        with contextlib.redirect_stdout(terminal.out):
            options = parse(arguments)
        return _COMMANDS[options.name](options, terminal)
    except SystemExit as end:  # --help and --version
        return DONE if end.code is None else int(end.code)
    except (UsageError, Refused) as refusal:
        return _complain(terminal, REFUSED, *refusal.args)
    except config.ConfigError as error:
        return _complain(terminal, REFUSED, *error.mistakes)
    except (Failed, passes.PassError) as error:
        return _complain(terminal, FAILED, str(error))
    except OSError:
        raise
    except Exception as error:
        if os.environ.get("KVMSCHED_DEBUG"):
            terminal.err.write(traceback.format_exc())
        return _complain(terminal, FAILED, passes.told(error))


def _complain(terminal: Terminal, code: int, *lines: str) -> int:
    with contextlib.suppress(OSError):
        for line in lines:
            terminal.err.write(f"kvmsched: {printable(line)}\n")
        terminal.err.flush()
    return code


def _silence(stream: TextIO) -> None:
    """Let nothing more be written where nobody reads: Python would complain of it at its end."""
    with contextlib.suppress(OSError, ValueError):
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, stream.fileno())
        os.close(descriptor)


# ---------------------------------------------------------------- what commands share


def _policy_document(path: Optional[str]) -> tuple[dict[str, Any], str]:
    """Return the policy document and its source: *path*, else what is installed, else nothing: the defaults."""
    path = config.installed() if path is None else path
    if path is None:
        return {}, "defaults"
    if path == "-":
        return config.parsed(_standard_input(), _STDIN), _STDIN
    document, _hash = config.read(path)
    return document, path


_STDIN = "standard input"


def _standard_input() -> bytes:
    """Return all of it, whatever it is: to open /dev/stdin fails for a socket, and for another user's pipe."""
    try:
        with open(0, "rb", closefd=False) as file:
            return file.read()
    except OSError as error:
        raise Refused(f"{_STDIN}: can't be read: {error.strerror}") from None


def _policy(path: Optional[str]) -> config.Policy:
    document, source = _policy_document(path)
    return _parsed(document, source)


def _parsed(document: dict[str, Any], source: str) -> config.Policy:
    """Return the policy of *document*; mistakes name the *source*. What floats is not moved, as by the daemon."""
    try:
        policy = config.load(document, typed=not document)
    except config.ConfigError as error:
        raise error.of(source) from None
    floating = document.get("vcpu", {}).get("floating", config.DAEMON_VCPU["floating"])
    return replace(policy, vcpu=replace(policy.vcpu, floating=floating))


def _conduct(options: argparse.Namespace, policy: config.Policy, check: bool) -> passes.Conduct:
    try:
        importlib.import_module("libvirt")
    except ImportError:
        raise Failed(f"libvirt's Python binding is missing for {sys.executable}: install python3-libvirt") from None
    return passes.Conduct(
        uri=options.uri,
        check=check,
        deadline_s=policy.deadline_s,
        lock_timeout_s=policy.lock_timeout_s,
        holder=f"kvmsched {options.name}",
    )


_RESOURCES = {"memory": ("memory",), "vcpu": ("vcpu",), "both": ("memory", "vcpu")}
_TITLES = {"memory": "memory", "vcpu": "vCPUs"}


def _show(
    options: argparse.Namespace, terminal: Terminal, runs: Sequence[tuple[str, Callable[[], AnyResult]]], check: bool
) -> int:
    """Make each pass and tell what came of it, as soon as it is known; FAILED if one failed as a whole.

    Where one can't be made at all, the results of those before are shown all the same.
    """
    values: dict[str, Any] = {}
    code = DONE
    changed = False
    for resource, run in runs:
        try:
            result = run()
        except passes.PassError as error:
            code = _complain(terminal, FAILED, str(error))
            values[resource] = {"changed": False, "failed": str(error)}
            break
        if result.failed:
            code = _complain(terminal, FAILED, f"{resource}: {result.failed}")
        changed = changed or bool(report.made(result, check))
        if options.json:
            values[resource] = {
                **report.values(result, check),
                "warnings": list(result.warnings),
                "failed": result.failed,
                "diff": report.diff(report.made(result, check)),
            }
        else:
            terminal.say(*_told(resource, result, check, options.diff))
    if options.json:
        terminal.json({"changed": any(value["changed"] for value in values.values()), **values})
    return WOULD_CHANGE if changed and code == DONE and getattr(options, "exit_code", False) else code


def _told(resource: str, result: AnyResult, check: bool, diff: bool) -> Iterable[str]:
    """Yield the result for people: what, why, and what not."""
    yield f"{_TITLES[resource]}: {report.summary(result, check)}"
    for move in report.made(result, check):
        yield from _told_move(move, diff)
    plan = result.plan
    if isinstance(plan, model.MemoryPlan):
        yield from (f"  {unmet.domain}: lacks {unmet.kib // 1024}M: {unmet.reason}" for unmet in plan.unmet)
    if plan.note:
        yield f"  {plan.note}"
    yield from (f"  failed: {failure.domain}: {failure.reason}" for failure in result.outcome.failures)
    yield from (f"  skipped: {skip.domain}: {skip.reason}" for skip in result.skips[: report.SHOWN_SKIPS])
    if len(result.skips) > report.SHOWN_SKIPS:
        yield f"  skipped: and {len(result.skips) - report.SHOWN_SKIPS} more"
    yield from (f"  matches no running domain: {pattern}" for pattern in plan.unmatched)
    yield from (f"  a rule that matches no running domain: {pattern}" for pattern in plan.idle_rules)
    yield from (f"  warning: {warning}" for warning in result.warnings)


def _told_move(move: model.Move, diff: bool) -> Iterable[str]:
    if diff:
        what, before, after = move.sides.what, move.sides.before, move.sides.after
        yield from (f"- {what}: {before}", f"+ {what}: {after}", f"    {move.reason}")
    else:
        yield f"  {move}: {move.reason}"


def _refuse_beside(command: str, option: str, others: Mapping[str, Any]) -> None:
    """Refuse *option* beside any of the *others* that was given: one of them would be dropped without a word."""
    if given := [name for name, value in others.items() if value]:
        raise Refused(f"{command}: got {option} beside {', '.join(given)}, allowed: one of them")


# ---------------------------------------------------------------- the commands


def _daemon(options: argparse.Namespace, terminal: Terminal) -> int:
    from . import daemon

    return daemon.run(options.policy, options.uri)


def _once(options: argparse.Namespace, terminal: Terminal) -> int:
    if options.exit_code and not options.dry_run:
        raise Refused("once: got --exit-code, allowed: beside --dry-run")
    # As the daemon of this policy would: for a wider reach a person names another policy.
    policy = config.in_its_mode(_policy(options.policy))
    how = replace(_conduct(options, policy, options.dry_run), pins=policy.daemon.mode != "grow-only")

    def balance_vcpus() -> AnyResult:
        result = passes.run_vcpu(how, policy.vcpu)
        if how.pins or not result.plan.moves:
            return result
        result = replace(result, warnings=(*result.warnings, "mode grow-only: pins are planned and not set"))
        # A dry run tells what a pass would do.
        return result if how.writes else replace(result, plan=replace(result.plan, moves=()))

    runs: dict[str, Callable[[], AnyResult]]
    runs = {"memory": lambda: passes.run_memory(how, policy.memory), "vcpu": balance_vcpus}
    chosen = [(resource, runs[resource]) for resource in _RESOURCES[options.resource]]
    return _show(options, terminal, chosen, options.dry_run)


def _release(options: argparse.Namespace, terminal: Terminal) -> int:
    try:
        policy = _policy(options.policy)
    except config.ConfigError:
        if not options.give_only:
            raise
        policy = config.Policy()  # it may be the very policy that the daemon failed for
    how = _conduct(options, policy, options.dry_run)
    selection = _selected(options)
    runs = passes.releases(how, policy, selection)
    if options.give_only:
        runs = [("memory", lambda: passes.run_rescue(how, replace(policy.memory, selection=selection)))]
    unmatched: set[str] = set()

    def noted(run: Callable[[], AnyResult]) -> AnyResult:
        result = run()
        unmatched.update(result.plan.unmatched)
        return result

    code = _show(options, terminal, [(what, functools.partial(noted, run)) for what, run in runs], options.dry_run)
    return _unmatched(terminal, sorted(unmatched)) or code


def _selected(options: argparse.Namespace) -> config.Selection:
    """Return whom the command names; without a name everybody, whoever the policy leaves out."""
    return config.Selection(tuple(options.names) or ("*",), names_first=True)


def _unmatched(terminal: Terminal, names: Sequence[str]) -> int:
    """Complain of names that nobody has; DONE if there are none."""
    return _complain(terminal, FAILED, *(f"{name}: no running domain matches" for name in names)) if names else DONE


def _repay(options: argparse.Namespace, terminal: Terminal) -> int:
    policy = _policy(options.policy)
    how = _conduct(options, policy, options.dry_run)
    result = passes.run_repay(how, replace(policy.memory, selection=_selected(options)))
    code = _show(options, terminal, [("memory", lambda: result)], options.dry_run)
    return _unmatched(terminal, result.plan.unmatched) or code


def _room(options: argparse.Namespace, terminal: Terminal) -> int:
    from . import room

    _refuse_elsewhere(options.uri)
    if not options.size:
        terminal.say("no room is kept any more" if leases.end(options.uri, "room") else "no room was kept")
        return DONE
    asked = room.ask(options.uri, options.size, options.cells)
    acting = lock.acting_daemon(options.uri) is not None
    if options.ask_only or acting:
        found = room.wait_for_daemon(options.uri, asked) if options.wait else room.told(options.uri, asked)
    else:
        policy = config.in_its_mode(_policy(options.policy))
        how = _conduct(options, policy, check=False)
        found = room.make(how, policy.memory, options.wait, lambda line: None if options.json else terminal.say(line))
    if options.json:
        terminal.json({"room": model.to_json(found), "until_s": round(leases.ends_at(asked), 3)})
    else:
        terminal.say(*status_text.room_lines(found, asked.room, leases.ends_at(asked), acting))
    there = not found.lacks_kib if found is not None else not options.wait
    return DONE if there else FAILED


def _refuse_elsewhere(uri: str) -> None:
    """Refuse what is asked of this host's daemon by a file, where that daemon can't be the one of *uri*."""
    if refusal := acting_refusal(uri):
        raise Refused(refusal)


def _pause(options: argparse.Namespace, terminal: Terminal) -> int:
    _refuse_elsewhere(options.uri)
    lease = leases.write(options.uri, "pause", options.duration)
    until = _clock(leases.ends_at(lease))
    terminal.say(f"the daemon of {options.uri} changes nothing until {until}; kvmsched resume ends that")
    return DONE


def _resume(options: argparse.Namespace, terminal: Terminal) -> int:
    _refuse_elsewhere(options.uri)
    terminal.say("the pause is over" if leases.end(options.uri, "pause") else "there was no pause")
    return DONE


def _snapshot(options: argparse.Namespace, terminal: Terminal) -> int:
    document, source = _policy_document(options.policy)
    policy = _parsed(document, source)
    how = _conduct(options, policy, check=True)
    interval_s = policy.vcpu.interval_s if options.interval is None else options.interval
    snapshots = tuple(passes.run_snapshots(how, interval_s))
    acted = lock.acting_daemon(options.uri) is not None
    whole = bundle.Bundle(snapshots, document, room=leases.room(options.uri), kvmsched=__version__, acted=acted)
    try:
        if lock.daemon(options.uri):
            whole = _with_daemon(whole)
    except (ValueError, OSError) as error:
        _complain(terminal, DONE, f"the bundle is without what the daemon remembers: {error}")
    if options.anonymise:
        whole = bundle.anonymised(whole)
    text = bundle.write(whole)
    if options.output is not None:
        _write_beside(options.output, text)
    else:
        terminal.out.write(text)
    return DONE


def _write_beside(path: str, text: str) -> None:
    """Let the file *path* be *text*, readable by its caller alone: names and figures are nobody else's business.

    Nothing is written through a link that somebody else laid, nor into a file that somebody else has open.
    """
    _may_replace(path)
    try:
        lock.write_atomically(os.path.abspath(path), text, 0o600)
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}") from None


def _may_replace(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise Refused(f"got {path} to write to, allowed: a new or a regular file")


def _record(options: argparse.Namespace, terminal: Terminal) -> int:
    from . import recorder

    if options.sources:
        _refuse_beside("record", "--from", {"--for": options.seconds, "--policy": options.policy})
        return _copied(options, terminal, options.sources)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    document, source = _policy_document(options.policy)
    policy = _parsed(document, source)
    # What has names on the disk until it is over is nobody else's to read.
    path = f"{options.file}.part" if options.anonymise else options.file
    try:
        how, context = _conduct(options, policy, check=True), record.Context(document)
        count = recorder.watch(how, policy, context, path, options.seconds or math.inf, stop)
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}") from None
    if not count:
        raise Failed(f"{options.file}: it was stopped before the first look, and nothing was written")
    terminal.say(f"{count} looks in {options.file}")
    if options.anonymise:
        _copied(options, terminal, [path])
        os.unlink(path)
    return DONE


def _copied(options: argparse.Namespace, terminal: Terminal, sources: Sequence[str]) -> int:
    """Write one record of several, without names if that is asked for."""
    from . import recorder

    for source in sources:
        if os.path.exists(options.file) and os.path.exists(source) and os.path.samefile(options.file, source):
            raise Refused(f"record: got {options.file} to write to, allowed: another file than it reads")
    _may_replace(options.file)
    lost: dict[str, None] = {}

    def looks() -> Iterable[record.Look]:
        return record.read(sources, lost.setdefault)

    try:
        recorder.write_lines(options.file, record.anonymised(looks) if options.anonymise else record.lines_of(looks()))
    except record.RecordError as error:
        raise Refused(str(error)) from None
    except OSError as error:
        raise Failed(f"{error.filename or options.file}: {error.strerror}") from None
    terminal.say(*(f"Not read: {line}" for line in lost))
    return DONE


def _with_daemon(whole: bundle.Bundle) -> bundle.Bundle:
    """Return the bundle with what the daemon remembers, and its own defaults. See saved_state.load."""
    kept = saved_state.load()
    if kept is None:
        return whole
    history = bundle.History(kept.memory, kept.vcpu)
    return replace(whole, policy=_calm(whole.policy), history=history)


def _calm(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return *document* with what a daemon takes where it is silent."""
    return {**document, "vcpu": {**config.DAEMON_VCPU, **document.get("vcpu", {})}}


def _plan(options: argparse.Namespace, terminal: Terminal) -> int:
    """Decide at the last look of a record; most have one, as `kvmsched snapshot` writes it."""
    lost: dict[str, None] = {}
    try:
        looks = _looks(options.bundle, lost)
        whole = record.one_look(looks())
        made = _plans_of_many(options, looks) if whole is None else _plans_of_one(options, whole)
    except record.RecordError as error:
        raise Refused(str(error) if options.bundle != "-" else f"{_STDIN}: {error}") from None
    except OSError as error:
        raise Refused(f"{options.bundle}: can't be read: {error.strerror}") from None
    for line in lost:
        _complain(terminal, DONE, line)
    runs = [(name, functools.partial(made.__getitem__, name)) for name in _RESOURCES[options.resource] if name in made]
    return _show(options, terminal, runs, check=True)


def _looks(path: str, lost: dict[str, None]) -> Callable[[], Iterable[record.Look]]:
    """Return what reads a record, or standard input, from its beginning; *lost* gets what can't be read."""
    if path != "-":
        return lambda: record.read([path], lost.setdefault)
    content = _standard_input()
    return lambda: record.looks_in(io.BytesIO(content), lost.setdefault)


def _plans_of_one(options: argparse.Namespace, whole: bundle.Bundle) -> dict[str, AnyResult]:
    """Return what one pass on its own would come to, or a daemon's whose memory is in the bundle."""
    source = _STDIN if options.bundle == "-" else options.bundle
    document, where = (
        (whole.policy, f"{source}: policy") if options.policy is None else _policy_document(options.policy)
    )
    policy = _parsed(document, where)
    if options.policy is not None and whole.history.vcpu is not None:
        policy = _parsed(_calm(document), where)
    # As the daemon whose bundle it is: what it may not take, the plan does not, either.
    policy = config.in_its_mode(policy)
    plans: dict[str, Callable[[bundle.Bundle, config.Policy], AnyResult]]
    plans = {"memory": bundle.plan_memory, "vcpu": bundle.plan_vcpu}
    try:
        return {resource: plans[resource](whole, policy) for resource in _RESOURCES[options.resource]}
    except (ValueError, OverflowError) as error:
        raise Refused(f"{source}: {error}") from None


def _plans_of_many(options: argparse.Namespace, looks: Callable[[], Iterable[record.Look]]) -> Mapping[str, AnyResult]:
    """Return what the daemon of this policy would decide at the last look."""
    from . import replay

    document = None
    if options.policy is not None:
        document, source = _policy_document(options.policy)
        _parsed(document, source)
    return replay.last_plans(looks, document)


def _replay(options: argparse.Namespace, terminal: Terminal) -> int:
    from . import plot, replay

    if options.fleet:
        return _fleet(options, terminal)
    source = replay.Source(tuple(options.records), options.pcpus, options.memory, options.step)
    if not source.trace:
        _refuse_of_traces(options)
    # Of a trace nobody knows who got what.
    recorded = [] if source.trace else [replay.Job(replay.RECORDED)]
    jobs = [*recorded, *([replay.Job(replay.UNTOUCHED)] if options.untouched else [])]
    progress = _Bar(terminal)
    try:
        if not source.trace:
            _check_order(source.paths)
        jobs += _candidates(options.policy or ()) or [replay.Job("its own policy", _recorded(source))]
        for path in (path for path in (options.html, options.png) if path is not None):
            _may_write(path)
        if options.png is not None:
            plot.check()
        picture = options.html is not None or options.png is not None
        results = replay.play_all(source, jobs, progress.show, picture=picture)
    except replay.ReplayError as error:
        raise Refused(str(error)) from None
    finally:
        progress.end()
    if options.html is not None:
        from . import page

        _write_beside(options.html, page.html(results))
    if options.png is not None:
        plot.png(results, options.png)
    if options.json:
        terminal.json({result.name: replay.values(result) for result in results})
    else:
        terminal.say(*replay.table(results), "", *replay.notes(results))
    return DONE


def _refuse_of_traces(options: argparse.Namespace) -> None:
    """Refuse what makes up a host: a record has its own."""
    if given := [name for name, value in (("--pcpus", options.pcpus), ("--memory", options.memory)) if value]:
        raise Refused(f"replay: got {', '.join(given)}, allowed: for a trace, and {options.records[0]} is none")


def _may_write(path: str) -> None:
    """Fail now where the file *path* can't be: not after a replay that takes minutes."""
    where = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(where) or not os.access(where, os.W_OK):
        raise Failed(f"{path}: got {where}, expected a directory that may be written to")


def _fleet(options: argparse.Namespace, terminal: Terminal) -> int:
    from . import fleet, replay

    names = ("policy", "untouched", "step", "html", "png", "pcpus", "memory", "json")
    _refuse_beside("replay", "--fleet", {f"--{name}": getattr(options, name) for name in names})
    if len(options.records) != 1:
        raise Refused(
            f"replay --fleet: got {len(options.records)} directories, allowed: one, that has one for each host"
        )
    try:
        failed = fleet.report(options.records[0], terminal.say)
    except replay.ReplayError as error:
        raise Refused(str(error)) from None
    return FAILED if failed else DONE


def _check_order(paths: Sequence[str]) -> None:
    try:
        record.check_order(paths)
    except record.RecordError as error:
        raise Refused(f"replay: {error}") from None
    except OSError as error:
        raise Refused(f"{error.filename}: {error.strerror}") from None


def _candidates(paths: Sequence[str]) -> list[Any]:
    """Return the policies to try. They are checked here, so that a mistake does not wait for the replay."""
    from . import replay

    jobs = []
    for path, name in zip(paths, _column_names(paths, (replay.RECORDED, replay.UNTOUCHED))):
        document, source = _policy_document(path)
        _parsed(document, source)
        jobs.append(replay.Job(name, document))
    return jobs


def _column_names(paths: Sequence[str], reserved: Sequence[str]) -> list[str]:
    """Return a name for each policy: its file's, with the directory where that alone would name another column, too."""
    names = [os.path.basename(path) for path in paths]
    places = [os.path.join(os.path.dirname(path) or os.curdir, name) for path, name in zip(paths, names)]
    found = [name if [*names, *reserved].count(name) == 1 else place for name, place in zip(names, places)]
    for name in found:
        if found.count(name) > 1:
            raise Refused(f"replay: got --policy {name} twice, allowed: each policy once")
    return found


def _recorded(source: Any) -> dict[str, Any]:
    """Return the policy that was recorded; of a trace the defaults."""
    from . import replay

    if source.trace:
        return {}
    first = replay.first_frame(source.paths)
    return dict(first.policy) if first is not None else {}


class _Bar:
    """How far something long has come, on a terminal, once it lasts."""

    def __init__(self, terminal: Terminal) -> None:
        self._err, self._began_s, self._shown = terminal.err, time.monotonic(), False

    def show(self, part: float) -> None:
        spent_s = time.monotonic() - self._began_s
        if not self._err.isatty() or spent_s < 2:
            return
        left = f"{(1 - part) / part * spent_s:.0f} s left" if part > 0.01 else ""
        filled = "#" * round(30 * part)
        self._err.write(f"\r[{filled:30}] {100 * part:3.0f} % {left:12}")
        self._err.flush()
        self._shown = True

    def end(self) -> None:
        if self._shown:
            self._err.write("\r" + " " * 60 + "\r")
            self._err.flush()


def _check(options: argparse.Namespace, terminal: Terminal) -> int:
    if options.defaults:
        _refuse_beside("check", "--defaults", {str(options.policy): options.policy})
        terminal.json(config.defaults())
        return DONE
    if options.json:
        return _checked(options, terminal)
    policy, source = _named_policy(options.policy)
    rules = len(policy.memory.rules)
    terminal.say(f"{source}: good, {rules} rule{'s' * (rules != 1)}")
    terminal.say(*(f"  {line}" for line in _doubts(options.uri, policy.memory)))
    return DONE


def _named_policy(path: Optional[str]) -> tuple[config.Policy, str]:
    document, source = _policy_document(path)
    if source == "defaults":
        raise Refused(f"no policy was named, and this host has none at {config.INSTALLED}")
    return _parsed(document, source), source


def _checked(options: argparse.Namespace, terminal: Terminal) -> int:
    """Return the same for scripts: they get the mistakes as a list, on standard output."""
    try:
        policy, _source = _named_policy(options.policy)
    except config.ConfigError as error:
        terminal.json({"good": False, "mistakes": list(error.mistakes)})
        return REFUSED
    doubts = list(_doubts(options.uri, policy.memory))
    terminal.json({"good": True, "mistakes": [], "rules": len(policy.memory.rules), "doubts": doubts})
    return DONE


def _doubts(uri: str, policy: config.MemoryPolicy) -> Iterable[str]:
    """Yield what will have no effect in a good policy, by name where a daemon tells who runs here; no libvirt."""
    if policy.takes == "auto" and policy.stats_period_s > LONGEST_PERIOD_S:
        yield (
            f"memory.stats_period: {policy.stats_period_s} s is more than {LONGEST_PERIOD_S} s:"
            " with reclaim auto nothing is taken from guests that have it"
        )
    told = None
    with contextlib.suppress(Failed, OSError):
        told = _daemon_status(uri)
    if told is None:
        return
    running = tuple(model.Domain(domain.uuid, domain.name, 0) for domain in told.domains)
    for rule in policy.rules:
        if not any(config.matches(rule.pattern, domain) for domain in running):
            yield f"a rule that matches no running domain: {rule.pattern}"
    if policy.takes == "auto":
        slow = (domain for domain in told.domains if domain.memory_code == status.SLOW)
        yield from (f"nothing is taken from {domain.name}: {domain.memory_skip}" for domain in slow)


# ---------------------------------------------------------------- looking


def _top(options: argparse.Namespace, terminal: Terminal) -> int:
    import curses

    from . import live_status, top

    if options.once:
        _refuse_beside("top", "--once", {"--iterations": options.iterations})
    policy = config.in_its_mode(_policy(options.policy))
    with live_status.Looker(_conduct(options, policy, check=True), policy) as looker:
        if options.once or options.batch:
            top.batch(looker.look, terminal.say, options.delay, 1 if options.once else options.iterations, options.sort)
            return DONE
        if not terminal.out.isatty():
            raise Refused("top: standard output is no terminal: use --batch or --once")
        try:
            top.live(looker.look, options.delay, options.iterations, options.sort)
        except curses.error as error:
            raise Refused(f"top: this terminal can't show it ({error}): use --batch or --once") from None
    return DONE


def _explain(options: argparse.Namespace, terminal: Terminal) -> int:
    told, here = None, "no daemon runs here"
    if options.at is not None:
        return _explain_then(options, terminal)
    if options.record:
        raise Refused("explain: got --record, allowed: beside --at")
    try:
        told = _daemon_status(options.uri)
    except PermissionError as error:
        here = f"whether a daemon runs here can't be seen: {error.filename}: {error.strerror}"
    if told is None:
        from . import live_status

        policy = config.in_its_mode(_policy(options.policy))
        told = live_status.once(_conduct(options, policy, check=True), policy)
        source = f"seen just now, read-only; {here}"
    else:
        age_s = max(0.0, time.time() - told.written_s)
        source = f"as the daemon (pid {told.pid}, {told.effective_mode}) saw it {age_s:.0f} s ago"
    return _tell_of(options, terminal, told, source)


def _explain_then(options: argparse.Namespace, terminal: Terminal) -> int:
    """Return the same of a time that is over, from a record."""
    from . import replay

    if options.record:
        _refuse_beside("explain", "--record", {"--policy": options.policy})
    paths = options.record or [_policy(options.policy).daemon.record]
    if paths == [None]:
        raise Refused("explain --at: the policy names no daemon.record, and --record was not given")
    try:
        record.check_order(paths)
        covered = record.span(paths)
        until_s = replay.instant_s(options.at, covered)
        told = replay.instant(paths, until_s)
    except record.RecordError as error:
        raise Refused(str(error)) from None
    except OSError as error:
        raise Failed(f"{error.filename}: {error.strerror}") from None
    if told is None:
        raise Failed(f"{', '.join(paths)}: the record begins at {_clock(covered.begin_s)}")
    ends = f" (the record ends at {_clock(covered.end_s)})" if replay.is_over(covered, until_s) else ""
    when = f"as it was at {_clock(told.written_s)}{ends}"
    return _tell_of(options, terminal, told, f"{when}, from the record; decided anew by {__version__}")


def _clock(wall_s: float) -> str:
    return time.strftime("%F %H:%M:%S", time.localtime(wall_s))


def _tell_of(options: argparse.Namespace, terminal: Terminal, told: status.Status, source: str) -> int:
    found = [domain for domain in told.domains if options.domain in (domain.name, domain.uuid)]
    if not found:
        raise Failed(f"{options.domain}: no running domain has this name or UUID on {told.host or told.uri}")
    if options.json:
        terminal.json({"source": source, "domain": model.to_json(found[0]), "pcpus": model.to_json(told.pcpus)})
    else:
        terminal.say(*status_text.story(found[0], told), "", f"({source})")
    return DONE


def _status(options: argparse.Namespace, terminal: Terminal) -> int:
    told = _daemon_status(options.uri)
    if options.json:
        running = {"running": told is not None, "installed_version": __version__}
        terminal.json({**running, **(model.to_json(told) if told else {})})
    elif told:
        terminal.say(*status_text.summary(told, time.time()))
    else:
        terminal.say(f"no daemon runs here for {options.uri}; this is kvmsched {__version__}")
    return DONE if told else NO_DAEMON


def _daemon_status(uri: str) -> Optional[status.Status]:
    """Return what the daemon of *uri* told last; None if none runs. PermissionError if that can't be seen."""
    daemon = lock.daemon(uri)
    if daemon is None:
        return None
    try:
        told = status.read(uri)
    except ValueError as error:
        raise Failed(str(error)) from None
    if told is None or told.pid != daemon[1]:
        raise Failed(f"the daemon (pid {daemon[1]}) has not told its status yet: try again in a few seconds")
    return told


_COMMANDS: dict[str, Callable[[argparse.Namespace, Terminal], int]] = {
    "run": _daemon,
    "once": _once,
    "release": _release,
    "repay": _repay,
    "room": _room,
    "pause": _pause,
    "resume": _resume,
    "top": _top,
    "explain": _explain,
    "status": _status,
    "snapshot": _snapshot,
    "record": _record,
    "replay": _replay,
    "plan": _plan,
    "check": _check,
}
