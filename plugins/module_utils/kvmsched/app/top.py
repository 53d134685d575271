# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``kvmsched top``: the table of view, again and again, on a terminal or into a pipe."""

from __future__ import annotations

import contextlib
import curses
import os
import textwrap
import time
from dataclasses import replace
from typing import Any, Callable, Optional

from .. import passes
from ..units import printable
from . import status_text
from .status import Status

_SORTS = {ord("c"): "cpu", ord("w"): "wait", ord("m"): "memory", ord("u"): "usable", ord("n"): "name"}
_PAGE = 10
_LEAST_CAUSE = 30
# Why a guest has what it has takes so many lines of a tall terminal.
_MOST_WHY, _TALL = 3, 20
_ALL = 1_000_000
_STEPS = {
    curses.KEY_DOWN: 1,
    ord("j"): 1,
    curses.KEY_UP: -1,
    ord("k"): -1,
    curses.KEY_NPAGE: _PAGE,
    curses.KEY_PPAGE: -_PAGE,
    curses.KEY_HOME: -_ALL,
    curses.KEY_END: _ALL,
}
_ENTER, _ESCAPE, _ERASE = (10, 13, curses.KEY_ENTER), 27, (8, 127, curses.KEY_BACKSPACE)
_COLOURS = {"starved": curses.COLOR_RED, "wasteful": curses.COLOR_YELLOW}
# How soon a key is answered.
_TICK_MS = 100
_ESCAPE_MS = 25

Look = Callable[[], Status]
Say = Callable[..., None]


def batch(look: Look, say: Say, delay_s: float, iterations: Optional[int], sort: str) -> None:
    """Say one table after another."""
    done = 0
    while iterations is None or done < iterations:
        if done:
            time.sleep(delay_s)
            say("")
        say(*status_text.table(look(), sort))
        done += 1


def live(look: Look, delay_s: float, iterations: Optional[int], sort: str) -> None:
    """Show the table on the terminal until q is pressed, through troubles that come and go.

    curses.error where the terminal can't do that, PassError where nothing can be seen at all.
    """
    curses.setupterm()
    if not curses.tigetstr("cup"):  # curses itself would leave it blank
        raise curses.error("it can't move its cursor")
    # A terminal sends what begins with Escape at once: a key that comes later is one of its own.
    if hasattr(curses, "set_escdelay"):
        curses.set_escdelay(_ESCAPE_MS)
    curses.wrapper(lambda screen: _Screen(screen, look, sort).run(delay_s, iterations))


class _Screen:
    def __init__(self, screen: Any, look: Look, sort: str) -> None:
        self.screen, self.look = screen, look
        self.choice = status_text.Choice(sort)
        self.typing = False
        self.status: Optional[Status] = None
        screen.timeout(_TICK_MS)
        with contextlib.suppress(curses.error):  # not every terminal can hide its cursor
            curses.curs_set(0)
        with contextlib.suppress(curses.error):  # nor keep its own colours
            curses.use_default_colors()
        self.colours = _colours()

    def run(self, delay_s: float, iterations: Optional[int]) -> None:
        done = 0
        self._draw("looking...")
        while iterations is None or done < iterations:
            trouble = self._look()
            done += 1
            self._draw(trouble)
            if not self._wait(delay_s):
                return

    def _look(self) -> str:
        """Look; return why that was in vain, if it was."""
        try:
            self.status = self.look()
        except passes.PassError as error:
            if self.status is None:
                raise
            return str(error)
        return ""

    def _wait(self, delay_s: float) -> bool:
        """Answer keys until it is time to look again; False if that shall be the end."""
        end_s = time.monotonic() + delay_s
        while time.monotonic() < end_s:
            key = self._key()
            if self.typing and key != curses.ERR:
                self._type(key)
            elif key == ord("q"):
                return False
            elif key == ord(" "):
                return True
            else:
                self._choose(key)
            if key != curses.ERR:
                self._draw()
        return True

    def _key(self) -> int:
        """Return the next key, curses.ERR for none; a sequence that this terminal should not send is no Escape."""
        key = int(self.screen.getch())
        if key != _ESCAPE:
            return key
        self.screen.timeout(0)
        rest = [self.screen.getch()]
        while rest[-1] != curses.ERR:
            rest.append(self.screen.getch())
        self.screen.timeout(_TICK_MS)
        return key if len(rest) == 1 else curses.ERR

    def _type(self, key: int) -> None:
        """Take a key of the filter: Enter keeps it, Escape ends it."""
        wanted = self.choice.wanted
        if key == _ESCAPE:
            wanted = ""
        elif key in _ERASE:
            wanted = wanted[:-1]
        elif 32 <= key < 127:
            wanted += chr(key)
        self.typing = key not in (*_ENTER, _ESCAPE)
        self.choice = replace(self.choice, wanted=wanted)

    def _choose(self, key: int) -> None:
        if key == ord("/"):
            self.typing = True
        elif key == _ESCAPE:
            self.choice = replace(self.choice, wanted="")
        elif key in _SORTS:
            self.choice = replace(self.choice, sort=_SORTS[key])
        elif key in _STEPS and self.status:
            self.choice = status_text.moved(status_text.guests(self.status, self.choice), self.choice, _STEPS[key])

    def _draw(self, note: str = "") -> None:
        height, width = self.screen.getmaxyx()
        self.screen.erase()
        lines = [(note, curses.A_NORMAL)] if note else []
        if self.status:
            lines += self._table(self.status, max(width, 1), height - 1 - len(lines))
        for number, (line, attribute) in enumerate(lines[: height - 1]):
            self._line(number, line, attribute)
        self._line(height - 1, status_text.foot(self.choice, self.typing), curses.A_DIM)
        self.screen.refresh()

    def _table(self, status: Status, width: int, height: int) -> list[tuple[str, int]]:
        """Return the lines, each with its attribute; the last ones say why the selected guest has what it has."""
        shown = status_text.guests(status, self.choice)
        columns = status_text.Columns.of(shown, width)
        above = status_text.head(status, height)
        most = _MOST_WHY if height >= _TALL else 1
        room = max(1, height - len(above) - 1 - most)
        self.choice = status_text.scrolled(shown, self.choice, room)
        lines = [(line, curses.A_NORMAL) for line in above]
        # What is left of a wide terminal tells why; else only the line below does.
        titles = columns.titles(status_text.seen(shown, self.choice, room))
        wide = width - len(titles) >= _LEAST_CAUSE
        lines.append((titles + ("  WHY" if wide else ""), curses.A_REVERSE))
        selected = ""
        for domain in shown[self.choice.first : self.choice.first + room]:
            attribute = self.colours.get(domain.verdict, curses.A_NORMAL)
            if domain.uuid == self.choice.selected:
                attribute |= curses.A_REVERSE
                selected = status_text.why(domain)
            lines.append((columns.row(domain) + (f"  {status_text.cause(domain)}" if wide else ""), attribute))
        if not shown:
            selected = "no guest has that in its name" if self.choice.wanted else "no guest runs here"
        told = textwrap.wrap(selected, max(width, 2), max_lines=most, placeholder="+")
        return lines + [(line, curses.A_BOLD) for line in told]

    def _line(self, number: int, text: str, attribute: int) -> None:
        height, width = self.screen.getmaxyx()
        if 0 <= number < height:
            # The window may shrink under us, and the cursor has no place after the last cell.
            with contextlib.suppress(curses.error):
                self.screen.addnstr(number, 0, printable(text, width + 3), width, attribute)


def _colours() -> dict[str, int]:
    """Return how a guest in each state is drawn. Without colours, or with NO_COLOR, the starved are bold."""
    if os.environ.get("NO_COLOR") or not curses.has_colors():
        return {"starved": curses.A_BOLD}
    attributes = {}
    for number, (state, colour) in enumerate(_COLOURS.items(), 1):
        curses.init_pair(number, colour, -1)
        attributes[state] = curses.color_pair(number) | curses.A_BOLD
    return attributes
