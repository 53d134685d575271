# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the pCPUs of this host do besides running vCPUs, and where that work may run.

Three sources, the cheapest first: interrupts by pCPU (/proc/stat), control groups that are confined to some
pCPUs, and processes, or their threads, that are. What none of them tells may run anywhere.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Callable, Collection, Iterable, Iterator, NamedTuple, Optional

from .model import ForeignTime
from .procfs import read
from .units import CpuSet, parse_cpuset

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_NS_PER_TICK = 10**9 // _TICKS_PER_S
# CPU time that one look at the processes may take. 1,500 processes take about as much.
_BUDGET_S = 0.020
# From this share of a pCPU on, the threads of a process are told apart.
_HOT = 0.02
# How long the list of confined groups is taken to be right.
_GROUPS_S = 30.0
# Flag of a kernel thread in /proc/PID/stat (PF_KTHREAD).
_KERNEL_THREAD = 0x00200000
# A process that did nothing is asked for in every fourth look only.
_REST_LOOKS = 4
_NOT_ASKED = "not asked"
# So many masks are told apart: every user may give his processes new ones all the time.
_MOST_MASKS = 256
# Programs that set affinities of their own accord, by the name of their process.
_PINNERS = frozenset({"numad", "cset", "taskset"})


@dataclass(frozen=True)
class PcpuTimes:
    """Cumulative times, see model.Host: ``busy_ns`` is neither idle nor stolen."""

    busy_ns: dict[int, int]
    bound_ns: dict[int, int]
    foreign_ns: tuple[ForeignTime, ...] = ()
    pinners: tuple[str, ...] = ()


class _Stat(NamedTuple):
    """What /proc/PID/stat says of a process or thread (proc_pid_stat(5))."""

    name: str
    flags: int
    used_ns: int
    threads: int
    started_ticks: int

    @property
    def counted(self) -> bool:
        """Return whether its time counts by itself: that of ksoftirqd is in that of the softirqs."""
        return not (self.flags & _KERNEL_THREAD and self.name.startswith("ksoftirqd/"))


@dataclass
class _Process:
    """A process as it was last seen. ``group`` is the confined group that it is in, if that was asked."""

    stat: _Stat
    when_s: float
    group: Optional[str] = _NOT_ASKED
    idle: bool = False
    threads_ns: dict[str, int] = field(default_factory=dict)


class HostWork:
    """Remembers between looks what was seen, so that all of its counters only grow.

    *proc* and *cgroups* are the roots of these file systems, *affinity_of* tells a thread's affinity, by default
    what the kernel says.
    """

    def __init__(
        self,
        proc: str = "/proc",
        cgroups: str = "/sys/fs/cgroup",
        affinity_of: Optional[Callable[[int], Iterable[int]]] = None,
        budget_s: float = _BUDGET_S,
    ) -> None:
        self._proc, self._cgroups, self._budget_s = proc, cgroups, budget_s
        self._affinity_of = affinity_of or _affinity_of
        self._processes: dict[str, _Process] = {}
        self._hot: list[str] = []
        self._next = 0
        self._looks = 0
        self._look_s: Optional[float] = None
        self._groups: dict[str, CpuSet] = {}
        self._groups_s = float("-inf")
        self._groups_ns: dict[str, int] = {}
        self._apart_ns: dict[str, float] = defaultdict(float)
        self._bound_ns: dict[int, float] = defaultdict(float)
        # Who grew last stands last.
        self._foreign_ns: dict[CpuSet, float] = {}
        self._grown: set[CpuSet] = set()
        self._guests: Collection[int] = ()
        self._online: CpuSet = frozenset()
        self._anywhere: CpuSet = frozenset()

    def look(
        self,
        isolated: CpuSet = frozenset(),
        qemu_groups: Callable[[], Iterable[str]] = tuple,
        guests: Collection[int] = (),
    ) -> PcpuTimes:
        """Return the times until now. *qemu_groups* tells the cgroup directories of the processes of the domains.

        Growth is known from the second look on. Work that may run on all pCPUs but the *isolated* ones is left out, and
        so are the processes of *guests*: their vCPUs have affinities of their own.
        """
        end_s = time.thread_time() + self._budget_s
        self._guests = guests
        self._grown.clear()
        busy_ns, interrupts_ns = self._stat()
        self._online = frozenset(busy_ns)
        self._anywhere = self._online - isolated
        now_s = time.clock_gettime(time.CLOCK_BOOTTIME)
        if now_s >= self._groups_s + _GROUPS_S:
            # Hosts of many containers have thousands of groups: processes get their time, too.
            self._find_groups(qemu_groups(), end_s - self._budget_s / 2)
            self._groups_s = now_s
        self._scan(now_s, end_s)
        self._count_groups()
        self._look_s = now_s
        bound_ns = {pcpu: ns + int(self._bound_ns.get(pcpu, 0.0)) for pcpu, ns in interrupts_ns.items()}
        foreign = sorted(self._foreign_ns.items(), key=lambda item: sorted(item[0]))
        return PcpuTimes(
            busy_ns,
            bound_ns,
            tuple(ForeignTime(cpus, int(ns)) for cpus, ns in foreign),
            tuple(sorted({p.stat.name for p in self._processes.values()} & _PINNERS)),
        )

    def _stat(self) -> tuple[dict[int, int], dict[int, int]]:
        """Return busy time, and that of interrupts, by pCPU (proc(5)); guest time is part of user."""
        busy, interrupts = {}, {}
        for line in (read(f"{self._proc}/stat") or "").splitlines():
            name, _sep, rest = line.partition(" ")
            if name.startswith("cpu") and name != "cpu":
                user, nice, system, _idle, _iowait, irq, softirq, steal = (int(ticks) for ticks in rest.split()[:8])
                # Stolen time, where the host is itself a guest, was no time to spare.
                busy[int(name[3:])] = (user + nice + system + irq + softirq + steal) * _NS_PER_TICK
                interrupts[int(name[3:])] = (irq + softirq) * _NS_PER_TICK
        return busy, interrupts

    def _confined(self, cpus: CpuSet) -> bool:
        return bool(cpus) and not self._anywhere <= cpus

    def _add(self, cpus: CpuSet, ns: float) -> None:
        if len(cpus) == 1:
            (pcpu,) = cpus
            self._bound_ns[pcpu] += ns
        elif cpus in self._foreign_ns or self._fits_another_mask():
            self._grown.add(cpus)
            self._foreign_ns[cpus] = self._foreign_ns.pop(cpus, 0.0) + ns

    def _fits_another_mask(self) -> bool:
        """Forget what did not grow for the longest time, if need be; where all of them just grew, there is no room."""
        if len(self._foreign_ns) >= _MOST_MASKS:
            oldest = next(iter(self._foreign_ns))
            if oldest in self._grown:
                return False
            del self._foreign_ns[oldest]
        return True

    # ------------------------------------------------------------ control groups (v2)

    def _find_groups(self, qemu_groups: Iterable[str], end_s: float) -> None:
        """Find the groups that are confined, and hold no vCPU; as many as can be found in time."""
        # libvirt makes groups in that of the machine: "emulator", and one for each vCPU.
        machines = (group[: -len("/emulator")] if group.endswith("/emulator") else group for group in qemu_groups)
        holders = {parent for group in machines for parent in _parents(group)}
        self._groups = dict(self._walk(self._cgroups, holders, end_s))
        self._apart_ns = defaultdict(float, {g: ns for g, ns in self._apart_ns.items() if g in self._groups})
        for process in self._processes.values():
            process.group = _NOT_ASKED

    def _walk(self, directory: str, holders: set[str], end_s: float) -> Iterator[tuple[str, CpuSet]]:
        for name in _directories(directory):
            if time.thread_time() >= end_s:
                return
            path = f"{directory}/{name}"
            cpus = self._cpus_of(path)
            # Without that file nothing below is confined either.
            if cpus is None or (directory in holders and name.startswith("vcpu")):
                continue
            if path not in holders and self._confined(cpus):
                yield path, cpus
            else:
                yield from self._walk(path, holders, end_s)

    def _cpus_of(self, group: str) -> Optional[CpuSet]:
        text = (read(f"{group}/cpuset.cpus.effective") or "").strip()
        return parse_cpuset(text) & self._online if text else None

    def _count_groups(self) -> None:
        """Count what confined groups used, but for those of their processes that are confined still more."""
        used_ns = {}
        for group, cpus in self._groups.items():
            line = next((x for x in (read(f"{group}/cpu.stat") or "").splitlines() if x.startswith("usage_usec ")), "")
            if not line:
                continue
            used_ns[group] = int(line.split()[1]) * 1000
            if used_ns[group] < self._groups_ns.get(group, 0):
                # Another group of that name: what it did before this look belongs to no window.
                self._apart_ns.pop(group, None)
                continue
            grown_ns = used_ns[group] - self._groups_ns.get(group, used_ns[group]) - self._apart_ns.pop(group, 0.0)
            if grown_ns > 0:
                self._add(self._cpus_of(group) or cpus, grown_ns)
            else:
                # A process was seen later than its group: what it did was counted already.
                self._apart_ns[group] = -grown_ns
        self._groups_ns = used_ns

    def _group_of(self, pid: str, process: _Process) -> Optional[str]:
        if process.group == _NOT_ASKED:
            process.group = None
            text = read(f"{self._proc}/{pid}/cgroup") if not process.stat.flags & _KERNEL_THREAD else None
            path = next((line[3:] for line in (text or "").splitlines() if line.startswith("0::")), "")
            above = [path_ for path_ in _parents(self._cgroups + path) if path_ in self._groups] if path else []
            process.group = above[0] if above else None
        return process.group

    # ------------------------------------------------------------ processes

    def _scan(self, now_s: float, end_s: float) -> None:
        """Look at the processes: first those that were hot, then the others from where the last look ended."""
        pids = [name for name in os.listdir(self._proc) if name.isdigit()]
        here = set(pids)
        self._processes = {pid: process for pid, process in self._processes.items() if pid in here}
        # Two looks are all that a module takes: these leave nobody out.
        self._looks += 1
        if self._looks > 2:
            pids = [pid for pid in pids if not self._rests(pid)]
        later = pids[self._next % len(pids) :] + pids[: self._next % len(pids)] if pids else []
        first = [pid for pid in self._hot if pid in here]
        self._hot = []
        for position, pid in enumerate(dict.fromkeys([*first, *later])):
            if time.thread_time() >= end_s:
                self._next += max(0, position - len(first))
                return
            self._see(pid, now_s, end_s)
        self._next = 0

    def _rests(self, pid: str) -> bool:
        process = self._processes.get(pid)
        return process is not None and process.idle and (self._looks + int(pid)) % _REST_LOOKS != 0

    def _see(self, pid: str, now_s: float, end_s: float) -> None:
        if int(pid) in self._guests:
            return
        stat = _read_stat(f"{self._proc}/{pid}/stat")
        if stat is None or not stat.counted:
            return
        before = self._processes.get(pid)
        if before is not None and before.stat == stat:
            before.when_s, before.idle = now_s, True
            return
        if before is None or before.stat.started_ticks != stat.started_ticks:
            # One that began since the last look did all of its work since then.
            if self._look_s is None or stat.started_ticks < self._look_s * _TICKS_PER_S:
                self._processes[pid] = _Process(stat, now_s)
                return
            before = _Process(_Stat(stat.name, stat.flags, 0, 1, stat.started_ticks), self._look_s)
        process = self._processes[pid] = _Process(stat, now_s, before.group, threads_ns=before.threads_ns)
        grown_ns, elapsed_s = stat.used_ns - before.stat.used_ns, now_s - before.when_s
        if grown_ns <= 0 or elapsed_s <= 0:
            return
        hot = grown_ns > _HOT * elapsed_s * 1e9
        if hot:
            self._hot.append(pid)
        # Of one that was not seen in the last look, this window has its part.
        part = min(1.0, (now_s - (self._look_s or now_s)) / elapsed_s)
        for cpus, share in self._places(pid, process, hot and stat.threads > 1, end_s).items():
            self._count(pid, process, cpus, grown_ns * part * share)

    def _places(self, pid: str, process: _Process, apart: bool, end_s: float) -> dict[CpuSet, float]:
        """Return the share of a process's work that its threads did, by their affinity."""
        if apart:
            shares = self._threads(pid, process, end_s)
            if shares:
                return shares
        return {self._affinity(pid): 1.0}

    def _threads(self, pid: str, process: _Process, end_s: float) -> dict[CpuSet, float]:
        """Return the same by thread: by what each did since it was last seen, at first by all that it ever did.

        It may take half of the time that is left: a process of thousands of threads hides no other one.
        """
        end_s = (time.thread_time() + end_s) / 2
        used_ns: dict[str, int] = {}
        weights: dict[CpuSet, int] = defaultdict(int)
        for tid in _directories(f"{self._proc}/{pid}/task"):
            if time.thread_time() >= end_s:
                return {}
            stat = _read_stat(f"{self._proc}/{pid}/task/{tid}/stat")
            if stat is None:
                continue
            used_ns[tid] = stat.used_ns
            grown_ns = stat.used_ns - process.threads_ns.get(tid, 0)
            if grown_ns > 0:
                weights[self._affinity(tid)] += grown_ns
        process.threads_ns = used_ns
        total_ns = sum(weights.values())
        return {cpus: ns / total_ns for cpus, ns in weights.items()}

    def _affinity(self, thread: str) -> CpuSet:
        """Return where a thread may run; empty if it is gone."""
        try:
            return frozenset(self._affinity_of(int(thread))) & self._online
        except OSError:
            return frozenset()

    def _count(self, pid: str, process: _Process, cpus: CpuSet, ns: float) -> None:
        if not self._confined(cpus):
            return
        group = self._group_of(pid, process) if self._groups else None
        if group is not None:
            if cpus == self._groups[group]:
                return
            self._apart_ns[group] += ns
        self._add(cpus, ns)


def _affinity_of(thread: int) -> Iterable[int]:
    return os.sched_getaffinity(thread)


def _read_stat(path: str) -> Optional[_Stat]:
    """Return a process's statistics; None of one that is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            # The kernel writes it in one go; read() would ask once more whether that was all.
            text = os.read(descriptor, 4096)
        finally:
            os.close(descriptor)
    except OSError:
        return None
    # The name may hold spaces and parentheses: count from its end.
    head, _sep, rest = text.rpartition(b")")
    fields = rest.split(None, 20)
    if len(fields) < 21:
        return None
    used_ns = (int(fields[11]) + int(fields[12])) * _NS_PER_TICK
    name = head.partition(b"(")[2].decode("utf-8", "replace")
    return _Stat(name, int(fields[6]), used_ns, int(fields[17]), int(fields[19]))


def _directories(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _parents(path: str) -> Iterator[str]:
    """Yield *path* itself and all directories above it."""
    while path:
        yield path
        path = path.rpartition("/")[0]
