# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Live migration between two hypervisors of two suites and two shapes: there and back, under passes and daemons."""

from __future__ import annotations

import contextlib
import functools
import shutil
import threading
from collections.abc import Iterator
from typing import Any

import libvirt
import pytest
from lab import Guest, Lab, Machine, RunningGuest
from lab.guest import Files
from lab.lab import clean
from lab.machine import connect
from on_machine import daemon, kvmsched, obey, place, records, release, until_unchanged
from starving import given_kib, starve
from systemd_unit import Unit

pytestmark = pytest.mark.nightly

# The target has no others.
SHARED = "0-3"
PINNED = {2, 3}
SIZE_KIB = 384 * 1024
HELD_MIB, NEEDY_MIB = 80, 30  # what it holds; and what is usable where it wants more than the policy leaves it
CPUTUNE = "<vcpupin vcpu='0' cpuset='{}'/>"
MOVER = Guest(
    "kvmsched-test-mover", memory_mib=SIZE_KIB // 1024, hold_mib=HELD_MIB, cpu=[0.3], cputune=CPUTUNE.format("2-3")
)
LIVE = libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_PERSIST_DEST | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
# Within a pause that short nobody can end who still runs: it goes on until it is told to hurry.
SLOW_MIB_PER_S, NO_PAUSE_MS = 1, 1
FAST_MIB_PER_S, PAUSE_MS = 4096, 2000


def expect(target: Machine, guest: RunningGuest) -> Files:
    """Have the files of a guest that comes there where they were; and its console and its control port here."""
    files = Files.of(guest.name, target.directory)
    if guest.files.disk.exists():
        shutil.copyfile(guest.files.disk, files.disk)
    target.mirror(files)
    return files


def arrived(target: Machine, guest: RunningGuest, files: Files) -> RunningGuest:
    domain = connect(target.uri).lookupByName(guest.name)
    return RunningGuest(guest.guest, files, domain, target.qemu_pid, target.kernel, target.clock)


class Moving:
    """A live migration of a guest that is under way; ``end()`` returns it where it is then."""

    def __init__(self, guest: RunningGuest, source: Machine, target: Machine, **parameters: Any) -> None:
        self._guest, self._source, self._target = guest, source, target
        self._parameters = {libvirt.VIR_MIGRATE_PARAM_URI: f"tcp://{target.wire_address}", **parameters}
        self._error: list[libvirt.libvirtError] = []
        self._files = expect(target, guest)
        self._thread = threading.Thread(target=self._move)
        self._thread.start()

    def _move(self) -> None:
        there = connect(self._target.uri)
        try:
            self._domain().migrate3(there, self._parameters, LIVE)
        except libvirt.libvirtError as error:
            self._error.append(error)

    def _domain(self) -> Any:
        return connect(self._source.uri).lookupByName(self._guest.name)

    @property
    def under_way(self) -> bool:
        return self._thread.is_alive()

    def wait_seen(self) -> None:
        """Wait until the target has it, too."""
        there = connect(self._target.uri)
        while self._guest.name not in names(there):
            assert self.under_way, self._error

    def hurry(self) -> None:
        """From now on as fast as can be."""
        self._domain().migrateSetMaxDowntime(PAUSE_MS)
        self._domain().migrateSetMaxSpeed(FAST_MIB_PER_S)

    def end(self) -> RunningGuest:
        self._thread.join()
        if self._error:
            raise self._error[0]
        return arrived(self._target, self._guest, self._files)


def begin(guest: RunningGuest, source: Machine, target: Machine) -> Moving:
    """Have it on both sides, until it is told to hurry."""
    moving = Moving(guest, source, target, **{libvirt.VIR_MIGRATE_PARAM_BANDWIDTH: SLOW_MIB_PER_S})
    guest.domain.migrateSetMaxDowntime(NO_PAUSE_MS)
    moving.wait_seen()
    return moving


def move(guest: RunningGuest, source: Machine, target: Machine, passes_to_the_end: bool = False) -> RunningGuest:
    """Move the only guest of both: it is busy for both, and no pass fails for it."""
    moving = begin(guest, source, target)
    for one in (source, target):
        told = kvmsched(one, "once")
        for part in ("memory", "vcpu"):
            assert not told[part]["changed"] and set(told[part]["skip_counts"]) == {"busy"}
    assert moving.under_way
    moving.hurry()
    while passes_to_the_end and moving.under_way:
        for one in (source, target):
            kvmsched(one, "once")
    return moving.end()


def names(connection: Any) -> list[str]:
    return [domain.name() for domain in connection.listAllDomains()]


def state(machine: Machine, guest: RunningGuest) -> tuple[set[int], int, list[str]]:
    """Its pins, its size, and whether it has a record."""
    found = place(machine, guest), guest.balloon_kib(), records(guest)
    print(machine.name, *found)
    return found


def is_as_defined(machine: Machine, guest: RunningGuest) -> bool:
    return guest.alive and state(machine, guest) == (PINNED, SIZE_KIB, [])


def manage(machine: Machine, guest: RunningGuest) -> None:
    """Have passes pin it, and take memory from it."""
    for part in ("vcpu", "memory"):
        until_unchanged(machine, part)
    pins, size_kib, recorded = state(machine, guest)
    assert len(pins) == 1 and pins < PINNED and size_kib < SIZE_KIB and recorded


@pytest.fixture
def lab(machine: Machine, target: Machine) -> Iterator[Lab]:
    """The source's; what is left on the target goes, too."""
    for one in (machine, target):
        obey(one, pcpus=SHARED)
    # Guests' files are where they were, but on the other host.
    target.run(f"ln --symbolic --force --no-target-directory {target.directory} {machine.directory}")
    with Lab(own=machine, say=print) as lab:
        try:
            yield lab
        finally:
            clean(connect(target.uri), everybody=True)


@pytest.fixture
def mover(machine: Machine, lab: Lab) -> RunningGuest:
    """A busy guest on the source, as it is defined: with pins, and more memory than it needs."""
    (mover,) = lab.start(MOVER)
    assert is_as_defined(machine, mover)
    return mover


@pytest.mark.parametrize("released", [True, False], ids=["released", "not released"])
def test_there_and_back(machine: Machine, target: Machine, mover: RunningGuest, released: bool) -> None:
    """Pins, balloon and record travel; whoever has it manages it, before, while and after it moves under its load."""
    manage(machine, mover)
    taken = state(machine, mover)
    there = move(mover, machine, target)
    assert there.alive and state(target, there) == taken
    assert records(there) and "kvmsched:state" not in there.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    starve(there, NEEDY_MIB)
    assert given_kib(target, there) > 0
    assert not until_unchanged(target, "vcpu")[-1]["skips"] and place(target, there) <= PINNED
    hold_as_at_first(there)
    if released:
        release(target)
        assert is_as_defined(target, there)
    home = move(there, target, machine, passes_to_the_end=True)
    manage(machine, home)
    release(machine)
    assert is_as_defined(machine, home)


def hold_as_at_first(guest: RunningGuest) -> None:
    guest.hold(HELD_MIB)
    guest.wait_held()
    guest.wait_seen()


# ---------------------------------------------------------------- under daemons


def finds_it_busy(unit: Unit) -> bool:
    return passes(unit) == [({"busy": 1}, "")] * 2


def passes(unit: Unit) -> list[tuple[dict[str, int], str]]:
    """Whom the last two passes skipped, and why they failed."""
    status = unit.status()
    return [(status[part]["skips"], status[part]["failed"]) for part in ("memory_pass", "vcpu_pass")]


def move_under(daemons: list[Unit], guest: RunningGuest, source: Machine, target: Machine) -> RunningGuest:
    """Move it while both daemons make passes."""
    moving = begin(guest, source, target)
    for unit in daemons:
        unit.wait(functools.partial(finds_it_busy, unit), "to find it busy")
        unit.wait_passes()
    assert moving.under_way
    moving.hurry()
    return moving.end()


def test_both_daemons_act_while_it_moves_there_and_back(machine: Machine, target: Machine, mover: RunningGuest) -> None:
    with contextlib.ExitStack() as stack:
        daemons = [stack.enter_context(daemon(one)) for one in (machine, target)]
        pids = [unit.pid for unit in daemons]
        mover.wait_until(lambda: mover.balloon_kib() < SIZE_KIB and bool(records(mover)), "to have memory taken")
        there = move_under(daemons, mover, machine, target)
        size_kib = there.balloon_kib()
        assert there.alive and size_kib < SIZE_KIB and records(there)
        starve(there, NEEDY_MIB)
        there.wait_until(lambda: there.balloon_kib() > size_kib, "to be given memory on the target")
        home = move_under(daemons, there, target, machine)
        size_kib = home.balloon_kib()
        hold_as_at_first(home)
        home.wait_until(lambda: home.balloon_kib() < size_kib, "to have memory taken at home")
        assert [unit.pid for unit in daemons] == pids and all(unit.active for unit in daemons)
        for unit in daemons:
            print(*(entry["MESSAGE"] for entry in unit.journal()), sep="\n  ")
            assert not unit.journal("KVMSCHED_EVENT=failure")
    release(machine)
    assert is_as_defined(machine, home)
