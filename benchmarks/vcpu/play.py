# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A rule plays a load on a fake host, and what came of it is counted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, List, Sequence, Tuple

from .host import FakeHost, Key, Step
from .rules import Rule
from .sharing import Mask

Rows = Sequence[Sequence[float]]
MINUTE_S = 60.0
HOUR_S = 3600.0

# A vCPU that wants less than this on average says nothing about shares.
_LEAST_WANT = 0.02


@dataclass
class Score:
    """What a rule left undone and what it cost. Times are seconds of vCPUs; ``placed`` are changes of a set's size."""

    seconds: float = 0.0
    wanted: float = 0.0
    worked: float = 0.0
    ran: float = 0.0
    waited: float = 0.0
    lost: float = 0.0
    moves: int = 0
    late_moves: int = 0
    placed: int = 0
    returned: int = 0
    passes: int = 0
    late_passes: int = 0
    vcpus: int = 0
    worst_minute: float = 0.0
    by_vcpu: List[Tuple[float, float]] = field(default_factory=list)
    _minute: List[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    _trail: Dict[Key, Tuple[Mask, float]] = field(default_factory=dict)

    @property
    def unserved_pct(self) -> float:
        return 100 * (1 - self.worked / self.wanted) if self.wanted else 0.0

    @property
    def waiting_pct(self) -> float:
        """Time in the run queue in percent of time run."""
        return 100 * self.waited / self.ran if self.ran else 0.0

    @property
    def moves_pct(self) -> float:
        """Changes a pass in percent of the vCPUs, once settled, without those that changed the size of a set."""
        return 100 * self.late_moves / self.late_passes / self.vcpus if self.late_passes else 0.0

    @property
    def once_pct(self) -> float:
        return 100 * self.placed / self.vcpus

    @property
    def lost_pct(self) -> float:
        """What changes of pCPU cost, the kernel's and ours, in percent of what was wanted."""
        return 100 * self.lost / self.wanted if self.wanted else 0.0

    @property
    def least_share_pct(self) -> float:
        """The least of what any vCPU got done of what it wanted, all in all."""
        least = _LEAST_WANT * self.seconds
        return 100 * min((done / wanted for wanted, done in self.by_vcpu if wanted > least), default=1.0)

    def add(self, step: Step, seconds: float) -> None:
        wanted, worked = sum(step.wanted), sum(step.worked)
        self.seconds += seconds
        self.wanted += wanted
        self.worked += worked
        self.ran += sum(step.ran)
        self.waited += sum(step.waited)
        self.lost += sum(step.lost)
        if not self.by_vcpu:
            self.by_vcpu = [(0.0, 0.0)] * len(step.wanted)
        self.by_vcpu = [(a + x, b + y) for (a, b), x, y in zip(self.by_vcpu, step.wanted, step.worked)]
        self._minute = [self._minute[0] + seconds, self._minute[1] + wanted, self._minute[2] + worked]
        if self._minute[0] >= MINUTE_S:
            if self._minute[1] > 0:
                self.worst_minute = max(self.worst_minute, 100 * (1 - self._minute[2] / self._minute[1]))
            self._minute = [0.0, 0.0, 0.0]

    def count(self, changed: Dict[Key, Tuple[Mask, Mask]], now_s: float, settled: bool) -> None:
        self.passes += 1
        self.late_passes += settled
        for key, (before, after) in changed.items():
            if len(before) != len(after):
                self.placed += 1
                continue
            self.moves += 1
            self.late_moves += settled
            # To and fro: back to where it came from within ten minutes.
            last = self._trail.get(key)
            self.returned += last is not None and last[0] == after and now_s - last[1] <= 10 * MINUTE_S
            self._trail[key] = (before, now_s)


def play(host: FakeHost, rows: Rows, rule: Rule, step_s: float, settle_s: float = HOUR_S) -> Score:
    """Run *rule* over *rows* (one a vCPU, one value a step): what it decides after a step is judged by the next one."""
    score = Score(vcpus=len(rows))
    _want(host, rows, 0)
    before = host.snapshot()
    for step in range(len(rows[0])):
        _want(host, rows, step)
        result = host.run(step_s)
        if step:
            score.add(result, step_s)
        now = host.snapshot()
        elapsed_s = (step + 1) * step_s
        if rule.due(elapsed_s):
            changed = rule.act(host, [before, now])
            score.count(changed, elapsed_s, elapsed_s > settle_s)
        before = now
    return score


def _want(host: FakeHost, rows: Rows, step: int) -> None:
    position = 0
    for guest in host.guests:
        count = len(guest.wants)
        guest.wants = [rows[position + n][step] for n in range(count)]
        position += count
