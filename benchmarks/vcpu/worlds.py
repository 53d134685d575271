# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Small hosts that each show one thing, with a steady or a noisy load of some minutes."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Callable, Dict, List, Optional, Sequence, Tuple

from kvmsched.model import PinRecord, Record
from vcpu_worlds import topology

from .host import BEGAN_S, HOST_UUID, FakeHost, Foreign, Guest, Prices
from .loads import FINE_S, Rows, noisy, steady
from .play import Score, play
from .rules import Rule
from .sharing import Mask

MINUTES_10 = 120


@dataclass
class World:
    """A host that is made anew for each rule, and its load; the first *settle* of the *steps* are for settling."""

    name: str
    build: Callable[[], FakeHost]
    steps: int = MINUTES_10
    settle: int = MINUTES_10 // 2
    rows: Optional[Callable[[], Rows]] = None

    def play(self, rule: Rule) -> Score:
        """What *rule* brought once there was time to settle."""
        _first, second, _host = self.parts(rule)
        return second

    @property
    def pcpus(self) -> int:
        return len(self.build().topology.pcpus)

    def parts(self, rule: Rule) -> Tuple[Score, Score, FakeHost]:
        host = self.build()
        rows = self.rows() if self.rows else steady([want for guest in host.guests for want in guest.wants], self.steps)
        first = play(host, [row[: self.settle] for row in rows], rule, FINE_S, settle_s=0.0)
        rule.restart()
        return first, play(host, [row[self.settle :] for row in rows], rule, FINE_S, settle_s=0.0), host


def on(*pcpus: int) -> Mask:
    return frozenset(pcpus)


def hogs(count: int, pin: Mask, prefix: str, **more: object) -> List[Guest]:
    """*count* guests of one vCPU that want all they can get."""
    return [Guest(f"{prefix}{n}", [1.0], [pin], **more) for n in range(count)]  # type: ignore[arg-type]


# ---------------------------------------------------------------- where pins must pay


def pins_pay() -> List[World]:
    """Worlds in which pins serve at least 5 % more than the host left alone."""
    everywhere, first = on(*range(8)), on(*range(4))
    return [
        World("piled-up live pins", lambda: FakeHost(topology(8), [*hogs(3, on(0), "a"), *hogs(3, on(1), "b")])),
        World(
            "fenced into an overfull set",
            lambda: FakeHost(topology(8, llc=4), [*hogs(8, first, "a"), Guest("calm", [0.1, 0.1], [on(4), on(5)])]),
        ),
        World("away from its memory, factor 1.3", lambda: away(1.3)),
        World(
            "isolated cores",
            lambda: FakeHost(
                topology(8, isolated="4-7"),
                [
                    Guest("fast", [1.0] * 4, [on(4, 5, 6, 7)] * 4, fields={"cpuset": on(4, 5, 6, 7)}),
                    Guest("calm", [0.2, 0.2], [everywhere - on(4, 5, 6, 7)] * 2),
                ],
            ),
        ),
        World(
            "SMT neighbours",
            lambda: FakeHost(topology(8, threads=2), [Guest(f"v{n}", [1.0], [on(n)]) for n in range(4)]),
        ),
        crosswise(),
        World(
            "weak pCPUs beside idle strong ones",
            lambda: FakeHost(topology(8, weak="4-7"), [Guest(f"v{n}", [1.0], [on(4 + n)]) for n in range(4)]),
        ),
    ]


def crosswise() -> World:
    """Guests with two cores of two threads, pinned so that threads of different cores share one of the host.

    Each guest has two busy threads of work, and lays them on different cores, each time on any thread of these.
    """

    def rows() -> Rows:
        rng = random.Random(1)
        found: List[List[float]] = [[] for _vcpu in range(8)]
        for _step in range(MINUTES_10):
            for core in range(4):
                busy = rng.randrange(2)
                for thread in range(2):
                    found[2 * core + thread].append(float(thread == busy))
        return found

    def build() -> FakeHost:
        pins = [0, 2, 1, 3]
        guests = [
            Guest(f"g{n}", [0.5] * 4, [on(4 * n + pin) for pin in pins], fields={"guest_threads": 2}) for n in range(2)
        ]
        return FakeHost(topology(8, threads=2), guests)

    return World("guest threads crosswise on cores", build, rows=rows)


def away(factor: float) -> FakeHost:
    """Floating hogs whose memory is bound to one of two cells, each of which has room for its own."""
    cells = [on(*range(4)), on(*range(4, 8))]
    guests = [
        Guest(f"c{c}-{n}", [1.0], [on(*range(8))], cell=c, fields={"numa_pcpus": cells[c]})
        for c in range(2)
        for n in range(3)
    ]
    return FakeHost(topology(8, cells=2), guests, prices=Prices(1.0, factor))


# ---------------------------------------------------------------- where nothing should move


NOISE_STEPS, NOISE_SETTLE = 500, 100


def noise(part: float, lasts_s: float, seed: int) -> World:
    """85 % load on 4 pCPUs by 20 vCPUs, pinned evenly by their means, with noise on top."""
    rng = random.Random(seed)
    means = [rng.uniform(0.05, 0.4) for _each in range(20)]
    means = [mean * 0.85 * 4 / sum(means) for mean in means]
    level = [0.0] * 4
    pins: Dict[int, Mask] = {}
    for number in sorted(range(20), key=lambda n: -means[n]):
        pcpu = level.index(min(level))
        level[pcpu] += means[number]
        pins[number] = on(pcpu)

    def build() -> FakeHost:
        return FakeHost(topology(4), [Guest(f"v{n}", [means[n]], [pins[n]]) for n in range(20)])

    kind = f"lasting {lasts_s:.0f} s" if lasts_s else "white"
    return World(kind, build, NOISE_STEPS, NOISE_SETTLE, lambda: noisy(rng_of(seed), means, NOISE_STEPS, part, lasts_s))


def rng_of(seed: int) -> random.Random:
    return random.Random(seed + 1000)


# ---------------------------------------------------------------- who gets how much where all is full


def fairness() -> List[World]:
    """Full hosts on which only shares can be made better."""
    return [
        World("[1,1,1] | [1]", lambda: FakeHost(topology(2), [*hogs(3, on(0), "a"), *hogs(1, on(1), "b")])),
        World(
            "4-vCPU hog alone, small hogs share",
            lambda: FakeHost(topology(2), [Guest("big", [1.0] * 4, [on(0)] * 4), *hogs(2, on(1), "s")]),
        ),
        World(
            "4-vCPU hog everywhere, two small ones on one",
            lambda: FakeHost(
                topology(4),
                [
                    Guest("big", [1.0] * 4, [on(n) for n in range(4)]),
                    *hogs(2, on(0), "s"),
                    *hogs(1, on(1), "t"),
                    *hogs(1, on(2), "u"),
                ],
            ),
        ),
    ]


# What the worst-served guest gets of one pCPU under the best pins, found by trying them all.
BEST_SHARES = {
    "[1,1,1] | [1]": 0.5,
    "4-vCPU hog alone, small hogs share": 0.5,
    "4-vCPU hog everywhere, two small ones on one": 0.8,
}


def guest_shares(host: FakeHost, score: Score) -> Dict[str, float]:
    """What each guest worked, in pCPUs, for its weight."""
    shares: Dict[str, float] = {}
    position = 0
    for guest in host.guests:
        part = score.by_vcpu[position : position + len(guest.wants)]
        shares[guest.name] = sum(worked for _wanted, worked in part) / score.seconds / guest.weight
        position += len(guest.wants)
    return shares


# ---------------------------------------------------------------- an upgrade


def upgraded(vcpus: int = 60, pcpus: int = 8) -> FakeHost:
    """Guests that floated, and that an earlier version pinned: each has its record."""
    everywhere = on(*range(pcpus))
    guests = [
        Guest(f"g{n}", [0.03 + 0.04 * (n % 3)] * 2, [on((2 * n + k) % pcpus) for k in range(2)])
        for n in range(vcpus // 2)
    ]
    host = FakeHost(topology(pcpus), guests)
    for number, guest in enumerate(guests, 1):
        pins = tuple(
            PinRecord("vcpu", n, everywhere, everywhere, pin, int(BEGAN_S) - 86_400) for n, pin in enumerate(guest.pins)
        )
        host.records[guest.uuid] = Record(HOST_UUID, number, pins=pins)
    return host


def floating_again(host: FakeHost) -> int:
    """How many vCPUs may run everywhere."""
    return sum(pin == host.topology.online for guest in host.guests for pin in guest.pins)


# ---------------------------------------------------------------- what was found wrong


def bursty(seed: int) -> World:
    """Six floating guests of one vCPU on two pCPUs, each busy for some seconds and then calm."""

    def rows() -> Rows:
        rng = random.Random(seed)
        result = []
        for _guest in range(6):
            row: List[float] = []
            while len(row) < 2 * MINUTES_10:
                row += [rng.choice((0.05, 0.1, 0.15, 0.9))] * rng.randint(2, 6)
            result.append(row[: 2 * MINUTES_10])
        return result

    def build() -> FakeHost:
        return FakeHost(topology(2), [Guest(f"g{n}", [0.0], [on(0, 1)]) for n in range(6)])

    return World("bursty floating guests", build, 2 * MINUTES_10, MINUTES_10, rows)


def steady_case(name: str, wants: Sequence[float], where: Sequence[int], pcpus: int) -> World:
    """Guests of one vCPU with live pins and steady wants."""

    def build() -> FakeHost:
        return FakeHost(topology(pcpus), [Guest(f"v{n}", [w], [on(p)]) for n, (w, p) in enumerate(zip(wants, where))])

    return World(name, build)


def storage() -> World:
    """Storage daemons confined to pCPUs 0-3, which they keep 95 % busy; the guests on 4-7 are fully served."""

    def build() -> FakeHost:
        daemons = [Foreign(on(0, 1, 2, 3), 0.95, weight=4.0) for _each in range(4)]
        return FakeHost(topology(8), [Guest(f"v{n}", [0.45], [on(4 + n % 4)]) for n in range(8)], daemons)

    return World("storage on a set", build)


def complaints() -> List[Tuple[str, World]]:
    """The hosts on which an earlier version did harm: floats, an idle pCPU beside a full one, foreign load."""
    cases = [
        ("two hogs on one, 46 % on the other", [1.0, 1.0, 0.46], [0, 0, 1]),
        ("100 % and 70 % on one, 50 % on the other", [1.0, 0.7, 0.5], [0, 0, 1]),
        ("8, 92, 55 % on one, 58 % on the other", [0.08, 0.92, 0.55, 0.58], [0, 0, 0, 1]),
    ]
    return [
        ("bursty floating guests, 6 on 2", bursty(1)),
        *((name, steady_case(name, wants, where, 2)) for name, wants, where in cases),
        ("storage on a set of 4 of 8", storage()),
    ]
