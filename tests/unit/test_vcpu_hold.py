# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who stays where it is for a while, and how many may move in one pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
from kvmsched.config import VcpuPolicy
from kvmsched.model import PinMove, PinRecord, Record
from kvmsched.policy import vcpu
from kvmsched.policy.vcpu import Safeties
from kvmsched.policy.vcpu.history import PlannedPin, VcpuHistory
from kvmsched.units import format_cpuset
from vcpu_worlds import DAEMON, HOST_UUID, POLICY, FakeHost, Guest, cpus, daemon_passes, guests, pinned_guest, topology


def test_hold_waits_for_passes_in_a_row() -> None:
    host = FakeHost(topology(4), guests(2, 0.4, "0"))
    made, _history = daemon_passes(host, 4, replace(DAEMON, hold=3))
    assert made == [0, 0, 1, 0]


def test_a_hold_that_is_interrupted_starts_again() -> None:
    host = FakeHost(topology(4), guests(2, 0.4, "0"))
    policy = replace(DAEMON, hold=3, half_life_s=0.0)
    _made, history = daemon_passes(host, 2, policy)
    assert history.held == 2
    for guest in host.guests:
        guest.wants = [0.01]
    _made, history = daemon_passes(host, 1, policy, history)
    assert history.held == 0


def test_the_budget_of_a_pass() -> None:
    host = FakeHost(topology(8), guests(8, 0.12, "0"))
    made, _history = daemon_passes(host, 6, replace(DAEMON, hold=1, max_moves=2, cooldown_s=0.0))
    assert max(made) == 2
    assert sum(made) >= 6


def test_a_moved_vcpu_rests_for_its_cooldown() -> None:
    host = FakeHost(topology(2), [*guests(1, 0.5, "0", "a"), *guests(1, 0.5, "0", "b")])
    policy = VcpuPolicy(cooldown_s=60.0)
    made, history = daemon_passes(host, 1, policy)
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


def test_without_the_guard_a_vcpu_is_sent_straight_back() -> None:
    def run(**off: bool) -> bool:
        host = FakeHost(topology(2), [*guests(2, 0.5, "0")])
        _made, history = daemon_passes(host, 1, POLICY)
        moved = next(g for g in host.guests if g.pins == [cpus("1")])
        # Now a third guest fills the pCPU that it went to, and the one that it left is free.
        host.guests = [moved, Guest("late", [0.6], [cpus("1")], fields={"busy": "backup"})]
        first = host.snapshot()
        host.run(2.0)
        plan, _history = vcpu.decide([first, host.snapshot()], POLICY, history, Safeties(**off))
        return bool(plan.moves)

    assert not run()
    assert run(rest=False)


def test_what_went_offline_under_a_guest_that_was_just_placed_ends_its_rest() -> None:
    policy = replace(POLICY, cooldown_s=60.0, max_moves=4)
    host = FakeHost(topology(4), [pinned_guest("g", "3 3", 0.9)])
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
    members = [pinned_guest("a", "0 1", 0.565), pinned_guest("b", "2 3", 0.565), pinned_guest("idle", "5", 0.05)]
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


@pytest.mark.parametrize(("cooldown_s", "changes"), [(60.0, 2), (3600.0, 0)])
def test_a_cool_down_that_is_longer_than_that_of_cells_holds_against_a_change_of_cell(
    cooldown_s: float, changes: int
) -> None:
    policy = replace(DAEMON, hold=1, cooldown_s=cooldown_s, max_moves=20)
    hog = Guest("hog", [1.0], [cpus("0")], fields={"busy": "backup"})
    host = FakeHost(topology(8, cells=2), [pinned_guest("g", "0 0", 0.3), hog])
    made, history = daemon_passes(host, 1, policy)
    assert made == [2]
    host.run(350.0)
    late = [pinned_guest(f"late{n}", f"{n} {n}", 1.0, fields={"busy": "backup"}) for n in range(4)]
    host.guests += late
    made, _history = daemon_passes(host, 3, policy, history)
    assert sum(made) == changes


def test_a_pin_of_the_future_is_not_a_pin_of_just_now() -> None:
    """The clock was a day ahead when it was recorded, and is right since."""
    full = [Guest(name, [0.9], [cpus("0")]) for name in ("a", "b")]
    host = FakeHost(topology(2), [*full, Guest("c", [0.05], [cpus("1")])])
    tomorrow_s = int(host.window()[-1].wall_s) + 86400
    for guest in full:
        record = PinRecord("vcpu", 0, cpus("1"), cpus("1"), cpus("0"), when_s=tomorrow_s)
        host.records[guest.uuid] = Record(HOST_UUID, 1, pins=(record,))
    made, _history = daemon_passes(host, 12)
    assert sum(made) == 1
