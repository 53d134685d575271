# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Limits of cgroup v2 on guests of KVM: of all of them, and of one."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from lab import Guest, Lab, Machine, RunningGuest
from lab.lab import OVERHEAD_KIB
from on_machine import obey, records, scope, until_unchanged
from starving import (
    HOARDER,
    HOG,
    MIB,
    NEEDY,
    SIZE_KIB,
    balloons_unfilled,
    fed,
    free_again,
    given_kib,
    in_use_kib,
    limited,
    starve,
    starving,
)

pytestmark = pytest.mark.nightly

LEFT_KIB = 72 * MIB
# Survival gets half of what is left of a hard limit at most, and nothing below 8M: so as much stays.
LEAST_KIB = 8 * MIB
# What the machine's kernel takes and gives back between two looks.
KERNELS_KIB = MIB


@pytest.fixture(scope="module")
def lab(machine: Machine) -> Iterator[Lab]:
    """One guest for all of these tests: a boot takes longer than any of them."""
    with balloons_unfilled(machine), Lab(own=machine, say=print) as lab:
        lab.start(NEEDY)
        yield lab


@pytest.fixture
def hog(machine: Machine, lab: Lab) -> Iterator[RunningGuest]:
    """A guest of its first size that its own kernel is about to kill for; in the end it gives back what it got."""
    with starving(machine, lab[HOG]):
        yield lab[HOG]


@pytest.mark.parametrize(("name", "kept_kib"), [("MemoryMax", LEAST_KIB), ("MemoryHigh", 0)])
def test_who_is_dying_gets_something_of_what_a_slice_has_left(
    machine: Machine, hog: RunningGuest, name: str, kept_kib: int
) -> None:
    limit_kib = in_use_kib(machine) + LEFT_KIB
    with limited(machine, name, limit_kib):
        assert 0 < given_kib(machine, hog) <= LEFT_KIB + KERNELS_KIB
        starve(hog)
        left_kib = limit_kib - in_use_kib(machine)
        print(f"{name}: {left_kib} KiB left, all that it was given touched")
        assert left_kib > 0 and left_kib >= kept_kib - KERNELS_KIB
    assert fed(machine)


def test_a_neighbour_pays_nothing_for_a_short_memory_high(machine: Machine, lab: Lab, hog: RunningGuest) -> None:
    """Beyond it guests are throttled, not killed. For MemoryMax the same neighbour pays."""
    left_kib = 32 * MIB
    obey(machine, memory={"reclaim": "auto"})
    # What it wastes it had once, so the machine holds it.
    (hoarder,) = lab.start(Guest(HOARDER, memory_mib=384, hold_mib=300))
    try:
        free_again(hoarder)
        size_kib = hoarder.balloon_kib()
        with limited(machine, "MemoryHigh", in_use_kib(machine) + left_kib):
            given = given_kib(machine, hog)
            starve(hog)
            given += given_kib(machine, hog)
            assert given <= left_kib + KERNELS_KIB
            assert hoarder.balloon_kib() == size_kib and not records(hoarder)
        starve(hog)
        with limited(machine, "MemoryMax", in_use_kib(machine) + left_kib):
            assert fed(machine)
            assert hoarder.balloon_kib() < size_kib
    finally:
        lab.stop([HOARDER])


# ---------------------------------------------------------------- a guest's own limits

LIMIT_MIB = 360


@pytest.mark.parametrize("limit", ["hard-limit", "soft-limit"])
def test_a_guest_grows_as_far_as_its_memtune_has_room_for_its_qemu(
    machine: Machine, hog: RunningGuest, limit: str
) -> None:
    machine.run(f"virsh memtune {hog.name} --live --{limit} {LIMIT_MIB * MIB}")
    try:
        assert 0 < given_kib(machine, hog) <= LIMIT_MIB * MIB - OVERHEAD_KIB - SIZE_KIB
        starve(hog)
        (last,) = until_unchanged(machine, "memory")
        print(last["unmet"])
        assert "at its limit" in last["unmet"][0]["reason"]
        assert in_use_kib(machine, scope(hog)) <= LIMIT_MIB * MIB and not killed(machine, hog)
    finally:
        machine.run(f"virsh memtune {hog.name} --live --{limit} -1")
    assert fed(machine)


def killed(machine: Machine, guest: RunningGuest) -> int:
    """How many processes of its cgroup the machine's kernel killed for memory."""
    events = machine.run(f"grep . {scope(guest)}/memory.* {scope(guest)}/libvirt/memory.* 2>/dev/null; true")
    print(*re.findall(r"^\S+memory\.(?:max|high|events|current):.*", events, re.MULTILINE), sep="\n")
    return sum(map(int, re.findall(r"memory\.events:oom_kill (\d+)$", events, re.MULTILINE)))
