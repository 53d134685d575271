# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pass after pass on real guests: balanced soon after each change of load, and at rest while nothing changes.

What guests want is known, as the test tells them; where they are is asked of the kernel.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator, Sequence

import pytest
from kvmsched.config import Selection, VcpuPolicy, load_daemon
from kvmsched.passes import Conduct, VcpuResult, run_vcpu
from kvmsched.policy.vcpu import VcpuHistory, budgeted
from lab import Guest, Lab, RunningGuest

pytestmark = pytest.mark.quiet

NAMES = [f"kvmsched-test-time{number}" for number in range(4)]
PCPUS = (0, 1)
CONDUCT = Conduct(holder="test_vcpu_over_time")
MINE = {"pcpus": frozenset(PCPUS), "selection": Selection(("kvmsched-test-time*",))}

# Balanced: within 5 points of standard deviation, or as close as these demands can be brought.
BALANCED = 0.05


@pytest.fixture(scope="module")
def guests() -> Iterator[list[RunningGuest]]:
    with Lab() as lab:
        yield lab.start(*(Guest(name, memory_mib=128, pin={0: "0"}) for name in NAMES))


def want(guests: Sequence[RunningGuest], shares: Sequence[float]) -> None:
    for guest, share in zip(guests, shares):
        guest.cpu(share)
    time.sleep(1)  # a load that was just set takes a moment to be what it will be


def placement(guests: Sequence[RunningGuest]) -> list[int]:
    """The one pCPU of each guest."""
    pins = [guest.affinity(0) for guest in guests]
    assert all(len(pin) == 1 for pin in pins), pins
    return [pcpu for pin in pins for pcpu in pin]


def spread(shares: Sequence[float], where: Sequence[int]) -> float:
    """The standard deviation of what is wanted of each pCPU."""
    return statistics.pstdev(sum(share for share, at in zip(shares, where) if at == pcpu) for pcpu in PCPUS)


def best_spread(shares: Sequence[float]) -> float:
    """That of the best of all assignments."""
    return min(spread(shares, where) for where in itertools.product(PCPUS, repeat=len(shares)))


def moves(result: VcpuResult) -> list[str]:
    assert result.failed is None and not result.outcome.failures, result.failed
    return [f"{move}: {getattr(move, 'reason', '')}" for move in result.outcome.moves]


def test_each_change_of_load_is_balanced_within_two_passes_and_then_nothing_moves(guests: list[RunningGuest]) -> None:
    policy = VcpuPolicy(**MINE)  # type: ignore[arg-type]
    story: list[object] = []
    for shares in (
        (0.4, 0.4, 0.4, 0.4),
        (0.8, 0.2, 0.2, 0.2),
        (0.25, 0.75, 0.25, 0.25),
        (0.3, 0.1, 0.6, 0.3),
        (0.1, 0.5, 0.1, 0.5),
    ):
        want(guests, shares)
        made = [moves(run_vcpu(CONDUCT, policy)) for _pass in range(2)]
        found = spread(shares, placement(guests))
        after = [moves(run_vcpu(CONDUCT, policy)) for _pass in range(2)]
        story.append((shares, round(found, 3), made, after))
        print(story[-1])
        assert found <= max(BALANCED, best_spread(shares)) + 1e-9, story
        assert after == [[], []], story


@pytest.mark.nightly
def test_sixty_passes_of_the_daemons_kind_on_a_steady_load_move_nothing(guests: list[RunningGuest]) -> None:
    """The daemon's own policy, though its passes follow each other faster, so that each sees more noise."""
    policy = load_daemon({"vcpu": {"interval": 1}}).vcpu
    policy = VcpuPolicy(**{**vars(policy), **MINE})
    shares = (0.4, 0.4, 0.4, 0.4)
    for guest in guests:
        guest.domain.pinVcpu(0, (True, False))
    want(guests, shares)
    history = VcpuHistory()
    made = []
    for _pass in range(68):
        result = run_vcpu(CONDUCT, policy, history=history)
        history = result.history
        policy = budgeted(policy, result.snapshot)
        made.append(moves(result))
    print([len(row) for row in made])
    assert spread(shares, placement(guests)) <= max(BALANCED, best_spread(shares)) + 1e-9, made
    assert made[8:] == [[]] * 60, made
