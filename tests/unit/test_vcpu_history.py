# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is remembered from pass to pass, and when it is dropped."""

from __future__ import annotations

from kvmsched.config import VcpuPolicy
from kvmsched.policy import vcpu
from kvmsched.policy.vcpu import VcpuHistory
from kvmsched.policy.vcpu.history import Trial
from vcpu_worlds import POLICY, FakeHost, cpus, guests, topology


def test_a_move_that_did_not_come_about_is_forgotten() -> None:
    host = FakeHost(topology(2), guests(2, 0.5, "0"))
    _plan, history = vcpu.decide(host.window(), VcpuPolicy(cooldown_s=60.0), VcpuHistory())
    assert history.moves
    plan, _history = vcpu.decide(host.window(), VcpuPolicy(cooldown_s=60.0), history)
    assert len(plan.moves) == 1


def test_a_history_of_before_the_last_boot_is_dropped() -> None:
    host = FakeHost(topology(2), guests(2, 0.5, "0"))
    old = VcpuHistory(number=7, stamp_s=1e9, held=3)
    _plan, history = vcpu.decide(host.window(), POLICY, old)
    assert history.number == 1


def test_a_trial_is_judged_by_what_it_waits_lately() -> None:
    trial = Trial(cpus("0-7"), 1, 0.3)
    for _calm in range(720):
        trial = trial.then(0.0)
    for _busy in range(12):
        trial = trial.then(0.5)
    assert trial.windows == 732 and trial.waited > 0.3, "an hour of calm hides no minute of waiting"
