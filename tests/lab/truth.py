# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The truth past libvirt: from the host's kernel about threads, from the guest's console about memory."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

REPORT = re.compile(r"^lab (?P<up>[\d.]+) report (?P<fields>.*)$", re.MULTILINE)
VCPU_THREAD = re.compile(r"CPU (\d+)/(?:TCG|KVM)")


@dataclass(frozen=True)
class Report:
    """One line of a guest's console: its own /proc/meminfo, and what its hog holds and should hold.

    ``cached`` is Cached + Buffers. ``up_s`` is the guest's uptime: it falls back when the guest reboots.
    """

    up_s: float
    total_kib: int
    free_kib: int
    available_kib: int
    cached_kib: int
    swap_used_kib: int
    held_kib: int
    target_kib: int


def reports(console: str) -> list[Report]:
    """All complete reports on a console, oldest first."""
    found = []
    for line in REPORT.finditer(console):
        fields = dict(re.findall(r"(\w+)=(\d+)\b", line["fields"]))
        try:
            found.append(Report(float(line["up"]), **{f"{key}_kib": int(value) for key, value in fields.items()}))
        except TypeError:  # the line is still being written, or the kernel wrote in between
            continue
    return found


@dataclass(frozen=True)
class CpuTime:
    """What a thread had of its pCPU, in ns: ``run`` on it, ``wait`` in its run queue."""

    run_ns: int
    wait_ns: int


@dataclass(frozen=True)
class Share:
    """CpuTime as a fraction of a window: ``run`` + ``wait`` is what the vCPU wanted."""

    run: float
    wait: float

    @classmethod
    def between(cls, before: CpuTime, after: CpuTime, window_ns: float) -> Share:
        return cls((after.run_ns - before.run_ns) / window_ns, (after.wait_ns - before.wait_ns) / window_ns)


def vcpu_threads(pid: int) -> dict[int, int]:
    """The thread of each vCPU of a QEMU process, by vCPU id."""
    threads = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # QEMU's workers come and go
            name = VCPU_THREAD.match((task / "comm").read_text(encoding="utf-8"))
            if name:
                threads[int(name[1])] = int(task.name)
    return dict(sorted(threads.items()))


def cpu_time(pid: int, thread: int) -> CpuTime:
    """From /proc/PID/task/TID/schedstat."""
    run_ns, wait_ns, _slices = Path(f"/proc/{pid}/task/{thread}/schedstat").read_text(encoding="utf-8").split()
    return CpuTime(int(run_ns), int(wait_ns))


def process_state(pid: int) -> str:
    """R, S, T (stopped), Z ... as in ps; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return ""


def process_start(pid: int) -> int:
    """When a process started, in ticks since boot: with the pid it is a process's identity. 0 if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[19])


def affinity(thread: int) -> frozenset[int]:
    """Where the kernel lets a thread run."""
    return frozenset(os.sched_getaffinity(thread))


def read_text(path: str) -> str:
    """Return what a file says."""
    return Path(path).read_text(encoding="utf-8")


def send_signal(pid: int, number: int) -> None:
    """Send a process a signal."""
    os.kill(pid, number)


def memory_kib() -> dict[str, int]:
    """This machine's memory, by the names of /proc/meminfo: MemTotal, MemAvailable ..."""
    return _kib(Path("/proc/meminfo"))


def resident_kib(pid: int) -> int:
    """What a process has touched and still has."""
    return _kib(Path(f"/proc/{pid}/status"))["VmRSS"]


def _kib(path: Path) -> dict[str, int]:
    lines = re.findall(r"^(.+):\s+(\d+) kB$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: int(kib) for name, kib in lines}


def pcpu_busy_ns() -> dict[int, int]:
    """Non-idle time of each pCPU, from /proc/stat (10 ms steps)."""
    busy = {}
    for line in Path("/proc/stat").read_text(encoding="utf-8").splitlines():
        name, *ticks = line.split()
        if re.fullmatch(r"cpu\d+", name):
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, ticks[:8])
            busy[int(name[3:])] = (user + nice + system + irq + softirq + steal) * 10_000_000
    return busy
