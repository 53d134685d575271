# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A whole release of memory: what it says of what it could not do, what check mode says, and whose record stays.

A fake stands for the hypervisor, for what it refuses and what it finds at its last look must be exact.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
from kvmsched import passes
from kvmsched.config import MemoryPolicy
from kvmsched.model import Domain, Failure, Outcome, PeriodRecord, Record, Skip, Snapshot
from kvmsched.passes import Conduct, MemoryResult
from memory_worlds import NOW_S, balloon, domain, pair, record, snapshot, uuid_of


class Refusing:
    """Hypervisor over given looks, the last of them again and again; what is written to *refusing* fails."""

    def __init__(self, looks: Sequence[Snapshot], refusing: set[str]) -> None:
        self._looks, self._refusing = list(looks), {uuid_of(name) for name in refusing}
        self.records: dict[str, Record | None] = {}

    def __call__(self, _uri: str, **_more: Any) -> Refusing:
        return self

    def observe(self, _reading: str = "all") -> Snapshot:
        now = self._looks.pop(0) if self._looks[1:] else self._looks[0]
        return replace(now, domains=tuple(self._as_written(domain) for domain in now.domains))

    def _as_written(self, domain: Domain) -> Domain:
        return replace(domain, record=self.records.get(domain.uuid, domain.record))

    def apply(self, changes: Sequence[Any]) -> Outcome:
        failures = [c.domain for c in changes if c.domain.uuid in self._refusing]
        made = [c for c in changes if c.domain.uuid not in self._refusing]
        self.records.update((c.domain.uuid, c.record) for c in made)
        moves = tuple(move for c in made for move in c.moves)
        return Outcome(moves, tuple(Failure(d.name, d.uuid, "denied", "libvirt refuses the change") for d in failures))

    def close(self) -> None:
        pass


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> Any:
    clock = itertools.count(NOW_S, 30)
    monkeypatch.setattr(passes.time, "sleep", lambda _seconds: None)
    monkeypatch.setattr(passes.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(passes.lock, "hold", lambda *_lock: nullcontext())
    monkeypatch.setattr(passes.lock, "acting_daemon", lambda _uri: None)

    def run(
        looks: Sequence[Snapshot], check: bool = False, refusing: set[str] = frozenset()
    ) -> tuple[MemoryResult, Refusing]:
        host = Refusing(looks, refusing)
        monkeypatch.setattr(passes, "Hypervisor", host)
        policy = MemoryPolicy(arrival_timeout_s=0.0)
        return passes.run_memory(Conduct(check=check), policy, release=True), host

    return run


AWAY = domain("db", 1024, 4096, record=record(2048, 2048, 1024))
BACK = replace(AWAY, balloon=balloon(2048, 4096))


def test_what_is_back_by_the_last_look_is_struck_off(release: Any) -> None:
    result, host = release([*pair(snapshot([AWAY])), snapshot([BACK])])
    assert result.failed is None and result.not_restored == ()
    assert host.records == {AWAY.uuid: None}


def test_what_is_not_back_is_told_with_what_it_has(release: Any) -> None:
    result, host = release(pair(snapshot([AWAY])))
    assert result.not_restored == ("db: 1024M, last sent to 2048M, its original is 2048M",)
    assert result.failed == f"not all could be restored, run it again: {result.not_restored[0]}"
    kept = host.records[AWAY.uuid]
    assert kept is not None and kept.memory and kept.memory.original_kib == 2048 * 1024


@pytest.mark.parametrize("check", [True, False])
def test_who_could_not_be_observed_is_named(release: Any, check: bool) -> None:
    sick = Skip("sick", uuid_of("sick"), "hung", "it did not answer in time")
    result, _host = release(pair(snapshot([domain("ok", 1024)], skips=(sick,))), check)
    assert result.not_restored == ("sick: it did not answer in time",) and result.failed


@pytest.mark.parametrize("check", [True, False])
def test_a_paused_domain_that_is_home_is_no_failure(release: Any, check: bool) -> None:
    paused = domain("db", 2048, 4096, record=record(2048, 3000, 2048), state="paused")
    result, host = release(pair(snapshot([paused])), check)
    assert result.failed is None and result.not_restored == ()
    assert host.records == ({} if check else {paused.uuid: None})


def test_a_refusal_is_told_and_the_record_stays(release: Any) -> None:
    """Refused twice, in the pass and when its record is struck off, it is told once."""
    period = replace(record(2048, 3000, 2048), period=PeriodRecord(0, 0, 5, int(NOW_S) - 3600))
    home = domain("db", 2048, 4096, unused=500, usable=900, record=period)
    result, host = release(pair(snapshot([home])), refusing={"db"})
    assert result.not_restored == ("db: libvirt refuses the change",) and result.failed and not host.records


def test_a_record_that_could_not_be_struck_off_fails_the_release(release: Any) -> None:
    """Also of a domain that came back to life in the pass: it was in no plan."""
    restored = domain("new", 2048, 8192, record=record(2048, 3000, 2048))
    looks = [*pair(snapshot([AWAY])), snapshot([BACK, restored])]
    result, host = release(looks, refusing={"new"})
    assert result.not_restored == ("new: libvirt refuses the change",) and result.failed
    assert host.records == {AWAY.uuid: None}
