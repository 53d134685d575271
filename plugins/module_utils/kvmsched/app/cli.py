# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``kvmsched``, the command: what is asked for in, one of the package's functions, what came of it out."""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import json
import os
import sys
import time
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Iterable, Mapping, Optional, Sequence, TextIO

from .. import __version__, config, lock, model, passes, report
from . import bundle, state, status, view
from .arguments import UsageError, parser

DONE, FAILED, REFUSED, NO_DAEMON = 0, 1, 2, 3
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
        self.out.write("".join(_printable(line) + "\n" for line in lines))
        self.out.flush()

    def json(self, value: Any) -> None:
        json.dump(value, self.out, indent=2, ensure_ascii=False)
        self.out.write("\n")


def _printable(line: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in line)


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
            options = parser().parse_args(arguments)
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
        text = " ".join(str(error).split())[:200]
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{os.path.basename(where.filename)}:{where.lineno}"
        return _complain(
            terminal,
            FAILED,
            f"a mistake of kvmsched: {type(error).__name__} at {place}: {text}; KVMSCHED_DEBUG=1 tells more",
        )


def _complain(terminal: Terminal, code: int, *lines: str) -> int:
    with contextlib.suppress(OSError):
        for line in lines:
            terminal.err.write(f"kvmsched: {_printable(line)}\n")
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
    """The policy document and where it comes from: *path*, else what is installed, else nothing: the defaults."""
    path = path or config.installed()
    if path is None:
        return {}, "defaults"
    if path == "-":
        return config.parsed(_standard_input(), _STDIN), _STDIN
    document, _hash = config.read(path)
    return document, path


_STDIN = "standard input"


def _standard_input() -> bytes:
    """All of it, whatever it is: to open /dev/stdin fails for a socket, and for another user's pipe."""
    try:
        with open(0, "rb", closefd=False) as file:
            return file.read()
    except OSError as error:
        raise Refused(f"{_STDIN}: can't be read: {error.strerror}") from None


def _policy(path: Optional[str]) -> config.Policy:
    document, source = _policy_document(path)
    return _parsed(document, source)


def _parsed(document: dict[str, Any], source: str) -> config.Policy:
    """The policy of *document*; its mistakes are told with the *source*."""
    try:
        return config.load(document, typed=not document)
    except config.ConfigError as error:
        raise config.ConfigError(f"{source}: {line}" for line in error.mistakes) from None


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

AnyResult = passes.Result[Any, Any]


def _show(
    options: argparse.Namespace, terminal: Terminal, runs: Sequence[tuple[str, Callable[[], AnyResult]]], check: bool
) -> int:
    """Make each pass and tell what came of it, as soon as it is known; FAILED if one failed as a whole.

    Where one can't be made at all, what came of those before is told all the same.
    """
    values: dict[str, Any] = {}
    code = DONE
    for resource, run in runs:
        try:
            result = run()
        except passes.PassError as error:
            code = _complain(terminal, FAILED, str(error))
            values[resource] = {"changed": False, "failed": str(error)}
            break
        if result.failed:
            code = _complain(terminal, FAILED, f"{resource}: {result.failed}")
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
    return code


def _told(resource: str, result: AnyResult, check: bool, diff: bool) -> Iterable[str]:
    """The result for people: what, why, and what not."""
    yield f"{_TITLES[resource]}: {report.summary(result, check)}"
    for move in report.made(result, check):
        yield from _told_move(move, diff)
    plan = result.plan
    if isinstance(plan, model.MemoryPlan):
        yield from (f"  {unmet.domain}: lacks {unmet.kib // 1024}M: {unmet.reason}" for unmet in plan.unmet)
    elif plan.note:
        yield f"  {plan.note}"
    yield from (f"  failed: {failure.domain}: {failure.reason}" for failure in result.outcome.failures)
    yield from (f"  skipped: {skip.domain}: {skip.reason}" for skip in result.skips[: report.SHOWN_SKIPS])
    if len(result.skips) > report.SHOWN_SKIPS:
        yield f"  skipped: and {len(result.skips) - report.SHOWN_SKIPS} more"
    yield from (f"  matches no running domain: {pattern}" for pattern in plan.unmatched)
    yield from (f"  warning: {warning}" for warning in result.warnings)


def _told_move(move: model.Move, diff: bool) -> Iterable[str]:
    if diff:
        what, before, after = model.sides(move)
        yield from (f"- {what}: {before}", f"+ {what}: {after}", f"    {move.reason}")
    else:
        yield f"  {move}: {move.reason}"


# ---------------------------------------------------------------- the commands


def _daemon(options: argparse.Namespace, terminal: Terminal) -> int:
    from . import daemon

    return daemon.run(options.policy, options.uri)


def _once(options: argparse.Namespace, terminal: Terminal) -> int:
    policy = _policy(options.policy)
    how = _conduct(options, policy, options.dry_run)

    runs: dict[str, Callable[[], AnyResult]]
    runs = {"memory": lambda: passes.run_memory(how, policy.memory), "vcpu": lambda: passes.run_vcpu(how, policy.vcpu)}
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
    # Whom the policy selects now says nothing of whom an earlier one changed.
    selection = config.Selection(tuple(options.names) or ("*",))
    memory, vcpu = replace(policy.memory, selection=selection), replace(policy.vcpu, selection=selection)
    unmatched: set[str] = set()

    def noted(result: AnyResult) -> AnyResult:
        unmatched.update(result.plan.unmatched)
        return result

    runs: list[tuple[str, Callable[[], AnyResult]]] = [
        ("vcpu", lambda: noted(passes.run_vcpu(how, vcpu, release=True))),
        ("memory", lambda: noted(passes.run_memory(how, memory, release=True))),
    ]
    if options.give_only:
        runs = [("memory", lambda: noted(passes.run_rescue(how, memory)))]
    code = _show(options, terminal, runs, options.dry_run)
    if unmatched:
        return _complain(terminal, FAILED, *(f"{name}: no running domain matches" for name in sorted(unmatched)))
    return code


def _snapshot(options: argparse.Namespace, terminal: Terminal) -> int:
    document, source = _policy_document(options.policy)
    policy = _parsed(document, source)
    how = _conduct(options, policy, check=True)
    interval_s = policy.vcpu.interval_s if options.interval is None else options.interval
    snapshots = tuple(passes.run_snapshots(how, interval_s))
    whole = bundle.Bundle(snapshots, document, kvmsched=__version__)
    try:
        if lock.daemon(options.uri):
            whole = _with_daemon(whole, policy)
    except (ValueError, OSError) as error:
        _complain(terminal, DONE, f"the bundle is without what the daemon remembers: {error}")
    if options.anonymise:
        whole = bundle.anonymised(whole)
    text = bundle.write(whole)
    if options.output:
        # Names, UUIDs and the host's figures are nobody's business but the caller's.
        descriptor = os.open(options.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
    else:
        terminal.out.write(text)
    return DONE


def _with_daemon(whole: bundle.Bundle, policy: config.Policy) -> bundle.Bundle:
    """The bundle with what the daemon remembers, and what it takes where the policy is silent. See state.load."""
    kept = state.load()
    if kept is None:
        return whole
    history = bundle.History(kept.memory, kept.vcpu)
    return replace(whole, policy=_calm(whole.policy, policy, whole), history=history)


def _calm(document: Mapping[str, Any], policy: config.Policy, whole: bundle.Bundle) -> dict[str, Any]:
    """*document* with what a daemon takes where it is silent."""
    budget = passes.budgeted(policy.vcpu, whole.snapshots[-1]).max_moves
    return {**document, "vcpu": {**config.DAEMON_VCPU, "max_moves": budget, **document.get("vcpu", {})}}


def _plan(options: argparse.Namespace, terminal: Terminal) -> int:
    source = _STDIN if options.bundle == "-" else options.bundle
    try:
        content = _standard_input() if options.bundle == "-" else Path(options.bundle).read_bytes()
        whole = bundle.read(content)
    except OSError as error:
        raise Refused(f"{source}: can't be read: {error.strerror}") from None
    except bundle.BundleError as error:
        raise Refused(f"{source}: {error}") from None
    document, where = (
        (whole.policy, f"{source}: policy") if options.policy is None else _policy_document(options.policy)
    )
    policy = _parsed(document, where)
    if options.policy is not None and whole.history.vcpu is not None:
        policy = _parsed(_calm(document, policy, whole), where)
    plans: dict[str, Callable[[bundle.Bundle, config.Policy], AnyResult]]
    plans = {"memory": bundle.plan_memory, "vcpu": bundle.plan_vcpu}
    try:
        made = {resource: plans[resource](whole, policy) for resource in _RESOURCES[options.resource]}
    except (ValueError, OverflowError) as error:
        raise Refused(f"{source}: {error}") from None
    runs = [(resource, functools.partial(made.__getitem__, resource)) for resource in made]
    return _show(options, terminal, runs, check=True)


def _check(options: argparse.Namespace, terminal: Terminal) -> int:
    if options.defaults:
        if options.policy is not None:
            raise Refused(f"check: got --defaults beside {options.policy}, allowed: one of them")
        terminal.json(config.defaults())
        return DONE
    document, source = _policy_document(options.policy)
    if source == "defaults":
        raise Refused(f"no policy was named, and this host has none at {config.INSTALLED}")
    policy = _parsed(document, source)
    terminal.say(f"{source}: good, {len(policy.memory.rules)} rules")
    return DONE


# ---------------------------------------------------------------- looking


def _top(options: argparse.Namespace, terminal: Terminal) -> int:
    import curses

    from . import look, top

    policy = _policy(options.policy)
    with look.Looker(_conduct(options, policy, check=True), policy) as looker:
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
    try:
        told = _daemon_status(options.uri)
    except PermissionError as error:
        here = f"whether a daemon runs here can't be seen: {error.filename}: {error.strerror}"
    if told is None:
        from . import look

        policy = _policy(options.policy)
        told = look.once(_conduct(options, policy, check=True), policy)
        source = f"seen just now, read-only; {here}"
    else:
        age_s = max(0.0, time.time() - told.written_s)
        source = f"as the daemon (pid {told.pid}, {told.effective_mode}) saw it {age_s:.0f} s ago"
    found = [domain for domain in told.domains if options.domain in (domain.name, domain.uuid)]
    if not found:
        raise Failed(f"{options.domain}: no running domain has this name or UUID on {told.host or told.uri}")
    if options.json:
        terminal.json({"source": source, "domain": model.to_json(found[0]), "pcpus": model.to_json(told.pcpus)})
    else:
        terminal.say(*view.story(found[0], told), "", f"({source})")
    return DONE


def _status(options: argparse.Namespace, terminal: Terminal) -> int:
    told = _daemon_status(options.uri)
    if options.json:
        running = {"running": told is not None, "installed_version": __version__}
        terminal.json({**running, **(model.to_json(told) if told else {})})
    elif told:
        terminal.say(*view.summary(told, time.time()))
    else:
        terminal.say(f"no daemon runs here for {options.uri}; this is kvmsched {__version__}")
    return DONE if told else NO_DAEMON


def _daemon_status(uri: str) -> Optional[status.Status]:
    """What the daemon of *uri* told last; None if none runs. PermissionError if that can't be seen."""
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
    "top": _top,
    "explain": _explain,
    "status": _status,
    "snapshot": _snapshot,
    "plan": _plan,
    "check": _check,
}
