# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A replay as one page of HTML that needs nothing else: words first, then the table, then pictures.

Words and table are plain HTML. What is drawn is drawn by the page's own script (page_script.py) from the data in it.
"""

from __future__ import annotations

import html as markup
import json
import time
from typing import Any, Iterable, Optional, Sequence

from .. import __version__
from ..twin.score import GuestStory
from .page_script import SCRIPT, STYLE
from .replay import RECORDED, Result, cells, duration, notes

# Beyond this a page is slow to open: pictures get fewer columns then, and moves are told in fewer.
_MOST_BYTES = 4 * 1024 * 1024
_MOST_FINDINGS = 12
_SERIES = ("size", "usable", "ran", "waited")


def html(results: Sequence[Result]) -> str:
    """The page of *results*, the first of which is what the others are compared with."""
    first = results[0]
    title = f"kvmsched on {first.host}"
    when = f"{clock(first.begin_s)} to {clock(first.end_s)}, {first.figures.guests} guests, {first.figures.looks} looks"
    body = [
        section("found", "What stands out", _list(findings(results))),
        section("compared", "Side by side", _table(cells(results)) + _list(notes(results), "notes")),
        _skips(results),
        '<div id="pictures"></div>',
        "<noscript><p>The pictures need JavaScript; nothing is fetched from anywhere.</p></noscript>",
    ]
    scripts = f'<script type="application/json" id="data">{_data(results)}</script>\n<script>{SCRIPT}</script>'
    return whole(title, when, body, scripts)


def whole(title: str, about: str, sections: Sequence[str], scripts: str = "") -> str:
    """A page of these sections, which are HTML."""
    body = [
        f"<header><h1>{_text(title)}</h1><p>{_text(about)}</p></header>",
        "<main>",
        *sections,
        "</main>",
        f"<footer><p>kvmsched {_text(__version__)}. Times are of the host's clock, in your time zone.</p></footer>",
    ]
    return _PAGE.format(title=_text(title), style=STYLE, body="\n".join(body), scripts=scripts)


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
{scripts}
</body>
</html>
"""  # noqa: E501


def _text(text: object) -> str:
    return markup.escape(str(text))


def clock(wall_s: float) -> str:
    """Return that time as people write it, in the time zone of whoever makes the page."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(wall_s))


def section(name: str, title: str, inside: str) -> str:
    """A part of the page; *inside* is HTML."""
    return f'<section id="{name}"><h2>{_text(title)}</h2>{inside}</section>'


def _list(lines: Iterable[str], name: str = "") -> str:
    return f'<ul class="{name}">' + "".join(f"<li>{_text(line)}</li>" for line in lines) + "</ul>"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *rest = rows
    return _framed(
        head,
        [
            f'<tr><th scope="row">{_text(row[0].strip())}</th>'
            + "".join(f"<td>{_text(cell)}</td>" for cell in row[1:])
            + "</tr>"
            for row in rest
        ],
    )


def _framed(head: Sequence[str], lines: Sequence[str]) -> str:
    """A table with the titles *head*; *lines* are HTML."""
    heads = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in head)
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def linked_table(head: Sequence[str], rows: Iterable[Sequence[tuple[str, str]]]) -> str:
    """A table whose cells have a text, and an address or none. A row that is too short ends in one wide cell."""
    lines = []
    for row in rows:
        cells_ = [f'<a href="{_text(to)}">{_text(text)}</a>' if to else _text(text) for text, to in row]
        wide = len(head) - len(row) + 1
        lines.append(
            f'<tr><th scope="row">{cells_[0]}</th>'
            + "".join(f"<td>{cell}</td>" for cell in cells_[1:-1])
            + (f'<td class="words" colspan="{wide}">' if wide > 1 else "<td>")
            + f"{cells_[-1]}</td></tr>"
        )
    return _framed(head, lines)


def _skips(results: Sequence[Result]) -> str:
    """Passes in which some guest was skipped, by reason; and what guests lacked."""
    codes = sorted({code for result in results for code in result.skips})
    parts = []
    if codes:
        rows = [["passes with a skipped guest", *(result.name for result in results)]]
        rows += [[code, *(str(result.skips.get(code, 0)) for result in results)] for code in codes]
        parts.append(_table(rows))
    lacking = [
        f"{result.name}: {story.name} lacked memory for {duration(story.unmet_s)}: {story.unmet}"
        for result in results
        for story in sorted(result.guests, key=lambda story: -story.unmet_s)[:5]
        if story.unmet_s
    ]
    if lacking:
        parts.append("<h3>Needs that were not met</h3>" + _list(lacking))
    return section("skips", "Skips, and unmet needs", "".join(parts)) if parts else ""


# ---------------------------------------------------------------- in words


def findings(results: Sequence[Result]) -> list[str]:
    """What a person would want to know first, in words."""
    first = results[0]
    lines = [_starved(story) for story in sorted(first.guests, key=lambda s: (-s.starved_s, s.name)) if story.starved_s]
    figures = first.figures
    if figures.unserved_pct >= 0.05:
        lines.append(
            f"{figures.unserved_pct:.1f} % of what vCPUs wanted was not served, {figures.worst_minute_pct:.0f} % in the"
            " worst minute."
        )
    left = len(lines) - _MOST_FINDINGS
    lines = lines[:_MOST_FINDINGS] + ([f"{left} more guests starved at some time."] if left > 0 else [])
    lines = lines or ["No guest starved, and all CPU demand was served."]
    return lines + [_compared(first, result) for result in results[1:]]


def _starved(story: GuestStory) -> str:
    times = "once" if story.starved_times == 1 else f"{story.starved_times} times"
    return f"{story.name} starved {times}, {duration(story.starved_s)} in all; {_limit(story)}."


def _limit(story: GuestStory) -> str:
    """Why nobody helped."""
    short = [
        size
        for size, usable in zip(story.actual_kib, story.usable_kib)
        if usable is not None and size is not None
        if usable < story.starvation_kib
    ]
    if short and min(short) >= story.maximum_kib - 1024:
        return "its maximum is the limit"
    return f"it lacked for {story.unmet}" if story.unmet else "it could have had more"


def _compared(first: Result, other: Result) -> str:
    was, now = first.figures, other.figures
    parts = [
        f"{now.unserved_pct:.1f} % of CPU demand unserved ({was.unserved_pct:.1f} {first.name})",
        f"guests starved for {duration(now.starved_s)} ({duration(was.starved_s)})",
    ]
    if now.killed or was.killed:
        who = "1 guest" if now.killed == 1 else f"{now.killed} guests"
        parts.append(f"{who} likely killed ({was.killed})")
    if now.returned_gib >= 0.1 or was.returned_gib >= 0.1:
        parts.append(f"{now.returned_gib:.1f} GiB of memory returned ({was.returned_gib:.1f})")
    if abs(now.read_gib - was.read_gib) >= 0.1:
        parts.append(f"{now.read_gib:.1f} GiB read again ({was.read_gib:.1f})")
    moves = "no move" if not now.pin_moves + now.memory_moves else f"{now.pin_moves + now.memory_moves} moves"
    return f"{other.name}: {'; '.join(parts)}; {moves}."


# ---------------------------------------------------------------- the data of the pictures


def _data(results: Sequence[Result]) -> str:
    """The pictures' data as JSON that ends no script, made smaller until the page is small enough."""
    every = 1
    moves = 2000
    while True:
        text = json.dumps(_whole(results, every, moves), separators=(",", ":"), ensure_ascii=True)
        text = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
        if len(text) <= _MOST_BYTES or every >= 16:
            return text
        every, moves = 2 * every, moves // 2


def _whole(results: Sequence[Result], every: int, moves: int) -> dict[str, Any]:
    return {
        "begin": results[0].begin_s,
        "end": results[0].end_s,
        "recorded": results[0].name == RECORDED,
        "results": [_result(result, every, moves) for result in results],
    }


def _result(result: Result, every: int, moves: int) -> dict[str, Any]:
    return {
        "name": result.name,
        "busy": {str(pcpu): _thin(row, every) for pcpu, row in sorted(result.busy_pct.items())},
        "guests": [_guest(story, every) for story in result.guests],
        "moves": [
            [round(m.when_s, 1), m.domain, m.kind, m.what, m.before, m.after, m.reason, m.gives]
            for m in result.moves[:moves]
        ],
        "more": max(0, result.figures.pin_moves + result.figures.memory_moves - min(moves, len(result.moves))),
    }


def _guest(story: GuestStory, every: int) -> dict[str, Any]:
    return {
        "name": story.name,
        "max": story.maximum_kib >> 10,
        "starvation": story.starvation_kib >> 10,
        "floor": story.floor_kib >> 10,
        "starved": round(story.starved_s),
        "kills": story.kills,
        "size": _thin([None if kib is None else kib >> 10 for kib in story.actual_kib], every),
        "usable": _thin([None if kib is None else kib >> 10 for kib in story.usable_kib], every),
        "ran": _thin(story.ran_pct, every),
        "waited": _thin(story.waited_pct, every),
    }


# Looks do not come at even times: so many columns without one take the value before.
_GAP = 3


def _thin(row: Sequence[Optional[float]], every: int) -> list[Optional[int]]:
    """Whole numbers, and of each *every* columns one."""
    found: list[Optional[int]] = []
    known, missing = None, 0
    for value in row[::every]:
        missing = 0 if value is not None else missing + 1
        known = round(value) if value is not None else known if missing <= _GAP else None
        found.append(known)
    return found
