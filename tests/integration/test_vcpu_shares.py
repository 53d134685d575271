# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the policy takes the kernel to do is what the kernel does: shares of full pCPUs, by guest and by vCPU."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from kvmsched.passes import Conduct, run_info
from kvmsched.policy.vcpu.served import Claim, served, thread_weight
from lab import Guest, Lab, RunningGuest

HOG, SMALL = "kvmsched-test-hog", ("kvmsched-test-small0", "kvmsched-test-small1")
PCPUS = (0, 1)
WINDOW_S = 15
NEAR = 0.1
TWO_PCPUS = pytest.mark.skipif(not os.sched_getaffinity(0) >= set(PCPUS), reason="needs two pCPUs")

# ---------------------------------------------------------------- threads that only compute

SETTLE_S, LOOPS_S = 2, 6
LOOP = [sys.executable, "-c", "while True: pass"]


@pytest.fixture
def top() -> Iterator[Path]:
    """A cgroup of its own that shares pCPUs, removed with all in it."""
    root = next((p for p in (Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")) if (p / "tasks").exists()), None)
    if root is None:
        root = Path("/sys/fs/cgroup")
        if "cpu" not in (root / "cgroup.subtree_control").read_text(encoding="ascii").split():
            pytest.skip("no cgroup shares pCPUs here")
    made = root / f"kvmsched-test-shares-{os.getpid()}"
    made.mkdir()
    yield made
    for group in sorted((path for path in made.rglob("*") if path.is_dir()), reverse=True):
        group.rmdir()
    made.rmdir()


def _group(where: Path, name: str, weight: float) -> Path:
    """Make a cgroup of that weight; 100 is the default."""
    control = where / "cgroup.subtree_control"
    if control.exists():
        control.write_text("+cpu", encoding="ascii")
    made = where / name
    made.mkdir()
    shares = made / "cpu.shares"
    if shares.exists():
        shares.write_text(str(round(weight * 1024 / 100)), encoding="ascii")
    else:
        (made / "cpu.weight").write_text(str(round(weight)), encoding="ascii")
    return made


def _ran_ns(loop: subprocess.Popen[bytes]) -> int:
    return int(Path(f"/proc/{loop.pid}/schedstat").read_text(encoding="ascii").split()[0])


@TWO_PCPUS
@pytest.mark.parametrize("weight", [100.0, 400.0])
def test_what_only_computes_gets_what_the_model_says(top: Path, weight: float) -> None:
    """Four busy threads of one group beside two of one each, in groups as libvirt makes them, on two full pCPUs.

    How the machine's other work takes part in a pCPU does not matter: what counts is how the rest is divided.
    """
    loops: list[tuple[str, int, subprocess.Popen[bytes]]] = []
    try:
        for name, own, pcpus in (("hog", weight, (0, 1, 0, 1)), ("small0", 100.0, (0,)), ("small1", 100.0, (1,))):
            guest = _group(top, name, own)
            for number, pcpu in enumerate(pcpus):
                loop = subprocess.Popen(LOOP)
                loops.append((name, pcpu, loop))
                (_group(guest, f"vcpu{number}", 100.0) / "cgroup.procs").write_text(str(loop.pid), encoding="ascii")
                os.sched_setaffinity(loop.pid, {pcpu})
        time.sleep(SETTLE_S)
        before = [_ran_ns(loop) for _name, _pcpu, loop in loops]
        time.sleep(LOOPS_S)
        ran = [_ran_ns(loop) - old for (_name, _pcpu, loop), old in zip(loops, before)]
    finally:
        for _name, _pcpu, loop in loops:
            loop.kill()
            loop.wait()
    told = served(
        [
            Claim(1.0, thread_weight(*((weight, 1.0, 4.0) if name == "hog" else (100.0, 1.0, 1.0))), frozenset({pcpu}))
            for name, pcpu, _loop in loops
        ],
        frozenset(PCPUS),
    )
    _judge([(name, pcpu) for name, pcpu, _loop in loops], [float(one) for one in ran], told)


def _judge(threads: Sequence[tuple[str, int]], ran: Sequence[float], told: Sequence[float]) -> None:
    """Hold how the *threads*, each of a guest and on a pCPU, divided what they had of it against what was *told*."""
    for pcpu in PCPUS:
        got: dict[str, float] = defaultdict(float)
        owed: dict[str, float] = defaultdict(float)
        here = [i for i, thread in enumerate(threads) if thread[1] == pcpu]
        for i in here:
            got[threads[i][0]] += ran[i] / sum(ran[j] for j in here)
            owed[threads[i][0]] += told[i]
        print(f"\npCPU {pcpu}: told {dict(owed)}; got {dict(got)}")
        assert all(abs(got[name] - owed[name]) <= NEAR * max(owed.values()) for name in owed), (owed, got)


# ---------------------------------------------------------------- guests


def _guests() -> list[Guest]:
    """Return a guest of four busy vCPUs, two on each pCPU, and beside each pair a guest of one.

    All stay where they are: left to float, the kernel's own balancing adds its luck to what it owes by weight.
    """
    hog = Guest(HOG, vcpus=4, memory_mib=128, cpu=[1.0], pin={vcpu: str(vcpu % 2) for vcpu in range(4)})
    return [hog, *(Guest(name, memory_mib=128, cpu=[1.0], pin={0: str(pcpu)}) for pcpu, name in zip(PCPUS, SMALL))]


THREADS = Path("/sys/fs/cgroup/cpu/tasks")


def _apart(guest: RunningGuest) -> None:
    """Take all threads of QEMU but its vCPUs out of the guest's group.

    The main loop of an emulated guest of four vCPUs wakes up 500 times a second. At each of these its group's debt to
    others was seen to be forgotten: a neighbour on that pCPU got a tenth of what its weight says.
    """
    vcpus = guest.threads().values()
    for task in Path(f"/proc/{guest.pid}/task").iterdir():
        if int(task.name) not in vcpus:
            with contextlib.suppress(ProcessLookupError):  # a worker may just have ended
                THREADS.write_text(task.name, encoding="ascii")


@pytest.mark.skipif(not THREADS.exists(), reason="needs cgroup v1, where a thread may leave its guest's group")
@pytest.mark.quiet
@pytest.mark.nightly
@TWO_PCPUS
def test_a_hog_of_four_vcpus_gets_what_the_model_says() -> None:
    with Lab() as lab:
        guests = lab.start(*_guests())
        weights = {domain.name: domain.cpu_weight for domain in run_info(Conduct(), 0.5)[0][-1].domains}
        for guest in guests:
            _apart(guest)
        vcpus = [(one.name, vcpu, int(pcpu)) for one in _guests() for vcpu, pcpu in one.pin.items()]
        wanted = Counter(name for name, _vcpu, _pcpu in vcpus)
        claims = [
            Claim(1.0, thread_weight(weights[name], 1.0, float(wanted[name])), frozenset({pcpu}))
            for name, _vcpu, pcpu in vcpus
        ]
        shares = lab.measure(WINDOW_S)
        ran = [shares[name][vcpu].run for name, vcpu, _pcpu in vcpus]
        _judge([(name, pcpu) for name, _vcpu, pcpu in vcpus], ran, served(claims, frozenset(PCPUS)))
