# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose pins they are: ours, a person's, or those of another hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from kvmsched import baseline
from kvmsched.model import PinRecord, Record
from kvmsched.policy import vcpu
from kvmsched.policy.vcpu import VcpuHistory
from vcpu_worlds import HOST_UUID, POLICY, FakeHost, Guest, cpus, daemon_passes, guests, topology


def with_record(host: FakeHost, guest: Guest, **fields: Any) -> None:
    values: dict[str, Any] = {"thread": "vcpu", "id": 0, "original": cpus("0-1"), "previous": cpus("0-1")}
    values.update({"intended": cpus("0"), "when_s": int(host.snapshot().wall_s) - 5, **fields})
    host.records[guest.uuid] = Record(HOST_UUID, 1, pins=(PinRecord(**values),))


def test_a_pin_that_a_person_set_is_adopted_and_skipped_for_its_grace() -> None:
    host = FakeHost(topology(3), guests(2, 0.9, "2"))
    for guest in host.guests:
        with_record(host, guest)
    plan, _history = vcpu.decide(host.window(), POLICY)
    assert plan.moves == ()
    assert {skip.code for skip in plan.skips} == {"human"}
    adopted = plan.adoptions[0].pins[0]
    assert adopted.original == adopted.previous == adopted.intended == cpus("2")
    for guest in host.guests:
        host.records[guest.uuid] = Record(HOST_UUID, 1, pins=(adopted,))
    assert {s.code for s in vcpu.decide(host.window(), POLICY)[0].skips} == {"human"}
    host.run(POLICY.grace_s)
    assert len(vcpu.decide(host.window(), POLICY)[0].moves) == 1


def test_the_record_of_another_host_binds_nobody() -> None:
    host = FakeHost(topology(3), guests(2, 0.9, "2"))
    for guest in host.guests:
        with_record(host, guest)
        host.records[guest.uuid] = replace(host.records[guest.uuid], host_uuid="another")
    plan, _history = vcpu.decide(host.window(), POLICY)
    assert len(plan.moves) == 1


def test_what_another_host_pinned_belongs_to_its_own_set_here() -> None:
    host = FakeHost(topology(3), guests(2, 0.9, "2"))
    there = PinRecord("vcpu", 0, cpus("7"), cpus("7"), cpus("2"), 1)
    for guest in host.guests:
        host.records[guest.uuid] = Record("another", 1, pins=(there,))
    plan, _history = vcpu.decide(host.window(), POLICY)
    assert [part.original for adoption in plan.adoptions for part in adoption.pins] == [cpus("0-2")] * 2


def test_who_migrated_in_at_its_own_set_was_pinned_by_nobody() -> None:
    """Its daemon there had placed it on pCPU 2 and given it back."""
    host = FakeHost(topology(4), guests(1, 0.9, "0-3"))
    with_record(host, host.guests[0], original=cpus("0-3"), previous=cpus("2"), intended=cpus("0-3"))
    record = host.records[host.guests[0].uuid] = replace(host.records[host.guests[0].uuid], host_uuid="another")
    now = host.snapshot()
    plan, _history = vcpu.decide([now], POLICY)
    known = baseline.adopt(record, now.domains[0], plan.adoptions[0], HOST_UUID, int(now.wall_s))
    host.records[host.guests[0].uuid] = known
    assert vcpu.decide(host.window(), POLICY)[0].skips == ()


def test_a_foreign_hand_is_skipped_once_and_backed_off_from_twice() -> None:
    host = FakeHost(topology(2), guests(3, 0.5, "0"))
    host.guests[0].affinity = cpus("1")
    plan, history = vcpu.decide(host.window(), POLICY, VcpuHistory())
    assert [(s.domain, s.code) for s in plan.skips] == [("g0", "foreign-pin")]
    assert plan.warnings == ()
    plan, history = vcpu.decide(host.window(), POLICY, history)
    (told,) = plan.warnings
    assert told.startswith("g0: its affinity was changed past libvirt in 2 passes in a row")
    host.guests[0].affinity = None
    plan, history = vcpu.decide(host.window(), POLICY, history)
    assert [(s.domain, s.code) for s in plan.skips] == [("g0", "foreign-pin")]
    host.run(POLICY.grace_s)
    assert vcpu.decide(host.window(), POLICY, history)[0].skips == ()


@pytest.mark.parametrize("state", [{"busy": "it migrates in"}, {"state": "paused"}])
def test_who_starts_or_migrates_in_is_under_no_foreign_hand(state: dict[str, str]) -> None:
    """Both daemons backed off from a guest for ten minutes that had just arrived on an emulated KVM host."""
    host = FakeHost(topology(2), guests(1, 0.5, "0"))
    host.guests[0].affinity = cpus("0-1")
    history = VcpuHistory()
    for _pass in range(3):
        window = [replace(look, domains=tuple(replace(d, **state) for d in look.domains)) for look in host.window()]
        plan, history = vcpu.decide(window, POLICY, history)
        assert plan.warnings == ()
    host.guests[0].affinity = None
    assert vcpu.decide(host.window(), POLICY, history)[0].skips == ()


def test_a_pcpu_that_goes_offline_is_no_foreign_hand() -> None:
    """The kernel itself put elsewhere what was pinned there: it gets a place, and nobody is backed off from."""
    host = FakeHost(topology(4), [*guests(1, 0.5, "3"), *guests(1, 0.5, "2", "h")])
    made, history = daemon_passes(host, 3)
    assert made == [0, 0, 0]
    host.topology = topology(4, offline="3")
    made, history = daemon_passes(host, 3, history=history)
    assert sum(made) == 1 and len(host.guests[0].pins[0]) == 1
    assert not history.mismatches and not history.backed_off


def test_a_float_that_libvirt_keeps_off_isolated_pcpus_is_no_foreign_hand() -> None:
    host = FakeHost(topology(4, isolated="3"), guests(1, 0.5, "0-3"))
    host.guests[0].affinity = cpus("0-2")
    plan, _history = vcpu.decide(host.window(), POLICY)
    assert plan.skips == ()
    assert len(plan.moves) == 1
