# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests that lack pCPUs because their own definition keeps them off idle ones are told."""

from __future__ import annotations

from dataclasses import replace

from kvmsched.config import Selection
from kvmsched.policy import vcpu
from vcpu_worlds import POLICY, FakeHost, cpus, guests, one_pass, pinned_guest, topology


def test_a_full_pcpu_that_may_not_be_used_is_told_and_nothing_is_called_balanced() -> None:
    host = FakeHost(topology(4), [*guests(2, 1.0, "3", "out"), *guests(2, 0.01, "0", "in")])
    policy = replace(POLICY, pcpus=cpus("0-2"), selection=Selection(("in*",)))
    plan, _history = vcpu.decide(host.window(), policy)
    assert plan.before.max_all_pct is not None
    assert plan.before.max_all_pct >= 100 > plan.before.max_pct
    assert plan.note.startswith("a pCPU is full and another one idle")


def test_guests_that_their_definition_keeps_off_idle_pcpus_are_told() -> None:
    fenced = [pinned_guest(f"fenced{n}", "0-1", 0.9, "0-1") for n in range(4)]
    plan = one_pass(*fenced, pinned_guest("other", "2", 0.2))
    who, what = "fenced0, fenced1, fenced2 and 1 more", "6 idle pCPUs are forbidden to them by their definition"
    assert plan.warnings == (f"{who}: wait on pCPU 0-1, and {what}: widen that",)
    free = one_pass(*[pinned_guest(f"free{n}", "0-1", 0.9) for n in range(4)])
    assert free.warnings == (), "a live pin forbids nothing"
    calm = one_pass(*[pinned_guest(f"calm{n}", "0-1", 0.4, "0-1") for n in range(4)])
    assert calm.warnings == ()
