# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is done at once, and what waits for a larger change."""

from __future__ import annotations

from dataclasses import replace

import pytest
from kvmsched.config import VcpuPolicy
from kvmsched.policy import vcpu
from vcpu_worlds import DAEMON, FakeHost, cpus, daemon_passes, guests, topology


def test_waiting_vcpus_are_helped_at_once() -> None:
    """A new and long wait that another pCPU would end ignores hold, smoothing and budget."""
    host = FakeHost(topology(8), guests(6, 0.05, "0"))
    _made, history = daemon_passes(host, 2, replace(DAEMON, hold=5, max_moves=1))
    for guest in host.guests:
        guest.wants = [1.0]
    made, _history = daemon_passes(host, 1, replace(DAEMON, hold=5, max_moves=1), history)
    assert made == [5]


def test_a_wait_that_comes_again_and_again_is_not_hurried() -> None:
    host = FakeHost(topology(8), guests(6, 1.0, "0"))
    made, _history = daemon_passes(host, 3, replace(DAEMON, hold=1, max_moves=1, cooldown_s=0.0))
    assert made == [1, 1, 1]


def test_the_seeds_gate_needs_a_dramatic_change_and_a_history() -> None:
    policy = VcpuPolicy(avg_change_pct=25.0)
    host = FakeHost(topology(4), [*guests(2, 0.3, "0"), *guests(2, 0.3, "1", "h")])
    made, history = daemon_passes(host, 3, policy)
    assert made == [2, 0, 0], "the first pass is not blocked"
    assert history.settled_average == pytest.approx(0.3, abs=0.02)
    for guest in host.guests:
        guest.pins = [cpus("0")] if guest.name.startswith("g") else guest.pins
    plan, again = vcpu.decide(host.window(5.0), policy, history)
    assert plan.moves == ()
    assert "a change of less than" in plan.note
    for guest in host.guests:
        guest.wants = [0.45]
    plan, _history = vcpu.decide(host.window(5.0), policy, again)
    assert plan.moves
