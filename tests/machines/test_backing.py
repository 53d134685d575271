# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is behind a guest's memory: pages that are locked, or huge; and pages that it gives back by itself."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import pytest
from lab import Guest, Lab, Machine
from on_machine import records, release, until_unchanged
from starving import HOARDER, HOG, MIB, NOISE_KIB, STARVATION_MIB, WASTE_MIB, free_again, given_kib, starve

pytestmark = pytest.mark.nightly

MEMTUNE = "<memtune><hard_limit unit='MiB'>1024</hard_limit></memtune>"
LOCKING = "/usr/local/bin/kvmsched-test-locking"
# libvirt asks it for its capabilities, too, which needs no memory.
SCRIPT = f"""#!/bin/sh
case "$*" in *{HOARDER}*) set -- "$@" -overcommit mem-lock=on ;; esac
exec /usr/bin/qemu-system-x86_64 "$@"
"""
BY_XML = f"{MEMTUNE}<memoryBacking><locked/></memoryBacking>"
BY_EMULATOR = f"{MEMTUNE}<devices><emulator>{LOCKING}</emulator></devices>"


def skips(machine: Machine) -> dict[str, Any]:
    """Who is skipped where passes find nothing more to do, and why."""
    return {skip["domain"]: skip for skip in until_unchanged(machine, "memory")[-1]["skips"]}


@pytest.mark.parametrize(
    "extra, why", [(BY_XML, ": locked"), (BY_EMULATOR, "QEMU holds")], ids=["definition", "emulator"]
)
def test_nothing_is_taken_of_locked_memory(machine: Machine, lab: Lab, extra: str, why: str) -> None:
    """The kernel tells of it where the definition does not."""
    machine.write(LOCKING, SCRIPT)
    machine.run(f"chmod +x {LOCKING}")
    (guest,) = lab.start(Guest(HOARDER, extra=extra))
    size_kib = guest.balloon_kib()
    locked = re.findall(r"^VmLck:\s+(\d+) kB", machine.read(f"/proc/{guest.pid}/status"), re.MULTILINE)
    assert int(locked[0]) >= size_kib and guest.report().free_kib > WASTE_MIB * MIB
    skipped = skips(machine)[HOARDER]
    assert skipped["code"] == "inhibited" and why in skipped["reason"]
    assert guest.balloon_kib() == size_kib and not records(guest)


# ---------------------------------------------------------------- huge pages

HUGE_MIB, SIZE_MIB = 384, 256
HUGE = "<memoryBacking><hugepages/></memoryBacking>"


def free_huge_pages(machine: Machine) -> int:
    return int(machine.read("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages"))


@contextlib.contextmanager
def huge_pages(machine: Machine, mib: int) -> Iterator[None]:
    """Have that much in pages of 2M."""
    most = "/proc/sys/vm/nr_hugepages"
    machine.run("sync; echo 3 >/proc/sys/vm/drop_caches; echo 1 >/proc/sys/vm/compact_memory")
    machine.write(most, str(mib // 2))
    assert free_huge_pages(machine) == mib // 2
    try:
        yield
    finally:
        machine.write(most, "0")


def test_nothing_is_taken_of_huge_pages_and_who_starves_on_them_is_fed(machine: Machine, lab: Lab) -> None:
    """All of its maximum lies on them from its start: to feed it costs the host nothing."""
    with huge_pages(machine, HUGE_MIB):
        (guest,) = lab.start(Guest(HOG, memory_mib=HUGE_MIB, current_mib=SIZE_MIB, extra=HUGE))
        assert free_huge_pages(machine) == 0
        assert guest.report().free_kib > WASTE_MIB * MIB
        skipped = skips(machine)[HOG]
        assert skipped["code"] == "inhibited" and "hugepages" in skipped["reason"]
        assert guest.balloon_kib() == SIZE_MIB * MIB and not records(guest)
        starve(guest)
        given = given_kib(machine, guest)
        assert given > 0 and guest.report().available_kib >= STARVATION_MIB * MIB - NOISE_KIB
        starve(guest)
        assert guest.alive and not guest.hog_kills, "all of it touched"
        assert free_huge_pages(machine) == 0
        free_again(guest)
        until_unchanged(machine, "memory")
        assert guest.balloon_kib() >= SIZE_MIB * MIB + given, "it keeps what it was given"
        release(machine)
        assert guest.balloon_kib() == SIZE_MIB * MIB and not records(guest)
        lab.stop([HOG])


# ---------------------------------------------------------------- free page reporting


def test_who_reports_its_free_pages_gives_and_gets_as_any_other(machine: Machine, lab: Lab) -> None:
    """Its host had most of that memory already."""
    held_mib = 400
    (guest,) = lab.start(Guest(HOARDER, memory_mib=512, hold_mib=held_mib, free_page_reporting=True))
    size_kib, touched_kib = guest.balloon_kib(), guest.resident_kib()
    free_again(guest)
    guest.wait_until(lambda: guest.resident_kib() < touched_kib - 300 * MIB, "to report its free pages")
    print(f"{touched_kib} KiB resident, then {guest.resident_kib()}")
    assert guest.balloon_kib() == size_kib
    last = until_unchanged(machine, "memory")[-1]
    assert guest.balloon_kib() < size_kib and guest.report().free_kib <= WASTE_MIB * MIB + NOISE_KIB
    assert not last["skip_counts"].get("inhibited") and records(guest) == [HOARDER]
    release(machine)
    assert guest.balloon_kib() == size_kib and not records(guest)
    guest.hold(held_mib)
    guest.wait_held()
    assert guest.alive and not guest.hog_kills
