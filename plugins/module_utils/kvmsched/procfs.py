# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What this host itself says, under /proc, /sys and /etc. All of it is optional: None where it can't be read."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import time
import uuid
from dataclasses import dataclass
from typing import Optional

from .model import HostMemory
from .units import CpuSet, parse_cpuset

_NS_PER_TICK = 10**9 // os.sysconf("SC_CLK_TCK")


def _read(path: str) -> Optional[str]:
    try:
        # Unbuffered bytes: a pass reads thousands of these.
        with open(path, "rb", buffering=0) as file:
            return file.read().decode("utf-8", "replace")
    except OSError:
        return None


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

    ``cpus`` and ``memory_max_kib`` are the limits of its cgroups, which are read when they are asked for.
    """

    pid: int
    started_s: float
    stopped: bool

    @property
    def cpus(self) -> Optional[CpuSet]:
        return _cpus_of(self._cgroups)

    @property
    def memory_max_kib(self) -> Optional[int]:
        return _memory_max(self._cgroups)

    @functools.cached_property
    def _cgroups(self) -> dict[str, str]:
        return _cgroups(_read(f"/proc/{self.pid}/cgroup") or "")


def qemu_process(name: str, session: bool) -> Optional[Process]:
    """The process of the domain *name*, by the pid file that libvirt keeps; None where it can't be seen, or ended."""
    directory = "/run/libvirt/qemu"
    if session:
        directory = os.path.join(os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.geteuid()}"), "libvirt/qemu/run")
    pid = (_read(os.path.join(directory, f"{name}.pid")) or "").strip()
    stat = _read(f"/proc/{pid}/stat") if pid.isdigit() else None
    if stat is None:
        return None
    # The command name may hold spaces and parentheses: count from its end.
    after_name = stat.rpartition(")")[2].split()
    if after_name[0] in "ZX":
        return None
    booted_s = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    started_s = booted_s + int(after_name[19]) * _NS_PER_TICK / 1e9
    return Process(int(pid), started_s, after_name[0] in "Tt")


@dataclass(frozen=True)
class VcpuThread:
    """A vCPU's thread: where the kernel lets it run, its time on a pCPU and in the run queue of one."""

    affinity: CpuSet
    run_ns: int
    delay_ns: int


# QEMU names its threads so under libvirt (-name debug-threads=on); one thread for all vCPUs is "ALL CPUs/TCG".
_VCPU_THREAD = re.compile(r"CPU (\d+)/")


def vcpu_tids(pid: int) -> dict[int, int]:
    """vCPU id -> its thread, of a QEMU process; empty where they can't be told apart, or can't be seen."""
    tids = {}
    with contextlib.suppress(OSError):
        for tid in os.listdir(f"/proc/{pid}/task"):
            name = _VCPU_THREAD.match(_read(f"/proc/{pid}/task/{tid}/comm") or "")
            if name:
                tids[int(name[1])] = int(tid)
    return dict(sorted(tids.items()))


def vcpu_thread(pid: int, tid: int) -> Optional[VcpuThread]:
    """What the kernel says of one vCPU's thread; None if it is gone, or keeps no such times (CONFIG_SCHED_INFO)."""
    times = (_read(f"/proc/{pid}/task/{tid}/schedstat") or "").split()
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


def _memory_max(cgroups: dict[str, str]) -> Optional[int]:
    """The lowest memory limit on the way up from the machine's cgroup, where there is one."""
    limits = []
    for controller, name in (("", "memory.max"), ("memory", "memory.limit_in_bytes")):
        directory = cgroups.get(controller, "")
        while directory.count("/") > 3:
            text = (_read(os.path.join(directory, name)) or "").strip()
            # cgroup v1 writes "no limit" as the largest multiple of a page that fits a long.
            if text.isdigit() and int(text) < 2**62:
                limits.append(int(text) // 1024)
            directory = directory.rpartition("/")[0]
    return min(limits, default=None)
