# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What decide() is given, and what it does with the simplest of that."""

from __future__ import annotations

from dataclasses import replace

import pytest
from kvmsched.config import Selection
from kvmsched.model import Thread
from kvmsched.policy import vcpu
from kvmsched.policy.vcpu import VcpuHistory
from kvmsched.policy.vcpu.demand import Demand
from kvmsched.policy.vcpu.history import Smoothed
from kvmsched.policy.vcpu.smoothing import credible
from vcpu_worlds import POLICY, FakeHost, Guest, cpus, guests, led_to, topology

# ---------------------------------------------------------------- what is asked for


def test_an_unknown_pcpu_is_one_clear_line() -> None:
    host = FakeHost(topology(2), guests(1, 0.5, "0"))
    with pytest.raises(ValueError, match=r"^pcpus: got 0-9, allowed: online pCPUs 0-1$"):
        vcpu.decide(host.window(), replace(POLICY, pcpus=cpus("0-9")))


def test_a_pcpu_of_the_policy_that_goes_offline_is_left_out_and_told() -> None:
    policy = replace(POLICY, pcpus=cpus("0-3"))
    host = FakeHost(topology(8), guests(4, 0.9, "0"))
    _plan, history = vcpu.decide(host.window(), policy, VcpuHistory())
    host.topology = topology(8, offline="3")
    plan, history = vcpu.decide(host.window(), policy, history)
    assert plan.warnings == ("pcpus: pCPU 3 is offline: the others are used until it is back",)
    assert plan.moves and led_to(plan) <= cpus("0-2")
    host.topology = topology(8)
    assert vcpu.decide(host.window(), policy, history)[0].warnings == ()
    host.topology = topology(8, offline="0-3")
    with pytest.raises(ValueError, match=r"^pcpus: got 0-3, allowed: online pCPUs 4-7$"):
        vcpu.decide(host.window(), policy, history)


def test_a_daemon_that_begins_with_an_unknown_pcpu_is_told_in_each_pass() -> None:
    host = FakeHost(topology(2), guests(1, 0.5, "0"))
    with pytest.raises(ValueError, match="pcpus"):
        vcpu.decide([host.snapshot()], replace(POLICY, pcpus=cpus("0-9")), VcpuHistory())
    # One snapshot is no pass that could have seen it online.
    _plan, history = vcpu.decide([host.snapshot()], POLICY, VcpuHistory())
    with pytest.raises(ValueError, match="pcpus"):
        vcpu.decide(host.window(), replace(POLICY, pcpus=cpus("0-9")), history)


def test_no_snapshot_is_refused() -> None:
    with pytest.raises(ValueError, match="snapshots"):
        vcpu.decide([], POLICY)


def test_one_snapshot_moves_nothing_and_says_why() -> None:
    host = FakeHost(topology(2), guests(2, 0.9, "0"))
    host.guests[0].threads = (Thread("emulator", 0, cpus("0")),)
    plan, history = vcpu.decide([host.snapshot()], replace(POLICY, emulator="spread"))
    assert plan.moves == ()
    assert {skip.code for skip in plan.skips} == {"unknown-load"}
    assert "one snapshot" in plan.note
    assert history == VcpuHistory()


def test_a_hot_plugged_vcpu_stays_until_its_load_is_known() -> None:
    guest = Guest("g", [0.9, 0.9, 0.9], [cpus("0")] * 3)
    host = FakeHost(topology(2), [guest])
    first, last = host.window()
    first = replace(first, domains=(replace(first.domains[0], vcpus=first.domains[0].vcpus[:2]),))
    plan, _history = vcpu.decide([first, last], POLICY)
    assert [move.id for move in plan.moves] == [0] or [move.id for move in plan.moves] == [1]
    assert [(s.code, s.reason) for s in plan.skips] == [
        ("unknown-load", "no load is known of vCPU 2: new, restarted, or its counter went back")
    ]


def test_a_pcpu_that_went_offline_meanwhile_is_left() -> None:
    host = FakeHost(topology(3), guests(2, 0.5, "2"))
    first = host.snapshot()
    host.run(2.0)
    host.topology = topology(3, offline="2")
    plan, _history = vcpu.decide([first, host.snapshot()], POLICY)
    assert sorted(tuple(move.after) for move in plan.moves) == [(0,), (1,)]


def test_two_busy_vcpus_share_one_of_512_pcpus() -> None:
    """On a large host their share of the imbalance is small; that they wait is reason enough."""
    host = FakeHost(topology(512), guests(2, 1.0, "400"))
    plan, _history = vcpu.decide(host.window(), POLICY)
    assert len(plan.moves) == 1
    assert plan.trigger == "work"


def test_unmatched_patterns_are_listed() -> None:
    host = FakeHost(topology(2), guests(1, 0.5, "0"))
    plan, _history = vcpu.decide(host.window(), replace(POLICY, selection=Selection(("nobody*",))))
    assert plan.unmatched == ("nobody*",)


def test_a_queue_that_chance_made_is_no_demand_and_one_that_lasts_is() -> None:
    waited = Demand(run=0.4, wait=0.5, low=0.9, high=0.9, place=cpus("0"))
    known = Smoothed(0.3)
    loads = []
    for _window in range(5):
        loads.append(credible(waited, known))
        known = known.then(0.3, 0.1, hidden=True)
    assert loads == [0.4, 0.4, 0.4, 0.9, 0.9]
    assert known.then(0.3, 0.1).hidden == 0
