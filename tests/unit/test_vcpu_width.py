# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a person pinned keeps its width, also where groups are asked for; what floated gets the group (decision 54a)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from kvmsched.config import Rule, VcpuPolicy
from kvmsched.model import PinRecord, Record
from kvmsched.policy import vcpu
from vcpu_worlds import HOST_UUID, FakeHost, Guest, cpus, daemon_passes, guests, topology

LLC = VcpuPolicy(granularity="llc")


def piled_up(count: int, want: float = 1.0, at: str = "0-3") -> FakeHost:
    """Guests that a person pinned to one pCPU each, all within the first of two caches."""
    first = sorted(cpus(at))
    members = [Guest(f"g{n}", [want], [frozenset({first[n % len(first)]})]) for n in range(count)]
    return FakeHost(topology(8, llc=4), members)


def moves(host: FakeHost, policy: VcpuPolicy = LLC) -> list[str]:
    return [str(move) for move in vcpu.decide(host.window(), policy)[0].moves]


def test_a_pin_to_one_pcpu_stays_one_and_none_is_chosen_twice() -> None:
    host = piled_up(8)
    plan, _history = vcpu.decide(host.window(), LLC)
    assert sorted(sorted(move.after) for move in plan.moves) == [[4], [5], [6], [7]]
    host.apply(plan)
    assert moves(host) == []


def test_the_least_loaded_pcpus_of_the_group_are_chosen() -> None:
    host = piled_up(8, want=0.9)
    host.guests += [Guest("there", [0.9], [cpus("5")]), Guest("two", [0.4], [cpus("6-7")])]
    plan, _history = vcpu.decide(host.window(), LLC)
    assert plan.moves and all(len(move.after) == 1 and move.after != cpus("5") for move in plan.moves)
    assert cpus("4") in {move.after for move in plan.moves}


def test_a_set_of_two_stays_as_wide() -> None:
    host = FakeHost(topology(8, llc=4), [Guest(f"g{n}", [0.9], [cpus("0-1" if n % 2 else "2-3")]) for n in range(8)])
    plan, _history = vcpu.decide(host.window(), LLC)
    assert len(plan.moves) == 4
    assert {len(move.after) for move in plan.moves} == {2}


def test_a_rule_that_says_so_widens_it_to_the_group() -> None:
    rules = (Rule("g*", vcpu={"widen": True}),)
    assert moves(piled_up(8), replace(LLC, rules=rules))
    plan, _history = vcpu.decide(piled_up(8).window(), replace(LLC, rules=rules))
    assert {move.after for move in plan.moves} >= {cpus("4-7")}


@pytest.mark.parametrize(
    ("host_uuid", "original", "after"),
    [(HOST_UUID, "0-7", "4-7"), (HOST_UUID, "0", ""), ("of another host", "0", "4-7")],
)
def test_what_we_narrowed_gets_the_group_and_what_we_moved_keeps_its_width(
    host_uuid: str, original: str, after: str
) -> None:
    """What another host recorded means nothing here: its guests have their own set for their original."""
    host = piled_up(8, at="0")
    for guest in host.guests:
        pin = PinRecord("vcpu", 0, cpus(original), cpus(original), cpus("0"), 1)
        guest.fields["record"] = Record(host_uuid, 1, pins=(pin,))
    plan, _history = vcpu.decide(host.window(), LLC)
    assert plan.moves
    assert all(move.after == cpus(after) if after else len(move.after) == 1 for move in plan.moves)


def test_a_busy_sibling_counts() -> None:
    host = FakeHost(topology(8, threads=2, llc=4), [*guests(6, 0.5, "0"), Guest("there", [0.5], [cpus("4")])])
    plan, _history = vcpu.decide(host.window(), LLC)
    assert plan.moves[0].after in (cpus("6"), cpus("7"))


@pytest.mark.parametrize(("pin", "after"), [("0-7", "0-3"), ("4-7", "0-3"), ("6-7", "")])
def test_memory_leads_a_floating_vcpu_into_its_cell_but_widens_no_pin(pin: str, after: str) -> None:
    guest = Guest("g", [0.5], [cpus(pin)], fields={"numa_pcpus": cpus("0-3")})
    host = FakeHost(topology(8, cells=2), [guest])
    _made, _history = daemon_passes(host, 8, VcpuPolicy(floating="auto", half_life_s=30.0))
    assert guest.pins == [cpus(after or pin)]


# ---------------------------------------------------------------- a group is not balanced for a pin to one of its pCPUs


def served(host: FakeHost) -> float:
    """What all vCPUs run in the next 2 s, in pCPUs."""
    first, last = host.window()
    times = [sum(v.time_ns or 0 for d in snapshot.domains for v in d.vcpus) for snapshot in (first, last)]
    return (times[1] - times[0]) / 2e9


@pytest.mark.parametrize("places", ["1 2 3 0 0", "0 0 1 2 3"])
@pytest.mark.parametrize("granularity", ["llc", "cell"])
def test_who_shares_a_pcpu_leaves_a_full_group_and_nobody_who_has_one_alone(places: str, granularity: str) -> None:
    crowd = [Guest(f"a{n}", [1.0], [cpus(pcpu)], backlog=True) for n, pcpu in enumerate(places.split())]
    others = [Guest(f"b{n}", [0.8], [cpus(str(4 + n))], backlog=True) for n in range(4)]
    host = FakeHost(topology(8, llc=4, cells=2), [*crowd, *others])
    before = served(host)
    plan, _history = vcpu.decide(host.window(), replace(LLC, granularity=granularity))
    assert [move.before for move in plan.moves] == [cpus("0")]
    host.apply(plan)
    assert served(host) > before


def test_a_move_that_serves_nobody_on_the_pcpus_themselves_is_not_made() -> None:
    """The first cache has room for one only as a sum; who leaves for it has a pCPU alone."""
    members = [*guests(3, 1.0, "2", "full", backlog=True), Guest("alone", [1.0], [cpus("3")], backlog=True)]
    members[0].fields["busy"] = members[1].fields["busy"] = members[2].fields["busy"] = "backup"
    members += [Guest("low", [0.5], [cpus("0")]), Guest("other", [0.5], [cpus("1")])]
    host = FakeHost(topology(4, llc=2), members)
    plan, _history = vcpu.decide(host.window(), LLC)
    assert plan.moves == () and plan.trigger == ""
    assert "a part of a group only" in plan.note


def test_of_a_group_cut_by_a_definition_only_the_part_counts() -> None:
    """Two of five leave for the one pCPU of the second cache that they may use: one of them is enough."""
    members = [
        Guest(f"g{n}", [0.9], [cpus(pin)], definitions={0: cpus("0-4")}, backlog=True) for n, pin in enumerate("00123")
    ]
    host = FakeHost(topology(8, llc=4), members)
    plan, _history = vcpu.decide(host.window(), LLC)
    assert [(move.before, move.after) for move in plan.moves] == [(cpus("0"), cpus("4"))]


def test_what_floats_is_not_crowded_into_the_little_that_it_may_use_of_a_group() -> None:
    """Of the second cache it may use one pCPU: two busy ones were fenced into that, as if it were all four."""
    members = [Guest(f"g{n}", [0.9], [cpus("0-4")], definitions={0: cpus("0-4")}, backlog=True) for n in range(5)]
    host = FakeHost(topology(8, llc=4), members)
    for _turn in range(3):
        plan, _history = vcpu.decide(host.window(), LLC)
        host.apply(plan)
    assert plan.moves == () and cpus("4") not in [guest.pins[0] for guest in members]
