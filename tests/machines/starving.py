# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest that starves below a limit, what passes give it, and how it can give that back."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from lab import Guest, Machine, RunningGuest
from lab.lab import OVERHEAD_KIB
from on_machine import obey, records, release, until_unchanged

MIB = 1024
SLICE = "/sys/fs/cgroup/machine.slice"
STARVATION_MIB, WASTE_MIB = 60, 120  # as obey() has it
HOG, HOARDER = "kvmsched-test-hog", "kvmsched-test-hoarder"
# What a guest's own kernel takes and gives back between two looks.
NOISE_KIB = 16 * MIB
HELD_MIB = 180
SIZE_KIB = 256 * MIB
NEEDY = Guest(HOG, memory_mib=512, current_mib=SIZE_KIB // MIB, hold_mib=HELD_MIB)
# So much is usable for who is dying.
DYING_MIB = 8


def starve(guest: RunningGuest, usable_mib: int = DYING_MIB) -> None:
    """Have it hold so much that no more than that is usable."""
    report = guest.report()
    guest.hold((report.held_kib + report.available_kib) / MIB - usable_mib)
    guest.wait_held()
    guest.wait_seen()
    print(guest.report())


def free_again(guest: RunningGuest) -> None:
    """Have it hold so little that what it was given can be taken back."""
    guest.hold(10)
    guest.wait_held()
    guest.wait_seen()


def filled_kib(guest: RunningGuest) -> int:
    """What its QEMU holds of memory that its balloon took: khugepaged filled that, and given back it costs nothing."""
    return max(0, guest.resident_kib() - guest.balloon_kib() - OVERHEAD_KIB)


@contextlib.contextmanager
def starving(machine: Machine, hog: RunningGuest) -> Iterator[None]:
    """Have it starve at its first size; in the end it gives back what it got."""
    obey(machine)
    assert hog.balloon_kib() == SIZE_KIB and not records(hog)
    starve(hog)
    yield
    assert hog.alive and not hog.hog_kills
    free_again(hog)
    release(machine)
    assert hog.balloon_kib() == SIZE_KIB and not records(hog)


def given_kib(machine: Machine, hog: RunningGuest) -> int:
    """What it is given by passes, until one finds nothing to do."""
    size_kib = hog.balloon_kib()
    until_unchanged(machine, "memory")
    kib = hog.balloon_kib() - size_kib
    print(f"{hog.name}: {kib} KiB given to {size_kib}")
    return kib


def fed(machine: Machine) -> bool:
    """Whether nobody starves any more, once passes find nothing to do."""
    return bool(until_unchanged(machine, "memory")[-1]["before"]["starved"] == 0)


def in_use_kib(machine: Machine, group: str = SLICE) -> int:
    """What a cgroup has that is no cache of files.

    Of a huge page that a balloon took in part the rest is not free before somebody wants it.
    """
    machine.run(f"echo 1G >{SLICE}/memory.reclaim 2>/dev/null; true")
    current, statistics = machine.run(f"cat {group}/memory.current"), machine.run(f"cat {group}/memory.stat")
    files = re.findall(r"^(?:in)?active_file (\d+)", statistics, re.MULTILINE)
    return (int(current) - sum(map(int, files))) // 1024


@contextlib.contextmanager
def limited(machine: Machine, name: str, kib: int) -> Iterator[None]:
    """Have a limit on the slice of all guests, as an administrator sets it."""
    machine.run(f"systemctl set-property --runtime machine.slice {name}={kib}K")
    try:
        yield
    finally:
        machine.run(f"systemctl set-property --runtime machine.slice {name}=infinity")


@contextlib.contextmanager
def balloons_unfilled(machine: Machine) -> Iterator[None]:
    """Have khugepaged fill nothing that balloons took: with a guest of 256M that was 220M, up to any limit."""
    most = "/sys/kernel/mm/transparent_hugepage/khugepaged/max_ptes_none"
    before = machine.read(most)
    machine.write(most, "0")
    try:
        yield
    finally:
        machine.write(most, before)
