# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The only room that knows libvirt: observe() a host, apply() changes to it, survive what hangs.

libvirt bounds hardly any call: a QEMU that does not answer its monitor blocks a bulk statistics
call for ever. So calls run in a daemon thread with a connection of its own; one that stalls is
abandoned with its connection, and the pass goes on with the other domains on a new one. The
question that was abandoned stays open at that QEMU, which libvirt tells without asking it: no
later pass asks such a domain again before it has answered.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import queue
import re
import socket
import threading
import time
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Generic, Iterable, Literal, Optional, Sequence, TypeVar
from urllib.parse import SplitResult, urlsplit

from . import baseline, libvirt_xml, procfs
from .model import (
    BALLOON_TOLERANCE_KIB,
    Balloon,
    BalloonMove,
    Domain,
    Failure,
    Host,
    HostMemory,
    Move,
    Outcome,
    PeriodMove,
    PinMove,
    Record,
    Room,
    Skip,
    Snapshot,
    Topology,
    Vcpu,
)
from .units import CpuSet, mib

try:
    import libvirt
except ImportError:  # the faces say which package is missing
    libvirt = None

# One RPC for so many domains at once: enough to make round trips cheap, few enough to isolate a hung one.
_CHUNK = 32
# A healthy domain on a host at 99 % load answered within 62 ms, and many of them within 17 ms each.
_STALL_S = 1.0
_STALL_PER_DOMAIN_S = 0.03
# An abandoned call keeps one of libvirtd's workers, of which it has 20 (max_workers): take few of them at a time.
_MOST_ABANDONED = 6
# A restart of libvirtd was measured to take 0.2 to 0.6 s.
_RESTART_S = 5.0
THREAD = "libvirt connection"
# While the same CPUs are online, a host's topology hardly changes.
_TOPOLOGY_S = 60.0
# A monitor command that is under way for so long is not just another client's poll.
_OCCUPIED_MS = 1000

# What libvirt passes on where a QEMU dies under it, before its process is gone.
_NO_PROCESS = (errno.ESRCH, errno.ECONNRESET, errno.EPIPE)

T = TypeVar("T")

ALL_PARTS = ("memory", "vcpus")


class Unavailable(Exception):
    """libvirt itself can't be reached or does not answer; the text is one line for people."""


class Hung(Exception):
    """A call did not return in its time and was abandoned, or not even begun for want of time."""


# ---------------------------------------------------------------- calls that can be abandoned


class _Job(Generic[T]):
    def __init__(self, work: Callable[[Any], T]) -> None:
        self.work = work
        self.done = threading.Event()
        self.result: Optional[T] = None
        self.error: Optional[BaseException] = None

    def run(self, connection: Any) -> None:
        try:
            self.result = self.work(connection)
        except BaseException as error:
            self.error = error
        self.done.set()


class Line:
    """A connection to libvirt whose calls can be abandoned; it opens itself again after one was."""

    def __init__(self, uri: str, read_only: bool) -> None:
        self._uri, self._read_only = uri, read_only
        self._jobs: Optional[queue.SimpleQueue[Optional[_Job[Any]]]] = None

    def run(self, work: Callable[[Any], T], timeout_s: float) -> T:
        """Return work(connection); Hung if it takes longer, Unavailable if there is no connection.

        Where the connection is lost, *work* is done again over a new one: it must bear that.
        """
        try:
            return self._run_once(work, timeout_s)
        except libvirt.libvirtError as error:
            if not _connection_lost(error):
                raise
        self.close()
        self._wait_for_libvirt(timeout_s)
        try:
            return self._run_once(work, timeout_s)
        except libvirt.libvirtError as error:
            if not _connection_lost(error):
                raise
            self.close()
            raise Unavailable(f"uri: libvirt at {self._uri} went away: {_one_line(error)}") from None

    def _wait_for_libvirt(self, timeout_s: float) -> None:
        end_s = time.monotonic() + _RESTART_S
        while True:
            try:
                return self._run_once(lambda _connection: None, timeout_s)
            except Unavailable:
                if time.monotonic() >= end_s:
                    raise
            time.sleep(_RESTART_S / 50)

    def _run_once(self, work: Callable[[Any], T], timeout_s: float) -> T:
        if self._jobs is None:
            self._jobs = queue.SimpleQueue()
            threading.Thread(target=self._serve, args=(self._jobs,), name=THREAD, daemon=True).start()
        job = _Job(work)
        self._jobs.put(job)
        if not job.done.wait(timeout_s):
            self.close()
            raise Hung
        if job.error is not None:
            if isinstance(job.error, Unavailable):
                self._jobs = None
            raise job.error
        return job.result  # type: ignore[return-value]

    def close(self) -> None:
        """Let the connection go as soon as its last call returns, without waiting for that."""
        if self._jobs is not None:
            self._jobs.put(None)
            self._jobs = None

    def _serve(self, jobs: queue.SimpleQueue[Optional[_Job[Any]]]) -> None:
        connection = None
        while (job := jobs.get()) is not None:
            if connection is None:
                try:
                    connection = _open(self._uri, self._read_only)
                except Unavailable as error:
                    job.error = error
                    job.done.set()
                    return
            job.run(connection)
        if connection is not None:
            with contextlib.suppress(libvirt.libvirtError):
                connection.close()


def _open(uri: str, read_only: bool) -> Any:
    # Without a handler of its own, the binding prints every error to stderr.
    libvirt.registerErrorHandler(lambda *_ignored: None, None)
    try:
        return libvirt.openReadOnly(uri) if read_only else libvirt.open(uri)
    except libvirt.libvirtError as error:
        raise Unavailable(f"uri: libvirt at {uri} can't be reached: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


# ---------------------------------------------------------------- what an error means


# Some codes have no name in the binding of libvirt 8.
_OPERATION_UNSUPPORTED = 84


def explain(error: Exception) -> tuple[str, str]:
    """A fixed word and one line for what went wrong with one domain.

    ``gone`` (it ended, or was started anew), ``busy`` (a job or another client holds it), ``hung``,
    ``denied``, ``unsupported``, ``away`` (libvirt itself), ``error``.
    """
    if isinstance(error, (Hung, _Gone, _Busy, Unavailable)):
        word = {Hung: "hung", _Gone: "gone", _Busy: "busy", Unavailable: "away"}[type(error)]
        return word, str(error) or "it did not answer in time; what was asked may still happen"
    if not isinstance(error, libvirt.libvirtError):
        return "error", _one_line(error)
    code, text = error.get_error_code(), _one_line(error)
    if code == libvirt.VIR_ERR_NO_DOMAIN:
        return "gone", "it vanished meanwhile"
    if code == libvirt.VIR_ERR_OPERATION_TIMEOUT:
        return "busy", f"another job holds it: {text}"
    if code in (libvirt.VIR_ERR_OPERATION_DENIED, libvirt.VIR_ERR_ACCESS_DENIED):
        return "denied", f"libvirt refuses the change: {text}"
    if code in (libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED, _OPERATION_UNSUPPORTED):
        return "unsupported", f"this libvirt can't do it: {text}"
    return "error", text


def _connection_lost(error: Exception) -> bool:
    """Whether the RPC layer failed: the driver's own errors have the same codes, but another domain."""
    return isinstance(error, libvirt.libvirtError) and error.get_error_domain() == libvirt.VIR_FROM_RPC


class _Gone(Exception):
    """The domain that was observed does not run any more; another run may have its UUID."""


class _Busy(Exception):
    """A change would have to wait."""


# ---------------------------------------------------------------- observe


# Of which domains more is read than their states and what counts up (loads, statistics): of ``all``, of those that
# are ``new``, or of ``none``. What is not read is as it was last seen.
Reading = Literal["all", "new", "none"]
_Times = dict[int, procfs.VcpuThread]


@dataclass(frozen=True)
class _Inventory:
    """The host's CPUs, and by UUID its active domains, of which no more is in it than their states.

    ``persistent`` are those with a persistent definition, where that is known.
    """

    connection: Any
    online: CpuSet
    topology: Topology
    host_uuid: str
    topology_s: float
    driver: str
    handles: dict[str, Any]
    domains: dict[str, Domain]
    persistent: Optional[frozenset[str]]


@dataclass
class _Known:
    """One run of a domain as it was read: ``domain`` without vCPUs and counters, and what its vCPUs are made of.

    ``affinities`` are the kernel's of then: once it has others, the pins may be others, too. ``resumed``: its
    QEMU went on from a saved state.
    """

    domain: Domain
    pins: dict[int, CpuSet]
    default: CpuSet
    definition: dict[int, CpuSet]
    schedulers: dict[int, str]
    affinities: Optional[dict[int, Optional[CpuSet]]]
    resumed: bool = False

    def vcpus(self, times: _Times) -> tuple[Vcpu, ...]:
        """The online vCPUs. Their ids may have gaps."""
        return tuple(
            Vcpu(
                number,
                self.pins.get(number, self.default),
                one.run_ns,
                one.delay_ns,
                one.affinity,
                self.definition.get(number),
                self.schedulers.get(number),
            )
            for number, one in times.items()
        )

    def differs(self, times: _Times) -> bool:
        """Whether other vCPUs are online than were, or one may run elsewhere."""
        return bool(times) and self.affinities not in (None, _affinities(times))


@dataclass(frozen=True)
class _Answers:
    """What libvirt said of one domain: its XML, live and of its persistent definition, and what stands in neither."""

    live: str
    inactive: Optional[str]
    busy: Optional[str]
    pins: dict[int, CpuSet]
    affinities: Optional[dict[int, Optional[CpuSet]]]


def _affinities(times: _Times) -> dict[int, Optional[CpuSet]]:
    return {number: one.affinity for number, one in times.items()}


@dataclass(frozen=True)
class _Counters:
    """What counts up of a domain: its vCPUs' times where they are not in its bulk statistics, and these."""

    times: _Times = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Patience:
    """How long calls that hang may still hold up this pass, and how many more of them may be left hanging."""

    left_s: float
    left_calls: int = _MOST_ABANDONED

    def for_call(self, wanted_s: float) -> float:
        # Most healthy domains answer within this: they are asked even if the sick ones used up all the time.
        return max(0.05, min(wanted_s, self.left_s))

    def short_of(self, wanted_s: float) -> bool:
        """Whether what hung left too little time to ask many domains at once: healthy ones need some of it, too."""
        return self.left_calls < _MOST_ABANDONED and self.left_s < wanted_s


class Hypervisor:
    """One host's libvirt at *uri*; ValueError if that is no URI.

    *deadline_s* is the time that domains which hang may cost a pass: half of it while observing, half while
    applying; and how long libvirt itself may take to answer. *parts* is what is observed of the domains, for each
    part costs libvirt questions to every QEMU.
    """

    def __init__(self, uri: str, read_only: bool, deadline_s: float, parts: Sequence[str] = ALL_PARTS) -> None:
        self.uri, self.deadline_s = uri, deadline_s
        self._memory, self._vcpu = "memory" in parts, "vcpus" in parts
        where = _parts(uri)
        # Whether this process sees the same kernel as that libvirt: /proc and /sys are then the better sources.
        self.local = not where.netloc and "+" not in where.scheme and where.scheme != "test"
        self.session = where.path == "/session"
        self._line = Line(uri, read_only)
        self._patience = _Patience(deadline_s / 2)
        self._inventory: Optional[_Inventory] = None
        self._known: dict[str, _Known] = {}
        self._hung: dict[str, Skip] = {}
        # By UUID and id, for another run of a domain is another process.
        self._processes: dict[tuple[str, int], procfs.Process] = {}
        self._threads: dict[tuple[str, int], procfs.VcpuThreads] = {}

    def close(self) -> None:
        self._line.close()

    def observe(self, reading: Reading = "all") -> Snapshot:
        """Read the host. What hung once is not asked again but where *all* are read."""
        self._patience = _Patience(self.deadline_s / 2)
        inventory = self._list(reading)
        lost = dict(self._hung)
        handles = {uuid: handle for uuid, handle in inventory.handles.items() if uuid not in lost}
        if reading != "none":
            self._read([handle for uuid, handle in handles.items() if uuid not in self._known], inventory, lost)
        busy = {uuid: self._hindrance(inventory.domains[uuid]) for uuid in handles if uuid not in lost}
        answering = [handles[uuid] for uuid, reason in busy.items() if not _silent(reason)]
        counters, stamp_s = self._statistics(answering, inventory, lost)
        moved = [u for u, c in counters.items() if u in self._known and self._known[u].differs(c.times)]
        self._read([handles[uuid] for uuid in moved], inventory, lost)
        for uuid, known in self._known.items():
            if uuid in moved:
                busy[uuid] = self._hindrance(inventory.domains[uuid])
            if uuid in counters and known.affinities is None:
                known.affinities = _affinities(counters[uuid].times)
        self._hung.update({uuid: skip for uuid, skip in lost.items() if skip.code == "hung"})
        here = [uuid for uuid in sorted(busy) if uuid not in lost]
        domains = (self._domain(inventory.domains[uuid], busy[uuid], counters.get(uuid)) for uuid in here)
        return Snapshot(stamp_s, time.time(), self._host(inventory), tuple(domains), tuple(lost.values()))

    def _list(self, reading: Reading) -> _Inventory:
        """Which domains there are, and forget what is known of others: of all, if CPUs or connection are others."""
        last = self._inventory
        now = self._inventory = self._ask(functools.partial(_inventory, self.local, last, reading == "all"))
        same = last is not None and (last.connection, last.online) == (now.connection, now.online)
        if reading == "all":
            self._known, self._hung = {}, {}
        elif reading == "new" and not same:
            self._known = {}
        runs = {(domain.uuid, domain.id) for domain in now.domains.values()}
        self._known = {uuid: known for uuid, known in self._known.items() if (uuid, known.domain.id) in runs}
        # A call that was abandoned may go on at any time, and add to these.
        self._processes = {run: process for run, process in list(self._processes.items()) if run in runs}
        self._threads = {run: threads for run, threads in list(self._threads.items()) if run in runs}
        return now

    def _ask(self, work: Callable[[Any], T]) -> T:
        """Run what concerns libvirt as a whole: without an answer there is nothing to go on with."""
        try:
            return self._line.run(work, self.deadline_s)
        except Hung:
            text = f"uri: libvirt at {self.uri} did not answer within {self.deadline_s:g} s (deadline)"
            raise Unavailable(text) from None
        except libvirt.libvirtError as error:
            raise Unavailable(f"uri: libvirt at {self.uri}: {_one_line(error)}") from None

    def _each(
        self,
        handles: Sequence[Any],
        work: Callable[[Sequence[Any], Any], dict[str, T]],
        found: dict[str, T],
        lost: dict[str, Skip],
    ) -> None:
        """Run *work* over *handles*, many in one go; where that stalls or fails, find out with which of them."""
        chunks = [handles[first : first + _CHUNK] for first in range(0, len(handles), _CHUNK)]
        while chunks:
            chunk = chunks.pop(0)
            if len(chunk) > 1 and self._patience.short_of(_stall_s(len(chunk))):
                chunks[:0] = [[handle] for handle in chunk]
                continue
            try:
                found.update(self._bounded(functools.partial(_asked, work, chunk), len(chunk)))
            except Unavailable:
                raise
            except Exception as error:  # whatever is odd about one domain, the others have their turn
                chunks[:0] = self._sift(chunk, error, lost)

    def _sift(self, chunk: Sequence[Any], error: Exception, lost: dict[str, Skip]) -> list[Sequence[Any]]:
        """Set those of a chunk aside that caused the *error*; return in which chunks to ask the others."""
        sick = chunk
        if len(chunk) > 1 or _connection_lost(error):
            sick = [h for h in chunk if isinstance(error, Hung) and _stopped(self._process(_bare(h)))]
        code, reason = explain(error)
        for handle in sick:
            uuid = handle.UUIDString()
            untouched_kib = 0 if code == "gone" else self._untouched_kib(_bare(handle))
            lost[uuid] = Skip(handle.name(), uuid, code, reason, untouched_kib)
            self._known.pop(uuid, None)
        if not sick:
            return [[handle] for handle in chunk]
        rest = [handle for handle in chunk if handle not in sick]
        return [rest] if rest else []

    def _bounded(self, work: Callable[[Any], T], domains: int) -> T:
        if self._patience.left_calls <= 0:
            raise Hung("not asked: too many others hang, and libvirt must stay able to serve")
        began_s = time.monotonic()
        try:
            return self._line.run(work, self._patience.for_call(_stall_s(domains)))
        except Hung:
            self._patience.left_s -= time.monotonic() - began_s
            self._patience.left_calls -= 1
            raise

    def _ended(self, domain: Domain) -> bool:
        """Whether the process that was observed is gone; libvirt itself takes half a second to see that."""
        return domain.started_s is not None and self._process(domain) is None

    def _process(self, domain: Domain) -> Optional[procfs.Process]:
        if not self.local:
            return None
        known = self._processes.get((domain.uuid, domain.id))
        process = known.again() if known else procfs.qemu_process(domain.name, self.session)
        if process is not None:
            self._processes[domain.uuid, domain.id] = process
        return process

    def _threads_of(self, domain: Domain) -> Optional[procfs.VcpuThreads]:
        """Where the kernel tells of a domain's vCPUs, faster than libvirt by far, and without ever hanging."""
        if not (self.local and self._vcpu):
            return None
        run = (domain.uuid, domain.id)
        process = self._processes.get(run)
        if run not in self._threads and process is not None:
            self._threads[run] = procfs.VcpuThreads(process.pid)
        return self._threads.get(run)

    # ------------------------------------------------------------ a domain

    def _read(self, handles: Sequence[Any], inventory: _Inventory, lost: dict[str, Skip]) -> None:
        """Get to know these domains anew."""
        if not handles:
            return
        # With the inventory it costs no wait for another thread to have its turn.
        persistent = self._ask(_persistent) if inventory.persistent is None else inventory.persistent

        def work(chunk: Sequence[Any], connection: Any) -> dict[str, _Known]:
            here = {handle.UUIDString(): _here(connection, handle) for handle in chunk}
            # All questions first: while answers are parsed libvirtd goes to sleep, and it takes time to wake up.
            answers = {uuid: self._ask_about(handle, uuid in persistent, inventory) for uuid, handle in here.items()}
            return {uuid: self._whole(inventory.domains[uuid], answer, inventory) for uuid, answer in answers.items()}

        self._each(handles, work, self._known, lost)

    def _ask_about(self, handle: Any, persistent: bool, inventory: _Inventory) -> _Answers:
        """None of these calls asks QEMU."""
        bare = inventory.domains[handle.UUIDString()]
        live = handle.XMLDesc(0)
        inactive = handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE) if persistent else None
        qemu = inventory.driver == "QEMU"
        busy = _busy(handle, self._process(bare)) if qemu else None
        # The automatic nodeset stands in no XML; it is what an unpinned vCPU reports as its pin.
        pins = _reported_pins(handle) if _AUTO.search(live) else {}
        # The test driver, and the kernel where it can, tell affinities with the times.
        threads = self._threads_of(bare)
        apart = self._vcpu and qemu and not (threads and threads.told())
        return _Answers(live, inactive, busy, pins, _affinities(_times_of(handle.vcpus())) if apart else None)

    def _whole(self, bare: Domain, answers: _Answers, inventory: _Inventory) -> _Known:
        """Everything about one domain but its counters."""
        live = libvirt_xml.parse_domain(answers.live, inventory.online)
        definition = libvirt_xml.parse_inactive(answers.inactive or "<domain/>")
        process = self._processes.get((bare.uuid, bare.id))
        pins = {**answers.pins, **live.pins} if live.placement_auto else live.pins
        copied = _copied(live.record, definition.record, bare, process)
        numa = _automatic(live, answers.pins, self._host_uuid(inventory)) if live.placement_auto else None
        if live.nodeset is not None:
            numa = libvirt_xml.cells_pcpus(live.nodeset, inventory.topology)
        domain = replace(
            bare,
            persistent=answers.inactive is not None,
            started_s=process.started_s if process else None,
            busy=answers.busy,
            cpuset=live.cpuset,
            numa_pcpus=numa,
            cgroup_pcpus=process.cpus if process and self._vcpu else None,
            vcpu_quota=live.vcpu_quota,
            threads=live.threads,
            balloon=_balloon(live, process, numa, inventory.topology) if self._memory else None,
            owner=live.owner,
            record=None if copied else live.record,
            record_error=live.record_error or copied,
        )
        default = live.cpuset or inventory.online
        resumed = self._memory and process is not None and process.resumed
        return _Known(domain, pins, default, definition.pins, live.schedulers, answers.affinities, resumed)

    def _hindrance(self, domain: Domain) -> Optional[str]:
        """Why a domain's QEMU can't be asked now, or was busy when it was read."""
        known = self._known.get(domain.uuid)
        return _stopped(self._process(domain)) or (known.domain.busy if known else None)

    def _statistics(
        self, handles: Sequence[Any], inventory: _Inventory, lost: dict[str, Skip]
    ) -> tuple[dict[str, _Counters], float]:
        """What counts up of these domains, by UUID; and when that was so."""
        found: dict[str, _Counters] = {}
        began_s = time.monotonic()
        self._each(handles, functools.partial(self._count, inventory), found, lost)
        return found, (began_s + time.monotonic()) / 2

    def _count(self, inventory: _Inventory, chunk: Sequence[Any], connection: Any) -> dict[str, _Counters]:
        """The one question that QEMU itself has to answer."""
        here = {handle.UUIDString(): _here(connection, handle) for handle in chunk}
        if inventory.driver != "QEMU":
            return _test_counters(here, self._memory, self._vcpu)
        threads = {uuid: self._threads_of(inventory.domains[uuid]) for uuid in here}
        times = {uuid: of_one.read() if of_one else {} for uuid, of_one in threads.items()}
        groups = libvirt.VIR_DOMAIN_STATS_BALLOON if self._memory else 0
        if self._vcpu and not all(times.values()):
            groups |= libvirt.VIR_DOMAIN_STATS_VCPU
        records: dict[str, dict[str, Any]] = {uuid: {} for uuid in here}
        if groups:
            nowait = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
            bulk = connection.domainListGetStats(list(here.values()), groups, nowait)
            records = {handle.UUIDString(): record for handle, record in bulk}
        for uuid, record in records.items():
            if uuid in self._known and self._known[uuid].resumed and "balloon.rss" in record:
                # libvirt has this from an event, of which none came since the state was saved (seen with libvirt 9.0).
                told_kib = record["balloon.current"]
                record["balloon.current"] = _actual_kib(here[uuid]) or told_kib
                # Once it is right it stays so: what changes from there on is an event.
                self._known[uuid].resumed = record["balloon.current"] != told_kib
        return {uuid: _Counters(times[uuid], record) for uuid, record in records.items()}

    def _domain(self, bare: Domain, busy: Optional[str], counters: Optional[_Counters]) -> Domain:
        """A domain as it is known, in its state of now and with its counters; what those lack stays unknown."""
        known = self._known.get(bare.uuid)
        if known is None:
            # Whether it has a record is not known: it must not get another one.
            known = _Known(replace(bare, record_error=_UNREAD), {}, frozenset(), {}, {}, None)
        if counters is None:
            # Of a QEMU that is not asked, the kernel still tells.
            threads = self._threads_of(bare)
            counters = _Counters(threads.read() if threads else {})
        record = counters.record
        if busy is None and "balloon.maximum" in record and "balloon.rss" not in record:
            # QEMU was not asked, because somebody else's question to it is still open.
            busy = f"{_NO_ANSWER}: its statistics are incomplete"
        vcpus = known.vcpus(counters.times or _times_in(record, known.affinities or {}))
        balloon = _measured(known.domain.balloon, record)
        process = self._processes.get((bare.uuid, bare.id))
        if balloon is not None and balloon.rss_kib is None and process is not None:
            balloon = replace(balloon, rss_kib=process.rss_kib)
        return replace(known.domain, state=bare.state, busy=busy, vcpus=vcpus, balloon=balloon)

    def _untouched_kib(self, domain: Domain) -> int:
        """What a domain that does not answer has of its memory that QEMU does not hold yet, as far as is known."""
        known, process = self._known.get(domain.uuid), self._processes.get((domain.uuid, domain.id))
        balloon = known.domain.balloon if known else None
        held_kib = process.rss_kib if process else None
        if balloon is None or "hugepages" in balloon.inhibitors:
            return 0
        return max(0, balloon.actual_kib - (held_kib or 0))

    def _host(self, inventory: _Inventory) -> Host:
        times = procfs.pcpu_times() if self.local and self._vcpu else None
        memory = procfs.memory() if self.local else self._ask(_host_memory)
        name = socket.gethostname() if self.local else urlsplit(self.uri).hostname or inventory.driver.lower()
        topology = inventory.topology
        if self.local:
            cells = tuple(replace(cell, free_kib=procfs.cell_free_kib(cell.id)) for cell in topology.cells)
            topology = replace(topology, cells=cells)
        return Host(
            uuid=self._host_uuid(inventory),
            name=name,
            uri=self.uri,
            driver=inventory.driver,
            topology=topology,
            busy_ns=times.busy_ns if times else {},
            bound_ns=times.bound_ns if times else None,
            memory=memory,
            rooms=self._rooms(),
        )

    def _host_uuid(self, inventory: _Inventory) -> str:
        # libvirt makes up another one at each of its starts where the firmware tells none (or a silly one).
        return (procfs.machine_id() if self.local else None) or inventory.host_uuid

    def _rooms(self) -> tuple[Room, ...]:
        names = {name for known in self._known.values() if known.domain.balloon for name in known.domain.balloon.rooms}
        left = {name: procfs.room_left_kib(name) for name in sorted(names)}
        return tuple(Room(name, left_kib) for name, left_kib in left.items() if left_kib is not None)

    # ------------------------------------------------------------ apply

    def apply(self, changes: Iterable[Change]) -> Outcome:
        """Make *changes*, one domain after the other: first its record, then its moves.

        A domain whose record can't be written is not changed. What fails is a Failure of that domain alone.
        """
        self._patience = _Patience(self.deadline_s / 2)
        moves: list[Move] = []
        failures: list[Failure] = []
        away: Optional[Unavailable] = None
        for change in changes:
            attempt = _Attempt(change)
            try:
                if away or self._patience.left_s <= 0:
                    raise away or Hung("not tried: what hung used up the time of this pass (deadline)")
                self._bounded(functools.partial(self._write, attempt), 1 + len(change.moves))
            except Exception as error:  # whatever is odd about one domain, the others have their turn
                attempt.given_up = True
                away = error if isinstance(error, Unavailable) else None
                code, reason = explain(error)
                failures.append(Failure(change.domain.name, change.domain.uuid, code, reason))
            moves += attempt.done
        return Outcome(tuple(moves), tuple(failures))

    def _write(self, attempt: _Attempt, connection: Any) -> None:
        """Write one domain's record, then its moves. Done again over a new connection, it does the same."""
        change, attempt.done = attempt.change, []
        handle = connection.lookupByUUIDString(change.domain.uuid)
        # Live state died with any other run than that which was observed.
        if handle.ID() != change.domain.id or self._ended(change.domain):
            raise _Gone("it was restarted or stopped meanwhile")
        try:
            busy = _busy(handle, self._process(change.domain)) or _larger(handle, change)
            if busy:
                raise _Busy(busy)
            if change.record != change.domain.record and not attempt.given_up:
                _write_record(handle, change.record)
            for move in change.moves:
                if attempt.given_up:
                    return
                _make(handle, move)
                attempt.done.append(move)
            if change.moves and connection.lookupByUUIDString(change.domain.uuid).ID() != change.domain.id:
                # It was restarted after its record was written: the run that the moves were made on has none.
                _write_record(handle, change.record)
        except libvirt.libvirtError as error:
            ended = error.get_int1() in _NO_PROCESS or self._ended(change.domain)
            raise _or_gone(error, handle, ended) from None


def _stall_s(domains: int) -> float:
    """How long a call that concerns so many domains may take."""
    return _STALL_S + domains * _STALL_PER_DOMAIN_S


def _asked(work: Callable[[Sequence[Any], Any], dict[str, T]], chunk: Sequence[Any], connection: Any) -> dict[str, T]:
    """work(chunk, connection); a domain that is asked alone and ended meanwhile is _Gone."""
    try:
        return work(chunk, connection)
    except libvirt.libvirtError as error:
        if len(chunk) > 1 or _connection_lost(error):
            raise
        raise _or_gone(error, _here(connection, chunk[0]), ended=False) from None


def _or_gone(error: Exception, handle: Any, ended: bool) -> Exception:
    """*error*, or where the domain ended meanwhile _Gone: that is told by many codes, none of them its own."""
    if _connection_lost(error) or (handle.isActive() and not ended):
        return error
    return _Gone(f"it ended meanwhile: {_one_line(error)}")


def _inventory(local: bool, last: Optional[_Inventory], whole: bool, connection: Any) -> _Inventory:
    """The active domains; with the host's topology as it was at *last*, if that is not long ago."""
    _count, cpus, _online = connection.getCPUMap()
    online = _cpus(tuple(cpus))
    now_s = time.monotonic()
    if last and (last.connection, last.online) == (connection, online) and now_s < last.topology_s + _TOPOLOGY_S:
        topology, host_uuid, topology_s = last.topology, last.host_uuid, last.topology_s
    else:
        isolated = procfs.isolated() if local else frozenset()
        capabilities = libvirt_xml.parse_capabilities(connection.getCapabilities(), online, isolated)
        topology, host_uuid, topology_s = capabilities.topology, capabilities.host_uuid, now_s
    active = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE
    listed = connection.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE, active)
    handles = {handle.UUIDString(): handle for handle, _record in listed}
    states = (_STATES.get(record.get("state.state", 0), "unknown") for _handle, record in listed)
    domains = {uuid: Domain(uuid, h.name(), h.ID(), state) for (uuid, h), state in zip(handles.items(), states)}
    persistent = _persistent(connection) if whole else None
    driver = connection.getType()
    return _Inventory(connection, online, topology, host_uuid, topology_s, driver, handles, domains, persistent)


def _persistent(connection: Any) -> frozenset[str]:
    chosen = libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE | libvirt.VIR_CONNECT_LIST_DOMAINS_PERSISTENT
    return frozenset(handle.UUIDString() for handle in connection.listAllDomains(chosen))


# virDomainState
_STATES = {1: "running", 2: "blocked", 3: "paused", 4: "shutting down", 5: "shut off", 6: "crashed", 7: "suspended"}


def _here(connection: Any, handle: Any) -> Any:
    """The same domain on *connection*, which may be a later one than that which listed it."""
    return handle if handle.connect() is connection else connection.lookupByUUID(handle.UUID())


def _bare(handle: Any) -> Domain:
    return Domain(handle.UUIDString(), handle.name(), handle.ID())


@functools.lru_cache(maxsize=256)  # most vCPUs have one of few
def _cpus(cpu_map: tuple[bool, ...]) -> CpuSet:
    return frozenset(cpu for cpu, allowed in enumerate(cpu_map) if allowed)


def _silent(busy: Optional[str]) -> bool:
    return busy is not None and busy.startswith(_NO_ANSWER)


_NO_ANSWER = "QEMU does not answer"


def _stopped(process: Optional[procfs.Process]) -> Optional[str]:
    if process is None or not process.stopped:
        return None
    return f"{_NO_ANSWER}: its process {process.pid} is stopped (SIGSTOP?)"


def _busy(handle: Any, process: Optional[procfs.Process]) -> Optional[str]:
    """Why a change of this domain would have to wait, asked in ways that never wait themselves."""
    stopped = _stopped(process)
    if stopped:
        return stopped
    try:
        state, _details, ms = handle.controlInfo()
        if state == libvirt.VIR_DOMAIN_CONTROL_ERROR:
            return f"{_NO_ANSWER}: its monitor failed"
        if state == libvirt.VIR_DOMAIN_CONTROL_OCCUPIED and ms >= _OCCUPIED_MS:
            return f"{_NO_ANSWER}: a command to it is under way for {ms / 1000:.0f} s"
        if handle.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE:
            return "a job is under way (migration, backup, dump...)"
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
            raise
    return None


def _copied(
    live: Optional[Record], inactive: Optional[Record], domain: Domain, process: Optional[procfs.Process]
) -> Optional[str]:
    """Why the record of a domain can't be taken for its own, where its persistent definition has one.

    A clone began with that. Who defines a running domain by its own live XML copies a record, too, but one that
    was begun in this very run. After a save and restore, or a step of the clock, the two can't be told apart.
    """
    if inactive is None or (live is not None and live != inactive):
        return None
    if live is None:
        return baseline.COPY
    same_id = live.domain_id == domain.id
    if same_id and process is not None and live.latest_s >= process.started_s:
        return None
    return baseline.DOUBTFUL if same_id or (process is not None and process.resumed) else baseline.COPY


_AUTO = re.compile(r"""placement=["']auto["']""")
_UNREAD = "its definition was not read: it began meanwhile"


def _automatic(live: libvirt_xml.DomainDefinition, pins: dict[int, CpuSet], host_uuid: str) -> Optional[CpuSet]:
    """The pCPUs of the automatic nodeset: what vCPUs report, or reported once here, that nobody pinned."""
    unpinned = [cpus for number, cpus in pins.items() if number not in live.pins]
    ours = live.record.pins if live.record and live.record.host_uuid == host_uuid else ()
    # One that was adopted from a person says nothing of it.
    recorded = [
        pin.original for pin in ours if pin.thread == "vcpu" and not pin.original == pin.previous == pin.intended
    ]
    return frozenset().union(*(unpinned or recorded)) or None


def _balloon(
    live: libvirt_xml.DomainDefinition, process: Optional[procfs.Process], numa: Optional[CpuSet], topology: Topology
) -> Balloon:
    """What is known of a domain's memory before its statistics are."""
    automatic = libvirt_xml.cells_of(numa, topology) if live.memory_auto and numa else None
    limits = (live.hard_limit_kib, process.memory_max_kib if process else None)
    return Balloon(
        actual_kib=live.maximum_kib if live.current_kib is None else live.current_kib,
        maximum_kib=live.maximum_kib,
        virtio_mem=live.virtio_mem,
        device=live.balloon_device,
        period_s=live.period_s,
        autodeflate=live.autodeflate,
        inhibitors=live.inhibitors,
        limit_kib=min((limit for limit in limits if limit is not None), default=None),
        rooms=process.rooms if process else (),
        cells=automatic if live.memory_cells is None else live.memory_cells,
    )


def _reported_pins(handle: Any) -> dict[int, CpuSet]:
    rows = handle.vcpuPinInfo(libvirt.VIR_DOMAIN_AFFECT_LIVE)
    return {number: _cpus(row) for number, row in enumerate(rows)}


def _times_of(vcpus: tuple[Any, Any]) -> _Times:
    """What virDomainGetVcpus says of the online vCPUs: rows carry the true id, positions don't."""
    infos, maps = vcpus
    return {info[0]: procfs.VcpuThread(_cpus(cpu_map), info[2]) for info, cpu_map in zip(infos, maps)}


def _times_in(record: dict[str, Any], affinities: dict[int, Optional[CpuSet]]) -> _Times:
    """The vCPUs' times in a bulk record; without times where it has none."""
    # Ids may be sparse and have any number of digits; only online vCPUs have a time.
    parts = (key.split(".") for key in record if key.startswith("vcpu.") and key.endswith(".time"))
    found = sorted(int(part[1]) for part in parts if len(part) == 3)
    return {
        n: procfs.VcpuThread(affinities.get(n), record.get(f"vcpu.{n}.time"), record.get(f"vcpu.{n}.delay"))
        for n in found or affinities
    }


def _measured(balloon: Optional[Balloon], record: dict[str, Any]) -> Optional[Balloon]:
    """*balloon* with what a bulk record says of it; what that lacks stays unknown."""
    if "balloon.maximum" not in record:
        return balloon
    return replace(
        balloon or Balloon(record["balloon.maximum"], record["balloon.maximum"]),
        actual_kib=record.get("balloon.current", record["balloon.maximum"]),
        maximum_kib=record["balloon.maximum"],
        unused_kib=record.get("balloon.unused"),
        usable_kib=record.get("balloon.usable"),
        disk_caches_kib=record.get("balloon.disk_caches"),
        swap_in_kib=record.get("balloon.swap_in"),
        swap_out_kib=record.get("balloon.swap_out"),
        major_faults=record.get("balloon.major_fault"),
        rss_kib=record.get("balloon.rss"),
        last_update_s=record.get("balloon.last-update", 0),
    )


def _test_counters(handles: dict[str, Any], memory: bool, vcpus: bool) -> dict[str, _Counters]:
    """The same from libvirt's test driver, which has no bulk statistics; its figures are constants."""
    balloons = {uuid: (handle.memoryStats(), handle.info()) for uuid, handle in handles.items() if memory}
    rows = {uuid: handle.vcpus() for uuid, handle in handles.items() if vcpus}
    times = {uuid: _times_of(row) for uuid, row in rows.items()}
    records = {uuid: _test_record(*balloon) for uuid, balloon in balloons.items()}
    return {uuid: _Counters(times.get(uuid, {}), records.get(uuid, {})) for uuid in handles}


def _test_record(stats: dict[str, int], info: Sequence[int]) -> dict[str, Any]:
    _state, maximum, current, *_rest = info
    told = {f"balloon.{key}": value for key, value in stats.items()}
    return {
        **told,
        "balloon.maximum": maximum,
        "balloon.current": current,
        "balloon.last-update": stats.get("last_update", 0),
    }


def _host_memory(connection: Any) -> Optional[HostMemory]:
    """Host memory as libvirt tells it, which knows no MemAvailable: free, buffers and page cache together."""
    try:
        stats = connection.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS, 0)
    except libvirt.libvirtError:
        return HostMemory(connection.getInfo()[1] * 1024, connection.getFreeMemory() // 1024)
    available_kib = stats["free"] + stats.get("buffers", 0) + stats.get("cached", 0)
    return HostMemory(stats["total"], available_kib)


# ---------------------------------------------------------------- apply


@dataclass(frozen=True)
class Change:
    """One domain's part of a plan; *record* is what must stand on it before (None: no record shall be left)."""

    domain: Domain
    record: Optional[Record]
    moves: tuple[Move, ...] = ()


@dataclass
class _Attempt:
    """A change that is being made. Once it is ``given_up``, the call under way may still happen, but no further one."""

    change: Change
    done: list[Move] = field(default_factory=list)
    given_up: bool = False


def _actual_kib(handle: Any) -> Optional[int]:
    """A balloon's size by QEMU's own word; None where it has none, or the driver does not tell."""
    actual_kib: Optional[int] = handle.memoryStats().get("actual")
    return actual_kib


def _larger(handle: Any, change: Change) -> Optional[str]:
    """Why what was planned would shrink a domain too far: it has more than was known then, so it may use more, too.

    libvirt knows a balloon's size by events, and where one is missing it is wrong until the next. Even what was
    planned as a give is less than such a domain has.
    """
    balloon = change.domain.balloon
    targets_kib = [move.after_kib for move in change.moves if isinstance(move, BalloonMove)]
    if balloon is None or not targets_kib:
        return None
    actual_kib = _actual_kib(handle) or 0
    if actual_kib <= max(balloon.actual_kib, *targets_kib) + BALLOON_TOLERANCE_KIB:
        return None
    return f"its QEMU says that it has {mib(actual_kib)}, {mib(balloon.actual_kib)} was known: not shrunk"


def _write_record(handle: Any, record: Optional[Record]) -> None:
    handle.setMetadata(
        libvirt.VIR_DOMAIN_METADATA_ELEMENT,
        baseline.encode(record) if record else None,
        baseline.STATE_PREFIX if record else None,
        baseline.STATE_URI,
        libvirt.VIR_DOMAIN_AFFECT_LIVE,
    )


def _make(handle: Any, move: Move) -> None:
    """One live change. These calls mean "live only" on both the QEMU and the test driver, unlike flags of 0."""
    if isinstance(move, BalloonMove):
        handle.setMemory(move.after_kib)
    elif isinstance(move, PeriodMove):
        handle.setMemoryStatsPeriod(move.after_s, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    else:
        _make_pin(handle, move)


def _make_pin(handle: Any, move: PinMove) -> None:
    cpu_map = tuple(cpu in move.after for cpu in range(max(move.after) + 1))
    if move.thread == "vcpu":
        handle.pinVcpu(move.id, cpu_map)
    elif move.thread == "emulator":
        handle.pinEmulator(cpu_map, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    else:
        handle.pinIOThread(move.id, cpu_map, libvirt.VIR_DOMAIN_AFFECT_LIVE)


def _parts(uri: str) -> SplitResult:
    """The parts of a connection URI; ValueError in one line where it is none."""
    try:
        parts = urlsplit(uri)
        if parts.scheme and uri.isprintable() and " " not in uri:
            return parts
    except ValueError:
        pass
    raise ValueError(f"uri: got {uri!r}, allowed: qemu:///system or another URI that libvirt connects to")


def acting_refusal(uri: str) -> Optional[str]:
    """Why no change may be made through *uri*, or None: lock, /proc and host memory are truths of this host alone."""
    try:
        parts = _parts(uri)
    except ValueError as error:
        return str(error)
    if parts.scheme == "test":
        return None
    if uri in ("qemu:///system", "qemu:///session"):
        return None
    return (
        f"uri: got {uri}, allowed: qemu:///system or qemu:///session of the host itself;"
        " other URIs work for kvm_sched_info and in check mode only"
    )


# ---------------------------------------------------------------- events

# Pauses between two attempts to connect: the first, and what they double up to.
_SOON_S, _LATE_S = 1.0, 30.0
Happened = Callable[[str, str], None]


def watch_events(uri: str, happened: Happened) -> None:
    """Call *happened* with a word and a domain's UUID as things happen on *uri*, for as long as this process lives.

    The words: started, stopped, resumed, suspended, reboot, balloon, pin (any cputune), device,
    policy (its owner's), and connected, of no domain: what happened before was not told. It is called
    from a thread that must not be held up. A lost connection is opened again, quietly: the passes
    tell of it. Call this once, before the first Hypervisor is used,
    for libvirt uses an event loop only for connections that were opened after it was there.
    """
    libvirt.registerErrorHandler(lambda *_ignored: None, None)
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=_turn_events, name="libvirt events", daemon=True).start()
    threading.Thread(target=_listen, args=(uri, happened), name="libvirt event connection", daemon=True).start()


def _turn_events() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


def _listen(uri: str, happened: Happened) -> None:
    pause_s = _SOON_S
    while True:
        lost = threading.Event()
        with contextlib.suppress(libvirt.libvirtError), contextlib.closing(libvirt.openReadOnly(uri)) as connection:
            connection.registerCloseCallback(lambda _connection, _reason, opaque: opaque.set(), lost)
            with contextlib.suppress(libvirt.libvirtError):  # the test driver knows no keep-alive
                connection.setKeepAlive(5, 3)
            _subscribe(connection, happened)
            happened("connected", "")
            pause_s = _SOON_S
            lost.wait()
        time.sleep(pause_s)
        pause_s = min(_LATE_S, 2 * pause_s)


def _subscribe(connection: Any, happened: Happened) -> None:
    def lifecycle(_connection: Any, domain: Any, event: int, _detail: int, _opaque: Any) -> None:
        if event in _LIFECYCLE:
            happened(_LIFECYCLE[event], domain.UUIDString())

    def metadata(_connection: Any, domain: Any, _kind: int, namespace: Any, _opaque: Any) -> None:
        if namespace == baseline.OWNER_URI:
            happened("policy", domain.UUIDString())

    def simple(_connection: Any, domain: Any, *rest: Any) -> None:
        happened(rest[-1], domain.UUIDString())

    wanted = [
        (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, lifecycle, None),
        (libvirt.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE, metadata, None),
        (libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, simple, "reboot"),
        (libvirt.VIR_DOMAIN_EVENT_ID_BALLOON_CHANGE, simple, "balloon"),
        (libvirt.VIR_DOMAIN_EVENT_ID_TUNABLE, simple, "pin"),
        (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED, simple, "device"),
        (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, simple, "device"),
    ]
    for number, callback, word in wanted:
        with contextlib.suppress(libvirt.libvirtError):  # what a driver does not know does not happen there
            connection.domainEventRegisterAny(None, number, callback, word)


# virDomainEventType; a domain that is defined or undefined does not start or stop by that.
_LIFECYCLE = {2: "started", 3: "suspended", 4: "resumed", 5: "stopped", 8: "stopped"}
