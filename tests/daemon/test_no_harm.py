# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests without swap that suddenly need what they had: with the daemon's defaults they live, as on a host left alone.

A burst of 600 MiB at 200 MiB/s is faster than any pass can follow: only what a guest still has can save it.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from typing import Any

import libvirt
import pytest
from lab import Guest, Lab, RunningGuest, truth
from running import PATIENCE_S, policy, running

MIB = 1024
NAMES = [f"kvmsched-test-{name}" for name in ("one", "two", "three")]
BURST_MIB, BURST_MIB_PER_S = 600, 200
IDLE_S = 30
NEIGHBOUR = "kvmsched-test-needy"


@pytest.fixture(scope="module")
def three() -> Iterator[list[RunningGuest]]:
    with Lab() as lab:
        yield lab.start(*(Guest(name, memory_mib=1024, hold_mib=20) for name in NAMES))


@pytest.fixture
def guests(three: list[RunningGuest]) -> list[RunningGuest]:
    """The three as they began: they hold little, have all that they may have, and no record."""
    for guest in three:
        guest.hold(20)
        guest.wait_held()
        guest.domain.setMemory(guest.guest.memory_mib * MIB)
        guest.wait_statistics(time.time(), PATIENCE_S)
        guest.domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, None, None, "urn:kvmsched:state/1")
    return three


def available_mib() -> int:
    return truth.memory_kib()["MemAvailable"] // MIB


def survives_burst(guest: RunningGuest) -> bool:
    """Whether it can hold the burst without its kernel killing for it; it holds little again afterwards."""
    kills = guest.hog_kills
    guest.hold(20 + BURST_MIB, BURST_MIB_PER_S)
    end_s = time.monotonic() + PATIENCE_S
    while guest.hog_kills == kills and guest.report().held_kib < (20 + BURST_MIB) * MIB:
        assert guest.alive and time.monotonic() < end_s, guest.console()[-500:]
    survived = guest.hog_kills == kills
    guest.hold(20)
    return survived


@pytest.mark.quiet  # what this machine has to give is what others leave
@pytest.mark.parametrize("starved_s", [45, pytest.param(600, marks=pytest.mark.nightly)])
def test_a_guest_that_paid_for_a_starving_neighbour_survives_a_burst(starved_s: int) -> None:
    """The host has nothing above its reserve, so the neighbour's need is paid from what the others leave unused."""
    with Lab() as lab:
        donors = [Guest(name, memory_mib=2048, hold_mib=20) for name in NAMES]
        needy = Guest(NEIGHBOUR, memory_mib=1024, current_mib=256, hold_mib=110)
        *guests, neighbour = lab.start(*donors, needy)
        sizes = [guest.balloon_kib() for guest in guests]
        promised_mib = sum(guest.untouched_kib() for guest in (*guests, neighbour)) // MIB
        memory: dict[str, Any] = {"host_reserve": f"{max(1, available_mib() - promised_mib)}M"}
        with running(policy(memory=memory)) as daemon:
            daemon.wait(lambda: neighbour.report().available_kib >= 140 * MIB, "to feed the needy")
            time.sleep(starved_s)
            assert neighbour.hog_kills == 0 and neighbour.report().available_kib >= 130 * MIB, daemon.lines
            paid = [before - guest.balloon_kib() for before, guest in zip(sizes, guests)]
            assert max(paid) > 0, daemon.lines
            assert survives_burst(guests[paid.index(max(paid))]), daemon.lines


def test_an_idle_guest_survives_a_burst(guests: list[RunningGuest]) -> None:
    with running(policy()) as daemon:
        daemon.wait_passes(2)
        time.sleep(IDLE_S)
        assert survives_burst(guests[0]), daemon.lines


def test_a_guest_below_a_hosts_reserve_survives_a_burst(guests: list[RunningGuest]) -> None:
    """A number in a policy is no danger: nothing is taken from anybody while the host is calm."""
    with running(policy(memory={"host_reserve": f"{available_mib() + 2048}M"})) as daemon:
        daemon.wait_passes(2)
        time.sleep(IDLE_S)
        assert survives_burst(guests[0]), daemon.lines
        assert not [line for line in daemon.moves if "->" in line and "M" in line], daemon.moves


def test_the_same_burst_kills_what_eager_made_slim(guests: list[RunningGuest]) -> None:
    """What `reclaim: eager` costs, as docs/memory.md says.

    The burst comes between two passes, however slow this machine makes it: the daemon is stopped meanwhile.
    """
    with running(policy(memory={"reclaim": "eager"})) as daemon:
        daemon.wait(lambda: daemon.moves, "to take what is unused")
        daemon.wait_quiet(20)
        daemon.process.send_signal(signal.SIGSTOP)
        assert not survives_burst(guests[0]), daemon.lines
