# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``memory.fund``: gives are paid from what really came free between the writes."""

from __future__ import annotations

from dataclasses import replace

from kvmsched.model import (
    BalloonMove,
    Domain,
    MemoryPlan,
    Snapshot,
)
from kvmsched.policy import memory
from memory_worlds import (
    EAGER,
    MIB,
    RESERVE_1G,
    STARVED,
    WASTEFUL,
    decide,
    domain,
    record,
    snapshot,
)

# ---------------------------------------------------------------- funding


def funded(plan: MemoryPlan, planned: Snapshot, now: Snapshot) -> dict[str, int]:
    return {m.domain: (m.after_kib - m.before_kib) // MIB for m in memory.fund(plan, RESERVE_1G, planned, now)}


def test_funding_again_after_the_records_were_written_pays_only_the_rest() -> None:
    starved = domain("db", **STARVED)
    planned = snapshot([starved], available=1104)
    plan = MemoryPlan(*[decide(planned, RESERVE_1G).before] * 2, moves=(give_of(starved, 129),))
    first = memory.fund(plan, RESERVE_1G, planned, planned)
    assert [move.after_kib - move.before_kib for move in first] == [80 * MIB]
    written = replace(starved, record=record(2048, 2048, 2128, age_s=0))
    assert funded(plan, replace(planned, domains=(written,)), planned) == {}, "80M are promised already"
    more = replace(planned, domains=(written,))
    richer = snapshot([starved], available=1304)
    assert funded(plan, more, richer) == {"db": 129}


def give_of(starved: Domain, mib: int) -> BalloonMove:
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


# ---------------------------------------------------------------- reasons


def test_every_reason_is_one_line() -> None:
    now = snapshot([domain("db", **STARVED), domain("web", **WASTEFUL), domain("off", 100, state="paused")])
    plan = decide(now, EAGER)
    lines = [part.reason for part in (*plan.moves, *plan.skips, *plan.unmet)]
    assert lines and all(line and "\n" not in line for line in lines)
    assert str(plan.moves[0]) == "web: 4096M -> 3096M"
