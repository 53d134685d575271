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
from kvmsched import baseline, passes
from kvmsched.config import MemoryPolicy, Selection
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
    monkeypatch.setattr(passes.lock, "acquire", lambda *_lock: nullcontext())
    monkeypatch.setattr(passes.lock, "acting_daemon", lambda _uri: None)

    def run(
        looks: Sequence[Snapshot],
        check: bool = False,
        refusing: set[str] = frozenset(),
        names: tuple[str, ...] = ("*",),
    ) -> tuple[MemoryResult, Refusing]:
        host = Refusing(looks, refusing)
        monkeypatch.setattr(passes, "Hypervisor", host)
        policy = MemoryPolicy(arrival_timeout_s=0.0, selection=Selection(names, names_first=True))
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
    assert tuple(map(str, result.not_restored)) == (
        "db: it has 1024M, was last sent to 2048M, and its original is 2048M",
    )
    assert result.failed == f"not all could be restored, run it again: {result.not_restored[0]}"
    kept = host.records[AWAY.uuid]
    assert kept is not None and kept.memory and kept.memory.original_kib == 2048 * 1024


@pytest.mark.parametrize("check", [True, False])
def test_who_could_not_be_observed_is_named(release: Any, check: bool) -> None:
    sick = Skip("sick", uuid_of("sick"), "hung", "it did not answer in time")
    result, _host = release(pair(snapshot([domain("ok", 1024)], skips=(sick,))), check)
    assert tuple(map(str, result.not_restored)) == ("sick: it did not answer in time",) and result.failed


@pytest.mark.parametrize("others", [True, False])
def test_who_could_not_be_observed_for_its_own_xml_fails_no_release_of_the_host(release: Any, others: bool) -> None:
    """Its owner may write what he likes."""
    odd = Skip("odd", uuid_of("odd"), "unreadable", "its XML has 2000000 characters, allowed: 1048576")
    looks = pair(snapshot([domain("ok", 1024)] if others else [], skips=(odd,)))
    result, _host = release(looks)
    assert result.failed is None and result.warnings == tuple(map(str, result.not_restored)) != ()
    result, _host = release(looks, names=("odd",))
    assert result.failed is not None and "its XML has" in result.failed


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
    assert (
        tuple(map(str, result.not_restored)) == ("db: libvirt refuses the change",)
        and result.failed
        and not host.records
    )


def test_a_record_that_could_not_be_struck_off_fails_the_release(release: Any) -> None:
    """Also of a domain that came back to life in the pass: it was in no plan."""
    restored = domain("new", 2048, 8192, record=record(2048, 3000, 2048))
    looks = [*pair(snapshot([AWAY])), snapshot([BACK, restored])]
    result, host = release(looks, refusing={"new"})
    assert tuple(map(str, result.not_restored)) == ("new: libvirt refuses the change",) and result.failed
    assert host.records == {AWAY.uuid: None}


BROKEN = [
    "its record is damaged (number '18014398492000000')",
    "its record is damaged (a record of 300000 characters, allowed: 262144)",
    "its record has version 9, this kvmsched reads version 1",
]


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("state", ["running", "paused"])
@pytest.mark.parametrize("why", BROKEN)
def test_a_record_that_nobody_can_read_fails_no_release_of_the_host(
    release: Any, why: str, state: str, check: bool
) -> None:
    odd = domain("odd", 1024, 4096, record_error=why, state=state)
    result, host = release([*pair(snapshot([AWAY, odd])), snapshot([BACK, odd])], check)
    assert result.failed is None and host.records == ({} if check else {AWAY.uuid: None})
    (told,) = [line for line in map(str, result.not_restored) if line.startswith("odd: ")]
    assert why in told and f"`virsh metadata {odd.uuid} urn:kvmsched:state/1 --live --config --remove`" in told
    assert told in result.warnings


def test_beside_it_whoever_is_not_restored_yet_fails_the_release(release: Any) -> None:
    odd = domain("odd", 1024, 4096, record_error=BROKEN[0])
    result, _host = release(pair(snapshot([AWAY, odd])))
    assert result.failed is not None and "db: it has 1024M" in result.failed and "odd" not in result.failed
    assert {line.partition(": ")[0] for line in map(str, result.not_restored)} == {"db", "odd"}


@pytest.mark.parametrize("names", [("odd",), ("o*", "db"), (uuid_of("odd"),)])
def test_who_asks_for_it_by_name_is_failed(release: Any, names: tuple[str, ...]) -> None:
    odd = domain("odd", 1024, 4096, record_error=BROKEN[0])
    result, _host = release([*pair(snapshot([AWAY, odd])), snapshot([BACK, odd])], names=names)
    assert result.failed is not None and "virsh metadata" in result.failed


LIMITED = [
    (
        domain("tiny", 2048, 4096, unused=10, usable=200, record=record(63, 63, 2048)),
        "not shrunk to its 63M: it needs 1998M",
    ),
    (domain("mute", 2048, 4096, record=record(1024, 2048, 2048), last_update_s=0), "not shrunk to its 1024M: "),
    (domain("bound", 1024, 4096, record=record(4096, 4096, 1024), limit_kib=2048 * 1024), "its limits allow "),
]


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(("odd", "why"), LIMITED, ids=[odd.name for odd, _why in LIMITED])
def test_a_record_that_asks_for_what_is_not_allowed_fails_no_release_of_the_host(
    release: Any, odd: Domain, why: str, check: bool
) -> None:
    """Anybody who may write metadata can write such a one."""
    result, host = release([*pair(snapshot([AWAY, odd])), snapshot([BACK, odd])], check)
    assert result.failed is None and odd.uuid not in {uuid for uuid, kept in host.records.items() if kept is None}
    (told,) = [left for left in result.not_restored if left.uuid == odd.uuid]
    assert why in told.reason and str(told) in result.warnings
    result, _host = release(pair(snapshot([AWAY, odd])), names=(odd.name,))
    assert result.failed is not None and why in result.failed, "who is asked for by name"


def test_a_guest_that_needs_more_than_it_had_fails_the_release(release: Any) -> None:
    """Nobody would look after it."""
    grown = domain("grown", 2048, 4096, unused=10, usable=200, record=record(1024, 1024, 2048))
    result, host = release([*pair(snapshot([AWAY, grown])), snapshot([BACK, grown])])
    assert result.failed is not None and "grown: not shrunk to its 1024M: it needs 1998M" in result.failed
    assert host.records == {AWAY.uuid: None}, "all others are back, and struck off"


@pytest.mark.parametrize("page_kib", [0, 4])
@pytest.mark.parametrize("original", [2048, 4096])
def test_a_guest_that_died_before_its_gift_came_fails_only_who_asks_for_it(
    release: Any, original: int, page_kib: int
) -> None:
    """Its balloon never moves again. What was promised is asked for again each time, a page off."""
    kept = record(original, 2048, 4096)
    kept = replace(kept, memory=replace(kept.memory, intended_kib=4096 * 1024 - page_kib))
    looks = pair(snapshot([domain("dead", 2048, 4096, record=kept, last_update_s=int(NOW_S) - 3605)]))
    result, host = release(looks)
    assert result.failed is None and "dead: " in result.warnings[0] and host.records[uuid_of("dead")] is not None
    assert release(looks, names=("dead",))[0].failed is not None


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("plugged", [0, 512])
def test_whoever_plugged_virtio_mem_is_told_how_its_memory_comes_back(release: Any, check: bool, plugged: int) -> None:
    """What it has is not known, so it fails no release of the host, and needs no statistics any more."""
    kept = replace(record(2048, 2048, 1024), period=PeriodRecord(0, 0, 5, int(NOW_S) - 3600))
    looks = pair(snapshot([domain("db", 1024 + plugged, 4096, virtio_mem=True, record=kept)]))
    result, host = release(looks, check)
    assert result.failed is None and [str(move) for move in result.plan.moves] == ["db: stats_period 5 -> 0"]
    assert [str(move) for move in result.outcome.moves] == ([] if check else ["db: stats_period 5 -> 0"])
    (left,) = result.not_restored
    assert f"`virsh setmem {left.uuid} 2097152 --live`" in str(left) and result.warnings == (str(left),)
    assert all(after is not None and after.memory == kept.memory for after in host.records.values())
    assert release(looks, check, names=("db",))[0].failed is not None


@pytest.mark.parametrize("state", [{}, {"busy": "it migrates"}, {"state": "paused"}])
@pytest.mark.parametrize("check", [True, False])
def test_only_a_period_is_to_be_restored_of_a_guest_with_virtio_mem(
    release: Any, check: bool, state: dict[str, str]
) -> None:
    kept = Record("host", 1, period=PeriodRecord(0, 0, 5, int(NOW_S) - 60))
    guest = domain("db", 2048, 4096, virtio_mem=True, record=kept, **state)
    assert guest.balloon is not None
    set_ = replace(guest, balloon=replace(guest.balloon, period_s=0))
    result, host = release([*pair(snapshot([guest])), snapshot([guest if state else set_])], check)
    assert len(result.outcome.moves) == (not state and not check)
    if state:
        assert "its statistics period is not its original 0 s" in str(result.failed)
    else:
        assert result.failed is None and host.records == ({} if check else {guest.uuid: None})


def test_a_record_that_was_not_read_yet_fails_the_release(release: Any) -> None:
    result, _host = release(pair(snapshot([domain("odd", 1024, 4096, record_error=baseline.UNREAD)])))
    assert result.failed is not None and baseline.UNREAD in result.failed


def test_a_record_that_may_be_a_copy_fails_only_who_asks_for_it(release: Any) -> None:
    """Who may write metadata can put it into both definitions. A person's word can mend that."""
    looks = pair(snapshot([domain("odd", 1024, 4096, record_error=baseline.DOUBTFUL)]))
    result, _host = release(looks)
    assert result.failed is None and "--config --remove" in result.warnings[0]
    result, _host = release(looks, names=("odd",))
    assert result.failed is not None and "--config --remove" in result.failed


def test_nobody_hides_whom_else_the_release_left_by_a_name_like_a_line(release: Any) -> None:
    """As planned *db* comes home, and does not; of the other it was said before that it can't."""
    odd = domain("db: 1", 1024, 4096, record_error=BROKEN[0])
    result, _host = release(pair(snapshot([AWAY, odd])))
    assert result.failed is not None and "db: it has 1024M, was last sent to 2048M" in result.failed
    assert len(result.not_restored) == 2
