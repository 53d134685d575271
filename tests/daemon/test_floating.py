# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests that float, with a load that comes in bursts: beside the daemon they wait no longer than left alone."""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Iterator

import pytest
from lab import Guest, Lab, RunningGuest
from running import policy, running

NAMES = [f"kvmsched-test-float{number}" for number in range(6)]
EVERYWHERE = frozenset(os.sched_getaffinity(0))
WINDOW_S, STEP_S = 30, 3
SHARES = (0.05, 0.05, 0.1, 0.3, 0.6, 1.0)
# By how many pairs: what chance does to one pair is more than what is asked of five.
NO_LONGER = {1: 1.5, 5: 1.05}


@pytest.fixture
def guests() -> Iterator[list[RunningGuest]]:
    with Lab() as lab:
        yield lab.start(*(Guest(name, memory_mib=128, cpu=[0.05]) for name in NAMES))


def waiting_per_running(guests: list[RunningGuest], seed: int) -> float:
    """Give each guest its bursts, the same for the same seed, and return how long they waited for a second of work."""
    rng = random.Random(seed)
    for guest in guests:
        for when_s in range(0, WINDOW_S, STEP_S):
            guest.tell(f"at {when_s} cpu {rng.choice(SHARES) * 100:.0f}")
    before = [guest.cpu_time(0) for guest in guests]
    time.sleep(WINDOW_S)
    after = [guest.cpu_time(0) for guest in guests]
    waited = sum(new.wait_ns - old.wait_ns for old, new in zip(before, after))
    return waited / sum(new.run_ns - old.run_ns for old, new in zip(before, after))


@pytest.mark.quiet
@pytest.mark.parametrize("pairs", [1, pytest.param(5, marks=pytest.mark.nightly)])
def test_the_daemon_makes_bursty_guests_wait_no_longer(guests: list[RunningGuest], pairs: int) -> None:
    alone, managed, pinned = [], [], False
    for pair in range(pairs):
        alone.append(waiting_per_running(guests, pair))
        with running(policy()) as daemon:
            daemon.wait_passes(2)
            managed.append(waiting_per_running(guests, pair))
            pinned |= any(guest.affinity(0) != EVERYWHERE for guest in guests)
    print(f"\nwaiting per running time: alone {alone}, with the daemon {managed}, pins made: {pinned}")
    assert not pinned or statistics.median(managed) <= NO_LONGER[pairs] * statistics.median(alone)
