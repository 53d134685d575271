# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a guest says or writes costs its neighbours no more than if it had all of its memory, or wanted its share."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kvmsched.balloon_stats import measured
from kvmsched.config import MemoryPolicy
from kvmsched.model import Balloon, Domain
from memory_worlds import (
    GIB,
    LAZY,
    MIB,
    NOW_S,
    STARVES,
    balloon,
    domain,
    lazy_moves,
    record,
    snapshot,
    weighted,
)

# ---------------------------------------------------------------- a guest's word


def test_a_forged_record_costs_no_neighbour_anything() -> None:
    """Whoever writes a domain's metadata may say that a petabyte was promised."""
    forged = domain("forged", 2 * GIB, 4 * GIB, unused=400, usable=1000, record=record(2048, 2048, 10**9, 3))
    now = snapshot([forged, domain("db", 2 * GIB, 4 * GIB, **STARVES)])
    assert lazy_moves(now)["db"] > 50


HONEST = [
    domain("a", 4 * GIB, 8 * GIB, unused=20, usable=96),
    domain("b", 2 * GIB, 4 * GIB, unused=2, usable=5),
    weighted("c", 4, 4 * GIB, 8 * GIB, unused=700, usable=3000),
]
WORDS = st.one_of(
    st.integers(-(2**63), 2**64), st.integers(0, 8 * GIB * MIB), st.sampled_from([0, 4, 18014398492000000]), st.none()
)
KEYS = ("current", "unused", "usable", "disk_caches", "swap_in", "swap_out", "major_fault", "last-update")


def lying(word: dict[str, Any], rss: int) -> Domain:
    """A guest of 8G in which its root says *word*."""
    told = {"balloon.maximum": 8 * GIB * MIB, "balloon.current": 4 * GIB * MIB, "balloon.rss": rss * MIB}
    told.update({"balloon.unused": 400 * MIB, "balloon.usable": 1000 * MIB, "balloon.last-update": int(NOW_S) - 1})
    told.update({f"balloon.{key}": value for key, value in word.items()})
    known = measured(Balloon(8 * GIB * MIB, 8 * GIB * MIB, period_s=5), told)
    return replace(domain("liar", 4 * GIB, 8 * GIB), balloon=known)


def honest_after(liar: Domain, available: int, policy: MemoryPolicy) -> dict[str, int]:
    """What each honest guest has after the plan, in MiB."""
    got = lazy_moves(snapshot([*HONEST, liar], available=available), policy)
    return {d.name: got.get(d.name, 0) + d.balloon.actual_kib // MIB for d in HONEST if d.balloon}


@cache
def worst_for_others(available: int, rss: int, policy: MemoryPolicy) -> list[dict[str, int]]:
    """What the honest guests have beside one that has all of its memory, or wants its share, or both."""
    full = replace(lying({}, rss), balloon=balloon(8 * GIB, rss=rss, usable=200))
    claims = replace(lying({}, rss), balloon=balloon(4 * GIB, 8 * GIB, rss=rss))
    # What it may claim is its floor, too, and all of it if it says that it has next to nothing.
    below_floor = replace(lying({}, rss), balloon=balloon(0, 8 * GIB, rss=rss))
    # Who has its maximum, and starves, will touch all of it: that is no more there for anybody's survival.
    both = replace(lying({}, rss), balloon=balloon(8 * GIB, rss=rss))
    return [honest_after(other, available, policy) for other in (full, claims, below_floor, both)]


@settings(max_examples=150, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.dictionaries(st.sampled_from(KEYS), WORDS, max_size=4),
    st.sampled_from([1700, 1900, 2500, 8000, 16000]),
    st.sampled_from([1024, 4200, 8300]),
    st.sampled_from([LAZY, replace(LAZY, reclaim=None)]),
)
def test_whatever_a_guest_says_its_neighbours_fare_as_if_it_had_all_or_wanted_its_share(
    word: dict[str, Any], available: int, rss: int, policy: MemoryPolicy
) -> None:
    worst = worst_for_others(available, rss, policy)
    got = honest_after(lying(word, rss), available, policy)
    for name, mib in got.items():
        assert mib >= min(other[name] for other in worst) - 1, (name, got, worst)
