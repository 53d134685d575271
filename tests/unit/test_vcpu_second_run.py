# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A module has no memory: its second run on a steady host is unchanged all the same. And its reasons are true."""

from __future__ import annotations

import random
import re

import pytest
from examples import seeds
from kvmsched.config import VcpuPolicy
from kvmsched.model import VcpuPlan
from kvmsched.policy import vcpu
from kvmsched.policy.vcpu import proposal
from vcpu_worlds import FakeHost, Guest, topology

HOSTS = seeds(13)


def saturated(seed: int, backlog: bool = False) -> FakeHost:
    """Guests whose live pins pile up; *backlog*: so does their work while they wait, which hides what they want."""
    rng = random.Random(seed)
    pcpus = rng.choice((2, 3, 4, 6))
    left = rng.randint(pcpus + 1, 4 * pcpus)
    members = []
    while left > 0:
        size = min(left, rng.choice((1, 1, 1, 2, 4)))
        wants = [rng.choice((1.0, 1.0, round(rng.uniform(0.3, 0.95), 2), round(rng.uniform(0.03, 0.3), 2)))] * size
        pins = [frozenset({min(rng.randrange(pcpus), rng.randrange(pcpus))}) for _each in range(size)]
        members.append(Guest(f"g{len(members)}", wants, pins, backlog=backlog))
        left -= size
    return FakeHost(topology(pcpus), members)


def second_run(host: FakeHost) -> VcpuPlan:
    host.apply(vcpu.decide(host.window(), VcpuPolicy())[0])
    return vcpu.decide(host.window(), VcpuPolicy())[0]


def restless() -> list[int]:
    return [seed for seed in HOSTS if second_run(saturated(seed)).moves]


def test_the_second_run_on_a_steady_host_changes_nothing() -> None:
    assert restless() == []


def test_a_module_that_does_not_think_ahead_moves_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposal, "_LOOKS", 0)
    assert len(restless()) > len(HOSTS) // 10


def test_where_loads_were_hidden_few_move_again() -> None:
    """One window can't know what piles up behind a full pCPU: where the first run showed more, the second one acts."""
    assert sum(bool(second_run(saturated(seed, backlog=True)).moves) for seed in HOSTS) <= len(HOSTS) // 5


@pytest.mark.parametrize("wants", [(0.8, 0.2, 0.2, 0.2), (0.3, 0.9, 0.3, 0.3), (0.1, 0.5, 0.1, 0.5)])
def test_a_load_that_changed_is_balanced_at_once_however_lately_a_module_was_here(wants: tuple[float, ...]) -> None:
    guests = [Guest(f"g{number}", [0.4], [frozenset({0})]) for number in range(len(wants))]
    host = FakeHost(topology(2), guests)
    host.apply(vcpu.decide(host.window(), VcpuPolicy())[0])
    for guest, want in zip(guests, wants):
        guest.wants[0] = want
    host.apply(vcpu.decide(host.window(), VcpuPolicy())[0])
    on_first = sum(guest.wants[0] for guest in guests if guest.pins[0] == frozenset({0}))
    assert abs(sum(wants) - 2 * on_first) <= 0.3 + 1e-9


def test_what_is_said_of_the_worst_served_comes_true() -> None:
    told = 0
    for seed in range(300):
        host = saturated(seed)
        plan, _history = vcpu.decide(host.window(), VcpuPolicy())
        found = re.match(r"(\w+) vCPU (\d+), among the worst served, gets (\d+) -> (\d+) %", plan.note)
        if plan.trigger != "share" or not found:
            continue
        told += 1
        name, number, before, after = found[1], int(found[2]), int(found[3]), int(found[4])
        guest = next(g for g in host.guests if g.name == name)
        assert runs(host, guest, number) == pytest.approx(before, abs=2)
        host.apply(plan)
        assert runs(host, guest, number) == pytest.approx(after, abs=2)
        assert after > before
        if told == 10:
            break
    assert told > 5


def runs(host: FakeHost, guest: Guest, number: int) -> float:
    """What a vCPU runs in ten seconds, in percent of a pCPU."""
    first, last = host.window(10.0)
    before, after = (snapshot.domain(guest.uuid) for snapshot in (first, last))
    assert before is not None and after is not None
    return ((after.vcpus[number].time_ns or 0) - (before.vcpus[number].time_ns or 0)) / 1e8
