# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How well a replay's model foretells run and wait after a pin, where a simulated scheduler decides what follows.

    python benchmarks/bench_twin.py [--scenes N] [--json FILE]

Two pCPUs are shared by three to five pinned vCPUs and by work of the host, millisecond by millisecond: who had least
goes first, in slices of 3 ms, and who wakes may go before who runs. In 24 s two times one or two vCPUs are pinned
elsewhere. The errors are those that a replay prints, beside those of who says that all stays as it was. Vcpus are
busy by the clock (as the guests of the tests are), or work until it is done, or always.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "plugins" / "module_utils"), str(ROOT / "tests" / "unit")]

from kvmsched.model import Domain, Host, Snapshot, Vcpu
from kvmsched.twin.errors import Watch
from vcpu_worlds import topology, uuid_of

PCPUS, WINDOW_MS, WINDOWS, MOVES_AFTER = 2, 2000, 12, (3, 7)
PERIOD_MS, BURST_MS, SLICE_MS, AHEAD_MS = 100, 8, 3, 4
LIGHT, HEAVY = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4), (0.1, 0.1, 0.4, 0.7, 0.8, 0.9)
# What is run: kinds of vCPUs, and how many threads of the host a pCPU has at most.
LOADS = {
    "by the clock, quiet host": (("clock",), 1),
    "by the clock, busy host": (("clock",), 3),
    "until it is done, quiet host": (("work",), 1),
    "until it is done, busy host": (("work",), 3),
    "all kinds": (("clock", "work", "always"), 2),
}


@dataclass(eq=False)
class Thread:
    """One thread; times in ms. ``had`` is what the scheduler orders by."""

    kind: str
    share: float
    rng: random.Random
    ran: int = 0
    waited: int = 0
    had: float = 0.0
    slice: int = 0
    awake: bool = False
    left: int = 0
    until: int = 0
    begins: int = 0

    def ready(self, now: int) -> bool:
        if self.kind == "clock":
            if now % PERIOD_MS == 0:
                self.begins = int(PERIOD_MS * (1 - self.share) * self.rng.random())
            return self.begins <= now % PERIOD_MS < self.begins + PERIOD_MS * self.share
        if self.kind == "work" and self.left <= 0:
            if now < self.until:
                return False
            self.left = max(1, int(self.rng.expovariate(1 / BURST_MS)))
        return True

    def run(self, now: int) -> None:
        self.ran, self.had, self.slice, self.left = self.ran + 1, self.had + 1, self.slice - 1, self.left - 1
        if self.kind == "work" and self.left <= 0:
            pause_ms = BURST_MS * (1 - self.share) / self.share
            self.until = now + 1 + int(self.rng.expovariate(1 / max(pause_ms, 0.01)))


class Pcpu:
    def __init__(self, foreign: Sequence[Thread]) -> None:
        self.foreign = foreign
        self.busy_ms = 0
        self._current: Thread | None = None

    def step(self, now: int, vcpus: Sequence[Thread]) -> None:
        """Let one ms pass."""
        ready = [thread for thread in (*vcpus, *self.foreign) if thread.ready(now)]
        least = min((thread.had for thread in ready), default=0.0)
        for thread in ready:
            if not thread.awake:
                thread.had = max(thread.had, least - SLICE_MS)
        for thread in (*vcpus, *self.foreign):
            thread.awake = thread in ready
        if not ready:
            self._current = None
            return
        current = self._current
        if current not in ready or current.slice <= 0 or any(t.had < current.had - AHEAD_MS for t in ready):
            current = min(ready, key=lambda thread: thread.had)
            current.slice = SLICE_MS
        current.run(now)
        self.busy_ms += 1
        self._current = current
        for thread in ready:
            thread.waited += thread is not current


def play(seed: int, kinds: Sequence[str], foreign: int, shares: Sequence[float], watch: Watch) -> None:
    """One scene, which *watch* sees as it would see a recorded host."""
    rng = random.Random(seed)
    host_shares = [share for share in shares if share <= 0.6]
    pcpus = [
        Pcpu([Thread("work", rng.choice(host_shares), rng) for _thread in range(rng.randrange(foreign + 1))])
        for _pcpu in range(PCPUS)
    ]
    vcpus = [Thread(rng.choice(kinds), rng.choice(shares), rng) for _vcpu in range(rng.choice((3, 4, 5)))]
    pins = [rng.randrange(PCPUS) for _vcpu in vcpus]
    watch.look(_look(0, pcpus, vcpus, pins))
    for window in range(WINDOWS):
        for now in range(window * WINDOW_MS, (window + 1) * WINDOW_MS):
            for number, pcpu in enumerate(pcpus):
                pcpu.step(now, [vcpu for vcpu, pin in zip(vcpus, pins) if pin == number])
        watch.look(_look((window + 1) * WINDOW_MS, pcpus, vcpus, pins))
        if window in MOVES_AFTER:
            for moved in rng.sample(range(len(vcpus)), rng.choice((1, 1, 2))):
                pins[moved] = 1 - pins[moved]


def _look(now: int, pcpus: Sequence[Pcpu], vcpus: Sequence[Thread], pins: Sequence[int]) -> Snapshot:
    domains = []
    for number, (thread, pin) in enumerate(zip(vcpus, pins)):
        name, where = f"g{number}", frozenset({pin})
        vcpu = Vcpu(0, where, thread.ran * 10**6, thread.waited * 10**6, where)
        domains.append(Domain(uuid_of(name), name, number + 1, started_s=1.0, vcpus=(vcpu,)))
    busy_ns = {number: pcpu.busy_ms * 10**6 for number, pcpu in enumerate(pcpus)}
    host = Host("host", "simulated", "qemu:///system", "QEMU", topology(PCPUS), busy_ns)
    return Snapshot(1000 + now / 1000, 1e9 + now / 1000, host, tuple(domains))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=20, help="of each load")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    arguments = parser.parse_args()
    figures = {}
    print(f"{'points of a pCPU':37} {'vCPUs':>5}  {'run':>5} {'as before':>9}  {'wait':>5} {'as before':>9}")
    for demand, shares in (("light", LIGHT), ("heavy", HEAVY)):
        for load, (kinds, foreign) in LOADS.items():
            cases, sums = 0, [0.0] * 4
            for seed in range(arguments.scenes):
                watch = Watch()
                play(seed, kinds, foreign, shares, watch)
                told = watch.errors()
                cases += told.cpu_cases
                values = (told.run_points, told.run_points_before, told.wait_points, told.wait_points_before)
                sums = [total + told.cpu_cases * (value or 0.0) for total, value in zip(sums, values)]
            means = [total / max(1, cases) for total in sums]
            figures[f"{demand}, {load}"] = means
            print(
                f"{demand + ', ' + load:37} {cases:5}  {means[0]:5.1f} {means[1]:9.1f}  {means[2]:5.1f} {means[3]:9.1f}"
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
