# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Observe: one look at a host and its domains, in which one that hangs does not keep the others from being read.

A question that was abandoned stays open at that QEMU, and libvirt tells so without asking it: no
later look asks such a domain again before it has answered.
"""

from __future__ import annotations

import functools
import threading
import time
from dataclasses import replace
from typing import Any, Callable, Collection, Container, Literal, Optional, Sequence, TypeVar

from .. import balloon_stats, baseline, procfs
from ..model import Balloon, Domain, FailureCode, Skip, SkipCode, Snapshot
from ..policy.memory.charges import untouched_kib
from ..policy.memory.rooms import rooms_of
from ..units import one_line
from .binding import libvirt
from .connection import Calls
from .domain import (
    AUTO,
    Answers,
    Counters,
    Definitions,
    Known,
    actual_kib,
    affinities_of,
    bounded_xml,
    plain_record,
    reported_emulator,
    reported_pins,
    test_counters,
    times_in,
    times_of,
    with_process,
)
from .errors import Hung, Passing, Unavailable, Unread, Unreadable, connection_lost, explain, or_gone
from .host import HostReader, Inventory, bare_domain, on_connection, persistent_uuids, take_inventory
from .qemu import Hindrance, Processes, hindrance, no_answer, stopped_process

# One RPC for so many domains at once: enough to make round trips cheap, few enough to isolate a hung one.
_CHUNK = 32
ALL_PARTS = ("memory", "vcpus")
# Which domains' XML is read again: of ``all``, of those that are ``new``, or of ``none``. States and counters (loads,
# statistics) are always read. What is not read is as it was last seen.
XmlOf = Literal["all", "new", "none"]

T = TypeVar("T")


def _asked(work: Callable[[Sequence[Any], Any], dict[str, T]], chunk: Sequence[Any], connection: Any) -> dict[str, T]:
    """Return work(chunk, connection); a domain that is asked alone is Gone if it ended meanwhile, or Passing."""
    try:
        return work(chunk, connection)
    except libvirt.libvirtError as error:
        if len(chunk) > 1 or connection_lost(error):
            raise
        handle, code = on_connection(connection, chunk[0]), error.get_error_code()
        found = or_gone(error, handle, ended=False)
        if found is error and code == libvirt.VIR_ERR_OPERATION_INVALID:
            found = Passing(handle, f"it is just starting or ending: {one_line(error)}")
        raise found from None


class Reader:
    """Observes *parts* of the domains over *calls*, and remembers what need not be read again at the next look."""

    def __init__(self, calls: Calls, local: bool, parts: Container[str], processes: Processes) -> None:
        self._calls, self._local = calls, local
        self._memory, self._vcpu = "memory" in parts, "vcpus" in parts
        self._processes = processes
        self._definitions = Definitions(parts, processes)
        self._host = HostReader(calls.uri, local, parts, processes)
        self._inventory: Optional[Inventory] = None
        self._known: dict[str, Known] = {}
        self._hung: dict[str, Skip] = {}
        # Whose abandoned call has not returned, by UUID.
        self._pending: dict[str, threading.Thread] = {}

    def observe(self, xml_of: XmlOf = "all", anew: Collection[str] = ()) -> Snapshot:
        """Look once: see Hypervisor.observe()."""
        self._calls.begin()
        inventory = self._list(xml_of)
        self._known = {uuid: known for uuid, known in self._known.items() if uuid not in anew}
        lost = dict(self._hung)
        handles = {uuid: handle for uuid, handle in inventory.handles.items() if uuid not in lost}
        if xml_of != "none":
            self._read([handle for uuid, handle in handles.items() if uuid not in self._known], inventory, lost)
        busy = {uuid: self._hindrance(inventory.domains[uuid]) for uuid in handles if uuid not in lost}
        answering = [handles[uuid] for uuid, why in busy.items() if not (why and why.silent)]
        counters, stamp_s = self._statistics(answering, inventory, lost)
        moved = [u for u, c in counters.items() if u in self._known and self._known[u].outdated(c)]
        self._read([handles[uuid] for uuid in moved], inventory, lost)
        for uuid, known in self._known.items():
            if uuid in moved:
                busy[uuid] = self._hindrance(inventory.domains[uuid])
            if uuid in counters and known.affinities is None:
                known.affinities = affinities_of(counters[uuid].times)
        self._hung.update({uuid: skip for uuid, skip in lost.items() if skip.code == "hung"})
        here = [uuid for uuid in sorted(busy) if uuid not in lost]
        domains = (self._domain(inventory.domains[uuid], busy[uuid], counters.get(uuid)) for uuid in here)
        # To the microsecond, as all counters of time: a record holds no more, and must give the same plan.
        stamps_s = round(stamp_s, 6), round(time.time(), 6)
        return Snapshot(
            *stamps_s, self._host.read(inventory, self._balloons(), self._calls), tuple(domains), tuple(lost.values())
        )

    def _list(self, xml_of: XmlOf) -> Inventory:
        """List the domains, and forget what is known of others: of all, if CPUs or connection are others."""
        last = self._inventory
        now = self._inventory = self._calls.ask(functools.partial(take_inventory, self._local, last, xml_of == "all"))
        same = last is not None and (last.connection, last.online) == (now.connection, now.online)
        self._pending = {uuid: thread for uuid, thread in self._pending.items() if thread.is_alive()}
        if xml_of == "all":
            self._known = {}
            self._hung = {uuid: skip for uuid, skip in self._hung.items() if uuid in self._pending}
        elif xml_of == "new" and not same:
            self._known = {}
        runs = {(domain.uuid, domain.id) for domain in now.domains.values()}
        self._known = {uuid: known for uuid, known in self._known.items() if (uuid, known.domain.id) in runs}
        self._hung = {uuid: skip for uuid, skip in self._hung.items() if uuid in now.domains}
        self._definitions.keep(runs)
        self._processes.keep(runs)
        return now

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
            if len(chunk) > 1 and self._calls.patience.short_of(len(chunk)):
                chunks[:0] = [[handle] for handle in chunk]
                continue
            try:
                found.update(self._calls.about(len(chunk), functools.partial(_asked, work, chunk)))
            except Unavailable:
                raise
            except Exception as error:  # whatever is odd about one domain, the others are read
                chunks[:0] = self._sift(chunk, error, lost)

    def _sift(self, chunk: Sequence[Any], error: Exception, lost: dict[str, Skip]) -> list[Sequence[Any]]:
        """Set those of a chunk aside that caused the *error*; return in which chunks to ask the others."""
        sick = chunk
        if len(chunk) > 1 or connection_lost(error):
            sick = [
                h for h in chunk if isinstance(error, Hung) and stopped_process(self._processes.look(bare_domain(h)))
            ]
        code, reason = explain(error)
        for handle in sick:
            uuid = handle.UUIDString()
            if isinstance(error, Hung) and error.thread is not None and len(chunk) == 1:
                self._pending[uuid] = error.thread
            lost[uuid] = self._lost(bare_domain(handle), error, code, reason)
            self._known.pop(uuid, None)
        if not sick:
            return [[handle] for handle in chunk]
        rest = [handle for handle in chunk if handle not in sick]
        return [rest] if rest else []

    def _read(self, handles: Sequence[Any], inventory: Inventory, lost: dict[str, Skip]) -> None:
        """Get to know these domains anew."""
        if not handles:
            return
        # With the inventory it costs no wait for another thread.
        persistent = self._calls.ask(persistent_uuids) if inventory.persistent is None else inventory.persistent

        def work(chunk: Sequence[Any], connection: Any) -> dict[str, Known]:
            here = {handle.UUIDString(): on_connection(connection, handle) for handle in chunk}
            # All questions first: while answers are parsed libvirtd goes to sleep, and it takes time to wake up.
            answers = {uuid: self._ask_about(handle, uuid in persistent, inventory) for uuid, handle in here.items()}
            return {uuid: self._understood(here[uuid], answer, inventory) for uuid, answer in answers.items()}

        self._each(handles, work, self._known, lost)

    def _ask_about(self, handle: Any, persistent: bool, inventory: Inventory) -> Answers:
        """Describe domains by calls of which none asks QEMU."""
        bare = inventory.domains[handle.UUIDString()]
        live = bounded_xml(handle, 0)
        inactive = bounded_xml(handle, libvirt.VIR_DOMAIN_XML_INACTIVE) if persistent else None
        qemu = inventory.driver == "QEMU"
        busy = hindrance(handle, self._processes.look(bare)) if qemu else None
        # The automatic nodeset stands in no XML; it is what threads without a pin report as theirs.
        auto = AUTO.search(live)
        pins, emulator = (reported_pins(handle), reported_emulator(handle)) if auto else ({}, None)
        # The test driver, and the kernel where it can, tell affinities with the times.
        threads = self._threads(bare)
        apart = self._vcpu and qemu and not (threads and threads.told())
        affinities = affinities_of(times_of(handle.vcpus())) if apart else None
        return Answers(live, inactive, busy, pins, affinities, emulator)

    def _understood(self, handle: Any, answers: Answers, inventory: Inventory) -> Known:
        """Return what is known of a domain; Unreadable where its owner's XML makes no sense."""
        bare = inventory.domains[handle.UUIDString()]
        try:
            return self._definitions.understand(
                bare, answers, inventory.online, inventory.topology, inventory.host_uuid
            )
        except Exception as error:
            raise Unreadable(handle, f"its XML can't be understood: {one_line(error)}") from None

    def _hindrance(self, domain: Domain) -> Optional[Hindrance]:
        """Return why a domain's QEMU can't be asked now, or was busy when it was read."""
        known = self._known.get(domain.uuid)
        return stopped_process(self._processes.look(domain)) or (known.busy if known else None)

    def _statistics(
        self, handles: Sequence[Any], inventory: Inventory, lost: dict[str, Skip]
    ) -> tuple[dict[str, Counters], float]:
        """Return what counts up of these domains, by UUID; and when that was so."""
        found: dict[str, Counters] = {}
        began_s = time.monotonic()
        self._each(handles, functools.partial(self._count, inventory), found, lost)
        return found, (began_s + time.monotonic()) / 2

    def _count(self, inventory: Inventory, chunk: Sequence[Any], connection: Any) -> dict[str, Counters]:
        """Ask the one question that QEMU itself has to answer."""
        here = {handle.UUIDString(): on_connection(connection, handle) for handle in chunk}
        if inventory.driver != "QEMU":
            return test_counters(here, self._memory, self._vcpu)
        threads = {uuid: self._threads(inventory.domains[uuid]) for uuid in here}
        times = {uuid: of_one.read() if of_one else {} for uuid, of_one in threads.items()}
        groups = libvirt.VIR_DOMAIN_STATS_BALLOON if self._memory else 0
        if self._vcpu and not all(times.values()):
            groups |= libvirt.VIR_DOMAIN_STATS_VCPU
        records: dict[str, dict[str, Any]] = {uuid: {} for uuid in here}
        if groups:
            nowait = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
            bulk = connection.domainListGetStats(list(here.values()), groups, nowait)
            records = {handle.UUIDString(): plain_record(record) for handle, record in bulk}
        for uuid, record in records.items():
            if uuid in self._known and self._known[uuid].resumed and "balloon.rss" in record:
                # libvirt has this from an event, and none came since the state was saved (seen with libvirt 9.0).
                told_kib = record.get("balloon.current")
                record["balloon.current"] = actual_kib(here[uuid]) or told_kib
                # Once it is right it stays so: what changes from there on is an event.
                self._known[uuid].resumed = record["balloon.current"] != told_kib
        return {uuid: Counters(times[uuid], record) for uuid, record in records.items()}

    def _domain(self, bare: Domain, busy: Optional[Hindrance], counters: Optional[Counters]) -> Domain:
        """Return a domain as it is known, in its state of now and with its counters; what those lack stays unknown."""
        known = self._known.get(bare.uuid)
        if known is None:
            # Whether it has a record is not known: it must not get another one.
            known = Known(replace(bare, record_error=baseline.UNREAD), {}, frozenset(), {}, {}, None)
        if counters is None:
            # Of a QEMU that is not asked, the kernel still tells.
            threads = self._threads(bare)
            counters = Counters(threads.read() if threads else {})
        record = counters.record
        if busy is None and "balloon.maximum" in record and "balloon.rss" not in record:
            # QEMU was not asked, because somebody else's question to it is still open.
            busy = no_answer("its statistics are incomplete, virsh domcontrol says more")
        times = counters.times or times_in(record, known.affinities or {})
        balloon = balloon_stats.measured(known.domain.balloon, record)
        process = self._processes.known(bare)
        if balloon is not None and process is not None:
            balloon = with_process(balloon, process.memory)
        return replace(
            known.domain,
            state=bare.state,
            busy=busy.reason if busy else None,
            vcpus=known.vcpus(times),
            threads=(*known.domain.threads, *known.unplugged(times)),
            balloon=balloon,
            record=baseline.resized(known.domain.record, balloon),
        )

    def _lost(self, domain: Domain, error: Exception, code: SkipCode, reason: str) -> Skip:
        """Return the Skip of a domain that does not answer: what QEMU does not hold yet of its memory, and where."""
        known, process = self._known.get(domain.uuid), self._processes.known(domain)
        balloon = known.domain.balloon if known else None
        resident_kib = process.memory.rss_kib if process else None
        kib = 0 if balloon is None or code == "gone" else untouched_kib(balloon, resident_kib)
        if isinstance(error, Unread):
            kib = max(0, error.maximum_kib - (resident_kib or 0))
        return Skip(domain.name, domain.uuid, code, reason, kib, None if balloon is None else rooms_of(balloon))

    def _balloons(self) -> list[Balloon]:
        return [known.domain.balloon for known in self._known.values() if known.domain.balloon is not None]

    def note_hung(self, domain: Domain, error: Exception, code: FailureCode, reason: str) -> None:
        """Ask a domain whose change hangs no more before that call returned."""
        if isinstance(error, Hung) and error.thread is not None:
            self._pending[domain.uuid] = error.thread
            self._hung[domain.uuid] = self._lost(domain, error, code, reason)

    def _threads(self, domain: Domain) -> Optional[procfs.VcpuThreads]:
        return self._processes.threads(domain) if self._local and self._vcpu else None
