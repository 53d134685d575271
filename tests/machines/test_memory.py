# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory of guests of KVM: who starves and who wastes, and the limits of cgroup v2."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import pytest
from lab import Guest, Lab, Machine, RunningGuest
from on_machine import obey, records, release, until_unchanged

pytestmark = pytest.mark.nightly

MIB = 1024
STARVATION_MIB, WASTE_MIB = 60, 120  # as obey() has it
HOG, HOARDER = "kvmsched-test-hog", "kvmsched-test-hoarder"
SLICE = "/sys/fs/cgroup/machine.slice"
# What a guest's own kernel takes and gives back between two looks.
NOISE_KIB = 16 * MIB
HELD_MIB = 180
NEEDY = Guest(HOG, memory_mib=512, current_mib=256, hold_mib=HELD_MIB)


@pytest.fixture
def lab(machine: Machine) -> Iterator[Lab]:
    obey(machine)
    with Lab(own=machine, say=print) as lab:
        yield lab


def starve(guest: RunningGuest, usable_mib: int) -> None:
    """Have it hold so much that no more than that is usable."""
    usable_kib = guest.report().available_kib
    guest.hold(guest.guest.hold_mib + usable_kib / MIB - usable_mib)
    guest.wait_held()
    guest.wait_seen()
    print(guest.report())


def free_again(guest: RunningGuest) -> None:
    """Have it hold so little that what it was given can be taken back."""
    guest.hold(10)
    guest.wait_held()
    guest.wait_seen()


def test_memory_goes_from_who_wastes_it_to_who_starves(machine: Machine, lab: Lab) -> None:
    hog, hoarder = lab.start(NEEDY, Guest(HOARDER, memory_mib=512))
    sizes = hog.balloon_kib(), hoarder.balloon_kib()
    before = hog.report(), hoarder.report()
    assert before[0].available_kib < STARVATION_MIB * MIB and before[1].free_kib > WASTE_MIB * MIB
    assert until_unchanged(machine, "memory")[0]["changed"]
    after = hog.report(), hoarder.report()
    print(before, after)
    assert after[0].available_kib >= STARVATION_MIB * MIB - NOISE_KIB
    assert after[1].free_kib <= WASTE_MIB * MIB + NOISE_KIB
    assert records(hog, hoarder) == [HOG, HOARDER]
    free_again(hog)
    release(machine)
    assert (hog.balloon_kib(), hoarder.balloon_kib()) == sizes and not records(hog, hoarder)
    assert hog.alive and hoarder.alive and not hog.hog_kills


# ---------------------------------------------------------------- limits of cgroup v2


def in_use_kib(machine: Machine) -> int:
    """What all guests' cgroups have that is no cache of files.

    Of a huge page that a balloon took in part the rest is not free before somebody wants it.
    """
    machine.run(f"echo 1G >{SLICE}/memory.reclaim 2>/dev/null; true")
    current, statistics = machine.read(f"{SLICE}/memory.current"), machine.read(f"{SLICE}/memory.stat")
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


def test_who_is_dying_gets_something_of_what_a_slice_has_left(machine: Machine, lab: Lab) -> None:
    left_kib = 56 * MIB
    (hog,) = lab.start(NEEDY)
    starve(hog, 5)
    size_kib = hog.balloon_kib()
    with limited(machine, "MemoryMax", in_use_kib(machine) + left_kib):
        passes = until_unchanged(machine, "memory")
        given_kib = hog.balloon_kib() - size_kib
        print(f"{given_kib} KiB of {left_kib} given")
        assert passes[0]["changed"] and 0 < given_kib <= left_kib
    assert until_unchanged(machine, "memory")[-1]["before"]["starved"] == 0
    assert hog.balloon_kib() > size_kib + given_kib and hog.alive and not hog.hog_kills
    free_again(hog)
    release(machine)
    assert hog.balloon_kib() == size_kib
