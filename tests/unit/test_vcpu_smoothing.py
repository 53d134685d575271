# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Loads over time: what one window says is not believed at once."""

from __future__ import annotations

from dataclasses import replace

import pytest
from kvmsched.policy import vcpu
from vcpu_worlds import DAEMON, POLICY, FakeHost, Guest, cpus, daemon_passes, guests, topology


def test_smoothing_sees_through_a_spike() -> None:
    host = FakeHost(topology(2), [*guests(1, 0.3, "0", "a"), *guests(1, 0.3, "0", "b"), *guests(2, 0.3, "1", "c")])
    policy = replace(DAEMON, hold=1, half_life_s=300.0)
    _made, history = daemon_passes(host, 5, policy)
    host.guests[0].wants = [0.65]
    made, history = daemon_passes(host, 1, policy, history)
    assert made == [0]
    assert vcpu.decide(host.window(), POLICY)[0].before.imbalance_pct > 15


def test_a_demand_hidden_by_contention_is_remembered() -> None:
    host = FakeHost(topology(2), [*guests(1, 0.6, "0", "a", backlog=True), *guests(1, 0.6, "1", "b", backlog=True)])
    _made, history = daemon_passes(host, 3)
    for guest in host.guests:
        guest.pins = [cpus("0")]
    _plan, history = vcpu.decide(host.window(5.0), DAEMON, history)
    assert history.loads[f"{host.guests[0].uuid}/1/0"].mean == pytest.approx(0.6, abs=0.02)


@pytest.mark.parametrize("backlog", [False, True])
def test_who_was_calm_and_wakes_among_others_gets_its_pcpus_back(backlog: bool) -> None:
    """What was known of it is refuted at once: half of the way to the new load is no knowledge."""
    others = [Guest(f"other{n}", [0.6], [cpus(str(2 + n % 2))], backlog=backlog) for n in range(4)]
    host = FakeHost(topology(4), [Guest("waker", [0.02, 0.02], [cpus("0"), cpus("1")], backlog=backlog), *others])
    _made, history = daemon_passes(host, 60)
    assert len({guest.pins[0] for guest in others} & {cpus("0"), cpus("1")}) == 2, "some went beside it meanwhile"
    waker = host.guests[0]
    waker.wants = [1.0, 1.0]
    daemon_passes(host, 60, DAEMON, history)
    assert len(set(waker.pins)) == 2 and set(waker.pins).isdisjoint(guest.pins[0] for guest in others)
