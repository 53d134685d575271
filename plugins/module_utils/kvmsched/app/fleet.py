# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records of many hosts as one page: a row a host, the worst first, each leading to its own page; and one JSON."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence
from urllib.parse import quote

from .. import lock
from ..units import counted, one_line, printable
from . import page, replay
from .replay import RECORDED, UNTOUCHED, Job, ReplayError, Result, Source

# A step at which a day of a hundred guests takes a minute.
STEP_S = 60.0
# In a host's directory: why nothing was fetched from it, as playbooks/report.yml notes it.
WHY = "why.txt"
_MOST_WHY = 4096


@dataclass(frozen=True)
class Row:
    """One host: its results, or in one line why there are none."""

    host: str
    results: Sequence[Result] = ()
    failed: str = ""

    @property
    def worst(self) -> tuple[float, float, str]:
        """Return what rows are ordered by: starved guests' share of the time, then CPU demand that was not served."""
        if not self.results:
            return -1e9, 0.0, self.host
        figures = self.results[0].figures
        return -figures.starved_s / max(1.0, figures.seconds), -figures.unserved_pct, self.host


def report(directory: str, tell: Callable[[str], None]) -> int:
    """Write index.html, index.json and a page a host into *directory*, of the records in its directories, one a host.

    Return the number of hosts that could not be read. OSError, ReplayError.
    """
    hosts = sorted(entry.name for entry in Path(directory).iterdir() if entry.is_dir() and not entry.is_symlink())
    if not hosts:
        raise ReplayError(f"{directory}: got no directory, expected one for each host, with its records")
    rows = []
    for host in hosts:
        row = _row(directory, host)
        rows.append(row)
        tell(f"{host}: {row.failed or _summary(row.results)}")
        if row.results:
            _write(directory, _name(host), page.html(row.results))
    rows.sort(key=lambda row: row.worst)
    _write(directory, "index.html", _index(rows))
    told = {row.host: _values(row) for row in rows}
    _write(directory, "index.json", json.dumps(told, indent=1) + "\n")
    return sum(bool(row.failed) for row in rows)


def _row(directory: str, host: str) -> Row:
    files = [path for path in Path(directory, host).iterdir() if path.is_file() and not path.is_symlink()]
    paths = sorted(str(path) for path in files if path.name != WHY)
    if not paths:
        return Row(host, failed=_why(Path(directory, host, WHY)))
    try:
        return Row(host, replay.play_all(Source(tuple(paths), step_s=STEP_S), jobs_of(paths), picture=True))
    except ReplayError as error:
        return Row(host, failed=str(error))


def _why(path: Path) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            told = file.read(_MOST_WHY)
    except OSError:
        told = ""
    return printable(one_line(told)) or "nothing was fetched from it"


def jobs_of(paths: Sequence[str]) -> list[Job]:
    """Return the jobs: what was recorded, the host left alone, and the record's own policy where it did not act."""
    first = replay.first_frame(paths)
    own = [] if first is None or first.acted else [Job("its own policy", first.policy)]
    return [Job(RECORDED), Job(UNTOUCHED), *own]


def _name(host: str) -> str:
    """Return a file's name: an inventory may call a host anything."""
    return f"host-{quote(host, safe='')}.html"


def _write(directory: str, name: str, text: str) -> None:
    lock.write_atomically(os.path.join(os.path.abspath(directory), name), text, 0o600)


def _values(row: Row) -> Mapping[str, Any]:
    if row.failed:
        return {"failed": row.failed}
    return {result.name: replay.values(result) for result in row.results}


def _summary(results: Sequence[Result]) -> str:
    figures = results[0].figures
    return (
        f"{replay.duration(figures.seconds)}, {figures.guests} guests, starved {replay.duration(figures.starved_s)},"
        f" {figures.unserved_pct:.1f} % of CPU demand unserved"
    )


# On a telephone the first ones are seen.
_HEAD = (
    "host",
    "starved",
    "CPU unserved",
    "worst minute",
    "moves",
    "starved, untouched",
    "guests",
    "recorded",
    "until",
)


def _index(rows: Sequence[Row]) -> str:
    return page.whole(
        f"kvmsched on {counted(len(rows), 'host')}",
        "The worst first. Each name leads to its page.",
        [page.section("hosts", "Hosts", page.linked_table(_HEAD, [_cells(row) for row in rows]))],
    )


def _cells(row: Row) -> list[tuple[str, str]]:
    """Return text and address of each cell."""
    if row.failed:
        return [(row.host, ""), (row.failed, "")]
    recorded, untouched = row.results[0].figures, row.results[1].figures
    texts = (
        replay.duration(recorded.starved_s),
        f"{recorded.unserved_pct:.1f} %",
        f"{recorded.worst_minute_pct:.0f} %",
        str(recorded.pin_moves + recorded.memory_moves),
        replay.duration(untouched.starved_s),
        str(recorded.guests),
        replay.duration(recorded.seconds),
        page.clock(row.results[0].end_s),
    )
    return [(row.host, quote(_name(row.host))), *((text, "") for text in texts)]
