# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Search in small problems: it meets the aim with the fewest moves, and leaves to the planners what is not for it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from kvmsched.policy.vcpu.problem import NOWHERE
from kvmsched.policy.vcpu.search import SEARCH_ITEMS, fewest_moves
from vcpu_worlds import plain_problem

# Two exchanges of what is small beat one move of what is large: 0.6 + 0.4 on each.
PILED = plain_problem([0.6, 0.6, 0.4, 0.4], [0, 0, 1, 1], 2)


def moves(where: list[int], now: list[int]) -> int:
    return sum(1 for then, before in zip(where, now) if then != before)


def test_an_aim_that_no_plan_met_is_met() -> None:
    found = fewest_moves(PILED, [1.0, 1.0], 0.0, None)
    assert found is not None and PILED.on_bins(found) == pytest.approx([1.0, 1.0])
    assert moves(found, [0, 0, 1, 1]) == 2


def test_a_plan_with_more_moves_than_it_takes_is_beaten_and_the_best_is_not() -> None:
    found = fewest_moves(PILED, [1.0, 1.0], 0.0, 4)
    assert found is not None and moves(found, [0, 0, 1, 1]) == 2
    assert fewest_moves(PILED, [1.0, 1.0], 0.0, 2) is None


def test_what_can_t_be_met_is_not_found() -> None:
    assert fewest_moves(PILED, [0.9, 0.9], 0.0, None) is None


def test_the_same_problem_has_the_same_answer() -> None:
    problem = plain_problem([0.1 * n for n in range(1, 9)], [0] * 8, 3)
    answer = fewest_moves(problem, [1.25] * 3, 0.0, None)
    assert answer is not None and fewest_moves(problem, [1.25] * 3, 0.0, None) == answer


def test_large_ones_and_items_without_a_place_are_left_to_the_planners() -> None:
    homeless = replace(PILED, now=[0, NOWHERE, 1, 1])
    large = plain_problem([0.01] * (SEARCH_ITEMS + 1), [0] * (SEARCH_ITEMS + 1), 2)
    assert fewest_moves(homeless, [1.0, 1.0], 0.0, None) is None
    assert fewest_moves(large, [0.5, 0.5], 0.0, None) is None
