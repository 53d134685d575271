# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When two samples are worth a plan: who is waited for, and for how long."""

from __future__ import annotations

from dataclasses import replace

import pytest
from kvmsched.policy.memory import sampling
from memory_worlds import MIB, NOW_S, TICK_S, a_tick_before, balloon, domain, pair, snapshot

LATE = {"last_update_s": int(NOW_S) - 60}


@pytest.mark.parametrize(
    ("told", "slow"),
    [({}, False), ({"period_s": 10}, False), ({"period_s": 11}, True), ({"last_update_s": int(NOW_S) - 13}, True)],
)
def test_who_tells_less_often_than_every_ten_seconds_is_slow(told: dict[str, int], slow: bool) -> None:
    assert sampling.is_slow(balloon(512, **told), NOW_S) is slow


def test_samples_are_ripe_once_all_have_answered_and_no_balloon_moved() -> None:
    first, last = pair(snapshot([domain("a", 512), domain("b", 1024)]))
    assert sampling.ripe(first, last) and sampling.all_reported(first, last)
    assert not sampling.ripe(last, last) and not sampling.all_reported(last, last)
    moving = a_tick_before(last, actual_kib=500 * MIB)
    assert sampling.all_reported(moving, last) and not sampling.ripe(moving, last)


def test_whoever_is_new_is_not_waited_for_once_more() -> None:
    last = snapshot([domain("a", 512), domain("new", 512)])
    first = a_tick_before(replace(last, domains=last.domains[:1]))
    assert sampling.ripe(first, last)


@pytest.mark.parametrize(
    "silent", [{"state": "paused"}, {"period_s": 0}, {"period_s": 60}, LATE], ids=["paused", "off", "slow", "late"]
)
def test_who_does_not_answer_is_not_waited_for(silent: dict[str, object]) -> None:
    last = snapshot([domain("a", 512), domain("silent", 512, **silent)])
    assert [one.name for one in sampling.reporting(last)] == ["a"]
    first = a_tick_before(replace(last, domains=last.domains[:1]))
    assert sampling.ripe(replace(first, domains=(*first.domains, last.domains[1])), last)


def test_the_next_report_is_that_of_the_last_one_who_answers() -> None:
    domains = [domain("a", 512), domain("b", 512, period_s=10), domain("silent", 512, **LATE)]
    assert sampling.next_report_s(snapshot(domains)) == int(NOW_S) - 1 + 10
    assert sampling.next_report_s(snapshot(domains[:1])) == int(NOW_S) - 1 + TICK_S
    assert sampling.next_report_s(snapshot(domains[2:])) == 0
