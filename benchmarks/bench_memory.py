# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How well and how fast the memory policy does, against other balancers' rules in one simulated host.

    python benchmarks/bench_memory.py [--json FILE] [--quick]

Prints one table of quality, what parts of the policy are worth (ablation), and the cost of decide().
The policy's constants were chosen on the scenarios and seeds of TUNED; the tables report REPORTED.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import json
import random
import statistics
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Callable, Iterator, Optional

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "plugins" / "module_utils"), str(ROOT / "tests" / "unit")]

import memory_simulator as simulator
from kvmsched.config import MemoryPolicy
from kvmsched.model import (
    Balloon,
    BalloonMove,
    Domain,
    HostMemory,
    MemoryPlan,
    MemoryRecord,
    Record,
    Snapshot,
    Topology,
)
from kvmsched.model import Host as ModelHost
from kvmsched.policy import memory, memory_reading, memory_supply
from memory_peers import PEERS, RESERVE
from memory_simulator import GIB, SCENARIOS, Figures, Guest, Host, Scenario

MIB = 1024
TUNED = (("steady", "spike", "antiphase", "mixed"), (1, 2, 3, 101))
REPORTED = (tuple(scenario.name for scenario in SCENARIOS), (201, 202, 203))
EPOCH_S = 1_000_000


class Ours:
    """kvmsched as its daemon runs it: a pass each period, takes at once, gives as soon as they are funded."""

    def __init__(
        self,
        name: str,
        reclaim: str = "eager",
        period_s: int = 5,
        stats_s: int = 5,
        at_once: bool = True,
        remembers: bool = True,
    ) -> None:
        self.name, self.period_s, self.stats_s = name, period_s, stats_s
        self.at_once, self.remembers = at_once, remembers
        self.policy = MemoryPolicy(reclaim=reclaim)
        self.history: Optional[memory.MemoryHistory] = None
        self.before: Optional[Snapshot] = None
        self.records: dict[str, MemoryRecord] = {}
        self.waiting: Optional[tuple[MemoryPlan, Snapshot]] = None
        self.plans: list[MemoryPlan] = []

    def tick(self, host: Host) -> None:
        if host.now_s % self.period_s == 0:
            self.pass_(host)
        elif self.waiting is not None and self.arrived(host):
            self.give(host, *self.waiting)
            self.waiting = None

    def pass_(self, host: Host) -> None:
        now = self.observe(host)
        snapshots = [self.before, now] if self.before is not None else [now]
        plan, history = memory.decide(snapshots, self.policy, self.history)
        self.history = history if self.remembers else None
        self.before, self.waiting = now, None
        takes = [move for move in plan.moves if isinstance(move, BalloonMove) and not move.gives]
        self.send(host, takes)
        # What is payable before anything arrived goes out at once, the rest when it did.
        if self.at_once or not takes:
            self.give(host, plan, now)
        if takes:
            self.waiting = plan, now

    def give(self, host: Host, plan: MemoryPlan, planned: Snapshot) -> None:
        domains = tuple(replace(domain, record=self.record(domain.name)) for domain in planned.domains)
        self.send(host, list(memory.fund(plan, self.policy, replace(planned, domains=domains), self.observe(host))))

    def arrived(self, host: Host) -> bool:
        return all(guest.actual <= guest.target + 0.5 for guest in host.guests)

    def send(self, host: Host, moves: list[BalloonMove]) -> None:
        guests = {guest.name: guest for guest in host.guests}
        for move in moves:
            old = self.records.get(move.domain)
            original = old.original_kib if old else move.before_kib
            when_s = EPOCH_S + host.now_s
            self.records[move.domain] = MemoryRecord(original, move.before_kib, move.after_kib, when_s)
            host.set_target(guests[move.domain], move.after_kib / MIB)

    def record(self, name: str) -> Optional[Record]:
        return Record("host", 1, memory=self.records[name]) if name in self.records else None

    def observe(self, host: Host) -> Snapshot:
        domains = tuple(self.domain(guest) for guest in host.guests)
        sizes = HostMemory(int(host.total * MIB), max(0, int(host.available * MIB)))
        model = ModelHost("host", "host", "bench:///", "bench", Topology(()), memory=sizes)
        return Snapshot(host.now_s, EPOCH_S + host.now_s, model, domains)

    def domain(self, guest: Guest) -> Domain:
        when_s, unused, usable, _swapped, swap_in, swap_out = guest.reading
        balloon = Balloon(
            actual_kib=int(guest.actual * MIB),
            maximum_kib=int(guest.maximum * MIB),
            unused_kib=int(unused * MIB),
            usable_kib=int(usable * MIB),
            swap_in_kib=int(swap_in * MIB),
            swap_out_kib=int(swap_out * MIB),
            rss_kib=int(guest.rss * MIB),
            last_update_s=EPOCH_S + when_s if when_s else 0,
            period_s=self.stats_s,
        )
        return Domain(guest.name, guest.name, 1, balloon=balloon, record=self.record(guest.name))


def tools() -> Iterator[Callable[[], Any]]:
    yield from PEERS
    yield lambda: Ours("ours eager")
    yield lambda: Ours("ours lazy", reclaim="lazy")


# ---------------------------------------------------------------- quality


def measure(make: Callable[[], Any], scenario: Scenario, seeds: tuple[int, ...]) -> Figures:
    """The mean over *seeds*, the worst of relief, minima and counts that must be 0."""
    runs = [simulator.run(scenario, make(), seed, RESERVE) for seed in seeds]
    mean = {
        key: None if getattr(runs[0], key) is None else statistics.fmean(getattr(run, key) for run in runs)
        for key in ("swap_gib_s", "commands", "jain", "returned_gib", "reserve_s")
    }
    worst = {
        key: None if getattr(runs[0], key) is None else max(getattr(run, key) for run in runs)
        for key in ("relief_s", "kills", "overrun_s", "reversals")
    }
    return Figures(**mean, **worst)


def quality(
    names: tuple[str, ...], seeds: tuple[int, ...], makers: Iterator[Callable[[], Any]]
) -> list[dict[str, Any]]:
    chosen = [scenario for scenario in SCENARIOS if scenario.name in names]
    rows = []
    for make in makers:
        for scenario in chosen:
            row = {"tool": make().name, "scenario": scenario.name, **asdict(measure(make, scenario, seeds))}
            rows.append(row)
    return rows


# ---------------------------------------------------------------- what the parts are worth

PARTS = ("spike", "antiphase")


@contextlib.contextmanager
def without(module: Any, name: str, replacement: Any) -> Iterator[None]:
    """The policy with one of its parts switched off."""
    original = getattr(module, name)
    setattr(module, name, replacement)
    try:
        yield
    finally:
        setattr(module, name, original)


def parts(seeds: tuple[int, ...]) -> list[dict[str, Any]]:
    """Ours, eager, with one thing changed: its timing, or a part left out.

    What two phases, freshness, the reserve and stuck detection are worth is told by tests that fail
    without them (tests/unit/test_memory_passes.py).
    """
    rows = []
    for name, more in (
        ("as it is", {}),
        ("statistics every 2 s", {"stats_s": 2}),
        ("a pass every 2 s", {"period_s": 2, "stats_s": 2}),
        ("a pass every 10 s", {"period_s": 10}),
        ("no history", {"remembers": False}),
        ("gives wait for all takes", {"at_once": False}),
    ):
        rows += quality(PARTS, seeds, iter([functools.partial(Ours, name, **more)]))
    for name, module, part, replacement in (
        ("demand's rise ignored", memory_reading.Reader, "_rise", lambda self, guest, sample, seen: 0),
        ("promises not counted", memory_supply, "at_risk", lambda domain, guest: 0),
    ):
        with without(module, part, replacement):
            rows += quality(PARTS, seeds, iter([functools.partial(Ours, name)]))
    return rows


COLUMNS = (
    ("relief s", "relief_s", "{:.0f}"),
    ("swap GiB*s", "swap_gib_s", "{:.0f}"),
    ("OOM", "kills", "{:.0f}"),
    ("overrun s", "overrun_s", "{:.0f}"),
    ("< reserve s", "reserve_s", "{:.0f}"),
    ("reversals", "reversals", "{:.0f}"),
    ("commands", "commands", "{:.0f}"),
    ("Jain", "jain", "{:.3f}"),
    ("returned GiB", "returned_gib", "{:.1f}"),
)


def show(rows: list[dict[str, Any]]) -> None:
    print(f"{'scenario':10} {'tool':26}" + "".join(f"{title:>13}" for title, _key, _form in COLUMNS))
    for name in dict.fromkeys(row["scenario"] for row in rows):
        for row in rows:
            if row["scenario"] == name:
                cells = "".join(f"{cell(row[key], form):>13}" for _title, key, form in COLUMNS)
                print(f"{name:10} {row['tool']:26}{cells}")
        print()


def cell(value: Optional[float], form: str) -> str:
    if value is None:
        return "."
    return "never" if value == float("inf") else form.format(value)


# ---------------------------------------------------------------- cost


def cost(sizes: tuple[int, ...]) -> list[dict[str, float]]:
    """CPU time of one decide() with a history, the best of several, for a host where one domain in ten moves."""
    rows = []
    for size in sizes:
        snapshots = crowd(size)
        policy = MemoryPolicy()
        _plan, history = memory.decide(snapshots, policy)
        best_s = float("inf")
        moves = 0
        gc.collect()
        for _turn in range(30 if size <= 1000 else 7):
            began_s = time.process_time()
            plan, _history = memory.decide(snapshots, policy, history)
            best_s = min(best_s, time.process_time() - began_s)
            moves = len(plan.moves)
        rows.append({"domains": size, "moves": moves, "ms": best_s * 1000, "us_per_domain": best_s * 1e6 / size})
    return rows


def crowd(size: int) -> list[Snapshot]:
    rng = random.Random(size)
    domains = []
    for index in range(size):
        maximum = rng.choice([1, 2, 4, 8]) * GIB * MIB
        used = int(maximum * rng.uniform(0.2, 0.6))
        usable = (rng.choice([20, 2000]) if rng.random() < 0.1 else 220) * MIB
        balloon = Balloon(
            min(maximum, used + usable),
            maximum,
            unused_kib=usable,
            usable_kib=usable,
            rss_kib=used,
            swap_in_kib=0,
            swap_out_kib=0,
            major_faults=7,
            last_update_s=EPOCH_S,
            period_s=5,
        )
        domains.append(Domain(f"{rng.getrandbits(128):032x}", f"d{index}", index, balloon=balloon))
    memory_ = HostMemory(size * 8 * GIB * MIB, size * 2 * GIB * MIB)
    host = ModelHost("host", "host", "bench:///", "bench", Topology(()), memory=memory_)
    now = Snapshot(EPOCH_S + 1, EPOCH_S + 1, host, tuple(domains))
    older = tuple(replace(d, balloon=replace(d.balloon, last_update_s=EPOCH_S - 5)) for d in domains)
    return [replace(now, wall_s=EPOCH_S - 4, monotonic_s=EPOCH_S - 4, domains=older), now]


# ---------------------------------------------------------------- the command


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--quick", action="store_true", help="one seed, and cost up to 1,000 domains")
    parser.add_argument("--tuning", action="store_true", help="run on the scenarios and seeds used for tuning")
    arguments = parser.parse_args()
    names, seeds = TUNED if arguments.tuning else REPORTED
    seeds = seeds[:1] if arguments.quick else seeds
    print(
        f"32 GiB host, 2 GiB of it the host's own, reserve {RESERVE / GIB:.1f} GiB; seeds {', '.join(map(str, seeds))}"
    )
    print("relief, OOM, overrun and reversals are the worst of the seeds, the rest their mean\n")
    rows = quality(names, seeds, tools())
    show(rows)
    print("what the parts are worth: ours, eager, with one thing changed\n")
    changed = parts(seeds)
    show(changed)
    costs = cost((10, 100, 1000) if arguments.quick else (10, 100, 1000, 10000))
    print(f"{'domains':>8} {'moves':>7} {'decide ms':>10} {'us/domain':>10}")
    for row in costs:
        print(f"{row['domains']:8.0f} {row['moves']:7.0f} {row['ms']:10.2f} {row['us_per_domain']:10.1f}")
    if arguments.json:
        figures = {
            "seeds": list(seeds),
            "quality": [finite(row) for row in rows],
            "parts": [finite(row) for row in changed],
            "cost": costs,
        }
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


def finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: never is written as text."""
    return {key: "never" if value == float("inf") else value for key, value in row.items()}


if __name__ == "__main__":
    sys.exit(main())
