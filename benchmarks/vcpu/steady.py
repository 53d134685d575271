# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""500 frozen small hosts under steady load that are hard to get right, with their exact optimum.

Cases come from a fixed seed; their optimum, and what the policy reached before it was rebuilt, stand in
steady.json. With PYTHONPATH as bench_vcpu.py sets it, `python -m vcpu.steady optimum` (or `before`) writes
them anew, and `python -m vcpu.steady 17` shows what comes of one case.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from vcpu_worlds import topology

from .host import FakeHost, Foreign, Guest, Prices
from .loads import FINE_S, steady
from .play import play
from .rules import Daemon, Rule
from .sharing import Claim, Mask, share

SEED, CASES = 14, 500
PASSES = 120
_FILE = Path(__file__).with_name("steady.json")

# Served work within this part of the optimum is equal to it: then the least share counts.
EQUAL_PART = 0.01

# A single move that would serve this much more of a pCPU leaves one idle beside a full one.
IDLE = 0.25


class Reached(NamedTuple):
    """Work served in pCPUs, that of foreign load included, and the least part of its want that any vCPU gets."""

    served: float
    least: float


@dataclass(frozen=True)
class Case:
    """Guests by what their vCPUs want and where each is pinned; ``allowed`` by guest, foreign load by pCPU."""

    pcpus: int
    wants: Sequence[Sequence[float]]
    pins: Sequence[Sequence[int]]
    allowed: Sequence[Mask]
    weights: Sequence[float]
    backlog: Sequence[bool]
    foreign: Dict[int, float]

    def host(self) -> FakeHost:
        guests = [
            Guest(
                f"g{n}",
                list(wants),
                [frozenset({pin}) for pin in pins],
                weight=weight,
                backlog=backlog,
                fields={} if len(allowed) == self.pcpus else {"cpuset": allowed},
            )
            for n, (wants, pins, allowed, weight, backlog) in enumerate(
                zip(self.wants, self.pins, self.allowed, self.weights, self.backlog)
            )
        ]
        foreign = [Foreign(frozenset({pcpu}), load) for pcpu, load in self.foreign.items()]
        return FakeHost(topology(self.pcpus), guests, foreign, Prices(0.0))

    @property
    def vcpus(self) -> List[Tuple[int, float, float]]:
        """(guest, want, weight) of each vCPU; the weight as the kernel splits it."""
        return [
            (n, want, weight / (1 + sum(wants) - want))
            for n, (wants, weight) in enumerate(zip(self.wants, self.weights))
            for want in wants
        ]


def cases(count: int = CASES) -> List[Case]:
    rng = random.Random(SEED)
    return [_case(rng) for _each in range(count)]


def _case(rng: random.Random) -> Case:
    pcpus = rng.randint(2, 4)
    seats = rng.randint(pcpus + 1, 8)
    wants: List[List[float]] = []
    while seats:
        size = min(seats, rng.choice((1, 1, 1, 1, 1, 1, 2, 2, 4)))
        wants.append([_want(rng) for _each in range(size)])
        seats -= size
    everywhere = frozenset(range(pcpus))
    allowed = [
        frozenset(rng.sample(range(pcpus), rng.randint(2, pcpus))) if rng.random() < 0.15 else everywhere
        for _w in wants
    ]
    # Live pins pile up: the lower a pCPU's number, the likelier.
    pins = [[min(rng.choice(sorted(a)), rng.choice(sorted(a))) for _want in w] for a, w in zip(allowed, wants)]
    return Case(
        pcpus=pcpus,
        wants=wants,
        pins=pins,
        allowed=allowed,
        weights=[2.0 if rng.random() < 0.1 else 1.0 for _w in wants],
        backlog=[rng.random() < 0.5 for _w in wants],
        foreign={rng.randrange(pcpus): round(rng.uniform(0.2, 0.9), 2)} if rng.random() < 0.15 else {},
    )


def _want(rng: random.Random) -> float:
    kind = rng.random()
    if kind < 0.25:
        return 1.0
    return round(rng.uniform(0.3, 0.95) if kind < 0.65 else rng.uniform(0.03, 0.3), 2)


# ---------------------------------------------------------------- what pins come to


def reached(case: Case, pins: Sequence[Mask]) -> Reached:
    """What vCPUs get under *pins*, in the order of ``case.vcpus``."""
    claims = [Claim(want, weight, pin) for (_guest, want, weight), pin in zip(case.vcpus, pins)]
    others = [Claim(load, 1.0, frozenset({pcpu})) for pcpu, load in case.foreign.items()]
    runs = share([*claims, *others]).runs
    return Reached(sum(runs), min(run / claim.want for run, claim in zip(runs, claims)))


def best(case: Case) -> Reached:
    """The most work that any pins serve, and the greatest least share among pins that serve as much."""
    tables = [_subsets(case, pcpu) for pcpu in range(case.pcpus)]
    most = _most_served(tables, 0.0)
    assert most is not None
    levels = sorted({value.least for subsets in tables for value in subsets.values()})
    low, high = 0, len(levels) - 1
    while low < high:
        middle = (low + high + 1) // 2
        served = _most_served(tables, levels[middle])
        if served is not None and served >= most * (1 - EQUAL_PART):
            low = middle
        else:
            high = middle - 1
    return Reached(most, levels[low])


def _subsets(case: Case, pcpu: int) -> Dict[int, Reached]:
    """What each set of vCPUs (as bits) comes to on *pcpu*, but for those with a vCPU that may not run there."""
    vcpus = case.vcpus
    place = frozenset({pcpu})
    usable = sum(1 << i for i, (guest, _want, _weight) in enumerate(vcpus) if pcpu in case.allowed[guest])
    foreign = [Claim(case.foreign[pcpu], 1.0, place)] if pcpu in case.foreign else []
    found = {0: Reached(case.foreign.get(pcpu, 0.0), 1.0)}
    for bits in range(1, 1 << len(vcpus)):
        if bits & ~usable:
            continue
        chosen = [Claim(want, weight, place) for i, (_g, want, weight) in enumerate(vcpus) if bits >> i & 1]
        runs = share([*chosen, *foreign]).runs
        found[bits] = Reached(sum(runs), min(run / claim.want for run, claim in zip(runs, chosen)))
    return found


def _most_served(tables: Sequence[Dict[int, Reached]], least: float) -> Optional[float]:
    """The most work that can be served if no vCPU gets less than *least* of what it wants."""
    usable = [{b: v.served for b, v in table.items() if v.least >= least - 1e-9} for table in tables]
    so_far = usable[0]
    for table in usable[1:]:
        merged: Dict[int, float] = {}
        for old, served in so_far.items():
            for bits, more in table.items():
                if not old & bits:
                    both = old | bits
                    if served + more > merged.get(both, -1.0):
                        merged[both] = served + more
        so_far = merged
    return so_far.get(_all(tables))


def _all(tables: Sequence[Dict[int, Reached]]) -> int:
    bits = 0
    for table in tables:
        for key in table:
            bits |= key
    return bits


def idles(case: Case, pins: Sequence[Mask]) -> bool:
    """Whether one single move would serve much more: a pCPU idles beside a full one."""
    now = reached(case, pins).served
    for index, (guest, _want, _weight) in enumerate(case.vcpus):
        for pcpu in case.allowed[guest]:
            moved = [frozenset({pcpu}) if i == index else pin for i, pin in enumerate(pins)]
            if reached(case, moved).served >= now + IDLE:
                return True
    return False


# ---------------------------------------------------------------- playing


class Outcome(NamedTuple):
    reached: Reached
    idles: bool
    restless: bool


def outcome(case: Case, make: Callable[[], Rule]) -> Outcome:
    """What a rule comes to in ten minutes; ``restless``: it still moved something in the last five."""
    host, rule = case.host(), make()
    wants = [want for guest in case.wants for want in guest]
    play(host, steady(wants, PASSES // 2), rule, FINE_S)
    late = play(host, steady(wants, PASSES // 2), rule, FINE_S)
    pins = [host.real_mask(guest, n) for guest in host.guests for n in range(len(guest.wants))]
    return Outcome(reached(case, pins), idles(case, pins), late.moves + late.placed > 0)


@dataclass
class Excess:
    """How far *outcomes* are from the optimum, in percent of it: served work, and least share where work is equal."""

    served: float
    served_p99: float
    least: float
    idle: int
    restless: int

    @classmethod
    def of(cls, optima: Sequence[Reached], outcomes: Sequence[Outcome]) -> Excess:
        missed = [100 * max(0.0, 1 - o.reached.served / b.served) for b, o in zip(optima, outcomes)]
        unfair = [
            100 * max(0.0, 1 - o.reached.least / b.least)
            for b, o in zip(optima, outcomes)
            if o.reached.served >= b.served * (1 - EQUAL_PART)
        ]
        return cls(
            served=sum(missed) / len(missed),
            served_p99=sorted(missed)[int(0.99 * (len(missed) - 1))],
            least=sum(unfair) / max(1, len(unfair)),
            idle=sum(o.idles for o in outcomes),
            restless=sum(o.restless for o in outcomes),
        )


def optima(count: int = CASES) -> List[Reached]:
    return [Reached(*values) for values in json.loads(_FILE.read_text(encoding="utf-8"))["optimum"][:count]]


def before(count: int = CASES) -> List[Outcome]:
    """What the policy reached before it was rebuilt."""
    kept = json.loads(_FILE.read_text(encoding="utf-8"))["before"][:count]
    return [Outcome(Reached(served, least), bool(idle), bool(moved)) for served, least, idle, moved in kept]


def _write(what: str) -> None:
    data = json.loads(_FILE.read_text(encoding="utf-8")) if _FILE.exists() else {}
    if what == "optimum":
        data["optimum"] = [[round(value, 4) for value in best(case)] for case in cases()]
    else:
        outcomes = [outcome(case, Daemon) for case in cases()]
        data["before"] = [
            [round(o.reached.served, 4), round(o.reached.least, 4), int(o.idles), int(o.restless)] for o in outcomes
        ]
    lines = ",\n".join(f'"{key}": {json.dumps(rows)}' for key, rows in sorted(data.items()))
    _FILE.write_text("{\n" + lines.replace("], [", "],\n[") + "\n}\n", encoding="utf-8")


def _show(number: int) -> None:
    case = cases(number + 1)[number]
    print(case)
    print("optimum", best(case), "at the start", reached(case, [frozenset({p}) for pins in case.pins for p in pins]))
    rule = Daemon()
    host = case.host()
    play(host, steady([want for guest in case.wants for want in guest], PASSES), rule, FINE_S)
    pins = [pin for guest in host.guests for pin in guest.pins]
    print("after ten minutes", reached(case, pins), "on", [sorted(pin) for pin in pins])
    print("\n".join(dict.fromkeys(rule.notes)))


if __name__ == "__main__":
    if sys.argv[1].isdigit():
        _show(int(sys.argv[1]))
    else:
        _write(sys.argv[1])
