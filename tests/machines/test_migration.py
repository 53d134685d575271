# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Live migration between two hypervisors of two suites and two shapes, seen from both while a guest moves."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import libvirt
import pytest
from lab import Guest, Lab, Machine, RunningGuest
from lab.lab import clean
from lab.machine import connect
from on_machine import kvmsched, obey, records, release, until_unchanged

pytestmark = pytest.mark.nightly

NAME = "kvmsched-test-mover"
LIVE = libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_PERSIST_DEST | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
# The target has no others.
SHARED = "0-3"
# Slow enough to have passes meanwhile, and then as fast as can be.
SLOW_MIB_PER_S, FAST_MIB_PER_S = 1, 4096
SLOW = {libvirt.VIR_MIGRATE_PARAM_BANDWIDTH: SLOW_MIB_PER_S}


class Moving:
    """A live migration of a guest that is under way; ``end()`` returns it where it is then."""

    def __init__(self, guest: RunningGuest, source: Machine, target: Machine, **parameters: Any) -> None:
        self._guest, self._source, self._target = guest, source, target
        self._parameters = {libvirt.VIR_MIGRATE_PARAM_URI: f"tcp://{target.wire_address}", **parameters}
        self._error: list[libvirt.libvirtError] = []
        # Its files are where they were, on the other host.
        target.run(f"mkdir --parents {guest.files.console.parent}")
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
        while self._guest.name not in [domain.name() for domain in there.listAllDomains()]:
            assert self.under_way, self._error

    def hurry(self) -> None:
        """From now on as fast as can be."""
        with contextlib.suppress(libvirt.libvirtError):  # it may have ended
            self._domain().migrateSetMaxSpeed(FAST_MIB_PER_S)

    def end(self) -> RunningGuest:
        self._thread.join()
        if self._error:
            raise self._error[0]
        domain = connect(self._target.uri).lookupByName(self._guest.name)
        to = self._target
        return RunningGuest(self._guest.guest, self._guest.files, domain, to.qemu_pid, to.kernel, to.clock)


@pytest.fixture
def labs(machine: Machine, target: Machine) -> Iterator[Lab]:
    """The source's; what is left on the target goes, too."""
    for one in (machine, target):
        obey(one, pcpus=SHARED)
    with Lab(own=machine, say=print) as lab:
        try:
            yield lab
        finally:
            clean(connect(target.uri), everybody=True)


def test_passes_on_both_sides_while_it_migrates(machine: Machine, target: Machine, labs: Lab) -> None:
    """It is busy for both, and the only guest of both: no pass fails for it, from the first instant to the last."""
    (guest,) = labs.start(Guest(NAME, memory_mib=384, hold_mib=80, cpu=[0.3]))
    size_kib = guest.balloon_kib()
    moving = Moving(guest, machine, target, **SLOW)
    moving.wait_seen()
    for one in (machine, target):
        told = kvmsched(one, "once")
        for part in ("memory", "vcpu"):
            assert moving.under_way and not told[part]["changed"] and set(told[part]["skip_counts"]) == {"busy"}
    moving.hurry()
    while moving.under_way:
        for one in (machine, target):
            kvmsched(one, "once")
    there = moving.end()
    assert there.alive
    until_unchanged(target, "memory")
    release(target)
    assert there.balloon_kib() == size_kib and not records(there)
