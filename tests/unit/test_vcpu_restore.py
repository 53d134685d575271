# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`state: released`: every thread gets back the affinity that it had before our first pin of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from kvmsched.config import Selection, VcpuPolicy
from kvmsched.model import PinMove, PinRecord, Record, Snapshot, Thread, VcpuPlan
from kvmsched.policy import vcpu
from vcpu_worlds import HOST_UUID, POLICY, FakeHost, Guest, cpus, guests, led_to, pinned_guest, recorded, topology


def moved_host(original: str = "0-3", pin: str = "1", host: Any = None, **fields: Any) -> FakeHost:
    """One guest that we pinned to *pin*; before, it was on *original*."""
    fake = FakeHost(host or topology(4), [Guest("g", [0.5], [cpus(pin)], fields=fields)])
    record = PinRecord("vcpu", 0, cpus(original), cpus(original), cpus("1"), 1_700_000_000)
    fake.records[fake.guests[0].uuid] = Record(HOST_UUID, 1, pins=(record,))
    return fake


def released(host: FakeHost, policy: VcpuPolicy = POLICY) -> VcpuPlan:
    return vcpu.release([host.snapshot()], policy)[0]


def afters(plan: VcpuPlan) -> list[frozenset[int]]:
    return [move.after for move in plan.moves if isinstance(move, PinMove)]


def test_back_to_the_original_bit_for_bit() -> None:
    plan = released(moved_host())
    assert afters(plan) == [cpus("0-3")]
    assert plan.moves[0].reason == "released: back to its original 0-3"
    assert plan.not_restored == ()


def test_twice_is_once() -> None:
    host = moved_host()
    host.apply(released(host))
    assert released(host).moves == ()


def test_a_paused_domain_is_released_and_a_busy_one_is_not() -> None:
    assert afters(released(moved_host(state="paused"))) == [cpus("0-3")]
    plan = released(moved_host(busy="migration job"))
    assert plan.moves == ()
    assert tuple(map(str, plan.not_restored)) == ("g: migration job",)
    assert [skip.code for skip in plan.skips] == ["busy"]


def test_an_unusable_record_is_told() -> None:
    plan = released(moved_host(record_error="unknown version 9"))
    assert plan.moves == ()
    (told,) = plan.not_restored
    assert str(told).startswith("g: unknown version 9: ") and "virsh metadata" in told.reason and told.limited
    assert [skip.code for skip in plan.skips] == ["record"]


def test_what_a_person_set_is_left_alone() -> None:
    plan = released(moved_host(pin="2"))
    assert plan.moves == ()
    assert [skip.code for skip in plan.skips] == ["human"]
    assert plan.not_restored == ()
    (adopted,) = plan.adoptions[0].pins
    assert adopted.original == adopted.previous == adopted.intended == cpus("2"), "so its record can go"


def test_an_original_with_a_pcpu_that_is_offline_now_is_restored_as_far_as_it_goes() -> None:
    plan = released(moved_host(host=topology(4, offline="3")))
    assert afters(plan) == [cpus("0-2")]
    assert tuple(map(str, plan.not_restored)) == ("g: vCPU 0: its original 0-3 has pCPU 3 offline, restored to 0-2",)
    plan = released(moved_host(original="3", host=topology(4, offline="3")))
    assert afters(plan) == [cpus("0-2")], "what it gets when it starts anew, not what we pinned it to"
    assert tuple(map(str, plan.not_restored)) == (
        "g: vCPU 0: its original 3 has pCPU 3 offline, restored to its own set 0-2",
    )


def test_the_record_of_another_host_means_the_domains_own_set() -> None:
    host = moved_host(original="0-63", cpuset=cpus("0-1"))
    uuid = host.guests[0].uuid
    host.records[uuid] = replace(host.records[uuid], host_uuid="another")
    plan = released(host)
    assert afters(plan) == [cpus("0-1")]
    (rebased,) = plan.adoptions[0].pins
    assert (rebased.original, rebased.intended) == (cpus("0-1"), cpus("1")), "here it has another original"
    host.guests[0].fields = {}
    assert afters(released(host)) == [cpus("0-3")]
    host.guests[0].definitions = {0: cpus("2-3")}
    assert afters(released(host)) == [cpus("2-3")]


def test_what_is_not_there_any_more_has_nothing_to_get_back() -> None:
    host = moved_host()
    uuid = host.guests[0].uuid
    record = host.records[uuid]
    host.records[uuid] = replace(record, pins=(*record.pins, replace(record.pins[0], id=7)))
    plan = released(host)
    assert afters(plan) == [cpus("0-3")]
    assert [(s.code, s.reason) for s in plan.skips] == [
        ("offline", "vCPU 7 is not there any more: nothing to give back")
    ]


def test_an_unplugged_vcpu_that_keeps_our_pin_gets_its_original_last() -> None:
    host = moved_host()
    (guest,) = host.guests
    here = host.records[guest.uuid].pins[0]
    host.records[guest.uuid] = Record(HOST_UUID, 1, pins=(replace(here, id=7), here))
    guest.threads = (Thread("vcpu", 7, cpus("1")),)
    plan = released(host)
    assert [(move.id, move.after) for move in plan.moves if isinstance(move, PinMove)] == [
        (0, cpus("0-3")),
        (7, cpus("0-3")),
    ]
    assert plan.skips == plan.not_restored == ()


def test_emulator_threads_too() -> None:
    host = FakeHost(topology(4), guests(1, 0.5, "1"))
    host.guests[0].threads = (Thread("emulator", 0, cpus("0-3")), Thread("iothread", 1, cpus("2")))
    policy = VcpuPolicy(emulator="reserved", reserved=cpus("0"))
    host.apply(vcpu.decide(host.window(), policy)[0])
    assert {thread.pin for thread in host.guests[0].threads} == {cpus("0")}
    host.apply(released(host))
    assert [thread.pin for thread in host.guests[0].threads] == [cpus("0-3"), cpus("2")]


def test_only_the_selected_domains_and_whatever_the_policy_names() -> None:
    host = moved_host()
    assert released(host, replace(POLICY, selection=Selection(("other",)))).moves == ()
    assert released(host, replace(POLICY, pcpus=cpus("90"))).moves != ()


def test_the_history_forgets_the_moves() -> None:
    host = FakeHost(topology(2), guests(2, 0.8, "0"))
    plan, history = vcpu.decide(host.window(), POLICY)
    assert history.moves
    host.apply(plan)
    _plan, history = vcpu.release(host.window(), POLICY, history)
    assert history.moves == {}


def test_figures_of_a_release_need_two_snapshots() -> None:
    host = FakeHost(topology(2), guests(2, 0.8, "0"))
    host.apply(vcpu.decide(host.window(), POLICY)[0])
    window: list[Snapshot] = host.window()
    plan, _history = vcpu.release(window, POLICY)
    assert plan.before.imbalance_pct < 5
    assert plan.after.imbalance_pct > 75
    assert "imbalance" in plan.headline
    plan, _history = vcpu.release(window[-1:], POLICY)
    assert plan.moves and plan.headline == "load not measured", "it must not say that the host is even"


@pytest.mark.parametrize(
    ("original", "restored", "told"),
    [
        ("6", "0-5", "6 has pCPU 6 {}, restored to its own set 0-5"),
        ("4,7", "0-5", "4,7 has pCPU 4,7 {}, restored to its own set 0-5"),
        ("2,4", "2", "2,4 has pCPU 4 {}, restored to 2"),
        ("2,9,16000", "2", "2,9,16000 has pCPU 9,16000 offline, restored to 2"),
        ("6,9", "0-5", "6,9 has pCPU 9 offline and pCPU 6 {}, restored to its own set 0-5"),
        ("0-7", "0-7", ""),  # it floated
        ("0-5", "0-5", ""),
        ("2-3", "2-3", ""),
    ],
)
def test_a_record_does_not_lead_onto_isolated_pcpus_or_anothers_own(original: str, restored: str, told: str) -> None:
    host = FakeHost(topology(8, isolated="6-7"), [pinned_guest("g", "1"), pinned_guest("own", "4", definitions="4")])
    recorded(host, "g", [(original, original, "1")])
    plan, _history = vcpu.release([host.snapshot()], POLICY)
    assert led_to(plan) == cpus(restored)
    told = told.format("isolated, another domain's own, or outside of its cpuset")
    assert tuple(map(str, plan.not_restored)) == ((f"g: vCPU 0: its original {told}",) if told else ())
    assert all(left.limited for left in plan.not_restored), "it fails no release of the host"
    host.apply(plan)
    assert vcpu.release([host.snapshot()], POLICY)[0].moves == ()


def test_nor_does_one_of_a_transient_domain_which_says_what_its_definition_was() -> None:
    host = FakeHost(topology(8, isolated="6-7"), [pinned_guest("g", "1", fields={"persistent": False})])
    recorded(host, "g", [("5-6", "5-6", "1")])
    assert led_to(vcpu.release([host.snapshot()], POLICY)[0]) == cpus("5")


@pytest.mark.parametrize(
    ("original", "definitions", "restored"),
    [("0-7", "", "2-3"), ("3-5", "", "3"), ("6", "", "2-3"), ("6", "6", "6"), ("6-7", "6", "6")],
)
def test_a_record_does_not_lead_out_of_the_cpuset_of_its_definition(
    original: str, definitions: str, restored: str
) -> None:
    host = FakeHost(topology(8), [pinned_guest("g", "2", definitions=definitions)])
    host.guests[0].fields["cpuset"] = cpus("2-3")
    recorded(host, "g", [(original, original, "2")])
    plan, _history = vcpu.release([host.snapshot()], POLICY)
    assert led_to(plan) == cpus(restored)
    assert len(plan.not_restored) == (original != restored)
