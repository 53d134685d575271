# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Live migration between two hypervisors, of two suites and two shapes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest
from face import GUESTS
from lab import Cell, Guest, Lab, Machine, Topology
from lab.machine import connect
from on_machine import kvmsched, obey, until_unchanged

pytestmark = pytest.mark.nightly

NAME = "kvmsched-test-mover"
LIVE = libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_PERSIST_DEST | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
SHARED_PCPUS = "0-3"  # the target has no others


@pytest.fixture
def target(tarball: Path) -> Iterator[Machine]:
    """Another hypervisor, newer and half as large."""
    small = Topology(sockets=1, cores=2, threads=2, cells=(Cell(SHARED_PCPUS, 1536),))
    with Machine("trixie", small, number=2, say=print) as target:
        target.push(tarball)
        obey(target)
        yield target


def pins(domain: Any) -> list[int]:
    return [pcpu for pcpu, allowed in enumerate(domain.vcpuPinInfo()[0]) if allowed]


def test_a_guest_that_is_pinned_and_ballooned_migrates_and_is_released_there(machine: Machine, target: Machine) -> None:
    obey(machine, vcpu={"pcpus": SHARED_PCPUS, "floating": "place"})
    with Lab(own=machine, say=print) as lab:
        (guest,) = lab.start(Guest(NAME, memory_mib=384, cpu=[0.5]))
        until_unchanged(machine, "memory")
        until_unchanged(machine, "vcpu")
        placed, taken_kib = guest.affinity(), guest.balloon_kib()
        assert len(placed) == 1 and taken_kib < 384 * 1024
        target.run(f"mkdir --parents {guest.files.console.parent}")
        there = connect(target.uri)
        moved = guest.domain.migrate3(there, {libvirt.VIR_MIGRATE_PARAM_URI: f"tcp://{target.wire_address}"}, LIVE)
        assert not guest.alive and moved.isActive()
        assert pins(moved) == sorted(placed) and moved.memoryStats()["actual"] == taken_kib
        assert "kvmsched:state" in moved.XMLDesc()
        assert kvmsched(target, "once")["changed"] in (True, False)
        target.run(f"kvmsched release '{GUESTS}'")
        assert pins(moved) == [0, 1, 2, 3] and moved.memoryStats()["actual"] == 384 * 1024
        assert "kvmsched:state" not in moved.XMLDesc()
        there.close()
