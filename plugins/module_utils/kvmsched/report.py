# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a pass came to, in the words and keys that every face uses: modules and command line say the same."""

from __future__ import annotations

from collections import Counter
from typing import Any, Iterable, Sequence

from . import baseline, model
from .passes import Result
from .units import printable

# A fleet's output must stay readable: all are counted, so many are shown.
SHOWN_SKIPS = 20


def values(result: Result[Any, Any], check: bool) -> dict[str, Any]:
    """Return the result as plain data; *check*: of a pass that only says what it would do."""
    plan, outcome = result.plan, result.outcome
    moves = made(result, check)
    return {
        "changed": bool(moves),
        "msg": summary(result, check),
        "moves": model.to_json(moves),
        "skips": model.to_json(result.skips[:SHOWN_SKIPS]),
        "skip_counts": dict(Counter(skip.code for skip in result.skips)),
        "failures": model.to_json(outcome.failures),
        "unmatched": list(dict.fromkeys((*plan.unmatched, *plan.idle_rules))),
        "not_restored": [str(one) for one in result.not_restored],
        "left": [{**model.to_json(one), "give_up": baseline.removal(one.uuid)} for one in result.not_restored],
        "before": model.to_json(plan.before),
        "after": model.to_json(plan.after),
        "timings_s": result.timings_s,
        **_particular(plan),
    }


def _particular(plan: model.Plan) -> dict[str, Any]:
    if isinstance(plan, model.MemoryPlan):
        figures = {"wasted_kib": plan.after.wasted_kib, "note": plan.note}
        return {"unmet": model.to_json(plan.unmet), "room": model.to_json(plan.room), **figures}
    return {name: getattr(plan, name) for name in ("moves_bound", "target_pct", "placed", "trigger", "note")}


def made(result: Result[Any, Any], check: bool) -> Sequence[model.Move]:
    """Return the moves that were made, or would be."""
    moves: Sequence[model.Move] = result.plan.moves if check else result.outcome.moves
    return moves


def summary(result: Result[Any, Any], check: bool) -> str:
    """Return the pass in one line."""
    if not (result.snapshot.domains or result.snapshot.skips):
        return f"no running domain on {result.snapshot.host.name}, nothing to do"
    count = len(made(result, check))
    verb = "would make" if check else "made"
    did = f"{verb} {count} change{'' if count == 1 else 's'}" if count else _idle(len(result.plan.moves))
    parts = [f"{did}: {result.plan.headline}"]
    if result.skips:
        parts.append(f"{len(result.skips)} skipped")
    if result.outcome.failures:
        parts.append(f"{len(result.outcome.failures)} failed")
    return ", ".join(parts)


def _idle(planned: int) -> str:
    return f"made none of {planned} planned changes" if planned else "nothing to change"


def diff(moves: Iterable[model.Move]) -> dict[str, str]:
    """Return a line for each change, the same thing on both sides of it."""
    pairs = sorted((move.sides.what, move.sides.before, move.sides.after) for move in moves)
    return {
        "before": "".join(printable(f"{name}: {before}") + "\n" for name, before, _after in pairs),
        "after": "".join(printable(f"{name}: {after}") + "\n" for name, _before, after in pairs),
    }
