# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is behind a guest's memory: pages that are locked, and pages that it gives back by itself."""

from __future__ import annotations

import re
from typing import Any

import pytest
from lab import Guest, Lab, Machine
from on_machine import records, release, until_unchanged
from starving import HOARDER, MIB, NOISE_KIB, WASTE_MIB, free_again

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
