# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The default takes nothing but for a need of now, and gives back what it took; each test also without its safety."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Optional

import pytest
from kvmsched import baseline
from kvmsched.config import MemoryPolicy, MemorySettings, Rule
from kvmsched.model import BalloonMove, Domain, HostMemory, MemoryPlan, Room, Skip, Snapshot
from kvmsched.policy import memory
from kvmsched.policy.memory.history import DomainHistory, MemoryHistory, OwnUse
from kvmsched.policy.memory.safeties import ALL_ON, Safeties
from kvmsched.units import Amount
from memory_worlds import HOST_UUID, MIB, NOW_S, TICK_S, domain, moves, pair, record, skips, snapshot, uuid_of

AUTO = MemoryPolicy(host_reserve=Amount(kib=1024 * MIB))
STARVED: dict[str, Any] = {"actual": 2048, "maximum": 8192, "unused": 20, "usable": 96}
WASTEFUL: dict[str, Any] = {"actual": 4096, "unused": 2000, "usable": 2500}
HOUR_S = 3600


def plan_of(
    now: Snapshot,
    history: Optional[MemoryHistory] = None,
    safeties: Safeties = ALL_ON,
    policy: MemoryPolicy = AUTO,
) -> MemoryPlan:
    return memory.decide(pair(now), policy, history, safeties)[0]


def seen(name: str = "db", **values: Any) -> MemoryHistory:
    """A history in which the domain was seen a tick ago, at the size that it has in STARVED."""
    known = {"last_update_s": int(NOW_S) - 6, "actual_kib": 2048 * MIB, **values}
    return MemoryHistory(domains={uuid_of(name): DomainHistory(**known)}, wall_s=NOW_S - TICK_S)


# ---------------------------------------------------------------- one reading, one gift


@pytest.mark.parametrize(("age_s", "given"), [(0, 0), (0, 129), (1, 129)])
def test_what_was_given_since_a_reading_is_not_given_again(age_s: int, given: int) -> None:
    """The gift arrived, which brought this pass forward; the reading is still the old one."""
    kept = record(2048, 2048, 2048 + given, age_s) if given else None
    now = snapshot([domain("db", **{**STARVED, "actual": 2048 + given}, record=kept)])
    assert moves(plan_of(now)) == ({} if given else {"db": 129})
    assert moves(plan_of(now, safeties=Safeties(one_gift=False))) == {"db": 129}


def test_gifts_of_several_passes_on_one_reading_count_together() -> None:
    """The record tells of the last one; the size at which the reading was first seen is remembered."""
    now = snapshot([domain("db", **{**STARVED, "actual": 2177}, record=record(2048, 2147, 2177, 0))])
    history = seen(last_update_s=int(NOW_S) - 1, read_kib=2048 * MIB)
    assert moves(memory.decide([now], AUTO, history)[0]) == {}
    assert moves(memory.decide([now], AUTO, seen())[0])["db"] > 0


def test_what_a_reading_says_of_rates_holds_until_the_next() -> None:
    """What it could not be given at once, it is given when takes arrive, not a reading later."""
    thrashing = domain("db", **{**STARVED, "swap_in": 500, "swap_out": 400})
    first, history = memory.decide([snapshot([thrashing])], AUTO, seen(swap_in_kib=0, swap_out_kib=0))
    asked = moves(first)["db"]
    assert asked > moves(plan_of(snapshot([domain("db", **STARVED)])))["db"] and "swapping" in first.moves[0].reason
    part = domain("db", **{**STARVED, "actual": 2088, "swap_in": 500, "swap_out": 400})
    fed = replace(part, record=record(2048, 2048, 2088, 0))
    plan, _history = memory.decide([snapshot([fed])], AUTO, history)
    assert moves(plan) == {"db": asked - 40}


def test_what_a_guest_took_by_itself_is_no_gift() -> None:
    by_itself = {**STARVED, "actual": 2300, "usable": 10, "autodeflate": True}
    plan = plan_of(snapshot([domain("db", **by_itself, record=record(2048, 1900, 2000, 0))]))
    assert "usable 110M < 150M" in plan.moves[0].reason, "100M of 400M were ours"


def test_one_difference_is_noise_and_two_of_one_sign_are_a_rise() -> None:
    now = snapshot([domain("db", 4000, 8192, unused=50, usable=250)])
    once, twice = (
        seen(actual_kib=4000 * MIB, used_kib=3550 * MIB, used_s=int(NOW_S) - 6, grew_kib=grew * MIB)
        for grew in (-20, 150)
    )
    assert moves(memory.decide([now], AUTO, once)[0]) == {}
    assert moves(memory.decide([now], AUTO, once, Safeties(two_rises=False))[0]) == {"db": 215}
    assert moves(memory.decide([now], AUTO, twice)[0]) == {"db": 215}


def test_what_only_rises_is_paid_from_what_is_free() -> None:
    rising = domain("db", 4000, 8192, unused=50, usable=250)
    history = seen(actual_kib=4000 * MIB, used_kib=3550 * MIB, used_s=int(NOW_S) - 6, grew_kib=150 * MIB)
    now = snapshot([rising, domain("web", **WASTEFUL)], available=1124)
    assert moves(plan_of(now, history)) == {"db": 100}


# ---------------------------------------------------------------- who pays


def test_nothing_is_taken_that_could_not_be_granted() -> None:
    promised = domain("big", 65536, rss=6144, last_update_s=0)
    now = snapshot([domain("db", **STARVED), domain("web", **WASTEFUL), promised], available=30000, total=98304)
    assert moves(plan_of(now)) == {"db": 54}
    assert moves(plan_of(now, safeties=Safeties(useful=False))).keys() == {"db", "web"}


def test_a_donor_keeps_most_of_what_it_has_unused_and_its_worst_rise() -> None:
    now = snapshot([domain("db", 4000, 8192, usable=0), domain("web", 4096, unused=600, usable=700)], available=1024)
    assert moves(plan_of(now))["web"] == -180
    assert moves(plan_of(now, safeties=Safeties(keep=False)))["web"] < -200
    bursts = seen("web", actual_kib=4096 * MIB, worst_old_kib=450 * MIB)
    assert moves(plan_of(now, bursts))["web"] == -100, "700 usable, less 450 and its starvation line"


def test_the_worst_rise_is_remembered_for_a_day_and_longer() -> None:
    history = MemoryHistory()
    for step, usable in enumerate((2500, 2500, 1500, 900, 2500)):
        guest = domain("web", 4096, unused=500, usable=usable, last_update_s=int(NOW_S) + 5 * step)
        history = memory.decide([at(snapshot([guest]), 5 * step)], AUTO, history)[1]
    assert history.domains[uuid_of("web")].worst_kib == 1600 * MIB, "over two readings"
    for day, worst in ((1.1, 1600), (2.3, 0)):
        after_s = int(day * 24 * HOUR_S)
        guest = domain("web", 4096, unused=500, usable=2500, last_update_s=int(NOW_S) + after_s)
        history = memory.decide([at(snapshot([guest]), after_s)], AUTO, history)[1]
        known = history.domains[uuid_of("web")]
        assert max(known.worst_kib, known.worst_old_kib) == worst * MIB


def at(now: Snapshot, after_s: float) -> Snapshot:
    return replace(now, wall_s=NOW_S + after_s, monotonic_s=NOW_S + after_s)


def test_what_only_some_have_beyond_their_originals_is_asked_back_first() -> None:
    grown = domain("grown", 3000, 8192, unused=900, usable=1500, record=record(2048, 2048, 3000))
    now = snapshot([domain("db", 4000, 8192, usable=0), grown, domain("web", **WASTEFUL)], available=1024)
    assert moves(plan_of(now)) == {"db": 225, "grown": -225}


# ---------------------------------------------------------------- a host in danger


def test_short_is_danger_and_not_a_number() -> None:
    now = snapshot([domain("web", **WASTEFUL), domain("db", 8192, unused=100, usable=6000)], available=500)
    plan = plan_of(now)
    assert moves(plan) == {}
    assert "524M below its reserve, but guests can use only 0M more" in plan.warnings[0]
    assert moves(plan_of(now, safeties=Safeties(danger=False)))


def test_a_host_that_grew_may_grow_as_much_again() -> None:
    now = snapshot([domain("web", **WASTEFUL)], available=900)
    total, rss = 32768 * MIB, 4160 * MIB
    grew = OwnUse(NOW_S - 300, total - 900 * MIB - rss - 100 * MIB)
    long_ago = replace(grew, wall_s=NOW_S - 700)
    assert moves(plan_of(now, MemoryHistory(own_use=(grew,)))) == {"web": -100}
    assert moves(plan_of(now, MemoryHistory(own_use=(long_ago,)))) == {}


@pytest.mark.parametrize(("read_mib", "taken"), [(0, {}), (4, {}), (50, {"web": -226})])
def test_a_host_that_reads_from_its_swap_is_in_danger(read_mib: int, taken: dict[str, int]) -> None:
    now = snapshot([domain("web", **WASTEFUL)], available=900)
    now = replace(now, host=replace(now.host, memory=HostMemory(32768 * MIB, 900 * MIB, swap_in_kib=read_mib * MIB)))
    history = replace(seen("web", actual_kib=4096 * MIB), swap_in_kib=0)
    assert moves(memory.decide([now], AUTO, history)[0]) == taken


def test_a_host_in_danger_takes_what_is_resident() -> None:
    """Of memory that was never touched it would get nothing."""
    untouched = domain("new", 8192, rss=1000, unused=7000, usable=7100)
    now = snapshot([untouched, domain("web", **WASTEFUL)], available=700)
    assert moves(plan_of(now)) == {"web": -426}


# ---------------------------------------------------------------- survival


def test_who_starves_is_fed_from_what_is_really_free_half_of_it_at_a_time() -> None:
    promised = domain("big", 65536, rss=6144, last_update_s=0)
    for usable, available, given in ((96, 4096, 54), (0, 4096, 150), (0, 1024 + 200, 100)):
        now = snapshot([domain("db", **{**STARVED, "usable": usable}), promised], available=available)
        plan = plan_of(now)
        assert moves(plan) == {"db": given} and [m.on_credit for m in plan.moves] == [True]
        assert moves(plan_of(now, safeties=Safeties(survival=False))) == {}


def test_a_wide_band_is_no_matter_of_survival() -> None:
    wide = {"memory": {"starvation": Amount(pct=10.0), "waste": Amount(pct=20.0)}}
    promised = domain("big", 65536, rss=6144, last_update_s=0)
    now = snapshot([domain("db", 16384, 32768, unused=100, usable=200), promised], available=8192)
    policy = replace(AUTO, rules=(Rule("db", wide["memory"]),))
    assert moves(plan_of(now, policy=policy)) == {"db": 128}, "to 1 % of its maximum"


def test_nothing_is_given_beyond_promises_on_a_host_that_reads_from_its_swap() -> None:
    promised = domain("big", 65536, rss=6144, last_update_s=0)
    now = snapshot([domain("db", **STARVED), promised], available=4096)
    now = replace(now, host=replace(now.host, memory=HostMemory(32768 * MIB, 4096 * MIB, swap_in_kib=50 * MIB)))
    assert moves(memory.decide([now], AUTO, replace(seen(), swap_in_kib=0))[0]) == {}
    assert moves(memory.decide([now], AUTO, replace(seen(), swap_in_kib=49 * MIB))[0]) == {"db": 54}


# ---------------------------------------------------------------- debts


OWED = domain("db", 2048, 4096, unused=20, usable=96, record=record(3048, 3048, 2048))


def test_a_debt_goes_back_whole_and_at_once_when_its_guest_starves() -> None:
    assert moves(plan_of(snapshot([OWED]))) == {"db": 1000}
    assert moves(plan_of(snapshot([OWED]), safeties=Safeties(debts=False))) == {"db": 129}


def test_a_debt_comes_before_comfort() -> None:
    other = domain("app", 2048, 8192, unused=20, usable=140)
    plan = plan_of(snapshot([OWED, other], available=1024 + 500))
    assert moves(plan) == {"db": 490, "app": 10} or moves(plan) == {"db": 500}


def test_cache_yields_to_a_debt_and_to_no_growth() -> None:
    cache = domain("cache", 8192, unused=100, usable=6000)
    assert moves(plan_of(snapshot([OWED, cache], available=1024)))["cache"] == -1000
    grows = replace(OWED, record=None)
    assert moves(plan_of(snapshot([grows, cache], available=1024))) == {}


@pytest.mark.parametrize("reclaim", [None, "eager"])
@pytest.mark.parametrize("available", [1700, 1500, 1000])
def test_a_cache_that_is_shared_reaches_who_needs_it_also_where_the_host_lacks_some(
    available: int, reclaim: Optional[str]
) -> None:
    """What the host lacks is covered first, or the cache would fill that hole and nobody would get anything."""
    share = MemoryPolicy(reclaim=reclaim, cache="share")
    cache = domain("cache", 8192, unused=100, usable=6000)
    db = domain("db", 2048, 8192, unused=20, usable=80)
    plan = plan_of(snapshot([cache, db], available=available), policy=share)
    assert moves(plan)["db"] == 145, moves(plan)
    assert moves(plan).get("cache", 0) <= min(0, available - 1638 - 145)


@pytest.mark.parametrize("reclaim", [None, "eager"])
def test_no_cache_is_taken_for_a_need_that_all_caches_could_not_reach(reclaim: Optional[str]) -> None:
    share = MemoryPolicy(reclaim=reclaim, cache="share")
    promised = domain("asleep", 9000, rss=1064, unused=200, usable=250)
    cache = domain("cache", 8192, unused=100, usable=6000)
    db = domain("db", 2048, 8192, unused=20, usable=80)
    far = snapshot([cache, db, promised], available=2600)
    assert moves(plan_of(far, policy=share)) == {"db": 70}, "it survives from what is really free"


@pytest.mark.parametrize(("usable", "deep"), [(20, True), (100, False)])
def test_for_who_dies_below_its_original_a_donor_gives_what_it_keeps(usable: int, deep: bool) -> None:
    dies = domain("db", 2048, 4096, unused=5, usable=usable, record=record(3048, 3048, 2048))
    now = snapshot([dies, domain("web", 4096, unused=600, usable=700)], available=1024)
    assert (moves(plan_of(now))["web"] < -400) is deep


@pytest.mark.parametrize(
    ("kept", "policy", "back"),
    [
        (record(4096, 4096, 2048), AUTO, 2048),
        (record(4096, 4096, 2048), replace(AUTO, reclaim="eager"), 0),
        (record(4096, 4096, 2048), replace(AUTO, strategy="pairwise"), 0),
    ],
)
def test_a_host_that_was_eager_owes_once_it_is_no_more(kept: Any, policy: MemoryPolicy, back: int) -> None:
    now = snapshot([domain("db", 2048, 4096, unused=200, usable=400, record=kept)], available=16384)
    assert moves(plan_of(now, policy=policy)).get("db", 0) == back


def test_what_was_ordered_is_not_owed() -> None:
    """The record tells how much of what lacks was taken by order, and what is given pays the rest first."""
    taken = BalloonMove("db", uuid_of("db"), 4096 * MIB, 3096 * MIB, "idle", ordered_kib=1000 * MIB)
    guest = domain("db", 4096, unused=200, usable=400)
    kept = baseline.intend(None, guest, taken, HOST_UUID, int(NOW_S))
    more = BalloonMove("db", uuid_of("db"), 3096 * MIB, 2596 * MIB, "needed")
    kept = baseline.intend(kept, guest, more, HOST_UUID, int(NOW_S) - 60)
    assert kept.memory is not None and kept.memory.ordered_kib == 1000 * MIB
    assert baseline.encode(kept).count("ordered_kib") == 1
    lean = domain("db", 2596, 4096, unused=200, usable=400, record=kept)
    assert moves(plan_of(snapshot([lean]))) == {"db": 500}
    back = BalloonMove("db", uuid_of("db"), 2596 * MIB, 3896 * MIB, "needed")
    kept = baseline.intend(kept, lean, back, HOST_UUID, int(NOW_S))
    assert kept.memory is not None and kept.memory.ordered_kib == 200 * MIB


def test_what_has_grown_and_serves_nothing_pays_debts_back() -> None:
    content = replace(OWED, balloon=replace(OWED.balloon, usable_kib=400 * MIB, unused_kib=200 * MIB))
    grown = domain("grown", 4048, 8192, unused=2000, usable=2100, record=record(3048, 3048, 4048))
    plan = plan_of(snapshot([content, grown, domain("web", **WASTEFUL)], available=1024))
    assert moves(plan)["grown"] == -1000 and "web" not in moves(plan)


# ---------------------------------------------------------------- what a guest does not tell


def test_without_usable_memory_caches_count_for_need_and_not_for_takes() -> None:
    server = domain("db", 8192, 16384, unused=60, usable=None, disk_caches_kib=4000 * MIB)
    assert moves(plan_of(snapshot([server]))) == {}
    assert moves(plan_of(snapshot([server]), safeties=Safeties(usable=False))) == {"db": 165}
    needy = domain("app", 4000, 8192, usable=0)
    share = replace(AUTO, cache="share")
    assert moves(plan_of(snapshot([server, needy], available=1024), policy=share)) == {}


def mute(age_s: int, fed_times: int = 0, fed_s: float = 0.0, **more: Any) -> tuple[Snapshot, MemoryHistory]:
    guest = domain("db", 2048, 8192, unused=5, usable=60, last_update_s=int(NOW_S) - age_s, **more)
    return snapshot([guest]), seen(pressed=True, fed_times=fed_times, fed_s=fed_s)


def test_who_starved_and_fell_silent_is_fed_in_steps() -> None:
    now, history = mute(60)
    plan, after = memory.decide(pair(now), AUTO, history)
    assert moves(plan) == {"db": 512} and "has not answered for 60 s, step 1 of 3" in plan.moves[0].reason
    assert memory.fund(plan, AUTO, now, now)[0].after_kib == 2560 * MIB
    assert after.domains[uuid_of("db")].fed_times == 1
    assert moves(plan_of(now, history, Safeties(mute=False))) == {}


def test_a_silent_guest_gets_its_original_first() -> None:
    now, history = mute(60, record=record(3000, 3000, 2048))
    assert moves(plan_of(now, history)) == {"db": 952}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"fed_times": 3}, "3 of 3 steps"),
        ({"fed_times": 1, "fed_s": NOW_S - 5}, "1 of 3 steps"),
        ({"rss": 1800}, "0 of 3 steps"),
    ],
)
def test_a_silent_guest_is_not_fed_for_ever_nor_for_nothing(changes: dict[str, Any], told: str) -> None:
    now, history = mute(60, **changes)
    plan = plan_of(now, history)
    assert moves(plan) == {} and told in plan.unmet[0].reason and "has not answered for 60 s" in plan.unmet[0].reason


def test_who_was_content_when_it_fell_silent_gets_nothing() -> None:
    now, _history = mute(60)
    assert moves(plan_of(now, seen())) == {} and skips(plan_of(now, seen())) == {"db": "stale"}


# ---------------------------------------------------------------- a person's value


def test_a_persons_value_holds_for_its_grace_unless_its_guest_is_dying() -> None:
    for usable, fed in ((100, False), (20, True)):
        set_ = domain("db", 2048, 4096, unused=5, usable=usable, record=record(2048, 2048, 2048, 60))
        moving = [replace(pair(snapshot([set_]))[0], domains=(grown(set_),)), snapshot([set_])]
        plan = memory.decide(moving, AUTO)[0]
        assert (moves(plan) != {}) is fed
        assert moves(memory.decide(moving, AUTO, safeties=Safeties(person=False))[0]) != {}


def test_what_a_person_took_is_owed_to_nobody_even_where_its_guest_is_dying() -> None:
    """Root in a guest may tell any size as well, and would have the caches of others up to its original."""
    small = domain("db", 256, 8192, usable=4, rss=8000, record=record(8192, 8192, 8000))
    now = snapshot([small, domain("web", 8192, unused=400, usable=6000)], available=1024)
    plan = plan_of(now)
    assert moves(plan) == {"web": -120, "db": 120} and plan.owed_kib == {}
    # What it gets is not the first step to its original.
    assert [adoption.memory_kib for adoption in plan.adoptions] == [256 * MIB]


def grown(guest: Domain) -> Domain:
    assert guest.balloon is not None
    return replace(guest, balloon=replace(guest.balloon, actual_kib=3000 * MIB, last_update_s=int(NOW_S) - 6))


# ---------------------------------------------------------------- idle memory


def idle(watched_s: int, **more: Any) -> MemoryHistory:
    """It left 3000M or more unused for so long, and is in the second window of an hour if that is more."""
    whole = {"idle_old_kib": 3000 * MIB} if watched_s >= HOUR_S else {}
    known = {
        "idle_kib": 3000 * MIB,
        "idle_s": NOW_S - (watched_s if watched_s < HOUR_S else 60),
        "actual_kib": 8192 * MIB,
    }
    return seen("web", **{**known, **whole, **more})


OFFERED = replace(AUTO, rules=(Rule("web", {"reclaim": "idle"}),))


@pytest.mark.parametrize(
    ("policy", "balloon", "history", "taken"),
    [
        (OFFERED, {}, idle(HOUR_S), 3000 - 820),
        (OFFERED, {}, idle(HOUR_S - 60), 0),
        (OFFERED, {}, idle(HOUR_S, idle_kib=2500 * MIB), 2500 - 820),
        (OFFERED, {}, idle(HOUR_S, idle_old_kib=2400 * MIB), 2400 - 820),
        (OFFERED, {}, idle(HOUR_S, worst_kib=1500 * MIB), 1500),
        (OFFERED, {}, idle(HOUR_S, missed_s=NOW_S - 2 * HOUR_S), 0),
        (OFFERED, {}, idle(5 * HOUR_S, missed_s=NOW_S - 4 * HOUR_S), 3000 - 820),
        (AUTO, {}, idle(HOUR_S), 0),
        (AUTO, {"autodeflate": True}, idle(HOUR_S), 0),
        (AUTO, {"autodeflate": True}, idle(HOUR_S, returned_s=NOW_S - 9 * HOUR_S), 3000 - 820),
    ],
)
def test_idle_memory_is_taken_from_who_offers_it_or_can_take_it_back(
    policy: MemoryPolicy, balloon: dict[str, Any], history: MemoryHistory, taken: int
) -> None:
    now = snapshot([domain("web", 8192, unused=4000, usable=4100, **balloon)])
    plan = plan_of(now, history, policy=policy)
    assert abs(moves(plan).get("web", 0) + taken) <= 1
    assert all(move.ordered_kib == move.before_kib - move.after_kib for move in plan.moves)
    assert moves(plan_of(now, policy=policy)) == {}, "a pass without history takes nothing idle"


@pytest.mark.parametrize(("silent_s", "given"), [(900, {4500: 3181}), (901, {})])
def test_what_was_in_use_hours_ago_does_not_count_for_ever(silent_s: int, given: dict[int, int]) -> None:
    """The least of the last whole hour and since counts, less what it keeps, if it told of itself all the while."""
    history = seen("web", idle_kib=10 * MIB, idle_s=NOW_S - HOUR_S, actual_kib=8192 * MIB)
    taken = {}
    for after_s in range(0, 2 * HOUR_S, silent_s):
        read_s = int(NOW_S) + after_s
        web = domain("web", 8192, unused=4000, usable=4100, last_update_s=read_s)
        plan, history = memory.decide([replace(snapshot([web]), wall_s=read_s + 1.0)], OFFERED, history)
        for change in moves(plan).values():
            taken[after_s] = -change
    assert taken == given


def test_what_idle_guests_may_call_back_is_no_comfort_of_others() -> None:
    lean = domain("web", 4096, 8192, unused=900, usable=900, record=record(8192, 8192, 4096))
    kept = lean.record
    assert kept is not None and kept.memory is not None
    lean = replace(lean, record=replace(kept, memory=replace(kept.memory, ordered_kib=4096 * MIB)))
    now = snapshot([domain("db", **STARVED), lean], available=1024 + 1000)
    assert moves(plan_of(now)) == {"db": 54}, "survival, and no comfort"


def test_a_forged_record_calls_back_no_more_than_its_guest_lacks() -> None:
    def fed(ordered_kib: int, original: int = 4096) -> dict[str, int]:
        kept = record(original, original, 4096)
        assert kept.memory is not None
        forged = replace(kept, memory=replace(kept.memory, ordered_kib=ordered_kib))
        odd = domain("odd", 4096, 8192, unused=900, usable=900, record=forged)
        return moves(plan_of(snapshot([domain("db", **STARVED), odd], available=1024 + 1000)))

    assert fed(10**14) == fed(0), "it lacks nothing"
    assert fed(10**14, 5000) == fed(904 * MIB, 5000)


# ---------------------------------------------------------------- what is told


def test_what_is_wasted_and_owed_is_told_with_the_option_that_takes_it() -> None:
    content = replace(OWED, balloon=replace(OWED.balloon, usable_kib=400 * MIB, unused_kib=200 * MIB))
    plan = plan_of(snapshot([content, domain("web", **WASTEFUL)], available=1100))
    assert plan.after.wasted_kib == 1700 * MIB and plan.after.owed_kib == 1000 * MIB
    assert plan.note == "1700M of waste stays with the guests: to take it would help nobody now; reclaim=eager takes it"
    eager = plan_of(snapshot([domain("web", **WASTEFUL)]), policy=replace(AUTO, reclaim="eager"))
    assert eager.note == ""


def test_a_frozen_host_says_what_to_do() -> None:
    now = snapshot([domain("db", **{**STARVED, "usable": 100})], available=4096)
    now = replace(now, host=replace(now.host, memory=HostMemory(32768 * MIB, 4096 * MIB, psi_full_avg10_pct=25.0)))
    assert "free memory on the host, or move a guest away" in plan_of(now).unmet[0].reason


# ---------------------------------------------------------------- one guest in one pass


def test_what_is_asked_back_and_what_danger_takes_end_at_l_together() -> None:
    """It has 3072M more than its original, others are owed that, and the host is in danger at the same time."""
    grown = domain("grown", 4096, unused=1800, usable=2000, record=record(1024, 1024, 4096))
    owed = domain("owed", 2048, 8192, unused=20, usable=96, record=record(6144, 6144, 2048))
    fresh = domain("promised", 4096, 8192, usable=900, rss=1000)
    policy = replace(AUTO, host_reserve=Amount(kib=8192 * MIB))
    history = seen("grown", actual_kib=4096 * MIB, worst_kib=1500 * MIB)
    target = 4096 + moves(plan_of(snapshot([grown, owed, fresh], available=100), history, policy=policy))["grown"]
    assert target == 4096 - 2000 + 150, "all that it can give, and no more"


def test_nobody_gives_idle_memory_and_gets_his_debt_in_one_pass() -> None:
    guest = domain("db", 4096, 8192, unused=3000, usable=3200, record=record(6144, 6144, 4096))
    policy = replace(AUTO, rules=(Rule("db", {"reclaim": "idle"}),))
    history = seen(actual_kib=4096 * MIB, idle_kib=3000 * MIB, idle_old_kib=3000 * MIB, idle_s=NOW_S - 60)
    plan = plan_of(snapshot([guest], available=20000), history, policy=policy)
    assert [move.gives for move in plan.moves if isinstance(move, BalloonMove)] == [False]


# ---------------------------------------------------------------- funding knows what the plan knew


@pytest.mark.parametrize("unknown", ["lost", "booting"])
def test_a_take_that_stalls_is_not_paid_from_what_was_promised_to_others(unknown: str) -> None:
    lost = (Skip("lost", "lost", "hung", "hung", untouched_kib=6000 * MIB),)
    boots = [domain("boots", 2048, 8048, usable=1000, rss=2048, started_s=NOW_S - 1)]
    starved = domain("db", 2048, 8192, unused=100, usable=130)
    wasteful = domain("web", 8192, unused=4000, usable=4500)
    more = {"skips": lost} if unknown == "lost" else {}
    now = snapshot([starved, wasteful, *(boots if unknown == "booting" else [])], available=7000, **more)
    plan = plan_of(now)
    assert moves(plan)["web"] < 0 < moves(plan)["db"]
    assert [move.on_credit for move in memory.fund(plan, AUTO, now, now)] == [True], "survival, and nothing else"


def test_who_swaps_gets_what_was_planned_although_growth_is_frozen() -> None:
    """That it swaps is seen in two readings only, and funding has one."""
    guest = domain("db", 2048, 8192, unused=100, usable=200, swap_in=400)
    now = snapshot([guest], available=16384)
    assert now.host.memory is not None
    now = replace(now, host=replace(now.host, memory=replace(now.host.memory, psi_full_avg10_pct=20.0)))
    samples = [pair(now)[0], now]
    before = samples[0].domains[0]
    assert before.balloon is not None
    samples[0] = replace(samples[0], domains=(replace(before, balloon=replace(before.balloon, swap_in_kib=0)),))
    plan = memory.decide(samples, AUTO)[0]
    assert moves(plan)["db"] > 0
    funded = memory.fund(plan, AUTO, now, now)
    assert [move.after_kib for move in funded] == [m.after_kib for m in plan.moves if isinstance(m, BalloonMove)]


# ---------------------------------------------------------------- true words


def test_nobody_is_told_to_take_what_no_option_takes() -> None:
    now = snapshot([domain("web", 4096, unused=2000, usable=2500)])
    assert "1700M of waste" in plan_of(now).note
    assert plan_of(now, policy=replace(AUTO, settings=MemorySettings(mode="grow-only"))).note == ""


def test_who_did_not_take_what_it_was_given_is_not_told_that_the_host_has_no_more() -> None:
    now = snapshot([domain("db", 2048, 8192, unused=10, usable=20, record=record(2048, 2048, 2100, 5))])
    (unmet,) = plan_of(now).unmet
    assert "2100M was asked, it has 2048M: it gets more once it took that" in unmet.reason


@pytest.mark.parametrize("ask", [memory.decide, memory.repay])
def test_a_least_change_of_nothing_moves_nobody_by_nothing(ask: Any) -> None:
    now = snapshot([domain("calm", 4096, 8192, unused=200, usable=600)])
    plan, _history = ask(pair(now), replace(AUTO, min_change=Amount(kib=0)))
    assert plan.moves == ()


# ---------------------------------------------------------------- statistics that come too seldom


@pytest.mark.parametrize("how", [{"period_s": 30}, {"period_s": 8, "last_update_s": int(NOW_S) - 13}])
def test_by_default_nothing_is_taken_from_who_tells_too_seldom_how_it_does(how: dict[str, Any]) -> None:
    now = snapshot([domain("db", **STARVED), domain("slow", **WASTEFUL, **how)], available=1024)
    plan = plan_of(now)
    assert moves(plan) == {} and skips(plan) == {"slow": "slow-stats"}
    assert "unused 2000M stays" in plan.skips[0].reason and "reclaim=auto" in plan.skips[0].reason
    assert moves(plan_of(now, safeties=Safeties(slow=False)))["slow"] < 0
    for asked in ("eager", "lazy"):
        assert moves(plan_of(now, policy=replace(AUTO, reclaim=asked)))["slow"] < 0


def test_statistics_every_ten_seconds_are_not_too_seldom() -> None:
    late = {"period_s": 10, "last_update_s": int(NOW_S) - 11}
    now = snapshot([domain("db", **STARVED), domain("idle", **WASTEFUL, **late)], available=1024)
    assert moves(plan_of(now))["idle"] < 0


# ---------------------------------------------------------------- what was given on credit


def on_credit(**more: Any) -> Snapshot:
    """A guest dies on a host that has 2G to spare, and has promised 8G more than that to another one."""
    asleep = domain("asleep", 12288, unused=250, usable=400, rss=2048)
    return snapshot([domain("db", **{**STARVED, "usable": 10}), asleep, *more.pop("others", ())], available=3072)


def test_credit_is_remembered_until_the_host_has_covered_it() -> None:
    plan, history = memory.decide(pair(on_credit()), AUTO)
    (move,) = plan.moves
    assert isinstance(move, BalloonMove) and move.on_credit
    given_kib = move.after_kib - move.before_kib
    assert (plan.before.credit_kib, plan.after.credit_kib, history.credit_kib) == (0, given_kib, given_kib)
    quiet = {"unused": 50, "usable": 280}
    fed = domain("db", 2048 + given_kib // MIB, 8192, **quiet)
    for asleep_rss, owing_kib in ((2048, given_kib), (12200, 0)):
        asleep = domain("asleep", 12288, unused=250, usable=400, rss=asleep_rss)
        plan, _history = memory.decide(pair(snapshot([fed, asleep], available=3072)), AUTO, history)
        assert plan.before.credit_kib == owing_kib


def test_waste_covers_credit_before_it_comforts_anybody() -> None:
    """What is taken fills the hole first: what wants comfort gets nothing of it, and who dies is served."""
    asleep = domain("asleep", 12288, unused=250, usable=400, rss=12288 + 64 - 600)
    wants = domain("wants", 4096, 8192, unused=50, usable=149)
    wasteful = domain("idle", **{**WASTEFUL, "unused": 2200})
    now = snapshot([wants, asleep, wasteful], available=1024)
    owes = replace(MemoryHistory(), credit_kib=500 * MIB)
    plan, history = memory.decide(pair(now), AUTO, owes)
    taken_kib = -moves(plan)["idle"] * MIB
    assert plan.before.credit_kib == 500 * MIB and history.credit_kib == 0
    assert moves(plan).get("wants", 0) * MIB <= taken_kib - 500 * MIB


def test_credit_above_the_reserve_is_warned_of() -> None:
    owes = replace(MemoryHistory(), credit_kib=3000 * MIB)
    plan, _history = memory.decide(pair(on_credit()), AUTO, owes)
    assert [line for line in plan.warnings if "on credit, more than the reserve 1024M" in line]
    assert not [line for line in plan_of(on_credit()).warnings if "credit" in line]


def test_debts_are_asked_back_and_paid_in_one_pass_also_below_the_reserve() -> None:
    """Else a host that is a little short would leave the owed as they are, and the grown as they are."""
    grown = domain("grown", 6144, 8192, unused=3500, usable=3600, record=record(4096, 4096, 6144))
    owed = domain("owed", 4096, 8192, unused=300, usable=400, record=record(6144, 6144, 4096))
    plan = plan_of(snapshot([grown, owed], available=1000))
    assert moves(plan)["grown"] == -2048 and moves(plan)["owed"] > 0


def in_a_full_room(*domains: Domain) -> Snapshot:
    """A host with much to give, and these domains below a limit that leaves nothing."""
    inside = [replace(one, balloon=replace(one.balloon, rooms=("/slice",))) for one in domains if one.balloon]
    now = snapshot(inside)
    return replace(now, host=replace(now.host, rooms=(Room("/slice", 0),)))


def test_within_a_room_too_nobody_pays_for_a_forecast_or_for_who_has_no_end() -> None:
    rising = domain("db", 4000, 8192, unused=50, usable=250)
    rises = seen(actual_kib=4000 * MIB, used_kib=3550 * MIB, used_s=int(NOW_S) - 6, grew_kib=150 * MIB)
    assert moves(plan_of(in_a_full_room(rising, domain("idle", **WASTEFUL)), rises)) == {}
    greedy = domain("db", **STARVED, record=record(1024, 1024, 2048))
    full = in_a_full_room(greedy, domain("idle", **WASTEFUL))
    assert "idle" not in moves(plan_of(full, seen(gifts=5, pressed=True)))
    assert "idle" in moves(plan_of(full, seen(gifts=4, pressed=True))), "who only starves there is paid by others"


@pytest.mark.parametrize(("original", "gifts", "paid"), [(1024, 5, False), (1024, 4, True), (2048, 5, True)])
def test_who_fills_whatever_it_gets_is_fed_from_what_is_free_alone(original: int, gifts: int, paid: bool) -> None:
    """Others would want theirs again when nothing is free any more. Up to its original it gets what it had."""
    greedy = domain("db", **STARVED, record=record(original, original, 2048))
    both = [greedy, domain("idle", **WASTEFUL)]
    history = seen(gifts=gifts, pressed=True)
    full = snapshot(both, available=1024)
    assert ("idle" in moves(plan_of(full, history))) == paid
    assert "idle" in moves(plan_of(full, history, Safeties(bottomless=False)))
    plan, later = memory.decide(pair(snapshot(both)), AUTO, history)
    assert set(moves(plan)) == {"db"} and later.domains[uuid_of("db")].gifts == gifts + 1


def test_a_gift_that_ends_a_need_is_no_greed() -> None:
    content = domain("db", 2048, 8192, unused=400, usable=500, record=record(1024, 1024, 2048))
    later = memory.decide(pair(snapshot([content])), AUTO, seen(gifts=7, pressed=True))[1]
    assert later.domains[uuid_of("db")].gifts == 0


# ---------------------------------------------------------------- a reboot that libvirt told of


def test_a_guest_of_which_libvirt_told_a_reboot_boots() -> None:
    """Its counters may look as before: the next answer may be from before, or they grew past that again."""
    now = snapshot([domain("db", **WASTEFUL)])
    history = seen(actual_kib=4096 * MIB).rebooted(uuid_of("db"), NOW_S - 3)
    plan, later = memory.decide([now], AUTO, history)
    assert skips(plan) == {"db": "booting"}
    assert later.domains[uuid_of("db")].booted_s == NOW_S - 3
    assert later.domains[uuid_of("db")].idle_s == NOW_S, "what was idle before says nothing"
    assert skips(memory.decide([now], AUTO, seen(actual_kib=4096 * MIB))[0]) == {}


def test_each_reboot_that_libvirt_tells_of_counts_and_nobody_unknown_is_remembered() -> None:
    uuid = uuid_of("db")
    twice = seen(booted_s=NOW_S - 50).rebooted(uuid, NOW_S - 30).rebooted(uuid, NOW_S - 1)
    assert twice.domains[uuid].booted_s == NOW_S - 1
    assert MemoryHistory().rebooted(uuid, NOW_S) == MemoryHistory()
