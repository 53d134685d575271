# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A domain stays in the cell of its memory, unless that cell is far busier."""

from __future__ import annotations

from dataclasses import replace
from typing import Optional

import pytest
from kvmsched.config import VcpuPolicy
from kvmsched.model import PinMove, Snapshot
from kvmsched.policy import vcpu
from kvmsched.policy.vcpu.hold import CELL_COOLDOWN_S, budgeted
from vcpu_worlds import POLICY, FakeHost, Guest, codes, cpus, daemon_passes, guests, pinned_guest, topology


def crowded_cell() -> FakeHost:
    """Two cells of two pCPUs: four busy domains in the first one."""
    return FakeHost(topology(4, cells=2), [*guests(2, 0.9, "0", "a"), *guests(2, 0.9, "1", "b")])


def test_a_domain_that_changed_its_cell_stays_for_a_while() -> None:
    host = crowded_cell()
    made, history = daemon_passes(host, 1, VcpuPolicy())
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


def test_a_vcpu_stays_beside_the_memory_of_its_guest_cell() -> None:
    host = FakeHost(topology(8, cells=2), [pinned_guest("numa", "0 0 4 4", 0.9), *guests(2, 0.2, "0-7")])

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
    host = FakeHost(topology(8, cells=2), [pinned_guest("numa", "6", definitions="6")])
    snapshot = host.snapshot()
    (domain,) = snapshot.domains
    away = replace(domain, vcpus=(replace(domain.vcpus[0], numa_pcpus=cpus("0-3")),))
    plan, _history = vcpu.decide([replace(snapshot, domains=(away,))], POLICY)
    assert codes(plan).get("numa") != "empty-set"


def two_wide(want: float) -> FakeHost:
    """Two guests of eight vCPUs share the pCPUs of the first of two cells."""
    return FakeHost(topology(16, cells=2), [pinned_guest(name, "0 1 2 3 4 5 6 7", want) for name in ("a", "b")])


def cells_of(guest: Guest) -> set[bool]:
    return {pin <= cpus("0-7") for pin in guest.pins}


@pytest.mark.parametrize("most", [1, 2, None])
def test_no_guest_is_split_over_cells_where_all_are_served(most: Optional[int]) -> None:
    """A part of a guest would run away from its memory from then on, for the sake of even loads alone."""
    host = two_wide(0.4)
    policy = VcpuPolicy(floating="auto", hold=3, half_life_s=30.0, cooldown_s=60.0, max_moves=most)
    daemon_passes(host, 12, policy if most else budgeted(policy, host.snapshot()))
    assert all(len(cells_of(guest)) == 1 for guest in host.guests)


def test_a_guest_changes_its_cell_as_a_whole() -> None:
    host = two_wide(0.4)
    daemon_passes(host, 3, VcpuPolicy(floating="auto", half_life_s=30.0, cooldown_s=60.0, max_moves=8))
    assert sorted(len(cells_of(guest)) for guest in host.guests) == [1, 1]
    assert cells_of(host.guests[0]) != cells_of(host.guests[1])


def test_who_may_not_change_its_cell_keeps_nobody_from_a_move_inside() -> None:
    host = two_wide(0.4)
    host.guests += guests(4, 0.24, "8", "c")
    policy = VcpuPolicy(floating="auto", half_life_s=30.0, cooldown_s=60.0, max_moves=2, threshold_pct=2.0)
    made, _history = daemon_passes(host, 12, policy)
    assert sum(made) > 0 and all(guest.pins[0] <= cpus("8-15") for guest in host.guests[2:])
    assert all(cells_of(guest) == {True} for guest in host.guests[:2])


def test_where_work_waits_a_part_goes_at_once() -> None:
    host = two_wide(0.9)
    daemon_passes(host, 2, VcpuPolicy(floating="auto", half_life_s=30.0, cooldown_s=60.0, max_moves=4))
    assert sum(pin <= cpus("8-15") for guest in host.guests for pin in guest.pins) >= 4


@pytest.mark.parametrize(("busy", "comes"), [(1.0, False), (0.2, True)])
def test_who_was_pinned_away_from_its_memory_comes_back_where_there_is_room(busy: float, comes: bool) -> None:
    """It had a pCPU alone there, and got half of one beside its memory."""
    away = Guest("away", [0.7], [cpus("2")], fields={"numa_pcpus": cpus("0-1")}, backlog=True)
    others = [Guest(f"g{n}", [busy], [cpus(str(n))], fields={"numa_pcpus": cpus("0-1")}) for n in range(2)]
    host = FakeHost(topology(4, cells=2), [away, *others])
    daemon_passes(host, 6, VcpuPolicy(floating="auto", hold=3, half_life_s=30.0, cooldown_s=60.0, max_moves=2))
    assert (away.pins[0] <= cpus("0-1")) == comes
