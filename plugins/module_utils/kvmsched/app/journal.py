# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the daemon says: to systemd's journal with fields, or in lines to a stream where there is no journal."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, field
from typing import Mapping, TextIO, Union

from ..model import BalloonMove, Failure, Move, Skip, sides
from ..passes import MemoryResult, VcpuResult
from ..units import mib

try:
    from systemd import journal
except ImportError:  # the daemon says so
    journal = None

# syslog(3)
ERROR, WARNING, NOTICE, INFO = 3, 4, 5, 6

# Whatever comes back within this time was said already.
_REMEMBERED_S = 300.0


@dataclass(frozen=True)
class Fact:
    """Something that may stay true for long: it is said when it begins, and again when ``code`` is another one."""

    code: str
    message: str
    priority: int = INFO
    fields: Mapping[str, str] = field(default_factory=dict)


# Skips that end by themselves within some passes: what is new in each of them is no news.
_PASSING = frozenset({"settling", "booting", "unknown-load"})


def of_move(resource: str, move: Move, made: bool) -> Fact:
    """One line for a move with its reason; one that is only planned is the same as long as it has the same sense."""
    what, before, after = sides(move)
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
    return Fact(sense, f"{'' if made else 'would move '}{what}: {before} -> {after}: {move.reason}", INFO, fields)


def of_result(resource: str, result: Union[MemoryResult, VcpuResult]) -> dict[str, Fact]:
    """What a pass found that may stay true for long: who is left alone, what failed, what is not met."""
    facts = {}
    for skip in result.skips:
        if skip.code not in _PASSING:
            text = f"{skip.domain}: {resource} left alone: {skip.reason}"
            facts[f"skip {resource} {skip.uuid}"] = _fact(text, INFO, "skip", resource, skip)
    for failure in result.outcome.failures:
        text = f"{failure.domain}: {resource} change failed: {failure.reason}"
        facts[f"failure {resource} {failure.uuid}"] = _fact(text, WARNING, "failure", resource, failure)
    for unmet in getattr(result.plan, "unmet", ()):
        fields = {"event": "unmet", "resource": resource, "domain": unmet.domain, "domain_uuid": unmet.uuid}
        text = f"{unmet.domain}: lacks {mib(unmet.kib)}: {unmet.reason}"
        facts[f"unmet {unmet.uuid}"] = Fact("unmet", text, WARNING, fields)
    return facts


def _fact(text: str, priority: int, event: str, resource: str, about: Union[Skip, Failure]) -> Fact:
    fields = {"event": event, "resource": resource, "domain": about.domain, "domain_uuid": about.uuid}
    return Fact(about.code, text, priority, {**fields, "code": about.code, "reason": about.reason})


class Journal:
    """The daemon's voice. Lines go to *out* unless that is connected to the journal and python3-systemd is there."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._structured = journal is not None and _is_journal(out)
        self._said: dict[str, tuple[str, float]] = {}

    def say(self, message: str, priority: int = INFO, **fields: str) -> None:
        """One line; *fields* (lower case) become KVMSCHED_... in the journal."""
        if self._structured:
            more = {f"KVMSCHED_{name.upper()}": value for name, value in fields.items()}
            journal.send(message, PRIORITY=priority, SYSLOG_IDENTIFIER="kvmsched", **more)
        else:
            # What a guest's name smuggles in reaches no terminal.
            self._out.write("".join(c if c.isprintable() else "?" for c in message) + "\n")
            self._out.flush()

    def once(self, key: str, message: str, priority: int = WARNING, **fields: str) -> None:
        """Say it unless it was the last thing said under *key*, numbers aside."""
        self.facts({key: Fact(re.sub(r"\d+(\.\d+)?", "#", message), message, priority, fields)})

    def over(self, key: str) -> bool:
        """Forget what was said under *key*; whether there was anything."""
        return self._said.pop(key, None) is not None

    def facts(self, facts: Mapping[str, Fact]) -> list[str]:
        """Say what is new among what is true now, by key, and return the keys of that.

        What is not true for a while is forgotten.
        """
        now_s = time.monotonic()
        new = [key for key, fact in facts.items() if self._said.get(key, ("", 0.0))[0] != fact.code]
        for key in new:
            self.say(facts[key].message, facts[key].priority, **facts[key].fields)
        for key, fact in facts.items():
            self._said[key] = (fact.code, now_s)
        if len(self._said) > len(facts):
            old = [key for key, (_code, when_s) in self._said.items() if now_s - when_s > _REMEMBERED_S]
            for key in old:
                del self._said[key]
        return new


def _is_journal(out: TextIO) -> bool:
    """Whether *out* is the socket that systemd connected to the journal (systemd.exec(5), JOURNAL_STREAM)."""
    device, _sep, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        there = os.fstat(out.fileno())
    except (OSError, ValueError):
        return False
    return (device, inode) == (str(there.st_dev), str(there.st_ino))
