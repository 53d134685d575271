# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shares as the kernel gives them: by weight, within sets that may overlap."""

from __future__ import annotations

import pytest
from kvmsched.policy.vcpu.served import Claim, served, thread_weight
from vcpu_worlds import cpus


def claims(*parts: tuple[float, float, str]) -> list[Claim]:
    return [Claim(want, weight, cpus(place)) for want, weight, place in parts]


def test_a_full_pcpu_is_shared_by_weight_and_nobody_gets_more_than_it_wants() -> None:
    runs = served(claims((1.0, 1.0, "0"), (1.0, 3.0, "0"), (0.1, 1.0, "0")), [0])
    assert runs == pytest.approx([0.225, 0.675, 0.1])


def test_what_floats_runs_where_the_pinned_leave_room() -> None:
    assert served(claims((1.0, 1.0, "0"), (1.0, 1.0, "0-1")), [0, 1]) == pytest.approx([1.0, 1.0])


def test_sets_that_overlap_serve_as_much_as_any_flow_can() -> None:
    runs = served(claims((1.0, 1.0, "0-1"), (1.0, 1.0, "1-2"), (1.0, 1.0, "0-1")), [0, 1, 2])
    assert sum(runs) == pytest.approx(3.0, abs=1e-3)


def test_a_pcpu_that_is_offline_serves_nobody() -> None:
    assert served(claims((1.0, 1.0, "0"), (1.0, 1.0, "5")), [0]) == [1.0, 0.0]


def test_a_guest_s_weight_is_shared_by_its_busy_vcpus() -> None:
    assert thread_weight(100.0, 1.0, 4.0) == 0.25
    assert thread_weight(100.0, 1.0, 1.0) == 1.0
    assert thread_weight(200.0, 1.0, 1.0) == 2.0
    assert thread_weight(None, 1.0, 4.0) == 1.0


def test_a_guest_that_only_runs_when_nobody_else_does_has_a_weight_yet() -> None:
    """With cpu.idle=1 its cpu.weight reads 0."""
    assert 0 < thread_weight(0.0, 1.0, 1.0) < thread_weight(1.0, 1.0, 1.0)
