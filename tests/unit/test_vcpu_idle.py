# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose waits are no demand: vCPUs that want no more than they got."""

from __future__ import annotations

import pytest
from kvmsched.policy.vcpu.demand import measure
from vcpu_worlds import FakeHost, Guest, cpus, demand_of, guests, topology


def test_an_idle_vcpu_that_waits_at_its_wake_ups_wants_what_it_ran() -> None:
    idle = Guest("idle", [0.03], [cpus("0")], latency=0.4)
    host = FakeHost(topology(1), [idle, *guests(2, 1.0, "0")])
    demand = demand_of(host.window(), idle)
    assert demand.wait > 0.35
    assert demand.low == demand.high == pytest.approx(0.03, abs=0.01)


@pytest.mark.parametrize("count", [2, 8, 16, 30])
def test_where_all_get_little_all_want_more(count: int) -> None:
    """However many share a pCPU: who got as much as its neighbours is not idle."""
    host = FakeHost(topology(1), guests(count, 1.0, "0"))
    demand = measure(host.window(20.0)).demand
    assert [d.low for d in demand.values()] == pytest.approx([1.0] * count, abs=0.01)
