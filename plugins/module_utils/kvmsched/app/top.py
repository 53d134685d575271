# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``kvmsched top``: the table of view, again and again, on a terminal or into a pipe."""

from __future__ import annotations

import contextlib
import curses
import time
from typing import Any, Callable, Optional

from .. import passes
from . import view
from .status import Status

_KEYS = {ord("c"): "cpu", ord("w"): "wait", ord("m"): "memory", ord("u"): "usable", ord("n"): "name"}
_HELP = "q quit, sort by: c CPU  w wait  m memory  u usable  n name"
# How soon a key is answered.
_TICK_MS = 100

Look = Callable[[], Status]
Say = Callable[..., None]


def batch(look: Look, say: Say, delay_s: float, iterations: Optional[int], sort: str) -> None:
    """Say one table after another."""
    done = 0
    while iterations is None or done < iterations:
        if done:
            time.sleep(delay_s)
            say("")
        say(*view.table(look(), sort))
        done += 1


def live(look: Look, delay_s: float, iterations: Optional[int], sort: str) -> None:
    """Show the table on the terminal until q is pressed, through troubles that come and go.

    curses.error where the terminal can't do that, PassError where nothing can be seen at all.
    """
    curses.wrapper(lambda screen: _Screen(screen, look, sort).run(delay_s, iterations))


def _attribute(line: str) -> int:
    if line.startswith("GUEST "):
        return curses.A_REVERSE
    return curses.A_BOLD if line.endswith("starved") else curses.A_NORMAL


class _Screen:
    def __init__(self, screen: Any, look: Look, sort: str) -> None:
        self.screen, self.look, self.sort = screen, look, sort
        self.status: Optional[Status] = None
        screen.timeout(_TICK_MS)
        with contextlib.suppress(curses.error):  # not every terminal can hide its cursor
            curses.curs_set(0)
        with contextlib.suppress(curses.error):  # nor keep its own colours
            curses.use_default_colors()

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
            key = self.screen.getch()
            if key == ord("q"):
                return False
            if key == ord(" "):
                return True
            if key in _KEYS:
                self.sort = _KEYS[key]
            if key != curses.ERR:
                self._draw()
        return True

    def _draw(self, note: str = "") -> None:
        height, width = self.screen.getmaxyx()
        room = height - 1 - (1 if note else 0)
        lines = [note] if note else []
        lines += view.table(self.status, self.sort, max(width, 1), room) if self.status else []
        self.screen.erase()
        for number, line in enumerate(lines[: height - 1]):
            self._line(number, line, _attribute(line))
        self._line(height - 1, f"{_HELP} (now: {self.sort})", curses.A_DIM)
        self.screen.refresh()

    def _line(self, number: int, text: str, attribute: int) -> None:
        height, width = self.screen.getmaxyx()
        printable = "".join(char if char.isprintable() else "?" for char in text)
        if 0 <= number < height:
            # The window may shrink under us, and the cursor has no place after the last cell.
            with contextlib.suppress(curses.error):
                self.screen.addnstr(number, 0, printable, width, attribute)
