# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Loads over time: made up from fixed seeds, or read from real traces, and the noise on top of steady ones."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import List, Sequence

PERIOD_S = 300.0
DAY = 288
FINE_S = 5.0

Rows = List[List[float]]


def made_up(rng: random.Random, vcpus: int, periods: int = DAY) -> Rows:
    """Demand by vCPU and five minutes.

    It resembles what is published of virtual machines in data centres: a mean of about 11 % of a pCPU
    with a heavy tail, a daily wave, noise that lasts some periods, steps, and short spikes.
    """
    rows = []
    for _turn in range(vcpus):
        level, noise, spike = min(0.9, rng.lognormvariate(-2.8, 1.0)), 0.0, 0
        wave, phase = rng.uniform(0.0, 0.6), rng.gauss(0.0, 0.5)
        row = []
        for period in range(periods):
            if rng.random() < 0.004:
                level = min(0.9, rng.lognormvariate(-2.8, 1.0))
            if rng.random() < 0.003:
                spike = rng.randint(1, 6)
            noise = 0.8 * noise + rng.gauss(0.0, 0.15)
            day = 1 + wave * math.sin(2 * math.pi * period / DAY + phase)
            row.append(1.0 if spike else min(1.0, max(0.003, level * day * math.exp(noise))))
            spike = max(0, spike - 1)
        rows.append(row)
    return rows


def read(folder: Path) -> Rows:
    """Traces in PlanetLab's form: a file a virtual machine, a CPU percent a line, one every five minutes."""
    rows = [
        [float(line) / 100 for line in file.read_text().split()] for file in sorted(folder.iterdir()) if file.is_file()
    ]
    shortest = min(map(len, rows))
    return [[min(1.0, value) for value in row[:shortest]] for row in rows]


def drawn(rng: random.Random, rows: Rows, vcpus: int, periods: int) -> Rows:
    """*vcpus* of *rows*, and *periods* of their time, at random; all must be of the same time."""
    begin = rng.randrange(len(rows[0]) - periods + 1)
    return [row[begin : begin + periods] for row in rng.sample(rows, vcpus)]


def interpolated(rows: Rows) -> Rows:
    """Five seconds a step instead of five minutes, in straight lines from one value to the next."""
    between = round(PERIOD_S / FINE_S)
    return [
        [old + (new - old) * turn / between for old, new in zip(row, row[1:]) for turn in range(between)]
        for row in rows
    ]


def noisy(rng: random.Random, means: Sequence[float], steps: int, part: float, lasts_s: float = 0.0) -> Rows:
    """Steady *means* with noise of *part* of each as its standard deviation; it *lasts_s*: AR(1), or white if 0."""
    keep = math.exp(-FINE_S / lasts_s) if lasts_s else 0.0
    rows = []
    for mean in means:
        noise = rng.gauss(0.0, part)
        row = []
        for _step in range(steps):
            row.append(min(1.0, max(0.0, mean * (1 + noise))))
            noise = keep * noise + math.sqrt(1 - keep * keep) * rng.gauss(0.0, part)
        rows.append(row)
    return rows


def steady(means: Sequence[float], steps: int) -> Rows:
    return [[mean] * steps for mean in means]
