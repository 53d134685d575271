# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""vCPUs that their guest takes for threads of one core share a core of the host, where that costs nothing."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from examples import seeds
from kvmsched.config import VcpuPolicy
from kvmsched.policy import vcpu
from kvmsched.policy.vcpu import VcpuHistory, proposal
from vcpu_worlds import FakeHost, Guest, cpus, topology

POLICY = VcpuPolicy()


def host(*wants: float, pins: str = "0213", threads: int = 2, **more: Any) -> FakeHost:
    """A guest on two cores of two threads: pCPUs 0 and 1, and 2 and 3."""
    guest = Guest("g", list(wants), [cpus(pin) for pin in pins], fields={"guest_threads": threads}, **more)
    return FakeHost(topology(4, threads=2), [guest])


def cores(made: FakeHost) -> list[int]:
    """The core of each vCPU."""
    return [min(pin) // 2 for pin in made.guests[0].pins]


def run(made: FakeHost, policy: VcpuPolicy = POLICY) -> int:
    plan, _history = vcpu.decide(made.window(), policy)
    made.apply(plan)
    return len(plan.moves)


def test_threads_of_a_guest_core_get_one_core_and_stay() -> None:
    made = host(0.5, 0.5, 0.5, 0.5)
    assert run(made) == 2
    assert cores(made) in ([0, 0, 1, 1], [1, 1, 0, 0])
    assert run(made) == 0


def test_the_daemon_does_it_by_pairs_once_its_hold_is_over() -> None:
    made, history, moves = host(0.5, 0.5, 0.5, 0.5), VcpuHistory(), []
    for _turn in range(6):
        plan, history = vcpu.decide(made.window(5.0), replace(POLICY, hold=3, max_moves=2), history)
        made.apply(plan)
        moves.append((len(plan.moves), plan.trigger))
    assert moves == [(0, ""), (0, ""), (2, "siblings"), (0, ""), (0, ""), (0, "")]


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(lambda: host(0.5, 0.5, 0.5, 0.5, threads=1), id="the guest knows no threads"),
        pytest.param(lambda: host(0.5, 0.5, 0.5, 0.5, pins="0123"), id="they share one already"),
        pytest.param(lambda: host(0.9, 0.9, 0.1, 0.1), id="two busy ones get a core each"),
    ],
)
def test_nothing_moves_where(made: Any) -> None:
    assert run(made()) == 0


def test_half_an_exchange_is_never_made() -> None:
    assert run(host(0.5, 0.5, 0.5, 0.5), replace(POLICY, max_moves=1)) == 0


def test_without_the_rule_they_stay_crosswise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposal, "together", lambda _world, where, *_more: list(where))
    assert run(host(0.5, 0.5, 0.5, 0.5)) == 0


@pytest.mark.parametrize("seed", seeds(10))
def test_it_serves_no_less_and_comes_to_rest(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random guests with threads: a second run is unchanged, and no less is served than without the rule."""
    rng = random.Random(seed)

    def build() -> FakeHost:
        rng.seed(seed)
        pcpus = rng.choice((4, 8))
        guests = []
        for number in range(rng.randint(1, 3)):
            size = rng.choice((2, 4))
            wants = [rng.choice((0.1, 0.3, 0.5, 1.0)) for _each in range(size)]
            pins = [cpus(str(rng.randrange(pcpus))) for _each in range(size)]
            guests.append(Guest(f"g{number}", wants, pins, fields={"guest_threads": 2}))
        return FakeHost(topology(pcpus, threads=2), guests)

    ours = build()
    first = run(ours)
    assert run(ours) == 0, first
    monkeypatch.setattr(proposal, "together", lambda _world, where, *_more: list(where))
    plain = build()
    run(plain)
    assert served(ours) >= served(plain) - 0.02


def served(made: FakeHost) -> float:
    """What a core gets done of what its threads want: two busy ones do 1.25 times the work of one."""
    wants: dict[int, list[float]] = {}
    for guest in made.guests:
        for want, pin in zip(guest.wants, guest.pins):
            wants.setdefault(min(pin), []).append(want)
    total = {pcpu: sum(of) for pcpu, of in wants.items()}
    work = 0.0
    for pcpu, want in total.items():
        pressure = want + 0.6 * total.get(pcpu ^ 1, 0.0)
        work += want / max(1.0, pressure)
    return work
