# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What this host itself says, under /proc, /sys and /etc. All of it is optional: None where it can't be read."""

from __future__ import annotations

import functools
import os
import re
import time
import uuid
from dataclasses import dataclass
from typing import NamedTuple, Optional

from .model import HostMemory
from .units import CpuSet, parse_cpuset

_NS_PER_TICK = 10**9 // os.sysconf("SC_CLK_TCK")
_PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024
_PART = 65536


def _read(path: str) -> Optional[str]:
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


@dataclass(frozen=True)
class PcpuTimes:
    """Cumulative times by pCPU id: ``busy_ns`` neither idle nor stolen, ``bound_ns`` what could run nowhere else."""

    busy_ns: dict[int, int]
    bound_ns: dict[int, int]


def pcpu_times() -> PcpuTimes:
    """From /proc/stat (proc(5)), where guest time is part of user; and from each process that has one pCPU only."""
    busy, bound = {}, {}
    for line in (_read("/proc/stat") or "").splitlines():
        name, _sep, rest = line.partition(" ")
        if name.startswith("cpu") and name != "cpu":
            user, nice, system, _idle, _iowait, irq, softirq, steal = (int(ticks) for ticks in rest.split()[:8])
            # Stolen time, where the host is itself a guest, was no time to spare.
            busy[int(name[3:])] = (user + nice + system + irq + softirq + steal) * _NS_PER_TICK
            bound[int(name[3:])] = (irq + softirq) * _NS_PER_TICK
    for pid in os.listdir("/proc"):
        if pid.isdigit():
            pcpu = _only_pcpu(int(pid))
            if pcpu in bound:
                bound[pcpu] += _process_time_ns(pid)
    return PcpuTimes(busy, bound)


def _only_pcpu(pid: int) -> Optional[int]:
    """The one pCPU that a process is confined to; None if it has a choice, or is gone."""
    try:
        affinity = os.sched_getaffinity(pid)
    except OSError:
        return None
    return next(iter(affinity)) if len(affinity) == 1 else None


def _process_time_ns(pid: str) -> int:
    """What all threads of a process used; nothing for a QEMU, whose vCPUs have affinities of their own."""
    name, _sep, fields = (_read(f"/proc/{pid}/stat") or "").rpartition(")")
    if not fields or "(qemu" in name:
        return 0
    utime, stime = fields.split()[11:13]
    return (int(utime) + int(stime)) * _NS_PER_TICK


def memory() -> Optional[HostMemory]:
    """MemTotal and MemAvailable, with memory pressure where the kernel keeps it."""
    sizes = {}
    for line in (_read("/proc/meminfo") or "").splitlines():
        name, _sep, rest = line.partition(":")
        if name in ("MemTotal", "MemAvailable"):
            sizes[name] = int(rest.split()[0])
    if len(sizes) < 2:
        return None
    pressure = _pressure(_read("/proc/pressure/memory") or "")
    return HostMemory(sizes["MemTotal"], sizes["MemAvailable"], pressure.get("some"), pressure.get("full"))


def cell_free_kib(cell: int) -> Optional[int]:
    """The free memory of a NUMA cell."""
    free = re.search(r"MemFree: +(\d+) kB", _read(f"/sys/devices/system/node/node{cell}/meminfo") or "")
    return int(free[1]) if free else None


def _pressure(text: str) -> dict[str, float]:
    """``some``/``full`` -> avg10 in percent (kernel: Documentation/accounting/psi.rst)."""
    found = {}
    for line in text.splitlines():
        kind, _sep, rest = line.partition(" ")
        averages = dict(pair.split("=") for pair in rest.split())
        if "avg10" in averages:
            found[kind] = float(averages["avg10"])
    return found


def machine_id() -> Optional[str]:
    """This installation's identity, as a UUID (machine-id(5))."""
    text = (_read("/etc/machine-id") or "").strip()
    try:
        return str(uuid.UUID(text))
    except ValueError:
        return None


def isolated() -> CpuSet:
    """The pCPUs that the kernel was told to keep free of other work (isolcpus=, nohz_full=)."""
    found: set[int] = set()
    for name in ("isolated", "nohz_full"):
        text = (_read(f"/sys/devices/system/cpu/{name}") or "").strip()
        if text and text[0].isdigit():
            found |= parse_cpuset(text)
    return frozenset(found)


# ---------------------------------------------------------------- one QEMU process


@dataclass(frozen=True)
class Process:
    """A domain's QEMU process. ``stopped``: a SIGSTOP or a debugger holds it, so its monitor can't answer.

    ``cpus`` and ``memory_max_kib`` are the limits of its cgroup, ``rooms`` the groups above that have a memory
    limit, too: these are read when they are asked for.
    """

    pid: int
    started_s: float
    stopped: bool
    started_ticks: int = 0

    def again(self) -> Optional[Process]:
        """The same process as it is now; None if it ended."""
        now = _process(self.pid)
        return now if now is not None and now.started_ticks == self.started_ticks else None

    @property
    def cpus(self) -> Optional[CpuSet]:
        return _cpus_of(self._cgroups)

    @property
    def memory_max_kib(self) -> Optional[int]:
        own = _memory_groups(self._cgroups)[:1]
        return _limit_kib(own[0]) if own else None

    @property
    def rooms(self) -> tuple[str, ...]:
        return tuple(group for group in _memory_groups(self._cgroups)[1:] if _limit_kib(group) is not None)

    @property
    def rss_kib(self) -> Optional[int]:
        """What it holds of the host's memory, as libvirt tells it, too."""
        fields = (_read(f"/proc/{self.pid}/statm") or "").split()
        return int(fields[1]) * _PAGE_KIB if fields else None

    @property
    def resumed(self) -> bool:
        """Whether it went on from a saved state: a restore, a revert, a migration to here. What is not known may be."""
        text = _read(f"/proc/{self.pid}/cmdline")
        return not text or any(f"\0{option}\0" in text for option in ("-incoming", "-loadvm"))

    @functools.cached_property
    def _cgroups(self) -> dict[str, str]:
        return _cgroups(_read(f"/proc/{self.pid}/cgroup") or "")


def qemu_process(name: str, session: bool) -> Optional[Process]:
    """The process of the domain *name*, by the pid file that libvirt keeps; None where it can't be seen, or ended."""
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
        """vCPU id -> its thread; empty where they can't be told apart, or can't be seen."""
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
        """Whether the kernel tells of them here: it must keep such times (CONFIG_SCHED_INFO)."""
        return any(self._thread(tid) for tid in self._now().values())

    def read(self) -> dict[int, VcpuThread]:
        """What the kernel says of each, by vCPU id; without those that are gone."""
        return {number: thread for number, tid in self._now().items() if (thread := self._thread(tid))}

    def _thread(self, tid: int) -> Optional[VcpuThread]:
        times = (_read(f"{self._directory}/{tid}/schedstat") or "").split()
        try:
            return VcpuThread(frozenset(os.sched_getaffinity(tid)), int(times[0]), int(times[1]))
        except (OSError, IndexError, ValueError):
            return None


def _cgroups(text: str) -> dict[str, str]:
    """Controller ("" for the unified hierarchy) -> directory of the machine's cgroup.

    QEMU's threads are in sub-groups that libvirt makes (emulator, vcpuN) and narrows by itself: the
    machine's own group is their parent.
    """
    directories = {}
    for line in text.splitlines():
        _hierarchy, controllers, path = line.split(":", 2)
        # /machine.slice/machine-qemu….scope/libvirt/emulator: the limits that others set stand above "libvirt".
        parent = path.rpartition("/")[0] if path.rpartition("/")[2] in ("emulator",) else path
        parent = parent[: -len("/libvirt")] if parent.endswith("/libvirt") else parent
        for controller in controllers.split(","):
            root = f"/sys/fs/cgroup/{controller}" if controller else "/sys/fs/cgroup"
            directories[controller] = root + parent
    return directories


def _cpus_of(cgroups: dict[str, str]) -> Optional[CpuSet]:
    for controller, name in (("", "cpuset.cpus.effective"), ("cpuset", "cpuset.effective_cpus")):
        text = (_read(os.path.join(cgroups[controller], name)) or "").strip() if controller in cgroups else ""
        if text:
            return parse_cpuset(text)
    return None


# A group's memory limit, what is charged to it, and what of that is cache (cgroup v2, v1).
_MEMORY_FILES = (
    ("memory.max", "memory.current", r"^(?:in)?active_file (\d+)"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", r"^total_(?:in)?active_file (\d+)"),
)


def _memory_groups(cgroups: dict[str, str]) -> list[str]:
    """The machine's group, and those above it up to the root, which has no limit."""
    group = cgroups.get("memory") or cgroups.get("", "")
    groups = []
    while group.count("/") > 3:
        groups.append(group)
        group = group.rpartition("/")[0]
    return groups


def _limit_kib(group: str) -> Optional[int]:
    for name, _usage, _cache in _MEMORY_FILES:
        text = (_read(os.path.join(group, name)) or "").strip()
        # cgroup v1 writes "no limit" as the largest multiple of a page that fits a long.
        if text.isdigit() and int(text) < 2**62:
            return int(text) // 1024
    return None


def room_left_kib(group: str) -> Optional[int]:
    """What is left of a group's memory limit, once its caches are dropped."""
    limit_kib = _limit_kib(group)
    for _limit, name, cache in _MEMORY_FILES:
        used = (_read(os.path.join(group, name)) or "").strip()
        if used.isdigit() and limit_kib is not None:
            cached = re.findall(cache, _read(os.path.join(group, "memory.stat")) or "", re.MULTILINE)
            return max(0, limit_kib - (int(used) - sum(map(int, cached))) // 1024)
    return None
