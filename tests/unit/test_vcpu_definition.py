# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose pin is it: which ones a definition gave, and which are ours."""

from __future__ import annotations

from dataclasses import replace

import pytest
from kvmsched.model import VcpuPlan
from kvmsched.policy import vcpu
from kvmsched.policy.vcpu.eligibility import dedication_on
from vcpu_worlds import (
    HOST_UUID,
    POLICY,
    FakeHost,
    codes,
    cpus,
    guests,
    led_to,
    one_pass,
    own,
    pinned_guest,
    recorded,
    topology,
)


def test_a_transient_guest_keeps_the_pins_of_its_start() -> None:
    transient = pinned_guest("t", "0 0 0", 0.9, "0-2 0-2 0-2", fields={"persistent": False})
    plan = one_pass(transient, pinned_guest("b", "3"))
    assert len(plan.moves) == 2 and led_to(plan) == {1, 2}
    assert own(pinned_guest("t", "3", definitions="3", fields={"persistent": False})).pcpus == {3}


@pytest.mark.parametrize(("definitions", "unknown"), [("0", True), ("-", False)])
def test_pins_that_may_be_of_later_than_the_start_are_kept_and_told(definitions: str, unknown: bool) -> None:
    """The second is how a snapshot of an earlier version has it."""
    transient = pinned_guest("t", "0", 0.9, definitions, fields={"persistent": False, "start_unknown": unknown})
    plan = one_pass(transient, pinned_guest("b", "0 0", 0.9))
    assert plan.moves and all(move.domain == "b" for move in plan.moves)
    assert plan.warnings == ("t: transient, seen after its start: its pins of now are taken for its definition",)


def decided(host: FakeHost) -> VcpuPlan:
    return vcpu.decide(host.window(), POLICY)[0]


@pytest.mark.parametrize("where", [HOST_UUID, "another"])
def test_the_recorded_original_of_a_transient_guest_is_its_definition_on_any_host(where: str) -> None:
    transient = pinned_guest("t", "1 1 1", 0.9, "1 1 1", fields={"persistent": False})
    host = FakeHost(topology(6), [transient])
    recorded(host, "t", [("1-3", "2", "1")] * 3, where)
    plan = decided(host)
    assert len(plan.moves) == 2 and led_to(plan) == {2, 3}


def test_a_pin_that_we_wrote_is_ours_in_a_persistent_definition_too() -> None:
    """Who defines a guest by its live XML copies our pins: no limit, nothing of its own, and it is said."""
    host = FakeHost(topology(4), [pinned_guest("p", "1 1", 0.9, "1 1"), *guests(2, 0.1, "1", "other")])
    recorded(host, "p", [("0-3", "2", "1"), ("0-3", "0-3", "1")])
    assert dedication_on(host.snapshot(), POLICY).pcpus == frozenset()
    plan = decided(host)
    assert plan.moves and plan.warnings == (
        "p: its definition has pins that kvmsched set, of vCPU 0-1: they limit nothing, `virsh edit` removes them",
    )


def test_a_definition_that_is_the_original_is_a_limit_though_we_wrote_it_last() -> None:
    host = FakeHost(topology(4), [pinned_guest("p", "1 1", 0.9, "1 1")])
    recorded(host, "p", [("1", "2", "1"), ("1", "1", "1")])
    assert decided(host).moves == ()


@pytest.mark.parametrize("persistent", [True, False])
def test_a_definition_that_we_brought_a_guest_back_to_stays_its_limit(persistent: bool) -> None:
    """Somebody had moved it out of its definition, or start, by a live pin: to write the same does not make it ours."""
    away = pinned_guest("away", "4-7 4-7 4-7", 0.9, "0-3 0-3 0-3", fields={"persistent": persistent})
    host = FakeHost(topology(8, llc=4), [away])
    policy = replace(POLICY, granularity="llc")
    host.apply(vcpu.decide(host.window(), policy)[0])
    assert away.pins == [cpus("0-3")] * 3
    host.guests += guests(3, 1.0, "0-3", "late")
    for late in host.guests[1:]:
        late.fields["cpuset"] = cpus("0-3")
    for _turn in range(2):
        host.apply(vcpu.decide(host.window(), policy)[0])
        assert away.pins == [cpus("0-3")] * 3


def test_a_transient_guest_of_which_no_pin_is_known_has_nothing_and_ends_no_pass() -> None:
    """It began while the host was looked at."""
    unread = pinned_guest("unread", "0 0", 0.5, fields={"persistent": False, "record_error": "not read"})
    snapshot = FakeHost(topology(4), [unread, *guests(3, 0.9, "0")]).window()
    domain = snapshot[-1].domains[0]
    empty = tuple(replace(vcpu_, pin=frozenset(), definition=frozenset()) for vcpu_ in domain.vcpus)
    now = replace(snapshot[-1], domains=(replace(domain, vcpus=empty), *snapshot[-1].domains[1:]))
    plan, _history = vcpu.decide([snapshot[0], now], POLICY)
    assert plan.moves and codes(plan) == {"unread": "record"}
