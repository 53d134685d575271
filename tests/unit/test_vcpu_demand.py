# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Demand and foreign load from the counters of two snapshots."""

from __future__ import annotations

from dataclasses import replace
from typing import Optional

import pytest
from kvmsched.model import ForeignTime, Snapshot
from kvmsched.policy import vcpu
from kvmsched.policy.vcpu import Safeties
from kvmsched.policy.vcpu.demand import Loads, measure
from vcpu_worlds import POLICY, FakeHost, Guest, cpus, demand_of, guests, led_to, pinned_guest, topology


def test_run_time_saturates_and_demand_does_not() -> None:
    host = FakeHost(topology(2), [*guests(8, 1.0, "0"), *guests(1, 1.0, "1", "alone")])
    window = host.window()
    crowded, alone = demand_of(window, host.guests[0]), demand_of(window, host.guests[8])
    assert crowded.run == pytest.approx(1 / 8, abs=0.01)
    assert crowded.low == crowded.high == pytest.approx(1.0)
    assert alone.low == pytest.approx(1.0)


def test_demand_lies_between_run_and_run_plus_wait() -> None:
    host = FakeHost(topology(1), guests(3, 0.5, "0"))
    demand = demand_of(host.window(), host.guests[0])
    assert demand.run == pytest.approx(1 / 3, abs=0.01)
    assert demand.run <= demand.low <= demand.high == pytest.approx(0.5, abs=0.01)


def test_a_wait_on_a_pcpu_with_time_to_spare_is_no_demand() -> None:
    host = FakeHost(topology(1), guests(1, 0.4, "0"))
    first, last = host.window()
    vcpu = replace(last.domains[0].vcpus[0], delay_ns=500_000_000)
    last = replace(last, domains=(replace(last.domains[0], vcpus=(vcpu,)),))
    demand = demand_of([first, last], host.guests[0])
    assert demand.low == demand.run == pytest.approx(0.4)
    assert demand.high == pytest.approx(0.65)


def test_a_quota_caps_demand() -> None:
    host = FakeHost(topology(1), guests(2, 1.0, "0"))
    for guest in host.guests:
        guest.fields["vcpu_quota"] = 0.6
    assert demand_of(host.window(), host.guests[0]).high == pytest.approx(0.6)


def test_foreign_load_is_busy_time_that_no_vcpu_used() -> None:
    host = FakeHost(topology(2), guests(1, 0.5, "0"), {0: 0.2, 1: 0.7})
    foreign = measure(host.window()).foreign
    assert foreign[0] == pytest.approx(0.2, abs=0.01)
    assert foreign[1] == pytest.approx(0.7, abs=0.01)


def test_what_floats_is_not_mistaken_for_foreign_load() -> None:
    host = FakeHost(topology(4), guests(3, 1.0, "0-3"))
    loads = measure(host.window())
    assert sum(loads.busy.values()) == pytest.approx(3.0)
    assert sum(loads.foreign.values()) == pytest.approx(0.0, abs=0.02)


def test_without_host_counters_busy_is_what_vcpus_ran() -> None:
    host = FakeHost(topology(2), guests(2, 0.4, "1"))
    first, last = host.window()
    window = [replace(s, host=replace(s.host, busy_ns={})) for s in (first, last)]
    loads = measure(window)
    assert loads.busy == pytest.approx({0: 0.0, 1: 0.8})
    assert sum(loads.foreign.values()) == 0


@pytest.mark.parametrize("change", ["new id", "counter went back", "new vCPU", "no counter", "new domain"])
def test_unknown_is_not_zero(change: str) -> None:
    host = FakeHost(topology(1), [Guest("g", [0.5, 0.5], [cpus("0")] * 2)])
    first, last = host.window()
    before, after = first.domains[0], last.domains[0]
    if change == "new id":
        after = replace(after, id=99)
    elif change == "counter went back":
        before = replace(before, vcpus=(replace(before.vcpus[0], time_ns=10**15), before.vcpus[1]))
    elif change == "new vCPU":
        before = replace(before, vcpus=before.vcpus[1:])
    elif change == "no counter":
        after = replace(after, vcpus=(replace(after.vcpus[0], time_ns=None), after.vcpus[1]))
    domains = () if change == "new domain" else (before,)
    window = [replace(first, domains=domains), replace(last, domains=(after,))]
    known = measure(window).demand
    assert (host.guests[0].uuid, 0) not in known
    assert ((host.guests[0].uuid, 1) in known) == (change not in ("new id", "new domain"))


def test_one_snapshot_or_no_time_between_two_tells_nothing() -> None:
    host = FakeHost(topology(1), guests(1, 0.5, "0"))
    snapshot = host.snapshot()
    assert not measure([snapshot]).demand
    assert not measure([snapshot, snapshot]).demand


def foreign(counters: dict[str, float], load: dict[int, float], bound: Optional[dict[int, float]] = None) -> Loads:
    """Loads of two seconds on 4 pCPUs: foreign *load* was seen so, and *counters* tell mask -> load of it."""
    host = FakeHost(topology(4), guests(1, 0.2, "0"), load)
    first, last = host.window()

    def told(snapshot: Snapshot, seconds: float) -> Snapshot:
        bound_ns = {pcpu: int((bound or {}).get(pcpu, 0.0) * seconds * 1e9) for pcpu in range(4)}
        foreign_ns = tuple(ForeignTime(cpus(mask), int(share * seconds * 1e9)) for mask, share in counters.items())
        return replace(snapshot, host=replace(snapshot.host, bound_ns=bound_ns, foreign_ns=foreign_ns))

    return measure([told(first, 0), told(last, 2)])


def about(*shares: float) -> dict[int, float]:
    return {pcpu: pytest.approx(share, abs=0.01) for pcpu, share in enumerate(shares)}


def test_foreign_load_that_can_move_lies_evenly_and_bound_load_stays() -> None:
    loads = foreign({}, {0: 0.6, 1: 0.2}, {0: 0.4})
    assert loads.settled
    assert loads.foreign == about(0.5, 0.1, 0.1, 0.1)


def test_foreign_load_that_is_confined_lies_evenly_on_its_set_only() -> None:
    """Storage daemons on 0-1, as a slice with AllowedCPUs has them."""
    assert foreign({"0-1": 1.0}, {0: 0.7, 1: 0.3}).foreign == about(0.5, 0.5, 0, 0)
    assert foreign({"0-1": 0.8}, {0: 0.7, 1: 0.3}).foreign == about(0.45, 0.45, 0.05, 0.05)
    two = foreign({"0-1": 0.4, "1-3": 0.6}, {0: 0.4, 1: 0.3, 3: 0.3}).foreign
    assert sum(two.values()) == pytest.approx(1.0, abs=0.01) and max(two, key=lambda pcpu: two[pcpu]) == 1


def test_confined_load_counts_no_more_than_was_seen_where_it_may_run() -> None:
    assert foreign({"0-1": 1.5}, {0: 0.3, 1: 0.3, 2: 0.6}).foreign == about(0.45, 0.45, 0.15, 0.15)


def test_where_nobody_knows_what_is_confined_foreign_load_counts_where_it_was_seen() -> None:
    host = FakeHost(topology(2), guests(1, 0.2, "0"), {0: 0.6})
    first, last = host.window()
    old = [replace(s, host=replace(s.host, bound_ns={0: 0, 1: 0})) for s in (first, last)]
    loads = measure(old)
    assert not loads.settled
    assert loads.foreign[0] == pytest.approx(0.6, abs=0.01) and loads.foreign[1] == pytest.approx(0.0, abs=0.01)


def storage_host(confined: Optional[tuple[ForeignTime, ...]]) -> list[Snapshot]:
    """Daemons fill 0-3, two guests that are fully served share 4-7; *confined* is what the host's counters say."""
    members = [pinned_guest(name, "4 5 6 7", 0.45) for name in ("web", "app")]
    first, last = FakeHost(topology(8), members, dict.fromkeys(range(4), 0.95)).window(5.0)
    none = confined if confined is None else tuple(replace(part, time_ns=0) for part in confined)
    bound = dict.fromkeys(range(8), 0)
    return [
        replace(snapshot, host=replace(snapshot.host, bound_ns=bound, foreign_ns=parts))
        for snapshot, parts in ((first, none), (last, confined))
    ]


@pytest.mark.parametrize("confined", [None, (ForeignTime(cpus("0-3"), 19_000_000_000),)])
def test_guests_are_not_sent_where_the_work_of_the_host_must_stay(confined: Optional[tuple[ForeignTime, ...]]) -> None:
    plan, _history = vcpu.decide(storage_host(confined), POLICY)
    assert plan.moves == () and plan.before.max_pct < 100


def test_without_that_rule_guests_are_sent_there() -> None:
    window = storage_host((ForeignTime(cpus("0-3"), 19_000_000_000),))
    plan, _history = vcpu.decide(window, POLICY, safeties=Safeties(confined=False))
    assert len(plan.moves) == 4 and led_to(plan) <= cpus("0-3")
