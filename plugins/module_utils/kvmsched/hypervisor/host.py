# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the host: its CPUs, its memory and its own work, and which domains are active."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass, replace
from typing import Any, Container, Optional, Sequence
from urllib.parse import urlsplit

from .. import cgroups, libvirt_xml, procfs
from ..hostwork import HostWork, PcpuTimes
from ..model import Balloon, Domain, Host, HostMemory, Room, Topology
from ..units import CpuSet
from .binding import libvirt
from .connection import Calls
from .domain import cpus_of
from .qemu import Processes

# While the same CPUs are online, a host's topology hardly changes.
_TOPOLOGY_S = 60.0


@dataclass(frozen=True)
class Inventory:
    """The host's CPUs, and by UUID its active domains with their states, and no more of them.

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


def take_inventory(local: bool, last: Optional[Inventory], whole: bool, connection: Any) -> Inventory:
    """Return the active domains; with the host's topology as it was at *last*, if that is not long ago."""
    _count, cpus, _online = connection.getCPUMap()
    online = cpus_of(tuple(cpus))
    now_s = time.monotonic()
    if last and (last.connection, last.online) == (connection, online) and now_s < last.topology_s + _TOPOLOGY_S:
        topology, host_uuid, topology_s = last.topology, last.host_uuid, last.topology_s
    else:
        isolated = procfs.isolated() if local else frozenset()
        capabilities = libvirt_xml.parse_capabilities(connection.getCapabilities(), online, isolated)
        topology = _by_kernel(capabilities.topology) if local else capabilities.topology
        # libvirt makes up another one at each of its starts where the firmware tells none (or a silly one).
        host_uuid, topology_s = (procfs.machine_id() if local else None) or capabilities.host_uuid, now_s
    active = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE
    listed = connection.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE, active)
    handles = {handle.UUIDString(): handle for handle, _record in listed}
    states = (_state(record) for _handle, record in listed)
    domains = {uuid: Domain(uuid, h.name(), h.ID(), state) for (uuid, h), state in zip(handles.items(), states)}
    persistent = persistent_uuids(connection) if whole else None
    driver = connection.getType()
    return Inventory(connection, online, topology, host_uuid, topology_s, driver, handles, domains, persistent)


def _by_kernel(topology: Topology) -> Topology:
    """Return *topology* with what only the kernel says of its pCPUs."""
    kinds = procfs.pcpu_kinds(topology.online)
    pcpus = (replace(pcpu, **kinds[pcpu.id]._asdict()) if pcpu.id in kinds else pcpu for pcpu in topology.pcpus)
    nohz_full = procfs.nohz_full() & topology.online - topology.isolated
    return replace(topology, pcpus=tuple(pcpus), nohz_full=nohz_full)


def persistent_uuids(connection: Any) -> frozenset[str]:
    chosen = libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE | libvirt.VIR_CONNECT_LIST_DOMAINS_PERSISTENT
    return frozenset(handle.UUIDString() for handle in connection.listAllDomains(chosen))


# virDomainState
_STATES = {1: "running", 2: "blocked", 3: "paused", 4: "shutting down", 5: "shut off", 6: "crashed", 7: "suspended"}


def _state(record: Any) -> str:
    number = record.get("state.state") if isinstance(record, dict) else None
    return _STATES.get(number, "unknown") if isinstance(number, int) else "unknown"


def on_connection(connection: Any, handle: Any) -> Any:
    """Return the same domain on *connection*, which may be a later one than that which listed it."""
    return handle if handle.connect() is connection else connection.lookupByUUID(handle.UUID())


def bare_domain(handle: Any) -> Domain:
    return Domain(handle.UUIDString(), handle.name(), handle.ID())


def _host_memory(connection: Any) -> Optional[HostMemory]:
    """Return host memory as libvirt tells it, which knows no MemAvailable: free, buffers and page cache together."""
    try:
        stats = connection.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS, 0)
    except libvirt.libvirtError:
        return HostMemory(connection.getInfo()[1] * 1024, connection.getFreeMemory() // 1024)
    available_kib = stats["free"] + stats.get("buffers", 0) + stats.get("cached", 0)
    return HostMemory(stats["total"], available_kib)


class HostReader:
    """Reads what a snapshot says of the host itself; of *parts* only what these need."""

    def __init__(self, uri: str, local: bool, parts: Container[str], processes: Processes) -> None:
        self._uri, self._local = uri, local
        self._memory, self._vcpu = "memory" in parts, "vcpus" in parts
        self._processes = processes
        self._work = HostWork()

    def read(self, inventory: Inventory, balloons: Sequence[Balloon], calls: Calls) -> Host:
        here = self._local and self._vcpu
        times = self._look_at_work(inventory) if here else None
        memory = procfs.memory() if self._local else calls.ask(_host_memory)
        name = socket.gethostname() if self._local else urlsplit(self._uri).hostname or inventory.driver.lower()
        topology = inventory.topology
        if self._local and self._memory:
            bound = any(balloon.cells is not None for balloon in balloons)
            topology = replace(topology, cells=procfs.cells_memory(topology.cells, bound))
        return Host(
            uuid=inventory.host_uuid,
            name=name,
            uri=self._uri,
            driver=inventory.driver,
            topology=topology,
            busy_ns=_all_whole_us(times.busy_ns) if times else {},
            bound_ns=_all_whole_us(times.bound_ns) if times else None,
            memory=memory,
            rooms=_rooms(balloons),
            foreign_ns=tuple(replace(part, time_ns=part.time_ns // 1000 * 1000) for part in times.foreign_ns)
            if times
            else None,
            pinners=times.pinners if times else (),
        )

    def _look_at_work(self, inventory: Inventory) -> PcpuTimes:
        guests = {process.pid for process in self._processes.all()}
        return self._work.look(inventory.topology.isolated, self._qemu_groups, guests)

    def _qemu_groups(self) -> list[str]:
        return [group for process in self._processes.all() if (group := cgroups.of_main_thread(process.pid))]


def _rooms(balloons: Sequence[Balloon]) -> tuple[Room, ...]:
    names = {name for balloon in balloons for name in balloon.rooms}
    return tuple(room for room in map(cgroups.room, sorted(names)) if room is not None)


def _all_whole_us(by_pcpu: dict[int, int]) -> dict[int, int]:
    return {pcpu: ns // 1000 * 1000 for pcpu, ns in by_pcpu.items()}
