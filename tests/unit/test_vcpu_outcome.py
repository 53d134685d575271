# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a plan says: reasons with their numbers, and warnings."""

from __future__ import annotations

from dataclasses import replace

from kvmsched.policy import vcpu
from vcpu_worlds import POLICY, FakeHost, Guest, cpus, guests, topology


def test_reasons_carry_their_numbers() -> None:
    host = FakeHost(topology(2), guests(2, 0.8, "0"))
    plan, _history = vcpu.decide(host.window(), POLICY)
    assert [m.reason for m in plan.moves] == ["load 80 % of a pCPU; pCPU 0 at 160 % -> 80 %, pCPU 1 at 0 % -> 80 %"]
    assert plan.moves_bound == 1
    assert plan.target_pct == 0 or plan.target_pct <= plan.after.max_pct


def test_another_program_that_pins_is_told() -> None:
    first, last = FakeHost(topology(2), guests(1, 0.5, "0")).window()
    plan, _history = vcpu.decide([first, replace(last, host=replace(last.host, pinners=("numad",)))], POLICY)
    assert plan.warnings and plan.warnings[0].startswith("numad is running here and changes affinities, too")


def test_who_is_pinned_where_it_may_not_run_is_not_said_to_float() -> None:
    """No pCPU is isolated here, and nobody's vCPU floated."""
    away = Guest("away", [0.5], [cpus("2")], fields={"numa_pcpus": cpus("0-1")})
    for floating in ("auto", "place"):
        plan, _history = vcpu.decide(
            FakeHost(topology(4, cells=2), [away]).window(), replace(POLICY, floating=floating)
        )
        (move,) = plan.moves
        assert move.reason.startswith("it may not run on pCPU 2, load 50 % of a pCPU")
        assert plan.note == "1 vCPUs leave pCPUs where they may not run"
