# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts under real or made-up load for hours: the shapes, the draws, and the rules that are played on them in pairs."""

from __future__ import annotations

import random
import statistics
from dataclasses import dataclass, field
from typing import Callable, Dict, List, Optional, Sequence

from kvmsched.model import Topology
from vcpu_worlds import topology

from . import loads, rules
from .host import FakeHost, Guest, Prices
from .play import HOUR_S, Score, play
from .sharing import Mask

# Smoothing where a pass comes every five minutes: weight .1 a pass, as chosen on other data (see docs/vcpu.md).
SLOW_HALF_LIFE_S = 1974.0
PRICE_POINTS = (0.0, 1.0, 3.0, 10.0)

MakeRule = Callable[[], rules.Rule]


@dataclass(frozen=True)
class Shape:
    """A host's pCPUs: SMT threads a core, pCPUs a cache (0: all), cells."""

    pcpus: int
    threads: int = 1
    llc: int = 0
    cells: int = 1

    def topology(self) -> Topology:
        return topology(self.pcpus, threads=self.threads, llc=self.llc, cells=self.cells)

    def __str__(self) -> str:
        parts = [f"{self.pcpus}"]
        parts += [f"{self.cells} cells"] if self.cells > 1 else []
        parts += [f"caches of {self.llc}"] if self.llc else []
        parts += ["SMT"] if self.threads > 1 else []
        return ", ".join(parts)


@dataclass
class Setting:
    """A shape with so many vCPUs a pCPU that come floating or pinned in a row; a draw makes one host and its load.

    ``bound``: each guest's memory is bound to one cell, where remote memory costs the prices' factor.
    """

    shape: Shape
    density: int
    floating: bool
    hours: float
    step_s: float
    prices: Prices = Prices()
    bound: bool = False
    source: Optional[loads.Rows] = None
    settle_s: float = HOUR_S
    scores: Dict[str, List[Score]] = field(default_factory=dict)

    @property
    def vcpus(self) -> int:
        return self.shape.pcpus * self.density

    def play(self, contenders: Dict[str, MakeRule], draws: Sequence[int]) -> None:
        """Play each rule on the same draws."""
        for draw in draws:
            rows = self._rows(random.Random(draw))
            for name, make in contenders.items():
                host = self._host(random.Random(draw + 500), free=name == UNAVOIDABLE)
                score = play(host, rows, make(), self.step_s, self.settle_s)
                self.scores.setdefault(name, []).append(score)

    def mean(self, name: str, what: str) -> float:
        return statistics.mean(getattr(score, what) for score in self.scores[name])

    def _rows(self, rng: random.Random) -> loads.Rows:
        periods = round(self.hours * HOUR_S / loads.PERIOD_S) + 1
        source = self.source or loads.made_up(rng, self.vcpus, max(periods, loads.DAY))
        rows = loads.drawn(rng, source, self.vcpus, periods)
        return rows if self.step_s == loads.PERIOD_S else loads.interpolated(rows)

    def _host(self, rng: random.Random, free: bool = False) -> FakeHost:
        """Guests of one to four vCPUs. *free*: all may run anywhere at no price, which no assignment can beat."""
        host = self.shape.topology()
        everywhere = host.online
        guests: List[Guest] = []
        seat = 0
        while seat < self.vcpus:
            size = min(self.vcpus - seat, rng.choice((1, 1, 2, 2, 4)))
            cell = rng.randrange(self.shape.cells)
            home = next(c.pcpus for c in host.cells if c.id == cell) if self.bound else everywhere
            pins = [self._pin(home, everywhere, seat + n, free) for n in range(size)]
            guest = Guest(f"g{len(guests)}", [0.0] * size, pins)
            if self.bound:
                guest.cell, guest.fields = cell, {"numa_pcpus": home}
            guests.append(guest)
            seat += size
        return FakeHost(host, guests, prices=Prices(0.0) if free else self.prices)

    def _pin(self, home: Mask, everywhere: Mask, seat: int, free: bool) -> Mask:
        return everywhere if self.floating or free else frozenset({sorted(home)[seat % len(home)]})


UNTOUCHED, UNAVOIDABLE = "untouched", "(no assignment beats)"
RIVAL, JOINT, DAEMON = "busiest to freest", "joint scenarios", "kvmsched, daemon"


def contenders(half_life_s: Optional[float], wide: bool) -> Dict[str, MakeRule]:
    """The rules in the order of the tables; *half_life_s* of all that smooth, None: the daemon's default."""
    own = {} if half_life_s is None else {"half_life_s": half_life_s}
    same_s = rules.daemon_policy(**own).half_life_s
    table: Dict[str, MakeRule] = {
        UNTOUCHED: rules.Rule,
        RIVAL: lambda: rules.BusiestToFreest(same_s),
        JOINT: rules.JointScenarios,
        DAEMON: lambda: rules.Daemon(rules.daemon_policy(**own)),
        UNAVOIDABLE: rules.Rule,
    }
    if wide:
        table.update(
            {
                "kvmsched, floating: place": lambda: rules.Daemon(rules.daemon_policy(**own, **rules.PLACE)),
                "static": rules.Static,
                "the first kvmsched": rules.SwapAll,
                "LPT each pass": lambda: rules.FromScratch(same_s),
                "kvmsched, module every 5 min": rules.Module,
                "busiest to freest every 5 min": lambda: rules.BusiestToFreest(0.0, 300.0),
            }
        )
    return table
