# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bars for a terminal: coloured where that is wanted, plain letters where it is not."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Mapping, Optional, Sequence, TextIO

COLOURS = {"red": 31, "green": 32, "yellow": 33, "blue": 34, "magenta": 35, "cyan": 36, "grey": 90, "bold": 1}
PLAIN = str.maketrans("█▓▒░·│✔✘", "#%=-.|+!")


@dataclass(frozen=True)
class Segment:
    """A part of a bar: how much of the scale, in which sign and colour."""

    amount: float
    sign: str
    colour: str


@dataclass(frozen=True)
class Pen:
    """How text is drawn on a stream: ``colour`` by NO_COLOR and tty, ``unicode`` by its encoding."""

    colour: bool
    unicode: bool

    @classmethod
    def of(cls, stream: TextIO) -> Pen:
        wanted = bool(os.environ.get("FORCE_COLOR")) or stream.isatty()
        colour = wanted and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        return cls(colour, (stream.encoding or "").lower().replace("-", "") == "utf8")

    def paint(self, text: str, colour: str) -> str:
        text = text if self.unicode else text.translate(PLAIN)
        return f"\033[{COLOURS[colour]}m{text}\033[0m" if self.colour and colour else text

    def draw(
        self, segments: Sequence[Segment], scale: float, width: int, marks: Optional[Mapping[str, float]] = None
    ) -> str:
        """*segments* side by side, *scale* being the whole width; *marks*, by colour, are drawn over what is there."""
        cells = [(" ", "")] * width
        position = start = 0.0
        for segment in segments:
            position += segment.amount
            first, last = (min(round(edge / scale * width), width) for edge in (start, position))
            cells[first:last] = [(segment.sign, segment.colour)] * (last - first)
            start = position
        for colour, mark in (marks or {}).items():
            cell = round(mark / scale * width)
            if 0 <= cell < width:
                cells[cell] = ("│", colour)
        return "".join(self.paint(sign, colour) for sign, colour in cells)
