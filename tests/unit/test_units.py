# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sizes, percentages and CPU sets, as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kvmsched.units import (
    MAX_PCPU_ID,
    Amount,
    counted,
    exact_size,
    first_of,
    format_cpuset,
    parse_amount,
    parse_cpuset,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "kib"),
    [
        ("150M", 150 * 1024),
        ("2G", 2 * 1024**2),
        ("512K", 512),
        ("1T", 1024**3),
        ("1.5GiB", 1536 * 1024),
        (" 8M ", 8192),
    ],
)
def test_sizes(text: str, kib: int) -> None:
    assert parse_size(text) == kib


@pytest.mark.parametrize(
    "text", ["150", "150MB", "150m", "-1M", "", "M", "1e3M", "nan", "1,5G", "\uff19M", "2000T", "1" * 30]
)
def test_bad_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"150M|at most"):
        parse_size(text)


@pytest.mark.parametrize(("text", "meant"), [("150", "150M"), ("150MB", "150M"), ("2g", "2G"), ("2 GB", "2G")])
def test_a_slip_names_the_right_spelling(text: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean {meant}"):
        parse_size(text)


def test_amounts() -> None:
    assert parse_amount("5%") == Amount(pct=5.0)
    assert parse_amount("5%").of(1000) == 50
    assert parse_amount("150M").of(1000) == 150 * 1024
    for text in ("101%", "-1%", "%", "5 %", "nan%"):
        with pytest.raises(ValueError, match="percentage"):
            parse_amount(text)


@given(st.integers(min_value=1, max_value=1024**4))
@settings(derandomize=True)
def test_a_size_survives_its_text(kib: int) -> None:
    assert parse_size(exact_size(kib)) == kib


@given(st.frozensets(st.integers(min_value=0, max_value=MAX_PCPU_ID), min_size=1))
@settings(derandomize=True)
def test_a_cpuset_survives_its_text(cpus: frozenset[int]) -> None:
    assert parse_cpuset(format_cpuset(cpus)) == cpus


def test_cpusets() -> None:
    assert parse_cpuset("0-3,^2,8") == {0, 1, 3, 8}
    assert format_cpuset({0, 1, 3, 8}) == "0-1,3,8"
    assert format_cpuset(()) == ""


@pytest.mark.parametrize(
    "text", ["", ",", "3-1", "a", "0-", "-1", "0,,1", "99999", "^1", "0-3,^0-3", "0x1", "1 2", "\u0663"]
)
def test_bad_cpusets_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="0-3,8"):
        parse_cpuset(text)


def test_one_is_no_plural() -> None:
    assert [counted(number, "guest") for number in (0, 1, 2)] == ["0 guests", "1 guest", "2 guests"]


def test_of_many_names_the_first_are_told_and_how_many_more() -> None:
    assert first_of(["a", "b", "c"]) == "a, b, c"
    assert first_of(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
