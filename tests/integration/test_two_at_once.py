# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two on one host: nothing is done twice, and whoever may not act says who does."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from face import run, run_ok
from kvmsched import lock
from lab import Lab, RunningGuest, TinyGuest

# Whether a run has something to do depends on how busy others keep the other pCPU.
pytestmark = pytest.mark.quiet

URI = "qemu:///system"
HOME = frozenset({0})
OPTIONS = {"pcpus": "0-1", "threshold": 20}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        # Always busy: what guests want that are busy now and then depends on whether they are so together.
        lab.start(*(TinyGuest(f"kvmsched-test-two{n}", cpu=[1.0], pin={0: "0"}) for n in range(2)))
        yield lab


@pytest.fixture
def guests(lab: Lab) -> Iterator[list[RunningGuest]]:
    """Two guests on pCPU 0, where there should be one."""
    yield list(lab.guests.values())
    run_ok("kvm_vcpu_pin", state="released")
    assert all(guest.affinity(0) == HOME for guest in lab.guests.values())


def placement(guests: list[RunningGuest]) -> Counter[frozenset[int]]:
    return Counter(guest.affinity(0) for guest in guests)


def test_of_two_runs_at_once_one_waits_and_finds_the_work_done(guests: list[RunningGuest]) -> None:
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(run_ok, "kvm_vcpu_pin", **OPTIONS) for _turn in range(2)]
        answers = [one.result() for one in runs]
    assert sorted(answer.changed for answer in answers) == [False, True], [answer.text for answer in answers]
    assert placement(guests) == {HOME: 1, frozenset({1}): 1}


def test_a_run_that_does_not_get_the_host_names_its_holder(guests: list[RunningGuest]) -> None:
    with lock.acquire(URI, 10, "kvm_mem_balance"):
        answer = run("kvm_vcpu_pin", lock_timeout=1, **OPTIONS)
        assert run_ok("kvm_vcpu_pin", check=True, **OPTIONS).changed, "check mode needs no lock"
    assert answer.failed and not answer.changed
    assert f"kvm_mem_balance (pid {os.getpid()}) has this host's lock" in answer.msg
    assert placement(guests) == {HOME: 2}


@pytest.mark.parametrize("module", ["kvm_vcpu_pin", "kvm_mem_balance"])
def test_beside_an_acting_daemon_a_run_changes_nothing_and_names_it(guests: list[RunningGuest], module: str) -> None:
    """The daemon is this process, which announces itself as a daemon does."""
    named = f"managed by the daemon (pid {os.getpid()})"
    with lock.announce(URI, "act"):
        answer = run_ok(module, **(OPTIONS if module == "kvm_vcpu_pin" else {}))
        release = run(module, state="released")
    assert not answer.changed and not answer.moves
    assert named in answer.text
    assert release.failed and named in release.msg and "stop kvmsched, pause it or set mode observe" in release.msg
    assert placement(guests) == {HOME: 2}


def test_beside_a_daemon_that_only_observes_a_run_acts(guests: list[RunningGuest]) -> None:
    with lock.announce(URI, "act") as set_mode:
        set_mode("observe")
        assert run_ok("kvm_vcpu_pin", **OPTIONS).changed
    assert placement(guests) == {HOME: 1, frozenset({1}): 1}
