# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A replay as one picture, for slides and reports: the pCPUs over time, and what all guests have and use, by column."""

from __future__ import annotations

import importlib.util
from typing import Any, Optional, Sequence

from .replay import ReplayError, Result

_KIB_A_GIB = 1024**2


def check() -> None:
    """ReplayError where matplotlib is missing: said before a replay that takes minutes."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ReplayError("--png needs the Python package matplotlib (python3-matplotlib)")


def png(results: Sequence[Result], path: str) -> None:
    """Write the picture of *results* into the file *path*. OSError."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(results), figsize=(5 * len(results), 7), squeeze=False)
    hours = (results[0].end_s - results[0].begin_s) / 3600
    for result, above, below in zip(results, axes[0], axes[1]):
        above.set_title(result.name)
        _heat(above, result, hours)
        _memory(below, result, hours)
    figure.suptitle(f"kvmsched on {results[0].host}")
    figure.tight_layout()
    with open(path, "wb") as file:
        figure.savefig(file, format="png", dpi=120)
    pyplot.close(figure)


def _heat(axes: Any, result: Result, hours: float) -> None:
    rows = [list(row) for _pcpu, row in sorted(result.busy_pct.items())]
    wide = max(map(len, rows), default=0)
    if wide:
        filled = [[float("nan") if value is None else value for value in _padded(row, wide)] for row in rows]
        extent = (0, hours, len(rows) - 0.5, -0.5)
        axes.imshow(filled, aspect="auto", vmin=0, vmax=100, cmap="YlOrRd", extent=extent, interpolation="nearest")
    axes.set_ylabel("pCPU")
    axes.set_xlabel("hours; colour: busy, 0 to 100 %")


def _memory(axes: Any, result: Result, hours: float) -> None:
    has, uses = _sums(result)
    times = [hours * (column + 0.5) / max(1, len(has)) for column in range(len(has))]
    axes.fill_between(times, has, color="#d5e4ee", label="guests have")
    axes.fill_between(times, uses, color="#7aa5c4", label="guests use")
    axes.set_ylabel("GiB")
    axes.set_xlabel("hours")
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower right")


def _sums(result: Result) -> tuple[list[float], list[float]]:
    """What all guests have, and use, in GiB, by column."""
    wide = max((len(story.actual_kib) for story in result.guests), default=0)
    has, uses = [0.0] * wide, [0.0] * wide
    for story in result.guests:
        for column, size in enumerate(_padded(story.actual_kib, wide)):
            usable = story.usable_kib[column] if column < len(story.usable_kib) else None
            has[column] += (size or 0) / _KIB_A_GIB
            uses[column] += max(0.0, (size or 0) - (usable or 0)) / _KIB_A_GIB
    return has, uses


def _padded(row: Sequence[Optional[float]], wide: int) -> list[Optional[float]]:
    return [*row, *([None] * (wide - len(row)))]
