# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the daemon says: to systemd's journal with fields, or in lines to a stream where there is no journal."""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import dataclass, field
from typing import Iterable, Mapping, TextIO, Union

from ..model import BalloonMove, Failure, Move, Skip, SkipCode
from ..passes import MemoryResult, VcpuResult
from ..units import mib, printable

try:
    from systemd import journal
except ImportError:  # the daemon says so
    journal = None

# syslog(3)
ERROR, WARNING, NOTICE, INFO = 3, 4, 5, 6

# Whatever comes back within this time was said already.
_REMEMBERED_S = 300.0
# What is said of one guest changes no more often than this: it may be the guest that changes it.
PAUSE_S = 30.0
# Of so many guests a pass says what is new of them; the others are counted, and the status names them all.
_MOST_LINES = 50


@dataclass(frozen=True)
class Fact:
    """Something that may stay true for long: it is said when it begins, and again when ``code`` is another one."""

    code: str
    message: str
    priority: int = INFO
    fields: Mapping[str, str] = field(default_factory=dict)


_NUMBERS = re.compile(r"\d+(\.\d+)?")
# Skips that end by themselves within some passes: what is new in each of them is no news.
_PASSING: frozenset[SkipCode] = frozenset({"settling", "booting", "unknown-load"})


def of_move(resource: str, move: Move, made: bool) -> Fact:
    """Return one line for a move with its reason; of a planned one the same as long as it has the same sense."""
    before, after = move.sides.before, move.sides.after
    fields = {
        "event": "move" if made else "would_move",
        "resource": resource,
        "domain": move.domain,
        "domain_uuid": move.uuid,
        "kind": move.kind,
        "before": before,
        "after": after,
        "reason": move.reason,
    }
    sense = ("give" if move.gives else "take") if isinstance(move, BalloonMove) else after
    return Fact(
        sense, f"{'' if made else 'would move '}{move.sides.what}: {before} -> {after}: {move.reason}", INFO, fields
    )


def of_result(resource: str, result: Union[MemoryResult, VcpuResult]) -> dict[str, Fact]:
    """Return what a pass found that may stay true for long: who is skipped, what failed, what is not met."""
    facts = {}
    for skip in result.skips:
        if skip.code not in _PASSING:
            text = f"{skip.domain}: {resource} skipped: {skip.reason}"
            facts[f"skip {resource} {skip.uuid}"] = _fact(text, INFO, "skip", resource, skip)
    for failure in result.outcome.failures:
        text = f"{failure.domain}: {resource} change failed: {failure.reason}"
        facts[f"failure {resource} {failure.uuid}"] = _fact(text, WARNING, "failure", resource, failure)
    for unmet in getattr(result.plan, "unmet", ()):
        fields = {"event": "unmet", "resource": resource, "domain": unmet.domain, "domain_uuid": unmet.uuid}
        text = f"{unmet.domain}: lacks {mib(unmet.kib)}: {unmet.reason}"
        facts[f"unmet {unmet.uuid}"] = Fact("unmet", text, WARNING, fields)
    return facts


def of_warnings(resource: str, lines: Iterable[str]) -> dict[str, Fact]:
    """Return the warnings of a plan. One that stays, but for its numbers, is the same."""
    fields = {"event": "warning", "resource": resource}
    same = {_NUMBERS.sub("#", line): line for line in lines}
    return {f"warning {resource} {key}": Fact("warning", line, WARNING, fields) for key, line in same.items()}


def _fact(text: str, priority: int, event: str, resource: str, about: Union[Skip, Failure]) -> Fact:
    fields = {"event": event, "resource": resource, "domain": about.domain, "domain_uuid": about.uuid}
    return Fact(about.code, text, priority, {**fields, "code": about.code, "reason": about.reason})


class Journal:
    """The daemon's voice. Lines go to *out* unless that is connected to the journal and python3-systemd is there."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._structured = journal is not None and _is_journal(out)
        # By key: the code that was said, when that was, and when it was last true.
        self._said: dict[str, tuple[str, float, float]] = {}

    def say(self, message: str, priority: int = INFO, **fields: str) -> None:
        """Write one line; *fields* (lower case) become KVMSCHED_... in the journal."""
        # What a guest's name smuggles in reaches no terminal, at once or by journalctl.
        message = printable(message)
        if self._structured:
            more = {f"KVMSCHED_{name.upper()}": printable(value) for name, value in fields.items()}
            journal.send(message, PRIORITY=priority, SYSLOG_IDENTIFIER="kvmsched", **more)
            return
        # Its terminal may be gone: a voice that is lost costs no pass.
        with contextlib.suppress(OSError):
            self._out.write(message + "\n")
            self._out.flush()

    def once(self, key: str, message: str, priority: int = WARNING, **fields: str) -> None:
        """Say it unless it was the last thing said under *key*, numbers aside."""
        self.facts({key: Fact(_NUMBERS.sub("#", message), message, priority, fields)})

    def over(self, key: str) -> bool:
        """Forget what was said under *key*; return whether there was anything."""
        return self._said.pop(key, None) is not None

    def facts(self, facts: Mapping[str, Fact], pause_s: float = 0.0) -> list[str]:
        """Say what is new among what is true now, by key, and return the keys of that.

        What was said under a key less than *pause_s* ago waits, and is said if it is still so by then. What is
        not true for a while is forgotten. Where much is new at once, the gravest is said and the rest is counted.
        """
        now_s = time.monotonic()
        new = [key for key, fact in facts.items() if self._is_news(key, fact, now_s - pause_s)]
        for key in sorted(new, key=lambda key: facts[key].priority)[:_MOST_LINES]:
            self.say(facts[key].message, facts[key].priority, **facts[key].fields)
        if len(new) > _MOST_LINES:
            self.say(f"and {len(new) - _MOST_LINES} more lines like these: kvmsched status tells of all", event="more")
        self._said.update((key, (facts[key].code, now_s, now_s)) for key in new)
        for key in facts:
            code, said_s, _true_s = self._said[key]
            self._said[key] = (code, said_s, now_s)
        if len(self._said) > len(facts):
            old = [key for key, (_code, _said_s, true_s) in self._said.items() if now_s - true_s > _REMEMBERED_S]
            for key in old:
                del self._said[key]
        return new

    def _is_news(self, key: str, fact: Fact, since_s: float) -> bool:
        code, said_s, _true_s = self._said.get(key, ("", since_s, 0.0))
        return code != fact.code and said_s <= since_s


def _is_journal(out: TextIO) -> bool:
    """Return whether *out* is the socket that systemd connected to the journal (systemd.exec(5), JOURNAL_STREAM)."""
    device, _sep, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        there = os.fstat(out.fileno())
    except (OSError, ValueError):
        return False
    return (device, inode) == (str(there.st_dev), str(there.st_ino))
