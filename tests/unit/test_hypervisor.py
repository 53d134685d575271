# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What hangs or fails at an exact instant, and what that costs: one domain its turn, never the pass.

libvirt is a fake here, because a real one can't be made to hang in a chosen call.
The same faults on real guests are in tests/integration.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Optional

import pytest
from kvmsched import baseline, hypervisor, procfs
from kvmsched.hypervisor import Change, Hypervisor, Line, Unavailable
from kvmsched.model import BalloonMove, Domain, MemoryRecord, PinRecord, Record

CAPABILITIES = "<capabilities><host><uuid>host</uuid></host></capabilities>"
XML = (
    "<domain><memory unit='KiB'>524288</memory>"
    "<devices><memballoon model='virtio'><stats period='1'/></memballoon></devices></domain>"
)


class FakeError(Exception):
    """Stands for libvirt.libvirtError."""

    def __init__(self, code: int, domain: int = 10, text: str = "it failed") -> None:
        super().__init__(text)
        self._code, self._domain = code, domain

    def get_error_code(self) -> int:
        return self._code

    def get_error_domain(self) -> int:
        return self._domain

    def get_int1(self) -> int:
        return -1


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


class World:
    """A host with domains d0..dN. A call in ``hangs`` blocks until the test ends, one in ``errors`` fails; once,
    one in ``losses`` loses its connection, one in ``restarts`` starts its domain anew; ``answers`` are other
    than a healthy domain's.
    """

    def __init__(self, domains: int) -> None:
        self.numbers = range(domains)
        self.ids: dict[int, int] = {}
        self.hangs: set[tuple[int, str]] = set()
        self.errors: dict[tuple[int, str], FakeError] = {}
        self.losses: set[tuple[int, str]] = set()
        self.restarts: set[tuple[int, str]] = set()
        self.answers: dict[tuple[int, str], Any] = {}
        self.over = threading.Event()
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
        return {
            "XMLDesc": XML,
            "controlInfo": [0, 0, 0],
            "jobInfo": [0],
            "isActive": 1,
            "vcpus": ([(0, 1, 0, 0)], [(True, True)]),
            "memoryStats": {"actual": 400000, "rss": 1},
            "statistics": {"vcpu.0.time": 5, "balloon.maximum": 524288, "balloon.current": 400000, "balloon.rss": 1},
        }.get(call, 0)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World(40)  # more than one bulk call's worth
    constants = {
        "libvirtError": FakeError,
        "VIR_ERR_NO_DOMAIN": 42,
        "VIR_ERR_OPERATION_TIMEOUT": 68,
        "VIR_ERR_OPERATION_DENIED": 29,
        "VIR_ERR_ACCESS_DENIED": 88,
        "VIR_ERR_NO_SUPPORT": 3,
        "VIR_ERR_ARGUMENT_UNSUPPORTED": 74,
        "VIR_ERR_OPERATION_INVALID": 55,
        "VIR_FROM_RPC": 7,
        "VIR_DOMAIN_CONTROL_OCCUPIED": 2,
        "VIR_DOMAIN_CONTROL_ERROR": 3,
        "VIR_DOMAIN_JOB_NONE": 0,
        "VIR_DOMAIN_METADATA_ELEMENT": 2,
        "VIR_DOMAIN_AFFECT_LIVE": 1,
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

    monkeypatch.setattr(hypervisor, "libvirt", SimpleNamespace(**constants))
    monkeypatch.setattr(hypervisor, "_open", open_fake)
    # A remote URI: nothing is read from this machine's /proc.
    monkeypatch.setattr(hypervisor, "_host_memory", lambda _connection: None)
    # What a test injects, it does not have to wait for as long as a host would.
    monkeypatch.setattr(hypervisor, "_STALL_S", 0.1)
    monkeypatch.setattr(hypervisor, "_STALL_PER_DOMAIN_S", 0.005)
    yield world
    world.over.set()
    while HOSTS:
        HOSTS.pop().close()
    for thread in threading.enumerate():
        if thread.name == hypervisor.THREAD:
            thread.join(5)


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
    monkeypatch.setattr(hypervisor, "_open", lambda *_arguments: world.over.wait() and FakeConnection(world))
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
    monkeypatch.setattr(hypervisor, "_open", refuse)
    monkeypatch.setattr(hypervisor, "_RESTART_S", 0.2)
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
    assert world.opened <= hypervisor._MOST_ABANDONED + 1


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
        lambda self, domains, *flags: time.sleep(0.002 * len(domains)) or statistics(self, domains, *flags),
    )
    skips = host(deadline_s=0.5).observe().skips
    assert sorted(skip.domain for skip in skips) == ["d3", "d40"]


@pytest.mark.parametrize("code", [1, 38, 55])
@pytest.mark.parametrize(("active", "word"), [(0, "gone"), (1, "error")])
def test_a_domain_that_ends_while_it_is_read_is_told_from_one_that_refuses(
    world: World, code: int, active: int, word: str
) -> None:
    world.errors[3, "controlInfo"] = FakeError(code)
    world.answers[3, "isActive"] = active
    snapshot = host().observe()
    assert [(skip.domain, skip.code) for skip in snapshot.skips] == [("d3", word)]
    assert len(snapshot.domains) == 39


def test_what_hangs_may_still_touch_its_memory_and_what_is_gone_may_not(world: World) -> None:
    world.hangs = {(3, "statistics")}
    world.errors[5, "statistics"] = FakeError(42)
    skips = {skip.domain: skip for skip in host().observe().skips}
    assert {name: skip.untouched_kib for name, skip in skips.items()} == {"d3": 524288, "d5": 0}


@pytest.mark.parametrize("text", ["<domain><memory>much</memory></domain>", "no XML"])
def test_a_definition_that_cannot_be_understood_costs_only_that_domain_its_turn(world: World, text: str) -> None:
    world.answers[3, "XMLDesc"] = text
    snapshot = host().observe()
    assert [(skip.domain, skip.code) for skip in snapshot.skips] == [("d3", "error")]
    assert len(snapshot.domains) == 39


def test_a_change_that_was_given_up_writes_no_record_later(world: World) -> None:
    hyper = host()
    planned = changes(hyper, 1)
    world.hangs = {(1, "memoryStats")}
    assert [failure.code for failure in hyper.apply(planned).failures] == ["hung"]
    world.over.set()
    for thread in threading.enumerate():
        if thread.name == hypervisor.THREAD and thread is not threading.current_thread():
            thread.join(1)
    assert not world.written


@pytest.mark.parametrize(
    ("files", "left_kib"),
    [
        ({"memory.max": "max\n", "memory.current": "4096\n"}, None),
        ({"memory.max": "8192\n", "memory.current": "6144\n", "memory.stat": "anon 1\n"}, 2),
        (
            {
                "memory.max": "8192\n",
                "memory.current": "9216\n",
                "memory.stat": "inactive_anon 9\ninactive_file 1024\nactive_file 2048\n",
            },
            2,
        ),
        (
            {
                "memory.limit_in_bytes": "8192\n",
                "memory.usage_in_bytes": "10240\n",
                "memory.stat": "active_file 9\ntotal_inactive_file 0\ntotal_active_file 1024\n",
            },
            0,
        ),
        ({"memory.limit_in_bytes": "9223372036854771712\n", "memory.usage_in_bytes": "1\n"}, None),
        ({}, None),
    ],
)
def test_what_is_left_of_a_cgroup(tmp_path: Path, files: dict[str, str], left_kib: Optional[int]) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert procfs.room_left_kib(str(tmp_path)) == left_kib


TWO_CELLS = (
    "<capabilities><host><uuid>host</uuid><topology><cells><cell id='0'><cpus><cpu id='0'/></cpus></cell>"
    "<cell id='1'><cpus><cpu id='1'/></cpus></cell></cells></topology></host></capabilities>"
)
AUTOMATIC = (
    "<domain><memory>524288</memory><vcpu placement='auto'>2</vcpu><cputune>{pin}</cputune>"
    "<numatune><memory mode='strict' placement='auto'/></numatune>"
    "<devices><memballoon model='virtio'/></devices></domain>"
)


@pytest.mark.parametrize(
    ("pin", "reported"),
    [
        ("", [(False, True), (False, True)]),
        ("<vcpupin vcpu='0' cpuset='0'/>", [(True, False), (False, True)]),  # somebody's, beyond the nodeset
    ],
)
def test_an_automatic_nodeset_binds_vcpus_and_memory(
    world: World, monkeypatch: pytest.MonkeyPatch, pin: str, reported: list[tuple[bool, bool]]
) -> None:
    """It stands in no XML. A fake, for it takes numad and two cells."""
    monkeypatch.setattr(FakeConnection, "getCapabilities", lambda self: TWO_CELLS)
    world.answers[3, "XMLDesc"] = AUTOMATIC.format(pin=pin)
    world.answers[3, "vcpuPinInfo"] = reported
    (domain,) = (domain for domain in host().observe().domains if domain.name == "d3")
    assert domain.numa_pcpus == {1} and domain.balloon and domain.balloon.cells == {1}


@pytest.mark.parametrize(
    ("host_uuid", "previous", "known"), [("host", {0, 1}, {0, 1}), ("elsewhere", {0, 1}, None), ("host", {0}, None)]
)
def test_where_all_is_pinned_the_automatic_nodeset_is_what_was_recorded_here(
    world: World, monkeypatch: pytest.MonkeyPatch, host_uuid: str, previous: set[int], known: Optional[set[int]]
) -> None:
    """Not on another host, nor from a person."""
    monkeypatch.setattr(FakeConnection, "getCapabilities", lambda self: TWO_CELLS)
    pin = PinRecord("vcpu", 0, frozenset(previous), frozenset(previous), frozenset({0}), 1)
    kept = baseline.encode(Record(host_uuid, 3, pins=(pin,)))
    kept = kept.replace("<state ", f'<k:state xmlns:k="{baseline.STATE_URI}" ').replace("</state>", "</k:state>")
    text = AUTOMATIC.format(pin="<vcpupin vcpu='0' cpuset='0'/>").replace(
        "<memory>", f"<metadata>{kept}</metadata><memory>"
    )
    world.answers[3, "XMLDesc"] = text
    world.answers[3, "vcpuPinInfo"] = [(True, False)]
    (domain,) = (domain for domain in host().observe().domains if domain.name == "d3")
    assert domain.record and domain.numa_pcpus == known


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
    assert hypervisor._copied(live, RECORDED, domain, process) == told
    assert hypervisor._copied(live, None, domain, process) is None
    # From afar, where no process is seen, less is sure.
    assert (hypervisor._copied(live, RECORDED, domain, None) is None) == (live not in (None, RECORDED))


def test_what_is_not_observed_anew_is_as_it_was(world: World) -> None:
    hyper = host()
    hyper.observe()
    world.answers[0, "statistics"] = {"vcpu.0.time": 7, "balloon.maximum": 524288, "balloon.rss": 1}
    (again, *_others) = hyper.observe("none").domains
    assert again.balloon and again.balloon.period_s == 1 and again.vcpus[0].time_ns == 7
    world.ids[0] = 99
    (restarted, *_others) = hyper.observe("none").domains
    assert restarted.balloon and restarted.balloon.period_s == 0, "another run of it is not known yet"


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
    assert read(world) == set() and first.domains[0].vcpus[0].time_ns == 5
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
            thread.join(5)
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
    assert "its QEMU says that it has 488M, 391M was known" in outcome.failures[0].reason
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
    for _turn in range(100):
        if world.closed:
            break
        threading.Event().wait(0.01)
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
