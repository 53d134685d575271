# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Live migration between two hypervisors of two suites and two shapes: there and back, and what a target refuses.

docs/fleet.md says what to do for it, and is held to its word.
"""

from __future__ import annotations

import contextlib
import functools
import re
import shlex
import shutil
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import libvirt
import pytest
from face import REPOSITORY
from lab import Guest, Lab, Machine, RunningGuest, TinyGuest
from lab.guest import Files
from lab.lab import clean
from lab.machine import connect
from on_machine import daemon, kvmsched, obey, offline, place, records, release, until_unchanged
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
FREE, BOUND = TINY = [f"kvmsched-test-{name}" for name in ("free", "bound")]
# What libvirt says of a pCPU that the target lacks, and of one that is off there.
LACKS, IS_OFF = r"cpuset\.cpus'?: Numerical result out of range", "cannot set CPU affinity"
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


def refused(guest: RunningGuest, source: Machine, target: Machine, why: str) -> None:
    """It is not let in there, and goes on where it is, as it was."""
    before = state(source, guest)
    with pytest.raises(libvirt.libvirtError, match=why):
        Moving(guest, source, target).end()
    assert guest.alive and guest.name not in names(connect(target.uri))
    assert state(source, guest) == before


def names(connection: Any) -> list[str]:
    return [domain.name() for domain in connection.listAllDomains()]


def state(machine: Machine, guest: RunningGuest) -> tuple[set[int], int, list[str]]:
    """Its pins, its size, and whether it has a record."""
    found = place(machine, guest), guest.balloon_kib() if guest.guest.reports_memory else 0, records(guest)
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


# ---------------------------------------------------------------- what a target refuses


def move_as_documented(name: str, source: Machine, target: Machine) -> None:
    """What docs/fleet.md has for a guest that goes where there are fewer pCPUs."""
    text = (REPOSITORY / "docs/fleet.md").read_text(encoding="utf-8")
    lines = re.findall(r"^    (virsh dumpxml --migratable .*)\n    (virsh migrate .* --xml .*)$", text, re.MULTILINE)
    ((dump, migrate),) = lines
    where = f"{shlex.quote(target.uri)} tcp://{target.wire_address}"
    for line in (dump, migrate.replace("qemu+ssh://kvm2/system", where)):
        command = line.replace("virsh", f"virsh --connect {shlex.quote(source.uri)}").replace("db1", name)
        print(command)
        subprocess.run(command, shell=True, check=True, cwd=source.directory)


def test_a_target_with_fewer_pcpus_gets_a_guest_without_its_pins(machine: Machine, target: Machine, lab: Lab) -> None:
    """Whether its pins are of its definition, of a pass, or what a release left to a guest that had none."""
    obey(machine, pcpus="4-5")
    tiny = lab.start(TinyGuest(FREE, cpu=[0.3]), TinyGuest(BOUND, cpu=[0.3], cputune=CPUTUNE.format("4-5")))
    until_unchanged(machine, "vcpu")
    assert sorted(map(tuple, (place(machine, guest) for guest in tiny))) == [(4,), (5,)]
    for guest in tiny:
        refused(guest, machine, target, LACKS)
    obey(machine, pcpus="6")
    until_unchanged(machine, "vcpu")
    assert place(machine, lab[FREE]) == {6}, "it is managed as before"
    release(machine)
    for guest in tiny:
        refused(guest, machine, target, LACKS)
        files = expect(target, guest)
        move_as_documented(guest.name, machine, target)
        there = arrived(target, guest, files)
        assert there.alive and there.affinity() == {0, 1, 2, 3} and "<vcpupin" not in there.domain.XMLDesc()
    assert not until_unchanged(target, "vcpu")[-1]["skips"]
    release(target)
    assert "kvmsched:state" not in target.run(f"for guest in {' '.join(TINY)}; do virsh dumpxml $guest; done")


def test_a_target_whose_pcpu_is_off_gets_a_guest_that_was_released(
    machine: Machine, target: Machine, mover: RunningGuest
) -> None:
    """A pass pinned it to that pCPU alone; its definition has another one, too."""
    until_unchanged(machine, "vcpu")
    pinned = place(machine, mover)
    with offline(target, pinned):
        refused(mover, machine, target, IS_OFF)
        manage(machine, mover)
        assert place(machine, mover) == pinned
        release(machine)
        assert is_as_defined(machine, mover)
        there = Moving(mover, machine, target).end()
        assert there.alive and there.affinity() == PINNED - pinned
        obey(target)  # one that names it would be refused there
        for part in ("vcpu", "memory"):
            until_unchanged(target, part)
        assert there.affinity() == PINNED - pinned and there.balloon_kib() < SIZE_KIB
    release(target)
    assert there.alive and PINNED - pinned <= there.affinity() <= PINNED
    assert there.balloon_kib() == SIZE_KIB and not records(there)


# ---------------------------------------------------------------- under daemons


def finds_it_busy(unit: Unit) -> bool:
    return passes(unit) == [({"busy": 1}, "")] * 2


def judges_it(unit: Unit) -> bool:
    """Whether the one who has it skips it for nothing."""
    return passes(unit) == [({}, "")] * 2


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
    arrived_there = moving.end()
    there = next(unit for unit in daemons if unit.host is target)
    there.wait(functools.partial(judges_it, there), "to judge who arrived")
    return arrived_there


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
            assert not unit.journal("KVMSCHED_EVENT=failure") and not unit.said("past libvirt")
    release(machine)
    assert is_as_defined(machine, home)
