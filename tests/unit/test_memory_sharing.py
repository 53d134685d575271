# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scarce memory is shared by weighted max-min: weights, floors, thin shares, pools that overlap."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from kvmsched.config import MemorySettings
from kvmsched.model import Owner
from kvmsched.policy import memory
from kvmsched.policy.memory.history import DomainHistory, MemoryHistory
from kvmsched.policy.memory.sharing import max_min
from kvmsched.units import Amount
from memory_worlds import (
    DYING,
    EDGE,
    GIB,
    LAZY,
    MIB,
    NOW_S,
    RESERVE,
    STARVES,
    cell,
    domain,
    in_room,
    lazy_moves,
    lazy_pass,
    moves,
    pair,
    snapshot,
    uuid_of,
    weighted,
    with_cells,
)


def test_in_a_room_nobody_takes_all() -> None:
    """960M left; a guest of weight 100 lacks little, its neighbour lives on its swap and would take all there is."""
    light = domain("light", 2 * GIB, 8 * GIB, unused=0, usable=0, swap_in=4096)
    heavy = weighted("heavy", 100, 2 * GIB, 8 * GIB, unused=10, usable=40)
    now = in_room(snapshot([light, heavy]), 960)
    before, now = pair(now)
    swapped = tuple(
        replace(d, balloon=replace(d.balloon, swap_in_kib=0)) if d.name == "light" and d.balloon else d
        for d in before.domains
    )
    got = moves(memory.decide([replace(before, domains=swapped), now], LAZY)[0])
    assert got["heavy"] >= 150 - 40 and got["light"] >= 150
    assert sum(got.values()) <= 960


def test_in_a_room_comfort_is_by_weight() -> None:
    guests = [weighted("heavy", 3, 2 * GIB, 8 * GIB, **STARVES), weighted("light", 1, 2 * GIB, 8 * GIB, **STARVES)]
    wide = MemorySettings(waste=Amount(kib=1000 * MIB))
    policy = replace(LAZY, settings=wide, min_change=Amount(kib=8 * MIB))
    got = lazy_moves(in_room(snapshot(guests), 500 + EDGE), policy)
    assert sum(got.values()) == pytest.approx(500, abs=1)
    assert got["heavy"] - 54 == pytest.approx(3 * (got["light"] - 54), abs=2), "54M bring each off the line"


def test_what_the_tightest_room_does_not_let_one_have_is_for_the_others() -> None:
    wanting: dict[str, Any] = {"unused": 400, "usable": 1000, "owner": Owner({"floor": "6G"})}
    guests = [domain(name, 2 * GIB, 8 * GIB, **wanting) for name in ("a", "b")]
    fenced = replace(guests[0], balloon=replace(guests[0].balloon, cells=frozenset({0})))
    now = snapshot([fenced, guests[1]], available=RESERVE + 2000)
    assert lazy_moves(with_cells(now, cell(free=300, low=0, clean=0, slab=0))) == {"a": 300, "b": 1700}


def test_a_persons_floor_goes_before_survival_and_a_default_floor_after_it() -> None:
    dying = domain("dying", 2 * GIB, 8 * GIB, **DYING)
    for owner, first in ((Owner({"floor": "4G"}), "floored"), (Owner(), "dying")):
        floored = domain("floored", 2 * GIB, 30 * GIB, unused=400, usable=1000, owner=owner)
        got = lazy_moves(in_room(snapshot([dying, floored], available=20 * GIB), 200))
        assert got.get(first, 0) > 100 and max(got, key=lambda name: got[name]) == first


@pytest.mark.parametrize("heavy", ["a", "b"])
def test_a_thin_share_is_for_the_larger_weight(heavy: str) -> None:
    names = ("a", "b")
    guests = [weighted(n, 2 if n == heavy else 1, 2 * GIB, 4 * GIB, **STARVES) for n in names]
    policy = replace(LAZY, min_change=Amount(kib=40 * MIB))
    assert lazy_moves(snapshot(guests, available=RESERVE + 50), policy) == {heavy: 50}


@pytest.mark.parametrize("served", ["a", "b"])
def test_a_thin_share_is_for_who_got_less_lately(served: str) -> None:
    guests = [domain(name, 2 * GIB, 4 * GIB, **STARVES) for name in ("a", "b")]
    policy = replace(LAZY, min_change=Amount(kib=40 * MIB))
    now = snapshot(guests, available=RESERVE + 50)
    gift = DomainHistory(0, 0, given_kib=50 * MIB, given_s=NOW_S - 60)
    plan, history = lazy_pass(now, policy, MemoryHistory(domains={uuid_of(served): gift}))
    (other,) = {"a", "b"} - {served}
    assert moves(plan) == {other: 50}
    assert history.domains[uuid_of(other)].lately_kib(NOW_S) == 50 * MIB
    assert history.domains[uuid_of(other)].lately_kib(NOW_S + 300) == 25 * MIB
    assert history.domains[uuid_of(other)].lately_kib(NOW_S + 3600) == 0


POOLS = st.lists(st.sampled_from(["host", "a", "b"]), min_size=1, max_size=3, unique=True)


@examples(200)
@given(
    st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 100), POOLS), min_size=1, max_size=8),
    st.fixed_dictionaries({name: st.integers(-50, 9000) for name in ("host", "a", "b")}),
)
def test_max_min_over_pools_that_overlap(claims: list[tuple[int, int, list[str]]], left: dict[str, int]) -> None:
    """No pool is overdrawn, nobody gets more than his claim; who gets less has a pool in which nobody has more for
    its weight, and that is empty."""
    sizes, weights, pools = (list(part) for part in zip(*claims))
    shares = max_min(sizes, weights, pools, left)
    spent = {name: sum(s for s, inside in zip(shares, pools) if name in inside) for name in left}
    for name, kib in left.items():
        assert spent[name] <= max(0, kib)
    for size, weight, inside, share in zip(sizes, weights, pools, shares):
        assert 0 <= share <= size
        if share == size:
            continue
        rounding = len(claims) + 1
        empty = [name for name in inside if spent[name] >= max(0, left[name]) - rounding]
        highest = {name: max(s / w for s, w, others in zip(shares, weights, pools) if name in others) for name in empty}
        assert any(share / weight >= level - rounding for level in highest.values()), (share, empty, highest)
