# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The exact optimum of small problems by OR-tools CP-SAT, which also proves it (a benchmark dependency only)."""

from __future__ import annotations

from typing import Optional

from kvmsched.policy.vcpu_placement import Problem
from ortools.sat.python import cp_model

SCALE = 1000


def least_makespan(problem: Problem, limit_s: float) -> Optional[int]:
    """The least possible load of the fullest pCPU, in thousandths; None if it was not proven in time."""
    model, on = _model(problem)
    makespan = model.new_int_var(0, SCALE * len(problem.load), "makespan")
    for total in _totals(problem, on):
        model.add(total <= makespan)
    model.minimize(makespan)
    return _solve(model, limit_s)


def fewest_moves(problem: Problem, target: int, limit_s: float) -> Optional[int]:
    """The fewest moves after which no pCPU is above *target* thousandths; None if it was not proven in time."""
    model, on = _model(problem)
    for total in _totals(problem, on):
        model.add(total <= target)
    model.maximize(sum(on[i][now] for i, now in enumerate(problem.now)))
    stay = _solve(model, limit_s)
    return None if stay is None else len(problem.now) - stay


def _model(problem: Problem):  # type: ignore[no-untyped-def]
    model = cp_model.CpModel()
    on = [[model.new_bool_var(f"{i}on{b}") for b in range(len(problem.capacity))] for i in range(len(problem.load))]
    for row in on:
        model.add_exactly_one(row)
    return model, on


def _totals(problem: Problem, on):  # type: ignore[no-untyped-def]
    weights = [round(SCALE * load) for load in problem.load]
    return [sum(w * row[b] for w, row in zip(weights, on)) for b in range(len(problem.capacity))]


def _solve(model: cp_model.CpModel, limit_s: float) -> Optional[int]:
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = limit_s
    solver.parameters.num_workers = 2
    solver.parameters.random_seed = 1
    # Only a status of OPTIMAL is a proof; FEASIBLE is the best that was found before time ran out.
    return round(solver.objective_value) if solver.solve(model) == cp_model.OPTIMAL else None
