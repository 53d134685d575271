# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What libvirt's XML says: a host's topology, and what a domain's definition allows and forbids. Pure."""

from __future__ import annotations

import functools
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import Iterable, Optional

from .baseline import OWNER_URI, STATE_URI, decode
from .model import Cell, Owner, Pcpu, Record, Thread, Topology
from .units import CpuSet, parse_cpuset

# From pass to pass most XML is the same. Some 10 KiB each: enough for a large host, and no more than 20 MiB.
_PARSED = 1024

# ---------------------------------------------------------------- the host's capabilities


@dataclass(frozen=True)
class Capabilities:
    """The parts of virConnectGetCapabilities that scheduling needs; its pCPUs may be offline."""

    host_uuid: str
    topology: Topology


@functools.lru_cache(maxsize=2)
def parse_capabilities(text: str, online: CpuSet, isolated: CpuSet) -> Capabilities:
    """Read a host's capabilities, the same text once; *online* pCPUs that they do not list get places of their own."""
    root = ET.fromstring(text)
    cells = []
    places: dict[int, Pcpu] = {}
    llc = _last_level_caches(root)
    for element in root.findall("host/topology/cells/cell"):
        cell_id = int(element.get("id", "0"))
        members = [_pcpu(cpu, cell_id, llc) for cpu in element.findall("cpus/cpu")]
        places.update({pcpu.id: pcpu for pcpu in members if pcpu.id in online})
        cells.append(_cell(element, cell_id, frozenset(pcpu.id for pcpu in members) & online))
    for cpu in sorted(online - set(places)):
        places[cpu] = Pcpu(cpu, core=cpu, siblings=frozenset({cpu}), llc=online)
    pcpus = tuple(_within(places[cpu], online) for cpu in sorted(places))
    return Capabilities(root.findtext("host/uuid", ""), Topology(pcpus, tuple(cells), isolated & online))


def _last_level_caches(root: ET.Element) -> dict[int, CpuSet]:
    """pCPU id -> the pCPUs that share its cache of the highest level listed."""
    banks = root.findall("host/cache/bank")
    top = max((int(bank.get("level", "0")) for bank in banks), default=0)
    shared: dict[int, CpuSet] = {}
    for bank in banks:
        if int(bank.get("level", "0")) == top and bank.get("cpus"):
            cpus = parse_cpuset(bank.get("cpus", ""))
            shared.update(dict.fromkeys(cpus, cpus))
    return shared


def _pcpu(cpu: ET.Element, cell_id: int, llc: dict[int, CpuSet]) -> Pcpu:
    """An offline pCPU has an id and nothing else."""
    number = int(cpu.get("id", "0"))
    return Pcpu(
        number,
        cell=cell_id,
        socket=int(cpu.get("socket_id", "0")),
        die=int(cpu.get("die_id", "0")),
        core=int(cpu.get("core_id", str(number))),
        siblings=_cpus(cpu.get("siblings")) or frozenset({number}),
        llc=llc.get(number, frozenset()),
    )


def _within(pcpu: Pcpu, online: CpuSet) -> Pcpu:
    return Pcpu(
        pcpu.id, pcpu.cell, pcpu.socket, pcpu.die, pcpu.core, pcpu.siblings & online, (pcpu.llc & online) or online
    )


def _cell(element: ET.Element, cell_id: int, pcpus: CpuSet) -> Cell:
    memory = element.findtext("memory")
    siblings = element.findall("distances/sibling")
    distances = {int(s.get("id", "0")): int(s.get("value", "0")) for s in siblings}
    return Cell(cell_id, pcpus, int(memory) if memory else None, None, distances)


# ---------------------------------------------------------------- a domain


@dataclass(frozen=True)
class DomainDefinition:
    """What a domain's live XML says; see model.Domain and model.Balloon for the meaning of the fields."""

    cpuset: Optional[CpuSet]
    placement_auto: bool
    nodeset: Optional[CpuSet]
    memory_cells: Optional[CpuSet]
    memory_auto: bool
    pins: dict[int, CpuSet]
    threads: tuple[Thread, ...]
    schedulers: dict[int, str]
    vcpu_quota: Optional[float]
    maximum_kib: int
    current_kib: Optional[int]
    virtio_mem: bool
    balloon_device: bool
    autodeflate: bool
    period_s: int
    hard_limit_kib: Optional[int]
    inhibitors: tuple[str, ...]
    owner: Owner
    record: Optional[Record]
    record_error: Optional[str]


@functools.lru_cache(maxsize=_PARSED)
def parse_domain(text: str, online: CpuSet) -> DomainDefinition:
    """Read a domain's live XML, the same text once. *online* is where a thread may run that nothing confines."""
    root = ET.fromstring(text)
    vcpu = root.find("vcpu")
    cpuset = _cpus(None if vcpu is None else vcpu.get("cpuset"))
    memory, memnodes = _numa_memory(root)
    balloon = _part(root, "devices").find("memballoon")
    stats = None if balloon is None else balloon.find("stats")
    owner, record, error = _metadata(root)
    return DomainDefinition(
        cpuset=cpuset,
        placement_auto=vcpu is not None and vcpu.get("placement") == "auto",
        nodeset=_union([memory, *memnodes]),
        memory_cells=_union([node for node in (memory, *memnodes) if _is_strict(node)]),
        memory_auto=_is_strict(memory) and memory.get("placement") == "auto",
        pins=parse_pins(root),
        threads=_threads(root, cpuset or online),
        schedulers=_schedulers(root),
        vcpu_quota=_vcpu_quota(root),
        maximum_kib=_kib(root.find("memory")) or 0,
        current_kib=_kib(root.find("currentMemory")),
        virtio_mem=any(device.get("model") == "virtio-mem" for device in _part(root, "devices").findall("memory")),
        balloon_device=balloon is not None and balloon.get("model") != "none",
        autodeflate=balloon is not None and balloon.get("autodeflate") == "on",
        period_s=0 if stats is None else int(stats.get("period", "0")),
        hard_limit_kib=_hard_limit(root),
        inhibitors=_inhibitors(root),
        owner=owner,
        record=record,
        record_error=error,
    )


@dataclass(frozen=True)
class InactiveDefinition:
    """What a persistent definition says: its pins, and the record that it carries.

    Such a record is a copy, for ours is never written there.
    """

    pins: dict[int, CpuSet]
    record: Optional[Record]


@functools.lru_cache(maxsize=_PARSED)
def parse_inactive(text: str) -> InactiveDefinition:
    """Read a domain's inactive XML, the same text once, and only if it holds what is looked for."""
    if "<vcpupin" not in text and STATE_URI not in text:
        return InactiveDefinition({}, None)
    root = ET.fromstring(text)
    _owner, record, _error = _metadata(root)
    return InactiveDefinition(parse_pins(root), record)


def parse_pins(root: ET.Element) -> dict[int, CpuSet]:
    """vCPU id -> its ``<vcpupin>``; a vCPU without one is not in it."""
    pins = _part(root, "cputune").findall("vcpupin")
    return {int(pin.get("vcpu", "0")): cpus for pin in pins if (cpus := _cpus(pin.get("cpuset")))}


def _threads(root: ET.Element, default: CpuSet) -> tuple[Thread, ...]:
    tuned = _part(root, "cputune")
    emulator = tuned.find("emulatorpin")
    threads = [Thread("emulator", 0, _cpus(None if emulator is None else emulator.get("cpuset")) or default)]
    pins = {int(pin.get("iothread", "0")): pin.get("cpuset") for pin in tuned.findall("iothreadpin")}
    listed = [int(thread.get("id", "0")) for thread in _part(root, "iothreadids").findall("iothread")]
    for number in listed or range(1, int(root.findtext("iothreads", "0")) + 1):
        threads.append(Thread("iothread", number, _cpus(pins.get(number)) or default))
    return tuple(threads)


def _schedulers(root: ET.Element) -> dict[int, str]:
    """vCPU id -> its real-time class (fifo, rr) by ``<vcpusched>``."""
    schedulers: dict[int, str] = {}
    for element in _part(root, "cputune").findall("vcpusched"):
        if element.get("scheduler") in ("fifo", "rr"):
            schedulers.update(dict.fromkeys(_cpus(element.get("vcpus")) or (), element.get("scheduler", "")))
    return schedulers


def _numa_memory(root: ET.Element) -> tuple[ET.Element, list[ET.Element]]:
    """Where ``<numatune>`` has the memory: of the whole domain, and of single guest cells."""
    tuned = _part(root, "numatune")
    return _part(tuned, "memory"), tuned.findall("memnode")


def _is_strict(node: ET.Element) -> bool:
    """Whether the kernel takes the memory from there or not at all."""
    return node is not _NOTHING and node.get("mode", "strict") in ("strict", "restrictive")


def _union(nodes: Iterable[ET.Element]) -> Optional[CpuSet]:
    named = [cells for node in nodes if (cells := _cpus(node.get("nodeset"))) is not None]
    return frozenset().union(*named) if named else None


def _vcpu_quota(root: ET.Element) -> Optional[float]:
    """The share of a pCPU that ``<quota>`` leaves each vCPU; not positive is no limit, the default period 0.1 s."""
    tuned = _part(root, "cputune")
    quota_us = int(tuned.findtext("quota", "0"))
    period_us = int(tuned.findtext("period", "100000"))
    return quota_us / period_us if quota_us > 0 and period_us > 0 else None


def _hard_limit(root: ET.Element) -> Optional[int]:
    """``<memtune><hard_limit>``; libvirt's "unlimited" (VIR_DOMAIN_MEMORY_PARAM_UNLIMITED) is no limit."""
    limit_kib = _kib(_part(root, "memtune").find("hard_limit"))
    return limit_kib if limit_kib is not None and limit_kib < 9007199254740991 else None


def _inhibitors(root: ET.Element) -> tuple[str, ...]:
    """What makes the host keep the pages that a balloon gives back (QEMU's virtio_balloon_inhibited, and libvirt's)."""
    found = []
    if any(device.get("type") in ("pci", "mdev") for device in _part(root, "devices").findall("hostdev")):
        found.append("hostdev (VFIO)")
    found += [f"interface type {kind}" for kind in ("hostdev", "vdpa") if _has_interface(root, kind)]
    backing = root.find("memoryBacking")
    found += [name for name in ("hugepages", "locked") if backing is not None and backing.find(name) is not None]
    if root.find("launchSecurity") is not None:
        found.append("launchSecurity")
    return tuple(found)


def _has_interface(root: ET.Element, kind: str) -> bool:
    return any(interface.get("type") == kind for interface in _part(root, "devices").findall("interface"))


def _metadata(root: ET.Element) -> tuple[Owner, Optional[Record], Optional[str]]:
    """The owner's settings and our record, or why that record can't be read."""
    owner, record, error = Owner(), None, None
    for element in _part(root, "metadata"):
        uri = element.tag.rpartition("}")[0].lstrip("{")
        if uri == OWNER_URI:
            owner = _owner(element)
        elif uri == STATE_URI:
            try:
                record = decode(element)
            except ValueError as problem:
                error = str(problem)
        elif uri.startswith(STATE_URI.rpartition("/")[0] + "/"):
            error = f"its record is of a newer kvmsched ({uri})"
    return owner, record, error


def _owner(element: ET.Element) -> Owner:
    children = [child.tag.rpartition("}")[2] for child in element]
    error = f"got element <{children[0]}>, allowed: attributes only" if children else None
    return Owner(dict(element.attrib), error)


# ---------------------------------------------------------------- text forms

# libvirt's units (virScaleInteger); the default of memory elements is KiB.
_BYTES_PER_UNIT = {
    "b": 1,
    "bytes": 1,
    "KB": 10**3,
    "k": 2**10,
    "KiB": 2**10,
    "MB": 10**6,
    "M": 2**20,
    "MiB": 2**20,
    "GB": 10**9,
    "G": 2**30,
    "GiB": 2**30,
    "TB": 10**12,
    "T": 2**40,
    "TiB": 2**40,
}


def _kib(element: Optional[ET.Element]) -> Optional[int]:
    if element is None or not element.text:
        return None
    return int(element.text) * _BYTES_PER_UNIT.get(element.get("unit", "KiB"), 1024) // 1024


_NOTHING = ET.Element("nothing")


def _part(root: ET.Element, name: str) -> ET.Element:
    """A child; without paths such as ``cputune/vcpupin``, which ElementTree walks in Python."""
    part = root.find(name)
    return _NOTHING if part is None else part


def _cpus(text: Optional[str]) -> Optional[CpuSet]:
    return parse_cpuset(text) if text else None


def cells_of(pcpus: CpuSet, topology: Topology) -> CpuSet:
    """The NUMA cells that have *pcpus*."""
    return frozenset(cell.id for cell in topology.cells if cell.pcpus & pcpus)


def cells_pcpus(nodeset: Iterable[int], topology: Topology) -> CpuSet:
    """The pCPUs of the NUMA cells in *nodeset*."""
    wanted = set(nodeset)
    return frozenset().union(*(cell.pcpus for cell in topology.cells if cell.id in wanted))
