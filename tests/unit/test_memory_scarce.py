# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory that is scarce, or not what it seems: caches, rooms, thin shares, promises, locked memory, words of a guest.

Most tests do the same once more with the safety switched off, and see what it is worth.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Optional

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kvmsched.config import MemoryPolicy, MemorySettings, Rule
from kvmsched.model import BalloonMove, Cell, Domain, HostMemory, MemoryPlan, Owner, Room, Snapshot, Topology
from kvmsched.policy import memory
from kvmsched.policy.memory.history import DomainHistory, MemoryHistory
from kvmsched.policy.memory.safeties import ALL_ON, Safeties
from kvmsched.policy.memory.sharing import max_min
from kvmsched.units import Amount
from memory_worlds import MIB, NOW_S, QEMU, domain, moves, pair, record, skips, snapshot, uuid_of

# Reserve and pool of the made-up host: what is above them is there to be given.
RESERVE, POOL = 1024, 1024
LAZY = MemoryPolicy(reclaim="lazy", host_reserve=Amount(kib=RESERVE * MIB))
ZFS = MemoryPolicy(reclaim="lazy")
GIB = 1024
STARVED: dict[str, Any] = {"unused": 20, "usable": 96}
DYING: dict[str, Any] = {"unused": 2, "usable": 5}
SLICE = "/sys/fs/cgroup/machine.slice"


def plan_of(
    now: Snapshot,
    policy: MemoryPolicy = LAZY,
    history: Optional[MemoryHistory] = None,
    safeties: Safeties = ALL_ON,
) -> tuple[MemoryPlan, MemoryHistory]:
    return memory.decide(pair(now), policy, history, safeties)


def planned(now: Snapshot, policy: MemoryPolicy = LAZY, safeties: Safeties = ALL_ON) -> dict[str, int]:
    return moves(plan_of(now, policy, safeties=safeties)[0])


def with_host(now: Snapshot, **changes: Any) -> Snapshot:
    return replace(now, host=replace(now.host, **changes))


def with_cells(now: Snapshot, *cells: Cell) -> Snapshot:
    return with_host(now, topology=Topology((), cells))


def in_room(now: Snapshot, left: Optional[int], high_left: Optional[int] = None) -> Snapshot:
    """All domains in one slice, of whose limits so many MiB are left."""
    inside = tuple(replace(d, balloon=replace(d.balloon, rooms=(SLICE,))) for d in now.domains if d.balloon)
    kib = [None if mib is None else mib * MIB for mib in (left, high_left)]
    return replace(with_host(now, rooms=(Room(SLICE, *kib),)), domains=inside)


def weighted(name: str, weight: float, *sizes: int, **more: Any) -> Domain:
    return domain(name, *sizes, owner=Owner({"weight": f"{weight:g}"}), **more)


# ---------------------------------------------------------------- the ZFS cache


def zfs_host(*domains: Domain, available: int = 700, arc: int = 38 * GIB) -> Snapshot:
    """A host of 62G at whose rest almost nothing is available, for the cache holds it."""
    now = snapshot(domains, available=available, total=62 * GIB)
    sizes = HostMemory(62 * GIB * MIB, available * MIB, arc_kib=arc * MIB)
    return with_host(now, memory=sizes)


DB = domain("db", 4 * GIB, 8 * GIB, unused=60, usable=110)
WEB = domain("web", 4 * GIB, unused=500, usable=3000)
NO_CACHES = Safeties(caches=False)


def test_a_host_whose_zfs_cache_holds_its_memory_is_not_short() -> None:
    plan, _history = plan_of(zfs_host(DB, WEB), ZFS)
    assert moves(plan) == {"db": 115} and plan.warnings == ()
    assert (plan.before.host_available_kib, plan.before.host_arc_kib) == (700 * MIB, 38 * GIB * MIB)
    without = moves(plan_of(zfs_host(DB, WEB), ZFS, safeties=NO_CACHES)[0])
    assert without["web"] < -2000 and "db" not in without, "web pays for the cache, and db is frozen"


def test_a_zfs_cache_that_can_not_shrink_is_not_available() -> None:
    assert planned(zfs_host(DB, WEB, arc=0), ZFS) == planned(zfs_host(DB, WEB), ZFS, safeties=NO_CACHES)


def later(now: Snapshot, seconds: int = 6) -> Snapshot:
    """The same host a little later, its guests read anew."""
    domains = tuple(
        replace(d, balloon=replace(d.balloon, last_update_s=d.balloon.last_update_s + seconds))
        for d in now.domains
        if d.balloon
    )
    return replace(now, wall_s=now.wall_s + seconds, monotonic_s=now.monotonic_s + seconds, domains=domains)


def needy(actual: int) -> Domain:
    """A guest that needs 2G more, by its floor."""
    return domain("db", actual, 32 * GIB, unused=400, usable=1000, owner=Owner({"floor": "10G"}))


def test_of_a_cache_a_part_is_given_and_the_next_once_that_was_seen_to_come() -> None:
    first = zfs_host(needy(8 * GIB))
    plan, history = plan_of(first, ZFS)
    assert moves(plan) == {"db": 512} and history.lent[""].kib == 512 * MIB
    touched = needy(8 * GIB + 512)
    stuck = later(zfs_host(touched, available=188))
    plan, still = plan_of(stuck, ZFS, history)
    assert moves(plan) == {} and still.lent[""].kib == 512 * MIB, "nothing of it was seen to come"
    gave_way = later(zfs_host(touched, arc=38 * GIB - 512))
    assert moves(plan_of(gave_way, ZFS, history)[0]) == {"db": 512}
    freed = later(zfs_host(touched, available=700 + 512))
    assert moves(plan_of(freed, ZFS, history)[0]) == {"db": 512}
    half = later(zfs_host(touched, arc=38 * GIB - 256))
    assert moves(plan_of(half, ZFS, history)[0]) == {"db": 256}


def test_what_is_free_is_given_whole_beside_a_part_of_the_cache() -> None:
    assert planned(zfs_host(needy(8 * GIB), available=3174 + 1000), ZFS) == {"db": 1512}


def test_a_plan_is_funded_out_of_the_cache_as_it_was_made() -> None:
    now = zfs_host(needy(8 * GIB))
    plan, _history = plan_of(now, ZFS)
    assert [move.after_kib for move in memory.fund(plan, ZFS, now, now)] == [(8 * GIB + 512) * MIB]


def test_what_was_lent_and_did_not_come_is_not_lent_again_for_a_take_that_stalls() -> None:
    policy = replace(ZFS, reclaim="eager")
    history = plan_of(zfs_host(needy(8 * GIB)), policy)[1]
    web = domain("web", 8192, unused=6000, usable=6500)
    stuck = later(zfs_host(needy(8 * GIB + 512), web, available=188))
    plan = plan_of(stuck, policy, history)[0]
    assert moves(plan)["web"] < 0 < moves(plan)["db"]
    assert memory.fund(plan, policy, stuck, stuck, history) == ()


# ---------------------------------------------------------------- cells


def bound(actual: int, **sizes: Any) -> Domain:
    return domain("db", actual, 32 * GIB, cells=frozenset({0}), **sizes)


def cell(free: int = 40, low: int = 20, clean: int = 40 * GIB, slab: int = 1 * GIB) -> Cell:
    return Cell(0, free_kib=free * MIB, low_kib=low * MIB, clean_cache_kib=clean * MIB, slab_kib=slab * MIB)


def test_file_pages_of_a_cell_count_for_who_is_bound_to_it() -> None:
    now = with_cells(snapshot([bound(16 * GIB, **DYING)], available=70 * GIB, total=128 * GIB), cell())
    assert planned(now)["db"] == 220, "all that it needs"
    assert planned(now, safeties=NO_CACHES).get("db", 0) <= 20


@pytest.mark.parametrize(
    ("here", "most"),
    [
        (cell(free=100, low=100, clean=0, slab=0), 0),
        (cell(free=300, low=100, clean=0, slab=0), 200),
        (cell(free=0, low=0, clean=200, slab=100), 150),
        (cell(free=10, low=100, clean=400, slab=0), 200),
        (cell(free=0, low=0), 512),
    ],
)
def test_of_a_cell_what_is_free_above_its_watermark_and_half_of_its_caches(here: Cell, most: int) -> None:
    wanting = bound(8 * GIB, unused=400, usable=1000, owner=Owner({"floor": "20G"}))
    assert planned(with_cells(snapshot([wanting], available=70 * GIB, total=128 * GIB), here)).get("db", 0) == most


# ---------------------------------------------------------------- rooms and weights


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
    guests = [weighted("heavy", 3, 2 * GIB, 8 * GIB, **STARVED), weighted("light", 1, 2 * GIB, 8 * GIB, **STARVED)]
    wide = MemorySettings(waste=Amount(kib=1000 * MIB))
    got = planned(in_room(snapshot(guests), 500), replace(LAZY, settings=wide, min_change=Amount(kib=8 * MIB)))
    assert sum(got.values()) == pytest.approx(500, abs=1)
    assert got["heavy"] - 54 == pytest.approx(3 * (got["light"] - 54), abs=2), "54M bring each off the line"


def test_what_the_tightest_room_does_not_let_one_have_is_for_the_others() -> None:
    wanting: dict[str, Any] = {"unused": 400, "usable": 1000, "owner": Owner({"floor": "6G"})}
    guests = [domain(name, 2 * GIB, 8 * GIB, **wanting) for name in ("a", "b")]
    fenced = replace(guests[0], balloon=replace(guests[0].balloon, cells=frozenset({0})))
    now = snapshot([fenced, guests[1]], available=RESERVE + 2000)
    assert planned(with_cells(now, cell(free=300, low=0, clean=0, slab=0))) == {"a": 300, "b": 1700}


def test_a_persons_floor_goes_before_survival_and_a_default_floor_after_it() -> None:
    dying = domain("dying", 2 * GIB, 8 * GIB, **DYING)
    for owner, first in ((Owner({"floor": "4G"}), "floored"), (Owner(), "dying")):
        floored = domain("floored", 2 * GIB, 30 * GIB, unused=400, usable=1000, owner=owner)
        got = planned(in_room(snapshot([dying, floored], available=20 * GIB), 200))
        assert got.get(first, 0) > 100 and max(got, key=lambda name: got[name]) == first


@pytest.mark.parametrize("heavy", ["a", "b"])
def test_a_thin_share_is_for_the_larger_weight(heavy: str) -> None:
    names = ("a", "b")
    guests = [weighted(n, 2 if n == heavy else 1, 2 * GIB, 4 * GIB, **STARVED) for n in names]
    policy = replace(LAZY, min_change=Amount(kib=40 * MIB))
    assert planned(snapshot(guests, available=RESERVE + 50), policy) == {heavy: 50}


@pytest.mark.parametrize("served", ["a", "b"])
def test_a_thin_share_is_for_who_got_less_lately(served: str) -> None:
    guests = [domain(name, 2 * GIB, 4 * GIB, **STARVED) for name in ("a", "b")]
    policy = replace(LAZY, min_change=Amount(kib=40 * MIB))
    now = snapshot(guests, available=RESERVE + 50)
    gift = DomainHistory(0, 0, given_kib=50 * MIB, given_s=NOW_S - 60)
    plan, history = plan_of(now, policy, MemoryHistory(domains={uuid_of(served): gift}))
    (other,) = {"a", "b"} - {served}
    assert moves(plan) == {other: 50}
    assert history.domains[uuid_of(other)].lately_kib(NOW_S) == 50 * MIB
    assert history.domains[uuid_of(other)].lately_kib(NOW_S + 300) == 25 * MIB
    assert history.domains[uuid_of(other)].lately_kib(NOW_S + 3600) == 0


def test_who_is_dying_in_a_room_is_fed_from_half_of_what_is_really_left_there() -> None:
    """Others there were promised more than is left, but it is not touched yet."""
    promised = domain("big", 4 * GIB, rss=1 * GIB, unused=200, usable=3000)
    now = in_room(snapshot([domain("db", 2 * GIB, 4 * GIB, **DYING), promised]), 56)
    assert planned(now) == {"db": 28}
    assert planned(now, safeties=Safeties(rooms=False)) == {}
    comfortable = in_room(snapshot([domain("db", 2 * GIB, 4 * GIB, **STARVED), promised]), 56)
    assert planned(comfortable) == {}


@pytest.mark.parametrize("swapped", [0, 40])
def test_what_is_really_left_in_a_room_is_not_given_again_and_again_before_it_is_touched(swapped: int) -> None:
    """56M were left in machine.slice, as on an emulated KVM host; all else of this host is made up."""
    promised = domain("big", 4 * GIB, rss=1 * GIB, unused=200, usable=3000, swapped_kib=swapped * MIB)
    size, given = 2 * GIB, []
    for _turn in range(6):
        dying = domain("db", size, 4 * GIB, **{**DYING, "usable": 5 + sum(given)}, rss=2 * GIB + QEMU)
        now = in_room(snapshot([dying, promised]), 56)
        plan, _history = plan_of(now)
        funded = memory.fund(plan, LAZY, now, now)
        assert [move.after_kib for move in funded] == [m.after_kib for m in plan.moves if isinstance(m, BalloonMove)]
        given.append(moves(plan).get("db", 0))
        size += given[-1]
    assert given == ([28, 14, 0, 0, 0, 0] if not swapped else [8, 0, 0, 0, 0, 0])


def test_who_migrates_in_is_busy_and_what_it_will_have_is_not_given_to_others() -> None:
    """It is paused and hardly resident yet; in a moment it has all of its size."""
    needy = domain("db", 2 * GIB, 8 * GIB, **STARVED)
    comes = domain("comes", 4 * GIB, rss=100, unused=0, state="paused", busy="a job is under way", last_update_s=0)
    plan, _history = plan_of(snapshot([needy, comes], available=RESERVE + POOL + 3 * GIB))
    assert skips(plan) == {"comes": "busy"} and plan.supply_kib == (RESERVE + POOL + 3 * GIB - RESERVE - 4060) * MIB
    assert moves(plan) == {"db": 54} and [m.on_credit for m in plan.moves if isinstance(m, BalloonMove)] == [True]
    alone, _history = plan_of(snapshot([needy], available=RESERVE + POOL + 3 * GIB))
    assert moves(alone)["db"] > 100


POOLS = st.lists(st.sampled_from(["host", "a", "b"]), min_size=1, max_size=3, unique=True)


@settings(max_examples=200, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
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


# ---------------------------------------------------------------- memory.high


def test_memory_high_bounds_growth_and_takes_nothing() -> None:
    throttled = domain("db", 2 * GIB, 8 * GIB, high_kib=(2 * GIB + QEMU + 30) * MIB, **STARVED)
    policy = replace(LAZY, min_change=Amount(kib=8 * MIB))
    assert planned(snapshot([throttled]), policy) == {"db": 30}
    assert planned(snapshot([throttled]), policy, Safeties(high=False))["db"] > 100
    above = domain("db", 2 * GIB, 8 * GIB, high_kib=1 * GIB * MIB, unused=400, usable=1000)
    assert planned(snapshot([above])) == {}


def test_a_release_goes_home_above_memory_high() -> None:
    """It was there before us."""
    small = domain("db", 2 * GIB, 8 * GIB, high_kib=1 * GIB * MIB, usable=900, record=record(4 * GIB, 4 * GIB, 2 * GIB))
    plan = memory.release(pair(snapshot([small])), LAZY)[0]
    assert moves(plan) == {"db": 2 * GIB} and plan.not_restored == ()


def test_memory_high_of_a_room_bounds_growth_and_costs_its_neighbours_nothing() -> None:
    guests = [domain("db", 2 * GIB, 8 * GIB, **STARVED), domain("web", 4 * GIB, unused=2000, usable=2500)]
    policy = replace(LAZY, min_change=Amount(kib=8 * MIB))
    assert planned(in_room(snapshot(guests), 9000, high_left=30), policy) == {"db": 30}
    assert planned(in_room(snapshot(guests), None, high_left=30), policy) == {"db": 30}
    assert planned(in_room(snapshot(guests), 9000, high_left=30), policy, Safeties(high=False))["db"] > 100


# ---------------------------------------------------------------- promises that were not answered


# What a starved guest gets from what is really free, whatever others were promised.
SURVIVAL = 150 - 96


def deaf(age_s: int, **sizes: Any) -> Domain:
    """A guest that was given 9G and did not move; it touches no more than its 2G."""
    return domain("deaf", 2 * GIB, 16 * GIB, unused=400, usable=1000, record=record(2048, 2048, 11264, age_s), **sizes)


@pytest.mark.parametrize(("age_s", "fed"), [(3, False), (30, True), (4000, True)])
def test_what_a_deaf_guest_was_promised_is_there_for_others_once_it_should_be_there(age_s: int, fed: bool) -> None:
    now = snapshot([deaf(age_s), domain("db", 2 * GIB, 4 * GIB, **STARVED)], available=RESERVE + 8000)
    assert (planned(now)["db"] > SURVIVAL) is fed
    assert planned(now, safeties=Safeties(answers=False))["db"] == SURVIVAL


def test_a_deaf_guest_that_holds_more_than_it_says_is_charged_for_all() -> None:
    now = snapshot([deaf(30, rss=3 * GIB), domain("db", 2 * GIB, 4 * GIB, **STARVED)], available=RESERVE + 8000)
    assert planned(now)["db"] == SURVIVAL


def test_what_is_not_charged_may_be_half_of_what_is_free_at_most() -> None:
    """9G may come true at once: of 10G that are free 5 stay for that."""
    now = snapshot([deaf(30), needy_fair()], available=RESERVE + 10240)
    got = planned(now)["db"]
    assert got == pytest.approx(10240 - 64 - (9216 - 64 - 5120), abs=80)


def needy_fair() -> Domain:
    return domain("db", 4 * GIB, 32 * GIB, unused=400, usable=1000, owner=Owner({"floor": "20G"}))


# ---------------------------------------------------------------- locked memory


def locked(mib: Optional[int], **more: Any) -> Domain:
    return domain("vm", 8 * GIB, unused=3000, usable=4000, locked_kib=None if mib is None else mib * MIB, **more)


EAGER = MemoryPolicy(reclaim="eager")


@pytest.mark.parametrize(("mib", "kept"), [(None, False), (0, False), (4000, False), (4096, True), (8300, True)])
def test_from_who_has_half_of_its_memory_locked_nothing_is_taken(mib: Optional[int], kept: bool) -> None:
    now = snapshot([locked(mib)])
    plan, _history = plan_of(now, EAGER)
    assert (skips(plan) == {"vm": "inhibited"}) is kept and (moves(plan) == {}) is kept
    assert planned(now, EAGER, Safeties(locked=False))["vm"] < -1000


def test_after_two_looks_below_a_quarter_it_may_give_again() -> None:
    history: Optional[MemoryHistory] = None
    now, kept = snapshot([]), []
    for mib in (8192, 3000, 2000, 8192, 2000, None, 2000, 2000):
        age_s = int(now.wall_s - NOW_S)
        now = later(now)
        now = replace(now, domains=(locked(mib, last_update_s=int(NOW_S) + age_s + 5),))
        plan, history = plan_of(now, EAGER, history)
        kept.append(skips(plan).get("vm") == "inhibited")
    assert kept == [True, True, True, True, True, True, False, False]


def test_no_locked_memory_is_no_acquittal_of_what_the_definition_says() -> None:
    assert skips(plan_of(snapshot([locked(0, inhibitors=("hostdev (VFIO)",))]), EAGER)[0]) == {"vm": "inhibited"}


# ---------------------------------------------------------------- what no balloon can have, and huge pages for a part


def test_floors_are_of_what_a_balloon_can_have() -> None:
    """60G of NVDIMM: a tenth of them would be a floor far above the guest's memory."""
    pmem = domain("pmem", 2 * GIB, 64 * GIB, unused=200, usable=400, fixed_kib=60 * GIB * MIB)
    dying = domain("dying", 2 * GIB, 4 * GIB, **DYING)
    now = snapshot([pmem, dying], available=RESERVE + 200)
    assert planned(now) == {"dying": 200}
    percent = MemoryPolicy(reclaim="lazy", rules=(Rule("pmem", memory={"floor": Amount(pct=90)}),))
    assert planned(snapshot([pmem]), percent)["pmem"] == pytest.approx(0.9 * 4096 - 2048, abs=1)


def test_nobody_is_charged_for_nvdimm_while_it_boots() -> None:
    booting = domain("boot", 2 * GIB, 64 * GIB, usable=1000, fixed_kib=60 * GIB * MIB, started_s=NOW_S - 1)
    assert plan_of(snapshot([booting]))[0].supply_kib == (16384 - RESERVE - 2048) * MIB


def test_huge_pages_of_a_part_are_not_charged_and_the_rest_is() -> None:
    part = domain("vm", 8 * GIB, rss=1000, unused=400, usable=1000, huge_kib=4 * GIB * MIB)
    supply_kib = plan_of(snapshot([part]))[0].supply_kib
    assert supply_kib is not None
    assert (16384 - supply_kib // MIB) - RESERVE == pytest.approx(4 * GIB + QEMU - 1000, abs=1)
    whole = replace(part, balloon=replace(part.balloon, huge_kib=8 * GIB * MIB, inhibitors=("hugepages",)))
    assert plan_of(snapshot([whole]))[0].supply_kib == plan_of(snapshot([]))[0].supply_kib


# ---------------------------------------------------------------- a guest's word


def test_counters_that_fall_all_the_time_are_a_reboot_once_in_a_while() -> None:
    liar = domain("liar", 2 * GIB, 8 * GIB, unused=400, usable=1000, major_faults=1)
    now = snapshot([liar])
    seen = DomainHistory(int(NOW_S) - 6, 2 * GIB * MIB, major_faults=1000)
    first, history = plan_of(now, LAZY, MemoryHistory(domains={liar.uuid: seen}))
    assert skips(first) == {"liar": "booting"}
    fallen = later(replace(now, domains=(replace(liar, balloon=replace(liar.balloon, major_faults=0)),)))
    again, _history = plan_of(fallen, LAZY, history)
    assert skips(again) == {}
    assert skips(plan_of(fallen, LAZY, history, Safeties(bounds=False))[0]) == {"liar": "booting"}
    restarted = replace(fallen, domains=(replace(fallen.domains[0], started_s=fallen.wall_s - 2),))
    assert skips(plan_of(restarted, LAZY, history)[0]) == {"liar": "booting"}


def test_a_forged_record_costs_no_neighbour_anything() -> None:
    """Whoever writes a domain's metadata may say that a petabyte was promised."""
    forged = domain("forged", 2 * GIB, 4 * GIB, unused=400, usable=1000, record=record(2048, 2048, 10**9, 3))
    now = snapshot([forged, domain("db", 2 * GIB, 4 * GIB, **STARVED)])
    assert planned(now)["db"] > 50


def test_who_boots_is_charged_for_its_maximum_and_for_nothing_twice() -> None:
    """It was promised 200M and did not take them: all of that is part of its maximum."""
    counters = {"major_faults": 0, "unused": 100, "usable": 250}
    boots = domain("liar", 1661, 2 * GIB, **counters, record=record(1664, 1661, 1861, 60))
    seen = MemoryHistory(domains={boots.uuid: DomainHistory(int(NOW_S) - 6, 1661 * MIB, major_faults=9)})
    full = domain("liar", 2 * GIB, rss=1661 + QEMU, usable=200)
    plan, _history = plan_of(snapshot([boots], available=900), LAZY, seen)
    assert skips(plan) == {"liar": "booting"}
    assert plan.supply_kib == plan_of(snapshot([full], available=900))[0].supply_kib


# ---------------------------------------------------------------- debts


def owed(name: str, mib: int) -> Domain:
    """A content guest of which *mib* were taken, without that anybody asked for it."""
    size = 8 * GIB - mib
    return domain(name, size, 8 * GIB, unused=400, usable=2000, record=record(8 * GIB, 8 * GIB, size))


def test_what_a_room_gives_to_a_need_it_does_not_give_back_to_who_is_owed_it() -> None:
    auto = MemoryPolicy(host_reserve=Amount(kib=RESERVE * MIB))
    now = in_room(snapshot([owed("web", 1000), domain("db", 2 * GIB, 4 * GIB, **STARVED)]), 500)
    assert planned(now, auto) == {"db": 129, "web": 371}


def test_debts_are_paid_out_of_a_cache_in_parts_too() -> None:
    assert planned(zfs_host(owed("web", 3000)), MemoryPolicy()) == {"web": 512}
