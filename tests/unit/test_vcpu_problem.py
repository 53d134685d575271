# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The placement problem in numbers: siblings, parts, pressure."""

from __future__ import annotations

import pytest
from kvmsched.policy.vcpu.planners import Assignment, rebalance
from kvmsched.policy.vcpu.problem import Problem, components, kappa, part_of
from vcpu_worlds import plain_problem


def test_kappa_is_the_share_that_siblings_take() -> None:
    assert kappa(1) == 0
    assert kappa(2) == pytest.approx((1 - 0.25) / (1 + 0.25))
    assert 0 < kappa(8) < kappa(4) < kappa(2)


def test_parts_that_share_nothing_are_planned_apart() -> None:
    base = plain_problem([0.5, 0.5, 0.5, 0.5], [0, 0, 2, 2], 4)
    problem = Problem(**{**vars(base), "reach": [0, 0, 1, 1], "classes": [(0, 1), (2, 3)]})
    parts = components(problem)
    assert [bins for bins, _items in parts] == [[0, 1], [2, 3]]
    assert part_of(problem, *parts[1]).now == [0, 0]
    assert problem.on_bins(rebalance(problem)) == pytest.approx([0.5] * 4)


def test_pressure_is_kept_up_to_date() -> None:
    base = plain_problem([0.4, 0.3], [0, 1], 4)
    problem = Problem(**{**vars(base), "mates": [(1,), (0,), (3,), (2,)], "kappa": [0.6] * 4})
    state = Assignment(problem, [1.0] * 4, 0.0)
    state.put(1, 2)
    assert state.pressure == pytest.approx(problem.pressures(problem.on_bins(state.where)))
    assert state.pressure == pytest.approx([0.4, 0.24, 0.3, 0.18])
