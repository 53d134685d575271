# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What happens to a hypervisor: pCPUs go and come, daemons and passes die, time jumps, disks fill, it boots again.

Each test begins and ends with guests as they are defined.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
from face import GUESTS
from lab import Guest, Lab, Machine, RunningGuest
from lab.machine import connect
from on_machine import (
    core,
    daemon,
    find_again,
    kvmsched,
    obey,
    offline,
    place,
    records,
    refused,
    release,
    until_unchanged,
)

pytestmark = pytest.mark.nightly

BUSY, IDLE = "kvmsched-test-busy", "kvmsched-test-idle"
PINNED = {2, 3}
CELL_1 = {4, 5, 6, 7}
# Enough to be placed; and so much that two on one pCPU want more than there is.
LITTLE, MUCH = 0.1, 0.6
SIZE_KIB = 512 * 1024
GUESTS_HERE = [Guest(name, memory_mib=mib, cpu=[LITTLE], pin={0: "2-3"}) for name, mib in ((BUSY, 160), (IDLE, 512))]


@pytest.fixture(scope="module")
def lab(machine: Machine) -> Iterator[Lab]:
    """Two guests on one core; one of them wastes memory."""
    with Lab(own=machine, say=print) as lab:
        lab.start(*GUESTS_HERE)
        yield lab


@pytest.fixture
def pair(machine: Machine, lab: Lab) -> list[RunningGuest]:
    """Both, as they are defined."""
    obey(machine)
    if not all(lab[name].alive for name in (BUSY, IDLE)):  # it has booted again
        lab.stop()
        lab.connection = connect(machine.uri)
        lab.start(*GUESTS_HERE)
    pair = [lab[BUSY], lab[IDLE]]
    if not is_as_defined(machine, pair):  # a test before this one failed
        release(machine)
    assert is_as_defined(machine, pair)
    return pair


def is_as_defined(machine: Machine, pair: list[RunningGuest]) -> bool:
    found = [place(machine, guest) for guest in pair], pair[1].balloon_kib(), records(*pair)
    print(found)
    return all(guest.alive for guest in pair) and found == ([PINNED, PINNED], SIZE_KIB, [])


def test_pcpus_go_and_come_under_guests_that_were_just_placed(machine: Machine, pair: list[RunningGuest]) -> None:
    """Who was just placed keeps its cell for a while; but not beside who lost its pCPU, while the other cell idles."""
    for guest in pair:
        guest.cpu(MUCH)
    obey(machine, pcpus="2-3")
    assert until_unchanged(machine, "vcpu")[0]["changed"]
    assert sorted(map(tuple, (place(machine, guest) for guest in pair))) == [(2,), (3,)]
    obey(machine)
    with offline(machine, PINNED):
        assert until_unchanged(machine, "vcpu")[0]["changed"]
        moved = [place(machine, guest) for guest in pair]
        print(moved)
        assert all(len(where) == 1 and where.isdisjoint(PINNED) for where in moved)
        assert core(moved[0]) != core(moved[1]) and (moved[0] | moved[1]) & CELL_1
        # What they had is away: they get what a new start would give them, and keep their records.
        left = kvmsched(machine, f"release '{GUESTS}'", check=False)["vcpu"]["not_restored"]
        print(left)
        assert len(left) == len(pair) and all("offline" in line for line in left)
        assert all(guest.affinity().isdisjoint(PINNED) for guest in pair)
    for guest in pair:
        guest.cpu(LITTLE)
    release(machine)
    assert is_as_defined(machine, pair)


def test_libvirtd_starts_anew_between_passes(machine: Machine, pair: list[RunningGuest]) -> None:
    until_unchanged(machine, "vcpu")
    until_unchanged(machine, "memory")
    placed, taken_kib = [place(machine, guest) for guest in pair], pair[1].balloon_kib()
    assert placed[0] != placed[1] and taken_kib < SIZE_KIB
    machine.run("systemctl restart libvirtd")
    assert not kvmsched(machine, "once")["changed"]
    connection = connect(machine.uri)
    for guest in pair:
        guest.domain = connection.lookupByName(guest.name)
    assert [place(machine, guest) for guest in pair] == placed and pair[1].balloon_kib() == taken_kib
    assert records(*pair) == [BUSY, IDLE]
    release(machine)
    assert is_as_defined(machine, pair)


def test_a_pass_is_killed_once_it_has_written_a_record(machine: Machine, pair: list[RunningGuest]) -> None:
    seen = f"grep --quiet kvmsched:state /run/libvirt/qemu/{IDLE}.xml"
    machine.run(f"kvmsched once memory >/dev/null 2>&1 & until {seen}; do :; done; kill -KILL $!; wait; true")
    assert records(*pair) == [IDLE]
    print(f"killed at {pair[1].balloon_kib()} KiB")
    until_unchanged(machine, "memory")
    assert pair[1].balloon_kib() < SIZE_KIB
    release(machine)
    assert is_as_defined(machine, pair)


def test_the_daemon_is_killed_and_goes_on(machine: Machine, pair: list[RunningGuest]) -> None:
    with daemon(machine) as unit:
        taken = "to have memory taken by the daemon"
        pair[1].wait_until(lambda: pair[1].balloon_kib() < SIZE_KIB and records(*pair) == [BUSY, IDLE], taken)
        pid = unit.pid
        machine.run(f"kill -KILL {pid}")
        unit.wait(lambda: unit.active and unit.pid != pid, "to be active again")
        print(*unit.said(""), sep="\n")
        assert pair[1].balloon_kib() < SIZE_KIB and records(*pair) == [BUSY, IDLE]
    release(machine)
    assert is_as_defined(machine, pair)


def test_a_suspended_guest_is_left_alone_until_it_goes_on(machine: Machine, pair: list[RunningGuest]) -> None:
    idle = pair[1]
    idle.domain.suspend()
    try:
        assert not kvmsched(machine, "once")["memory"]["changed"] and idle.balloon_kib() == SIZE_KIB
    finally:
        idle.domain.resume()
    idle.wait_seen()
    until_unchanged(machine, "memory")
    assert idle.balloon_kib() < SIZE_KIB
    idle.domain.suspend()
    try:
        left = kvmsched(machine, f"release '{GUESTS}'", check=False)["memory"]["not_restored"]
    finally:
        idle.domain.resume()
    assert len(left) == 1 and "paused" in left[0] and records(idle)
    release(machine)
    assert is_as_defined(machine, pair)


@pytest.mark.parametrize("hours", [1, -2])
def test_the_clock_jumps(machine: Machine, pair: list[RunningGuest], hours: int) -> None:
    until_unchanged(machine, "vcpu")
    placed = [place(machine, guest) for guest in pair]
    machine.run(f"date --set='{hours:+d} hours'")
    try:
        assert kvmsched(machine, "once")["vcpu"]["changed"] is False
        assert [place(machine, guest) for guest in pair] == placed
        until_unchanged(machine, "memory")
        assert pair[1].balloon_kib() < SIZE_KIB
    finally:
        machine.run(f"date --set='{-hours:+d} hours'")
    assert not kvmsched(machine, "once vcpu")["vcpu"]["changed"]
    release(machine)
    assert is_as_defined(machine, pair)


@contextlib.contextmanager
def full(machine: Machine) -> Iterator[None]:
    """Have no byte left on its disk, nor where libvirt keeps the state of its guests."""
    size = machine.run("findmnt --noheadings --bytes --output=SIZE /run").strip()
    try:
        used = machine.run("findmnt --noheadings --bytes --output=USED /run").strip()
        machine.run(f"mount --options remount,size={int(used) + 16384} /run")
        machine.run("fallocate --length $(df --output=avail --block-size=1 / | tail --lines=1) /filled")
        machine.run("for d in / /run/; do dd if=/dev/zero of=${d}filled bs=4k oflag=append conv=notrunc; done; true")
        yield
    finally:
        machine.run(f"rm --force /filled /run/filled; mount --options remount,size={size} /run")


def test_no_disk_has_a_byte_left(machine: Machine, pair: list[RunningGuest]) -> None:
    """libvirt can't store a record then: what can't be recorded is not changed, and leaves no record."""
    kvmsched(machine, "once --dry-run")
    with full(machine):
        print(refused(machine, "once"))
        assert is_as_defined(machine, pair)
    until_unchanged(machine, "vcpu")
    until_unchanged(machine, "memory")
    assert pair[1].balloon_kib() < SIZE_KIB and records(*pair) == [BUSY, IDLE]
    with full(machine):
        print(machine.run(f"kvmsched release '{GUESTS}'; true"))
    release(machine)
    assert is_as_defined(machine, pair)


def power_fails(machine: Machine) -> None:
    machine.run("sync")
    machine.cut_power()
    machine.boot()


@pytest.mark.parametrize("boot", [power_fails, Machine.reboot])
def test_it_boots_again_and_guests_start_as_they_are_defined(
    machine: Machine, pair: list[RunningGuest], boot: Callable[[Machine], None]
) -> None:
    idle = pair[1]
    idle.domain.setAutostart(1)
    until_unchanged(machine, "memory")
    assert idle.balloon_kib() < SIZE_KIB
    boot(machine)
    find_again(machine, idle)
    assert machine.run("virsh list --name").split() == [IDLE]
    assert idle.balloon_kib() == SIZE_KIB and idle.affinity() >= PINNED and not records(idle)
    assert not kvmsched(machine, f"release '{GUESTS}'")["changed"]
    kvmsched(machine, "once")
    release(machine)
    assert idle.balloon_kib() == SIZE_KIB and not records(idle)
