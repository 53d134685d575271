# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was written to a terminal, as an SVG that follows its reader's choice of light or dark."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from html import escape

from lab.bars import COLOURS

CELL, LINE, MARGIN, FONT = 8.4, 18, 16, 14
# By name: on light, on dark.
INK = {
    "": ("#1f2328", "#f0f6fc"),
    "bold": ("#1f2328", "#f0f6fc"),
    "grey": ("#6e7781", "#8b949e"),
    "red": ("#cf222e", "#ff7b72"),
    "green": ("#116329", "#56d364"),
    "yellow": ("#8a5d00", "#e3b341"),
    "blue": ("#0550ae", "#79c0ff"),
    "magenta": ("#8250df", "#d2a8ff"),
    "cyan": ("#1b7c83", "#39c5cf"),
}
_NAMES = {str(code): name for name, code in COLOURS.items()}


def drawn(lines: Sequence[str], title: str) -> str:
    """The SVG of *lines*, which may have the colours of lab.bars.Pen in them."""
    columns = max(len(plain(line)) for line in lines)
    width, height = round(columns * CELL) + 2 * MARGIN, len(lines) * LINE + 2 * MARGIN
    styles = {
        theme: " ".join(f".{name or 'ink'} {{ fill: {inks[which]}; }}" for name, inks in INK.items())
        for which, theme in enumerate(("light", "dark"))
    }
    rows = "\n".join(f"  {row}" for number, line in enumerate(lines) for row in _row(number, line))
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-labelledby="t"
  font-family="ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace" font-size="{FONT}">
  <title id="t">{escape(title)}</title>
  <style>
    text {{ white-space: pre; }} .page {{ fill: #f6f8fa; }} .bold {{ font-weight: bold; }}
    {styles["light"]}
    @media (prefers-color-scheme: dark) {{ .page {{ fill: #0d1117; }} {styles["dark"]} }}
  </style>
  <rect width="{width}" height="{height}" rx="8" class="page"/>
{rows}
</svg>
"""


def plain(line: str) -> str:
    """The line without its colours."""
    return re.sub(r"\033\[[0-9;]*m", "", line)


def _row(number: int, line: str) -> Iterator[str]:
    """One text element for each stretch of one colour, as wide as its cells are, whatever font there is."""
    cells: list[tuple[str, str]] = []
    name = ""
    for part in re.split(r"(\033\[[0-9;]*m)", line):
        if part.startswith("\033"):
            name = _NAMES.get(part[2:-1], "")
        else:
            cells += [(name, sign) for sign in part]
    column = 0
    for name, stretch in itertools.groupby(cells, key=lambda cell: cell[0]):
        part = "".join(sign for _name, sign in stretch)
        if part.strip():
            x, y = MARGIN + column * CELL, MARGIN + number * LINE + FONT
            size = f'xml:space="preserve" textLength="{len(part) * CELL:.1f}" lengthAdjust="spacingAndGlyphs"'
            yield f'<text x="{x:.1f}" y="{y}" class="{name or "ink"}" {size}>{escape(part)}</text>'
        column += len(part)
