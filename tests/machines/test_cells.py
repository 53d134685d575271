# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest of KVM that is bound to a cell, while the other cell has memory: what it is fed of its own one."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
from lab import Lab, Machine, RunningGuest
from starving import HOG, MIB, NEEDY, NOISE_KIB, fed, filled_kib, given_kib, in_use_kib, starve, starving

pytestmark = pytest.mark.nightly

CELL = 1
BOUND = replace(NEEDY, extra=f"<numatune><memory mode='strict' nodeset='{CELL}'/></numatune>")
CACHED, FILLER = "/cached", "kvmsched-test-filler"
# More than the cell has.
CACHED_MIB = 2048
LEFT_KIB = 96 * MIB
FILL = "import time; held = b'x' * ({kib} << 10); print('held', flush=True); time.sleep(1e6)"


@pytest.fixture(scope="module")
def lab(machine: Machine) -> Iterator[Lab]:
    """One guest for both tests: a boot takes longer than either."""
    with Lab(own=machine, say=print) as lab:
        lab.start(BOUND)
        yield lab


@pytest.fixture
def hog(machine: Machine, lab: Lab) -> Iterator[RunningGuest]:
    """A guest of its first size that starves, in a cell without caches; in the end it gives back what it got."""
    with starving(machine, lab[HOG]):
        in_use_kib(machine)  # what its balloon took of huge pages is free after that
        machine.run("sync; echo 3 >/proc/sys/vm/drop_caches")
        kills = oom_kills(machine)
        yield lab[HOG]
        assert oom_kills(machine) == kills


def test_who_is_bound_to_a_cell_is_fed_from_its_caches(machine: Machine, hog: RunningGuest) -> None:
    with cached(machine):
        before = resident_kib(machine, hog)
        print(f"{free_kib(machine)} KiB free, resident by cell: {before}")
        given = given_kib(machine, hog)
        assert given > 0
        starve(hog)
        given += given_kib(machine, hog)
        starve(hog)
        assert fed(machine)
        after = resident_kib(machine, hog)
        print(f"{given} KiB given, resident by cell: {after}")
        assert after[CELL] - before[CELL] >= given - NOISE_KIB and after[0] - before[0] < MIB


def test_in_a_full_cell_nobody_is_given_what_is_not_there(machine: Machine, hog: RunningGuest) -> None:
    """All that it was given can be touched, and beyond its cell's watermark the kernel would kill."""
    with filled(machine):
        left_kib, files_kib, own_kib = free_kib(machine), reclaimable_kib(machine), filled_kib(hog)
        given = given_kib(machine, hog)
        starve(hog)
        given += given_kib(machine, hog)
        starve(hog)
        left = f"{free_kib(machine)} and {reclaimable_kib(machine)}"
        print(f"of {left_kib} KiB, {files_kib} of files and {own_kib} of its own {given} given, {left} are left")
        assert 0 < given <= left_kib + files_kib + own_kib
    assert fed(machine)


def free_kib(machine: Machine) -> int:
    """What is free in the cell above its low watermarks."""
    zones = re.findall(rf"^Node {CELL}, zone .*?^ +low +(\d+)$", machine.read("/proc/zoneinfo"), re.M | re.S)
    return cell_kib(machine)["MemFree"] - sum(map(int, zones)) * 4


def reclaimable_kib(machine: Machine) -> int:
    """What the kernel takes there before it kills: files, those of programs that run among them, and its own caches."""
    kib = cell_kib(machine)
    return kib["Active(file)"] + kib["Inactive(file)"] + kib["SReclaimable"]


def cell_kib(machine: Machine) -> dict[str, int]:
    """The cell's own /proc/meminfo."""
    lines = machine.read(f"/sys/devices/system/node/node{CELL}/meminfo")
    return {name: int(kib) for name, kib in re.findall(r"(\S+): *(\d+) kB$", lines, re.MULTILINE)}


def resident_kib(machine: Machine, guest: RunningGuest) -> Counter[int]:
    """What its QEMU has touched, by cell."""
    found: Counter[int] = Counter()
    for area in machine.read(f"/proc/{guest.pid}/numa_maps").splitlines():
        page_kib = int((re.findall(r"kernelpagesize_kB=(\d+)", area) or ["4"])[0])
        for cell, pages in re.findall(r"\bN(\d+)=(\d+)", area):
            found[int(cell)] += int(pages) * page_kib
    return found


def oom_kills(machine: Machine) -> int:
    """How many processes the machine's kernel has killed for want of memory, of any kind."""
    return int(machine.run("sed -n 's/^oom_kill //p' /proc/vmstat"))


@contextlib.contextmanager
def cached(machine: Machine) -> Iterator[None]:
    """Have the cell full of a file."""
    machine.run(f"fallocate --length {CACHED_MIB}M {CACHED} && numactl --membind={CELL} cat {CACHED} >/dev/null")
    try:
        yield
    finally:
        machine.run(f"rm {CACHED}")


@contextlib.contextmanager
def filled(machine: Machine) -> Iterator[None]:
    """Have somebody hold all of the cell but LEFT_KIB."""
    program = FILL.format(kib=free_kib(machine) - LEFT_KIB)
    machine.run(f'systemd-run --quiet --unit={FILLER} numactl --membind={CELL} /usr/bin/python3 -c "{program}"')
    said = f"journalctl --quiet --boot --output=cat --unit={FILLER}"
    machine.run(f"until {said} | grep --line-regexp --quiet held; do sleep 1; done")
    try:
        yield
    finally:
        machine.run(f"systemctl stop {FILLER}")
