# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prometheus' text format, version 0.0.4: families of samples in, text out. No library is needed for that."""

from __future__ import annotations

import math
from typing import Iterable, Optional, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Family:
    """The samples of one name. A counter's name ends in ``_total``, a summary's with ``_count`` and ``_sum``."""

    kind = ""
    suffixes: tuple[str, ...] = ("",)

    def __init__(self, name: str, text: str, value: Optional[float] = None, labels: Sequence[str] = ()) -> None:
        self.name, self.text, self.labels = name, text, labels
        self._lines: list[str] = []
        if value is not None:
            self.add((), value)

    def add(self, values: Sequence[str], *numbers: float) -> None:
        """Add one sample: the labels' values, and a number for each suffix."""
        pairs = sorted(zip(self.labels, values))
        labels = ",".join(f'{label}="{_escaped(value, quotes=True)}"' for label, value in pairs)
        for suffix, number in zip(self.suffixes, numbers):
            self._lines.append(
                f"{self.name}{suffix}{{{labels}}} {_number(number)}"
                if labels
                else f"{self.name}{suffix} {_number(number)}"
            )

    def lines(self) -> Iterable[str]:
        name = self.name + (self.suffixes[0] if len(self.suffixes) == 1 else "")
        yield f"# HELP {name} {_escaped(self.text)}"
        yield f"# TYPE {name} {self.kind}"
        yield from self._lines


class Gauge(Family):
    kind = "gauge"


class Counter(Family):
    kind = "counter"
    suffixes = ("_total",)


class Summary(Family):
    kind = "summary"
    suffixes = ("_count", "_sum")


def text_of(families: Iterable[Family]) -> bytes:
    return "".join(f"{line}\n" for family in families for line in family.lines()).encode()


def _escaped(text: str, quotes: bool = False) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quotes else text


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return repr(float(value)) if math.isfinite(value) else "+Inf" if value > 0 else "-Inf"
