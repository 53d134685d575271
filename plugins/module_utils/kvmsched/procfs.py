# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What this host itself says, under /proc, /sys and /etc. All of it is optional: None where it can't be read."""

from __future__ import annotations

import os
import re
import time
import uuid
from dataclasses import dataclass, replace
from typing import NamedTuple, Optional, Sequence

from .model import Cell, HostMemory
from .units import CpuSet, parse_cpuset

_NS_PER_TICK = 10**9 // os.sysconf("SC_CLK_TCK")
_PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024
_HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage"
_PART = 65536


def read(path: str) -> Optional[str]:
    """Return the text of a file; None where it can't be read."""
    try:
        # Without a file object: a pass reads hundreds of these, most of them shorter than a line.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        text = b""
        while part := os.read(descriptor, _PART):
            text += part
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return text.decode("utf-8", "replace")


_read = read


def memory() -> Optional[HostMemory]:
    """Return what the host has and what is available; pressure, swap and the ZFS cache where the kernel has them.

    Huge pages serve nobody but who asks for them: MemTotal counts them, MemAvailable does not.
    """
    sizes = _kib_by_name(_read("/proc/meminfo"))
    if not {"MemTotal", "MemAvailable"} <= set(sizes):
        return None
    pressure = _pressure(_read("/proc/pressure/memory") or "")
    swapped_in = re.search(r"^pswpin (\d+)$", _read("/proc/vmstat") or "", re.MULTILINE)
    return HostMemory(
        sizes["MemTotal"] - sizes.get("Hugetlb", 0),
        sizes["MemAvailable"],
        pressure.get("some"),
        pressure.get("full"),
        arc_kib=_arc_kib(_read("/proc/spl/kstat/zfs/arcstats") or ""),
        swap_in_kib=int(swapped_in[1]) * _PAGE_KIB if swapped_in else None,
        fills_holes=_fills_holes(),
    )


def _fills_holes() -> bool:
    """Return whether khugepaged fills huge pages that lack some (kernel, admin-guide/mm/transhuge).

    QEMU asks for huge pages, and has them in each mode but "never".
    """
    mode = _read(f"{_HUGE_PAGES}/enabled") or "[never]"
    most_missing = (_read(f"{_HUGE_PAGES}/khugepaged/max_ptes_none") or "").strip()
    return "[never]" not in mode and most_missing.isdigit() and int(most_missing) > 0


def _kib_by_name(text: Optional[str]) -> dict[str, int]:
    """Return the sizes of a meminfo file, of the host or of a cell, by the kernel's names."""
    return {name: int(kib) for name, kib in re.findall(r"([\w()]+): +(\d+) kB", text or "")}


# What the ZFS cache could drop at once: no reader holds it, nothing in it waits to be written.
_ARC_EVICTABLE = tuple(f"{which}_evictable_{what}" for which in ("mru", "mfu") for what in ("data", "metadata"))


def _arc_kib(text: str) -> Optional[int]:
    """Return what the ZFS cache gives back when memory is short: OpenZFS evicts it no further than its c_min."""
    told = {name: int(value) for name, value in re.findall(r"^(\w+) +\d+ +(\d+)$", text, re.MULTILINE)}
    if not {"size", "c_min"} <= set(told):
        return None
    evictable = [told[name] for name in _ARC_EVICTABLE if name in told]
    above_least = told["size"] - told["c_min"]
    return max(0, min(above_least, sum(evictable)) if evictable else above_least) // 1024


def cells_memory(cells: Sequence[Cell], bound: bool) -> tuple[Cell, ...]:
    """Return *cells* with what is free in each; where guests are *bound*, what the kernel could free there, too."""
    lows_kib = _low_watermarks(_read("/proc/zoneinfo") or "") if bound else {}
    return tuple(_cell_memory(cell, lows_kib.get(cell.id)) for cell in cells)


def _cell_memory(cell: Cell, low_kib: Optional[int]) -> Cell:
    sizes = _kib_by_name(_read(f"/sys/devices/system/node/node{cell.id}/meminfo"))
    clean_kib = None
    if "Active(file)" in sizes and "Inactive(file)" in sizes:
        kept_kib = sum(sizes.get(name, 0) for name in ("Mapped", "Dirty", "Writeback"))
        clean_kib = max(0, sizes["Active(file)"] + sizes["Inactive(file)"] - kept_kib)
    slab_kib = sizes.get("SReclaimable")
    return replace(cell, free_kib=sizes.get("MemFree"), low_kib=low_kib, clean_cache_kib=clean_kib, slab_kib=slab_kib)


def _low_watermarks(text: str) -> dict[int, int]:
    """Return, by cell, the sum of its zones' low watermarks (proc(5), zoneinfo), where the kernel begins to reclaim."""
    lows_kib: dict[int, int] = {}
    for cell, pages in re.findall(r"^Node (\d+), zone .*?^ +low +(\d+)$", text, re.MULTILINE | re.DOTALL):
        lows_kib[int(cell)] = lows_kib.get(int(cell), 0) + int(pages) * _PAGE_KIB
    return lows_kib


def _pressure(text: str) -> dict[str, float]:
    """Return avg10 in percent of ``some`` and ``full`` (kernel: Documentation/accounting/psi.rst)."""
    found = {}
    for line in text.splitlines():
        kind, _sep, rest = line.partition(" ")
        averages = dict(pair.split("=") for pair in rest.split())
        if "avg10" in averages:
            found[kind] = float(averages["avg10"])
    return found


def machine_id() -> Optional[str]:
    """Return this installation's identity, as a UUID (machine-id(5))."""
    text = (_read("/etc/machine-id") or "").strip()
    try:
        return str(uuid.UUID(text))
    except ValueError:
        return None


_CPUS = "/sys/devices/system/cpu"


def _listed(path: str) -> CpuSet:
    """Return a list of CPUs in a file; "(null)" and an empty one are none."""
    text = (_read(path) or "").strip()
    return parse_cpuset(text) if text and text[0].isdigit() else frozenset()


def isolated() -> CpuSet:
    """Return the pCPUs on which the kernel balances no load (isolcpus=, isolated partitions of cgroup v2's cpuset)."""
    return _listed(f"{_CPUS}/isolated") | _listed("/sys/fs/cgroup/cpuset.cpus.isolated")


def nohz_full() -> CpuSet:
    """Return the pCPUs that run without a tick while they have one task only (nohz_full=)."""
    return _listed(f"{_CPUS}/nohz_full")


class PcpuKind(NamedTuple):
    """The class of a pCPU on a hybrid host, see model.Pcpu."""

    kind: str
    capacity: Optional[int] = None


def pcpu_kinds(online: CpuSet) -> dict[int, PcpuKind]:
    """Return the classes of pCPUs where the kernel calls this host hybrid; empty where all are alike.

    It tells capacities (Documentation/scheduler/sched-capacity.rst), or has a PMU for each class (x86). CPPC's
    ranks say which one to boost first, not what it is worth.
    """
    capacities = {cpu: _capacity(cpu) for cpu in online} if online and _capacity(min(online)) else {}
    if len(set(capacities.values())) > 1:
        return {cpu: PcpuKind(f"capacity-{capacity}", capacity) for cpu, capacity in capacities.items() if capacity}
    names = {name: _listed(f"/sys/devices/{name}/cpus") & online for name in ("cpu_core", "cpu_atom", "cpu_lowpower")}
    found = {name: cpus for name, cpus in names.items() if cpus}
    return {cpu: PcpuKind(name) for name, cpus in found.items() for cpu in cpus} if len(found) > 1 else {}


def _capacity(cpu: int) -> Optional[int]:
    text = (_read(f"{_CPUS}/cpu{cpu}/cpu_capacity") or "").strip()
    return int(text) if text.isdigit() else None


# ---------------------------------------------------------------- one QEMU process


@dataclass(frozen=True)
class Process:
    """A domain's QEMU process. ``stopped``: a SIGSTOP or a debugger holds it, so its monitor can't answer."""

    pid: int
    started_s: float
    stopped: bool
    started_ticks: int = 0

    def again(self) -> Optional[Process]:
        """Return the same process as it is now; None if it ended."""
        now = _process(self.pid)
        return now if now is not None and now.started_ticks == self.started_ticks else None

    @property
    def memory(self) -> ProcessMemory:
        """Return what it holds now."""
        kib = {name: int(number) for name, number in _VM.findall(_read(f"/proc/{self.pid}/status") or "")}
        locked = [kib[name] for name in ("VmLck", "VmPin") if name in kib]
        return ProcessMemory(kib.get("VmRSS"), sum(locked) if locked else None, kib.get("VmSwap"))

    @property
    def resumed(self) -> bool:
        """Return whether it went on from a saved state: a restore, a revert, a migration to here; unknown counts."""
        text = _read(f"/proc/{self.pid}/cmdline")
        return not text or any(f"\0{option}\0" in text for option in ("-incoming", "-loadvm"))


class ProcessMemory(NamedTuple):
    """What a process holds of the host's memory (proc(5), status): resident; locked or pinned; in the host's swap."""

    rss_kib: Optional[int]
    locked_kib: Optional[int]
    swapped_kib: Optional[int]


_VM = re.compile(r"\n(VmLck|VmPin|VmRSS|VmSwap):\s+(\d+) kB")


def qemu_process(name: str, session: bool) -> Optional[Process]:
    """Return the process of the domain *name*, by libvirt's pid file; None where it can't be seen, or ended."""
    directory = "/run/libvirt/qemu"
    if session:
        directory = os.path.join(os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.geteuid()}"), "libvirt/qemu/run")
    pid = (_read(os.path.join(directory, f"{name}.pid")) or "").strip()
    return _process(int(pid)) if pid.isdigit() else None


def _process(pid: int) -> Optional[Process]:
    # The command name may hold spaces and parentheses: count from its end.
    fields = (_read(f"/proc/{pid}/stat") or "").rpartition(")")[2].split()
    if not fields or fields[0] in "ZX":
        return None
    booted_s = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    ticks = int(fields[19])
    return Process(pid, booted_s + ticks * _NS_PER_TICK / 1e9, fields[0] in "Tt", ticks)


class VcpuThread(NamedTuple):
    """A vCPU's thread: where the kernel lets it run, its time on a pCPU and in the run queue of one."""

    affinity: Optional[CpuSet]
    run_ns: Optional[int]
    delay_ns: Optional[int] = None


# QEMU names its threads so under libvirt (-name debug-threads=on); one thread for all vCPUs is "ALL CPUs/TCG".
_VCPU_THREAD = re.compile(r"CPU (\d+)/")
_NAMES_S = 30.0


class VcpuThreads:
    """The vCPUs' threads of a QEMU process. Their names are read anew where threads came or went; and now and
    then, for a thread may have been listed before it had its name.
    """

    def __init__(self, pid: int) -> None:
        self._directory = f"/proc/{pid}/task"
        self._listed: list[str] = []
        self._listed_s = 0.0
        self._tids: dict[int, int] = {}

    def _now(self) -> dict[int, int]:
        """Return each vCPU's thread, by its id; empty where they can't be told apart, or can't be seen."""
        try:
            listed = os.listdir(self._directory)
        except OSError:
            listed = []
        now_s = time.monotonic()
        if listed != self._listed or now_s > self._listed_s + _NAMES_S:
            names = {tid: _VCPU_THREAD.match(_read(f"{self._directory}/{tid}/comm") or "") for tid in listed}
            # A thread has the name of its creator before its own: the older one is the vCPU's.
            found = sorted(((int(name[1]), int(tid)) for tid, name in names.items() if name), reverse=True)
            self._tids = dict(sorted(dict(found).items()))
            self._listed, self._listed_s = listed, now_s
        return self._tids

    def told(self) -> bool:
        """Return whether the kernel tells of them here: it must keep such times (CONFIG_SCHED_INFO)."""
        return any(self._thread(tid) for tid in self._now().values())

    def read(self) -> dict[int, VcpuThread]:
        """Return what the kernel says of each, by vCPU id; without those that are gone."""
        return {number: thread for number, tid in self._now().items() if (thread := self._thread(tid))}

    def _thread(self, tid: int) -> Optional[VcpuThread]:
        times = (_read(f"{self._directory}/{tid}/schedstat") or "").split()
        try:
            return VcpuThread(frozenset(os.sched_getaffinity(tid)), int(times[0]), int(times[1]))
        except (OSError, IndexError, ValueError):
            return None
