# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose pin is it, whose pCPU is it, and where is a vCPU's memory: each rule of that on a small host."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Iterable, Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kvmsched.config import Selection, VcpuPolicy, load_daemon
from kvmsched.model import ForeignTime, Owner, PinMove, PinRecord, Record, Snapshot, Thread, Topology, VcpuPlan
from kvmsched.policy import vcpu
from kvmsched.policy.vcpu import Safeties
from kvmsched.policy.vcpu.allowed import Masks
from kvmsched.policy.vcpu.dedicated import Dedication
from kvmsched.policy.vcpu.eligibility import dedication_on
from kvmsched.policy.vcpu.history import PlannedPin, VcpuHistory
from kvmsched.units import CpuSet, format_cpuset
from vcpu_worlds import HOST_UUID, FakeHost, Guest, cpus, guests, topology

POLICY = VcpuPolicy()


def guest(name: str, pins: str, wants: float = 0.5, definitions: str = "", **more: Any) -> Guest:
    """A guest with a vCPU for each word of *pins*; *definitions* are as many words, "-" for none."""
    masks = [cpus(word) for word in pins.split()]
    defined = {n: cpus(word) for n, word in enumerate(definitions.split()) if word != "-"}
    return Guest(name, [wants] * len(masks), masks, definitions=defined, **more)


def own(*members: Guest, host: Optional[Topology] = None, policy: VcpuPolicy = POLICY) -> Dedication:
    return dedication_on(FakeHost(host or topology(8), members).snapshot(), policy)


def one_pass(*members: Guest, host: Optional[Topology] = None, policy: VcpuPolicy = POLICY, **more: Any) -> VcpuPlan:
    plan, _history = vcpu.decide(FakeHost(host or topology(8), members).window(), policy, **more)
    return plan


def led_to(plan: VcpuPlan) -> CpuSet:
    return frozenset().union(*(move.after for move in plan.moves if isinstance(move, PinMove)))


def codes(plan: VcpuPlan) -> dict[str, str]:
    return {skip.domain: skip.code for skip in plan.skips}


# ---------------------------------------------------------------- whose pCPU is it


def test_one_vcpu_of_a_guest_may_have_a_pcpu_of_its_own() -> None:
    mixed = guest("mixed", "4 0-3 0-3 0-3", 0.3, "4 0-3 0-3 0-3")
    assert own(mixed).pcpus == {4}
    plan = one_pass(mixed, *guests(8, 0.9, "0-7", "float"))
    assert plan.moves and 4 not in led_to(plan)
    off = one_pass(mixed, *guests(8, 0.9, "0-7", "float"), safeties=Safeties(dedicated=False))
    assert 4 in led_to(off)


def test_a_pcpu_that_others_name_too_is_nobodys_own() -> None:
    three = [guest(name, "0 1 2 3", definitions="0 1 2 3") for name in "abc"]
    told = own(*three)
    assert told.pcpus == frozenset() and told.overlapping == dict.fromkeys(range(4), ("a", "b", "c"))
    plan = one_pass(*three)
    assert plan.moves == () and set(codes(plan).values()) == {"overlapping"}
    assert plan.before.max_pct > 100 and plan.before.pcpus == 8 and plan.note != "balanced"
    assert own(guest("a", "0", definitions="0"), guest("fence", "0-1 0-1", definitions="0-1 0-1")).pcpus == frozenset()
    assert own(guest("a", "0 1", definitions="0 1"), guest("b", "1 2", definitions="1 2")).pcpus == {0, 2}
    half = one_pass(guest("a", "0 1", definitions="0 1"), guest("b", "1 2", definitions="1 2"))
    assert codes(half) == {"a": "overlapping", "b": "overlapping"}
    wide = guest("wide", "0-7", definitions="0-7")
    assert own(guest("a", "0", definitions="0"), wide).pcpus == {0}, "who names all pCPUs names none"


def test_a_pcpu_that_is_offline_is_nobodys_own_and_blocks_nobody() -> None:
    host = topology(8, offline="4-7")
    gone = guest("a", "4 5 6 7", 0.1, "4 5 6 7")
    gone.affinity = cpus("0-3")
    plan = one_pass(gone, guest("b", "0 0 0 0", 0.9), host=host)
    assert len(plan.moves) == 3 and led_to(plan) == {1, 2, 3} and codes(plan) == {"a": "empty-set"}
    marked = replace(gone, definitions={}, fields={"owner": Owner({"vcpu": "dedicated"})})
    assert own(marked, host=host).pcpus == frozenset(), "where it was pinned is offline, where it runs it is by chance"


def test_both_threads_of_a_core_may_be_the_own_of_two_vcpus() -> None:
    pairs = guest("vfio", "2,6 2,6 3,7 3,7", 0.2, "2,6 2,6 3,7 3,7")
    assert own(pairs).pcpus == {2, 3, 6, 7}
    plan = one_pass(pairs, *guests(4, 0.9, "0", "hog"))
    assert codes(plan) == {"vfio": "dedicated"} and not led_to(plan) & cpus("2-3,6-7")
    assert own(guest("three", "2,6 2,6 2,6", definitions="2,6 2,6 2,6")).pcpus == frozenset()
    assert own(guest("one", "2,6", definitions="2,6")).pcpus == frozenset(), "a vCPU alone does not need two"


def test_real_time_vcpus_have_what_their_definition_says_and_floating_ones_nothing() -> None:
    fixed = guest("rt", "4-5 4-5 4-5", definitions="4-5 4-5 4-5", scheduler="fifo")
    assert own(fixed).pcpus == {4, 5}
    assert own(guest("rt", "0-7 0-7", scheduler="fifo")).pcpus == frozenset()
    assert own(fixed, guest("fence", "5-6", definitions="5-6")).pcpus == {4}


@pytest.mark.parametrize(
    ("pins", "pcpus"),
    [
        ("4 5", {4, 5}),
        ("4-5 4-5", {4, 5}),
        ("4-6 4-6", set()),  # no narrower than it needs
        ("0-7 " * 8, set()),  # floats, with as many vCPUs as there are pCPUs
    ],
)
def test_a_marked_guest_has_its_pins_if_they_are_narrow(pins: str, pcpus: set[int]) -> None:
    marked = guest("own", pins, fields={"owner": Owner({"vcpu": "dedicated"})})
    assert own(marked).pcpus == pcpus
    plan = one_pass(marked, *guests(4, 0.9, "0", "hog"))
    assert codes(plan)["own"] == "dedicated"
    assert plan.moves and not led_to(plan) & pcpus, "the others are balanced beside it"


def test_the_last_pcpu_of_another_guest_is_a_preference_only() -> None:
    greedy = guest("greedy", "4", definitions="4")
    told = own(greedy, guest("bound", "4", fields={"cpuset": cpus("4")}))
    assert (told.pcpus, told.preferred, told.too_many) == (frozenset(), {4}, ("greedy",))
    plan = one_pass(greedy, guest("bound", "4", fields={"cpuset": cpus("4")}), *guests(4, 0.5, "0-7"))
    assert "bound" not in codes(plan) and 4 not in led_to(plan)
    assert any("greedy: pCPUs of their own would leave others too few" in line for line in plan.warnings)


def test_a_whole_cell_or_more_than_half_of_the_host_is_a_preference_only() -> None:
    cell = guest("cell", "4 5 6 7", definitions="4 5 6 7")
    assert own(cell).pcpus == cpus("4-7")
    assert own(cell, host=topology(8, cells=2)).preferred == cpus("4-7")
    most = guest("most", "3 4 5 6 7", definitions="3 4 5 6 7")
    assert own(most).preferred == cpus("3-7")


def test_what_is_preferred_is_given_once_the_rest_is_full() -> None:
    most = guest("most", "3 4 5 6 7", 0.2, "3 4 5 6 7")
    calm = one_pass(most, guest("calm", "0 0 0", 0.4))
    assert calm.moves and led_to(calm) <= {1, 2}
    full = one_pass(most, *guests(9, 0.9, "0-2", "hog"))
    assert full.moves and led_to(full) & cpus("3-7")


def test_a_guest_that_has_a_part_of_the_cache_stays_and_has_nothing_of_its_own() -> None:
    tuned = guest("tuned", "4 5", definitions="4 5", fields={"cachetune": True})
    assert own(tuned).pcpus == frozenset()
    plan = one_pass(tuned, guest("float", "0 0", 0.9, fields={"cachetune": True}))
    assert plan.moves == () and set(codes(plan).values()) == {"cachetune"}


@pytest.mark.parametrize(("selection", "left"), [(("*",), True), (("vm*",), False), (("vm",), False)])
def test_a_guest_that_another_program_manages_is_moved_only_if_it_is_named(
    selection: tuple[str, ...], left: bool
) -> None:
    plan = one_pass(
        guest("vm", "0 0", 0.9, fields={"managed_by": "nova"}),
        policy=replace(POLICY, selection=Selection(selection)),
    )
    assert codes(plan) == ({"vm": "managed"} if left else {}) and bool(plan.moves) != left


# ---------------------------------------------------------------- whose pin is it


def recorded(host: FakeHost, name: str, pins: Iterable[tuple[str, str, str]], where: str = HOST_UUID) -> Snapshot:
    """*pins*: (original, previous, intended) by vCPU."""
    made = tuple(
        PinRecord("vcpu", n, *(cpus(mask) for mask in masks), when_s=1_699_000_000) for n, masks in enumerate(pins)
    )
    host.records[next(g.uuid for g in host.guests if g.name == name)] = Record(where, 1, pins=made)
    return host.snapshot()


def decided(host: FakeHost) -> VcpuPlan:
    return vcpu.decide(host.window(), POLICY)[0]


def test_a_transient_guest_keeps_the_pins_of_its_start() -> None:
    transient = guest("t", "0 0 0", 0.9, "0-2 0-2 0-2", fields={"persistent": False})
    plan = one_pass(transient, guest("b", "3"))
    assert len(plan.moves) == 2 and led_to(plan) == {1, 2}
    assert own(guest("t", "3", definitions="3", fields={"persistent": False})).pcpus == {3}


@pytest.mark.parametrize(("definitions", "unknown"), [("0", True), ("-", False)])
def test_pins_that_may_be_of_later_than_the_start_are_kept_and_told(definitions: str, unknown: bool) -> None:
    """The second is how a snapshot of an earlier version has it."""
    transient = guest("t", "0", 0.9, definitions, fields={"persistent": False, "start_unknown": unknown})
    plan = one_pass(transient, guest("b", "0 0", 0.9))
    assert plan.moves and all(move.domain == "b" for move in plan.moves)
    assert plan.warnings == ("t: transient, seen after its start: its pins of now are taken for its definition",)


@pytest.mark.parametrize("where", [HOST_UUID, "another"])
def test_the_recorded_original_of_a_transient_guest_is_its_definition_on_any_host(where: str) -> None:
    transient = guest("t", "1 1 1", 0.9, "1 1 1", fields={"persistent": False})
    host = FakeHost(topology(6), [transient])
    recorded(host, "t", [("1-3", "2", "1")] * 3, where)
    plan = decided(host)
    assert len(plan.moves) == 2 and led_to(plan) == {2, 3}


def test_a_pin_that_we_wrote_is_ours_in_a_persistent_definition_too() -> None:
    """Who defines a guest by its live XML copies our pins: no limit, nothing of its own, and it is said."""
    host = FakeHost(topology(4), [guest("p", "1 1", 0.9, "1 1"), *guests(2, 0.1, "1", "other")])
    recorded(host, "p", [("0-3", "2", "1"), ("0-3", "0-3", "1")])
    assert dedication_on(host.snapshot(), POLICY).pcpus == frozenset()
    plan = decided(host)
    assert plan.moves and plan.warnings == (
        "p: its definition has pins that kvmsched set, of vCPU 0-1: they limit nothing, `virsh edit` removes them",
    )


def test_a_definition_that_is_the_original_is_a_limit_though_we_wrote_it_last() -> None:
    host = FakeHost(topology(4), [guest("p", "1 1", 0.9, "1 1")])
    recorded(host, "p", [("1", "2", "1"), ("1", "1", "1")])
    assert decided(host).moves == ()


def test_pins_of_emulator_and_io_threads_in_a_definition_stay() -> None:
    threads = (Thread("emulator", 0, cpus("3"), definition=cpus("3")), Thread("iothread", 1, cpus("3")))
    plan = one_pass(guest("g", "0", threads=threads), policy=replace(POLICY, emulator="spread"))
    assert [(move.thread, move.id) for move in plan.moves if isinstance(move, PinMove)] == [("iothread", 1)]


# ---------------------------------------------------------------- where its memory is, and isolated pCPUs


def test_a_vcpu_stays_beside_the_memory_of_its_guest_cell() -> None:
    host = FakeHost(topology(8, cells=2), [guest("numa", "0 0 4 4", 0.9), *guests(2, 0.2, "0-7")])

    def located(snapshot: Snapshot) -> Snapshot:
        """vCPUs 0 and 1 have their memory in cell 0, 2 and 3 in cell 1."""
        domain = next(d for d in snapshot.domains if d.name == "numa")
        cells = [cpus("0-3")] * 2 + [cpus("4-7")] * 2
        vcpus = tuple(replace(v, numa_pcpus=cell) for v, cell in zip(domain.vcpus, cells))
        numa = replace(domain, vcpus=vcpus, numa_pcpus=host.topology.online)
        return replace(snapshot, domains=tuple(numa if d.name == "numa" else d for d in snapshot.domains))

    plan, _history = vcpu.decide([located(snapshot) for snapshot in host.window()], POLICY)
    moves = {move.id: move.after for move in plan.moves if isinstance(move, PinMove) and move.domain == "numa"}
    assert len(moves) >= 2 and all(after <= (cpus("0-3") if n < 2 else cpus("4-7")) for n, after in moves.items())


def test_a_pin_away_from_the_memory_of_a_guest_cell_was_meant_so() -> None:
    host = FakeHost(topology(8, cells=2), [guest("numa", "6", definitions="6")])
    snapshot = host.snapshot()
    (domain,) = snapshot.domains
    away = replace(domain, vcpus=(replace(domain.vcpus[0], numa_pcpus=cpus("0-3")),))
    plan, _history = vcpu.decide([replace(snapshot, domains=(away,))], POLICY)
    assert codes(plan).get("numa") != "empty-set"


def stuck(isolated: str) -> VcpuPlan:
    """Two busy vCPUs that may run on 4 and 5; the kernel balances nothing onto isolated pCPUs."""
    member = guest("g", "4-5 4-5", 0.9, fields={"cpuset": cpus("4-5")})
    member.affinity = cpus("4") if isolated else None
    host = FakeHost(topology(8, isolated=isolated), [member])

    def told(snapshot: Snapshot) -> Snapshot:
        (domain,) = snapshot.domains
        vcpus = tuple(replace(one, affinity=one.pin) for one in domain.vcpus)
        return replace(snapshot, domains=(replace(domain, vcpus=vcpus),))

    window = host.window()
    shown = [
        replace(
            s, domains=tuple(replace(d, vcpus=tuple(replace(v, affinity=v.pin) for v in d.vcpus)) for d in s.domains)
        )
        for s in window
    ]
    return vcpu.decide(shown, POLICY)[0]


def test_a_set_with_an_isolated_pcpu_has_not_placed_anybody_on_its_first_one() -> None:
    plan = stuck("5")
    assert len(plan.moves) == 2 and led_to(plan) == {4, 5}
    assert "would leave it to the kernel" not in plan.note, "auto would not, for the kernel does nothing about it"
    assert "would leave it to the kernel" in one_pass(*guests(2, 0.9, "4-5")).note


class Isolating(FakeHost):
    """As the kernel has it: it balances nothing onto isolated pCPUs, and leaves a set of these on its first one."""

    def _queues(self) -> dict[int, list[tuple[Guest, int, float]]]:
        queues: dict[int, list[tuple[Guest, int, float]]] = {pcpu.id: [] for pcpu in self.topology.pcpus}
        for member in self.guests:
            for number, want in enumerate(member.wants):
                places = member.pins[number] - self.topology.isolated or {min(member.pins[number])}
                level = {pcpu: sum(one[2] for one in queues[pcpu]) for pcpu in places}
                queues[min(places, key=lambda pcpu: (level[pcpu], pcpu))].append((member, number, want))
        return queues


@pytest.mark.parametrize(("isolated", "vcpus", "moves"), [("5", 2, 2), ("4-7", 4, 4), ("6-7", 4, 2)])
def test_the_daemon_spreads_over_isolated_pcpus_once_and_leaves_it_so(isolated: str, vcpus: int, moves: int) -> None:
    """The kernel would not; but what floats over other pCPUs, too, is left to it as far as these go."""
    pins = "4-5" if isolated == "5" else "4-7"
    member = guest("g", f"{pins} " * vcpus, 0.9, fields={"cpuset": cpus(pins)})
    host, history, made = Isolating(topology(8, isolated=isolated), [member]), None, 0
    policy = load_daemon({}).vcpu
    for _turn in range(40):
        window = host.window(5.0)
        plan, history = vcpu.decide(window, vcpu.budgeted(policy, window[-1]), history)
        made += len(plan.moves)
        host.apply(plan)
    assert made == moves
    alone = [pin for pin in member.pins if len(pin) == 1]
    assert len(set(alone)) == len(alone) == moves


def test_a_vcpu_that_somebody_pinned_to_isolated_pcpus_only_is_left_there() -> None:
    plan = one_pass(guest("g", "6", 0.9), *guests(3, 0.9, "0"), host=topology(8, isolated="6-7"))
    assert len(plan.moves) == 2 and all(move.domain != "g" for move in plan.moves)


def test_pcpus_without_a_tick_are_given_only_to_who_has_no_others() -> None:
    host = replace(topology(4), nohz_full=cpus("2-3"))
    plan = one_pass(guest("a", "0 0 0", 0.6), guest("b", "3", 0.3), host=host)
    assert led_to(plan) == {1} and all(move.domain == "a" for move in plan.moves)
    bound = one_pass(guest("a", "2 2", 0.9, fields={"cpuset": cpus("2-3")}), host=host)
    assert led_to(bound) == {3}


def test_what_floats_over_pcpus_without_a_tick_is_not_crowded_onto_the_few_others() -> None:
    host = replace(topology(8), nohz_full=cpus("1-7"))
    plan = one_pass(*(guest(f"g{n}", "0-7", 0.9) for n in range(6)), host=host)
    assert len(plan.moves) == len(led_to(plan)) == 6


def test_what_went_offline_under_a_guest_that_was_just_placed_ends_its_rest() -> None:
    policy = replace(POLICY, cooldown_s=60.0, max_moves=4)
    host = FakeHost(topology(4), [guest("g", "3 3", 0.9)])
    plan, history = vcpu.decide(host.window(), policy)
    host.apply(plan)
    moved = next(move for move in plan.moves if isinstance(move, PinMove))
    host.topology = topology(4, offline=format_cpuset(moved.after | cpus("2")))
    plan, _history = vcpu.decide(host.window(), policy, history)
    assert [(move.id, len(move.after)) for move in plan.moves if isinstance(move, PinMove)] == [(moved.id, 1)]


@pytest.mark.parametrize("remembered", ["by the daemon", "in the record"])
def test_no_cool_down_crowds_who_lost_its_pcpu_into_what_is_left_of_its_cell(remembered: str) -> None:
    """Two cells of four pCPUs; two guests of two vCPUs at 56 % were placed in the first one a minute ago.

    The host is made up, from what was seen on an emulated KVM host: 113 % beside a nearly idle cell.
    """
    members = [guest("a", "0 1", 0.565), guest("b", "2 3", 0.565), guest("idle", "5", 0.05)]
    host = FakeHost(topology(8, cells=2), members)
    history = VcpuHistory(number=10) if remembered == "by the daemon" else None
    for number, member in enumerate(members[:2], 1):
        now_s = int(1_700_000_000 + host.now_s)
        pins = [PinRecord("vcpu", n, cpus("0-7"), cpus("0-7"), pin, now_s - 60) for n, pin in enumerate(member.pins)]
        if history is None:
            host.records[member.uuid] = Record(HOST_UUID, 1, pins=tuple(pins))
        else:
            past = {f"{member.uuid}/{number}/{pin.id}": (pin.original, pin.intended) for pin in pins}
            moves = {key: PlannedPin(before, after, host.now_s - 60, 2) for key, (before, after) in past.items()}
            history = replace(history, moves={**history.moves, **moves})
    resting, _history = vcpu.decide(host.window(), POLICY, history)
    assert not resting.moves, "before that, they rest"
    host.topology = topology(8, cells=2, offline="3")
    host.run(2)
    plan, _history = vcpu.decide(host.window(), POLICY, history)
    (move,) = plan.moves
    assert isinstance(move, PinMove) and (move.domain, move.id) == ("b", 1)
    assert move.after <= cpus("4-7") and plan.after.max_pct < 62


# ---------------------------------------------------------------- a record that leads where nobody may go


@pytest.mark.parametrize(
    ("original", "restored", "told"),
    [
        ("6", "0-5", "6 has pCPU 6 {}, restored to its own set 0-5"),
        ("4,7", "0-5", "4,7 has pCPU 4,7 {}, restored to its own set 0-5"),
        ("2,4", "2", "2,4 has pCPU 4 {}, restored to 2"),
        ("2,9,16000", "2", "2,9,16000 has pCPU 9,16000 offline, restored to 2"),
        ("6,9", "0-5", "6,9 has pCPU 9 offline and pCPU 6 {}, restored to its own set 0-5"),
        ("0-7", "0-7", ""),  # it floated
        ("0-5", "0-5", ""),
        ("2-3", "2-3", ""),
    ],
)
def test_a_record_does_not_lead_onto_isolated_pcpus_or_anothers_own(original: str, restored: str, told: str) -> None:
    host = FakeHost(topology(8, isolated="6-7"), [guest("g", "1"), guest("own", "4", definitions="4")])
    recorded(host, "g", [(original, original, "1")])
    plan, _history = vcpu.release([host.snapshot()], POLICY)
    assert led_to(plan) == cpus(restored)
    told = told.format("isolated, another domain's own, or outside of its cpuset")
    assert tuple(map(str, plan.not_restored)) == ((f"g: vCPU 0: its original {told}",) if told else ())
    assert all(left.limited for left in plan.not_restored), "it fails no release of the host"
    host.apply(plan)
    assert vcpu.release([host.snapshot()], POLICY)[0].moves == ()


def test_nor_does_one_of_a_transient_domain_which_says_what_its_definition_was() -> None:
    host = FakeHost(topology(8, isolated="6-7"), [guest("g", "1", fields={"persistent": False})])
    recorded(host, "g", [("5-6", "5-6", "1")])
    assert led_to(vcpu.release([host.snapshot()], POLICY)[0]) == cpus("5")


@pytest.mark.parametrize(
    ("original", "definitions", "restored"),
    [("0-7", "", "2-3"), ("3-5", "", "3"), ("6", "", "2-3"), ("6", "6", "6"), ("6-7", "6", "6")],
)
def test_a_record_does_not_lead_out_of_the_cpuset_of_its_definition(
    original: str, definitions: str, restored: str
) -> None:
    host = FakeHost(topology(8), [guest("g", "2", definitions=definitions)])
    host.guests[0].fields["cpuset"] = cpus("2-3")
    recorded(host, "g", [(original, original, "2")])
    plan, _history = vcpu.release([host.snapshot()], POLICY)
    assert led_to(plan) == cpus(restored)
    assert len(plan.not_restored) == (original != restored)


# ---------------------------------------------------------------- what else the host does


def storage_host(confined: Optional[tuple[ForeignTime, ...]]) -> list[Snapshot]:
    """Daemons fill 0-3, two guests that are fully served share 4-7; *confined* is what the host's counters say."""
    members = [guest(name, "4 5 6 7", 0.45) for name in ("web", "app")]
    first, last = FakeHost(topology(8), members, dict.fromkeys(range(4), 0.95)).window(5.0)
    none = confined if confined is None else tuple(replace(part, time_ns=0) for part in confined)
    bound = dict.fromkeys(range(8), 0)
    return [
        replace(snapshot, host=replace(snapshot.host, bound_ns=bound, foreign_ns=parts))
        for snapshot, parts in ((first, none), (last, confined))
    ]


@pytest.mark.parametrize("confined", [None, (ForeignTime(cpus("0-3"), 19_000_000_000),)])
def test_guests_are_not_sent_where_the_work_of_the_host_must_stay(confined: Optional[tuple[ForeignTime, ...]]) -> None:
    plan, _history = vcpu.decide(storage_host(confined), POLICY)
    assert plan.moves == () and plan.before.max_pct < 100


def test_without_that_rule_guests_are_sent_there() -> None:
    window = storage_host((ForeignTime(cpus("0-3"), 19_000_000_000),))
    plan, _history = vcpu.decide(window, POLICY, safeties=Safeties(confined=False))
    assert len(plan.moves) == 4 and led_to(plan) <= cpus("0-3")


def test_another_program_that_pins_is_told() -> None:
    first, last = FakeHost(topology(2), guests(1, 0.5, "0")).window()
    plan, _history = vcpu.decide([first, replace(last, host=replace(last.host, pinners=("numad",)))], POLICY)
    assert plan.warnings and plan.warnings[0].startswith("numad is running here and changes affinities, too")


# ---------------------------------------------------------------- what no plan can help


def test_guests_that_their_definition_keeps_off_idle_pcpus_are_told() -> None:
    fenced = [guest(f"fenced{n}", "0-1", 0.9, "0-1") for n in range(4)]
    plan = one_pass(*fenced, guest("other", "2", 0.2))
    who, what = "fenced0, fenced1, fenced2, 1 more", "6 idle pCPUs are forbidden to them by their definition"
    assert plan.warnings == (f"{who}: wait on pCPU 0-1, and {what}: widen that",)
    free = one_pass(*[guest(f"free{n}", "0-1", 0.9) for n in range(4)])
    assert free.warnings == (), "a live pin forbids nothing"
    calm = one_pass(*[guest(f"calm{n}", "0-1", 0.4, "0-1") for n in range(4)])
    assert calm.warnings == ()


@settings(derandomize=True, max_examples=150, deadline=None)
@given(st.data())
def test_what_is_somebodys_own_leaves_enough_to_all_others(data: st.DataObject) -> None:
    """No other guest's last pCPU, no whole cell, no more than half of the host; and in any order of the domains."""
    host = data.draw(st.sampled_from([topology(8), topology(8, cells=2), topology(6, isolated="5"), topology(2)]))
    some = st.sets(st.sampled_from(sorted(host.online)), min_size=1, max_size=3).map(frozenset)
    members = []
    for number in range(data.draw(st.integers(1, 6))):
        pins = data.draw(st.lists(some, min_size=1, max_size=4))
        fields: dict[str, Any] = {"cpuset": data.draw(some)} if data.draw(st.integers(0, 3)) == 0 else {}
        if data.draw(st.integers(0, 3)) == 0:
            fields["owner"] = Owner({"vcpu": "dedicated"})
        defined = dict(enumerate(pins)) if data.draw(st.booleans()) else {}
        scheduler = "fifo" if data.draw(st.integers(0, 3)) == 0 else None
        members.append(
            Guest(f"g{number}", [0.5] * len(pins), pins, fields=fields, definitions=defined, scheduler=scheduler)
        )
    snapshot = FakeHost(host, members).snapshot()
    told = dedication_on(snapshot, POLICY)
    assert dedication_on(replace(snapshot, domains=snapshot.domains[::-1]), POLICY) == told
    usable = host.online - host.isolated
    assert 2 * len(told.pcpus & usable) <= len(usable)
    assert len(host.cells) == 1 or all(not cell.pcpus & usable <= told.pcpus for cell in host.cells)
    before, after = Masks(snapshot, POLICY), Masks(snapshot, POLICY, told.pcpus)
    for domain in snapshot.domains:
        for one in domain.vcpus:
            if before.allowed(domain, one) and (domain.uuid, one.id) not in told.own:
                owners = {uuid for (uuid, _number), pcpus in told.own.items() if pcpus & before.allowed(domain, one)}
                assert after.allowed(domain, one) or owners == {domain.uuid}


@pytest.mark.parametrize("persistent", [True, False])
def test_a_definition_that_we_brought_a_guest_back_to_stays_its_limit(persistent: bool) -> None:
    """Somebody had moved it out of its definition, or start, by a live pin: to write the same does not make it ours."""
    away = guest("away", "4-7 4-7 4-7", 0.9, "0-3 0-3 0-3", fields={"persistent": persistent})
    host = FakeHost(topology(8, llc=4), [away])
    policy = replace(POLICY, granularity="llc")
    host.apply(vcpu.decide(host.window(), policy)[0])
    assert away.pins == [cpus("0-3")] * 3
    host.guests += guests(3, 1.0, "0-3", "late")
    for late in host.guests[1:]:
        late.fields["cpuset"] = cpus("0-3")
    for _turn in range(2):
        host.apply(vcpu.decide(host.window(), policy)[0])
        assert away.pins == [cpus("0-3")] * 3


def test_a_transient_guest_of_which_no_pin_is_known_has_nothing_and_ends_no_pass() -> None:
    """It began while the host was looked at."""
    unread = guest("unread", "0 0", 0.5, fields={"persistent": False, "record_error": "not read"})
    snapshot = FakeHost(topology(4), [unread, *guests(3, 0.9, "0")]).window()
    domain = snapshot[-1].domains[0]
    empty = tuple(replace(vcpu_, pin=frozenset(), definition=frozenset()) for vcpu_ in domain.vcpus)
    now = replace(snapshot[-1], domains=(replace(domain, vcpus=empty), *snapshot[-1].domains[1:]))
    plan, _history = vcpu.decide([snapshot[0], now], POLICY)
    assert plan.moves and codes(plan) == {"unread": "record"}
