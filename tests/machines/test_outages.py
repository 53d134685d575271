# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What happens to a hypervisor: pCPUs go and come, libvirtd starts anew, the power fails."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from face import GUESTS
from lab import Guest, Lab, Machine, RunningGuest
from on_machine import kvmsched, obey, records, until_unchanged

pytestmark = pytest.mark.nightly

ONE, OTHER = "kvmsched-test-one", "kvmsched-test-other"
RELEASE = f"kvmsched release '{GUESTS}'"


@pytest.fixture
def pair(machine: Machine) -> Iterator[list[RunningGuest]]:
    """Two guests that want a pCPU each and share a core; the other one wastes memory."""
    obey(machine)
    with Lab(own=machine, say=print) as lab:
        yield lab.start(
            Guest(ONE, memory_mib=160, cpu=[0.9], pin={0: "2-3"}),
            Guest(OTHER, memory_mib=512, cpu=[0.9], pin={0: "2-3"}),
        )


def switch(machine: Machine, pcpus: set[int], on: bool) -> None:
    for pcpu in sorted(pcpus):
        machine.write(f"/sys/devices/system/cpu/cpu{pcpu}/online", str(int(on)))


def test_pcpus_go_and_come_under_pinned_guests(machine: Machine, pair: list[RunningGuest]) -> None:
    assert until_unchanged(machine, "vcpu")[0]["changed"]
    gone = {pcpu for guest in pair for pcpu in guest.affinity()} - {0}
    switch(machine, gone, False)
    try:
        passes = until_unchanged(machine, "vcpu")
        print([one["vcpu"]["moves"] for one in passes])
        places = [guest.affinity() for guest in pair]
        assert all(place and place.isdisjoint(gone) for place in places), (places, gone)
        assert kvmsched(machine, "once --dry-run")["changed"] is False
    finally:
        switch(machine, gone, True)
    machine.run(RELEASE)
    assert [guest.affinity() for guest in pair] == [{2, 3}] * 2
    assert not records(machine, *pair) and all(guest.alive for guest in pair)


def test_libvirtd_starts_anew_between_passes(machine: Machine, pair: list[RunningGuest]) -> None:
    size_kib = pair[1].balloon_kib()
    assert until_unchanged(machine, "vcpu")[0]["changed"]
    assert until_unchanged(machine, "memory")[0]["changed"]
    places, taken_kib = [guest.affinity() for guest in pair], pair[1].balloon_kib()
    machine.run("systemctl restart libvirtd")
    with Lab(own=machine) as lab:
        after = [lab.connection.lookupByName(guest.name) for guest in pair]
        assert all("kvmsched:state" in domain.XMLDesc() for domain in after)
    assert not kvmsched(machine, "once vcpu")["changed"]
    assert [guest.affinity() for guest in pair] == places and taken_kib < size_kib
    machine.run(RELEASE)
    assert [guest.affinity() for guest in pair] == [{2, 3}] * 2
    assert all(guest.alive for guest in pair)


def test_power_fails_and_guests_start_as_they_are_defined(machine: Machine, pair: list[RunningGuest]) -> None:
    other = pair[1]
    other.domain.setAutostart(1)
    assert until_unchanged(machine, "memory")[0]["changed"] and other.balloon_kib() < 512 * 1024
    machine.run("sync")
    machine.cut_power()
    machine.boot()
    assert machine.run("virsh list --name").split() == [OTHER]
    assert f"Used memory:    {512 * 1024} KiB" in machine.run(f"virsh dominfo {OTHER}")
    assert "kvmsched:state" not in machine.run(f"virsh dumpxml {OTHER}")
    assert not kvmsched(machine, f"release '{GUESTS}'")["changed"]
    kvmsched(machine, "once")
    machine.run(RELEASE)
    assert "kvmsched:state" not in machine.run(f"virsh dumpxml {OTHER}")
