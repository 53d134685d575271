# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prometheus' text format, written by hand; that Prometheus takes it is in test_daemon.py, by promtool."""

from __future__ import annotations

import gzip
import math

import pytest
from kvmsched.app import metrics, process
from kvmsched.app.exposition import Counter, Gauge, Summary, text_of


def test_a_family_has_its_kind_and_its_suffixes() -> None:
    one = Gauge("a_bytes", "What\nit is.", 5)
    many = Counter("b", "Counted.", labels=("resource", "kind"))
    many.add(["vcpu", "x"], 2)
    took = Summary("c_seconds", "Time.", labels=("phase",))
    took.add(["apply"], 3, 0.5)
    assert text_of([one, many, took]).decode().splitlines() == [
        "# HELP a_bytes What\\nit is.",
        "# TYPE a_bytes gauge",
        "a_bytes 5.0",
        "# HELP b_total Counted.",
        "# TYPE b_total counter",
        'b_total{kind="x",resource="vcpu"} 2.0',
        "# HELP c_seconds Time.",
        "# TYPE c_seconds summary",
        'c_seconds_count{phase="apply"} 3.0',
        'c_seconds_sum{phase="apply"} 0.5',
    ]


@pytest.mark.parametrize("value", [0, 1.5, 2**60, 1e-9, math.inf, -math.inf, math.nan])
def test_numbers_are_those_that_prometheus_reads(value: float) -> None:
    told = text_of([Gauge("a", "b", value)]).decode().split()[-1]
    assert told in ("NaN", "+Inf", "-Inf") if not math.isfinite(value) else float(told) == value


def test_what_a_label_holds_can_t_end_it() -> None:
    family = Gauge("a", "b", labels=("domain",))
    family.add(['x"} 1\n\\'], 1)
    assert text_of([family]).decode().splitlines()[-1] == 'a{domain="x\\"} 1\\n\\\\"} 1.0'


def test_the_process_tells_what_it_costs() -> None:
    text = text_of(process.families()).decode()
    told = dict(line.split() for line in text.splitlines() if not line.startswith("#"))
    assert float(told["kvmsched_process_resident_memory_bytes"]) > 2**20
    assert 0 < float(told["kvmsched_process_open_fds"]) <= float(told["kvmsched_process_max_fds"])


def test_the_text_is_packed_for_who_asks() -> None:
    told = metrics.Metrics(metrics.Totals())
    assert b"kvmsched_process_" in gzip.decompress(told.render(packed=True))
