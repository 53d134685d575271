# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The exact optimum of small problems by OR-tools CP-SAT, which also proves it (a benchmark dependency only)."""

from __future__ import annotations

from typing import Any, Optional

from kvmsched.policy.vcpu.problem import Problem
from ortools.sat.python import cp_model

SCALE = 1000


def makespan(problem: Problem, limit_s: float) -> int:
    """The best load of the fullest pCPU that is found in time, in thousandths: a target that can be met."""
    model, on = _model(problem)
    longest = model.new_int_var(0, SCALE * len(problem.load), "makespan")
    for total in _totals(problem, on):
        model.add(total <= longest)
    model.minimize(longest)
    solver = _solver(limit_s)
    status = solver.solve(model)
    assert status in (cp_model.OPTIMAL, cp_model.FEASIBLE)
    return round(solver.objective_value)


def fewest_moves(problem: Problem, target: int, limit_s: float) -> Optional[int]:
    """The fewest moves after which no pCPU is above *target* thousandths; None if it was not proven in time."""
    model, on = _model(problem)
    for total in _totals(problem, on):
        model.add(total <= target)
    model.maximize(sum(on[i][now] for i, now in enumerate(problem.now)))
    solver = _solver(limit_s)
    # Only a status of OPTIMAL is a proof; FEASIBLE is the best that was found before time ran out.
    proven = solver.solve(model) == cp_model.OPTIMAL
    return len(problem.now) - round(solver.objective_value) if proven else None


def _model(problem: Problem) -> tuple[Any, list[list[Any]]]:
    model = cp_model.CpModel()
    on = [[model.new_bool_var(f"{i}on{b}") for b in range(len(problem.capacity))] for i in range(len(problem.load))]
    for row, now in zip(on, problem.now):
        model.add_exactly_one(row)
        for bin_, variable in enumerate(row):
            model.add_hint(variable, bin_ == now)
    return model, on


def _totals(problem: Problem, on: list[list[Any]]) -> list[Any]:
    weights = [round(SCALE * load) for load in problem.load]
    return [sum(w * row[b] for w, row in zip(weights, on)) for b in range(len(problem.capacity))]


def _solver(limit_s: float) -> Any:
    solver = cp_model.CpSolver()
    # Its own count of work, in about seconds: the same on a busy machine.
    solver.parameters.max_deterministic_time = limit_s
    solver.parameters.num_workers = 2
    solver.parameters.random_seed = 1
    return solver
