# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables, and the aims that are held against their figures."""

from __future__ import annotations

from typing import Any, Dict, List, Sequence

Row = Dict[str, Any]


def table(title: str, rows: Sequence[Row], note: str = "") -> Sequence[Row]:
    """Print *rows* under *title*, one column a key."""
    print(f"\n{title}")
    texts = [list(rows[0]), *([_text(value) for value in row.values()] for row in rows)]
    widths = [max(len(row[column]) for row in texts) for column in range(len(texts[0]))]
    for row in texts:
        first, *rest = (text.ljust(w) if n == 0 else text.rjust(w) for n, (text, w) in enumerate(zip(row, widths)))
        print("  " + "  ".join([first, *rest]), flush=True)
    if note:
        print(f"  {note}")
    return rows


def _text(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


class Aims:
    """What was aimed at, with its figures. *open_* are the names of those that are known not to be met yet."""

    def __init__(self, open_: Sequence[str]) -> None:
        self._open = frozenset(open_)
        self.rows: List[Row] = []

    def hold(self, name: str, figure: float, limit: float, what: str = "", least: bool = False) -> None:
        """Hold *figure* against *limit*, which it must not be above (*least*: not below). An aim may have many such."""
        met = figure >= limit if least else figure <= limit
        missed_by = limit - figure if least else figure - limit
        wanted = f"{'>=' if least else '<='} {limit:.3f}"
        self.rows.append(
            {"aim": name, "figure": figure, "wanted": wanted, "met": met, "missed by": missed_by, "what": what}
        )

    @property
    def broken(self) -> List[str]:
        """The aims that are not met and should be."""
        return sorted({row["aim"] for row in self.rows if not row["met"]} - self._open)

    def show(self) -> None:
        if not self.rows:
            return
        names = list(dict.fromkeys(row["aim"] for row in self.rows))
        table("Aims", [self._summary(name) for name in names], "worst: of those that are held against it")
        done = sorted(name for name in names if name in self._open and all(r["met"] for r in self._of(name)))
        if done:
            print(f"  met now, so take them off the list of open ones: {'; '.join(done)}")
        if self.broken:
            print(f"  BROKEN: {'; '.join(self.broken)}")

    def _of(self, name: str) -> List[Row]:
        return [row for row in self.rows if row["aim"] == name]

    def _summary(self, name: str) -> Row:
        rows = self._of(name)
        worst = max(rows, key=lambda row: row["missed by"])
        met = sum(row["met"] for row in rows)
        word = "met" if met == len(rows) else "not met yet" if name in self._open else "NOT MET"
        return {
            "aim": name,
            "": word,
            "met in": f"{met} of {len(rows)}",
            "worst": f"{worst['figure']:.3f}",
            "wanted": worst["wanted"],
            "where": worst["what"],
        }
