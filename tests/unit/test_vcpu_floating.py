# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What floats: left to the kernel, unless another set of pCPUs serves it; and what we narrowed is given back."""

from __future__ import annotations

from dataclasses import replace
from typing import Optional

import pytest
from kvmsched.config import Rule, VcpuPolicy
from kvmsched.model import PinRecord, Record
from kvmsched.policy import vcpu
from kvmsched.policy.vcpu import VcpuHistory
from kvmsched.policy.vcpu.floating import TRIAL_REST_S, TRIAL_WINDOWS
from vcpu_worlds import HOST_UUID, FakeHost, Guest, cpus, guests, topology

AUTO = VcpuPolicy(floating="auto", hold=1, half_life_s=30.0)


def daemon(
    host: FakeHost, count: int, policy: VcpuPolicy = AUTO, history: Optional[VcpuHistory] = None
) -> tuple[list[list[str]], VcpuHistory]:
    """The moves of *count* passes, each carried out, and the history after them."""
    made = []
    history = history or VcpuHistory()
    for _turn in range(count):
        plan, history = vcpu.decide(host.window(5.0), policy, history)
        assert len({(move.uuid, move.id) for move in plan.moves}) == len(plan.moves), "one pin a vCPU"
        host.apply(plan)
        made.append([str(move) for move in plan.moves])
    return made, history


def test_what_floats_is_left_to_the_kernel_and_placed_only_if_asked() -> None:
    def host() -> FakeHost:
        return FakeHost(topology(4), guests(4, 0.4, "0-3"))

    assert daemon(host(), 4)[0] == [[]] * 4
    assert daemon(host(), 4, replace(AUTO, floating="leave"))[0] == [[]] * 4
    plan, _history = vcpu.decide(host().window(), VcpuPolicy())
    assert len(plan.moves) == 4
    assert plan.note == (
        "placing what floats, 4 vCPUs: it waited 0 % of the time that it ran;"
        " floating: auto would leave it to the kernel"
    )


def test_what_is_placed_is_told_how_it_was_served_also_where_other_pins_move() -> None:
    """Two fenced hogs share a full cache beside a free one, so auto would give one another set; pinned ones pile up."""
    fenced = [Guest(f"f{n}", [1.0], [cpus("0-1")], fields={"cpuset": cpus("0-7")}) for n in range(4)]
    host = FakeHost(topology(8, llc=2), [*fenced, *guests(2, 1.0, "5", "pinned")])
    plan, _history = vcpu.decide(host.window(), VcpuPolicy())
    assert plan.trigger == "placing, work"
    assert plan.note.startswith("placing what floats, 4 vCPUs: it waited 100 % of the time that it ran; floating: auto")
    assert plan.note.endswith("would give 2 of 4 another set of pCPUs")


def test_what_an_earlier_pass_narrowed_floats_again_within_the_budget() -> None:
    host = FakeHost(topology(4), guests(6, 0.4, "0-3"))
    plan, _history = vcpu.decide(host.window(), VcpuPolicy())
    host.apply(plan)
    made, _history = daemon(host, 5, replace(AUTO, max_moves=2))
    assert [len(moves) for moves in made] == [2, 2, 2, 0, 0]
    assert all(guest.pins == [cpus("0-3")] for guest in host.guests)


def test_a_live_pin_of_others_is_widened_only_by_a_rule() -> None:
    calm = replace(AUTO, threshold_pct=100.0)
    host = FakeHost(topology(4), guests(2, 0.2, "0"))
    assert daemon(host, 3, calm)[0] == [[]] * 3
    rules = (Rule("g0", vcpu={"widen": True}),)
    assert daemon(host, 2, replace(calm, rules=rules))[0] == [["g0 vCPU 0: 0 -> 0-3"], []]


def test_nothing_is_widened_to_isolated_pcpus_where_nothing_floats() -> None:
    host = FakeHost(topology(4, isolated="2-3"), guests(1, 0.5, "2"))
    host.guests[0].fields["cpuset"] = cpus("2-3")
    assert daemon(host, 6, replace(AUTO, rules=(Rule("g0", vcpu={"widen": True}),)))[0] == [[]] * 6
    host = FakeHost(topology(4, isolated="3"), guests(1, 0.5, "0"))
    host.guests[0].fields["cpuset"] = cpus("0-3")
    made = daemon(host, 4, replace(AUTO, rules=(Rule("g0", vcpu={"widen": True}),)))[0]
    assert made == [["g0 vCPU 0: 0 -> 0-2"], [], [], []]


def test_a_rule_s_pcpus_fence_what_floats() -> None:
    host = FakeHost(topology(4), guests(2, 0.2, "0-3"))
    rules = (Rule("g1", vcpu={"pcpus": cpus("2-3")}),)
    assert daemon(host, 3, replace(AUTO, rules=rules))[0] == [["g1 vCPU 0: 0-3 -> 2-3"], [], []]


def away() -> FakeHost:
    return FakeHost(topology(8, cells=2), [Guest("far", [0.5], [cpus("0-7")], fields={"numa_pcpus": cpus("4-7")})])


def test_a_floating_vcpu_is_brought_beside_its_memory_if_there_is_room() -> None:
    assert daemon(away(), 6)[0] == [["far vCPU 0: 0-7 -> 4-7"], [], [], [], [], []]
    full = away()
    full.guests += guests(6, 1.0, "4-7", "hog")
    for guest in full.guests[1:]:
        guest.fields["cpuset"] = cpus("4-7")
    assert daemon(full, 3)[0] == [[]] * 3


@pytest.mark.parametrize("defined", [True, False])
def test_who_may_not_run_beside_its_memory_is_left_alone(defined: bool) -> None:
    """Its definition keeps it away from the memory of its guest cell: who wrote that meant it."""
    host = FakeHost(topology(8, cells=2), [Guest("d", [0.3], [cpus("0-2")])])
    if defined:
        host.guests[0].definitions = {0: cpus("0-2")}
    else:
        host.guests[0].fields["cpuset"] = cpus("0-2")
    first, last = host.window()
    (guest,) = last.domains
    guest = replace(guest, vcpus=(replace(guest.vcpus[0], numa_pcpus=cpus("4-7")),))
    assert vcpu.decide([first, replace(last, domains=(guest,))], AUTO)[0].moves == ()


def test_an_overfull_set_gives_some_of_its_vcpus_to_a_free_one_of_the_same_size() -> None:
    host = FakeHost(topology(8, llc=4), guests(8, 1.0, "0-3"))
    made, history = daemon(host, 6)
    assert len(made[0]) == 4 and all(move.endswith("0-3 -> 4-7") for move in made[0])
    assert made[1:] == [[]] * 5
    assert history.trials_begun == 4 and history.trials_undone == 0


def test_a_trial_that_does_not_help_is_undone_and_rests_for_an_hour() -> None:
    host = FakeHost(topology(8, llc=4), guests(8, 1.0, "0-3"))
    made, history = daemon(host, 1)
    moved = sorted(guest.name for guest in host.guests if guest.pins == [cpus("4-7")])
    assert len(moved) == 4
    # Now others that may not leave it fill their new set.
    host.guests += [Guest(f"late{n}", [1.0], [cpus("4-7")], fields={"busy": "backup"}) for n in range(12)]
    made, history = daemon(host, TRIAL_WINDOWS + 1, history=history)
    assert sorted(move for moves in made for move in moves) == [f"{name} vCPU 0: 4-7 -> 0-3" for name in moved]
    assert history.trials_undone == 4
    assert min(history.resting.values()) > host.now_s + TRIAL_REST_S - 60


def test_a_trial_that_was_only_planned_is_none() -> None:
    """A daemon that observes plans the same set again and again."""
    host = FakeHost(topology(8, llc=4), guests(8, 1.0, "0-3"))
    history = VcpuHistory()
    for _turn in range(5):
        plan, history = vcpu.decide(host.window(5.0), AUTO, history)
        assert len(plan.moves) == 4
    assert (history.trials_begun, history.trials) == (0, {})
    host.apply(plan)
    _made, history = daemon(host, 2, history=history)
    assert (history.trials_begun, len(history.trials)) == (4, 4)


def stuck(prefix: str, where: str, count: int) -> list[Guest]:
    """Busy guests that may not leave where they are."""
    return [Guest(f"{prefix}{n}", [1.0], [cpus(where)], fields={"busy": "backup"}) for n in range(count)]


def test_a_trial_that_failed_is_undone_though_a_third_set_has_room_by_then() -> None:
    host = FakeHost(topology(12, llc=4), [*guests(8, 1.0, "0-3"), *stuck("b", "8-11", 16)])
    _made, history = daemon(host, 1)
    assert sum(guest.pins == [cpus("4-7")] for guest in host.guests) == 4
    host.guests += stuck("late", "4-7", 12)
    made, history = daemon(host, 2, history=history)
    assert made == [[], []]
    host.guests = [guest for guest in host.guests if not guest.name.startswith("b")]
    made, history = daemon(host, 1, history=history)
    assert len(made[0]) == 4 and all(move.endswith("4-7 -> 0-3") for move in made[0])
    undone = {move.split()[0] for move in made[0]}
    made, history = daemon(host, 2, history=history)
    assert not undone & {move.split()[0] for moves in made for move in moves}


def test_what_is_given_back_is_tried_nowhere_else_before_its_cool_down() -> None:
    policy = replace(AUTO, cooldown_s=60.0)
    host = FakeHost(topology(8, llc=2), guests(6, 0.5, "0-7"))
    host.apply(vcpu.decide(host.window(), VcpuPolicy(granularity="llc"))[0])
    host.guests += stuck("late", "0-1", 4)
    made, history = daemon(host, 1, policy)
    assert len(made[0]) == 6 and all(move.endswith("-> 0-7") for move in made[0])
    for guest in host.guests[:6]:
        guest.fields["numa_pcpus"] = cpus("4-7")
    made, history = daemon(host, 12, policy, history)
    assert made[:11] == [[]] * 11 and made[11]


def test_a_vcpu_on_trial_is_not_tried_in_every_pass() -> None:
    """Guests that nobody may move are busy on 4-7 and on 8-11 in turn, for a window each."""
    web = Guest("web", [1.0], [cpus("0-3")])
    turns = [stuck("b", "4-7", 12), stuck("c", "8-11", 12)]
    host = FakeHost(topology(12, llc=4), [web, *stuck("a", "0-3", 7), *turns[0], *turns[1]])
    moves, history = [], VcpuHistory()
    for turn in range(16):
        for guest in [*turns[0], *turns[1]]:
            guest.wants = [1.0 if guest in turns[turn % 2] else 0.1]
        made, history = daemon(host, 1, replace(AUTO, hold=3), history)
        moves += made[0]
    assert len(moves) <= 3 and history.trials_begun <= 2


def runs(host: FakeHost, count: int, policy: VcpuPolicy = AUTO) -> list[list[str]]:
    """The moves of *count* passes that remember nothing, as those of a module, each carried out."""
    made = []
    for _turn in range(count):
        plan, _history = vcpu.decide(host.window(), policy)
        host.apply(plan)
        made.append([str(move) for move in plan.moves])
    return made


def test_a_pass_that_remembers_no_trial_does_not_undo_what_it_would_do_again() -> None:
    assert runs(away(), 3) == [["far vCPU 0: 0-7 -> 4-7"], [], []]
    assert runs(away(), 3, replace(AUTO, rules=(Rule("far", vcpu={"pcpus": cpus("5-6")}),)))[1:] == [[], []]
    host = FakeHost(topology(4, isolated="3"), guests(6, 1.0, "0-2"))
    for guest in host.guests:
        guest.fields["cpuset"] = cpus("0-3")
    made = runs(host, 3)
    assert made[0] and all(move.endswith("-> 3") for move in made[0])
    assert made[1:] == [[], []]
    host = FakeHost(topology(4, isolated="3"), guests(4, 0.95, "0-3"))
    for guest in host.guests:
        guest.fields["cpuset"] = cpus("0-3")
    assert [len(moves) for moves in runs(host, 3)] == [1, 0, 0], "pCPU 3 is no room for who floats over 0-3"


def test_a_vcpu_that_is_to_be_widened_is_not_moved_in_the_same_pass() -> None:
    host = FakeHost(topology(4), guests(3, 0.9, "0"))
    plan, _history = vcpu.decide(host.window(), replace(AUTO, rules=(Rule("g*", vcpu={"widen": True}),)))
    assert plan.moves and len({(move.uuid, move.id) for move in plan.moves}) == len(plan.moves)


def given_back(original: str, isolated: str = "", offline: str = "", policy: VcpuPolicy = AUTO) -> list[str]:
    """What a pass does with a vCPU that a record says was pinned from *original* to pCPU 0."""
    host = FakeHost(topology(8, isolated=isolated, offline=offline), guests(1, 0.2, "0"))
    pin = PinRecord("vcpu", 0, cpus(original), cpus(original), cpus("0"), 1)
    host.records[host.guests[0].uuid] = Record(HOST_UUID, 1, pins=(pin,))
    return runs(host, 1, policy)[0]


def test_nothing_is_given_back_that_a_release_would_not_give_back() -> None:
    assert given_back("0-7") == ["g0 vCPU 0: 0 -> 0-7"]
    assert given_back("0-7", isolated="6-7") == ["g0 vCPU 0: 0 -> 0-7"], "it was without any pin"
    assert given_back("0-2,6-7", isolated="6-7") == ["g0 vCPU 0: 0 -> 0-2"]
    assert given_back("0-7", offline="4-7") == ["g0 vCPU 0: 0 -> 0-3"]


def test_what_has_no_pcpu_any_more_is_given_back() -> None:
    """Its pCPU goes offline between the look at its affinity and that at the host."""
    host = FakeHost(topology(4), guests(1, 0.5, "0-3"))
    host.apply(vcpu.decide(host.window(), VcpuPolicy())[0])
    off = topology(4, offline="0")
    window = [replace(look, host=replace(look.host, topology=off)) for look in host.window()]
    plan, _history = vcpu.decide(window, AUTO)
    assert [str(move) for move in plan.moves] == ["g0 vCPU 0: 0 -> 1-3"]


def test_what_was_fenced_into_a_set_of_isolated_pcpus_is_given_back_also_to_a_full_one() -> None:
    """An older version did that; the kernel uses one pCPU of such a set."""
    members = guests(4, 0.9, "4-7")
    host = FakeHost(topology(8, isolated="4-7"), [*members, *stuck("b", "0-3", 8)])
    for guest in members:
        guest.fields["cpuset"] = cpus("0-7")
        pin = PinRecord("vcpu", 0, cpus("0-7"), cpus("0-7"), cpus("4-7"), 1)
        host.records[guest.uuid] = Record(HOST_UUID, 1, pins=(pin,))
    assert len(runs(host, 1)[0]) == 4 and {guest.pins[0] for guest in members} == {cpus("0-7")}


def test_a_trial_that_fails_does_not_lead_out_of_a_rule_s_pcpus() -> None:
    rules = (Rule("far", vcpu={"pcpus": cpus("2-7")}),)
    host = away()
    host.guests[0].pins = [cpus("2-7")]
    _made, history = daemon(host, 1, replace(AUTO, rules=rules))
    assert host.guests[0].pins == [cpus("4-7")]
    record = host.records[host.guests[0].uuid]
    host.records[host.guests[0].uuid] = replace(record, pins=(replace(record.pins[0], original=cpus("0-7")),))
    host.guests += [Guest(f"late{n}", [1.0], [cpus("4-7")], fields={"busy": "backup"}) for n in range(12)]
    daemon(host, TRIAL_WINDOWS + 2, replace(AUTO, rules=rules), history)
    assert host.guests[0].pins[0] <= cpus("2-7")


@pytest.mark.parametrize("named", ["by its cpuset", "by the policy"])
@pytest.mark.parametrize("ruled", ["4-7", "3-7"])
def test_a_rule_that_leaves_isolated_pcpus_gives_each_vcpu_one(ruled: str, named: str) -> None:
    """The kernel balances nothing there: in a set of them all four would share its first pCPU."""
    guest = Guest("rt", [0.9] * 4, [cpus("0-7")] * 4)
    policy = replace(AUTO, rules=(Rule("rt", vcpu={"pcpus": cpus(ruled)}),))
    if named == "by its cpuset":
        guest.fields["cpuset"] = cpus("0-7")
    else:
        policy = replace(policy, pcpus=cpus("0-7"))
    host = FakeHost(topology(8, isolated="4-7"), [guest])
    assert daemon(host, 3, replace(policy, floating="leave"))[0] == [[]] * 3
    plan, _history = vcpu.decide(host.window(), policy)
    assert plan.note.startswith("placing what the kernel does not balance onto isolated pCPUs, 4 vCPUs")
    made, history = daemon(host, 6, policy)
    assert [len(moves) for moves in made] == [4, 0, 0, 0, 0, 0]
    assert len(set(guest.pins)) == 4 and all(len(pin) == 1 and pin <= cpus(ruled) for pin in guest.pins)
    made, history = daemon(host, 3, replace(policy, rules=()), history)
    assert len(made[0]) == 4 and guest.pins == [cpus("0-7")] * 4, "without the rule it floats again"


def test_a_rule_that_leaves_two_other_pcpus_fences_into_these() -> None:
    host = FakeHost(topology(8, isolated="4-7"), [Guest("g", [0.4], [cpus("0-7")], fields={"cpuset": cpus("0-7")})])
    rules = (Rule("g", vcpu={"pcpus": cpus("2-7")}),)
    assert daemon(host, 4, replace(AUTO, rules=rules))[0] == [["g vCPU 0: 0-7 -> 2-3"], [], [], []]


def test_memory_leads_nothing_onto_isolated_pcpus() -> None:
    fields = {"cpuset": cpus("0-7"), "numa_pcpus": cpus("4-7")}
    host = FakeHost(topology(8, cells=2, isolated="4-7"), [Guest("m", [0.9] * 3, [cpus("0-7")] * 3, fields=fields)])
    assert daemon(host, 6)[0] == [[]] * 6
    host.topology = topology(8, cells=2, isolated="6-7")
    assert sum(map(len, daemon(host, 6)[0])) == 2 and host.guests[0].pins.count(cpus("4-5")) == 2
