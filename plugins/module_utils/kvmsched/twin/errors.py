# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How well the model tells what really followed the moves that were recorded: its own error."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import Optional

from ..model import BALLOON_TOLERANCE_KIB, Snapshot
from ..policy.vcpu.demand import VcpuKey
from ..units import CpuSet
from . import cpu
from .memory import resized

# What was wanted is taken from so many windows before the moves, and what came of them from as many after them.
WINDOWS = 3
# What a balloon brought is looked at when it has arrived and was told of, at most so long after the move.
_LATEST_S = 60.0


@dataclass(frozen=True)
class Errors:
    """Mean absolute errors. CPU: of each vCPU that shared a pCPU with a move, in points of a pCPU; memory: in MiB.

    ``*_before`` is the error of who says that all stays as it was before the move. None: nothing was moved.
    """

    cpu_cases: int = 0
    run_points: Optional[float] = None
    run_points_before: Optional[float] = None
    wait_points: Optional[float] = None
    wait_points_before: Optional[float] = None
    memory_cases: int = 0
    usable_mib: Optional[float] = None
    usable_mib_before: Optional[float] = None

    @property
    def worse(self) -> tuple[str, ...]:
        """What the model foretells worse than who says that all stays as it was."""
        pairs = (
            ("run", self.run_points, self.run_points_before),
            ("waiting", self.wait_points, self.wait_points_before),
            ("usable memory", self.usable_mib, self.usable_mib_before),
        )
        return tuple(name for name, told, before in pairs if told is not None and before is not None and told > before)


@dataclass
class _Case:
    """Moves that were seen, what was foretold of the vCPUs around them, and what has come of them since."""

    before: cpu.Shares
    told: cpu.Shares
    after: list[cpu.Shares] = field(default_factory=list)


@dataclass
class _Gift:
    """A balloon that was sent elsewhere: its guest's usable memory before, and what was foretold."""

    target_kib: int
    usable_kib: int
    told_kib: int
    sent_s: float
    arrived_s: float = 0.0


class Watch:
    """Watches looks, and compares what followed moves with what the model says of them."""

    def __init__(self) -> None:
        self._past: deque[cpu.Window] = deque(maxlen=WINDOWS)
        self._before: Optional[Snapshot] = None
        self._case: Optional[_Case] = None
        self._gifts: dict[str, _Gift] = {}
        self._runs: list[tuple[float, float]] = []
        self._waits: list[tuple[float, float]] = []
        self._usable: list[tuple[float, float]] = []

    def look(self, now: Snapshot) -> None:
        """One look as it was recorded."""
        before, self._before = self._before, now
        if before is None or now.monotonic_s <= before.monotonic_s:
            return
        window = cpu.window(before, now)
        moved = _moved(before, now)
        if moved:
            self._close()
            if self._past:
                self._open(window, moved)
            self._past.clear()
        elif self._case is None:
            self._past.append(window)
        if self._case is not None:
            self._case.after.append(window.seen)
            if len(self._case.after) >= WINDOWS:
                self._close()
                self._past.append(window)
        self._look_at_memory(before, now)

    # ------------------------------------------------------------ pins

    def _open(self, now: cpu.Window, moved: dict[VcpuKey, tuple[CpuSet, CpuSet]]) -> None:
        """Foretell what the vCPUs near a move will run, from what they wanted before it."""
        touched = frozenset().union(*(place for pair in moved.values() for place in pair))
        keys = [key for key in self._past[0].wants if all(key in w.wants for w in (*self._past, now))]
        count = len(self._past)
        mean = {key: sum(w.wants[key] for w in self._past) / count for key in keys}
        last = self._past[-1]
        pcpus = last.foreign
        foreign = {p: sum(w.foreign.get(p, 0.0) for w in self._past) / count for p in pcpus}
        seen = cpu.Shares(
            {key: sum(w.seen.runs[key] for w in self._past) / count for key in keys},
            {key: sum(w.seen.waits[key] for w in self._past) / count for key in keys},
            last.seen.busy,
        )
        places = {key: last.places[key] for key in keys}
        weights = {key: last.weights[key] for key in keys}
        whole = cpu.Window(last.seconds, mean, weights, places, foreign, seen)
        told = whole.shares({key: now.places[key] for key in keys})
        near = [key for key in keys if places[key] & touched or now.places[key] & touched]
        self._case = _Case(_only(seen, near), _only(told, near))

    def _close(self) -> None:
        case, self._case = self._case, None
        if case is None or not case.after:
            return
        for key in case.told.runs:
            real = [shares for shares in case.after if key in shares.runs]
            if real:
                run = sum(shares.runs[key] for shares in real) / len(real)
                wait = sum(shares.waits[key] for shares in real) / len(real)
                self._runs.append((abs(case.told.runs[key] - run), abs(case.before.runs[key] - run)))
                self._waits.append((abs(case.told.waits[key] - wait), abs(case.before.waits[key] - wait)))

    # ------------------------------------------------------------ memory

    def _look_at_memory(self, before: Snapshot, now: Snapshot) -> None:
        known = {(domain.uuid, domain.id): domain for domain in before.domains}
        for domain in now.domains:
            old, balloon = known.get((domain.uuid, domain.id)), domain.balloon
            if old is None or balloon is None or old.balloon is None or balloon.usable_kib is None:
                continue
            sent = domain.record.memory if domain.record else None
            was = old.record.memory if old.record else None
            if sent is not None and sent != was and old.balloon.usable_kib is not None:
                told = resized(old.balloon, sent.intended_kib)[0]
                if abs(sent.intended_kib - old.balloon.actual_kib) > BALLOON_TOLERANCE_KIB:
                    self._gifts[domain.uuid] = _Gift(
                        sent.intended_kib, old.balloon.usable_kib, told.usable_kib or 0, before.wall_s
                    )
            self._judge_gift(domain.uuid, balloon.actual_kib, balloon.usable_kib, balloon.last_update_s, now.wall_s)

    def _judge_gift(self, uuid: str, actual_kib: int, usable_kib: int, told_s: int, wall_s: float) -> None:
        gift = self._gifts.get(uuid)
        if gift is None:
            return
        if abs(actual_kib - gift.target_kib) <= BALLOON_TOLERANCE_KIB and not gift.arrived_s:
            gift.arrived_s = wall_s
        if gift.arrived_s and told_s >= gift.arrived_s:
            del self._gifts[uuid]
            self._usable.append((abs(gift.told_kib - usable_kib) / 1024, abs(gift.usable_kib - usable_kib) / 1024))
        elif wall_s - gift.sent_s > _LATEST_S:
            del self._gifts[uuid]

    # ------------------------------------------------------------ what it comes to

    def errors(self) -> Errors:
        """What all moves until now come to."""
        self._close()
        errors = Errors(len(self._runs), memory_cases=len(self._usable))
        if self._runs:
            run, run_before = _mean(self._runs, 100)
            wait, wait_before = _mean(self._waits, 100)
            errors = replace(
                errors,
                run_points=run,
                run_points_before=run_before,
                wait_points=wait,
                wait_points_before=wait_before,
            )
        if self._usable:
            usable, usable_before = _mean(self._usable, 1)
            errors = replace(errors, usable_mib=usable, usable_mib_before=usable_before)
        return errors


def _mean(pairs: list[tuple[float, float]], factor: float) -> tuple[float, float]:
    first, second = (round(factor * sum(values) / len(values), 2) for values in zip(*pairs))
    return first, second


def _only(shares: cpu.Shares, keys: list[VcpuKey]) -> cpu.Shares:
    return cpu.Shares({key: shares.runs[key] for key in keys}, {key: shares.waits[key] for key in keys}, {})


def _moved(before: Snapshot, now: Snapshot) -> dict[VcpuKey, tuple[CpuSet, CpuSet]]:
    """The vCPUs whose pin changed, with both pins."""
    old = {(d.uuid, d.id, v.id): v.pin for d in before.domains for v in d.vcpus}
    found = {}
    for domain in now.domains:
        for vcpu in domain.vcpus:
            pin = old.get((domain.uuid, domain.id, vcpu.id))
            if pin is not None and pin != vcpu.pin:
                found[domain.uuid, vcpu.id] = (pin, vcpu.pin)
    return found
