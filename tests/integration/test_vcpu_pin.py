# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""kvm_vcpu_pin on real guests: the truth is each vCPU thread's affinity, asked of the kernel."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from face import run_ok
from lab import Guest, Lab, RunningGuest

pytestmark = pytest.mark.quiet

NAMES = [f"kvmsched-test-cpu{number}" for number in range(4)]
ALL_PCPUS = frozenset(os.sched_getaffinity(0))


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        lab.start(*(Guest(name, memory_mib=128) for name in NAMES))
        yield lab


@pytest.fixture
def guests(lab: Lab) -> Iterator[list[RunningGuest]]:
    """The four guests, idle, floating over all pCPUs and without a record."""
    guests = [lab[name] for name in NAMES]
    yield guests
    for guest in guests:
        guest.cpu(0)
    run_ok("kvm_vcpu_pin", state="released")
    pin(guests, ALL_PCPUS)


def pin(guests: list[RunningGuest], pcpus: frozenset[int]) -> None:
    for guest in guests:
        guest.domain.pinVcpu(0, tuple(cpu in pcpus for cpu in range(max(ALL_PCPUS) + 1)))


def settle(guests: list[RunningGuest]) -> None:
    """A load that was just set takes a moment to be what it will be."""
    for guest in guests:
        guest.report()
    time.sleep(1)


def placement(guests: list[RunningGuest]) -> list[frozenset[int]]:
    return [guest.affinity(0) for guest in guests]


def test_four_equal_guests_on_one_pcpu_become_two_and_two(guests: list[RunningGuest]) -> None:
    pin(guests, frozenset({0}))
    for guest in guests:
        guest.cpu(0.4)
    settle(guests)
    foreseen = run_ok("kvm_vcpu_pin", check=True, pcpus="0-1")
    assert foreseen.changed and len(foreseen.moves) == 2, foreseen.text
    assert placement(guests) == [frozenset({0})] * 4, "check mode moved something"
    assert not any("kvmsched:state" in guest.domain.XMLDesc(0) for guest in guests), "check mode left a record"

    first = run_ok("kvm_vcpu_pin", pcpus="0-1")
    assert first.changed and len(first.moves) == 2
    assert Counter(placement(guests)) == {frozenset({0}): 2, frozenset({1}): 2}
    assert all(move["reason"] for move in first.moves)
    assert first.values["moves_bound"] == 2
    assert first.values["after"]["imbalance_pct"] < first.values["before"]["imbalance_pct"]
    assert first.text.count("+kvmsched-test-cpu") == 2, first.text

    second = run_ok("kvm_vcpu_pin", pcpus="0-1")
    assert not second.changed, second.text

    released = run_ok("kvm_vcpu_pin", state="released")
    assert released.changed
    assert placement(guests) == [frozenset({0})] * 4
    assert not any("kvmsched:state" in guest.domain.XMLDesc(0) for guest in guests)
    assert not run_ok("kvm_vcpu_pin", state="released").changed


def test_what_is_balanced_stays(guests: list[RunningGuest]) -> None:
    pin(guests[:2], frozenset({0}))
    pin(guests[2:], frozenset({1}))
    for guest in guests:
        guest.cpu(0.4)
    settle(guests)
    before = placement(guests)
    assert not run_ok("kvm_vcpu_pin", pcpus="0-1").changed
    assert placement(guests) == before


def test_idle_guests_stay(guests: list[RunningGuest]) -> None:
    pin(guests, frozenset({0}))
    assert not run_ok("kvm_vcpu_pin", pcpus="0-1").changed
    pin(guests, ALL_PCPUS)
    assert not run_ok("kvm_vcpu_pin", pcpus="0-1").changed


def test_a_heavy_and_a_light_pair_that_float_get_one_of_each_a_pcpu(guests: list[RunningGuest]) -> None:
    for guest, share in zip(guests, (0.7, 0.7, 0.2, 0.2)):
        guest.cpu(share)
    settle(guests)
    assert run_ok("kvm_vcpu_pin", pcpus="0-1").changed
    heavy, light = placement(guests[:2]), placement(guests[2:])
    assert set(heavy) == set(light) == {frozenset({0}), frozenset({1})}
    assert not run_ok("kvm_vcpu_pin", pcpus="0-1").changed
    run_ok("kvm_vcpu_pin", state="released")
    assert placement(guests) == [ALL_PCPUS] * 4


def test_below_the_threshold_and_within_the_budget(guests: list[RunningGuest]) -> None:
    pin(guests, frozenset({0}))
    for guest in guests:
        guest.cpu(0.2)  # in sum well below a whole pCPU: nobody waits for work
    settle(guests)
    assert not run_ok("kvm_vcpu_pin", pcpus="0-1", threshold=100).changed
    assert not run_ok("kvm_vcpu_pin", pcpus="0-1", max_moves=0).changed
    assert len(run_ok("kvm_vcpu_pin", pcpus="0-1", max_moves=1).moves) == 1
    assert Counter(placement(guests)) == {frozenset({0}): 3, frozenset({1}): 1}


def test_only_what_was_asked_for_is_touched(guests: list[RunningGuest]) -> None:
    pin(guests, frozenset({0}))
    for guest in guests:
        guest.cpu(0.4)
    settle(guests)
    answer = run_ok("kvm_vcpu_pin", pcpus="0-1", domains=NAMES[:3], exclude=[NAMES[0], "kvmsched-test-none*"])
    assert {move["domain"] for move in answer.moves} == {NAMES[1], NAMES[2]}
    assert answer.values["unmatched"] == ["kvmsched-test-none*"]


def test_released_leaves_what_a_person_pinned_and_no_record(guests: list[RunningGuest]) -> None:
    pin(guests, frozenset({0}))
    for guest in guests:
        guest.cpu(0.5)
    settle(guests)
    moved = {move["domain"] for move in run_ok("kvm_vcpu_pin", pcpus="0-1").moves}
    theirs = [guest for guest in guests if guest.name in moved][:1]
    pin(theirs, ALL_PCPUS)
    assert run_ok("kvm_vcpu_pin", state="released").skip(theirs[0].name)["code"] == "human"
    assert [guest.affinity(0) for guest in guests] == [
        ALL_PCPUS if guest in theirs else frozenset({0}) for guest in guests
    ]
    assert not any("kvmsched:state" in guest.domain.XMLDesc() for guest in guests)
    assert not run_ok("kvm_vcpu_pin", state="released").changed


def test_a_paused_domain_is_skipped_and_the_others_are_served(guests: list[RunningGuest]) -> None:
    pin(guests, frozenset({0}))
    for guest in guests[:3]:
        guest.cpu(0.5)
    guests[3].domain.suspend()
    try:
        answer = run_ok("kvm_vcpu_pin", pcpus="0-1")
        assert answer.changed
        assert "paused" in answer.skip(NAMES[3])["reason"]
        assert placement(guests)[3] == frozenset({0})
    finally:
        guests[3].domain.resume()


def test_a_transient_guest_keeps_the_pins_of_its_start(lab: Lab, guests: list[RunningGuest]) -> None:
    """Its only definition is the one that it was started with, as OpenNebula and CloudStack start theirs."""
    name = "kvmsched-test-cpu-transient"
    start = "<vcpupin vcpu='0' cpuset='0'/>"
    (transient,) = lab.start(Guest(name, memory_mib=128, cpu=[0.4], cputune=start, persistent=False))
    try:
        pin(guests, frozenset({0}))
        guests[0].cpu(0.4)
        guests[1].cpu(0.4)
        settle([*guests, transient])
        result = run_ok("kvm_vcpu_pin", pcpus="0-1")
        assert result.moves and all(move["domain"] != name for move in result.moves), result.text
        assert transient.affinity(0) == {0}
    finally:
        lab.stop([name])
