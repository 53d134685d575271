# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every file in tests/scenarios/memory: a world, a policy, and what is expected of the plan.

Sizes are in MiB. ``domains`` maps names to the arguments of memory_worlds.domain(); ``record`` is
[original, previous, intended, age in s], ``before`` what was different a tick earlier, ``then`` what
is different when the gives are funded. A map of ``expect`` is complete: what it does not name must
not happen, except ``reasons`` (pieces of text by domain).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Optional

import pytest
from kvmsched import config
from kvmsched.model import Domain, MemoryPlan, Owner, PeriodMove, Snapshot
from kvmsched.policy import memory
from memory_worlds import MIB, NOW_S, a_tick_before, domain, moves, record, reproduce, skips, snapshot
from scenarios import cases

KEYS = ("host", "domains", "release", "then_available")
EXPECTED = ("moves", "skips", "unmet", "adoptions", "periods", "on_credit", "funded", "warnings", "reasons")
EXPECTED += ("not_restored", "before", "after", "unmatched")


@pytest.mark.parametrize("case", cases("memory", KEYS, EXPECTED))
def test_scenario(case: dict[str, Any]) -> None:
    policy = config.load(case.get("policy", {}), typed=True).memory
    now = world(case)
    before = a_tick_before(now)
    before = replace(before, domains=tuple(changed(d, case["domains"][d.name].get("before")) for d in before.domains))
    judge = memory.release if case.get("release") else memory.decide
    plan, _history = judge([before, now], policy)
    print(reproduce([before, now], policy))
    then = replace(now, domains=tuple(changed(d, case["domains"][d.name].get("then")) for d in now.domains))
    if "then_available" in case:
        assert now.host.memory is not None
        memory_then = replace(now.host.memory, available_kib=case["then_available"] * MIB)
        then = replace(then, host=replace(then.host, memory=memory_then))
    funded = memory.fund(plan, policy, now, then)
    check(case["expect"], plan, {m.domain: round((m.after_kib - m.before_kib) / MIB) for m in funded})


def world(case: dict[str, Any]) -> Snapshot:
    domains = [build(name, dict(given or {})) for name, given in case["domains"].items()]
    sizes = dict(case.get("host", {}))
    psi_full = sizes.pop("psi_full", None)
    now = snapshot(domains, **sizes)
    assert now.host.memory is not None
    return replace(now, host=replace(now.host, memory=replace(now.host.memory, psi_full_avg10_pct=psi_full)))


def build(name: str, given: dict[str, Any]) -> Domain:
    given.pop("before", None), given.pop("then", None)
    if "record" in given:
        given["record"] = record(*given.pop("record"))
    if "owner" in given:
        given["owner"] = Owner(given.pop("owner"))
    for key in ("stats_age_s", "uptime_s"):
        if key in given:
            name_of = {"stats_age_s": "last_update_s", "uptime_s": "started_s"}[key]
            given[name_of] = int(NOW_S) - given.pop(key)
    if "inhibitors" in given:
        given["inhibitors"] = tuple(given["inhibitors"])
    return domain(name, **given)


def changed(domain: Domain, changes: Optional[dict[str, int]]) -> Domain:
    if not changes or domain.balloon is None:
        return domain
    return replace(domain, balloon=replace(domain.balloon, **{f"{k}_kib": v * MIB for k, v in changes.items()}))


def check(expect: dict[str, Any], plan: MemoryPlan, funded: dict[str, int]) -> None:
    assert moves(plan) == expect.get("moves", {})
    assert skips(plan) == expect.get("skips", {})
    assert {u.domain: u.kib // MIB for u in plan.unmet} == expect.get("unmet", {})
    assert {a.domain: (a.memory_kib or 0) // MIB for a in plan.adoptions} == expect.get("adoptions", {})
    periods = {m.domain: m.after_s for m in plan.moves if isinstance(m, PeriodMove)}
    assert periods == expect.get("periods", {})
    credit = sorted(m.domain for m in plan.moves if getattr(m, "on_credit", False))
    assert credit == expect.get("on_credit", [])
    if "funded" in expect:
        assert funded == expect["funded"]
    for text in expect.get("warnings", []):
        assert any(text in warning for warning in plan.warnings), plan.warnings
    for name, text in expect.get("reasons", {}).items():
        lines = [x for x in (*plan.moves, *plan.skips, *plan.unmet) if x.domain == name]
        assert any(text in line.reason for line in lines), [line.reason for line in lines]
    for name, text in expect.get("not_restored", {}).items():
        assert any(line.startswith(f"{name}: ") and text in line for line in map(str, plan.not_restored)), (
            plan.not_restored
        )
    assert len(plan.not_restored) == len(expect.get("not_restored", {}))
    for side in ("before", "after"):
        for key, value in expect.get(side, {}).items():
            assert getattr(getattr(plan, side), key) == value, f"{side}.{key}"
    assert plan.unmatched == tuple(expect.get("unmatched", ()))
