# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host with ballooned guests, second by second: what every memory policy of the benchmark is run in.

The guests' model: anonymous memory by a function of time, page cache that fills what is left up to a
limit, swap for what does not fit, a balloon of limited speed, statistics that are read now and then.
All sizes are MiB. What is left out: the host's own swap, KSM, free page reporting, NUMA.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Callable, Optional, Protocol, Sequence

GIB = 1024

# What the guest's kernel keeps: usable memory is what is free or cache, less its watermarks.
KERNEL = 60
WATERMARK = 30
# QEMU's own memory differs from guest to guest.
OVERHEAD = (40, 90)
SWAP_SIZE = 4 * GIB
# Per second: a balloon (1.7 GiB/s was published for an idle guest), swap, and cache that is read from disk.
INFLATE = 1000
DEFLATE = 4000
SWAP_IN = 250
CACHE_FILL = 100
# A guest that was killed starts again and needs little for a while.
RESTART_S = 60


@dataclass
class Guest:
    """One guest; ``demand`` is the anonymous memory that it wants at a time in seconds."""

    name: str
    demand: Callable[[int], float]
    maximum: float = 8 * GIB
    minimum: float = 1 * GIB
    actual: float = 4.5 * GIB
    cache_limit: float = 1 * GIB
    weight: float = 1.0
    inflate: float = INFLATE
    stuck: bool = False
    silent_from_s: Optional[int] = None
    target: float = 0
    wanted: float = 0
    swapped: float = 0
    cache: float = 0
    touched: float = 0
    overhead: float = 0
    swap_in: float = 0
    swap_out: float = 0
    killed_s: Optional[int] = None
    kills: int = 0
    deltas: list[tuple[int, float]] = field(default_factory=list)
    # The last reading of the guest's driver: when, unused, usable, swapped, swap_in, swap_out.
    reading: tuple[int, float, float, float, float, float] = (0, 0, 0, 0, 0, 0)

    def __post_init__(self) -> None:
        self.target = self.actual
        self.touched = self.actual

    @property
    def capacity(self) -> float:
        return self.actual - KERNEL

    @property
    def resident(self) -> float:
        return self.wanted - self.swapped

    @property
    def unused(self) -> float:
        return max(0.0, self.capacity - self.resident - self.cache)

    @property
    def usable(self) -> float:
        return max(0.0, self.capacity - self.resident - WATERMARK)

    @property
    def rss(self) -> float:
        return min(self.touched, self.actual) + self.overhead

    def step(self, now_s: int, noise: float) -> None:
        """One second."""
        self._balloon()
        down = self.killed_s is not None and now_s - self.killed_s < RESTART_S
        self.wanted = max(100.0, 300.0 if down else self.demand(now_s) + noise)
        held = min(self.swapped, self.wanted)
        need = max(0.0, self.wanted - self.capacity)
        if need > held:
            self.swap_out += need - held
            self.swapped = need
        else:
            back = min(held - need, SWAP_IN)
            self.swap_in += back
            self.swapped = held - back
        if need > 0:
            # It touches what is out as much as what is in.
            thrash = min(self.swapped, 64.0)
            self.swap_in += thrash
            self.swap_out += thrash
        if self.swapped > SWAP_SIZE:
            self.kills, self.killed_s, self.swapped = self.kills + 1, now_s, 0.0
            self.wanted = 300.0
        room = max(0.0, self.capacity - self.resident)
        self.cache = min(room, self.cache_limit, self.cache + CACHE_FILL)
        self.touched = max(min(self.touched, self.actual), self.resident + self.cache + KERNEL)

    def _balloon(self) -> None:
        if not self.stuck:
            self.actual += max(-self.inflate, min(DEFLATE, self.target - self.actual))

    def read(self, now_s: int) -> None:
        if self.silent_from_s is None or now_s < self.silent_from_s:
            self.reading = (now_s, self.unused, self.usable, self.swapped, self.swap_in, self.swap_out)


@dataclass
class Host:
    """The world of one run; ``history`` holds a row of figures for each second."""

    guests: Sequence[Guest]
    total: float = 32 * GIB
    other: float = 2 * GIB
    now_s: int = 0
    commands: int = 0

    @property
    def available(self) -> float:
        return self.total - self.other - sum(guest.rss for guest in self.guests)

    def set_target(self, guest: Guest, target: float) -> None:
        if abs(target - guest.target) < 0.5:
            return
        guest.deltas.append((self.now_s, target - guest.target))
        guest.target = max(KERNEL, min(target, guest.maximum))
        self.commands += 1


class Tool(Protocol):
    """A policy under test: called every second, reads ``Guest.reading`` and sets targets."""

    name: str
    stats_s: int

    def tick(self, host: Host) -> None: ...


@dataclass
class Scenario:
    """``watch`` names the guest whose relief is timed from ``peak_s`` on; ``calm_s`` when demand is steady."""

    name: str
    build: Callable[[random.Random], Host]
    seconds: int
    watch: Optional[str] = None
    peak_s: int = 0
    steady: bool = False
    short: bool = False


@dataclass
class Figures:
    """What one run came to; None: the scenario does not ask."""

    relief_s: Optional[float] = None
    swap_gib_s: float = 0.0
    kills: int = 0
    overrun_s: int = 0
    reserve_s: int = 0
    reversals: Optional[int] = None
    commands: int = 0
    jain: Optional[float] = None
    returned_gib: float = 0.0


WARM_UP_S = 120


def run(scenario: Scenario, tool: Tool, seed: int, reserve: float, starvation: float = 150) -> Figures:
    """Run *tool* through *scenario*; the same seed gives every tool the same guests and the same noise."""
    rng = random.Random(f"{scenario.name} {seed}")
    host = scenario.build(rng)
    noise = dict.fromkeys((guest.name for guest in host.guests), 0.0)
    for guest in host.guests:
        guest.overhead = rng.uniform(*OVERHEAD)
    phases = {guest.name: rng.randrange(60) for guest in host.guests}
    figures = Figures()
    shares: list[float] = []
    allocated = 0.0
    for now_s in range(1, scenario.seconds + 1):
        host.now_s = now_s
        for guest in host.guests:
            noise[guest.name] = 0.8 * noise[guest.name] + rng.gauss(0, 6)
            guest.step(now_s, noise[guest.name])
            if (now_s + phases[guest.name]) % tool.stats_s == 0:
                guest.read(now_s)
        tool.tick(host)
        figures.swap_gib_s += sum(guest.swapped for guest in host.guests) / GIB
        figures.overrun_s += host.available < 0
        figures.reserve_s += host.available < reserve - 1
        allocated += sum(guest.actual for guest in host.guests)
        if scenario.short and now_s > scenario.seconds // 2:
            shares.append(jain([min(1.0, g.capacity / (g.wanted * g.weight)) for g in host.guests]))
        if scenario.watch and figures.relief_s is None and now_s >= scenario.peak_s:
            watched = next(guest for guest in host.guests if guest.name == scenario.watch)
            if watched.swapped == 0 and watched.usable >= starvation and not watched.kills:
                figures.relief_s = now_s - scenario.peak_s
    figures.kills = sum(guest.kills for guest in host.guests)
    figures.commands = host.commands
    if scenario.steady:
        figures.reversals = sum(turns(guest) for guest in host.guests)
    if scenario.watch and figures.relief_s is None:
        figures.relief_s = float("inf")
    figures.jain = sum(shares) / len(shares) if shares else None
    figures.returned_gib = (sum(g.maximum for g in host.guests) - allocated / scenario.seconds) / GIB
    return figures


def turns(guest: Guest) -> int:
    """How often the guest's target changed its direction after the warm-up, by 32 MiB or more."""
    signs = [delta > 0 for now_s, delta in guest.deltas if now_s > WARM_UP_S and abs(delta) >= 32]
    return sum(a != b for a, b in zip(signs, signs[1:]))


def jain(shares: Sequence[float]) -> float:
    """Jain's index of fairness: 1 where all have the same share. (Jain, Chiu, Hawe: DEC-TR-301, 1984.)"""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 1.0


# ---------------------------------------------------------------- demand


def constant(mib: float) -> Callable[[int], float]:
    return lambda _now_s: mib


def ramp(low: float, high: float, start_s: int, length_s: int) -> Callable[[int], float]:
    return lambda now_s: low + (high - low) * min(1.0, max(0.0, (now_s - start_s) / length_s))


def wave(low: float, high: float, period_s: int, phase: float) -> Callable[[int], float]:
    """Back and forth between *low* and *high*, each a third of the period, with ramps between."""

    def demand(now_s: int) -> float:
        place = (now_s / period_s + phase) % 1.0
        rise = min(1.0, place * 6) if place < 0.5 else max(0.0, 1.0 - (place - 0.5) * 6)
        return low + (high - low) * rise

    return demand


def _idle(rng: random.Random, count: int, first: int = 0, **more: float) -> list[Guest]:
    return [Guest(f"g{first + i}", constant(rng.uniform(700, 1500)), **more) for i in range(count)]


def steady_host(rng: random.Random) -> Host:
    return Host(_idle(rng, 6))


def spike_host(rng: random.Random) -> Host:
    """+5 GiB in 10 s, 300 s after the start."""
    return Host([Guest("hog", ramp(rng.uniform(900, 1100), 6100, 300, 10)), *_idle(rng, 5, 1)])


def ramp_host(rng: random.Random) -> Host:
    return Host([Guest("hog", ramp(rng.uniform(900, 1100), 6100, 300, 100)), *_idle(rng, 5, 1)])


def overload_host(rng: random.Random) -> Host:
    """All want 6 GiB of 30, at about the same time."""
    return Host([Guest(f"g{i}", ramp(1000, 6100, rng.randrange(60, 75), 60)) for i in range(6)])


def late_host(rng: random.Random) -> Host:
    """All want 6 GiB of 30, one after the other: the last finds what the others left."""
    return Host([Guest(f"g{i}", ramp(1000, 6100, 60 + 40 * i + rng.randrange(20), 60)) for i in range(6)])


def antiphase_host(rng: random.Random) -> Host:
    """Each between 1 and 5 GiB and back in 150 s, out of step with the others."""
    return Host([Guest(f"g{i}", wave(1000, 5000, 150, i / 6 + rng.uniform(-0.03, 0.03))) for i in range(6)])


def stuck_host(rng: random.Random) -> Host:
    """A full host: one idle guest does not follow its balloon, while another guest ramps up."""
    idle = _idle(rng, 5, 1, actual=5 * GIB)
    idle[0].stuck = True
    return Host([Guest("hog", ramp(rng.uniform(900, 1100), 7000, 300, 60), actual=2.5 * GIB), *idle])


def slow_host(rng: random.Random) -> Host:
    """As before, but all balloons are slow: what is taken arrives long after it was asked for."""
    idle = _idle(rng, 5, 1, actual=5 * GIB, inflate=40)
    return Host([Guest("hog", ramp(rng.uniform(900, 1100), 5500, 10, 40), actual=2.5 * GIB), *idle])


def stale_host(rng: random.Random) -> Host:
    """One guest stops answering while it idles, and needs its memory afterwards."""
    silent = Guest("hog", ramp(1000, 3800, 400, 60), silent_from_s=20)
    return Host([silent, *_idle(rng, 5, 1)])


def mixed_host(rng: random.Random) -> Host:
    """Twelve guests of 1 to 16 GiB, some with a warm cache, in waves; all at their peaks need 24 of 30 GiB."""
    maxima = [rng.choice([1, 2, 4, 8, 16]) * GIB for _each in range(12)]
    peaks = [rng.uniform(0.3, 0.7) * maximum for maximum in maxima]
    scale = min(1.0, 24 * GIB / sum(peaks))
    guests = []
    for i, (maximum, peak) in enumerate(zip(maxima, peaks)):
        low = max(200.0, 0.3 * peak * scale)
        demand = wave(low, max(low + 50, peak * scale), rng.randrange(120, 400), rng.random())
        size = min(maximum, peak * scale + 150)
        limit = rng.uniform(0.05, 0.5) * maximum
        guests.append(Guest(f"g{i}", demand, maximum, max(128.0, 0.1 * maximum), size, limit))
    return Host(guests)


SCENARIOS = (
    Scenario("steady", steady_host, 900, steady=True),
    Scenario("spike", spike_host, 600, watch="hog", peak_s=310),
    Scenario("ramp", ramp_host, 700, watch="hog", peak_s=400),
    Scenario("overload", overload_host, 900, short=True),
    Scenario("late", late_host, 900, short=True),
    Scenario("antiphase", antiphase_host, 900),
    Scenario("stuck", stuck_host, 700, watch="hog", peak_s=360),
    Scenario("slow", slow_host, 400, watch="hog", peak_s=50),
    Scenario("stale", stale_host, 700),
    Scenario("mixed", mixed_host, 900),
)
