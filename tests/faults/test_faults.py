# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What breaks on real guests, at which instant of a pass, and what is then still true.

After each fault: the pass ended by itself, while the fault still stood; nobody died whom the test did
not kill; no balloon is under its floor and no pin outside its set; the healthy domains were served;
and ``released`` brings everyone back to where it was.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faulty
import pytest
from kvmsched.model import BalloonMove
from lab import Guest, Lab, RunningGuest

NAMES = [f"kvmsched-test-fault{number}" for number in range(6)]
MEMORY_KIB = 224 * 1024
FLOOR_KIB = 96 * 1024
TOLERANCE_KIB = 1024
RESOURCES = ("memory", "vcpu")
# A pass that hangs is ended after this, which fails its test: no healthy one comes near it.
HANG_S = 90


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        lab.start(*(Guest(name, memory_mib=224, cpu=[0.25], pin={0: "0"}, persistent=True) for name in NAMES))
        yield lab


@pytest.fixture
def guests(lab: Lab) -> Iterator[list[RunningGuest]]:
    guests = [lab[name] for name in NAMES]
    yield guests
    for guest in guests:
        if guest.qemu_state:
            guest.signal_qemu(signal.SIGCONT)
    assert_whole(guests)


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """End the whole test run if one test hangs: a thread that is stuck in libvirt can't be ended otherwise."""
    guard = threading.Timer(HANG_S, lambda: os.kill(os.getpid(), signal.SIGABRT))
    guard.start()
    yield
    guard.cancel()


def assert_whole(guests: list[RunningGuest]) -> None:
    """Release all; each must be alive, where it was, and without a trace of ours."""
    for resource in RESOURCES:
        result = faulty.run(resource, release=True)
        if result.failed:  # what was stopped may need another tick until its statistics are fresh
            result = faulty.run(resource, release=True)
        assert result.failed is None, result.failed
    for guest in guests:
        assert guest.alive and guest.hog_kills == 0, guest.name
        assert abs(guest.balloon_kib() - MEMORY_KIB) <= TOLERANCE_KIB, guest.name
        assert guest.affinity(0) == frozenset({0}), guest.name
        assert "kvmsched:state" not in guest.domain.XMLDesc(0), guest.name


def assert_invariants(guests: list[RunningGuest]) -> None:
    for guest in guests:
        assert guest.alive, guest.name
        assert guest.affinity(0) <= frozenset({0, 1}), guest.name
        if guest.qemu_state != "T":
            assert guest.balloon_kib() >= FLOOR_KIB - TOLERANCE_KIB, guest.name


def moved(result: Any) -> set[str]:
    return {move.domain for move in result.outcome.moves}


def told(result: Any) -> set[str]:
    """The domains that the result has a reason for."""
    return {skip.domain for skip in result.skips} | {failure.domain for failure in result.outcome.failures}


@pytest.mark.parametrize("resource", RESOURCES)
@pytest.mark.parametrize("instant", faulty.INSTANTS)
@pytest.mark.parametrize("count", [1, 3, 6])
def test_stopped_qemus_cost_only_their_own_turn(
    guests: list[RunningGuest], resource: str, instant: str, count: int
) -> None:
    sick, healthy = guests[:count], guests[count:]

    def stop() -> None:
        for guest in sick:
            guest.signal_qemu(signal.SIGSTOP)

    with faulty.breaking(instant, stop):
        result = faulty.run(resource)
    assert all(guest.qemu_state == "T" for guest in sick), "the pass ended while they were stopped"
    assert_invariants(guests)
    if resource == "memory":
        assert moved(result) >= {guest.name for guest in healthy}, result
        for guest in sick:
            assert guest.name in told(result) | moved(result), guest.name


@pytest.mark.parametrize("resource", RESOURCES)
@pytest.mark.parametrize("instant", faulty.INSTANTS)
def test_a_pass_that_is_killed_leaves_what_released_restores(
    guests: list[RunningGuest], resource: str, instant: str
) -> None:
    command = [sys.executable, str(Path(faulty.__file__)), resource, "balance", "kill", instant]
    done = subprocess.run(command, timeout=HANG_S, check=False)
    assert done.returncode == -signal.SIGKILL
    assert_invariants(guests)


def killed(guest: RunningGuest) -> None:
    guest.signal_qemu(signal.SIGKILL)


def destroyed(guest: RunningGuest) -> None:
    guest.domain.destroy()


def undefined(guest: RunningGuest) -> None:
    guest.domain.undefine()
    guest.domain.destroy()


ENDS: dict[str, Callable[[RunningGuest], None]] = {"killed": killed, "destroyed": destroyed, "undefined": undefined}


@pytest.mark.parametrize("resource", RESOURCES)
@pytest.mark.parametrize("end", ENDS)
def test_a_domain_that_ends_in_a_pass_costs_only_its_own_turn(
    lab: Lab, guests: list[RunningGuest], resource: str, end: str
) -> None:
    victims = lab.start(
        *(
            Guest(f"kvmsched-test-victim-{instant}", memory_mib=224, cpu=[0.25], pin={0: "0"}, persistent=True)
            for instant in faulty.INSTANTS
        )
    )
    try:
        for instant, victim in zip(faulty.INSTANTS, victims):
            with faulty.breaking(instant, lambda victim=victim: ENDS[end](victim)):  # type: ignore[misc]
                result = faulty.run(resource)
            assert result.failed is None, (instant, result.failed)
            assert not victim.alive
            assert_invariants(guests)
        assert_whole(guests)
    finally:
        lab.stop([victim.name for victim in victims])


def test_memory_that_was_taken_when_a_pass_died_is_found_free_by_the_next(guests: list[RunningGuest]) -> None:
    hog = guests[0]
    hog.hold(140)
    hog.wait_held()
    command = [sys.executable, str(Path(faulty.__file__)), "memory", "balance", "kill", "change"]
    subprocess.run(command, timeout=HANG_S, check=False)
    for _turn in range(5):
        result = faulty.run("memory")
        if not result.outcome.changed:
            break
    assert result.plan.before.starved == 0
    gives = [move for move in result.plan.moves if isinstance(move, BalloonMove) and move.gives]
    assert not gives
    hog.hold(0)
    hog.wait_held()
