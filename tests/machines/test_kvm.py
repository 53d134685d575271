# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""KVM, threads of cores, cells and cgroup v2: the truth is what the machine's kernel and the guests say."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from face import GUESTS, run_ok
from lab import Guest, Lab, Machine, RunningGuest
from on_machine import cpuset, obey, records, until_unchanged

pytestmark = pytest.mark.nightly

RESERVED, ISOLATED = 0, 7
CELL_1 = range(4, 8)
STRICT = "<numatune><memory mode='strict' nodeset='1'/></numatune>"
SPREAD = [f"kvmsched-test-{name}" for name in ("a", "b", "c")]
KEPT = "kvmsched-test-kept"
HOG, HOARDER = "kvmsched-test-hog", "kvmsched-test-hoarder"
NOISE_KIB = 8 * 1024


def core(pcpu: int) -> int:
    return pcpu // 2


@pytest.fixture(scope="module")
def busy(machine: Machine) -> Iterator[list[RunningGuest]]:
    """Three guests on one core, and one that is confined to cell 1; each wants a pCPU."""
    with Lab(own=machine, say=print) as lab:
        floating = [Guest(name, memory_mib=160, cpu=[0.9], pin={0: "2-3"}) for name in SPREAD]
        yield lab.start(*floating, Guest(KEPT, memory_mib=160, cpu=[0.9], pin={0: "4-6"}, extra=STRICT))


def test_the_machine_is_what_was_asked_for(machine: Machine) -> None:
    said = machine.run("virt-host-validate qemu", check=False)
    assert re.search(r"hardware virtualization\s*: PASS", said) and re.search(r"/dev/kvm is accessible\s*: PASS", said)
    assert machine.run("cat /sys/devices/system/cpu/cpu[0246]/topology/thread_siblings_list").split() == [
        *("0-1", "2-3", "4-5", "6-7")
    ]
    assert machine.run("cat /sys/devices/system/node/node[01]/cpulist").split() == ["0-3", "4-7"]
    assert machine.run("cat /sys/devices/system/node/node[01]/distance").splitlines() == ["10 20", "20 10"]
    assert machine.read("/sys/devices/system/cpu/isolated").strip() == str(ISOLATED)


def test_guests_are_of_kvm_and_say_what_only_kvm_says(machine: Machine, busy: list[RunningGuest]) -> None:
    guest = busy[0]
    assert "<domain type='kvm'" in guest.domain.XMLDesc()
    assert "anon_inode:kvm-vm" in machine.run(f"readlink /proc/{guest.pid}/fd/*")
    statistics = machine.run(f"virsh domstats --vcpu --balloon {guest.name}")
    names = {line.strip().partition("=")[0] for line in statistics.splitlines()}
    assert names >= {"vcpu.0.time", "vcpu.0.wait", "vcpu.0.exits.sum", "balloon.usable", "balloon.last-update"}, names


def test_ansible_sees_them_through_the_inventory(machine: Machine, busy: list[RunningGuest]) -> None:
    where = ["all", "--inventory", str(machine.inventory)]
    seen = run_ok("kvm_sched_info", where=where).values["snapshot"]
    assert {domain["name"] for domain in seen["domains"]} == {guest.name for guest in busy}
    assert seen["host"]["topology"]["isolated"] == [ISOLATED]


def test_each_gets_a_core_within_its_cell_and_beside_what_is_kept_free(
    machine: Machine, busy: list[RunningGuest]
) -> None:
    obey(machine, vcpu={"reserved": str(RESERVED)})
    before = [guest.affinity() for guest in busy]
    assert before == [*[{2, 3}] * 3, {4, 5, 6}]
    passes = until_unchanged(machine, "vcpu")
    assert passes[0]["changed"], passes[0]
    places = [guest.affinity() for guest in busy]
    print(places, [one["vcpu"]["moves"] for one in passes])
    assert all(place.isdisjoint({RESERVED, ISOLATED}) for place in places), places
    assert places[-1] <= set(CELL_1), places
    assert all(len(place) == 1 for place in places[:3]), places
    assert len({core(pcpu) for place in places for pcpu in place}) == len(busy), places
    for guest, place in zip(busy, places):
        assert cpuset(machine, guest) == ",".join(map(str, sorted(place)))

    machine.run(f"kvmsched release '{GUESTS}'")
    assert [guest.affinity() for guest in busy] == before
    assert not records(machine, *busy)


def test_memory_goes_from_who_wastes_it_to_who_starves(machine: Machine) -> None:
    with Lab(own=machine, say=print) as lab:
        hog, hoarder = lab.start(
            Guest(HOG, memory_mib=512, current_mib=256, hold_mib=180), Guest(HOARDER, memory_mib=512)
        )
        sizes = hog.balloon_kib(), hoarder.balloon_kib()
        before = hog.report(), hoarder.report()
        obey(machine)
        passes = until_unchanged(machine, "memory")
        assert passes[0]["changed"] and passes[-1]["memory"]["before"]["starved"] == 0, passes
        after = hog.report(), hoarder.report()
        assert after[0].available_kib >= 60 * 1024 - NOISE_KIB > before[0].available_kib, (before, after)
        assert after[1].free_kib <= 120 * 1024 + NOISE_KIB < before[1].free_kib, (before, after)
        assert (hog.balloon_kib(), hoarder.balloon_kib()) != sizes
        assert records(machine, hog, hoarder) == [HOG, HOARDER]

        hog.hold(40)
        hog.wait_held()
        hog.wait_seen()
        machine.run(f"kvmsched release '{GUESTS}'")
        assert (hog.balloon_kib(), hoarder.balloon_kib()) == sizes
        assert not records(machine, hog, hoarder)
        assert hog.hog_kills == hoarder.hog_kills == 0 and hog.alive and hoarder.alive
