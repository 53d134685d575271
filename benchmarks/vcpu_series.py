# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Load over time, seeded: a fake host whose guests' demand changes every period, and the rules that balance it.

The series resemble what is published of virtual machines in data centres: a mean of about 11 % of a
pCPU with a heavy tail, a daily wave, noise that lasts some periods, steps, and short spikes.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Callable, Optional

from kvmsched.config import VcpuPolicy
from kvmsched.model import Snapshot
from kvmsched.policy import vcpu
from kvmsched.policy.vcpu_history import Smoothed
from kvmsched.policy.vcpu_load import measure
from kvmsched.policy.vcpu_placement import Problem, load_bound
from kvmsched.policy.vcpu_planners import State, _busiest_to_freest
from vcpu_worlds import FakeHost, Guest, topology

PERIOD_S = 300.0
DAY = 288

# Smoothing of all rules that smooth: weight .1 a period, as chosen on other data (see docs/vcpu.md).
HALF_LIFE_S = PERIOD_S * math.log(0.5) / math.log(0.9)

Key = tuple[str, int]


def series(rng: random.Random, vcpus: int, periods: int) -> list[list[float]]:
    """Demand by vCPU and period."""
    rows = []
    for _turn in range(vcpus):
        level, noise, spike = min(0.9, rng.lognormvariate(-2.8, 1.0)), 0.0, 0
        wave, phase = rng.uniform(0.0, 0.6), rng.gauss(0.0, 0.5)
        row = []
        for period in range(periods):
            if rng.random() < 0.004:
                level = min(0.9, rng.lognormvariate(-2.8, 1.0))
            if rng.random() < 0.003:
                spike = rng.randint(1, 6)
            noise = 0.8 * noise + rng.gauss(0.0, 0.15)
            day = 1 + wave * math.sin(2 * math.pi * period / DAY + phase)
            row.append(1.0 if spike else min(1.0, max(0.003, level * day * math.exp(noise))))
            spike = max(0, spike - 1)
        rows.append(row)
    return rows


@dataclass
class Score:
    """What a rule cost and what it left undone."""

    wanted: float = 0.0
    unserved: float = 0.0
    moves: int = 0
    passes: int = 0
    acting: int = 0
    returned: int = 0
    trail: dict[Key, tuple[frozenset[int], int]] = field(default_factory=dict)

    def count(self, moves: dict[Key, tuple[frozenset[int], frozenset[int]]], period: int) -> None:
        self.passes += 1
        self.acting += bool(moves)
        for key, (before, after) in moves.items():
            self.moves += 1
            last = self.trail.get(key)
            # Ping-pong: back to where it came from within three passes.
            self.returned += last is not None and last[0] == after and period - last[1] <= 3
            self.trail[key] = (before, period)


class Rule:
    """Decides from a window of snapshots which vCPU goes where."""

    def __init__(self) -> None:
        self.loads: dict[Key, Smoothed] = {}

    def smoothed(self, window: list[Snapshot]) -> dict[Key, float]:
        """Mean and one standard deviation of each vCPU's demand, as the daemon keeps them."""
        for key, demand in measure(window, lambda _domain, v: v.pin).demand.items():
            known = self.loads.get(key)
            self.loads[key] = known.then(demand.low, 0.1) if known else Smoothed(demand.low)
        return {key: load.high for key, load in self.loads.items()}

    def moves(self, host: FakeHost, window: list[Snapshot]) -> dict[Key, frozenset[int]]:
        return {}


class Kvmsched(Rule):
    """The policy itself; with a history as in the daemon, or without as in the module."""

    def __init__(self, policy: VcpuPolicy, remembers: bool) -> None:
        super().__init__()
        self.policy, self.history = policy, vcpu.VcpuHistory() if remembers else None

    def moves(self, host: FakeHost, window: list[Snapshot]) -> dict[Key, frozenset[int]]:
        plan, history = vcpu.decide(window, self.policy, self.history)
        self.history = history if self.history is not None else None
        return {(move.uuid, move.id): move.after for move in plan.moves}


class BusiestToFreest(Rule):
    """The strong rival: again and again the vCPU nearest to half the gap, with the same smoothing, trigger at 1.25."""

    def moves(self, host: FakeHost, window: list[Snapshot]) -> dict[Key, frozenset[int]]:
        problem, keys, pcpus = _problem(host, self.smoothed(window))
        totals = problem.on_bins(problem.now)
        if max(totals) <= 1.25 * sum(totals) / len(totals):
            return {}
        state = State(problem, [1.05 * load_bound(problem)] * len(pcpus), 0.0)
        _busiest_to_freest(state)
        return {k: frozenset({pcpus[b]}) for k, b, now in zip(keys, state.where, problem.now) if b != now}


class SwapAll(Rule):
    """The published seed program: all vCPUs of the busiest pCPU change places with all of the freest, above 50 %."""

    def moves(self, host: FakeHost, window: list[Snapshot]) -> dict[Key, frozenset[int]]:
        loads = {key: d.run for key, d in measure(window, lambda _domain, v: v.pin).demand.items()}
        problem, keys, pcpus = _problem(host, loads)
        totals = problem.on_bins(problem.now)
        busiest, freest = totals.index(max(totals)), totals.index(min(totals))
        if totals[busiest] < 0.5 or busiest == freest:
            return {}
        other = {busiest: freest, freest: busiest}
        return {k: frozenset({pcpus[other[now]]}) for k, now in zip(keys, problem.now) if now in other}


class FromScratch(Rule):
    """LPT: every vCPU, largest first, onto the emptiest pCPU, whatever it was on; the same smoothing and trigger."""

    def moves(self, host: FakeHost, window: list[Snapshot]) -> dict[Key, frozenset[int]]:
        problem, keys, pcpus = _problem(host, self.smoothed(window))
        totals = problem.on_bins(problem.now)
        if max(totals) <= 1.25 * sum(totals) / len(totals):
            return {}
        level = [0.0] * len(pcpus)
        result = {}
        for item in sorted(range(len(keys)), key=lambda i: -problem.load[i]):
            target = level.index(min(level))
            level[target] += problem.load[item]
            if target != problem.now[item]:
                result[keys[item]] = frozenset({pcpus[target]})
        return result


def _problem(host: FakeHost, loads: dict[Key, float]) -> tuple[Problem, list[Key], list[int]]:
    pcpus = sorted(host.topology.online)
    keys = [(guest.uuid, n) for guest in host.guests for n in range(len(guest.wants)) if (guest.uuid, n) in loads]
    place = {(guest.uuid, n): min(pin) for guest in host.guests for n, pin in enumerate(guest.pins)}
    size, count = len(pcpus), len(keys)
    problem = Problem(
        capacity=[1] * size,
        fixed=[0.0] * size,
        mates=[()] * size,
        kappa=[0.0] * size,
        load=[loads[key] for key in keys],
        now=[pcpus.index(place[key]) for key in keys],
        owner=list(range(count)),
        reach=[0] * count,
        classes=[tuple(range(size))],
        held=[False] * count,
    )
    return problem, keys, pcpus


def play(
    rows: list[list[float]],
    pcpus: int,
    rule: Rule,
    pin: Optional[Callable[[int], frozenset[int]]] = None,
    **shape: int,
) -> Score:
    """Run *rule* over *rows*: it decides on each period, and is judged by the next one. Default: pinned in a row."""
    start = pin or (lambda v: frozenset({v % pcpus}))
    host = FakeHost(topology(pcpus, **shape), [Guest(f"v{n}", [row[0]], [start(n)]) for n, row in enumerate(rows)])
    score = Score()
    for period in range(len(rows[0]) - 1):
        _set_wants(host, rows, period)
        window = host.window(PERIOD_S)
        _carry_out(host, rule.moves(host, window), score, period)
        _set_wants(host, rows, period + 1)
        _judge(host, score)
    return score


def _set_wants(host: FakeHost, rows: list[list[float]], period: int) -> None:
    for guest, row in zip(host.guests, rows):
        guest.wants = [row[period]]


def _carry_out(host: FakeHost, moves: dict[Key, frozenset[int]], score: Score, period: int) -> None:
    made = {}
    for guest in host.guests:
        after = moves.get((guest.uuid, 0))
        if after is not None:
            made[guest.uuid, 0] = (guest.pins[0], after)
            guest.pins = [after]
    score.count(made, period)


def _judge(host: FakeHost, score: Score) -> None:
    score.wanted += sum(guest.wants[0] for guest in host.guests)
    for threads in host._queues().values():
        score.unserved += max(0.0, sum(want for _guest, _number, want in threads) - 1.0)
