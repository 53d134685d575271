# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lower bounds are true: no assignment of a tiny problem beats them; and the planners against them."""

from __future__ import annotations

import itertools
import random

import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from kvmsched.policy.vcpu.bounds import load_bound, moves_bound, reached_target, targets
from kvmsched.policy.vcpu.planners import SLACK, best_plan, rebalance
from kvmsched.policy.vcpu.problem import NOWHERE, Problem
from vcpu_worlds import plain_problem


@st.composite
def tiny_problems(draw: st.DrawFn) -> Problem:
    bins = draw(st.integers(1, 3))
    count = draw(st.integers(1, 6))
    every = tuple(range(bins))
    classes = draw(st.lists(st.sets(st.sampled_from(every), min_size=1).map(lambda s: tuple(sorted(s))), max_size=2))
    classes = [every, *classes]
    reach = draw(st.lists(st.integers(0, len(classes) - 1), min_size=count, max_size=count))
    return Problem(
        capacity=[draw(st.sampled_from([1, 1, 2])) for _each in every],
        fixed=[draw(st.sampled_from([0.0, 0.0, 0.3, 1.1])) for _each in every],
        mates=[()] * bins,
        kappa=[0.0] * bins,
        load=draw(st.lists(st.integers(0, 100).map(lambda x: x / 100), min_size=count, max_size=count)),
        now=[draw(st.sampled_from([*classes[r], NOWHERE])) for r in reach],
        owner=list(range(count)),
        reach=reach,
        classes=classes,
        stays=[False] * count,
    )


def assignments(problem: Problem) -> list[tuple[int, ...]]:
    return list(itertools.product(*(problem.classes[r] for r in problem.reach)))


def fullest(problem: Problem, where: tuple[int, ...]) -> float:
    return max(total / size for total, size in zip(problem.on_bins(where), problem.capacity))


def moves(problem: Problem, where: tuple[int, ...]) -> int:
    return sum(1 for now, then in zip(problem.now, where) if now not in (then, NOWHERE))


@examples(40)
@given(tiny_problems())
def test_bounds_hold_for_every_assignment(problem: Problem) -> None:
    bound = load_bound(problem)
    for where in assignments(problem):
        assert fullest(problem, where) >= bound - 1e-9
        assert moves(problem, where) >= moves_bound(problem, reached_target(problem, where))


@examples(40)
@given(tiny_problems())
def test_a_plan_stays_in_its_classes_and_is_never_worse(problem: Problem) -> None:
    where = rebalance(problem)
    assert all(bin_ in problem.classes[reach] for bin_, reach in zip(where, problem.reach))
    if NOWHERE not in problem.now:
        before, after = problem.on_bins(problem.now), problem.on_bins(where)
        assert max(after) <= max(before) + 1e-9 or len(set(problem.capacity)) > 1


@pytest.mark.parametrize("seed", range(12))
def test_small_plans_are_minimal(seed: int) -> None:
    """Against all assignments of 3 bins and 8 items: the target is met where it can be, with the fewest moves."""
    rng = random.Random(seed)
    problem = Problem(
        capacity=[1] * 3,
        fixed=[0.0] * 3,
        mates=[()] * 3,
        kappa=[0.0] * 3,
        load=[rng.randint(1, 100) / 100 for _each in range(8)],
        now=[rng.randrange(3) for _each in range(8)],
        owner=list(range(8)),
        reach=[0] * 8,
        classes=[(0, 1, 2)],
        stays=[False] * 8,
    )
    every = assignments(problem)
    target = 1.05 * min(fullest(problem, where) for where in every)
    fewest = min(moves(problem, where) for where in every if fullest(problem, where) <= target)
    plan = tuple(best_plan(problem, [target] * 3, 0.0))
    assert fullest(problem, plan) <= target + 1e-6
    assert moves(problem, plan) == fewest


def test_the_bound_is_lexicographic() -> None:
    """What fills a pCPU alone is set aside with it; the rest is aimed at its own average."""
    problem = plain_problem([1.0, 0.3, 0.3, 0.3, 0.3], [0, 1, 1, 1, 1], 3)
    assert load_bound(problem) == pytest.approx(1.0)
    assert targets(problem, SLACK) == pytest.approx([0.65] * 3)
    assert sorted(problem.on_bins(rebalance(problem))) == pytest.approx([0.6, 0.6, 1.0])


def test_a_narrow_class_sets_only_its_own_target() -> None:
    base = plain_problem([0.9, 0.9, 0.9, 0.2, 0.2], [0, 0, 1, 2, 2], 4)
    problem = Problem(**{**vars(base), "reach": [1, 1, 1, 0, 0], "classes": [(0, 1, 2, 3), (0, 1)]})
    aim = targets(problem, 0.0)
    assert aim[0] == aim[1] > 1.3
    assert aim[2] == aim[3] == pytest.approx(0.2)
    assert problem.on_bins(rebalance(problem))[2:] == pytest.approx([0.2, 0.2])
