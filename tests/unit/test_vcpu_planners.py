# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Full pCPUs beside idle ones, and who goes."""

from __future__ import annotations

from dataclasses import replace

from kvmsched.config import VcpuPolicy
from kvmsched.policy import vcpu
from kvmsched.policy.vcpu.planners import more_work, rebalance
from kvmsched.policy.vcpu.problem import Problem
from vcpu_worlds import FakeHost, Guest, cpus, topology


def test_a_full_pcpu_gives_to_an_idle_one_though_another_stays_fuller() -> None:
    """Two may not leave pCPUs 0 and 1, so the target is high: pCPU 1 meets it beside one with room."""
    problem = Problem(
        capacity=[1, 1, 1],
        fixed=[0.0, 0.0, 0.74],
        mates=[(), (), ()],
        kappa=[0.0] * 3,
        load=[1.0, 1.0, 1.0, 0.26],
        now=[0, 0, 1, 1],
        owner=[0, 1, 2, 2],
        reach=[0, 0, 1, 1],
        classes=[(0, 1), (0, 1, 2)],
        stays=[False] * 4,
    )
    assert rebalance(problem) == [0, 0, 1, 1]
    assert more_work(problem, [0, 0, 1, 1]) == [0, 0, 1, 2]
    assert more_work(replace(problem, stays=[True] * 4), [0, 0, 1, 1]) == [0, 0, 1, 1]
    assert more_work(replace(problem, fixed=[0.0, 0.0, 0.95]), [0, 0, 1, 1]) == [0, 0, 1, 1], "little would be gained"


def test_pcpus_do_not_idle_because_one_must_be_overfull_anyway() -> None:
    """Nine hogs on eight pCPUs: two share one, so a bound on the fullest asks nothing of the others."""
    host = FakeHost(topology(8), [Guest(f"g{n}", [0.9], [cpus(str(n // 2))]) for n in range(9)])
    plan, _history = vcpu.decide(host.window(), VcpuPolicy())
    host.apply(plan)
    assert len(plan.moves) == 3
    assert sorted(len(host.on(pcpu)) for pcpu in range(8)) == [1] * 7 + [2]
    assert vcpu.decide(host.window(), VcpuPolicy())[0].moves == ()
