# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host's pCPUs do besides vCPUs, and where that may run: made-up /proc and cgroup files of 8 pCPUs."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Optional

import pytest
from kvmsched.hostwork import HostWork, PcpuTimes
from kvmsched.units import CpuSet, format_cpuset, parse_cpuset

ALL = frozenset(range(8))
SECOND = 100  # ticks


class FakeProc:
    """A host whose clock only goes on when a test says so. Times are in ticks of 10 ms."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.proc, self.cgroups = root / "proc", root / "cgroup"
        self.now_s = 1000.0
        self.affinity: dict[int, CpuSet] = {}
        self.asked: list[int] = []
        monkeypatch.setattr(time, "clock_gettime", lambda _clock: self.now_s)
        self.stat({})
        self.group("", "0-7")
        self.work = HostWork(str(self.proc), str(self.cgroups), self.affinity_of)

    def affinity_of(self, thread: int) -> Iterable[int]:
        self.asked.append(thread)
        return self.affinity.get(thread, ALL)

    def stat(self, interrupts: dict[int, int]) -> None:
        lines = (f"cpu{cpu} 10 0 10 70 0 0 {interrupts.get(cpu, 0)} 10 0 0\n" for cpu in range(8))
        write(self.proc / "stat", "cpu  80 0 80 560 0 0 0 80 0 0\n" + "".join(lines))

    def group(self, name: str, cpus: Optional[str], used_s: float = 0.0) -> None:
        directory = self.cgroups / name
        if cpus is not None:
            write(directory / "cpuset.cpus.effective", f"{cpus}\n")
        write(directory / "cpu.stat", f"usage_usec {int(used_s * 1e6)}\nuser_usec 0\n")

    def process(
        self,
        pid: int,
        ticks: int,
        cpus: str = "0-7",
        *,
        name: str = "osd",
        group: str = "/system.slice",
        kernel: bool = False,
        threads: Optional[dict[int, tuple[int, str]]] = None,
        started_s: float = 5.0,
    ) -> None:
        """*threads*: id -> (ticks, affinity)."""
        flags, count = (0x00200000 if kernel else 0), len(threads or {0: 0})
        self.affinity[pid] = parse_cpuset(cpus)
        write(self.proc / str(pid) / "stat", stat_line(pid, name, flags, ticks, count, started_s))
        write(self.proc / str(pid) / "cgroup", f"0::{group}\n")
        for tid, (used, affinity) in (threads or {}).items():
            self.affinity[tid] = parse_cpuset(affinity)
            write(self.proc / str(pid) / "task" / str(tid) / "stat", stat_line(tid, name, flags, used, 1, started_s))

    def ends(self, pid: int) -> None:
        for path in sorted((self.proc / str(pid)).rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (self.proc / str(pid)).rmdir()

    def look(self, seconds: float = 1.0, **more: object) -> PcpuTimes:
        self.now_s += seconds
        return self.work.look(**more)  # type: ignore[arg-type]

    def told(self, seconds: float = 1.0, **more: object) -> dict[str, float]:
        """Mask -> seconds, of a look; single pCPUs too."""
        times = self.look(seconds, **more)
        found = {format_cpuset(part.pcpus): part.time_ns / 1e9 for part in times.foreign_ns}
        found.update({str(cpu): ns / 1e9 for cpu, ns in times.bound_ns.items() if ns})
        return {mask: pytest.approx(value, abs=1e-6) for mask, value in found.items()}


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def stat_line(pid: int, name: str, flags: int, ticks: int, threads: int, started_s: float) -> str:
    """As proc_pid_stat(5) has it; names may hold what they like."""
    started = int(started_s * 100)
    return f"{pid} ({name}) S 1 1 1 0 -1 {flags} 0 0 0 0 {ticks} 0 0 0 20 0 {threads} 0 {started} 0 0\n"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeProc:
    return FakeProc(tmp_path, monkeypatch)


def test_stolen_time_was_no_time_to_spare(host: FakeProc) -> None:
    """Where the host is itself a guest, its pCPUs are not idle while another guest runs on them."""
    assert host.look().busy_ns == dict.fromkeys(range(8), 300_000_000)


def test_interrupts_count_where_they_are(host: FakeProc) -> None:
    host.stat({3: 50})
    assert host.told() == {"3": 0.5}


def test_a_process_that_is_confined_counts_on_its_set(host: FakeProc) -> None:
    host.process(10, 5000, "0-3")
    host.process(11, 5000, "0-7")
    host.process(12, 5000, "5", name="kworker/5:1", kernel=True)
    assert host.told() == {}, "what was before the first look is not known by window"
    host.process(10, 5100, "0-3")
    host.process(11, 5100, "0-7")
    host.process(12, 5020, "5", name="kworker/5:1", kernel=True)
    assert host.told() == {"0-3": 1.0, "5": 0.2}


def test_what_may_run_on_all_but_isolated_pcpus_may_run_anywhere(host: FakeProc) -> None:
    host.process(10, 0, "0-5")
    host.look(isolated=frozenset({6, 7}))
    host.process(10, 100, "0-5")
    assert host.told(isolated=frozenset({6, 7})) == {}


def test_counters_never_fall_as_processes_end_and_begin(host: FakeProc) -> None:
    host.process(10, 5000, "0-3")
    host.look()
    host.process(10, 5050, "0-3")
    assert host.told() == {"0-3": 0.5}
    host.ends(10)
    host.process(11, 20, "0-3", started_s=host.now_s)
    assert host.told() == {"0-3": 0.7}, "one that began since the last look did all of its work since"
    host.process(11, 3, "0-3", started_s=host.now_s)
    assert host.told() == {"0-3": 0.73}, "another process has its number"


def test_the_time_of_ksoftirqd_is_in_that_of_the_softirqs(host: FakeProc) -> None:
    host.process(10, 0, "3", name="ksoftirqd/3", kernel=True)
    host.look()
    host.process(10, 80, "3", name="ksoftirqd/3", kernel=True)
    assert host.told() == {}


def test_a_domains_qemu_is_not_foreign_and_whoever_calls_himself_so_is(host: FakeProc) -> None:
    """Every user may name his processes as he likes."""
    names = {10: "qemu-system-x86", 11: "qemu-system-x86", 12: "ksoftirqd/3"}
    for pid, name in names.items():
        host.process(pid, 0, f"0-{pid % 10 + 1}", name=name)
    host.look(guests={10})
    for pid, name in names.items():
        host.process(pid, 100, f"0-{pid % 10 + 1}", name=name)
    assert host.told(guests={10}) == {"0-2": 1.0, "0-3": 1.0}


def test_who_gives_his_processes_ever_new_masks_costs_no_memory_and_hides_nobody(host: FakeProc) -> None:
    masks = [format_cpuset(ALL - {a, b} | {9 + n}) for n in range(12) for a in range(8) for b in range(a)]
    write(host.proc / "stat", "".join(f"cpu{cpu} 10 0 10 70 0 0 0 10 0 0\n" for cpu in range(24)))
    host.process(99, 0, "4-5")
    host.process(10, 0)
    host.look()
    for number, mask in enumerate(masks, 1):
        host.process(10, number * SECOND, mask)
        host.process(99, number * SECOND, "4-5")
        told = host.look().foreign_ns
        assert len(told) <= 256
        assert next(part.time_ns for part in told if part.pcpus == {4, 5}) == number * 10**9


def test_a_process_of_thousands_of_threads_hides_no_other(host: FakeProc, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_s = 0.0

    def thread_time() -> float:
        nonlocal cpu_s
        cpu_s += 0.0001
        return cpu_s

    monkeypatch.setattr(time, "thread_time", thread_time)
    many = dict.fromkeys(range(1000, 2000), (0, "0-1"))
    host.process(10, 0, "0-1", threads=many)
    host.process(90, 0, "2-3")
    host.look()
    for second in range(1, 5):
        host.process(10, second * SECOND, "0-1", threads=many)
        host.process(90, second, "2-3")  # one percent of a pCPU
        told = {format_cpuset(part.pcpus): part.time_ns for part in host.look().foreign_ns}
        assert told["2-3"] == second * 10**7


def test_a_group_that_was_made_anew_begins_anew(host: FakeProc) -> None:
    """As a service that is started again: its group has the same name, and counts from 0."""
    host.group("late.slice", "0-3", 500)
    host.look()
    host.group("late.slice", "0-3", 2)
    host.look()
    host.group("late.slice", "0-3", 3)
    assert host.told() == {"0-3": 1.0}


def test_threads_of_a_busy_process_are_told_apart(host: FakeProc) -> None:
    """As ovs-vswitchd has it, whose polling threads have a pCPU each."""
    host.process(10, 0, "0-7", name="ovs (1) x", threads={10: (0, "0-7"), 11: (0, "2"), 12: (0, "3")})
    host.look()
    host.process(10, 200, "0-7", name="ovs (1) x", threads={10: (0, "0-7"), 11: (150, "2"), 12: (50, "3")})
    assert host.told() == {"2": 1.5, "3": 0.5}
    host.process(10, 300, "0-7", name="ovs (1) x", threads={10: (0, "0-7"), 11: (150, "2"), 12: (150, "3")})
    assert host.told() == {"2": 1.5, "3": 1.5}, "from the second time on by what each one did since"


def test_an_idle_process_costs_no_question_of_its_affinity(host: FakeProc) -> None:
    for pid in range(10, 60):
        host.process(pid, 7)
    host.look()
    host.look()
    assert host.asked == []


def test_a_group_that_is_confined_counts_as_a_whole(host: FakeProc) -> None:
    """Its processes may end unseen between two looks."""
    host.group("system.slice", "0-7", 900)
    host.group("system.slice/ceph.service", "0-3", 500)
    host.group("system.slice/other.service", None, 500)
    host.process(10, 0, "0-3", group="/system.slice/ceph.service")
    host.look()
    host.group("system.slice/ceph.service", "0-3", 502)
    host.process(10, 90, "0-3", group="/system.slice/ceph.service")
    assert host.told() == {"0-3": 2.0}
    host.group("system.slice/ceph.service", "0-3", 504)
    host.process(10, 140, "0-1", group="/system.slice/ceph.service")
    assert host.told() == {"0-1": 0.5, "0-3": 3.5}, "what is confined still more counts there, once"


def test_a_group_that_holds_vcpus_counts_without_them(host: FakeProc) -> None:
    machine = "machine.slice/machine-qemu.scope"
    for name, cpus in [("machine.slice", "4-7"), (machine, "4-7"), (f"{machine}/libvirt", "4-7")]:
        host.group(name, cpus, 100)
    host.group(f"{machine}/libvirt/emulator", "4-5", 10)
    host.group(f"{machine}/libvirt/iothread1", "6", 10)
    host.group(f"{machine}/libvirt/vcpu0", "7", 80)

    def groups() -> list[str]:
        return [str(host.cgroups / machine / "libvirt" / "emulator")]

    host.look(qemu_groups=groups)
    host.group("machine.slice", "4-7", 103)
    host.group(f"{machine}/libvirt/emulator", "4-5", 10.5)
    host.group(f"{machine}/libvirt/iothread1", "6", 11)
    host.group(f"{machine}/libvirt/vcpu0", "7", 81.5)
    assert host.told(qemu_groups=groups) == {"4-5": 0.5, "6": 1.0}


def test_groups_are_searched_for_now_and_then(host: FakeProc) -> None:
    host.look()
    host.group("late.slice", "0-3", 5)
    host.look(31)
    host.group("late.slice", "0-3", 6)
    assert host.told() == {"0-3": 1.0}


def test_a_pcpu_that_goes_offline_leaves_the_sets(host: FakeProc) -> None:
    host.process(10, 0, "0-3")
    host.look()
    write(host.proc / "stat", "".join(f"cpu{cpu} 10 0 10 70 0 0 0 10 0 0\n" for cpu in (0, 1, 2, 4, 5, 6, 7)))
    host.process(10, 100, "0-3")
    assert host.told() == {"0-2": 1.0}


def test_a_look_that_may_take_no_time_goes_on_in_the_next(host: FakeProc, monkeypatch: pytest.MonkeyPatch) -> None:
    """And of a process that was not reached in a look, each window gets its part."""
    cpu_s = 0.0

    def thread_time() -> float:
        nonlocal cpu_s
        cpu_s += 0.005
        return cpu_s

    for pid in range(10, 20):
        host.process(pid, 0, "0-3")
    host.look()
    monkeypatch.setattr(time, "thread_time", thread_time)
    for second in range(1, 41):
        for pid in range(10, 20):
            host.process(pid, second, "0-3")  # one percent of a pCPU each
        total = host.look()
    (part,) = total.foreign_ns
    assert 0.2 * 4 * 0.4 <= part.time_ns / 1e9 <= 4.0


def test_other_programs_that_pin_are_noticed(host: FakeProc) -> None:
    host.process(10, 0, name="numad")
    host.process(11, 0, name="cset")
    assert host.look().pinners == ("cset", "numad")
    host.ends(11)
    assert host.look().pinners == ("numad",)


def test_a_real_host_is_read() -> None:
    """This one, whatever it is."""
    work = HostWork()
    first, last = work.look(), work.look()
    assert first.busy_ns and set(first.bound_ns) == set(first.busy_ns)
    assert all(last.busy_ns[cpu] >= ns for cpu, ns in first.busy_ns.items())


def test_one_that_begins_to_work_is_found_and_counts_for_its_window(host: FakeProc) -> None:
    host.process(10, 0, "0-3")
    for _each in range(3):
        host.look()
    for second in range(1, 11):
        host.process(10, 100 * second, "0-3")
        times = host.look()
    assert 7.0 <= times.foreign_ns[0].time_ns / 1e9 <= 10.0


@pytest.mark.parametrize("seed", range(6))
def test_counters_only_grow_and_tell_hardly_more_than_was_used(host: FakeProc, seed: int) -> None:
    """Whatever comes, goes, and changes its affinity; some of it in groups that are confined."""
    rng = random.Random(seed)
    host.group("tight.slice", "0-3")
    ticks: dict[int, int] = {}
    began_s: dict[int, float] = {}
    used, group_used = 0, 0
    last: dict[str, int] = {}
    host.look()
    for _second in range(30):
        for pid in list(ticks):
            if rng.random() < 0.1:
                host.ends(pid)
                del ticks[pid]
        if rng.random() < 0.5:
            pid = rng.randrange(10, 30)
            if pid not in ticks:
                ticks[pid], began_s[pid] = 0, host.now_s
        for pid in list(ticks):
            grown = rng.choice([0, 0, 1, 30])
            ticks[pid] += grown
            used += grown
            tight = pid % 2 == 0
            group_used += grown if tight else 0
            mask = rng.choice(["0-3", "1-2"] if tight else ["0-7", "4-6", "5"])
            group = "/tight.slice" if tight else "/system.slice"
            host.process(pid, ticks[pid], mask, group=group, started_s=began_s[pid])
        host.group("tight.slice", "0-3", group_used / SECOND)
        times = host.look()
        now = {format_cpuset(part.pcpus): part.time_ns for part in times.foreign_ns}
        now.update({str(cpu): ns for cpu, ns in times.bound_ns.items()})
        assert all(now[mask] >= ns for mask, ns in last.items())
        # A process that rested is seen later than the group that it is in.
        assert sum(now.values()) <= used / SECOND * 1e9 + 100_000_000
        last = now
    assert 0 < sum(last.values()) <= 1.05 * used / SECOND * 1e9
