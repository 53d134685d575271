# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every file in tests/scenarios/vcpu: a fake host, guests that want a share of a pCPU, a policy, what is expected.

``guests`` maps a name to ``count`` equal guests (name0, name1...), each with ``wants`` (a share of a
pCPU per vCPU) and ``pin`` (a cpuset; ``one_each``: a pCPU of it for each vCPU). The plan is carried
out, and unless ``settles`` is false the next pass must leave everything as it is.
"""

from __future__ import annotations

from typing import Any

import pytest
from kvmsched import config
from kvmsched.model import Owner, PinMove, Thread, VcpuPlan
from kvmsched.policy import vcpu
from scenarios import cases
from vcpu_worlds import FakeHost, Guest, cpus, shown, topology

EXPECTED = ("settles", "placed", "moves_bound", "trigger", "moves", "moved", "note", "counts", "masks")
EXPECTED += ("emulators", "before", "after", "imbalance", "max_load", "skips", "reasons")
EXPECTED += ("cores", "apart", "whole_cells", "each", "warnings")
CPUSETS = ("cpuset", "numa_pcpus", "cgroup_pcpus")


@pytest.mark.parametrize("case", cases("vcpu", ("host", "guests"), EXPECTED))
def test_scenario(case: dict[str, Any]) -> None:
    policy = config.load(case.get("policy", {}), typed=True).vcpu
    host = world(case)
    snapshots = host.window()
    plan, _history = vcpu.decide(snapshots, policy)
    print(shown(snapshots))
    host.apply(plan)
    check(case["expect"], plan, host)
    if case["expect"].get("settles", True):
        again, _history = vcpu.decide(host.window(), policy)
        assert again.moves == (), "the second pass must leave everything as it is"


def world(case: dict[str, Any]) -> FakeHost:
    given = dict(case["host"])
    foreign = given.pop("foreign", {})
    guests = [guest for name, fields in case["guests"].items() for guest in build(name, dict(fields))]
    return FakeHost(topology(given.pop("pcpus"), **given), guests, foreign)


def build(name: str, given: dict[str, Any]) -> list[Guest]:
    count, wants, pin = given.pop("count", 1), given.pop("wants"), cpus(given.pop("pin"))
    pins = [frozenset({p}) for p in sorted(pin)] if given.pop("one_each", False) else [pin] * len(wants)
    definition = cpus(given.pop("definition", ""))
    affinity = cpus(given.pop("affinity", ""))
    emulator = cpus(given.pop("emulator", ""))
    more = {key: given.pop(key) for key in ("backlog", "scheduler") if key in given}
    if "owner" in given:
        given["owner"] = Owner(given["owner"])
    for key in CPUSETS:
        if key in given:
            given[key] = cpus(given[key])
    return [
        Guest(
            f"{name}{n}",
            list(wants),
            list(pins),
            fields=given,
            definitions=dict.fromkeys(range(len(wants)), definition) if definition else {},
            affinity=affinity or None,
            threads=(Thread("emulator", 0, emulator),) if emulator else (),
            **more,
        )
        for n in range(count)
    ]


def check(expect: dict[str, Any], plan: VcpuPlan, host: FakeHost) -> None:
    pinned = {guest.name: guest.pins for guest in host.guests}
    for key in ("placed", "moves_bound", "trigger"):
        if key in expect:
            assert getattr(plan, key) == expect[key], key
    if "moves" in expect:
        assert len(plan.moves) == expect["moves"], [str(move) for move in plan.moves]
    if "moved" in expect:
        assert [move.domain.rstrip("0123456789") for move in plan.moves] == expect["moved"]
    assert expect.get("note", "") in plan.note
    kinds = [sorted(name.rstrip("0123456789") for name in host.on(pcpu)) for pcpu in sorted(host.topology.online)]
    if "each" in expect:
        assert kinds == [expect["each"]] * len(kinds), "every pCPU must hold one guest of each of these"
    for text in expect.get("warnings", []):
        assert any(text in warning for warning in plan.warnings), plan.warnings
    for pcpu, count in expect.get("counts", {}).items():
        assert len(host.on(pcpu)) == count, f"pCPU {pcpu}: {host.on(pcpu)}"
    for name, mask in expect.get("masks", {}).items():
        assert set(pinned[name]) == {cpus(mask)}
    for name, mask in expect.get("emulators", {}).items():
        assert next(g for g in host.guests if g.name == name).threads[0].pin == cpus(mask)
    check_figures(expect, plan)
    check_skips(expect, plan)
    check_topology(expect, host)


def check_figures(expect: dict[str, Any], plan: VcpuPlan) -> None:
    for when in ("before", "after"):
        if when in expect:
            assert getattr(plan, when).max_pct == pytest.approx(expect[when]["max"], abs=1)
    if "imbalance" in expect:
        assert plan.after.imbalance_pct == pytest.approx(expect["imbalance"], abs=1)
    if "max_load" in expect:
        assert plan.after.max_pct <= expect["max_load"]
    assert plan.after.max_pct >= plan.after.bound_pct - 0.1
    moved = sum(1 for move in plan.moves if isinstance(move, PinMove)) - plan.placed
    assert moved >= plan.moves_bound or not plan.moves


def check_skips(expect: dict[str, Any], plan: VcpuPlan) -> None:
    codes = {skip.domain: skip.code for skip in plan.skips}
    assert codes == expect.get("skips", {})
    for name, text in expect.get("reasons", {}).items():
        assert text in next(skip.reason for skip in plan.skips if skip.domain == name)
    for line in [s.reason for s in plan.skips] + [m.reason for m in plan.moves]:
        assert "\n" not in line


def check_topology(expect: dict[str, Any], host: FakeHost) -> None:
    where = {p.id: p for p in host.topology.pcpus}
    used = [next(iter(pin)) for guest in host.guests for pin in guest.pins]
    if "cores" in expect:
        assert len({where[pcpu].core for pcpu in used}) == expect["cores"]
    if "apart" in expect:
        assert all(len(set(guest.pins)) == len(guest.pins) for guest in host.guests)
    if "whole_cells" in expect:
        cells = [{where[next(iter(pin))].cell for pin in guest.pins} for guest in host.guests]
        assert all(len(cell) == 1 for cell in cells)
        assert len({next(iter(cell)) for cell in cells}) == expect["whole_cells"]
