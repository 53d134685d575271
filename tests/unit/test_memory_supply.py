# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host can give: danger, survival, and a host of which nothing is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Optional

import pytest
from kvmsched.config import Rule
from kvmsched.model import (
    HostMemory,
    Skip,
)
from kvmsched.policy import memory
from kvmsched.policy.memory.history import MemoryHistory, OwnUse
from kvmsched.policy.memory.safeties import Safeties
from kvmsched.policy.memory.supply import own_use_kib
from kvmsched.units import Amount
from memory_worlds import (
    AUTO,
    EAGER,
    MIB,
    NOW_S,
    STARVED,
    STARVED_OF_8G,
    WASTEFUL,
    a_tick_ago,
    auto_plan,
    decide,
    domain,
    moves,
    snapshot,
)


def test_unknown_host_memory_gives_nothing_and_says_so() -> None:
    now = snapshot([domain("db", **STARVED), domain("web", **WASTEFUL)])
    plan = decide(replace(now, host=replace(now.host, memory=None)), EAGER)
    assert moves(plan) == {"web": -1000}
    assert plan.supply_kib is None and "not known" in plan.warnings[0]


def test_short_is_danger_and_not_a_number() -> None:
    now = snapshot([domain("web", **WASTEFUL), domain("db", 8192, unused=100, usable=6000)], available=500)
    plan = auto_plan(now)
    assert moves(plan) == {}
    assert "524M below its reserve, but guests can use only 0M more" in plan.warnings[0]
    assert moves(auto_plan(now, safeties=Safeties(danger=False)))


def test_a_host_that_grew_may_grow_as_much_again() -> None:
    now = snapshot([domain("web", **WASTEFUL)], available=900)
    total, rss = 32768 * MIB, 4160 * MIB
    grew = OwnUse(NOW_S - 300, total - 900 * MIB - rss - 100 * MIB)
    long_ago = replace(grew, wall_s=NOW_S - 700)
    assert moves(auto_plan(now, MemoryHistory(own_use=(grew,)))) == {"web": -100}
    assert moves(auto_plan(now, MemoryHistory(own_use=(long_ago,)))) == {}


@pytest.mark.parametrize(
    ("read_mib", "since_s", "taken"),
    [(0, 60, {}), (4, 60, {}), (50, 60, {"web": -226}), (50, 5, {}), (50, -3600, {}), (5000, None, {})],
)
def test_a_host_that_goes_on_reading_from_its_swap_is_in_danger(
    read_mib: int, since_s: Optional[float], taken: dict[str, int]
) -> None:
    """What it reads in one look, somebody touched anew: a login, a job of the night."""
    now = snapshot([domain("web", **WASTEFUL)], available=900)
    now = replace(now, host=replace(now.host, memory=HostMemory(32768 * MIB, 900 * MIB, swap_in_kib=read_mib * MIB)))
    began_s = None if since_s is None else NOW_S - since_s
    history = replace(a_tick_ago("web", actual_kib=4096 * MIB), swap_in_kib=0, swapping_s=began_s)
    plan, after = memory.decide([now], AUTO, history)
    assert moves(plan) == taken
    reads = read_mib >= 50
    assert after.swapping_s == (min(began_s or NOW_S, NOW_S) if reads else None), "it ends where it reads no more"


def test_whoever_cannot_be_observed_is_no_growth_of_the_host() -> None:
    """What its QEMU holds is nobody's for this look: others would pay for all of it."""
    calm = {"unused": 100, "usable": 2000, "rss": 8192}
    guests = [domain("web", 8192, **calm), domain("db", 8192, **calm)]
    full = snapshot(guests, available=900)
    known = OwnUse(NOW_S - 300, own_use_kib(full) or 0)
    assert moves(auto_plan(full, MemoryHistory(own_use=(known,)))) == {}
    hangs = replace(full, domains=full.domains[:1], skips=(Skip("db", guests[1].uuid, "hung", "hung"),))
    plan, after = memory.decide([hangs], AUTO, MemoryHistory(own_use=(known,)))
    assert moves(plan) == {} and after.own_use == (known,), "nor is it remembered as the host's own"
    assert guests[1].balloon is not None
    mute = replace(guests[1], balloon=replace(guests[1].balloon, rss_kib=None))
    assert own_use_kib(replace(full, domains=(guests[0], mute))) is None


def test_a_host_in_danger_takes_what_is_resident() -> None:
    """Of memory that was never touched it would get nothing."""
    untouched = domain("new", 8192, rss=1000, unused=7000, usable=7100)
    now = snapshot([untouched, domain("web", **WASTEFUL)], available=700)
    assert moves(auto_plan(now)) == {"web": -426}


def test_who_starves_is_fed_from_what_is_really_free_half_of_it_at_a_time() -> None:
    promised = domain("big", 65536, rss=6144, last_update_s=0)
    for usable, available, given in ((96, 4096, 54), (0, 4096, 150), (0, 1024 + 200, 100)):
        now = snapshot([domain("db", **{**STARVED_OF_8G, "usable": usable}), promised], available=available)
        plan = auto_plan(now)
        assert moves(plan) == {"db": given} and [m.on_credit for m in plan.moves] == [True]
        assert moves(auto_plan(now, safeties=Safeties(survival=False))) == {}


def test_a_wide_band_is_no_matter_of_survival() -> None:
    wide = {"memory": {"starvation": Amount(pct=10.0), "waste": Amount(pct=20.0)}}
    promised = domain("big", 65536, rss=6144, last_update_s=0)
    now = snapshot([domain("db", 16384, 32768, unused=100, usable=200), promised], available=8192)
    policy = replace(AUTO, rules=(Rule("db", wide["memory"]),))
    assert moves(auto_plan(now, policy=policy)) == {"db": 128}, "to 1 % of its maximum"


def test_nothing_is_given_beyond_promises_on_a_host_that_reads_from_its_swap() -> None:
    promised = domain("big", 65536, rss=6144, last_update_s=0)
    now = snapshot([domain("db", **STARVED_OF_8G), promised], available=4096)
    now = replace(now, host=replace(now.host, memory=HostMemory(32768 * MIB, 4096 * MIB, swap_in_kib=50 * MIB)))
    assert moves(memory.decide([now], AUTO, replace(a_tick_ago(), swap_in_kib=0))[0]) == {}
    assert moves(memory.decide([now], AUTO, replace(a_tick_ago(), swap_in_kib=49 * MIB))[0]) == {"db": 54}
