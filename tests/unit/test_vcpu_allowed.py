# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a vCPU may run: isolated pCPUs, and those without a tick."""

from __future__ import annotations

from dataclasses import replace

import pytest
from kvmsched.config import load_daemon
from kvmsched.model import Snapshot, VcpuPlan
from kvmsched.policy import vcpu
from kvmsched.policy.vcpu import Safeties
from vcpu_worlds import POLICY, FakeHost, Guest, cpus, guests, led_to, one_pass, pinned_guest, topology


def test_without_the_allowed_set_a_pin_leaves_it() -> None:
    def run(**off: bool) -> set[int]:
        host = FakeHost(topology(4), guests(4, 0.4, "0"))
        for guest in host.guests:
            guest.fields["cpuset"] = cpus("0-1")
        plan, _history = vcpu.decide(host.window(), POLICY, safeties=Safeties(**off))
        return {pcpu for move in plan.moves for pcpu in move.after}

    assert run() <= {0, 1}
    assert not run(allowed=False) <= {0, 1}


def stuck(isolated: str) -> VcpuPlan:
    """Two busy vCPUs that may run on 4 and 5; the kernel balances nothing onto isolated pCPUs."""
    member = pinned_guest("g", "4-5 4-5", 0.9, fields={"cpuset": cpus("4-5")})
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
    member = pinned_guest("g", f"{pins} " * vcpus, 0.9, fields={"cpuset": cpus(pins)})
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
    plan = one_pass(pinned_guest("g", "6", 0.9), *guests(3, 0.9, "0"), host=topology(8, isolated="6-7"))
    assert len(plan.moves) == 2 and all(move.domain != "g" for move in plan.moves)


def test_pcpus_without_a_tick_are_given_only_to_who_has_no_others() -> None:
    host = replace(topology(4), nohz_full=cpus("2-3"))
    plan = one_pass(pinned_guest("a", "0 0 0", 0.6), pinned_guest("b", "3", 0.3), host=host)
    assert led_to(plan) == {1} and all(move.domain == "a" for move in plan.moves)
    bound = one_pass(pinned_guest("a", "2 2", 0.9, fields={"cpuset": cpus("2-3")}), host=host)
    assert led_to(bound) == {3}


def test_what_floats_over_pcpus_without_a_tick_is_not_crowded_onto_the_few_others() -> None:
    host = replace(topology(8), nohz_full=cpus("1-7"))
    plan = one_pass(*(pinned_guest(f"g{n}", "0-7", 0.9) for n in range(6)), host=host)
    assert len(plan.moves) == len(led_to(plan)) == 6
