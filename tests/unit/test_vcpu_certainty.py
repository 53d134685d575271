# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Noise moves nothing: a plan is worth its moves however the loads are read."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from kvmsched.policy import vcpu
from kvmsched.policy.vcpu import Safeties, VcpuHistory
from vcpu_worlds import DAEMON, FakeHost, Guest, cpus, daemon_passes, guests, module_passes, topology


class NoisyHost(FakeHost):
    """A fake host whose every window is a little different."""

    def __init__(self, *args: Any, seed: int = 1, spread: float = 0.04) -> None:
        super().__init__(*args)
        self.rng, self.spread = random.Random(seed), spread
        self.base = [list(guest.wants) for guest in self.guests]

    def run(self, seconds: float) -> None:
        for guest, wants in zip(self.guests, self.base):
            guest.wants = [min(1.0, max(0.0, w + self.rng.uniform(-self.spread, self.spread))) for w in wants]
        self.foreign = {self.rng.choice(sorted(self.topology.online)): self.rng.uniform(0.05, 0.30)}
        super().run(seconds)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("want", "backlog"), [(0.25, False), (0.4, False), (0.6, False), (0.6, True), (1.0, True)])
def test_four_equal_guests_under_noise_move_once(want: float, backlog: bool, seed: int) -> None:
    host = NoisyHost(topology(2), guests(4, want, "0", backlog=backlog), seed=seed)
    assert module_passes(host, 6) == [2, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("want", [0.25, 0.4])
def test_servers_near_saturation_under_noise_come_to_rest(want: float) -> None:
    """What they want is hidden while work piles up, so it may take some passes more; but few wander."""
    made = [
        module_passes(NoisyHost(topology(2), guests(4, want, "0", backlog=True), seed=seed), 8) for seed in range(10)
    ]
    assert all(row[0] >= 1 for row in made), made
    assert sum(sum(row[1:]) for row in made) <= 20, made


@pytest.mark.parametrize("pin", ["0", "0-1"])
@pytest.mark.parametrize("latency", [0.2, 0.7])
def test_idle_guests_that_wait_on_a_saturated_host_stay(pin: str, latency: float) -> None:
    """At each wake-up they wait behind the busy ones: that is no load that would have to be balanced."""
    idle = [Guest(f"i{n}", [0.03], [cpus(pin)], latency=latency) for n in range(3)]
    host = NoisyHost(topology(2), [*guests(1, 1.0, "0"), *guests(1, 1.0, "1", "h"), *idle], spread=0.01)
    assert module_passes(host, 4) == [0, 0, 0, 0]


@pytest.mark.parametrize("seed", range(5))
def test_a_heavy_and_a_light_pair_under_noise(seed: int) -> None:
    host = NoisyHost(topology(2), [*guests(2, 0.9, "0-1", "h"), *guests(2, 0.25, "0-1", "l")], seed=seed)
    assert module_passes(host, 4) == [4, 0, 0, 0]
    assert [name[0] for name in host.on(0)] == [name[0] for name in host.on(1)] == ["h", "l"]


def test_sixty_daemon_passes_on_a_steady_noisy_load() -> None:
    host = NoisyHost(topology(2), guests(4, 0.5, "0"), seed=3)
    made, _history = daemon_passes(host, 64)
    assert sum(made[:4]) == 2
    assert sum(made[4:]) == 0


@pytest.mark.parametrize(("window_s", "when"), [(5.0, 2), (300.0, 0)])
def test_what_a_plan_serves_until_the_next_pass_says_whether_it_is_held_up(window_s: float, when: int) -> None:
    """Three points of a pCPU are little in five seconds, and much in five minutes."""
    host = FakeHost(topology(2), [*guests(1, 0.6, "0"), *guests(1, 0.43, "0", "b"), *guests(1, 0.3, "1", "c")])
    history, made = VcpuHistory(), []
    for _turn in range(4):
        plan, history = vcpu.decide(host.window(window_s), replace(DAEMON, hold=3), history)
        host.apply(plan)
        made.append(len(plan.moves))
    assert [turn for turn, moves in enumerate(made) if moves] == [when], made


def test_passing_foreign_load_is_no_reason_and_lasting_is() -> None:
    def host(foreign: float) -> FakeHost:
        return FakeHost(topology(2), [*guests(2, 0.15, "0"), *guests(2, 0.15, "1", "h")], {0: foreign})

    assert module_passes(host(0.3), 2) == [0, 0]
    assert module_passes(host(0.65), 3) == [1, 0, 0], "too much to be the pass itself"
    assert daemon_passes(host(0.3), 8)[0] == [0, 0, 1, 0, 0, 0, 0, 0], "seen again and again it counts in full"


def test_without_the_doubt_waiting_guests_wander() -> None:
    """One window can't tell a server whose work piles up from a hog: where work might be lost, nothing moves."""

    def run(**off: bool) -> list[int]:
        host = FakeHost(topology(2), [*guests(2, 0.6, "0", backlog=True), *guests(1, 0.6, "1", "h", backlog=True)])
        return module_passes(host, 4, safeties=Safeties(**off))

    assert run() == [0, 0, 0, 0]
    assert run(doubt=False) == [1, 1, 1, 1]


def test_without_the_passing_foreign_rule_noise_moves_guests() -> None:
    def run(**off: bool) -> int:
        host = FakeHost(topology(2), [*guests(3, 0.15, "0"), *guests(3, 0.15, "1", "h")], {0: 0.3})
        return module_passes(host, 1, safeties=Safeties(**off))[0]

    assert run() == 0
    assert run(passing=False) > 0
