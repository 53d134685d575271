# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When decide() acts and when it waits: gates, noise, history, the hands of others; each safety is seen to matter."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any, Optional

import pytest
from kvmsched.config import Selection, VcpuPolicy
from kvmsched.model import PinRecord, Record, Thread
from kvmsched.policy import vcpu
from kvmsched.policy.vcpu import Safeties, VcpuHistory
from kvmsched.policy.vcpu.demand import Demand
from kvmsched.policy.vcpu.history import Smoothed
from kvmsched.policy.vcpu.hold import CELL_COOLDOWN_S
from kvmsched.policy.vcpu.planners import more_work, rebalance
from kvmsched.policy.vcpu.problem import Problem
from kvmsched.policy.vcpu.smoothing import credible
from vcpu_worlds import HOST_UUID, FakeHost, Guest, cpus, guests, topology

POLICY = VcpuPolicy()
ALL = Safeties()
DAEMON = VcpuPolicy(hold=2, half_life_s=30.0, cooldown_s=30.0, max_moves=2)


def passes(
    host: FakeHost, count: int, policy: VcpuPolicy = POLICY, window_s: float = 2.0, safeties: Safeties = ALL
) -> list[int]:
    """The moves of *count* module passes, each carried out."""
    made = []
    for _turn in range(count):
        plan, _history = vcpu.decide(host.window(window_s), policy, safeties=safeties)
        host.apply(plan)
        made.append(len(plan.moves))
    return made


def daemon(
    host: FakeHost, count: int, policy: VcpuPolicy = DAEMON, history: Optional[VcpuHistory] = None
) -> tuple[list[int], VcpuHistory]:
    """The moves of *count* daemon passes, 5 s apart, and the history after them."""
    made = []
    history = history or VcpuHistory()
    for _turn in range(count):
        plan, history = vcpu.decide(host.window(5.0), policy, history)
        host.apply(plan)
        made.append(len(plan.moves))
    return made, history


# ---------------------------------------------------------------- what is asked for


def test_an_unknown_pcpu_is_one_clear_line() -> None:
    host = FakeHost(topology(2), guests(1, 0.5, "0"))
    with pytest.raises(ValueError, match=r"^pcpus: got 0-9, allowed: online pCPUs 0-1$"):
        vcpu.decide(host.window(), replace(POLICY, pcpus=cpus("0-9")))


def test_no_snapshot_is_refused() -> None:
    with pytest.raises(ValueError, match="snapshots"):
        vcpu.decide([], POLICY)


def test_one_snapshot_moves_nothing_and_says_why() -> None:
    host = FakeHost(topology(2), guests(2, 0.9, "0"))
    host.guests[0].threads = (Thread("emulator", 0, cpus("0")),)
    plan, history = vcpu.decide([host.snapshot()], replace(POLICY, emulator="spread"))
    assert plan.moves == ()
    assert {skip.code for skip in plan.skips} == {"unknown-load"}
    assert "one snapshot" in plan.note
    assert history == VcpuHistory()


def test_a_hot_plugged_vcpu_stays_until_its_load_is_known() -> None:
    guest = Guest("g", [0.9, 0.9, 0.9], [cpus("0")] * 3)
    host = FakeHost(topology(2), [guest])
    first, last = host.window()
    first = replace(first, domains=(replace(first.domains[0], vcpus=first.domains[0].vcpus[:2]),))
    plan, _history = vcpu.decide([first, last], POLICY)
    assert [move.id for move in plan.moves] == [0] or [move.id for move in plan.moves] == [1]
    assert [(s.code, s.reason) for s in plan.skips] == [
        ("unknown-load", "no load is known of vCPU 2: new, restarted, or its counter went back")
    ]


def test_a_pcpu_that_went_offline_meanwhile_is_left() -> None:
    host = FakeHost(topology(3), guests(2, 0.5, "2"))
    first = host.snapshot()
    host.run(2.0)
    host.topology = topology(3, offline="2")
    plan, _history = vcpu.decide([first, host.snapshot()], POLICY)
    assert sorted(tuple(move.after) for move in plan.moves) == [(0,), (1,)]


def test_reasons_carry_their_numbers() -> None:
    host = FakeHost(topology(2), guests(2, 0.8, "0"))
    plan, _history = vcpu.decide(host.window(), POLICY)
    assert [m.reason for m in plan.moves] == ["load 80 % of a pCPU; pCPU 0 at 160 % -> 80 %, pCPU 1 at 0 % -> 80 %"]
    assert plan.moves_bound == 1
    assert plan.target_pct == 0 or plan.target_pct <= plan.after.max_pct


def test_two_busy_vcpus_share_one_of_512_pcpus() -> None:
    """On a large host their share of the imbalance is small; that they wait is reason enough."""
    host = FakeHost(topology(512), guests(2, 1.0, "400"))
    plan, _history = vcpu.decide(host.window(), POLICY)
    assert len(plan.moves) == 1
    assert plan.trigger == "work"


# ---------------------------------------------------------------- noise moves nothing


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
    assert passes(host, 6) == [2, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("want", [0.25, 0.4])
def test_servers_near_saturation_under_noise_come_to_rest(want: float) -> None:
    """What they want is hidden while work piles up, so it may take some passes more; but few wander."""
    made = [passes(NoisyHost(topology(2), guests(4, want, "0", backlog=True), seed=seed), 8) for seed in range(10)]
    assert all(row[0] >= 1 for row in made), made
    assert sum(sum(row[1:]) for row in made) <= 20, made


@pytest.mark.parametrize("pin", ["0", "0-1"])
@pytest.mark.parametrize("latency", [0.2, 0.7])
def test_idle_guests_that_wait_on_a_saturated_host_stay(pin: str, latency: float) -> None:
    """At each wake-up they wait behind the busy ones: that is no load that would have to be balanced."""
    idle = [Guest(f"i{n}", [0.03], [cpus(pin)], latency=latency) for n in range(3)]
    host = NoisyHost(topology(2), [*guests(1, 1.0, "0"), *guests(1, 1.0, "1", "h"), *idle], spread=0.01)
    assert passes(host, 4) == [0, 0, 0, 0]


@pytest.mark.parametrize("seed", range(5))
def test_a_heavy_and_a_light_pair_under_noise(seed: int) -> None:
    host = NoisyHost(topology(2), [*guests(2, 0.9, "0-1", "h"), *guests(2, 0.25, "0-1", "l")], seed=seed)
    assert passes(host, 4) == [4, 0, 0, 0]
    assert [name[0] for name in host.on(0)] == [name[0] for name in host.on(1)] == ["h", "l"]


def test_sixty_daemon_passes_on_a_steady_noisy_load() -> None:
    host = NoisyHost(topology(2), guests(4, 0.5, "0"), seed=3)
    made, _history = daemon(host, 64)
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

    assert passes(host(0.3), 2) == [0, 0]
    assert passes(host(0.65), 3) == [1, 0, 0], "too much to be the pass itself"
    assert daemon(host(0.3), 8)[0] == [0, 0, 1, 0, 0, 0, 0, 0], "seen again and again it counts in full"


# ---------------------------------------------------------------- the daemon's patience


def test_hold_waits_for_passes_in_a_row() -> None:
    host = FakeHost(topology(4), guests(2, 0.4, "0"))
    made, _history = daemon(host, 4, replace(DAEMON, hold=3))
    assert made == [0, 0, 1, 0]


def test_a_hold_that_is_interrupted_starts_again() -> None:
    host = FakeHost(topology(4), guests(2, 0.4, "0"))
    policy = replace(DAEMON, hold=3, half_life_s=0.0)
    _made, history = daemon(host, 2, policy)
    assert history.held == 2
    for guest in host.guests:
        guest.wants = [0.01]
    _made, history = daemon(host, 1, policy, history)
    assert history.held == 0


def test_waiting_vcpus_are_helped_at_once() -> None:
    """A new and long wait that another pCPU would end ignores hold, smoothing and budget."""
    host = FakeHost(topology(8), guests(6, 0.05, "0"))
    _made, history = daemon(host, 2, replace(DAEMON, hold=5, max_moves=1))
    for guest in host.guests:
        guest.wants = [1.0]
    made, _history = daemon(host, 1, replace(DAEMON, hold=5, max_moves=1), history)
    assert made == [5]


def test_a_wait_that_comes_again_and_again_is_not_hurried() -> None:
    host = FakeHost(topology(8), guests(6, 1.0, "0"))
    made, _history = daemon(host, 3, replace(DAEMON, hold=1, max_moves=1, cooldown_s=0.0))
    assert made == [1, 1, 1]


def test_the_budget_of_a_pass() -> None:
    host = FakeHost(topology(8), guests(8, 0.12, "0"))
    made, _history = daemon(host, 6, replace(DAEMON, hold=1, max_moves=2, cooldown_s=0.0))
    assert max(made) == 2
    assert sum(made) >= 6


def test_smoothing_sees_through_a_spike() -> None:
    host = FakeHost(topology(2), [*guests(1, 0.3, "0", "a"), *guests(1, 0.3, "0", "b"), *guests(2, 0.3, "1", "c")])
    policy = replace(DAEMON, hold=1, half_life_s=300.0)
    _made, history = daemon(host, 5, policy)
    host.guests[0].wants = [0.65]
    made, history = daemon(host, 1, policy, history)
    assert made == [0]
    assert vcpu.decide(host.window(), POLICY)[0].before.imbalance_pct > 15


def test_a_moved_vcpu_rests_for_its_cooldown() -> None:
    host = FakeHost(topology(2), [*guests(1, 0.5, "0", "a"), *guests(1, 0.5, "0", "b")])
    policy = VcpuPolicy(cooldown_s=60.0)
    made, history = daemon(host, 1, policy)
    assert made == [1]
    moved = next(g for g in host.guests if g.pins == [cpus("1")])
    stayed = next(g for g in host.guests if g is not moved)
    stayed.pins = [cpus("1")]
    host.records.pop(stayed.uuid, None)
    plan, _history = vcpu.decide(host.window(5.0), policy, history)
    assert [move.domain for move in plan.moves] == [stayed.name]
    # Without a history, the record on the domain remembers.
    plan, _history = vcpu.decide(host.window(5.0), policy)
    assert [move.domain for move in plan.moves] == [stayed.name]


def test_a_move_that_did_not_come_about_is_forgotten() -> None:
    host = FakeHost(topology(2), guests(2, 0.5, "0"))
    _plan, history = vcpu.decide(host.window(), VcpuPolicy(cooldown_s=60.0), VcpuHistory())
    assert history.moves
    plan, _history = vcpu.decide(host.window(), VcpuPolicy(cooldown_s=60.0), history)
    assert len(plan.moves) == 1


def test_the_seeds_gate_needs_a_dramatic_change_and_a_history() -> None:
    policy = VcpuPolicy(avg_change_pct=25.0)
    host = FakeHost(topology(4), [*guests(2, 0.3, "0"), *guests(2, 0.3, "1", "h")])
    made, history = daemon(host, 3, policy)
    assert made == [2, 0, 0], "the first pass is not blocked"
    assert history.settled_average == pytest.approx(0.3, abs=0.02)
    for guest in host.guests:
        guest.pins = [cpus("0")] if guest.name.startswith("g") else guest.pins
    plan, again = vcpu.decide(host.window(5.0), policy, history)
    assert plan.moves == ()
    assert "a change of less than" in plan.note
    for guest in host.guests:
        guest.wants = [0.45]
    plan, _history = vcpu.decide(host.window(5.0), policy, again)
    assert plan.moves


def test_a_history_of_before_the_last_boot_is_dropped() -> None:
    host = FakeHost(topology(2), guests(2, 0.5, "0"))
    old = VcpuHistory(number=7, stamp_s=1e9, held=3)
    _plan, history = vcpu.decide(host.window(), POLICY, old)
    assert history.number == 1


def test_a_demand_hidden_by_contention_is_remembered() -> None:
    host = FakeHost(topology(2), [*guests(1, 0.6, "0", "a", backlog=True), *guests(1, 0.6, "1", "b", backlog=True)])
    _made, history = daemon(host, 3)
    for guest in host.guests:
        guest.pins = [cpus("0")]
    _plan, history = vcpu.decide(host.window(5.0), DAEMON, history)
    assert history.loads[f"{host.guests[0].uuid}/1/0"].mean == pytest.approx(0.6, abs=0.02)


def crowded_cell() -> FakeHost:
    """Two cells of two pCPUs: four busy domains in the first one."""
    return FakeHost(topology(4, cells=2), [*guests(2, 0.9, "0", "a"), *guests(2, 0.9, "1", "b")])


def test_a_domain_that_changed_its_cell_stays_for_a_while() -> None:
    host = crowded_cell()
    made, history = daemon(host, 1, VcpuPolicy())
    assert made == [2]
    moved = [g for g in host.guests if g.pins[0] & cpus("2-3")]
    # Now the second cell is the crowded one, by guests that may not leave it.
    host.guests = [*moved, *guests(4, 0.9, "2", "late")]
    for guest in host.guests[2:]:
        guest.fields["busy"] = "backup"
    first = host.snapshot()
    host.run(5.0)
    plan, _history = vcpu.decide([first, host.snapshot()], POLICY, history)
    assert all(move.after <= cpus("2-3") for move in plan.moves)
    host.run(CELL_COOLDOWN_S)
    host.records.clear()
    plan, _history = vcpu.decide(host.window(5.0), POLICY)
    assert any(move.after <= cpus("0-1") for move in plan.moves)


def test_placing_what_floats_sends_nobody_to_another_cell() -> None:
    """A change of cell has to pass the threshold like any other move, whatever is placed in the same pass."""
    host = FakeHost(topology(4, cells=2), [*guests(2, 0.45, "0", "a"), *guests(2, 0.45, "1", "b")])
    host.guests.append(Guest("float", [0.1], [cpus("0-3")]))
    plan, _history = vcpu.decide(host.window(), replace(POLICY, threshold_pct=100.0))
    assert [move.domain for move in plan.moves] == ["float"]


def test_far_cells_cost_more() -> None:
    near, far = crowded_cell(), crowded_cell()
    far.topology = topology(4, cells=2, distance=255)
    assert len(vcpu.decide(near.window(), POLICY)[0].moves) == 2
    assert vcpu.decide(far.window(), POLICY)[0].moves == ()


# ---------------------------------------------------------------- the hands of others


def with_record(host: FakeHost, guest: Guest, **fields: Any) -> None:
    values: dict[str, Any] = {"thread": "vcpu", "id": 0, "original": cpus("0-1"), "previous": cpus("0-1")}
    values.update({"intended": cpus("0"), "when_s": int(host.snapshot().wall_s) - 5, **fields})
    host.records[guest.uuid] = Record(HOST_UUID, 1, pins=(PinRecord(**values),))


def test_a_pin_that_a_person_set_is_adopted_and_left_alone_for_its_grace() -> None:
    host = FakeHost(topology(3), guests(2, 0.9, "2"))
    for guest in host.guests:
        with_record(host, guest)
    plan, _history = vcpu.decide(host.window(), POLICY)
    assert plan.moves == ()
    assert {skip.code for skip in plan.skips} == {"human"}
    adopted = plan.adoptions[0].pins[0]
    assert adopted.original == adopted.previous == adopted.intended == cpus("2")
    for guest in host.guests:
        host.records[guest.uuid] = Record(HOST_UUID, 1, pins=(adopted,))
    assert {s.code for s in vcpu.decide(host.window(), POLICY)[0].skips} == {"human"}
    host.run(POLICY.grace_s)
    assert len(vcpu.decide(host.window(), POLICY)[0].moves) == 1


def test_the_record_of_another_host_binds_nobody() -> None:
    host = FakeHost(topology(3), guests(2, 0.9, "2"))
    for guest in host.guests:
        with_record(host, guest)
        host.records[guest.uuid] = replace(host.records[guest.uuid], host_uuid="another")
    plan, _history = vcpu.decide(host.window(), POLICY)
    assert len(plan.moves) == 1


def test_what_another_host_pinned_belongs_to_its_own_set_here() -> None:
    host = FakeHost(topology(3), guests(2, 0.9, "2"))
    there = PinRecord("vcpu", 0, cpus("7"), cpus("7"), cpus("2"), 1)
    for guest in host.guests:
        host.records[guest.uuid] = Record("another", 1, pins=(there,))
    plan, _history = vcpu.decide(host.window(), POLICY)
    assert [part.original for adoption in plan.adoptions for part in adoption.pins] == [cpus("0-2")] * 2


def test_a_foreign_hand_is_skipped_once_and_backed_off_from_twice() -> None:
    host = FakeHost(topology(2), guests(3, 0.5, "0"))
    host.guests[0].affinity = cpus("1")
    plan, history = vcpu.decide(host.window(), POLICY, VcpuHistory())
    assert [(s.domain, s.code) for s in plan.skips] == [("g0", "foreign-pin")]
    assert plan.warnings == ()
    plan, history = vcpu.decide(host.window(), POLICY, history)
    told = (
        "g0: its affinity was changed past libvirt in 2 passes in a row (numad, cset, taskset?), left alone for 600 s"
    )
    assert plan.warnings == (f"{told} (grace)",)
    host.guests[0].affinity = None
    plan, history = vcpu.decide(host.window(), POLICY, history)
    assert [(s.domain, s.code) for s in plan.skips] == [("g0", "foreign-pin")]
    host.run(POLICY.grace_s)
    assert vcpu.decide(host.window(), POLICY, history)[0].skips == ()


def test_a_pcpu_that_goes_offline_is_no_foreign_hand() -> None:
    """The kernel itself put elsewhere what was pinned there: it gets a place, and nobody is backed off from."""
    host = FakeHost(topology(4), [*guests(1, 0.5, "3"), *guests(1, 0.5, "2", "h")])
    made, history = daemon(host, 3)
    assert made == [0, 0, 0]
    host.topology = topology(4, offline="3")
    made, history = daemon(host, 3, history=history)
    assert sum(made) == 1 and len(host.guests[0].pins[0]) == 1
    assert not history.mismatches and not history.backed_off


def test_a_float_that_libvirt_keeps_off_isolated_pcpus_is_no_foreign_hand() -> None:
    host = FakeHost(topology(4, isolated="3"), guests(1, 0.5, "0-3"))
    host.guests[0].affinity = cpus("0-2")
    plan, _history = vcpu.decide(host.window(), POLICY)
    assert plan.skips == ()
    assert len(plan.moves) == 1


def test_unmatched_patterns_are_listed() -> None:
    host = FakeHost(topology(2), guests(1, 0.5, "0"))
    plan, _history = vcpu.decide(host.window(), replace(POLICY, selection=Selection(("nobody*",))))
    assert plan.unmatched == ("nobody*",)


# ---------------------------------------------------------------- each safety is needed


def test_without_the_allowed_set_a_pin_leaves_it() -> None:
    def run(**off: bool) -> set[int]:
        host = FakeHost(topology(4), guests(4, 0.4, "0"))
        for guest in host.guests:
            guest.fields["cpuset"] = cpus("0-1")
        plan, _history = vcpu.decide(host.window(), POLICY, safeties=Safeties(**off))
        return {pcpu for move in plan.moves for pcpu in move.after}

    assert run() <= {0, 1}
    assert not run(allowed=False) <= {0, 1}


def test_without_the_doubt_waiting_guests_wander() -> None:
    """One window can't tell a server whose work piles up from a hog: where work might be lost, nothing moves."""

    def run(**off: bool) -> list[int]:
        host = FakeHost(topology(2), [*guests(2, 0.6, "0", backlog=True), *guests(1, 0.6, "1", "h", backlog=True)])
        return passes(host, 4, safeties=Safeties(**off))

    assert run() == [0, 0, 0, 0]
    assert run(doubt=False) == [1, 1, 1, 1]


def test_without_the_passing_foreign_rule_noise_moves_guests() -> None:
    def run(**off: bool) -> int:
        host = FakeHost(topology(2), [*guests(3, 0.15, "0"), *guests(3, 0.15, "1", "h")], {0: 0.3})
        return passes(host, 1, safeties=Safeties(**off))[0]

    assert run() == 0
    assert run(passing=False) > 0


def test_without_the_guard_a_vcpu_is_sent_straight_back() -> None:
    def run(**off: bool) -> bool:
        host = FakeHost(topology(2), [*guests(2, 0.5, "0")])
        _made, history = daemon(host, 1, POLICY)
        moved = next(g for g in host.guests if g.pins == [cpus("1")])
        # Now a third guest fills the pCPU that it went to, and the one that it left is free.
        host.guests = [moved, Guest("late", [0.6], [cpus("1")], fields={"busy": "backup"})]
        first = host.snapshot()
        host.run(2.0)
        plan, _history = vcpu.decide([first, host.snapshot()], POLICY, history, Safeties(**off))
        return bool(plan.moves)

    assert not run()
    assert run(rest=False)


# ---------------------------------------------------------------- full beside idle, and who goes


def test_a_full_pcpu_gives_to_an_idle_one_though_another_stays_fuller() -> None:
    """Two may not leave pCPUs 0 and 1, so the target is high: pCPU 1 meets it beside one with room."""
    problem = Problem(
        capacity=[1, 1, 1],
        fixed=[0.0, 0.0, 0.74],
        mates=[(), (), ()],
        kappa=[0.0] * 3,
        load=[1.0, 1.0, 1.0, 0.26],
        now=[0, 0, 1, 1],
        owner=[0, 1, 2, 2],
        reach=[0, 0, 1, 1],
        classes=[(0, 1), (0, 1, 2)],
        stays=[False] * 4,
    )
    assert rebalance(problem) == [0, 0, 1, 1]
    assert more_work(problem, [0, 0, 1, 1]) == [0, 0, 1, 2]
    assert more_work(replace(problem, stays=[True] * 4), [0, 0, 1, 1]) == [0, 0, 1, 1]
    assert more_work(replace(problem, fixed=[0.0, 0.0, 0.95]), [0, 0, 1, 1]) == [0, 0, 1, 1], "little would be gained"


def test_a_queue_that_chance_made_is_no_demand_and_one_that_lasts_is() -> None:
    waited = Demand(run=0.4, wait=0.5, low=0.9, high=0.9, place=cpus("0"))
    known = Smoothed(0.3)
    loads = []
    for _window in range(5):
        loads.append(credible(waited, known))
        known = known.then(0.3, 0.1, hidden=True)
    assert loads == [0.4, 0.4, 0.4, 0.9, 0.9]
    assert known.then(0.3, 0.1).hidden == 0


def test_a_full_pcpu_that_may_not_be_used_is_told_and_nothing_is_called_balanced() -> None:
    host = FakeHost(topology(4), [*guests(2, 1.0, "3", "out"), *guests(2, 0.01, "0", "in")])
    policy = replace(POLICY, pcpus=cpus("0-2"), selection=Selection(("in*",)))
    plan, _history = vcpu.decide(host.window(), policy)
    assert plan.before.max_all_pct is not None
    assert plan.before.max_all_pct >= 100 > plan.before.max_pct
    assert plan.note.startswith("a pCPU is full and another one idle")


def test_pcpus_do_not_idle_because_one_must_be_overfull_anyway() -> None:
    """Nine hogs on eight pCPUs: two share one, so a bound on the fullest asks nothing of the others."""
    host = FakeHost(topology(8), [Guest(f"g{n}", [0.9], [cpus(str(n // 2))]) for n in range(9)])
    plan, _history = vcpu.decide(host.window(), VcpuPolicy())
    host.apply(plan)
    assert len(plan.moves) == 3
    assert sorted(len(host.on(pcpu)) for pcpu in range(8)) == [1] * 7 + [2]
    assert vcpu.decide(host.window(), VcpuPolicy())[0].moves == ()
