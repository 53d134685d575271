# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hybrid hosts: a vCPU that wants all of a weak pCPU goes to a strong one that has room, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from kvmsched.config import VcpuPolicy
from kvmsched.model import Topology
from kvmsched.policy import vcpu
from kvmsched.policy.vcpu import VcpuHistory, world
from kvmsched.policy.vcpu.speed import speeds
from vcpu_worlds import FakeHost, cpus, guests, topology

DAEMON = VcpuPolicy(floating="auto", hold=3, half_life_s=30.0, cooldown_s=60.0)


def told(*capacities: int) -> Topology:
    """A host of which the kernel tells these capacities, as of an ARM board."""
    plain = topology(len(capacities))
    kinds = zip(plain.pcpus, capacities)
    return replace(plain, pcpus=tuple(replace(p, kind=f"capacity-{c}", capacity=c) for p, c in kinds))


def test_the_kernel_s_capacities_go_before_the_names_of_classes() -> None:
    assert speeds(topology(4)) == {}
    assert speeds(topology(4, weak="2-3")) == {0: 1.0, 1: 1.0, 2: 0.6, 3: 0.6}
    assert speeds(told(1024, 1024, 446, 446)) == pytest.approx({0: 1.0, 1: 1.0, 2: 0.436, 3: 0.436}, abs=0.001)
    assert speeds(told(1024, 1024)) == {}
    low = topology(3, weak="1-2")
    pcpus = (*low.pcpus[:2], replace(low.pcpus[2], kind="cpu_lowpower"))
    assert speeds(replace(low, pcpus=pcpus)) == {0: 1.0, 1: 0.6, 2: 0.4}


@pytest.mark.parametrize("threads", [1, 2])
def test_hogs_leave_weak_pcpus_while_a_strong_core_is_idle(threads: int) -> None:
    host = FakeHost(topology(8, threads=threads, weak="4-7"), [*guests(1, 1.0, "4", "a"), *guests(1, 1.0, "6", "b")])
    plan, _history = vcpu.decide(host.window(), VcpuPolicy())
    assert plan.trigger == "work" and plan.before.max_pct == pytest.approx(167, abs=1)
    host.apply(plan)
    places = sorted(min(guest.pins[0]) for guest in host.guests)
    assert max(places) < 4 and places[1] - places[0] >= threads, "each on a strong core of its own"
    assert vcpu.decide(host.window(), VcpuPolicy())[0].moves == ()


def test_a_strong_pcpu_that_is_taken_is_no_better() -> None:
    host = FakeHost(
        topology(4, weak="2-3"), [*guests(1, 1.0, "0", "a"), *guests(1, 1.0, "1", "b"), *guests(2, 1.0, "2")]
    )
    plan, _history = vcpu.decide(host.window(), VcpuPolicy())
    assert [move.domain for move in plan.moves] in (["g0"], ["g1"])
    assert host.topology.pcpus[3].id in {min(move.after) for move in plan.moves}


def test_what_a_weak_pcpu_serves_stays_there() -> None:
    host = FakeHost(topology(4, weak="2-3"), [*guests(1, 0.5, "2", "a"), *guests(1, 0.3, "3", "b")])
    history = VcpuHistory()
    for _turn in range(8):
        plan, history = vcpu.decide(host.window(5.0), replace(DAEMON, threshold_pct=100.0), history)
        assert plan.moves == ()
    assert plan.before.pcpus == 4


def test_without_classes_hogs_stay_on_weak_pcpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "speeds", lambda _topology: {})
    host = FakeHost(topology(8, weak="4-7"), guests(1, 1.0, "4"))
    assert vcpu.decide(host.window(), VcpuPolicy())[0].moves == ()
    assert cpus("4") == host.guests[0].pins[0]
