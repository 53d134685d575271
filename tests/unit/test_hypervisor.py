# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What hangs or fails at an exact instant, and what that costs: one domain its turn, never the pass.

libvirt is a fake here, because a real one can't be made to hang in a chosen call. So is the clock: a call that
hangs takes its time at once, and a healthy one none, however busy the machine is that runs these tests.
The same faults on real guests are in tests/faults.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Optional

import fake_binding
import pytest
from faults import faulty
from kvmsched import baseline, cgroups, config, hypervisor, libvirt_xml, passes, procfs, report
from kvmsched.app import record
from kvmsched.app.record import Encoder, Entry
from kvmsched.hypervisor import Change, Hypervisor, Line, Unavailable, connection
from kvmsched.hypervisor import domain as described
from kvmsched.hypervisor import host as host_file
from kvmsched.libvirt_xml import parse_domain
from kvmsched.model import BalloonMove, Domain, Failure, MemoryRecord, Outcome, PinMove, PinRecord, Record
from kvmsched.policy import memory
from libvirt_error import Error as FakeError

CAPABILITIES = "<capabilities><host><uuid>host</uuid></host></capabilities>"
XML = (
    "<domain><memory unit='KiB'>524288</memory>"
    "<devices><memballoon model='virtio'><stats period='1'/></memballoon></devices></domain>"
)


class FakeDomain:
    def __init__(self, connection: FakeConnection, number: int) -> None:
        self._connection, self._number = connection, number

    def connect(self) -> FakeConnection:
        return self._connection

    def name(self) -> str:
        return f"d{self._number}"

    def UUIDString(self) -> str:
        return f"u{self._number}"

    def UUID(self) -> str:
        return self.UUIDString()

    def ID(self) -> int:
        return self._connection.world.ids.get(self._number, self._number)

    def __getattr__(self, call: str) -> Callable[..., Any]:
        return lambda *arguments: self._connection.world.answer(self._number, call, arguments)


class FakeConnection:
    def __init__(self, world: World) -> None:
        self.world = world

    def getCPUMap(self) -> tuple[int, list[bool], int]:
        return 2, [True, True], 2

    def getCapabilities(self) -> str:
        return CAPABILITIES

    def getType(self) -> str:
        return "QEMU"

    def getAllDomainStats(self, *_flags: int) -> list[tuple[FakeDomain, dict[str, int]]]:
        return [(FakeDomain(self, number), {"state.state": 1}) for number in self.world.numbers]

    def domainListGetStats(self, domains: list[FakeDomain], *_flags: int) -> list[tuple[FakeDomain, dict[str, int]]]:
        return [(domain, domain.statistics()) for domain in domains]

    def lookupByUUID(self, uuid: str) -> FakeDomain:
        return FakeDomain(self, int(uuid[1:]))

    lookupByUUIDString = lookupByUUID

    def listAllDomains(self, *_flags: int) -> list[FakeDomain]:
        return []

    def close(self) -> None:
        self.world.closed += 1


# A healthy call that takes so long of real time does not come back: its test fails.
PATIENCE_S = 120


class End(threading.Event):
    """The end of a test. Who waits for it hangs, and ``waiting`` counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = 0

    def wait(self, timeout: Optional[float] = None) -> bool:
        if not self.is_set():
            self.waiting += 1
        return super().wait(timeout)


class Clock:
    """Stands for module time: what takes time is told so."""

    time = staticmethod(time.time)

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


class Done(threading.Event):
    """Whether a call returned, as the clock of the test has it."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world, self._hung, self._began_s = world, world.over.waiting, world.clock.now_s

    def wait(self, timeout: Optional[float] = None) -> bool:
        assert timeout is not None
        end_s = time.monotonic() + PATIENCE_S
        while not super().wait(0.001):
            assert time.monotonic() < end_s, "a call neither returns nor is meant to hang"
            if self._world.over.waiting > self._hung:
                self._world.clock.now_s = self._began_s + timeout
                return False
        return self._world.clock.now_s <= self._began_s + timeout


class World:
    """A host with domains d0..dN. A call in ``hangs`` blocks until the test ends, one in ``errors`` fails, one in
    ``full`` fails once it is made; once, one in ``losses`` loses its connection, one in ``restarts`` starts its domain
    anew; ``answers`` are other than a healthy domain's.
    """

    def __init__(self, domains: int) -> None:
        self.numbers = range(domains)
        self.ids: dict[int, int] = {}
        self.hangs: set[tuple[int, str]] = set()
        self.errors: dict[tuple[int, str], FakeError] = {}
        self.full: set[tuple[int, str]] = set()
        self.losses: set[tuple[int, str]] = set()
        self.restarts: set[tuple[int, str]] = set()
        self.answers: dict[tuple[int, str], Any] = {}
        self.over = End()
        self.clock = Clock()
        self.written: list[tuple[int, str]] = []
        self.records: list[str] = []
        self.asked: list[tuple[int, str]] = []
        self.opened = self.closed = 0

    def answer(self, number: int, call: str, arguments: tuple[Any, ...]) -> Any:
        self.asked.append((number, call))
        if (number, call) in self.hangs:
            self.over.wait()
        if (number, call) in self.errors:
            raise self.errors[number, call]
        if (number, call) in self.answers:
            return self.answers[number, call]
        if (number, call) in self.losses:
            self.losses.remove((number, call))
            raise FakeError(38, domain=7, text="End of file while reading data")
        if (number, call) in self.restarts:
            self.restarts.remove((number, call))
            self.ids[number] = 99
        if call.startswith(("set", "pin")):
            self.written.append((number, call))
        if call == "setMetadata":
            self.records.append(arguments[1])
        if (number, call) in self.full:
            raise FakeError(38, text="cannot write data to file: No space left on device")
        return {
            "XMLDesc": XML,
            "controlInfo": [0, 0, 0],
            "jobInfo": [0],
            "isActive": 1,
            "vcpus": ([(0, 1, 0, 0)], [(True, True)]),
            "memoryStats": {"actual": 400000, "rss": 1},
            "statistics": {"vcpu.0.time": 5000, "balloon.maximum": 524288, "balloon.current": 400000, "balloon.rss": 1},
        }.get(call, 0)


def job(world: World, work: Callable[[Any], Any], make: Any = connection._Job) -> Any:
    made = make(work)
    made.done = Done(world)
    return made


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World(40)  # more than one bulk call's worth
    constants = {
        "libvirtError": FakeError,
        "VIR_ERR_INVALID_ARG": 8,
        "VIR_ERR_NO_DOMAIN": 42,
        "VIR_ERR_OPERATION_TIMEOUT": 68,
        "VIR_ERR_OPERATION_DENIED": 29,
        "VIR_ERR_ACCESS_DENIED": 88,
        "VIR_ERR_NO_SUPPORT": 3,
        "VIR_ERR_ARGUMENT_UNSUPPORTED": 74,
        "VIR_ERR_OPERATION_INVALID": 55,
        "VIR_ERR_SYSTEM_ERROR": 38,
        "VIR_FROM_RPC": 7,
        "VIR_DOMAIN_CONTROL_OCCUPIED": 2,
        "VIR_DOMAIN_CONTROL_ERROR": 3,
        "VIR_DOMAIN_JOB_NONE": 0,
        "VIR_DOMAIN_METADATA_ELEMENT": 2,
        "VIR_DOMAIN_AFFECT_LIVE": 1,
        "VIR_DOMAIN_XML_INACTIVE": 2,
        "VIR_CONNECT_LIST_DOMAINS_ACTIVE": 1,
        "VIR_CONNECT_LIST_DOMAINS_PERSISTENT": 4,
        "VIR_DOMAIN_STATS_STATE": 1,
        "VIR_DOMAIN_STATS_VCPU": 8,
        "VIR_DOMAIN_STATS_BALLOON": 4,
        "VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE": 1,
        "VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT": 4,
    }

    def open_fake(*_arguments: object) -> FakeConnection:
        world.opened += 1
        return FakeConnection(world)

    fake_binding.use(monkeypatch, SimpleNamespace(**constants), open_fake, world.clock)
    # A remote URI: nothing is read from this machine's /proc.
    monkeypatch.setattr(host_file, "_host_memory", lambda _connection: None)
    monkeypatch.setattr(connection, "_Job", functools.partial(job, world))
    yield world
    world.over.set()
    while HOSTS:
        HOSTS.pop().close()
    for thread in threading.enumerate():
        if thread.name == hypervisor.THREAD:
            thread.join(PATIENCE_S)


HOSTS: list[Hypervisor] = []


def host(deadline_s: float = 5) -> Hypervisor:
    HOSTS.append(Hypervisor("qemu+ssh://elsewhere/system", read_only=False, deadline_s=deadline_s))
    return HOSTS[-1]


@pytest.mark.parametrize("call", ["XMLDesc", "vcpus", "controlInfo", "statistics"])
@pytest.mark.parametrize("sick", [{0}, {7, 8, 39}])
def test_domains_that_hang_cost_only_their_own_turn(world: World, call: str, sick: set[int]) -> None:
    world.hangs = {(number, call) for number in sick}
    snapshot = host().observe()
    assert {skip.domain for skip in snapshot.skips} == {f"d{number}" for number in sick}
    assert {skip.code for skip in snapshot.skips} == {"hung"}
    assert len(snapshot.domains) == 40 - len(sick)
    assert all(domain.balloon and domain.balloon.actual_kib == 400000 for domain in snapshot.domains)


def test_a_healthy_host_is_asked_over_one_connection(world: World) -> None:
    hyper = host()
    assert len(hyper.observe().domains) == len(hyper.observe().domains) == 40
    assert world.opened == 1


def test_an_open_that_never_returns_is_an_error_not_a_hang(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_open", lambda *_arguments: world.over.wait() and FakeConnection(world))
    with pytest.raises(Unavailable, match=r"did not answer within 0\.2 s \(deadline\)"):
        host(deadline_s=0.2).observe()


def test_a_domain_that_vanishes_is_skipped(world: World) -> None:
    world.errors[3, "XMLDesc"] = FakeError(42)
    (skip,) = host().observe().skips
    assert (skip.domain, skip.code) == ("d3", "gone")


def test_a_connection_that_is_lost_ends_the_pass_in_one_line(world: World) -> None:
    world.errors[3, "vcpus"] = FakeError(38, domain=7, text="End of file while\nreading data")
    with pytest.raises(Unavailable, match="went away: End of file while reading data"):
        host().observe()


def changes(hyper: Hypervisor, *numbers: int) -> list[Change]:
    domains = {domain.name: domain for domain in hyper.observe().domains}
    return [
        Change(domains[f"d{n}"], Record("host", n), (BalloonMove(f"d{n}", f"u{n}", 400000, 300000, "because"),))
        for n in numbers
    ]


def test_the_record_comes_before_the_change(world: World) -> None:
    hyper = host()
    outcome = hyper.apply(changes(hyper, 1))
    assert world.written == [(1, "setMetadata"), (1, "setMemory")]
    assert [move.domain for move in outcome.moves] == ["d1"]


def test_without_its_record_a_domain_is_not_changed(world: World) -> None:
    world.errors[1, "setMetadata"] = FakeError(68)
    hyper = host()
    outcome = hyper.apply(changes(hyper, 1, 2))
    assert (1, "setMemory") not in world.written
    assert [move.domain for move in outcome.moves] == ["d2"]
    assert [(failure.domain, failure.code) for failure in outcome.failures] == [("d1", "busy")]


def test_a_record_that_libvirt_shows_but_could_not_store_is_taken_back(world: World) -> None:
    world.full.add((1, "setMetadata"))
    hyper = host()
    outcome = hyper.apply(changes(hyper, 1))
    assert world.written == [(1, "setMetadata")] * 2 and world.records[0] and world.records[1] is None
    assert [(failure.domain, failure.code) for failure in outcome.failures] == [("d1", "error")]


@pytest.mark.parametrize("call", ["setMetadata", "setMemory"])
def test_a_write_that_hangs_is_abandoned_and_the_others_are_made(world: World, call: str) -> None:
    hyper = host()
    planned = changes(hyper, 1, 2, 3)
    world.hangs = {(2, call)}
    outcome = hyper.apply(planned)
    assert [move.domain for move in outcome.moves] == ["d1", "d3"]
    assert [(failure.domain, failure.code) for failure in outcome.failures] == [("d2", "hung")]


@pytest.mark.parametrize("call", ["setMetadata", "setMemory"])
def test_after_a_restart_of_libvirt_the_same_change_is_made_once_more(world: World, call: str) -> None:
    hyper = host()
    planned = changes(hyper, 1, 2)
    world.losses = {(1, call)}
    outcome = hyper.apply(planned)
    assert [move.domain for move in outcome.moves] == ["d1", "d2"] and not outcome.failures
    assert world.written[-4:] == [(n, c) for n in (1, 2) for c in ("setMetadata", "setMemory")]


def test_when_libvirt_does_not_come_back_the_rest_is_not_tried(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> FakeConnection:
        world.opened += 1
        raise Unavailable("uri: libvirt can't be reached: Connection refused")

    hyper = host()
    planned = changes(hyper, *range(20))
    world.losses = {(1, "setMemory")}
    monkeypatch.setattr(connection, "_open", refuse)
    monkeypatch.setattr(connection, "_RESTART_S", 0.2)
    world.opened = 0
    outcome = hyper.apply(planned)
    assert [move.domain for move in outcome.moves] == ["d0"]
    assert {failure.code for failure in outcome.failures} == {"away"} and len(outcome.failures) == 19
    tried = world.opened
    with pytest.raises(Unavailable, match="Connection refused"):
        hyper.observe()
    assert world.opened == tried + 1, "after a loss it is waited for once, not in every call"


@pytest.mark.parametrize("code", [1, 38, 55])
@pytest.mark.parametrize(("active", "word"), [(0, "gone"), (1, "error")])
def test_a_domain_that_ends_in_a_change_is_told_from_one_that_refuses(
    world: World, code: int, active: int, word: str
) -> None:
    world.errors[1, "setMemory"] = FakeError(code)
    world.answers[1, "isActive"] = active
    hyper = host()
    outcome = hyper.apply(changes(hyper, 1))
    assert [failure.code for failure in outcome.failures] == [word]


@pytest.mark.parametrize(
    ("call", "answer"), [("jobInfo", [2]), ("controlInfo", [2, 0, 5000]), ("controlInfo", [3, 2, 0])]
)
def test_a_domain_that_became_busy_meanwhile_is_not_waited_for(world: World, call: str, answer: list[int]) -> None:
    hyper = host()
    planned = changes(hyper, 1, 2)
    world.answers[1, call] = answer
    outcome = hyper.apply(planned)
    assert [(failure.domain, failure.code) for failure in outcome.failures] == [("d1", "busy")]
    assert {number for number, _call in world.written} == {2}


def test_libvirt_keeps_workers_for_others_however_many_domains_hang(world: World) -> None:
    world.hangs = {(number, "statistics") for number in range(40)}
    hyper = host()
    snapshot = hyper.observe()
    assert len(snapshot.skips) == 40 and {skip.code for skip in snapshot.skips} == {"hung"}
    assert world.opened <= connection._MOST_ABANDONED + 1


def test_when_those_that_hang_used_up_their_time_the_healthy_are_still_asked(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.numbers = range(224)
    world.hangs = {(number, "statistics") for number in (3, 40)}
    # Healthy ones that take their time: all of a chunk need more than the least that a call gets.
    statistics = FakeConnection.domainListGetStats
    monkeypatch.setattr(
        FakeConnection,
        "domainListGetStats",
        lambda self, domains, *flags: world.clock.sleep(0.02 * len(domains)) or statistics(self, domains, *flags),
    )
    skips = host(deadline_s=5).observe().skips
    assert sorted(skip.domain for skip in skips) == ["d3", "d40"]


def test_a_domain_that_migrates_in_is_busy(world: World) -> None:
    """As libvirt told of it on the target of a live migration: code 84, for only its source knows how far it is."""
    world.numbers = range(1)
    hyper = host()
    planned = changes(hyper, 0)
    world.errors[0, "jobInfo"] = FakeError(84, text="migration statistics are available only on the source host")
    # Of a QEMU that must not be asked meanwhile, libvirt itself tells the size.
    world.answers[0, "statistics"] = {"balloon.maximum": 524288, "balloon.current": 400000}
    snapshot = hyper.observe()
    (domain,) = snapshot.domains
    assert domain.busy and domain.balloon and domain.balloon.actual_kib == 400000 and not snapshot.skips
    assert passes._failure(snapshot, Outcome((), ()), ()) is None
    assert [failure.code for failure in hyper.apply(planned).failures] == ["busy"]
    assert not world.written


@pytest.mark.parametrize(
    ("call", "code", "active", "word", "charged_kib"),
    [("vcpus", 55, 1, "busy", 524288), ("controlInfo", 55, 0, "gone", 0), ("XMLDesc", 42, 1, "gone", 0)],
    ids=["it has no vCPUs yet", "it just ended", "it is gone"],
)
def test_a_host_whose_only_domain_comes_or_goes_has_no_failed_pass(
    world: World, call: str, code: int, active: int, word: str, charged_kib: int
) -> None:
    """That such passes failed was seen; the codes here are made up. Who just starts will touch all of its memory."""
    world.numbers = range(1)
    world.errors[0, call] = FakeError(code)
    world.answers.update({(0, "isActive"): active, (0, "maxMemory"): 524288})
    snapshot = host().observe()
    assert [(skip.code, skip.untouched_kib) for skip in snapshot.skips] == [(word, charged_kib)]
    assert passes._failure(snapshot, Outcome((), ()), ()) is None


@pytest.mark.parametrize(("code", "failed"), [("gone", False), ("busy", False), ("denied", True), ("error", True)])
def test_a_pass_whose_only_domain_went_before_its_change_did_not_fail(world: World, code: Any, failed: bool) -> None:
    told = passes._failure(host().observe(), Outcome((), (Failure("d0", "u0", code, "why"),)), ())
    assert (told == "every change failed, d0: why") == failed == (told is not None)


@pytest.mark.parametrize("sick", ["hangs", "errors"])
def test_a_host_whose_only_domain_is_sick_has_a_failed_pass(world: World, sick: str) -> None:
    world.numbers = range(1)
    world.hangs = {(0, "statistics")} if sick == "hangs" else set()
    world.errors = {(0, "XMLDesc"): FakeError(1)} if sick == "errors" else {}
    now = host().observe()
    told = passes._failure(now, Outcome((), ()), ())
    assert told is not None and told.startswith("no domain could be observed, d0: ")
    plan, learnt = memory.decide((now,), config.MemoryPolicy())
    assert report.summary(passes.Result(now, plan, learnt, Outcome(), {}), check=False).endswith(", 1 skipped")


@pytest.mark.parametrize("code", [1, 38, 55])
@pytest.mark.parametrize(("active", "word"), [(0, "gone"), (1, "error")])
def test_a_domain_that_ends_while_it_is_read_is_told_from_one_that_refuses(
    world: World, code: int, active: int, word: str
) -> None:
    world.errors[3, "controlInfo"] = FakeError(code)
    world.answers[3, "isActive"] = active
    snapshot = host().observe()
    word = "busy" if active and code == 55 else word
    assert [(skip.domain, skip.code) for skip in snapshot.skips] == [("d3", word)]
    assert len(snapshot.domains) == 39


def test_what_hangs_may_still_touch_its_memory_and_what_is_gone_may_not(world: World) -> None:
    world.hangs = {(3, "statistics")}
    world.errors[5, "statistics"] = FakeError(42)
    skips = {skip.domain: skip for skip in host().observe().skips}
    assert {name: skip.untouched_kib for name, skip in skips.items()} == {"d3": 524288, "d5": 0}
    assert skips["d3"].rooms == (), "it shares none, and that is known"


@pytest.mark.parametrize("text", ["<domain><memory>much</memory></domain>", "no XML"])
def test_a_definition_that_cannot_be_understood_costs_only_that_domain_its_turn(world: World, text: str) -> None:
    world.answers[3, "XMLDesc"] = text
    snapshot = host().observe()
    assert [(skip.domain, skip.code) for skip in snapshot.skips] == [("d3", "unreadable")]
    assert len(snapshot.domains) == 39


LONG = f"<domain><description>{'x' * libvirt_xml.LONGEST}</description></domain>"


@pytest.mark.parametrize("text", [LONG, "no XML", None, "<domain><vcpu cpuset='0-16383,'/></domain>"])
def test_a_domain_whose_xml_is_out_of_bounds_is_charged_at_its_maximum(world: World, text: Optional[str]) -> None:
    world.answers[3, "XMLDesc"] = text
    world.answers[3, "maxMemory"] = 524288
    (skip,) = host().observe().skips
    assert (skip.domain, skip.code, skip.untouched_kib, skip.rooms) == ("d3", "unreadable", 524288, None)
    assert len(skip.reason) < 300


@pytest.mark.parametrize("odd", [None, [], "", "no", 5], ids=str)
def test_odd_statistics_cost_only_that_domain_its_turn(world: World, odd: Any) -> None:
    world.answers[3, "statistics"] = odd
    snapshot = host().observe()
    assert [(skip.domain, skip.code) for skip in snapshot.skips] == [("d3", "error")]
    assert len(snapshot.domains) == 39 and len(snapshot.skips[0].reason) < 300


@pytest.mark.parametrize("odd", [None, {}, {"state.state": None}, {"state.state": []}, [1]], ids=str)
def test_an_odd_state_is_an_unknown_one(world: World, monkeypatch: pytest.MonkeyPatch, odd: Any) -> None:
    listed = FakeConnection.getAllDomainStats
    monkeypatch.setattr(FakeConnection, "getAllDomainStats", lambda self, *f: [(d, odd) for d, _s in listed(self, *f)])
    snapshot = host().observe()
    assert {domain.state for domain in snapshot.domains} == {"unknown"} and len(snapshot.domains) == 40


def threads() -> int:
    return sum(thread.name == hypervisor.THREAD for thread in threading.enumerate())


def test_a_libvirtd_that_accepts_and_never_answers_is_not_asked_without_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it costs a thread and two descriptors with each attempt."""
    monkeypatch.setattr(connection, "_open", lambda *_arguments: world.over.wait() and FakeConnection(world))
    before, told = threads(), []
    for _attempt in range(200):
        hyper = Hypervisor("qemu:///system", read_only=False, deadline_s=0.001)
        with pytest.raises(Unavailable) as caught:
            hyper.observe()
        told.append(str(caught.value))
    assert threads() - before <= connection._MOST_HANGING + 1
    assert "did not answer within" in told[0] and "13 calls to libvirt at qemu:///system hang: no more" in told[-1]
    world.over.set()
    for thread in threading.enumerate():
        if thread.name == hypervisor.THREAD:
            thread.join(PATIENCE_S)
    assert threads() == 0 and hypervisor.hanging() == 0
    monkeypatch.setattr(connection, "_open", lambda *_arguments: FakeConnection(world))
    assert len(host().observe().domains) == 40, "once it answers, all is as it was"


def test_without_room_for_a_thread_a_pass_fails_in_one_line(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(Unavailable, match=r"no thread to ask libvirt at .*: can't start new thread"):
        host().observe()


def test_a_domain_whose_call_still_hangs_is_not_asked_again(world: World) -> None:
    world.hangs = {(3, "XMLDesc")}
    hyper = host()
    for _pass in range(20):
        assert [(skip.domain, skip.code) for skip in hyper.observe().skips] == [("d3", "hung")]
    assert hypervisor.hanging() == 2, "once among others, and once alone"
    world.over.set()
    while hypervisor.hanging():
        time.sleep(0.01)
    assert len(hyper.observe().domains) == 40


def test_a_domain_whose_change_still_hangs_is_not_asked_again(world: World) -> None:
    hyper = host()
    world.hangs = {(1, "setMemory")}
    planned = changes(hyper, 1, 2)
    assert [failure.code for failure in hyper.apply(planned).failures] == ["hung"]
    world.asked = []
    assert [(skip.domain, skip.code) for skip in hyper.observe().skips] == [("d1", "hung")]
    assert 1 not in {number for number, _call in world.asked}


def test_a_domain_that_is_named_is_read_again_alone(world: World) -> None:
    hyper = host()
    hyper.observe()
    read(world)
    assert len(hyper.observe("new", anew={"u5"}).domains) == 40 and read(world) == {5}


def test_a_change_that_was_given_up_writes_no_record_later(world: World) -> None:
    hyper = host()
    planned = changes(hyper, 1)
    world.hangs = {(1, "memoryStats")}
    assert [failure.code for failure in hyper.apply(planned).failures] == ["hung"]
    world.over.set()
    for thread in threading.enumerate():
        if thread.name == hypervisor.THREAD and thread is not threading.current_thread():
            thread.join(PATIENCE_S)
    assert not world.written


WRAPPED_KIB = 18014398492000000


def told(world: World, number: int, **balloon: object) -> Domain:
    """One domain, where its statistics have these values."""
    record = {"vcpu.0.time": 5, "balloon.maximum": 524288, "balloon.current": 400000, "balloon.rss": 1}
    changed = {f"balloon.{name}": value for name, value in balloon.items()}
    world.answers[number, "statistics"] = {**record, "balloon.usable": 5000, **changed}
    (domain,) = (domain for domain in host().observe().domains if domain.name == f"d{number}")
    return domain


def test_a_guest_that_tells_more_than_its_maximum_may_have_all_of_that(world: World) -> None:
    balloon = told(world, 3, current=WRAPPED_KIB).balloon
    assert balloon and (balloon.actual_kib, balloon.usable_kib) == (524288, None)


def test_before_a_size_is_taken_for_too_large_its_definition_is_read_anew(world: World) -> None:
    """A DIMM was plugged since: libvirt tells the new maximum in its statistics, the definition what it is made of."""
    hyper = host()
    hyper.observe()
    read(world)
    dimm = "<memory model='nvdimm'><target><size>262144</size></target></memory>"
    world.answers[3, "XMLDesc"] = XML.replace("524288", "786432").replace("<devices>", f"<devices>{dimm}")
    world.answers[3, "statistics"] = {"balloon.maximum": 786432, "balloon.current": 524288, "balloon.rss": 1}
    domains = {domain.name: domain for domain in hyper.observe("none").domains}
    assert read(world) == {3}
    balloon = domains["d3"].balloon
    assert balloon and (balloon.actual_kib, balloon.maximum_kib, balloon.fixed_kib) == (524288, 786432, 262144)


def recorded(text: str, record: Record) -> str:
    """The XML of a domain with *record*, as libvirt keeps it."""
    kept = baseline.encode(record).replace("<state ", f'<k:state xmlns:k="{baseline.STATE_URI}" ')
    return text.replace("<domain>", f"<domain><metadata>{kept.replace('</state>', '</k:state>')}</metadata>")


def test_a_record_is_read_as_if_a_dimm_had_always_been_there(world: World) -> None:
    part = MemoryRecord(262144, 262144, 196608, 1, most_kib=262144)
    world.answers[3, "XMLDesc"] = recorded(XML, Record("host", 3, part))
    domain = told(world, 3, current=196608 + 262144)
    assert domain.record and domain.record.memory == MemoryRecord(524288, 524288, 458752, 1, most_kib=524288)


@pytest.mark.parametrize("odd", [None, "much", -1, 2**64, [], True], ids=str)
def test_an_odd_time_of_a_vcpu_is_not_known(world: World, odd: object) -> None:
    world.answers[3, "statistics"] = {"vcpu.0.time": odd, "vcpu.0.delay": odd, "vcpu.x.time": 1, "vcpu.-1.time": 1}
    (domain,) = (domain for domain in host().observe().domains if domain.name == "d3")
    assert [(vcpu.id, vcpu.time_ns, vcpu.delay_ns) for vcpu in domain.vcpus] == [(0, None, None)]


def test_a_record_that_could_not_be_read_again_costs_only_its_own_domain_the_change(world: World) -> None:
    hyper = host()
    planned = changes(hyper, 1, 2)
    forged = Record("host", 1, MemoryRecord(10**17, 400000, 300000, 1))
    planned[0] = replace(planned[0], record=forged)
    outcome = hyper.apply(planned)
    assert [move.domain for move in outcome.moves] == ["d2"]
    assert [(failure.domain, failure.code) for failure in outcome.failures] == [("d1", "error")]
    assert {number for number, _call in world.written} == {2}


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> procfs.Process:
    """The process of every domain, as this machine's kernel would tell of it."""
    running = procfs.Process(42, 0.0, False)
    monkeypatch.setattr(procfs, "qemu_process", lambda _name, _session: running)
    monkeypatch.setattr(procfs.Process, "again", lambda self: self)
    monkeypatch.setattr(procfs.Process, "resumed", False)
    monkeypatch.setattr(procfs.Process, "memory", procfs.ProcessMemory(7, 5, 3))
    return running


@pytest.mark.parametrize(("machine", "high_kib"), [(("/g",), None), ((), 65536)])
def test_what_the_kernel_tells_of_a_process_goes_before_its_definition(
    world: World, process: procfs.Process, monkeypatch: pytest.MonkeyPatch, machine: tuple[str, ...], high_kib: object
) -> None:
    """Version 1 of the control groups throttles nobody for a soft limit; where no group is seen, it may be 2."""
    groups = cgroups.Groups(machine)
    monkeypatch.setattr(cgroups, "of_process", lambda _pid: groups)
    world.answers[3, "XMLDesc"] = XML.replace("<devices>", "<memtune><soft_limit>65536</soft_limit></memtune><devices>")
    world.answers[3, "statistics"] = {"vcpu.0.time": 5, "balloon.maximum": 524288, "balloon.current": 400000}
    HOSTS.append(Hypervisor("qemu:///system", read_only=False, deadline_s=5, parts=["memory"]))
    (domain,) = (domain for domain in HOSTS[-1].observe().domains if domain.name == "d3")
    balloon = domain.balloon
    assert balloon and (balloon.rss_kib, balloon.locked_kib, balloon.swapped_kib) == (7, 5, 3)
    assert balloon.high_kib == high_kib


TWO_CELLS = (
    "<capabilities><host><uuid>host</uuid><topology><cells><cell id='0'><cpus><cpu id='0'/></cpus></cell>"
    "<cell id='1'><cpus><cpu id='1'/></cpus></cell></cells></topology></host></capabilities>"
)
AUTOMATIC = (
    "<domain><memory>524288</memory><vcpu placement='auto'>2</vcpu><cputune>{pin}</cputune>"
    "<numatune><memory mode='strict' placement='auto'/></numatune>"
    "<devices><memballoon model='virtio'/></devices></domain>"
)


EMULATOR = "<emulatorpin cpuset='0-1'/>"
BACK = "<vcpupin vcpu='0' cpuset='1'/><vcpupin vcpu='1' cpuset='1'/>"


def automatic(world: World, monkeypatch: pytest.MonkeyPatch, text: str, pins: list[Any], emulator: Any) -> Domain:
    monkeypatch.setattr(FakeConnection, "getCapabilities", lambda self: TWO_CELLS)
    world.answers.update({(3, "XMLDesc"): text, (3, "vcpuPinInfo"): pins, (3, "emulatorPinInfo"): emulator})
    return next(domain for domain in host().observe().domains if domain.name == "d3")


@pytest.mark.parametrize(
    ("pin", "reported", "emulator"),
    [
        ("", [(False, True), (False, True)], (False, True)),
        ("<vcpupin vcpu='0' cpuset='0'/>", [(True, False), (False, True)], (False, True)),  # beyond the nodeset
        ("<vcpupin vcpu='0' cpuset='0'/>" + EMULATOR, [(True, False), (False, True)], (True, True)),
        ("<vcpupin vcpu='0' cpuset='0'/><vcpupin vcpu='1' cpuset='0'/>", [(True, False)] * 2, (False, True)),
        (BACK, [(False, True)] * 2, (False, True)),  # as a release leaves it
        (BACK + EMULATOR, [(False, True)] * 2, (True, True)),
    ],
)
def test_an_automatic_nodeset_binds_vcpus_and_memory(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    pin: str,
    reported: list[tuple[bool, bool]],
    emulator: tuple[bool, bool],
) -> None:
    """It stands in no XML. A fake, for it takes numad and two cells."""
    domain = automatic(world, monkeypatch, AUTOMATIC.format(pin=pin), reported, emulator)
    assert domain.numa_pcpus == {1} and domain.balloon and domain.balloon.cells == {1}


def test_threads_without_a_pin_run_in_the_automatic_nodeset(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is their original once they are pinned; vCPUs may have gaps, and libvirt tells the first pins alone."""
    text = AUTOMATIC.format(pin="<iothreadpin iothread='2' cpuset='0'/>").replace(
        "<vcpu ", "<iothreads>2</iothreads><vcpu "
    )
    world.answers[3, "statistics"] = {"vcpu.0.time": 5, "vcpu.2.time": 5}
    domain = automatic(world, monkeypatch, text, [(False, True)] * 2, (False, True))
    assert [(thread.kind, thread.pin) for thread in domain.threads] == [
        ("emulator", {1}),
        ("iothread", {1}),
        ("iothread", {0}),
    ]
    assert [(vcpu.id, vcpu.pin) for vcpu in domain.vcpus] == [(0, {1}), (2, {1})]


def test_only_of_an_automatic_domain_libvirt_is_asked_for_pins(world: World) -> None:
    host().observe()
    assert not {call for _number, call in world.asked} & {"vcpuPinInfo", "emulatorPinInfo"}


@pytest.mark.parametrize(
    ("host_uuid", "previous", "known"), [("host", {0, 1}, {0, 1}), ("elsewhere", {0, 1}, {0}), ("host", {0}, {0})]
)
def test_where_all_is_pinned_the_automatic_nodeset_is_what_was_recorded_here(
    world: World, monkeypatch: pytest.MonkeyPatch, host_uuid: str, previous: set[int], known: set[int]
) -> None:
    """Not on another host, nor from a person: there the pins of now are all that is known."""
    pin = PinRecord("vcpu", 0, frozenset(previous), frozenset(previous), frozenset({0}), 1)
    text = AUTOMATIC.format(pin="<vcpupin vcpu='0' cpuset='0'/>" + EMULATOR)
    text = recorded(text, Record(host_uuid, 3, pins=(pin,)))
    domain = automatic(world, monkeypatch, text, [(True, False)], (True, True))
    assert domain.record and domain.numa_pcpus == known


UNPLUGGED = PinRecord("vcpu", 1, frozenset({0, 1}), frozenset({0, 1}), frozenset({0}), 1)


def with_unplugged(world: World) -> Hypervisor:
    """Of domain d3 vCPU 1 is unplugged, and still has the pin that is on record; vCPU 2 is, too, with another's pin."""
    pins = "".join(f"<vcpupin vcpu='{number}' cpuset='0'/>" for number in range(3))
    text = f"<domain><memory>524288</memory><cputune>{pins}</cputune></domain>"
    kept = Record("host", 3, pins=(UNPLUGGED, replace(UNPLUGGED, id=5)))
    world.answers[3, "XMLDesc"] = recorded(text, kept)
    return host()


def test_an_unplugged_vcpu_is_seen_while_our_pin_of_it_stands(world: World) -> None:
    hyper = with_unplugged(world)
    domain = next(domain for domain in hyper.observe().domains if domain.name == "d3")
    assert [vcpu.id for vcpu in domain.vcpus] == [0] and domain.unplugged == {("vcpu", 1)}
    assert domain.threads[-1].pin == {0}
    world.answers[3, "statistics"] = {"vcpu.0.time": 5000, "vcpu.1.time": 5000}
    domain = next(domain for domain in hyper.observe().domains if domain.name == "d3")
    assert [vcpu.id for vcpu in domain.vcpus] == [0, 1] and not domain.unplugged


@pytest.mark.parametrize(("number", "word"), [(0, "error"), (1, "gone")])
def test_a_driver_that_pins_no_unplugged_vcpu_fails_no_release(world: World, number: int, word: str) -> None:
    """libvirt's test driver is one."""
    hyper = with_unplugged(world)
    domain = next(domain for domain in hyper.observe().domains if domain.name == "d3")
    both = frozenset({0, 1})
    emulator = PinMove("d3", "u3", 0, frozenset({0}), both, "released", thread="emulator")
    world.errors[3, "pinVcpu"] = FakeError(8, text="requested vcpu '1' is not present in the domain")
    pin = replace(emulator, id=number, thread="vcpu")
    outcome = hyper.apply([Change(domain, domain.record, (emulator, pin))])
    assert outcome.moves == (emulator,) and [failure.code for failure in outcome.failures] == [word]


GUEST_CELLS = (
    "<domain><memory>524288</memory><vcpu>2</vcpu><numatune><memnode cellid='0' nodeset='1'/>"
    "<memnode cellid='1' nodeset='2'/></numatune><cpu><numa><cell cpus='0'/><cell cpus='1'/></numa></cpu></domain>"
)
WITH_MEMORY_ONLY = TWO_CELLS.replace("</cells>", "<cell id='2'><cpus/></cell></cells>")


def test_a_guest_cell_binds_its_vcpus_to_where_its_memory_is(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cell 2 has memory only: that limits nobody."""
    monkeypatch.setattr(FakeConnection, "getCapabilities", lambda self: WITH_MEMORY_ONLY)
    world.answers[3, "XMLDesc"] = GUEST_CELLS
    world.answers[3, "statistics"] = {"vcpu.0.time": 5, "vcpu.1.time": 5}
    domain = next(domain for domain in host().observe().domains if domain.name == "d3")
    assert [vcpu.numa_pcpus for vcpu in domain.vcpus] == [{1}, None] and domain.numa_pcpus == {1}


def with_pin(cpuset: str) -> str:
    pins = f"<vcpupin vcpu='0' cpuset='{cpuset}'/><emulatorpin cpuset='{cpuset}'/>"
    return f"<domain><memory>524288</memory><cputune>{pins}</cputune></domain>"


def test_a_transient_domain_keeps_the_pins_that_it_was_first_seen_with(world: World) -> None:
    world.answers[3, "XMLDesc"] = with_pin("0")
    hyper = host()
    for pin in ("0", "1"):
        world.answers[3, "XMLDesc"] = with_pin(pin)
        domain = next(domain for domain in hyper.observe().domains if domain.name == "d3")
        assert domain.vcpus[0].pin == {int(pin)} and domain.vcpus[0].definition == {0}
        assert domain.threads[0].pin == {int(pin)} and domain.threads[0].definition == {0}
        assert not domain.persistent and domain.start_unknown, "from afar nobody knows when it began"
    world.ids[3] = 99
    domain = next(domain for domain in hyper.observe().domains if domain.name == "d3")
    assert domain.vcpus[0].definition == {1}, "another run"


@pytest.mark.parametrize(("ago_s", "unknown"), [(5.0, False), (3600.0, True)])
def test_who_is_seen_at_its_start_has_the_pins_that_it_began_with(ago_s: float, unknown: bool) -> None:
    process = procfs.Process(1, time.time() - ago_s, False)
    live = parse_domain(with_pin("0"), frozenset({0, 1}))
    assert host()._reader._definitions.start(Domain("u", "d", 3), live, process).sure != unknown


def test_a_persistent_definition_tells_the_pins_of_all_threads(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeConnection, "listAllDomains", lambda self, *_flags: [FakeDomain(self, 3)])
    world.answers[3, "XMLDesc"] = with_pin("1")
    domain = next(domain for domain in host().observe().domains if domain.name == "d3")
    assert domain.persistent and not domain.start_unknown
    assert domain.vcpus[0].definition == domain.threads[0].definition == {1}


RECORDED = Record("host", 3, MemoryRecord(500000, 500000, 400000, 1000))


@pytest.mark.parametrize(
    ("live", "number", "started_s", "resumed", "told"),
    [
        (None, 3, 0.0, False, baseline.COPY),  # defined with it, and running since before
        (RECORDED, 4, 2000.0, False, baseline.COPY),  # began with it
        (RECORDED, 4, 0.0, False, baseline.COPY),  # the same, and the clock was set back
        (RECORDED, 3, 500.0, False, None),  # defined by its own live XML
        (RECORDED, 3, 2000.0, False, baseline.DOUBTFUL),  # the same, and the clock was set forward; or an id came again
        (RECORDED, 4, 2000.0, True, baseline.DOUBTFUL),  # one of these two, saved and restored since
        (replace(RECORDED, domain_id=9), 3, 2000.0, True, None),  # changed since
    ],
)
def test_a_record_that_a_domain_began_with_is_a_copy(
    monkeypatch: pytest.MonkeyPatch,
    live: Optional[Record],
    number: int,
    started_s: float,
    resumed: bool,
    told: Optional[str],
) -> None:
    monkeypatch.setattr(procfs.Process, "resumed", resumed)
    domain, process = Domain("u", "d", number), procfs.Process(1, started_s, False)
    assert described._copied(live, RECORDED, domain, process) == told
    assert described._copied(live, None, domain, process) is None
    # From afar, where no process is seen, less is sure.
    assert (described._copied(live, RECORDED, domain, None) is None) == (live not in (None, RECORDED))


def test_what_is_not_observed_anew_is_as_it_was(world: World) -> None:
    hyper = host()
    hyper.observe()
    world.answers[0, "statistics"] = {"vcpu.0.time": 7999, "balloon.maximum": 524288, "balloon.rss": 1}
    (again, *_others) = hyper.observe("none").domains
    assert again.balloon and again.balloon.period_s == 1 and again.vcpus[0].time_ns == 7000, "to the microsecond"
    world.ids[0] = 99
    (restarted, *_others) = hyper.observe("none").domains
    assert restarted.balloon and restarted.balloon.period_s == 0, "another run of it is not known yet"


def test_what_is_observed_is_recorded_exactly(world: World, tmp_path: Path) -> None:
    """A decision is made anew from a record as it was made at first: nothing may be lost between."""
    hyper, encoder, looks = host(), Encoder(), []
    for number in range(4):
        figures = {"vcpu.0.time": 7_999 * number, "vcpu.0.delay": 3_333 * number, "balloon.rss": 1 + number}
        world.answers[0, "statistics"] = {"balloon.maximum": 524288, "balloon.current": 400000 + number, **figures}
        seen = hyper.observe("new" if number % 2 else "all")
        # The clock of this test stands still.
        looks.append(replace(seen, monotonic_s=seen.monotonic_s + 5 * number))
    lines = [encoder.line(Entry(look)) for look in looks]
    (tmp_path / "r").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    assert [look.snapshot for look in record.read([str(tmp_path / "r")])] == looks
    assert sum('"snapshots"' in line for line in lines) == 1


def read(world: World) -> set[int]:
    """Whose XML was asked for since the last call."""
    numbers = {number for number, call in world.asked if call == "XMLDesc"}
    world.asked = []
    return numbers


def test_only_new_runs_are_read_again(world: World) -> None:
    hyper = host()
    hyper.observe()
    assert read(world) == set(range(40))
    first = hyper.observe("new")
    assert read(world) == set() and first.domains[0].vcpus[0].time_ns == 5000
    assert hyper.observe().domains == first.domains, "what is not read is as it was"
    read(world)
    world.ids[3], world.numbers = 99, range(41)
    domains = {domain.name: domain for domain in hyper.observe("new").domains}
    assert read(world) == {3, 40} and len(domains) == 41
    assert all(domain.balloon and domain.balloon.period_s == 1 for domain in domains.values())


def test_what_failed_is_read_again(world: World) -> None:
    hyper = host()
    world.errors[3, "statistics"] = FakeError(1)
    assert [skip.domain for skip in hyper.observe().skips] == ["d3"]
    read(world)
    del world.errors[3, "statistics"]
    assert len(hyper.observe("new").domains) == 40 and read(world) == {3}


def test_over_another_connection_all_is_read_again(world: World) -> None:
    hyper = host()
    hyper.observe()
    read(world)
    world.losses = {(1, "statistics")}
    assert len(hyper.observe("new").domains) == 40 and read(world) == set()
    assert len(hyper.observe("new").domains) == 40 and read(world) == set(range(40))


def test_a_write_that_was_given_up_goes_no_further_when_it_answers_at_last(world: World) -> None:
    hyper = host()
    planned = changes(hyper, 2)
    world.hangs = {(2, "setMetadata")}
    assert hyper.apply(planned).failures[0].code == "hung"
    world.over.set()
    for thread in threading.enumerate():
        if thread.name == hypervisor.THREAD:
            thread.join(PATIENCE_S)
    assert world.written == [(2, "setMetadata")]


def test_a_run_that_began_between_record_and_change_gets_the_record_too(world: World) -> None:
    """Else nobody could tell what it was before the change that was meant for the run before it."""
    hyper = host()
    planned = changes(hyper, 1)
    world.restarts.add((1, "setMetadata"))
    hyper.apply(planned)
    assert world.written == [(1, "setMetadata"), (1, "setMemory"), (1, "setMetadata")]
    assert world.records[0] == world.records[1]


def test_a_domain_that_has_more_than_was_known_is_not_shrunk_by_what_was_planned(world: World) -> None:
    """libvirt's word may be old, and what a guest is known to use is taken from it. Giving less than it has, too."""
    hyper = host()
    planned = changes(hyper, 1, 2)
    give = BalloonMove("d2", "u2", 400000, 450000, "because")
    planned[1] = replace(planned[1], moves=(give,))
    world.answers[1, "memoryStats"] = world.answers[2, "memoryStats"] = {"actual": 500000}
    outcome = hyper.apply(planned)
    assert [(failure.domain, failure.code) for failure in outcome.failures] == [("d1", "busy"), ("d2", "busy")]
    assert "its QEMU says that it has 488M, libvirt said 391M" in outcome.failures[0].reason
    assert world.written == []


@pytest.mark.parametrize("word", [{}, {"actual": 300000}, {"actual": 400100}])
def test_a_domain_with_no_more_than_was_known_is_changed(world: World, word: dict[str, int]) -> None:
    hyper = host()
    planned = changes(hyper, 1)
    world.answers[1, "memoryStats"] = word
    assert len(hyper.apply(planned).moves) == 1


def test_what_begins_while_nothing_is_read_must_not_be_given_a_record(world: World) -> None:
    hyper = host()
    hyper.observe()
    world.ids[1] = 99
    begun = next(domain for domain in hyper.observe("none").domains if domain.name == "d1")
    assert begun.id == 99 and begun.record_error == "its definition was not read: it began meanwhile"
    again = next(domain for domain in hyper.observe("new").domains if domain.name == "d1")
    assert again.record_error is None and again.balloon and again.balloon.period_s == 1


def test_a_domain_that_was_restarted_meanwhile_is_not_changed(world: World) -> None:
    hyper = host()
    planned = changes(hyper, 1)
    world.ids[1] = 99
    outcome = hyper.apply(planned)
    assert world.written == [] and outcome.failures[0].code == "gone"


@pytest.mark.parametrize(
    ("code", "domain", "word"),
    [
        (42, 10, "gone"),
        (55, 10, "error"),
        (68, 10, "busy"),
        (29, 20, "denied"),
        (88, 55, "denied"),
        (74, 10, "unsupported"),
        (1, 10, "error"),
    ],
)
def test_errors_have_names(world: World, code: int, domain: int, word: str) -> None:
    assert hypervisor.explain(FakeError(code, domain))[0] == word


def test_a_line_gives_its_connection_back(world: World) -> None:
    line = Line("test", read_only=True)
    assert line.run(lambda connection: connection.getType(), 5) == "QEMU"
    line.close()
    end_s = time.monotonic() + PATIENCE_S
    while not world.closed:
        assert time.monotonic() < end_s
        time.sleep(0.01)
    assert world.closed == 1


@pytest.mark.parametrize(
    "uri", ["", "qemu", "qemu+ssh://[::1/system", "test:///default\n", "test:///a\0b", "qemu:/// x"]
)
def test_what_is_no_uri_is_refused_in_one_line(uri: str) -> None:
    with pytest.raises(ValueError, match=r"uri: got .*, allowed: qemu:///system or ") as caught:
        Hypervisor(uri, read_only=True, deadline_s=1)
    assert str(caught.value) == hypervisor.acting_refusal(uri) and len(str(caught.value).splitlines()) == 1


def test_only_this_host_may_be_changed() -> None:
    for uri in ("qemu:///system", "qemu:///session", "test:///default"):
        assert hypervisor.acting_refusal(uri) is None
    for uri in ("qemu+ssh://host/system", "xen:///", "lxc:///", "", "qemu:///embed?root=/x"):
        assert "allowed: qemu:///system" in str(hypervisor.acting_refusal(uri))


@pytest.mark.parametrize("instant", [*faulty.INSTANTS, *faulty.ARRIVAL])
def test_the_fault_tests_find_their_instants(instant: str) -> None:
    """They hook functions by name, on real guests only: a new name must be seen here, where it costs nothing."""
    place, name = {**faulty.INSTANTS, **faulty.ARRIVAL}[instant]
    assert callable(getattr(place, name, None)), f"{place.__name__} has no {name}"
