# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest tells what it likes: a reading is believed only within what can be."""

from __future__ import annotations

from typing import Any

import pytest
from examples import examples
from hypothesis import given, seed
from hypothesis import strategies as st
from kvmsched.balloon_stats import counter, measured, outgrown
from kvmsched.model import Balloon

MAXIMUM_KIB = 4194304
# What libvirt makes of QEMU's -17591649169408 for a register of 0xffffffff.
WRAPPED_KIB = 18014398492000000
KNOWN = Balloon(2097152, MAXIMUM_KIB, period_s=5, inhibitors=("locked",))
HONEST = {
    "balloon.maximum": MAXIMUM_KIB,
    "balloon.current": 2097152,
    "balloon.unused": 100000,
    "balloon.usable": 500000,
    "balloon.disk_caches": 400000,
    "balloon.swap_in": 1,
    "balloon.swap_out": 2,
    "balloon.major_fault": 3,
    "balloon.rss": 2000000,
    "balloon.last-update": 1700000000,
}
ODD = [WRAPPED_KIB, MAXIMUM_KIB + 2048, -5, 2**64, None, "much", 1.5, True, [], {}]


def told(**changed: Any) -> Balloon:
    record = {**HONEST, **{f"balloon.{name.replace('_update', '-update')}": value for name, value in changed.items()}}
    balloon = measured(KNOWN, record)
    assert balloon is not None
    return balloon


def test_an_honest_reading() -> None:
    balloon = told()
    assert (balloon.actual_kib, balloon.maximum_kib, balloon.period_s) == (2097152, MAXIMUM_KIB, 5)
    assert (balloon.unused_kib, balloon.usable_kib, balloon.disk_caches_kib) == (100000, 500000, 400000)
    assert (balloon.swap_in_kib, balloon.swap_out_kib, balloon.major_faults) == (1, 2, 3)
    assert (balloon.rss_kib, balloon.last_update_s, balloon.inhibitors) == (2000000, 1700000000, ("locked",))
    assert not balloon.void


@pytest.mark.parametrize("odd", [*ODD, 0, 3])
def test_a_balloon_of_a_size_that_cannot_be_may_have_all(odd: object) -> None:
    balloon = told(current=odd)
    assert balloon.void and balloon.actual_kib == MAXIMUM_KIB
    assert (balloon.unused_kib, balloon.usable_kib, balloon.disk_caches_kib) == (None, None, None)
    assert balloon.swap_in_kib == 1


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", ["unused", "usable", "disk_caches"])
def test_a_size_that_cannot_be_voids_the_reading(name: str, odd: object) -> None:
    balloon = told(**{name: odd})
    assert (balloon.unused_kib, balloon.usable_kib, balloon.disk_caches_kib) == (None, None, None)
    assert (balloon.actual_kib, balloon.major_faults) == (2097152, 3)


@pytest.mark.parametrize("odd", [-5, 2**64, None, "much", 1.5, True, [], {}])
@pytest.mark.parametrize("name", ["swap_in", "swap_out", "major_fault"])
def test_a_counter_that_cannot_be_voids_itself_alone(name: str, odd: object) -> None:
    balloon = told(**{name: odd})
    known = {"swap_in": balloon.swap_in_kib, "swap_out": balloon.swap_out_kib, "major_fault": balloon.major_faults}
    assert known.pop(name) is None and None not in known.values()
    assert balloon.usable_kib == 500000


def test_what_is_not_told_is_not_known_and_voids_nothing() -> None:
    balloon = measured(KNOWN, {"balloon.maximum": MAXIMUM_KIB, "balloon.current": 2097152, "balloon.unused": 7})
    assert balloon and (balloon.unused_kib, balloon.usable_kib, balloon.last_update_s) == (7, None, 0)
    assert measured(KNOWN, {}) == KNOWN
    assert measured(None, {}) is None


@pytest.mark.parametrize(
    ("record", "anew"),
    [
        ({}, False),
        ({"balloon.maximum": "much"}, False),
        ({"balloon.maximum": MAXIMUM_KIB}, False),
        ({"balloon.maximum": MAXIMUM_KIB, "balloon.current": 0}, False),
        ({"balloon.maximum": MAXIMUM_KIB, "balloon.current": MAXIMUM_KIB + 512}, False),
        ({"balloon.maximum": MAXIMUM_KIB, "balloon.current": MAXIMUM_KIB + 2048}, True),
        ({"balloon.maximum": MAXIMUM_KIB, "balloon.current": WRAPPED_KIB}, True),
        ({"balloon.maximum": 2 * MAXIMUM_KIB, "balloon.current": MAXIMUM_KIB}, True),
        ({"balloon.maximum": MAXIMUM_KIB // 2, "balloon.current": 1}, True),
    ],
)
def test_a_size_beyond_the_known_maximum_has_the_definition_read_anew(record: dict[str, Any], anew: bool) -> None:
    assert outgrown(KNOWN, record) == anew


LISTS = st.lists(st.integers(), max_size=1)
VALUES = st.one_of(st.integers(-(2**70), 2**70), st.none(), st.text(max_size=3), st.floats(), LISTS)


@seed(1)
@examples(150)
@given(st.dictionaries(st.sampled_from(sorted(HONEST)), VALUES))
def test_whatever_is_told_a_balloon_stays_within_its_maximum(record: dict[str, Any]) -> None:
    balloon = measured(KNOWN, {**HONEST, **record, "balloon.maximum": MAXIMUM_KIB})
    assert balloon and 0 <= balloon.actual_kib <= MAXIMUM_KIB + 1024
    for kib in (balloon.unused_kib, balloon.usable_kib, balloon.disk_caches_kib):
        assert kib is None or 0 <= kib <= MAXIMUM_KIB + 1024
    for number in (balloon.swap_in_kib, balloon.swap_out_kib, balloon.major_faults, balloon.rss_kib):
        assert number is None or counter(number) == number
    assert isinstance(balloon.last_update_s, int)
