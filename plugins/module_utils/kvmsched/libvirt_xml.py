# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What libvirt's XML says: a host's topology, and what a domain's definition allows and forbids. Pure."""

from __future__ import annotations

import functools
import xml.etree.ElementTree as ET
from dataclasses import dataclass, replace
from typing import Container, Iterable, Mapping, NamedTuple, Optional, Sequence

from .baseline import OWNER_URI, STATE_URI, decode
from .model import Cell, Memnode, Owner, Pcpu, Record, Thread, Topology
from .units import CpuSet, CpuSets, one_line, parse_cpuset

# A domain's XML has some 10 KiB, with 1,024 pinned vCPUs 70 KiB; libvirt's RPC carries at most 4 MiB of it
# (VIR_NET_MESSAGE_STRING_MAX), and each character costs some ten bytes while it is parsed.
LONGEST = 1024 * 1024
# The longest word that an owner has to say is "dedicated", the longest number "99.999999%".
_LONGEST_WORD, _MOST_WORDS = 64, 32

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
        places[cpu] = Pcpu(cpu, core=cpu, siblings=frozenset({cpu}))
    shared = _shared_caches(places.values())
    pcpus = tuple(
        replace(places[cpu], siblings=places[cpu].siblings & online, llc=shared[cpu]) for cpu in sorted(places)
    )
    return Capabilities(root.findtext("host/uuid", ""), Topology(pcpus, tuple(cells), isolated & online))


def _last_level_caches(root: ET.Element) -> dict[int, CpuSet]:
    """Return the pCPUs that share a pCPU's cache of the highest level listed, by pCPU id."""
    banks = root.findall("host/cache/bank")
    top = max((int(bank.get("level", "0")) for bank in banks), default=0)
    shared: dict[int, CpuSet] = {}
    for bank in banks:
        if int(bank.get("level", "0")) == top and bank.get("cpus"):
            cpus = parse_cpuset(bank.get("cpus", ""))
            shared.update(dict.fromkeys(cpus, cpus))
    return shared


def _shared_caches(pcpus: Iterable[Pcpu]) -> dict[int, CpuSet]:
    """Return those of a pCPU's cell that share its last-level cache, by pCPU id.

    pCPUs without such a cache in the document (large ARM, POWER, the low-power cores of a hybrid) share one with those
    of their die that have none either. A cache that spans cells is cut: the kernel shares it by cell, too
    (sub-NUMA clustering).
    """
    groups: dict[object, set[int]] = {}
    keys = {pcpu.id: (pcpu.cell, pcpu.llc or (pcpu.socket, pcpu.die)) for pcpu in pcpus}
    for number, key in keys.items():
        groups.setdefault(key, set()).add(number)
    whole = {key: frozenset(group) for key, group in groups.items()}
    return {number: whole[key] for number, key in keys.items()}


def _pcpu(cpu: ET.Element, cell_id: int, llc: dict[int, CpuSet]) -> Pcpu:
    """Return a pCPU; an offline one has an id and nothing else."""
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
    memnodes: tuple[Memnode, ...]
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
    soft_limit_kib: Optional[int]
    fixed_kib: int
    huge_kib: int
    inhibitors: tuple[str, ...]
    owner: Owner
    record: Optional[Record]
    record_error: Optional[str]
    thread_pins: Mapping[tuple[str, int], CpuSet]
    vcpu_cells: Mapping[int, CpuSet]
    guest_threads: int
    cachetune: bool
    managed_by: str


def parse_domain(text: str, online: CpuSet) -> DomainDefinition:
    """Read a domain's live XML. *online* is where a thread may run that nothing confines."""
    root = ET.fromstring(text)
    vcpu = root.find("vcpu")
    cpuset = _cpus(None if vcpu is None else vcpu.get("cpuset"))
    memory, memnodes = _numa_memory(root)
    memory_cells = _union([node for node in (memory, *memnodes) if _is_strict(node)])
    balloon = _part(root, "devices").find("memballoon")
    stats = None if balloon is None else balloon.find("stats")
    devices = _part(root, "devices").findall("memory")
    huge_kib, plain_kib = _page_sizes(root)
    metadata = _metadata(root)
    return DomainDefinition(
        cpuset=cpuset,
        placement_auto=vcpu is not None and vcpu.get("placement") == "auto",
        nodeset=_union([memory, *memnodes]),
        memory_cells=memory_cells,
        memnodes=_bound_parts(root, devices, memory, memnodes, memory_cells),
        memory_auto=_is_strict(memory) and memory.get("placement") == "auto",
        pins=parse_pins(root),
        threads=_threads(root, cpuset or online),
        schedulers=_schedulers(root),
        vcpu_quota=_vcpu_quota(root),
        maximum_kib=_kib(root.find("memory")) or 0,
        current_kib=_kib(root.find("currentMemory")),
        virtio_mem=any(device.get("model") == "virtio-mem" for device in devices),
        balloon_device=balloon is not None and balloon.get("model") != "none",
        autodeflate=balloon is not None and balloon.get("autodeflate") == "on",
        period_s=0 if stats is None else int(stats.get("period", "0")),
        hard_limit_kib=_memory_limit(root, "hard_limit"),
        soft_limit_kib=_memory_limit(root, "soft_limit"),
        fixed_kib=sum(_device_kib(device) for device in devices if device.get("model") in _FIXED),
        huge_kib=huge_kib,
        inhibitors=_inhibitors(root, plain_kib),
        owner=metadata.owner,
        record=metadata.record,
        record_error=metadata.record_error,
        thread_pins=_thread_pins(root),
        vcpu_cells=_vcpu_cells(root, memory, memnodes),
        guest_threads=_guest_threads(root),
        cachetune=any(tuned.find("cache") is not None for tuned in _part(root, "cputune").findall("cachetune")),
        managed_by=metadata.managed_by,
    )


@dataclass(frozen=True)
class InactiveDefinition:
    """What a persistent definition says: its pins, and the record that it carries.

    Such a record is a copy, for ours is never written there. ``thread_pins`` are those of the emulator and of I/O
    threads, by kind and id.
    """

    pins: dict[int, CpuSet]
    record: Optional[Record]
    thread_pins: Mapping[tuple[str, int], CpuSet]


def parse_inactive(text: str) -> InactiveDefinition:
    """Read a domain's inactive XML, and only if it holds what is looked for."""
    if "pin " not in text and STATE_URI not in text:
        return InactiveDefinition({}, None, {})
    root = ET.fromstring(text)
    return InactiveDefinition(parse_pins(root), _metadata(root).record, _thread_pins(root))


class Parsed:
    """Domains' definitions by their XML: from pass to pass most of it is the same.

    It keeps the last text of each domain and no other, however often an owner changes it.
    """

    def __init__(self) -> None:
        self._live: dict[str, tuple[str, CpuSet, DomainDefinition]] = {}
        self._inactive: dict[str, tuple[str, InactiveDefinition]] = {}

    def live(self, uuid: str, text: str, online: CpuSet) -> DomainDefinition:
        """Return the same as parse_domain(), of the domain *uuid*."""
        last = self._live.get(uuid)
        if last is None or last[:2] != (text, online):
            last = self._live[uuid] = (text, online, parse_domain(text, online))
        return last[2]

    def inactive(self, uuid: str, text: str) -> InactiveDefinition:
        """Return the same as parse_inactive(), of the domain *uuid*."""
        last = self._inactive.get(uuid)
        if last is None or last[0] != text:
            last = self._inactive[uuid] = (text, parse_inactive(text))
        return last[1]

    def keep(self, uuids: Container[str]) -> None:
        """Forget all others."""
        # A call that was abandoned may go on at any time, and add to these.
        self._live = {uuid: one for uuid, one in list(self._live.items()) if uuid in uuids}
        self._inactive = {uuid: one for uuid, one in list(self._inactive.items()) if uuid in uuids}


def parse_pins(root: ET.Element) -> dict[int, CpuSet]:
    """Return each ``<vcpupin>``, by vCPU id; a vCPU without one is not in it."""
    pins = [(int(pin.get("vcpu", "0")), pin.get("cpuset")) for pin in _part(root, "cputune").findall("vcpupin")]
    read = CpuSets()
    return {number: read(text) for number, text in pins if text}


# A thread each. QEMU itself takes thousands, nobody has as many as that.
_MOST_IOTHREADS = 1024


def _threads(root: ET.Element, default: CpuSet) -> tuple[Thread, ...]:
    pins = _thread_pins(root)
    threads = [Thread("emulator", 0, pins.get(("emulator", 0), default))]
    listed = [int(thread.get("id", "0")) for thread in _part(root, "iothreadids").findall("iothread")]
    for number in listed or range(1, min(_MOST_IOTHREADS, int(root.findtext("iothreads", "0"))) + 1):
        threads.append(Thread("iothread", number, pins.get(("iothread", number), default)))
    return tuple(threads)


def _thread_pins(root: ET.Element) -> dict[tuple[str, int], CpuSet]:
    """Return each ``<emulatorpin>`` and ``<iothreadpin>``, by the thread's kind and id."""
    tuned = _part(root, "cputune")
    elements = {("iothread", int(pin.get("iothread", "0"))): pin for pin in tuned.findall("iothreadpin")}
    elements.update((("emulator", 0), pin) for pin in tuned.findall("emulatorpin"))
    texts = ((thread, pin.get("cpuset")) for thread, pin in elements.items())
    read = CpuSets()
    return {thread: read(text) for thread, text in texts if text}


def _schedulers(root: ET.Element) -> dict[int, str]:
    """Return each real-time class (fifo, rr) by ``<vcpusched>``, by vCPU id."""
    schedulers: dict[int, str] = {}
    elements = _part(root, "cputune").findall("vcpusched")
    read = CpuSets()
    for vcpus, scheduler in dict.fromkeys((e.get("vcpus"), e.get("scheduler")) for e in elements):
        if scheduler in ("fifo", "rr") and vcpus:
            schedulers.update(dict.fromkeys(read(vcpus), scheduler))
    return schedulers


def _numa_memory(root: ET.Element) -> tuple[ET.Element, list[ET.Element]]:
    """Return where ``<numatune>`` has the memory: of the whole domain, and of single guest cells."""
    tuned = _part(root, "numatune")
    return _part(tuned, "memory"), tuned.findall("memnode")


def _bound_parts(
    root: ET.Element,
    devices: Sequence[ET.Element],
    memory: ET.Element,
    memnodes: Sequence[ET.Element],
    all_cells: Optional[CpuSet],
) -> tuple[Memnode, ...]:
    """Return which part of the memory is bound to which of the host's cells; none where each may be in *all_cells*.

    A guest cell without a ``<memnode>`` has its memory where the whole domain has it.
    """
    if not memnodes:
        return ()
    nodes = {int(node.get("cellid", "0")): node for node in memnodes}
    dimms = [(int(_part(device, "target").findtext("node", "0")), _device_kib(device)) for device in devices]
    bound_kib: dict[CpuSet, int] = {}
    for number, kib in [*_guest_cells(root, devices), *dimms]:
        node = nodes.get(number, memory)
        cells = _cpus(node.get("nodeset"))
        # A guest cell may have no memory at all.
        if kib and cells and _is_strict(node):
            bound_kib[cells] = bound_kib.get(cells, 0) + kib
    return tuple(Memnode(cells, kib) for cells, kib in bound_kib.items()) if set(bound_kib) != {all_cells} else ()


def _vcpu_cells(root: ET.Element, memory: ET.Element, memnodes: Iterable[ET.Element]) -> dict[int, CpuSet]:
    """Return the host's cells where the memory of a vCPU's guest cell is, by vCPU id, where that is known.

    A guest cell without a ``<memnode>`` has its memory where the whole domain has it.
    """
    nodes = {int(node.get("cellid", "0")): _cpus(node.get("nodeset")) for node in memnodes}
    if not nodes:
        return {}
    found = {}
    read = CpuSets()
    for position, cell in enumerate(_part(_part(root, "cpu"), "numa").findall("cell")):
        number = int(cell.get("id", str(position)))
        cells = nodes.get(number) or _cpus(memory.get("nodeset"))
        vcpus = cell.get("cpus")
        if cells and vcpus:
            found.update(dict.fromkeys(read(vcpus), cells))
    return found


def _guest_threads(root: ET.Element) -> int:
    """Return how many vCPUs in a row the guest takes for threads of one core: ``<topology threads=>``."""
    return max(1, int(_part(_part(root, "cpu"), "topology").get("threads", "1")))


def _is_strict(node: ET.Element) -> bool:
    """Return whether the kernel takes the memory from there or not at all."""
    return node is not _NOTHING and node.get("mode", "strict") in ("strict", "restrictive")


def _union(nodes: Iterable[ET.Element]) -> Optional[CpuSet]:
    read = CpuSets()
    named = [read(text) for node in nodes if (text := node.get("nodeset"))]
    return frozenset().union(*named) if named else None


def _vcpu_quota(root: ET.Element) -> Optional[float]:
    """Return the share of a pCPU that ``<quota>`` leaves each vCPU; not positive is no limit, the period 0.1 s."""
    tuned = _part(root, "cputune")
    quota_us = int(tuned.findtext("quota", "0"))
    period_us = int(tuned.findtext("period", "100000"))
    return quota_us / period_us if quota_us > 0 and period_us > 0 else None


def _memory_limit(root: ET.Element, name: str) -> Optional[int]:
    """Return a limit of ``<memtune>``; libvirt's "unlimited" (VIR_DOMAIN_MEMORY_PARAM_UNLIMITED) is no limit."""
    limit_kib = _kib(_part(root, "memtune").find(name))
    return limit_kib if limit_kib is not None and limit_kib < 9007199254740991 else None


# Memory devices that count in ``<memory>``, and that no balloon reaches.
_FIXED = ("nvdimm", "virtio-pmem", "sgx-epc")


def _device_kib(device: ET.Element) -> int:
    return _kib(_part(device, "target").find("size")) or 0


def _page_sizes(root: ET.Element) -> tuple[int, int]:
    """Return how much of the guest's memory lies on huge pages, and how much does not; KiB.

    Its cells do as ``<hugepages>`` says, a DIMM does as its cell unless it names a page of its own.
    """
    pages = _huge_pages(root)
    devices = _part(root, "devices").findall("memory")
    parts = [(_page_of(number, pages), kib) for number, kib in _guest_cells(root, devices)]
    parts += [
        (_page_of_dimm(device, pages), _device_kib(device)) for device in devices if device.get("model") == "dimm"
    ]
    huge_kib = sum(kib for page_kib, kib in parts if page_kib > _PLAIN_PAGE_KIB)
    return huge_kib, sum(kib for _page_kib, kib in parts) - huge_kib


def _guest_cells(root: ET.Element, devices: Sequence[ET.Element]) -> list[tuple[int, int]]:
    """Return the id and KiB of the guest's cells, without memory devices; without cells one with all of it."""
    cells = _part(_part(root, "cpu"), "numa").findall("cell")
    if cells:
        return [(int(cell.get("id", "0")), _scaled(cell.get("memory", "0"), cell.get("unit"))) for cell in cells]
    return [(0, (_kib(root.find("memory")) or 0) - sum(map(_device_kib, devices)))]


_Pages = list[tuple[Optional[CpuSet], int]]


def _huge_pages(root: ET.Element) -> _Pages:
    """Return what ``<hugepages>`` says: the guest's cells (None: all others) and the size of their pages."""
    element = _part(root, "memoryBacking").find("hugepages")
    if element is None:
        return []
    pages = [(_cpus(page.get("nodeset")), _scaled(page.get("size", "0"), page.get("unit"))) for page in element]
    return pages or [(None, _SOME_HUGE_PAGE_KIB)]


def _page_of(cell: int, pages: _Pages) -> int:
    named = [kib for cells, kib in pages if cells is not None and cell in cells]
    return (named or [kib for cells, kib in pages if cells is None] or [0])[0]


def _page_of_dimm(dimm: ET.Element, pages: _Pages) -> int:
    own_kib = _kib(_part(dimm, "source").find("pagesize"))
    return own_kib or _page_of(int(_part(dimm, "target").findtext("node", "0")), pages)


# The largest of plain pages (arm64, ppc64), and a huge one where only the host knows of what size.
_PLAIN_PAGE_KIB = 64
_SOME_HUGE_PAGE_KIB = 2048


def _inhibitors(root: ET.Element, plain_kib: int) -> tuple[str, ...]:
    """Return why the host keeps pages that a balloon gives back (QEMU's virtio_balloon_inhibited, libvirt's)."""
    devices = _part(root, "devices")
    found = []
    if any(map(_is_vfio, devices.findall("hostdev"))):
        found.append("hostdev (VFIO)")
    found += [f"interface type {kind}" for kind in ("hostdev", "vdpa") if _has_interface(root, kind)]
    # A disk may be so only in its backing store, or in the mirror that it is copied to.
    disks = {element.get("type") for disk in devices.findall("disk") for element in disk.iter()}
    found += [f"disk type {kind}" for kind in ("nvme", "vhostvdpa") if kind in disks]
    backing = _part(root, "memoryBacking")
    # Where a part of its memory is on plain pages, the balloon gets some of that.
    found += [name for name in ("hugepages", "locked") if backing.find(name) is not None]
    if plain_kib and "hugepages" in found:
        found.remove("hugepages")
    if root.find("launchSecurity") is not None:
        found.append("launchSecurity")
    arguments = [argument.get("value", "") for argument in root.iterfind(f"{_QEMU}commandline/{_QEMU}arg")]
    found += [f"qemu:commandline {word}" for word in _PINNING if any(word in argument for argument in arguments)]
    return tuple(found)


_QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"
# Of mlock, the older word; on-fault begins with on.
_PINNING = ("vfio-pci", "vhost-vdpa", "mem-lock=on", "mlock=on")


def _is_vfio(hostdev: ET.Element) -> bool:
    """Return whether a host device pins the guest's memory: s390's crypto and channels don't (QEMU, hw/vfio)."""
    mediated = hostdev.get("type") == "mdev" and hostdev.get("model") not in ("vfio-ap", "vfio-ccw")
    return mediated or hostdev.get("type") == "pci"


def _has_interface(root: ET.Element, kind: str) -> bool:
    return any(interface.get("type") == kind for interface in _part(root, "devices").findall("interface"))


# What programs that place guests themselves write into a domain's metadata: the start of its namespace.
_MANAGERS = {
    "http://openstack.org/xmlns/libvirt/nova/": "nova",
    "http://ovirt.org/vm/": "ovirt",
    "http://kubevirt.io": "kubevirt",
}


class _Metadata(NamedTuple):
    """The owner's settings, our record or why it can't be read, and the program that manages the domain."""

    owner: Owner
    record: Optional[Record]
    record_error: Optional[str]
    managed_by: str


def _metadata(root: ET.Element) -> _Metadata:
    owner, record, error, managed_by = Owner(), None, None, ""
    for element in _part(root, "metadata"):
        uri = element.tag.rpartition("}")[0].lstrip("{")
        if uri == OWNER_URI:
            owner = _owner(element)
        elif uri == STATE_URI and record is None and error is None:
            try:
                record = decode(element)
            except ValueError as problem:
                error = str(problem)
        elif uri.startswith(STATE_URI.rpartition("/")[0] + "/"):
            error = f"its record is of a newer kvmsched ({uri})"
        managed_by = managed_by or next((name for start, name in _MANAGERS.items() if uri.startswith(start)), "")
    return _Metadata(owner, record, error, managed_by)


def _owner(element: ET.Element) -> Owner:
    words = {key: text for key, text in element.attrib.items() if len(key) <= _LONGEST_WORD}
    long = [key for key, text in element.attrib.items() if max(len(key), len(text)) > _LONGEST_WORD]
    error = None
    if len(element):
        error = f"got element <{one_line(element[0].tag.rpartition('}')[2], 40)}>, allowed: attributes only"
    elif long or len(words) > _MOST_WORDS:
        what = f"attribute {one_line(long[0], 40)}" if long else f"{len(words)} attributes"
        error = f"got {what}, allowed: at most {_MOST_WORDS} attributes of at most {_LONGEST_WORD} characters"
    words = {key: text for key, text in words.items() if len(text) <= _LONGEST_WORD}
    return Owner(dict(list(words.items())[:_MOST_WORDS]), error)


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
    return _scaled(element.text, element.get("unit"))


def _scaled(text: str, unit: Optional[str]) -> int:
    return int(text) * _BYTES_PER_UNIT.get(unit or "KiB", 1024) // 1024


_NOTHING = ET.Element("nothing")


def _part(root: ET.Element, name: str) -> ET.Element:
    """Return a child; without paths such as ``cputune/vcpupin``, which ElementTree walks in Python."""
    part = root.find(name)
    return _NOTHING if part is None else part


def _cpus(text: Optional[str]) -> Optional[CpuSet]:
    return parse_cpuset(text) if text else None


def cells_of(pcpus: CpuSet, topology: Topology) -> CpuSet:
    """Return the NUMA cells that have *pcpus*."""
    return frozenset(cell.id for cell in topology.cells if cell.pcpus & pcpus)


def cells_pcpus(nodeset: Iterable[int], topology: Topology) -> Optional[CpuSet]:
    """Return the pCPUs of the cells in *nodeset*; None where these have memory only (CXL, a GPU's): no limit."""
    wanted = set(nodeset)
    return frozenset().union(*(cell.pcpus for cell in topology.cells if cell.id in wanted)) or None
