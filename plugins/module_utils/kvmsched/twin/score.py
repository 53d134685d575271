# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What came of a replay: figures for the table, and a picture of the host over time in so many columns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Mapping, Optional, Sequence

from ..config import MemoryPolicy
from ..model import Domain, Move, Snapshot, Unmet
from ..units import printable
from .host import Seen

_MINUTE_S = 60.0
# Moves on a page beyond this number are counted, not shown; so is who hovers over them.
_SHOWN_MOVES = 3000


@dataclass(frozen=True)
class Figures:
    """One replay in figures. Seconds are of vCPUs or of guests; None where that is not known.

    ``unserved_pct`` is what vCPUs wanted and did not get, ``waiting_pct`` their time in the queue in percent of their
    time run, ``worst_minute_pct`` what was unserved in the worst minute. ``unseen_pct`` is the share of demand that
    the record can't tell, as the vCPUs waited. ``starved_s`` counts guests whose usable memory is below their
    starvation threshold, ``killed`` those that would lack what they use, and have no swap. ``read_gib`` is what they
    read from disk and swap because memory lacked, as far as counters and model tell. ``returned_gib`` is what guests
    left to the host of their original memory, on average.
    """

    seconds: float = 0.0
    looks: int = 0
    guests: int = 0
    unserved_pct: float = 0.0
    waiting_pct: float = 0.0
    worst_minute_pct: float = 0.0
    unseen_pct: float = 0.0
    pin_moves: int = 0
    memory_moves: int = 0
    starved_s: float = 0.0
    killed: int = 0
    read_gib: float = 0.0
    returned_gib: float = 0.0


@dataclass(frozen=True)
class PastMove:
    """One move: when, whose, what and why. ``kind`` is that of the move, ``gives``: memory is given."""

    when_s: float
    domain: str
    kind: str
    what: str
    before: str
    after: str
    reason: str
    gives: bool = False


@dataclass
class GuestStory:
    """One guest over time, by column: the least usable and unused memory, its size, what it ran and wanted."""

    name: str
    maximum_kib: int = 0
    starvation_kib: int = 0
    waste_kib: int = 0
    floor_kib: int = 0
    starved_s: float = 0.0
    starved_times: int = 0
    starves: bool = False
    kills: int = 0
    unmet_s: float = 0.0
    unmet: str = ""
    actual_kib: list[Optional[int]] = field(default_factory=list)
    usable_kib: list[Optional[int]] = field(default_factory=list)
    ran_pct: list[Optional[float]] = field(default_factory=list)
    waited_pct: list[Optional[float]] = field(default_factory=list)


class Score:
    """Adds up looks. *judge* says who starves, the same for all that are compared; *columns* None: no picture."""

    def __init__(self, judge: MemoryPolicy, begin_s: float, end_s: float, columns: Optional[int] = None) -> None:
        self._judge, self._begin_s, self._end_s, self._columns = judge, begin_s, end_s, columns or 0
        self.seconds, self.looks = 0.0, 0
        self._wanted = self._ran = self._unserved = self._waited = self._unseen = 0.0
        self._minute = [0.0, 0.0, 0.0]
        self._worst = 0.0
        self._returned = 0.0
        self._read_kib = 0
        self._counters: dict[str, tuple[int, int]] = {}
        self._settings: dict[tuple[str, str, int], tuple[int, int, int]] = {}
        self.killed = self.pin_moves = self.memory_moves = 0
        self.guests: dict[str, GuestStory] = {}
        self.moves: list[PastMove] = []
        self.busy_pct: dict[int, list[Optional[float]]] = {}
        self._busy_left: dict[int, list[float]] = {}
        self._cpu_left: dict[str, list[float]] = {}
        self._column = -1

    # ------------------------------------------------------------ looks

    def add(self, seen: Seen) -> None:
        """Add a look, and the time since the one before."""
        self.looks += 1
        window, shares, now = seen.window, seen.shares, seen.snapshot
        elapsed_s = window.seconds if window else 0.0
        self.seconds += elapsed_s
        column = self._column_of(now.wall_s)
        if window is not None and shares is not None:
            wanted = sum(window.wants.values())
            unserved = sum(max(0.0, want - shares.runs[key]) for key, want in window.wants.items())
            self._wanted += elapsed_s * wanted
            self._unserved += elapsed_s * unserved
            self._ran += elapsed_s * sum(shares.runs.values())
            self._waited += elapsed_s * sum(shares.waits.values())
            self._unseen += elapsed_s * window.unseen
            self._add_minute(elapsed_s, wanted, unserved)
            if self._columns:
                # What ran, ran before this look.
                middle = self._column_of(now.wall_s - elapsed_s / 2)
                self._paint_cpu(middle, elapsed_s, shares.busy, shares.runs, shares.waits, now.domains)
        for domain in now.domains:
            self._add_memory(domain, elapsed_s, column)
        self.killed += len(seen.costs.killed)
        for name in seen.costs.killed:
            self.guests[name].kills += 1

    def _add_minute(self, elapsed_s: float, wanted: float, unserved: float) -> None:
        minute = self._minute
        minute[0] += elapsed_s
        minute[1] += elapsed_s * wanted
        minute[2] += elapsed_s * unserved
        if minute[0] >= _MINUTE_S:
            if minute[1] > 0:
                self._worst = max(self._worst, 100 * minute[2] / minute[1])
            self._minute = [0.0, 0.0, 0.0]

    def _limits(self, domain: Domain) -> tuple[int, int, int]:
        """Starvation, waste and floor of a domain; zeros where its settings contradict each other."""
        if domain.balloon is None:
            return 0, 0, 0
        key = (domain.uuid, str(domain.owner.settings), domain.balloon.most_kib)
        if key not in self._settings:
            try:
                settings, most_kib = self._judge.settings_for(domain), domain.balloon.most_kib
                limits = (
                    settings.starvation_kib(most_kib),
                    settings.waste_kib(most_kib),
                    settings.floor_kib(most_kib),
                )
            except ValueError:
                limits = (0, 0, 0)
            self._settings[key] = limits
        return self._settings[key]

    def _add_memory(self, domain: Domain, elapsed_s: float, column: int) -> None:
        balloon = domain.balloon
        story = self.guests.get(domain.name)
        if story is None:
            story = self.guests[domain.name] = GuestStory(domain.name)
        if balloon is None:
            return
        story.starvation_kib, story.waste_kib, story.floor_kib = self._limits(domain)
        story.maximum_kib = balloon.maximum_kib
        usable_kib = balloon.usable_kib
        starves = usable_kib is not None and usable_kib < story.starvation_kib
        if starves:
            story.starved_s += elapsed_s
            story.starved_times += not story.starves
        story.starves = starves
        original_kib = domain.record.memory.original_kib if domain.record and domain.record.memory else 0
        self._returned += elapsed_s * max(0, original_kib - balloon.actual_kib)
        self._count_reads(domain)
        if self._columns:
            _paint(story.actual_kib, column, balloon.actual_kib)
            if usable_kib is not None:
                _paint(story.usable_kib, column, usable_kib)

    def _count_reads(self, domain: Domain) -> None:
        """Major faults and swap-in, of which each page was read again."""
        balloon = domain.balloon
        if balloon is None:
            return
        now = (balloon.major_faults or 0, balloon.swap_in_kib or 0)
        before = self._counters.get(domain.uuid, now)
        self._counters[domain.uuid] = now
        self._read_kib += 4 * max(0, now[0] - before[0]) + max(0, now[1] - before[1])

    # ------------------------------------------------------------ moves

    def move(self, moves: Sequence[Move], now: Snapshot) -> None:
        """Add the moves that were made at this look."""
        for move in moves:
            if move.kind == "stats_period":
                continue
            self.pin_moves += move.kind == "pin"
            self.memory_moves += move.kind == "balloon"
            if self._columns and len(self.moves) < _SHOWN_MOVES:
                sides = move.sides
                texts = (move.domain, sides.what, sides.before, sides.after, move.reason)
                told = [printable(text, 400) for text in texts]
                name, what, before, after, reason = told
                gives = bool(getattr(move, "gives", False))
                self.moves.append(PastMove(now.wall_s, name, move.kind, what, before, after, reason, gives))

    def unmet(self, lacks: Sequence[Unmet], elapsed_s: float) -> None:
        """Add what guests need and do not get."""
        for lack in lacks:
            story = self.guests.get(lack.domain)
            if story is not None:
                story.unmet_s += elapsed_s
                story.unmet = printable(lack.reason, 200)

    # ------------------------------------------------------------ pictures

    def _column_of(self, wall_s: float) -> int:
        span_s = max(1e-6, self._end_s - self._begin_s)
        return min(self._columns - 1, max(0, int(self._columns * (wall_s - self._begin_s) / span_s)))

    def _paint_cpu(
        self,
        column: int,
        elapsed_s: float,
        busy: Mapping[int, float],
        runs: Mapping[tuple[str, int], float],
        waits: Mapping[tuple[str, int], float],
        domains: Sequence[Domain],
    ) -> None:
        for pcpu, share in busy.items():
            _paint_mean(
                self.busy_pct.setdefault(pcpu, []),
                self._busy_left.setdefault(pcpu, [0.0, 0.0]),
                column,
                self._column,
                elapsed_s,
                100 * share,
            )
        for domain in domains:
            story = self.guests.setdefault(domain.name, GuestStory(domain.name))
            keys = [(domain.uuid, vcpu.id) for vcpu in domain.vcpus]
            for name, values, row in (("r", runs, story.ran_pct), ("w", waits, story.waited_pct)):
                left = self._cpu_left.setdefault(f"{name} {domain.name}", [0.0, 0.0])
                share = 100 * sum(values.get(key, 0.0) for key in keys)
                _paint_mean(row, left, column, self._column, elapsed_s, share)
        self._column = column

    # ------------------------------------------------------------ the table

    def figures(self) -> Figures:
        seconds = self.seconds or 1.0
        _part_s, part_wanted, part_unserved = self._minute
        # What is shorter than a minute is all that there is.
        worst = self._worst if self.seconds >= _MINUTE_S else 100 * part_unserved / (part_wanted or 1.0)
        wanted, ran = self._wanted or 1.0, self._ran or 1.0
        return Figures(
            seconds=round(self.seconds, 1),
            looks=self.looks,
            guests=len(self.guests),
            unserved_pct=round(100 * self._unserved / wanted, 3),
            waiting_pct=round(100 * self._waited / ran, 3),
            worst_minute_pct=round(worst, 2),
            unseen_pct=round(100 * self._unseen / (wanted + self._unseen), 3),
            pin_moves=self.pin_moves,
            memory_moves=self.memory_moves,
            starved_s=round(sum(story.starved_s for story in self.guests.values()), 1),
            killed=self.killed,
            read_gib=round(self._read_kib / 1024**2, 3),
            returned_gib=round(self._returned / seconds / 1024**2, 3),
        )


def _paint(row: list[Optional[int]], column: int, value: int) -> None:
    """Let the column of *row* be the least of its values."""
    while len(row) <= column:
        row.append(None)
    old = row[column]
    row[column] = value if old is None else min(old, value)


def _paint_mean(
    row: list[Optional[float]], left: list[float], column: int, before: int, elapsed_s: float, value: float
) -> None:
    """Let the column of *row* be the mean of its values over time; *left* is the sum and the time so far."""
    if column != before:
        left[:] = [0.0, 0.0]
    left[0] += elapsed_s * value
    left[1] += elapsed_s
    while len(row) <= column:
        row.append(None)
    row[column] = round(left[0] / left[1], 1) if left[1] else 0.0
