# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Understand what libvirt and the kernel say of one domain."""

from __future__ import annotations

import functools
import re
import time
from dataclasses import dataclass, field, replace
from typing import Any, Collection, Container, Mapping, Optional, Sequence

from .. import balloon_stats, baseline, cgroups, libvirt_xml, procfs
from ..model import Balloon, Domain, Record, Thread, Topology, Vcpu
from ..units import CpuSet, shown
from .binding import libvirt
from .errors import Unreadable
from .qemu import Hindrance, Processes

Times = dict[int, procfs.VcpuThread]
# Of the emulator and of I/O threads, by kind and id.
ThreadPins = Mapping[tuple[str, int], CpuSet]


@dataclass
class Known:
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
    numa: dict[int, CpuSet] = field(default_factory=dict)
    busy: Optional[Hindrance] = None

    def vcpus(self, times: Times) -> tuple[Vcpu, ...]:
        """Return the online vCPUs. Their ids may have gaps."""
        return tuple(
            Vcpu(
                number,
                self.pins.get(number, self.default),
                whole_us(one.run_ns),
                whole_us(one.delay_ns),
                one.affinity,
                # Of a transient domain that is the pin of its start, and no pin is one, too.
                self.definition.get(number, None if self.domain.persistent else self.default),
                self.schedulers.get(number),
                self.numa.get(number),
            )
            for number, one in times.items()
        )

    def unplugged(self, times: Times) -> tuple[Thread, ...]:
        """Return the vCPUs that are not online, but whose pin stands in the XML and on record."""
        recorded = self.domain.record.pins if self.domain.record and times else ()
        ids = [pin.id for pin in recorded if pin.thread == "vcpu" and pin.id in self.pins and pin.id not in times]
        return tuple(Thread("vcpu", number, self.pins[number], self.definition.get(number)) for number in ids)

    def outdated(self, counters: Counters) -> bool:
        """Return whether other vCPUs are online, one may run elsewhere, or its size can't be what it was."""
        moved = bool(counters.times) and self.affinities not in (None, affinities_of(counters.times))
        balloon = self.domain.balloon
        return moved or (balloon is not None and balloon_stats.outgrown(balloon, counters.record))


# Who is first seen so soon after its start has the pins yet that it began with.
_START_S = 30.0


@dataclass(frozen=True)
class Start:
    """The pins of a transient domain's threads when it was first seen; *sure* if that was at its start."""

    pins: dict[int, CpuSet]
    thread_pins: ThreadPins
    sure: bool


@dataclass(frozen=True)
class Answers:
    """What libvirt said of one domain: its XML, live and of its persistent definition, and what stands in neither."""

    live: str
    inactive: Optional[str]
    busy: Optional[Hindrance]
    pins: dict[int, CpuSet]
    affinities: Optional[dict[int, Optional[CpuSet]]]
    emulator: Optional[CpuSet] = None


def affinities_of(times: Times) -> dict[int, Optional[CpuSet]]:
    return {number: one.affinity for number, one in times.items()}


@dataclass(frozen=True)
class Counters:
    """What counts up of a domain: its vCPUs' times where they are not in its bulk statistics, and these."""

    times: Times = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)


def _copied(
    live: Optional[Record], inactive: Optional[Record], domain: Domain, process: Optional[procfs.Process]
) -> Optional[str]:
    """Return why a domain's record can't be taken for its own; what it takes to say that is read only where needed."""
    if inactive is None:
        return None
    started_s = process.started_s if process else None
    return baseline.copied(live, inactive, domain.id, started_s, process is not None and process.resumed)


AUTO = re.compile(r"""placement=["']auto["']""")


def _automatic_pcpus(live: libvirt_xml.DomainDefinition, answers: Answers, host_uuid: str) -> Optional[CpuSet]:
    """Return the pCPUs of the automatic nodeset: what threads report, or reported once here, that nobody pinned.

    Where neither is known, all vCPUs' pins together are the best guess: after a release they are the nodeset.
    """
    unpinned = [cpus for number, cpus in answers.pins.items() if number not in live.pins]
    if answers.emulator is not None and ("emulator", 0) not in live.thread_pins:
        unpinned.append(answers.emulator)
    ours = live.record.pins if live.record and live.record.host_uuid == host_uuid else ()
    # One that was adopted from a person says nothing of it.
    recorded = [
        pin.original for pin in ours if pin.thread == "vcpu" and not pin.original == pin.previous == pin.intended
    ]
    return frozenset().union(*(unpinned or recorded or answers.pins.values())) or None


def _thread(thread: Thread, pins: ThreadPins, defined: ThreadPins, automatic: Optional[CpuSet]) -> Thread:
    """Return an emulator or I/O thread with its definition; without a pin it runs in the automatic nodeset, too."""
    key = (thread.kind, thread.id)
    return replace(thread, pin=pins.get(key, automatic or thread.pin), definition=defined.get(key))


def _balloon_of(
    live: libvirt_xml.DomainDefinition,
    groups: Optional[cgroups.Groups],
    numa: Optional[CpuSet],
    topology: Topology,
) -> Balloon:
    """Return what is known of a domain's memory before its statistics are."""
    automatic = libvirt_xml.cells_of(numa, topology) if live.memory_auto and numa else None
    limits = (live.hard_limit_kib, groups.max_kib if groups else None)
    return Balloon(
        actual_kib=balloon_stats.within(live.current_kib, live.maximum_kib),
        maximum_kib=live.maximum_kib,
        virtio_mem=live.virtio_mem,
        device=live.balloon_device,
        period_s=live.period_s,
        autodeflate=live.autodeflate,
        inhibitors=live.inhibitors,
        limit_kib=min((limit for limit in limits if limit is not None), default=None),
        rooms=groups.rooms if groups else (),
        cells=automatic if live.memory_cells is None else live.memory_cells,
        memnodes=live.memnodes,
        fixed_kib=live.fixed_kib,
        huge_kib=live.huge_kib,
        # Version 1 of the control groups throttles nobody for his soft limit: there it bounds nothing.
        high_kib=groups.high_kib if groups and groups.machine else live.soft_limit_kib,
    )


def reported_emulator(handle: Any) -> CpuSet:
    return cpus_of(handle.emulatorPinInfo(libvirt.VIR_DOMAIN_AFFECT_LIVE))


def reported_pins(handle: Any) -> dict[int, CpuSet]:
    rows = handle.vcpuPinInfo(libvirt.VIR_DOMAIN_AFFECT_LIVE)
    return {number: cpus_of(row) for number, row in enumerate(rows)}


def times_of(vcpus: tuple[Any, Any]) -> Times:
    """Return what virDomainGetVcpus says of the online vCPUs: rows carry the true id, positions don't."""
    infos, maps = vcpus
    return {info[0]: procfs.VcpuThread(cpus_of(cpu_map), info[2]) for info, cpu_map in zip(infos, maps)}


def times_in(record: dict[str, Any], affinities: dict[int, Optional[CpuSet]]) -> Times:
    """Return the vCPUs' times in a bulk record; without times where it has none."""
    # Ids may be sparse and have any number of digits; only online vCPUs have a time.
    found = sorted(int(online[1]) for key in record if (online := _VCPU_TIME(key)))
    told = {n: [balloon_stats.counter(record.get(f"vcpu.{n}.{what}")) for what in ("time", "delay")] for n in found}
    return {n: procfs.VcpuThread(affinities.get(n), *told.get(n, [None])) for n in found or affinities}


_VCPU_TIME = re.compile(r"vcpu\.(\d{1,9})\.time").fullmatch


def whole_us(ns: Optional[int]) -> Optional[int]:
    """Return a counter of nanoseconds without what a record leaves out."""
    return None if ns is None else ns // 1000 * 1000


def with_process(balloon: Balloon, told: procfs.ProcessMemory) -> Balloon:
    """Return *balloon* with what the kernel tells of its process; libvirt tells no more of it than what is resident."""
    rss_kib = told.rss_kib if balloon.rss_kib is None else balloon.rss_kib
    return replace(balloon, rss_kib=rss_kib, locked_kib=told.locked_kib, swapped_kib=told.swapped_kib)


def bounded_xml(handle: Any, flags: int) -> str:
    text: str = handle.XMLDesc(flags)
    if not isinstance(text, str):
        raise Unreadable(handle, f"its XML is {shown(text)}")
    if len(text) > libvirt_xml.LONGEST:
        raise Unreadable(handle, f"its XML has {len(text)} characters, allowed: {libvirt_xml.LONGEST}")
    return text


def plain_record(record: Any) -> dict[str, Any]:
    """Return the statistics of one domain; ValueError where they are none. Who reads a value judges it."""
    if not isinstance(record, dict) or not all(isinstance(key, str) for key in record):
        raise ValueError(f"its statistics are {shown(record)}")
    return record


def test_counters(handles: dict[str, Any], memory: bool, vcpus: bool) -> dict[str, Counters]:
    """Return the same from libvirt's test driver, which has no bulk statistics; its figures are constants."""
    balloons = {uuid: (handle.memoryStats(), handle.info()) for uuid, handle in handles.items() if memory}
    rows = {uuid: handle.vcpus() for uuid, handle in handles.items() if vcpus}
    times = {uuid: times_of(row) for uuid, row in rows.items()}
    records = {uuid: _test_record(*balloon) for uuid, balloon in balloons.items()}
    return {uuid: Counters(times.get(uuid, {}), records.get(uuid, {})) for uuid in handles}


def _test_record(stats: dict[str, int], info: Sequence[int]) -> dict[str, Any]:
    _state, maximum, current, *_rest = info
    told = {f"balloon.{key}": value for key, value in stats.items()}
    return {
        **told,
        "balloon.maximum": maximum,
        "balloon.current": current,
        "balloon.last-update": stats.get("last_update", 0),
    }


def actual_kib(handle: Any) -> Optional[int]:
    """Return a balloon's size by QEMU's own word; None where it has none, or the driver does not tell."""
    return balloon_stats.counter(handle.memoryStats().get("actual"))


@functools.lru_cache(maxsize=256)  # most vCPUs have one of few
def cpus_of(cpu_map: tuple[bool, ...]) -> CpuSet:
    return frozenset(cpu for cpu, allowed in enumerate(cpu_map) if allowed)


class Definitions:
    """What the domains' XML says, each parsed once for as long as it stays the same.

    Of *parts* only what these need is looked up.
    """

    def __init__(self, parts: Container[str], processes: Processes) -> None:
        self._memory, self._vcpu = "memory" in parts, "vcpus" in parts
        self._processes = processes
        self._parsed = libvirt_xml.Parsed()
        self._starts: dict[tuple[str, int], Start] = {}

    def keep(self, runs: Collection[tuple[str, int]]) -> None:
        """Forget all but the domains of these UUIDs and ids."""
        self._parsed.keep({uuid for uuid, _id in runs})
        # A call that was abandoned may go on at any time, and add to these.
        self._starts = {run: start for run, start in list(self._starts.items()) if run in runs}

    def understand(self, bare: Domain, answers: Answers, online: CpuSet, topology: Topology, host_uuid: str) -> Known:
        """Return everything about one domain but its counters."""
        live = self._parsed.live(bare.uuid, answers.live, online)
        persistent = answers.inactive is not None
        definition = self._parsed.inactive(bare.uuid, answers.inactive or "<domain/>")
        process = self._processes.known(bare)
        start = None if persistent else self.start(bare, live, process)
        will = start or definition
        copied = _copied(live.record, definition.record, bare, process)
        automatic = _automatic_pcpus(live, answers, host_uuid) if live.placement_auto else None
        numa = automatic if live.nodeset is None else libvirt_xml.cells_pcpus(live.nodeset, topology)
        default = live.cpuset or automatic or online
        groups = cgroups.of_process(process.pid) if process else None
        domain = replace(
            bare,
            persistent=persistent,
            # It follows from two clocks, and would be another one in each look.
            started_s=round(process.started_s, 1) if process else None,
            cpuset=live.cpuset,
            numa_pcpus=numa,
            cgroup_pcpus=groups.cpus if groups and self._vcpu else None,
            vcpu_quota=live.vcpu_quota,
            threads=tuple(_thread(t, live.thread_pins, will.thread_pins, automatic) for t in live.threads),
            balloon=_balloon_of(live, groups, numa, topology) if self._memory else None,
            owner=live.owner,
            record=None if copied else live.record,
            record_error=live.record_error or copied,
            cpu_weight=groups.cpu_weight if groups and self._vcpu else None,
            guest_threads=live.guest_threads,
            cachetune=live.cachetune,
            managed_by=live.managed_by,
            start_unknown=start is not None and not start.sure and bool(start.pins) and live.record is None,
        )
        resumed = self._memory and process is not None and process.resumed
        cells = live.vcpu_cells.items()
        numa_of = {n: cpus for n, nodes in cells if (cpus := libvirt_xml.cells_pcpus(nodes, topology))}
        return Known(
            domain,
            live.pins,
            default,
            will.pins,
            live.schedulers,
            answers.affinities,
            resumed,
            numa_of,
            answers.busy,
        )

    def start(self, bare: Domain, live: libvirt_xml.DomainDefinition, process: Optional[procfs.Process]) -> Start:
        """Return how a transient domain began, which has no other definition than its live one."""
        run = (bare.uuid, bare.id)
        if run not in self._starts:
            sure = process is not None and time.time() < process.started_s + _START_S
            self._starts[run] = Start(live.pins, live.thread_pins, sure)
        return self._starts[run]
