# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the memory policy does on simulated hosts, held against the same hosts left alone and against other balancers.

    python benchmarks/bench_memory.py [--quick] [--json FILE] [--world NAMES] [--seeds N] [--tools NAMES] [--tuning]

Prints a table for each kind of world, one for all together, which world shows which fault of the first default,
what each safety is worth (switched off, its world turns red), the cost of decide(), and the aims with their figures.
Exits with 1 where an aim that must hold is broken.

The columns, sums over all seeds unless it says otherwise:
  harmed, saved   guests that fare worse, or better, than their twins on the untouched host: killed more often, else
                  starved longer, else more read from disk (memory/figures.py)
  kills           by the guest's kernel, or the host's
  starved         seconds of guests whose programs have no room, or are in swap; "spare": while the host could give
  reads           GiB that guests read from their disks
  swap            GiB * s in guests' swap and the host's
  rest/h          commands per guest and hour while nothing but noise happens
  gift            what was given in an episode of want, over what was lacking in truth with its last rise once more
  over, < res.    seconds in which the host had less than nothing, or less than max(1G, 5 %)
  unkept          guests that got less relief than a guest of less weight that lacked as much
  back            GiB that guests gave up, on average over time and seeds (below 0: they got more)
  owed            GiB below first sizes that their guests would use at the end
  half, most      seconds until half, 90 % of what the watched guest lacked was there, the worst seed
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import random
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Callable, Optional, Sequence

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "plugins" / "module_utils")]

from kvmsched.config import MemoryPolicy
from kvmsched.model import Balloon, Domain, HostMemory, Snapshot, Topology
from kvmsched.model import Host as ModelHost
from kvmsched.policy import memory as policy_room
from memory import aims, rivals, worlds
from memory.daemon import Kvmsched, OnePass, switches
from memory.figures import Row, Run, Tool, Traced, Untouched, run, tabulate

# Constants of the policy are chosen on the first, reports are made on the second.
TUNING = range(6)
REPORTED = range(1001, 1021)
QUICK = range(1001, 1003)
# How many of the seeds are worth their time for rules that are switched off.
RULE_SEEDS = 4

TOOLS: dict[str, Callable[[], Tool]] = {
    "untouched": Untouched,
    **{rival.name: rival for rival in rivals.RIVALS},
    "auto": lambda: Kvmsched("auto"),
    "eager": lambda: Kvmsched("eager", reclaim="eager"),
    "lazy": lambda: Kvmsched("lazy", reclaim="lazy"),
    "pairwise": lambda: Kvmsched("pairwise", strategy="pairwise"),
    "one pass": lambda: OnePass("one pass"),
}
OURS = ("auto", "eager", "lazy", "one pass")


# ---------------------------------------------------------------- running


def one(task: tuple[str, int, tuple[str, ...]]) -> list[Run]:
    """All tools on one world: it is drawn once."""
    name, seed, tools = task
    world = worlds.draw(name, seed)
    return [run(world, TOOLS[tool]()) for tool in tools]


def rows_of(names: Sequence[str], seeds: Sequence[int], tools: tuple[str, ...], share: float = 1.0) -> list[Row]:
    """A row for each world and tool; two processes at most. Worlds that take long get *share* of their seeds."""
    most = {name: max(1, round(share * worlds.KINDS[name].most)) for name in names}
    tasks = [(name, seed, tools) for name in names for seed in seeds[: most[name]]]
    tasks.sort(key=lambda task: worlds.KINDS[task[0]].most)
    with multiprocessing.Pool(min(2, multiprocessing.cpu_count())) as pool:
        done = pool.map(one, tasks, chunksize=1)
    by_world: dict[str, list[list[Run]]] = {}
    for task, runs in sorted(zip(tasks, done), key=lambda pair: (list(names).index(pair[0][0]), pair[0][1])):
        by_world.setdefault(task[0], []).append(runs)
    return [
        tabulate([runs[column] for runs in lot], [runs[0] for runs in lot])
        for lot in by_world.values()
        for column in range(len(tools))
    ]


# ---------------------------------------------------------------- tables

COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("harmed", "harmed", "{:.0f}"),
    ("saved", "saved", "{:.0f}"),
    ("kills", "kills", "{:.0f}"),
    ("starved s", "starved_s", "{:.0f}"),
    ("spare s", "spare_s", "{:.0f}"),
    ("reads GiB", "reads_gib", "{:.0f}"),
    ("swap GiBs", "swap_gib_s", "{:.0f}"),
    ("moves", "moves", "{:.0f}"),
    ("rest/h", "rest_moves", "{:.1f}"),
    ("gift", "gift", "{:.2f}"),
    ("over s", "overrun_s", "{:.0f}"),
    ("< res. s", "reserve_s", "{:.0f}"),
    ("unkept", "unkept", "{:.0f}"),
    ("back GiB", "returned_gib", "{:.1f}"),
    ("owed GiB", "owed_gib", "{:.1f}"),
    ("half s", "half_s", "{:.0f}"),
    ("most s", "most_s", "{:.0f}"),
)


def show(rows: Sequence[Row]) -> None:
    for name in dict.fromkeys(row.world for row in rows):
        kind = worlds.KINDS.get(name)
        lot = [row for row in rows if row.world == name]
        print(
            f"{name}{f' [{kind.shows}]' if kind and kind.shows else ''}: {lot[0].seeds} seeds, {lot[0].guests} guests"
        )
        if kind:
            print(f"  {kind.text}")
        print(f"  {'':15}" + "".join(f"{title:>10}" for title, _key, _form in COLUMNS))
        for row in lot:
            print(f"  {row.tool:15}" + "".join(f"{cell(getattr(row, key), form):>10}" for _title, key, form in COLUMNS))
        print()


def cell(value: Optional[float], form: str) -> str:
    if value is None:
        return "."
    return "never" if value == float("inf") else form.format(value)


def together(rows: Sequence[Row]) -> list[Row]:
    """One row for each tool: the sums over all worlds, and the worst of what is no sum."""
    whole = []
    for tool in dict.fromkeys(row.tool for row in rows):
        lot = [row for row in rows if row.tool == tool]
        total = Row("all worlds", tool)
        for key in ("seeds", "guests", "harmed", "saved", "unkept", "kills", "starved_s", "spare_s", "reads_gib",
                    "swap_gib_s", "moves", "overrun_s", "reserve_s", "returned_gib", "owed_gib"):  # fmt: skip
            setattr(total, key, sum(getattr(row, key) for row in lot))
        for key in ("rest_moves", "gift", "half_s", "most_s"):
            known = [getattr(row, key) for row in lot if getattr(row, key) is not None]
            setattr(total, key, max(known) if known else None)
        whole.append(total)
    return whole


# ---------------------------------------------------------------- what each rule is worth


def ablations(seeds: Sequence[int], names: Sequence[str]) -> list[dict[str, Any]]:
    """Each rule switched off, on the worlds that it is for, or on *names*: what gets worse."""
    found = []
    for rule in (*switches(), "eager", "lazy"):
        own = names or aims.WORLDS_OF.get(rule, tuple(worlds.KINDS))
        red = _reds(rule, "auto", own, seeds)
        # Some rules protect those alone who asked for more than the default.
        found += red if red or rule in ("eager", "lazy") else _reds(rule, "eager", own, seeds)
    return found


def _reds(rule: str, tool: str, names: Sequence[str], seeds: Sequence[int]) -> list[dict[str, Any]]:
    without = rule if rule in ("eager", "lazy") else f"{tool} without {rule}"
    TOOLS[f"{tool} without {rule}"] = _without(rule, tool)
    rows = rows_of(names, seeds[:RULE_SEEDS], ("untouched", tool, without), 0.17)
    return [
        {"rule": rule, "tool": tool, "world": plain.world, **red}
        for plain, changed in zip(rows[1::3], rows[2::3])
        for red in aims.redder(changed, plain)
    ]


def _without(rule: str, tool: str) -> Callable[[], Tool]:
    return lambda: Kvmsched(f"{tool} without {rule}", {rule: False}, reclaim=None if tool == "auto" else tool)


def show_ablations(found: Sequence[dict[str, Any]]) -> None:
    print("what each rule is worth: with it switched off, what gets worse where (the gravest first)")
    for rule in (*switches(), "eager", "lazy"):
        worst = sorted((one for one in found if one["rule"] == rule), key=lambda one: -one["weight"])
        name = f"reclaim: {rule}" if rule in ("eager", "lazy") else f"without {rule}"
        print(f"  {name:22}" + ("" if worst else "NO WORLD TURNS RED"))
        for red in worst[:3]:
            where = red["world"] + (" (eager)" if red["tool"] == "eager" else "")
            change = " -> ".join(cell(red[key], "{:.2f}") for key in ("before", "after"))
            print(f"  {'':22}{where:24}{red['figure']:14}{change:>24}")
    print()


# ---------------------------------------------------------------- cost


MIB, GIB_KIB, EPOCH_S = 1024, 1024 * 1024, 1_000_000


def cost(sizes: Sequence[int]) -> list[dict[str, float]]:
    """CPU time of one decide() with a history, the best of several, for a host where one domain in ten is in need."""
    rows = []
    for size in sizes:
        snapshots = crowd(size)
        policy = MemoryPolicy()
        _plan, history = policy_room.decide(snapshots, policy)
        best_s = float("inf")
        moves = 0
        gc.collect()
        for _turn in range(30 if size <= 1000 else 7):
            began_s = time.process_time()
            plan, _history = policy_room.decide(snapshots, policy, history)
            best_s = min(best_s, time.process_time() - began_s)
            moves = len(plan.moves)
        rows.append({"domains": size, "moves": moves, "ms": best_s * 1000, "us_per_domain": best_s * 1e6 / size})
    return rows


def crowd(size: int) -> list[Snapshot]:
    rng = random.Random(size)
    domains = []
    for index in range(size):
        maximum = rng.choice([1, 2, 4, 8]) * GIB_KIB
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
    sizes = HostMemory(size * 8 * GIB_KIB, size * 2 * GIB_KIB)
    host = ModelHost("host", "host", "bench:///", "bench", Topology(()), memory=sizes)
    now = Snapshot(EPOCH_S + 1, EPOCH_S + 1, host, tuple(domains))
    older = tuple(replace(d, balloon=replace(d.balloon, last_update_s=EPOCH_S - 5)) for d in domains if d.balloon)
    return [replace(now, wall_s=EPOCH_S - 4, monotonic_s=EPOCH_S - 4, domains=older), now]


def show_cost(rows: Sequence[dict[str, float]]) -> None:
    print(f"{'domains':>8} {'moves':>7} {'decide ms':>10} {'us/domain':>10}")
    for row in rows:
        print(f"{row['domains']:8.0f} {row['moves']:7.0f} {row['ms']:10.2f} {row['us_per_domain']:10.1f}")
    print()


# ---------------------------------------------------------------- the command


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--quick", action="store_true", help="two seeds, our tools, no ablation: a minute")
    parser.add_argument("--tuning", action="store_true", help="the seeds that constants are chosen on")
    parser.add_argument("--world", help="only these worlds, by comma")
    parser.add_argument("--tools", help="only these tools, by comma; untouched is always one")
    parser.add_argument("--seeds", help="a seed, or how many of them: 7 or 1001-1003")
    parser.add_argument("--trace", action="store_true", help="say what the first tool does on the first world and seed")
    parser.add_argument("--no-ablation", action="store_true", help="don't switch safeties off")
    arguments = parser.parse_args()
    began_s = time.monotonic()
    seeds = _seeds(arguments)
    names = arguments.world.split(",") if arguments.world else list(worlds.KINDS)
    tools = tuple(TOOLS) if not arguments.quick else ("untouched", *OURS)
    if arguments.tools:
        tools = ("untouched", *(tool for tool in arguments.tools.split(",") if tool != "untouched"))
    if arguments.trace:
        run(worlds.draw(names[0], seeds[0]), Traced(TOOLS[(*tools[1:], *tools)[0]]()))
        return 0
    if arguments.quick and not arguments.world:
        names = [name for name in names if worlds.KINDS[name].most > 2]
    print(f"seeds {seeds[0]} to {seeds[-1]}, of worlds that take long fewer\n")
    rows = rows_of(names, seeds, tools, 0.17 if arguments.quick else 1.0)
    whole = together(rows)
    show([*rows, *whole])
    found: list[dict[str, Any]] = []
    if not (arguments.quick or arguments.no_ablation):
        found = ablations(seeds, names if arguments.world else ())
        show_ablations(found)
    costs = [] if arguments.world else cost((10, 100, 1000) if arguments.quick else (10, 100, 1000, 10000))
    if costs:
        show_cost(costs)
    aims.show_faults(rows)
    judged = aims.judge(rows, costs)
    aims.show(judged)
    print(f"\n{time.monotonic() - began_s:.0f} s")
    if arguments.json:
        figures = {
            "seeds": list(seeds),
            "worlds": {name: worlds.KINDS[name].text for name in names},
            "rows": [finite(asdict(row)) for row in (*rows, *whole)],
            "rules": [finite(red) for red in found],
            "cost": costs,
            "aims": [asdict(aim) for aim in judged],
        }
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 1 if any(aim.guards and not aim.met for aim in judged) else 0


def _seeds(arguments: argparse.Namespace) -> Sequence[int]:
    if arguments.seeds:
        first, _dash, last = arguments.seeds.partition("-")
        return range(int(first), int(last or first) + 1)
    if arguments.tuning:
        return TUNING
    return QUICK if arguments.quick else REPORTED


def finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: never is written as text."""
    return {key: "never" if value == float("inf") else value for key, value in row.items()}


if __name__ == "__main__":
    sys.exit(main())
