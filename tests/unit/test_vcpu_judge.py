# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The judge of the vCPU policy is honest: its fake kernel shares, waits and charges as it says, and it can fail."""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from pathlib import Path
from typing import Dict, List, Sequence

import pytest
from examples import examples, seeds
from hypothesis import given
from hypothesis import strategies as st
from kvmsched.model import VcpuFigures, VcpuPlan
from kvmsched.policy.vcpu import VcpuHistory
from kvmsched.policy.vcpu import served as policy_served
from vcpu_worlds import topology

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

from vcpu import hours, loads, play, rules, steady, worlds
from vcpu.host import FakeHost, Foreign, Guest, Prices
from vcpu.sharing import Claim, Mask, share, waits

PCPUS = 4
masks = st.sets(st.integers(0, PCPUS - 1), min_size=1).map(frozenset)
claims = st.lists(
    st.builds(Claim, st.integers(1, 20).map(lambda n: n / 20), st.sampled_from((0.5, 1.0, 2.0)), masks),
    min_size=1,
    max_size=7,
)
CASES = seeds(10)
fixed = examples(75)


def brute_force(asked: Sequence[Claim]) -> List[float]:
    """Weighted max-min by its definition: the set of pCPUs that limits its threads most comes first."""
    runs: Dict[int, float] = {}
    gone: Mask = frozenset()
    while len(runs) < len(asked):
        todo = {i: c.mask - gone for i, c in enumerate(asked) if i not in runs}
        tightest = None
        for size in range(1, PCPUS + 1):
            for chosen in itertools.combinations(range(PCPUS), size):
                inside = [i for i, mask in todo.items() if mask <= set(chosen)]
                if inside and sum(asked[i].want for i in inside) > size - len(gone.intersection(chosen)) + 1e-12:
                    level = _level([asked[i] for i in inside], size - len(gone.intersection(chosen)))
                    if tightest is None or level < tightest[0]:
                        tightest = level, inside, frozenset(chosen)
        if tightest is None:
            runs.update({i: asked[i].want for i in todo})
            break
        level, inside, full = tightest
        runs.update({i: min(asked[i].want, level * asked[i].weight) for i in inside})
        gone |= full
    return [runs[i] for i in range(len(asked))]


def _level(inside: Sequence[Claim], room: float) -> float:
    low, high = 0.0, 100.0
    for _turn in range(100):
        middle = (low + high) / 2
        taken = sum(min(c.want, middle * c.weight) for c in inside)
        low, high = (middle, high) if taken < room else (low, middle)
    return low


@fixed
@given(claims)
def test_shares_are_max_min_by_their_definition(asked: List[Claim]) -> None:
    assert share(asked).runs == pytest.approx(brute_force(asked), abs=1e-6)


@fixed
@given(claims)
def test_work_is_conserved(asked: List[Claim]) -> None:
    shared = share(asked)
    assert sum(shared.runs) == pytest.approx(sum(shared.busy.values()))
    assert all(busy <= 1 + 1e-6 for busy in shared.busy.values())
    for claim, run, wait in zip(asked, shared.runs, waits(asked, shared)):
        assert -1e-9 <= run <= claim.want + 1e-9
        assert 0 <= wait <= 1 - run + 1e-9
        # Nobody waits for work to be done while a pCPU that it may use has time.
        idle = any(shared.busy.get(pcpu, 0.0) < 1 - 1e-6 for pcpu in claim.mask)
        assert not idle or run == pytest.approx(claim.want)


@pytest.mark.parametrize(("sources", "used"), [(2, 0.5), (5, 0.85), (8, 0.6), (20, 0.8), (3, 0.9)])
def test_waits_come_near_to_the_exact_queue(sources: int, used: float) -> None:
    asked = [Claim(used / sources, 1.0, frozenset({0}))] * sources
    assert waits(asked, share(asked))[0] == pytest.approx(_machine_repair(sources, used), abs=0.07)


def _machine_repair(sources: int, used: float) -> float:
    """The exact share of time in the queue, for *sources* that each wait for what they asked before (M/M/1//N)."""
    low, high = 0.0, 100.0
    for _turn in range(200):
        rate = (low + high) / 2
        states = [1.0]
        for busy in range(sources):
            states.append(states[-1] * (sources - busy) * rate)
        low, high = (rate, high) if 1 - 1 / sum(states) < used else (low, rate)
    return (sources - used / low - used) / sources


def test_a_floating_vcpu_waits_less_than_a_pinned_one() -> None:
    pinned = [Claim(0.17, 1.0, frozenset({n % 4})) for n in range(20)]
    floating = [Claim(0.17, 1.0, frozenset(range(4)))] * 20
    assert sum(waits(floating, share(floating))) < 0.6 * sum(waits(pinned, share(pinned)))


def test_the_policy_tells_shares_as_the_judge_does() -> None:
    """On single pCPUs and on sets inside each other; where sets overlap it may be coarser."""
    asked = [
        Claim(1.0, 1.0, frozenset({0})),
        Claim(0.4, 2.0, frozenset({0})),
        Claim(1.0, 0.25, frozenset({1})),
        Claim(1.0, 1.0, frozenset({1})),
        Claim(0.2, 1.0, frozenset({2, 3})),
        Claim(1.0, 1.0, frozenset({2, 3})),
        Claim(1.0, 2.0, frozenset({2, 3})),
        Claim(0.9, 1.0, frozenset({2, 3})),
    ]
    theirs = policy_served.served([policy_served.Claim(*claim) for claim in asked], range(4))
    assert theirs == pytest.approx(share(asked).runs, abs=0.02)


# ---------------------------------------------------------------- the host


def rows_of(host: FakeHost, steps: int = 24) -> loads.Rows:
    return loads.steady([want for guest in host.guests for want in guest.wants], steps)


def test_an_untouched_host_moves_nothing() -> None:
    host = worlds.upgraded()
    before = [list(guest.pins) for guest in host.guests]
    score = play.play(host, rows_of(host), rules.Rule(), loads.FINE_S)
    assert [guest.pins for guest in host.guests] == before
    assert (score.moves, score.placed) == (0, 0)


def test_a_guest_has_one_weight_for_all_its_vcpus() -> None:
    one = frozenset({0})
    host = FakeHost(topology(1), [Guest("big", [1.0] * 4, [one] * 4), Guest("small", [1.0], [one])])
    assert host.run(1.0).ran == pytest.approx([0.125] * 4 + [0.5])
    host.groups = False
    assert host.run(1.0).ran == pytest.approx([0.2] * 5)


def test_what_floats_pays_for_changes_of_pcpu_and_a_pin_for_our_moves_only() -> None:
    def lost(pin: Mask, point: float) -> float:
        guests = [Guest(f"g{n}", [0.5], [pin if len(pin) > 1 else frozenset({n % 4})]) for n in range(6)]
        host = FakeHost(topology(4, llc=2), guests, prices=Prices(point))
        return sum(host.run(10.0).lost)

    everywhere = frozenset(range(4))
    assert lost(everywhere, 0.0) == 0
    assert 0 < lost(everywhere, 1.0) < lost(everywhere, 10.0)
    assert lost(frozenset({0}), 10.0) == 0
    host = FakeHost(topology(4, llc=2), [Guest("g", [1.0], [frozenset({0})])])
    host.repin({(host.guests[0].uuid, 0): frozenset({2})})
    assert sum(host.run(10.0).lost) == pytest.approx(30e-6)
    assert sum(host.run(10.0).lost) == 0


def test_remote_memory_and_busy_siblings_make_work_slower() -> None:
    away = worlds.away(1.3)
    alone = away.run(10.0)
    assert sum(alone.worked) == pytest.approx(sum(alone.ran) / 1.15, rel=0.01)
    siblings = FakeHost(topology(2, threads=2), [Guest(f"g{n}", [1.0], [frozenset({n})]) for n in range(2)])
    assert siblings.run(10.0).worked == pytest.approx([6.25, 6.25])


def test_isolated_pcpus_are_not_balanced_by_the_kernel() -> None:
    host = FakeHost(topology(4, isolated="2-3"), [Guest("g", [1.0, 1.0], [frozenset({2, 3})] * 2)])
    assert host.run(1.0).ran == pytest.approx([0.5, 0.5])


def test_foreign_load_stays_on_its_set_and_is_told_so() -> None:
    host = FakeHost(topology(4), [Guest("g", [1.0], [frozenset({3})])], [Foreign(frozenset({0, 1}), 0.8)])
    host.run(10.0)
    told = host.snapshot().host
    assert told.busy_ns == {0: 4_000_000_000, 1: 4_000_000_000, 2: 0, 3: 10_000_000_000}
    assert told.foreign_ns is not None
    assert [(set(part.pcpus), part.time_ns) for part in told.foreign_ns] == [({0, 1}, 8_000_000_000)]


# ---------------------------------------------------------------- the judge can fail


def nothing(*_arguments: object) -> tuple:
    return VcpuPlan(before=VcpuFigures(1, 0, 0, 0, 0), after=VcpuFigures(1, 0, 0, 0, 0)), VcpuHistory()


def test_a_policy_that_does_nothing_loses_where_pins_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules.vcpu, "decide", nothing)
    for world in worlds.pins_pay():
        # Where nothing moves, a tenth of the time shows it.
        if world.rows is None:
            world = replace(world, steps=world.steps // 10, settle=world.settle // 10)
        assert world.play(rules.Daemon()).worked == pytest.approx(world.play(rules.Rule()).worked)
    outcomes = [steady.outcome(case, rules.Daemon) for case in steady.cases(20)]
    excess = steady.Excess.of(steady.optima(20), outcomes)
    assert excess.served > 5
    assert excess.idle > 5


def test_pins_pay_and_the_defaults_find_it() -> None:
    for world in worlds.pins_pay():
        assert world.play(rules.Daemon()).worked >= 1.05 * world.play(rules.Rule()).worked, world.name


def test_no_pins_beat_the_frozen_optimum() -> None:
    for case, best in zip(steady.cases(len(CASES)), steady.optima(len(CASES))):
        assert best == pytest.approx(steady.best(case), abs=1e-3)
        for rule in (rules.Rule, lambda: rules.BusiestToFreest(30.0)):
            assert steady.outcome(case, rule).reached.served <= best.served + 1e-3


def test_draws_are_paired() -> None:
    setting = hours.Setting(hours.Shape(4), 2, True, 0.1, loads.FINE_S)
    setting.play({"a": rules.Rule, "b": rules.Rule}, [1, 2])
    assert [s.wanted for s in setting.scores["a"]] == [s.wanted for s in setting.scores["b"]]
    assert setting.mean("a", "unserved_pct") == setting.mean("b", "unserved_pct")


def test_traces_are_read(tmp_path: Path) -> None:
    (tmp_path / "vm1").write_text("10\n20\n100\n")
    (tmp_path / "vm2").write_text("0\n50\n")
    assert loads.read(tmp_path) == [[0.1, 0.2], [0.0, 0.5]]
    assert loads.interpolated([[0.0, 0.6]])[0][:3] == pytest.approx([0.0, 0.01, 0.02])


def test_among_hogs_the_one_with_more_weight_goes_where_there_is_room() -> None:
    """The vCPUs of a guest share its weight: one of four gains less by a pCPU with room than a small guest does."""
    world = worlds.fairness()[2]
    _first, second, host = world.parts(rules.Daemon())
    assert min(worlds.guest_shares(host, second).values()) >= worlds.BEST_SHARES[world.name] - 0.02
