# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Single rules of the memory policy that no scenario file can tell: history, levels, funding, records of periods."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Optional

import pytest
from kvmsched import baseline
from kvmsched.baseline import COPY
from kvmsched.config import MemoryPolicy, MemorySettings
from kvmsched.model import (
    BalloonMove,
    Cell,
    Domain,
    MemoryPlan,
    PeriodMove,
    PeriodRecord,
    Record,
    Room,
    Skip,
    Snapshot,
    Topology,
)
from kvmsched.policy import memory
from kvmsched.policy.memory.history import DomainHistory, MemoryHistory
from kvmsched.policy.memory.levels import level_of
from kvmsched.policy.memory.limits import limits_of
from kvmsched.policy.memory.safeties import Safeties
from kvmsched.units import Amount
from memory_worlds import (
    HOST_UUID,
    MIB,
    NOW_S,
    TICK_S,
    a_tick_before,
    decide,
    domain,
    moves,
    pair,
    record,
    skips,
    snapshot,
    uuid_of,
)

EAGER = MemoryPolicy(reclaim="eager")
RESERVE_1G = replace(EAGER, host_reserve=Amount(kib=1024 * MIB))
WASTEFUL: dict[str, Any] = {"actual": 4096, "unused": 2000, "usable": 2500}
STARVED: dict[str, Any] = {"actual": 2048, "maximum": 4096, "unused": 20, "usable": 96}


def seen(**values: Any) -> MemoryHistory:
    """A history in which the domain ``db`` was seen a tick ago."""
    return MemoryHistory(domains={uuid_of("db"): DomainHistory(**{"last_update_s": int(NOW_S) - 6, **values})})


# ---------------------------------------------------------------- one sample, two, and history


def test_one_sample_proves_no_rest_so_nobody_is_shrunk() -> None:
    now = snapshot([domain("web", **WASTEFUL), domain("db", **STARVED)])
    plan, _history = memory.decide([now], EAGER)
    assert moves(plan) == {"db": 129}
    assert skips(plan) == {"web": "settling"}


def test_history_is_as_good_as_a_first_sample() -> None:
    now = snapshot([domain("db", **WASTEFUL)])
    plan, _history = memory.decide([now], EAGER, seen(actual_kib=4096 * MIB))
    assert moves(plan) == {"db": -1000}


def test_two_samples_of_the_same_reading_prove_nothing() -> None:
    now = snapshot([domain("web", **WASTEFUL)])
    plan, _history = memory.decide([now, now], EAGER)
    assert skips(plan) == {"web": "settling"}


def test_a_give_that_arrived_before_the_reading_is_rest() -> None:
    """Else a domain that is given memory pass after pass could never be judged."""
    given = domain("db", 3000, 4096, unused=1000, usable=1200, record=record(1024, 2000, 3000, age_s=4))
    now = snapshot([given])
    before, _now = pair(now)
    balloon = replace(before.domains[0].balloon, actual_kib=2000 * MIB)
    older = replace(before, domains=(replace(given, balloon=balloon),))
    assert moves(memory.decide([older, now], EAGER)[0]) == {"db": -500}


def test_a_rise_is_measured_from_the_last_known_use() -> None:
    """Passes in which the domain was settling do not hide how fast its demand rose."""
    now = snapshot([domain("db", 4000, 8192, unused=50, usable=250)])
    history = seen(actual_kib=4000 * MIB, used_kib=3250 * MIB, used_s=int(NOW_S) - 11, grew_kib=200 * MIB)
    plan, _history = memory.decide([now], EAGER, history)
    # 500M in 10 s, for the 5 s between readings and the age of this one: 300M
    assert "rising by 300M" in plan.moves[0].reason
    assert moves(plan) == {"db": 3750 + 300 + 225 - 4000}


def test_memory_that_is_on_its_way_to_us_is_no_rise() -> None:
    """libvirt hears of a balloon's size once a second, and the guest's reading may be newer."""
    taken = domain("db", 4000, 8192, unused=1150, usable=1150, record=record(8192, 5000, 3000, age_s=2))
    history = seen(actual_kib=5000 * MIB, used_kib=1950 * MIB, used_s=int(NOW_S) - 6)
    plan, _history = memory.decide([snapshot([taken])], EAGER, history)
    assert not plan.moves and skips(plan) == {"db": "settling"}


# ---------------------------------------------------------------- back-off and hysteresis


def stuck_at(age_s: int, times: int, asked_s: Optional[int] = None) -> MemoryPlan:
    asked = domain("db", record=record(4096, 4096, 3096, age_s), **WASTEFUL)
    history = seen(actual_kib=4096 * MIB, stuck_times=times, stuck_asked_s=asked_s or int(NOW_S) - age_s)
    return memory.decide(pair(snapshot([asked])), EAGER, history)[0]


@pytest.mark.parametrize(("times", "pause_s"), [(1, 120), (2, 240), (3, 480), (9, 1800)])
def test_a_stuck_balloon_is_left_alone_twice_as_long_each_time(times: int, pause_s: int) -> None:
    assert skips(stuck_at(pause_s - 1, times)) == {"db": "stuck"}
    assert moves(stuck_at(pause_s, times)) == {"db": -1000}, "asked anew"


def test_a_stuck_take_is_called_back_once_the_guest_needs_what_it_would_lose() -> None:
    """It is still asked for: a driver that comes back would follow it below L."""
    asked = record(4096, 4096, 3096, age_s=60)
    for usable, told in ((1500, {}), (1000, {"db": 188})):
        now = snapshot([domain("db", 4096, 8192, unused=50, usable=usable, record=asked)])
        plan = memory.decide(pair(now), EAGER, seen(actual_kib=4096 * MIB))[0]
        assert skips(plan) == {"db": "stuck"} and moves(plan) == told


def test_a_size_that_can_not_be_is_no_statistics() -> None:
    odd = domain("db", **WASTEFUL)
    assert odd.balloon is not None
    now = snapshot([replace(odd, balloon=replace(odd.balloon, void=True))])
    plan = decide(now, EAGER)
    assert skips(plan) == {"db": "no-stats"} and not moves(plan)


def test_ignored_requests_are_counted_and_forgotten() -> None:
    history: Optional[MemoryHistory] = None
    asked = domain("db", record=record(4096, 4096, 3096, 60), **WASTEFUL)
    for _turn in range(2):
        history = memory.decide(pair(snapshot([asked])), EAGER, history)[1]
    assert history is not None and history.domains[asked.uuid].stuck_times == 1, "one request, however often seen"
    followed = domain("db", record=record(4096, 4096, 3096, 6), **{**WASTEFUL, "actual": 3096})
    now = snapshot([replace(followed, balloon=replace(followed.balloon, last_update_s=int(NOW_S)))])
    assert memory.decide(pair(now), EAGER, history)[1].domains[asked.uuid].stuck_times == 0


def test_levels_are_left_only_above_their_entry() -> None:
    reserve = 1000
    assert [level_of(kib, reserve, 0, "ok") for kib in (1000, 999, 499, 249)] == ["ok", "soft", "hard", "low"]
    assert level_of(1050, reserve, 0, "soft") == "soft"
    assert level_of(1100, reserve, 0, "soft") == "ok"
    assert level_of(520, reserve, 0, "hard") == "hard"
    assert level_of(520, reserve, 0, "soft") == "soft"
    assert level_of(9999, reserve, 11, "ok") == "low"
    assert level_of(9999, reserve, 7, "low") == "low"
    assert level_of(9999, reserve, 4, "low") == "ok"
    assert level_of(0, 0, 0, "ok") == "ok", "no reserve, no level"


def test_the_level_is_remembered() -> None:
    tight = snapshot([domain("web", **WASTEFUL)], available=1000)
    history = memory.decide(pair(tight), RESERVE_1G)[1]
    assert history.level == "soft"
    easier = snapshot([domain("web", **WASTEFUL)], available=1100)
    assert memory.decide(pair(easier), RESERVE_1G, history)[1].level == "soft"


def test_a_domain_that_turned_often_rests() -> None:
    turned = seen(actual_kib=4096 * MIB, direction=1, moved_s=NOW_S - 20, reversals=2)
    now = snapshot([domain("db", **WASTEFUL)])
    assert skips(memory.decide([now], EAGER, turned)[0]) == {"db": "resting"}
    needed = snapshot([domain("db", **WASTEFUL)], available=1000)
    plan = memory.decide([needed], RESERVE_1G, turned)[0]
    assert moves(plan) == {"db": -126}, "need takes it all the same: the reserve and a tenth, less what is there"


def test_a_reboot_is_remembered_for_its_grace() -> None:
    history = memory.decide(pair(snapshot([domain("db", swap_in=0, **WASTEFUL)])), EAGER)[1]
    rebooted = seen(actual_kib=4096 * MIB, swap_in_kib=9000)
    plan, history = memory.decide([snapshot([domain("db", swap_in=0, **WASTEFUL)])], EAGER, rebooted)
    assert skips(plan) == {"db": "booting"}
    assert history.domains[uuid_of("db")].booted_s == NOW_S


# ---------------------------------------------------------------- supply


def test_a_domain_that_could_not_be_observed_counts_as_last_seen() -> None:
    lost = Skip("lost", uuid_of("lost"), "hung", "its monitor does not answer")
    now = snapshot([domain("db", **STARVED)], available=2048, skips=(lost,))
    history = MemoryHistory(domains={lost.uuid: DomainHistory(1, 4096 * MIB, at_risk_kib=924 * MIB)})
    plan, after = memory.decide(pair(now), RESERVE_1G, history)
    assert moves(plan) == {"db": 100}
    assert after.domains[lost.uuid].at_risk_kib == 924 * MIB


def test_unknown_host_memory_gives_nothing_and_says_so() -> None:
    now = snapshot([domain("db", **STARVED), domain("web", **WASTEFUL)])
    plan = decide(replace(now, host=replace(now.host, memory=None)), EAGER)
    assert moves(plan) == {"web": -1000}
    assert plan.supply_kib is None and "not known" in plan.warnings[0]


def test_a_strict_numatune_is_limited_by_its_cells() -> None:
    now = snapshot([domain("db", cells=frozenset({1}), **STARVED)])
    cells = (Cell(0, free_kib=9999 * MIB), Cell(1, free_kib=100 * MIB))
    plan = decide(replace(now, host=replace(now.host, topology=Topology((), cells))), EAGER)
    assert moves(plan) == {"db": 100}


# ---------------------------------------------------------------- what only some share

SLICE = "/sys/fs/cgroup/machine.slice"


def in_a_slice(left: int, *domains: Domain) -> Snapshot:
    """A host with much to give; its slice, which holds these domains, has *left* MiB."""
    inside = [replace(d, balloon=replace(d.balloon, rooms=(SLICE,))) if d.balloon else d for d in domains]
    now = snapshot(inside)
    return replace(now, host=replace(now.host, rooms=(Room(SLICE, left * MIB),)))


def test_a_limit_that_guests_share_is_given_to_them_once() -> None:
    now = in_a_slice(176, domain("db", **STARVED), domain("app", **{**STARVED, "usable": 90}))
    plan = decide(now, MemoryPolicy())
    assert moves(plan) == {"app": 91, "db": 85}, "both off the starvation line, and what is left in halves"
    assert moves(decide(in_a_slice(260, *now.domains), MemoryPolicy())) == {"app": 133, "db": 127}
    plan = decide(in_a_slice(60, *now.domains), MemoryPolicy(min_change=Amount(kib=40 * MIB)))
    assert moves(plan) == {"app": 60}, "a share of 30M is not worth a command: all goes to who has less left"
    assert [unmet.domain for unmet in plan.unmet] == ["db"]
    assert f"{SLICE}, where its memory must be, has 60M to give" in plan.unmet[0].reason
    assert moves(decide(in_a_slice(-5, *now.domains), MemoryPolicy())) == {}


def test_what_guests_of_a_limit_may_still_touch_is_not_given_again() -> None:
    untouched = domain("big", 4096, rss_kib=3160 * MIB, usable=200)
    assert moves(decide(in_a_slice(1176, domain("db", **STARVED), untouched), EAGER)) == {"db": 129}
    short = in_a_slice(1010, domain("db", **STARVED), untouched)
    assert moves(decide(short, EAGER)) == {"db": 54}, "survival is paid from what is really left there"


def test_who_wastes_within_a_full_limit_pays_for_who_starves_there() -> None:
    """The host itself has enough, so nobody else would have to."""
    lazy = MemoryPolicy(reclaim="lazy", host_reserve=Amount(kib=1024 * MIB))
    now = in_a_slice(0, domain("db", **STARVED), domain("web", **WASTEFUL))
    outside = domain("other", **WASTEFUL)
    plan = decide(replace(now, domains=(*now.domains, outside)), lazy)
    assert moves(plan) == {"web": -129, "db": 129}
    assert memory.fund(plan, lazy, now, now) == (), "what was not given back yet is not there"


@pytest.mark.parametrize("strategy", ["fair", "pairwise"])
@pytest.mark.parametrize("unused", [None, 500, 2000])
def test_who_has_no_room_takes_nothing_from_who_has(strategy: str, unused: Optional[int]) -> None:
    """Neither its turn, nor its share, nor what a neighbour would give in vain."""
    policy = MemoryPolicy(strategy=strategy)
    stuck = domain("stuck", cells=frozenset({1}), **{**STARVED, "usable": 80})
    others = [domain("db", **STARVED)]
    others += [domain("web", **{**WASTEFUL, "unused": unused})] if unused else []
    here = Topology((), (Cell(0), Cell(1, free_kib=0)))
    for available in (17000, 1638 + 150):
        with_it, without = (snapshot(domains, available=available) for domains in ([stuck, *others], others))
        with_it = replace(with_it, host=replace(with_it.host, topology=here))
        plan = decide(with_it, policy)
        assert moves(plan) == moves(decide(without, policy)), available
        assert moves(plan).get("db", 0) > 0 and "stuck" in [unmet.domain for unmet in plan.unmet]


def test_who_has_no_room_costs_nobody_its_cache() -> None:
    stuck = domain("stuck", cells=frozenset({1}), **STARVED)
    web = domain("web", 8192, unused=200, usable=6000)
    now = snapshot([stuck, web], available=1700)
    plan = decide(replace(now, host=replace(now.host, topology=Topology((), (Cell(1, free_kib=0),)))), EAGER)
    assert moves(plan) == {}


def test_pairwise_gives_within_a_full_room_what_is_taken_there() -> None:
    now = in_a_slice(0, domain("db", **STARVED), domain("web", **WASTEFUL))
    assert moves(decide(now, MemoryPolicy(strategy="pairwise"))) == {"web": -1000, "db": 1000}


def test_cells_that_guests_share_are_given_to_them_once() -> None:
    guests = [domain("db", cells=frozenset({1}), **STARVED), domain("app", cells=frozenset({1}), **STARVED)]
    now = snapshot(guests)
    now = replace(now, host=replace(now.host, topology=Topology((), (Cell(0), Cell(1, free_kib=230 * MIB)))))
    assert sum(moves(decide(now, EAGER)).values()) == 230


# ---------------------------------------------------------------- memory of other kinds


@pytest.mark.parametrize("inhibitors", [("hostdev (VFIO)",), ()])
def test_a_guest_whose_memory_the_host_would_keep_may_still_be_in_need(inhibitors: tuple[str, ...]) -> None:
    needy, rich = (domain("db", inhibitors=inhibitors, **state) for state in (STARVED, {**WASTEFUL, "maximum": 8192}))
    futile = seen(actual_kib=2048 * MIB, futile_s=NOW_S)
    plan = decide(snapshot([needy]), EAGER, futile)
    assert moves(plan) == {"db": 129} and not plan.skips
    plan = decide(snapshot([rich]), EAGER, futile)
    assert moves(plan) == {} and skips(plan) == {"db": "inhibited"}


@pytest.mark.parametrize(("size", "code"), [(4096, "inhibited"), (2048, "no-stats")])
def test_whose_memory_the_host_would_keep_is_asked_for_statistics_only_if_it_could_get_more(
    size: int, code: str
) -> None:
    guest = domain("db", size, 4096, inhibitors=("hostdev (VFIO)",), period_s=0)
    assert skips(decide(snapshot([guest]), EAGER)) == {"db": code}


def test_what_was_given_to_a_guest_whose_memory_the_host_keeps_can_be_released() -> None:
    for size in (3000, 4096):
        guest = domain("db", size, 4096, inhibitors=("VFIO",), usable=size - 1000, record=record(2048, 2048, size))
        plan = memory.release(pair(snapshot([guest])), EAGER)[0]
        assert moves(plan) == {"db": 2048 - size} and plan.not_restored == ()


def test_virtio_mem_is_left_alone() -> None:
    """libvirt counts it as the balloon's size, and a target leaves it out: each give would be too large."""
    assert skips(decide(snapshot([domain("db", virtio_mem=True, **STARVED)]), EAGER)) == {"db": "no-balloon"}


@pytest.mark.parametrize(
    "neighbour",
    [
        {"inhibitors": ("hugepages",), "rss_kib": 200 * MIB},  # its pages are in no rss
        {"rss_kib": (65536 + 80) * MIB, "last_update_s": 0},  # touched, and silent
    ],
)
def test_a_neighbour_that_can_touch_no_more_takes_nothing_from_what_is_given(neighbour: dict[str, Any]) -> None:
    host = snapshot([domain("db", **STARVED), domain("big", 65536, 65536, **neighbour)], available=20000)
    assert moves(decide(host, RESERVE_1G)) == {"db": 129}


def test_what_could_not_be_observed_may_still_touch_its_memory() -> None:
    lost = Skip("big", uuid_of("big"), "hung", "it did not answer", untouched_kib=15000 * MIB)
    host = snapshot([domain("db", **STARVED)], available=20000)
    free = decide(host, RESERVE_1G).supply_kib
    charged = decide(replace(host, skips=(lost,)), RESERVE_1G).supply_kib
    assert free is not None and charged is not None and free - charged == 15000 * MIB


# ---------------------------------------------------------------- how much at a time


def test_the_least_change_never_keeps_a_big_guest_wasteful() -> None:
    """2 % of 64 GiB is more than the whole band between size thresholds."""
    limits = limits_of(MemorySettings(), MemoryPolicy(), 65536 * MIB)
    assert limits.min_change_kib == 75 * MIB
    assert limits_of(MemorySettings(), MemoryPolicy(), 512 * MIB).min_change_kib == 16 * MIB
    assert limits_of(MemorySettings(), MemoryPolicy(strategy="pairwise"), 512 * MIB).min_change_kib == 8 * MIB


# ---------------------------------------------------------------- funding


def funded(plan: MemoryPlan, planned: Snapshot, now: Snapshot) -> dict[str, int]:
    return {m.domain: (m.after_kib - m.before_kib) // MIB for m in memory.fund(plan, RESERVE_1G, planned, now)}


def test_funding_again_after_the_records_were_written_pays_only_the_rest() -> None:
    starved = domain("db", **STARVED)
    planned = snapshot([starved], available=1104)
    plan = MemoryPlan(*[decide(planned, RESERVE_1G).before] * 2, moves=(_give(starved, 129),))
    first = memory.fund(plan, RESERVE_1G, planned, planned)
    assert [move.after_kib - move.before_kib for move in first] == [80 * MIB]
    written = replace(starved, record=record(2048, 2048, 2128, age_s=0))
    assert funded(plan, replace(planned, domains=(written,)), planned) == {}, "80M are promised already"
    more = replace(planned, domains=(written,))
    richer = snapshot([starved], available=1304)
    assert funded(plan, more, richer) == {"db": 129}


def _give(starved: Domain, mib: int) -> BalloonMove:
    assert starved.balloon is not None
    kib = starved.balloon.actual_kib
    return BalloonMove(starved.name, starved.uuid, kib, kib + mib * MIB, "usable 96M < 150M")


def test_a_domain_that_went_away_gets_nothing() -> None:
    planned = snapshot([domain("db", **STARVED), domain("web", **WASTEFUL)])
    plan = decide(planned, RESERVE_1G)
    assert funded(plan, planned, replace(planned, domains=planned.domains[1:])) == {}


def test_what_a_guest_took_by_itself_is_not_given_again() -> None:
    planned = snapshot([domain("db", **STARVED)])
    plan = decide(planned, RESERVE_1G)
    grown = replace(planned, domains=(domain("db", **{**STARVED, "actual": 2148}),))
    assert [m.after_kib // MIB for m in memory.fund(plan, RESERVE_1G, planned, grown)] == [2177]


def test_a_bare_second_look_is_enough() -> None:
    """The re-read may lack records, owners and what the XML tells."""
    planned = snapshot([domain("db", inhibitors=(), limit=2200, **STARVED)])
    plan = decide(planned, RESERVE_1G)
    bare = replace(planned, domains=(domain("db", **STARVED),))
    assert funded(plan, planned, bare) == {"db": 88}


# ---------------------------------------------------------------- statistics periods


def with_period(current_s: int, original_s: int, intended_s: int, **more: Any) -> Domain:
    part = PeriodRecord(original_s, original_s, intended_s, int(NOW_S) - 60)
    old = more.pop("record", None) or Record(HOST_UUID, 1)
    return domain("db", period_s=current_s, record=replace(old, period=part), **{**WASTEFUL, **more})


def periods(plan: MemoryPlan) -> dict[str, int]:
    return {move.domain: move.after_s for move in plan.moves if isinstance(move, PeriodMove)}


def test_release_puts_the_period_back_last() -> None:
    now = snapshot([with_period(TICK_S, 0, TICK_S, record=record(5120, 5120, 4096), maximum=8192)])
    plan = memory.release(pair(now), EAGER)[0]
    assert moves(plan) == {"db": 1024} and isinstance(plan.moves[-1], PeriodMove)
    assert periods(plan) == {"db": 0} and plan.not_restored == ()


def test_release_keeps_the_period_while_memory_is_away() -> None:
    away = with_period(TICK_S, 0, TICK_S, record=record(5120, 5120, 4096), maximum=8192)
    plan = memory.release(pair(snapshot([away], available=1500)), RESERVE_1G)[0]
    assert periods(plan) == {} and "missing" in str(plan.not_restored[0])


def test_a_period_that_somebody_changed_is_left() -> None:
    assert periods(memory.release(pair(snapshot([with_period(7, 0, 5)])), EAGER)[0]) == {}
    plan = decide(snapshot([with_period(0, 0, 5)]), EAGER)
    assert periods(plan) == {} and "set to 0 by somebody" in plan.skips[0].reason


def test_release_of_what_cannot_be_judged_only_grows() -> None:
    """Settings that contradict each other say nothing of how far a domain may shrink."""
    odd = MemoryPolicy(reclaim="eager", settings=MemorySettings(starvation=Amount(kib=400 * MIB)))
    down = domain("down", record=record(2048, 2048, 4096), **WASTEFUL)
    up = domain("up", 1024, 4096, unused=0, usable=0, record=record(4096, 4096, 1024))
    plan = memory.release(pair(snapshot([down, up])), odd)[0]
    assert moves(plan) == {"up": 3072}
    assert [line.partition(":")[0] for line in map(str, plan.not_restored)] == ["down"]


def test_release_calls_back_what_was_sent_away_and_never_went() -> None:
    """However long ago: as long as the request may be carried out, a balloon that is home does not stay there."""
    for age_s in (1, 100000):
        home = domain("db", record=record(4096, 4096, 3096, age_s), **WASTEFUL)
        plan = memory.release(pair(snapshot([home])), EAGER)[0]
        assert [str(move) for move in plan.moves] == ["db: 3096M -> 4096M"] and plan.not_restored == ()


def test_a_give_that_was_lost_is_given_again() -> None:
    """It costs no supply, for it is promised: should its pass have died, it never was. A release asks at once."""
    promised = domain("db", record=record(3072, 1024, 3072, 1), **STARVED)
    now = snapshot([promised], available=1024)
    plan = memory.release(pair(now), RESERVE_1G)[0]
    assert moves(plan) == {"db": 1024} and plan.not_restored == ()
    assert [move.after_kib for move in memory.fund(plan, RESERVE_1G, now, now)] == [3072 * MIB]


@pytest.mark.parametrize("age_s", [120, 3600, -3600])
def test_a_give_of_which_nothing_was_heard_is_asked_for_again_and_not_taken_from(age_s: int) -> None:
    """A driver that has it from its start says nothing: by the size from before it would use 1548M less than it does.

    So a page less is asked for, which it answers. A starved one is asked the same, and is promised no more.
    """
    silent = domain("db", record=record(4096, 1024, 3596, age_s), **{**WASTEFUL, "actual": 2048, "maximum": 4096})
    assert moves(decide(snapshot([replace(silent, record=None)]), EAGER)) == {}, "more usable than it has"
    silent = replace(silent, balloon=replace(silent.balloon, usable_kib=2000 * MIB))
    assert moves(decide(snapshot([replace(silent, record=None)]), EAGER))["db"] < 0
    assert moves(memory.release(pair(snapshot([silent])), EAGER)[0]) == {"db": 2048}
    (reminder,) = decide(snapshot([silent]), EAGER).moves
    assert isinstance(reminder, BalloonMove) and reminder.after_kib == 3596 * MIB - 4
    assert "asked again: 3596M was promised" in reminder.reason
    starved = domain("db", record=record(4096, 1024, 3072, age_s), **STARVED)
    assert moves(decide(snapshot([starved]), MemoryPolicy())) == {"db": 1024}


@pytest.mark.parametrize(("age_s", "asked"), [(5, {}), (10, {"db": 1024})])
def test_a_give_that_is_there_by_the_guests_own_word_is_asked_for_sooner(age_s: int, asked: dict[str, int]) -> None:
    """Not at once: libvirt hears of a size a second late."""
    guest = domain("db", 2048, 4096, unused=2400, usable=2500, record=record(4096, 1024, 3072, age_s))
    assert moves(decide(snapshot([guest]), EAGER)) == asked


def test_a_limit_is_compared_with_what_a_guest_may_have_already() -> None:
    """QEMU's overhead is what it holds beyond that; by an old size it would be most of the limit."""
    guest = domain("db", 2048, 4096, usable=596, rss=4160, limit=5000, record=record(4096, 2048, 4096, 60))
    plan = memory.release(pair(snapshot([guest])), EAGER)[0]
    assert moves(plan) == {"db": 2048} and plan.not_restored == ()


@pytest.mark.parametrize(
    ("age_s", "state"),
    [(60, {"usable": 700}), (3600, {"usable": 700}), (60, {"last_update_s": 1}), (3600, {"last_update_s": 1})],
)
@pytest.mark.parametrize("actual", [2048, 1500])
def test_a_release_does_not_call_back_what_a_guest_may_have_and_need(
    actual: int, age_s: int, state: dict[str, Any]
) -> None:
    guest = domain("db", actual, 4096, record=record(2048, actual, 4096, age_s), **state)
    plan = memory.release(pair(snapshot([guest])), EAGER)[0]
    (move,) = plan.moves
    assert (
        isinstance(move, BalloonMove)
        and move.after_kib >= 4096 * MIB - 4
        and "may need that" in str(plan.not_restored[0])
    )
    driverless = replace(guest, balloon=replace(guest.balloon, last_update_s=0))
    (move,) = memory.release(pair(snapshot([driverless])), EAGER)[0].moves
    assert isinstance(move, BalloonMove) and move.after_kib == 2048 * MIB


@pytest.mark.parametrize("usable", [1500, 2500])
def test_a_driver_that_never_answers_is_asked_less_and_less_often(usable: int) -> None:
    """Though the guest's own statistics go on, and say that it starves, or has more than its size."""
    kept, history, asked_s = record(4096, 2048, 4096, 0), MemoryHistory(), []
    for second in range(0, 3600, 5):
        guest = domain("db", 2048, 4096, usable=usable, record=kept, last_update_s=int(NOW_S) + second)
        now = replace(snapshot([guest]), wall_s=NOW_S + second, monotonic_s=NOW_S + second)
        plan, history = memory.decide([now], EAGER, history)
        for move in plan.moves:
            assert isinstance(move, BalloonMove)
            kept = baseline.intend(kept, guest, move, HOST_UUID, int(NOW_S) + second)
            asked_s.append(second)
    assert 3 <= len(asked_s) <= 6 and asked_s == sorted(asked_s), asked_s
    pauses_s = [later - sooner for sooner, later in zip(asked_s, asked_s[1:])]
    assert pauses_s == sorted(pauses_s), "each pause longer than the one before"


def test_a_take_that_stopped_half_way_is_made_anew() -> None:
    guest = domain("db", 7900, 8192, unused=5400, usable=5500, record=record(8192, 8192, 6000, 36000))
    assert moves(decide(snapshot([guest]), EAGER))["db"] < 0


def test_an_answer_is_no_rise_of_demand() -> None:
    """What it used was counted from too small a size before."""
    silent = domain("db", 2200, 16384, usable=100, record=record(4096, 2048, 4096, 30))
    before = snapshot([silent])
    history = memory.decide(pair(before), EAGER)[1]
    answered = domain("db", 4096, 16384, usable=100, record=record(4096, 2048, 4096, 30), last_update_s=int(NOW_S) + 4)
    later = replace(snapshot([answered]), wall_s=NOW_S + 5, monotonic_s=NOW_S + 5)
    plan = memory.decide([before, later], EAGER, history)[0]
    assert moves(plan)["db"] < 400 and "rising" not in plan.moves[0].reason


@pytest.mark.parametrize("age_s", [5, 11, 119])
@pytest.mark.parametrize("strategy", ["fair", "pairwise"])
def test_who_did_not_answer_the_last_promise_gets_no_new_one(age_s: int, strategy: str) -> None:
    starved = domain("db", 2048, 4096, unused=20, usable=96, record=record(1900, 1900, 3072, age_s))
    now = pair(snapshot([starved]))
    planned = moves(memory.decide(now, MemoryPolicy(strategy=strategy))[0])
    assert planned.get("db", 0) <= 1024
    more = moves(memory.decide(now, MemoryPolicy(strategy=strategy), safeties=Safeties(answers=False))[0])
    assert (more.get("db", 0) > 1024) is (age_s > 10 or strategy == "pairwise")


def test_a_release_ends_at_the_original_to_the_page() -> None:
    """Asked for in vain, then for a page less, then for all of it."""
    twice = record(3072, 2048, 3072, 1)
    assert twice.memory
    twice = replace(twice, memory=replace(twice.memory, reach_kib=(2048 * MIB, 3072 * MIB)))
    steps = [(twice, 2048 * MIB, 3072 * MIB - 4), (record(3072, 2048, 3072, 3600), 2048 * MIB, 3072 * MIB - 4)]
    less = record(3072, 2048, 3072, 1)
    assert less.memory
    less = replace(less, memory=replace(less.memory, intended_kib=3072 * MIB - 4))
    steps.append((less, 3072 * MIB - 4, 3072 * MIB))
    for kept, actual_kib, target_kib in steps:
        guest = domain("db", record=kept, **STARVED)
        guest = replace(guest, balloon=replace(guest.balloon, actual_kib=actual_kib, usable_kib=500 * MIB))
        (move,) = memory.release(pair(snapshot([guest])), EAGER)[0].moves
        assert isinstance(move, BalloonMove) and move.after_kib == target_kib
        left = baseline.without_restored(kept, guest, memory=True, pins=False)
        assert left is not None, "until it was sent there"


@pytest.mark.parametrize(
    "silence", [{"period_s": 0}, {"last_update_s": 0}, {"last_update_s": 1}, {"inhibitors": ("VFIO",)}]
)
def test_a_give_is_given_again_where_no_statistics_flow(silence: dict[str, Any]) -> None:
    guest = domain("db", 2048, 4096, record=record(3072, 1024, 3072, 3600), **silence)
    assert moves(memory.release(pair(snapshot([guest])), RESERVE_1G)[0]) == {"db": 1024}


@pytest.mark.parametrize("age_s", [1, 60])
def test_a_take_that_may_never_have_been_made_is_made_by_a_release(age_s: int) -> None:
    """Its balloon is at rest, so what it uses is known."""
    guest = domain("db", record=record(3500, 4096, 3500, age_s), **WASTEFUL)
    plan = memory.release(pair(snapshot([guest])), EAGER)[0]
    assert moves(plan) == {"db": -596} and plan.not_restored == ()


def test_a_take_that_leads_below_the_original_is_called_back_even_while_it_moves() -> None:
    guest = domain("db", record=record(3500, 4096, 3000, 1), **WASTEFUL)
    now = snapshot([guest])
    plan = memory.release([a_tick_before(now, actual_kib=4200 * MIB), now], EAGER)[0]
    assert [str(move) for move in plan.moves] == ["db: 3000M -> 3500M"]
    moving = replace(guest, record=record(3500, 4096, 3600, 1))
    now = snapshot([moving])
    plan = memory.release([a_tick_before(now, actual_kib=4200 * MIB), now], EAGER)[0]
    told = "db: on its way from 4096M to 3600M"
    assert plan.moves == () and tuple(map(str, plan.not_restored)) == (told,)


MOVING = {"actual_kib": 4300 * MIB}


@pytest.mark.parametrize(
    ("kept", "state", "before", "target_mib", "told"),
    [
        (record(2048, 4400, 1500, 1), {"actual": 4096, "usable": 900}, MOVING, 3346, "it needs 3346M"),
        (record(2048, 4400, 2500, 1), {"actual": 4096, "usable": 900}, MOVING, 3383.5, "on its way"),
        (record(4096, 1500, 512, 1), {"actual": 1400, "usable": 300}, {}, 1287.5, "are missing"),
        (record(4096, 2100, 512, 1), {"actual": 2048, "usable": 300, "limit": 1900}, {}, 1935.5, "its limits allow"),
        (record(2048, 4096, 3000, 1), {"actual": 4096, "usable": 160}, {}, 4096, "it needs 4086M"),
        (record(2048, 4096, 3000, 900), {"actual": 4096, "usable": 160}, {}, 4096, "it needs 4086M"),
        (record(2048, 3000, 1500, 900), {"actual": 3000, "usable": 400}, {}, 2787.5, "mode is grow-only"),
    ],
)
def test_a_release_lets_no_request_lead_below_what_is_used_by_now(
    kept: Record, state: dict[str, Any], before: dict[str, int], target_mib: float, told: str
) -> None:
    now = snapshot([domain("db", maximum=8192, unused=50, record=kept, **state)], available=1024)
    policy = replace(RESERVE_1G, settings=MemorySettings(mode="grow-only" if told == "mode is grow-only" else "auto"))
    plan = memory.release([a_tick_before(now, **before), now], policy)[0]
    assert [move.after_kib / MIB for move in plan.moves if isinstance(move, BalloonMove)] == [target_mib]
    assert told in str(plan.not_restored[0])


@pytest.mark.parametrize("silence", [{"period_s": 0}, {"last_update_s": 0}, {"last_update_s": 1}])
def test_what_may_never_have_been_asked_shrinks_nobody_of_whom_nothing_is_known(silence: dict[str, Any]) -> None:
    """Calling a take back to the original would be one, had it never been made. A rescue would do so, too."""
    guest = domain("db", 3000, 8192, record=record(2048, 3000, 1500), **silence)
    plan = memory.release(pair(snapshot([guest])), EAGER)[0]
    assert [str(move) for move in plan.moves] == ["db: 1500M -> 3000M"]
    assert "not shrunk to its 2048M" in str(plan.not_restored[0])


def test_a_release_takes_no_promise_back_from_the_dying() -> None:
    guest = domain("db", 1024, 4096, unused=5, usable=20, record=record(1100, 1024, 3072, 1))
    plan = memory.release(pair(snapshot([guest])), EAGER)[0]
    assert moves(plan) == {"db": 2048} and "may need that" in str(plan.not_restored[0])


def test_what_was_promised_is_asked_for_again_though_the_host_has_no_more() -> None:
    guest = domain("db", 1024, 4096, rss=3000, record=record(4096, 1024, 2048), period_s=0)
    plan = memory.release(pair(snapshot([guest], available=1024)), RESERVE_1G)[0]
    assert moves(plan) == {"db": 1024} and "are missing" in str(plan.not_restored[0])


def test_a_release_asks_for_nothing_below_what_a_guest_has_when_its_limit_fell() -> None:
    guest = domain("db", 2048, 4096, limit=1900, record=record(3072, 1024, 3072, 1))
    plan = memory.release(pair(snapshot([guest])), EAGER)[0]
    assert plan.moves == () and "its limits allow" in str(plan.not_restored[0])


def test_a_guest_that_is_home_but_needs_more_is_not_called_back_from_it() -> None:
    needy = domain("db", 2048, 4096, unused=20, usable=96, record=record(2048, 2048, 3072, 1))
    plan = memory.release(pair(snapshot([needy])), EAGER)[0]
    assert moves(plan) == {"db": 1024} and "may need that" in str(plan.not_restored[0])


def test_a_take_that_counts_as_gone_is_called_back_when_it_would_lead_too_far() -> None:
    """Its QEMU keeps the target: a driver that comes back goes there."""
    guest = domain("db", 4096, 8192, unused=250, usable=600, record=record(8192, 4096, 2048, 3600))
    assert [str(move) for move in decide(snapshot([guest]), EAGER).moves] == ["db: 2048M -> 3684M"]
    restored = replace(guest, id=2)
    assert [str(move) for move in decide(snapshot([restored]), EAGER).moves] == ["db: 2048M -> 3684M"]


@pytest.mark.parametrize("silence", [{"period_s": 0}, {"last_update_s": 0}, {"last_update_s": 1}])
def test_release_leaves_what_somebody_set_on_a_guest_without_statistics(silence: dict[str, Any]) -> None:
    """At its maximum it may just boot; and a balloon that moves, or may between two events, is not known to stay."""
    theirs = domain("db", 2500, 4096, record=record(3072, 2048, 1024), **silence)
    plan = memory.release(pair(snapshot([theirs])), EAGER)[0]
    assert [adoption.memory_kib for adoption in plan.adoptions] == [2500 * MIB]
    assert plan.moves == () and plan.not_restored == ()
    for unsure in (
        pair(snapshot([domain("db", 4096, 4096, record=record(3072, 2048, 1024), **silence)])),
        [a_tick_before(snapshot([theirs]), actual_kib=2600 * MIB), snapshot([theirs])],
        [replace(snapshot([theirs]), monotonic_s=NOW_S - 1), snapshot([theirs])],
    ):
        plan = memory.release(unsure, EAGER)[0]
        assert plan.adoptions == () and plan.moves == ()
        assert "it is not known whether somebody set its" in str(plan.not_restored[0])


def test_release_names_whose_record_cannot_be_read_and_nobody_who_has_none_of_memory() -> None:
    damaged = domain("db", 4096, record_error="its record is damaged")
    pinned = domain("web", 4096, record=Record(HOST_UUID, 1), busy="a job is under way")
    copied = domain("copy", 4096, record_error=COPY)
    home = domain("home", 2048, 4096, record=record(2048, 3000, 2048), state="paused")
    hung = Skip("hung", uuid_of("hung"), "hung", "it did not answer in time")
    gone = Skip("gone", uuid_of("gone"), "gone", "it vanished meanwhile")
    now = snapshot([damaged, pinned, copied, home], skips=(hung, gone))
    plan = memory.release(pair(now), EAGER)[0]
    told, *others = map(str, plan.not_restored)
    assert told.startswith("db: its record is damaged: ") and uuid_of("db") in told
    assert others == ["hung: it did not answer in time"]


def test_a_period_that_was_recorded_and_never_set_is_set() -> None:
    """The pass died in between. What somebody switched off had been answered before."""
    lost = with_period(0, 0, 5, last_update_s=0)
    assert periods(decide(snapshot([lost]), EAGER)) == {"db": 5}


def test_every_reason_is_one_line() -> None:
    now = snapshot([domain("db", **STARVED), domain("web", **WASTEFUL), domain("off", 100, state="paused")])
    plan = decide(now, EAGER)
    lines = [part.reason for part in (*plan.moves, *plan.skips, *plan.unmet)]
    assert lines and all(line and "\n" not in line for line in lines)
    assert str(plan.moves[0]) == "web: 4096M -> 3096M"


def test_who_needs_nearly_all_gets_all() -> None:
    """The last 15M would be less than a command moves, and stay unmet for ever."""
    guest = domain("db", 900, 1024, unused=20, usable=116)
    (move,) = decide(snapshot([guest]), EAGER).moves
    assert isinstance(move, BalloonMove) and move.after_kib == 1024 * MIB
