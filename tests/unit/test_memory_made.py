# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the next pass is handed follows from what was made, not from what was planned.

A fake stands for the hypervisor: a daemon's passes that observe, or whose changes fail, and then act.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
from kvmsched import passes
from kvmsched.config import MemoryPolicy
from kvmsched.hypervisor import Change
from kvmsched.model import BalloonMove, Failure, Move, Outcome, Snapshot
from kvmsched.passes import Conduct, MemoryResult, Standing, Turn
from kvmsched.policy import memory
from kvmsched.policy.memory import MemoryHistory
from memory_worlds import (
    AUTO,
    BESIDE_WASTE,
    GIB,
    LAZY,
    MIB,
    TICK_S,
    a_tick_before,
    moves,
    needy,
    on_credit,
    pair,
    read_anew,
    uuid_of,
)
from test_memory_cache import zfs_host
from test_memory_mute import mute

Later = Callable[[Snapshot], Snapshot]


class Host:
    """A hypervisor that shows *now* and makes what it is asked for, unless it *refuses*."""

    def __init__(self, now: Snapshot) -> None:
        self.now, self.refuses = now, False
        self.made: list[Move] = []

    def observe(self, _xml_of: str = "all", _anew: Any = ()) -> Snapshot:
        return self.now

    def apply(self, changes: Sequence[Change]) -> Outcome:
        asked = [move for change in changes for move in change.moves]
        if self.refuses:
            return Outcome((), tuple(Failure(move.domain, move.uuid, "error", "an internal error") for move in asked))
        self.made += asked
        return Outcome(tuple(asked), ())


class Passes:
    """A daemon's passes over *host*: each is handed what the one before handed back."""

    def __init__(self, host: Host, policy: MemoryPolicy, history: MemoryHistory, later: Later) -> None:
        self.host, self._later = host, later
        self._turn = Turn(policy, history, a_tick_before(host.now))

    def run(self, times: int, check: bool = False) -> MemoryResult:
        standing = Standing(Conduct("test:///default", check=check, standing=True))
        for _pass in range(times):
            tick = standing.tick(self._turn, None)
            assert tick.memory is not None, tick.failed
            self._turn = replace(self._turn, history=tick.memory.history, before=tick.snapshot)
            self.host.now = self._later(self.host.now)
        return tick.memory


def silence(now: Snapshot) -> Snapshot:
    return replace(now, wall_s=now.wall_s + 2 * TICK_S, monotonic_s=now.monotonic_s + 2 * TICK_S)


@pytest.fixture(autouse=True)
def _no_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes.lock, "acquire", lambda *_lock: nullcontext())


@pytest.fixture
def passes_over(monkeypatch: pytest.MonkeyPatch) -> Any:
    def begin(now: Snapshot, *turn: Any) -> Passes:
        host = Host(now)
        monkeypatch.setattr(passes, "_host", lambda *_how: host)
        return Passes(host, *turn)

    return begin


SILENT, STARVED_BEFORE = mute(60)
# Who is in need, by which policy, and how time goes on: read again, or silent.
CASES: dict[str, tuple[Snapshot, MemoryPolicy, MemoryHistory, Later]] = {
    "gifts": (BESIDE_WASTE, AUTO, MemoryHistory(), read_anew),
    "steps of a silent guest": (SILENT, AUTO, STARVED_BEFORE, silence),
    "loans of a cache": (zfs_host(needy(8 * GIB)), LAZY, MemoryHistory(), read_anew),
    "credit": (on_credit(), AUTO, MemoryHistory(), read_anew),
}


@pytest.mark.parametrize("refused", [False, True], ids=["observed", "refused"])
@pytest.mark.parametrize("case", CASES)
def test_what_was_not_made_is_none_later(passes_over: Any, case: str, refused: bool) -> None:
    """However often it was planned: a guest in need gets the same after a pause as it would have before."""
    now, policy, history, later = CASES[case]
    first = moves(memory.decide(pair(now), policy, history)[0])
    daemon = passes_over(now, policy, history, later)
    daemon.host.refuses = refused
    daemon.run(12, check=not refused)
    daemon.host.refuses = False
    assert not daemon.host.made
    result = daemon.run(1)
    assert moves(result.plan) == first and first["db"] > 0
    assert result.plan.before.credit_kib == 0


def test_what_was_made_is_remembered(passes_over: Any) -> None:
    daemon = passes_over(SILENT, AUTO, STARVED_BEFORE, silence)
    assert daemon.run(1).history.domains[uuid_of("db")].fed_times == 1
    result = daemon.run(3)
    assert len(daemon.host.made) == 3 and "3 of 3 steps" in result.plan.unmet[0].reason


def test_of_a_gift_that_was_paid_in_part_only_that_counts() -> None:
    now = BESIDE_WASTE
    plan, learn = memory.judge(pair(now), AUTO)
    taken, given = sorted((m for m in plan.moves if isinstance(m, BalloonMove)), key=lambda m: m.gives)
    part = replace(given, after_kib=given.before_kib + 10 * MIB)
    known = learn([taken, part]).domains[uuid_of("db")]
    assert (known.given_kib, known.gifts) == (10 * MIB, 1)
    assert learn(plan.moves) == memory.decide(pair(now), AUTO)[1]


def test_a_reading_is_remembered_whatever_was_made() -> None:
    known = memory.judge(pair(BESIDE_WASTE), AUTO)[1](()).domains[uuid_of("db")]
    assert known.pressed and known.used_kib and (known.gifts, known.direction, known.given_kib) == (0, 0, 0)


def test_a_move_of_who_is_not_there_is_none() -> None:
    """A record of another version may hold it."""
    _plan, learn = memory.judge(pair(BESIDE_WASTE), AUTO)
    assert learn([BalloonMove("gone", uuid_of("gone"), 1024, 2048, "")]) == learn(())
