# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Worlds that show one fault each of kvmsched's first default, which was to take whatever serves nothing."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

from kvmsched.config import MemorySettings
from kvmsched.units import parse_amount

from .drawing import RATES, demand, idle, kind, plain, told
from .host import GIB, CellSpec, Spec, World


@kind("M1")
def burst(rng: Random, seed: int) -> World:
    """One guest of 8G without swap, 800M used, alone beside 20G free: after 200 s of idleness it allocates 2,000M
    at 40 to 1,000 MiB/s, some also with 5 %/10 % thresholds, later 1.5G every 5 minutes."""
    seconds = 1500
    bursts = [(200 + rng.randrange(10), 500, 2000.0)]
    bursts += [(start + rng.randrange(20), start + 120, 1500.0) for start in range(600, 1500, 300)]
    guest = Spec(
        "burst", demand(rng, seconds, 800, more=bursts), 8 * GIB, 8 * GIB, rate=RATES[seed % 6], idle=800, **plain(rng)
    )
    return World("burst", seed, seconds, (guest,), 32 * GIB, (4 * GIB,), fits=True)


@kind("M1")
def storm(rng: Random, seed: int) -> World:
    """Six to twelve guests of 2 to 16G without swap on a host that holds them all, idle for 10 minutes: then each
    allocates 30 to 60 % of its size, all in the same second, at 40 to 1,000 MiB/s."""
    seconds, guests = 1500, []
    for i in range(rng.randrange(6, 13)):
        size = rng.choice((2, 4, 8, 16)) * GIB
        used = size * rng.uniform(0.1, 0.3)
        more = [(start, start + 150, size * rng.uniform(0.3, 0.6)) for start in (600, 900, 1200)]
        wanted = demand(rng, seconds, used, size * rng.uniform(0.001, 0.01), more)
        guests.append(Spec(f"g{i}", wanted, size, size, rate=rng.choice(RATES), idle=used, **told(rng)))
    total = sum(guest.size for guest in guests) * 1.15 + 3 * GIB
    return World("storm", seed, seconds, tuple(guests), total, fits=True)


@kind("M2")
def cache(rng: Random, seed: int) -> World:
    """One guest of 16 to 64G that reads files of half its size again and again at 50 to 200 MiB/s, alone on a host
    of four times its size: its cache is cold, and its disk gives 50 to 200 MiB/s."""
    seconds = 1800
    size = rng.choice((16, 32, 64)) * GIB
    guest = Spec(
        "files", demand(rng, seconds, size * 0.08, 20), size, size, files=size * rng.uniform(0.4, 0.6), warm=0.1,
        reads=rng.uniform(50, 200), disk=rng.uniform(50, 200), touched=0.2, **plain(rng),
    )  # fmt: skip
    return World("cache", seed, seconds, (guest,), 4 * size, (4 * GIB,), fits=True)


@kind("M2")
def caches(rng: Random, seed: int) -> World:
    """Six guests of 8G with 3G of warm files each, read at 20 to 100 MiB/s, and a job of 1 to 3G that comes and
    goes every 5 minutes; the host has room for all."""
    seconds, guests = 1800, []
    for i in range(6):
        begin = rng.randrange(300)
        jobs = [(start, start + 100, rng.uniform(1, 3) * GIB) for start in range(begin, seconds, 300)]
        guests.append(
            Spec(
                f"g{i}", demand(rng, seconds, 1 * GIB, 15, jobs), 8 * GIB, 8 * GIB, rate=rng.choice(RATES), idle=GIB,
                files=3 * GIB, reads=rng.uniform(20, 100), disk=150, swap=rng.choice((0, 2 * GIB)), **plain(rng),
            )
        )  # fmt: skip
    return World("caches", seed, seconds, tuple(guests), 56 * GIB, fits=True)


@kind("M3")
def one_reading(rng: Random, seed: int) -> World:
    """A guest of 4 to 64G, alone with plenty, falls short of the policy's line (150M, for odd seeds 5 % of its
    size) by a fifth to four fifths of it; statistics every 5 or 10 s. Each gift raises its size before the next
    reading."""
    seconds = 400
    size = rng.choice((4, 8, 16, 32, 64)) * GIB
    line = size * 0.05 if seed % 2 else 150.0
    held = size * 0.6
    stats = rng.choice((5, 10))
    base = held - 60 - 2.5 * line
    wanted = demand(rng, seconds, base, 3, [(150, seconds, line * rng.uniform(1.7, 2.2))])
    guest = Spec(
        "short", wanted, size, held, rate=rng.choice((20.0, 60.0, 200.0)), idle=base, stats_s=stats,
        phase_s=rng.randrange(stats),
    )  # fmt: skip
    settings = _percent() if seed % 2 else {}
    return World("one_reading", seed, seconds, (guest,), 4 * size, settings=settings, comfort=2 * line)


def _percent() -> dict[str, Any]:
    return {"settings": MemorySettings(starvation=parse_amount("5%"), waste=parse_amount("10%"))}


@kind("M4")
def promise(rng: Random, seed: int) -> World:
    """A guest of 80 to 85 % of the host, without a driver, has touched a tenth; another one comes to lack 15 to 40M
    of its programs, beside half the host free. Two hold caches, three are idle until they burst within their
    sizes. The first touches no more."""
    seconds = 900
    total = rng.choice((32, 64, 96)) * GIB
    large = total * rng.uniform(0.8, 0.85)
    huge = Spec("promised", demand(rng, seconds, large * 0.1), large, large, touched=0.1, driver=False)
    size = total * 0.04
    content = size - 60 - 10 - 600
    lacks = 600 - rng.uniform(100, 125)
    starved = Spec(
        "starved", demand(rng, seconds, content, 2, [(120, seconds, lacks)]), 2 * size, size, rate=50, idle=content,
        hot=140, **plain(rng),
    )  # fmt: skip
    others = [
        Spec(
            f"cache{i}", demand(rng, seconds, size * 0.3), 2 * size, size, files=size * 0.55, reads=30, touched=0.95,
            **plain(rng),
        )
        for i in range(2)
    ]  # fmt: skip
    for i in range(3):
        more = [(500 + rng.randrange(100), 700, size * 0.55)]
        wanted = demand(rng, seconds, size * 0.25, 6, more)
        others.append(Spec(f"idle{i}", wanted, size, size, rate=rng.choice(RATES), idle=size * 0.25, **plain(rng)))
    return World("promise", seed, seconds, (huge, starved, *others), total, watch="starved", watch_s=130)


@kind("M5")
def deaf(rng: Random, seed: int) -> World:
    """The balloon of one guest in need does not follow; a neighbour of 7G without swap uses 1.6 and grows later,
    step by step, beside 3 to 6G free."""
    seconds = 1500
    stuck = Spec(
        "deaf", demand(rng, seconds, 7.2 * GIB, 10, [(60, seconds, 900.0)]), 32 * GIB, 8 * GIB, swap=4 * GIB,
        follows_s=0, rate=50, **plain(rng),
    )  # fmt: skip
    steps = [(start, seconds, 500.0) for start in range(500, 1300, rng.randrange(90, 140))]
    grower = Spec(
        "grower", demand(rng, seconds, 1.6 * GIB, 6, steps), 8 * GIB, 7 * GIB, rate=rng.choice(RATES), idle=GIB,
        **plain(rng),
    )  # fmt: skip
    return World("deaf", seed, seconds, (stuck, grower, *idle(rng, seconds, 2, 4 * GIB)), 28 * GIB, (2 * GIB,))


@kind("M6")
def mute(rng: Random, seed: int) -> World:
    """A file server of 32G that tells no usable memory, full of cache, and two databases of 8G without swap, that
    grow by 400 to 900M at times; all fits."""
    seconds = 1200
    server = Spec(
        "mute", demand(rng, seconds, 4 * GIB), 32 * GIB, 20 * GIB, usable=False, files=40 * GIB, reads=120, disk=120,
        warm=0.5, **plain(rng),
    )  # fmt: skip
    guests = [server]
    for i in range(2):
        more = [(start, start + 90, rng.uniform(400, 900)) for start in range(200 + 60 * i, seconds, 240)]
        wanted = demand(rng, seconds, 6.6 * GIB, 10, more)
        guests.append(Spec(f"db{i}", wanted, 8 * GIB, 8 * GIB, rate=rng.choice(RATES[2:]), idle=3 * GIB, **plain(rng)))
    return World("mute", seed, seconds, tuple(guests), 40 * GIB, fits=True)


@kind("M7", most=6)
def rest(rng: Random, seed: int) -> World:
    """Four hours of nothing but noise: six guests of 2 to 16G, deviation from 5M to 2 % of the size, files in
    cache, the first sizes anywhere between use and maximum."""
    seconds, guests = 4 * 3600, []
    for i in range(6):
        maximum = rng.choice((2, 4, 8, 16)) * GIB
        size = maximum * rng.uniform(0.6, 1.0)
        used = size * rng.uniform(0.2, 0.5)
        sd = rng.choice((5.0, 14.0, 23.0, 0.005 * maximum, 0.02 * maximum))
        files = size * rng.choice((0.0, 0.1, 0.3))
        if i < 2:
            # These stand near the policy's lines, where noise is most tempting.
            sd, files, size = rng.choice((14.0, 23.0, 69.0)), 0.0, used + 60 + 30 + rng.uniform(300, 400)
        guests.append(
            Spec(
                f"g{i}",
                demand(rng, seconds, used, min(sd, used / 4)),
                maximum,
                size,
                files=files,
                reads=20,
                **told(rng),
            )
        )
    total = sum(guest.size for guest in guests) * rng.uniform(1.1, 1.4) + 2 * GIB
    return World("rest", seed, seconds, tuple(guests), total, fits=True, rest_s=(7200, seconds))


@kind("M7")
def noise(rng: Random, seed: int) -> World:
    """Half an hour of six guests of 1 or 2G that stand 100 to 160M above the policy's line and need nothing; their use
    has a deviation of 16 to 24M. A single difference of two readings looks like a rise."""
    seconds, guests = 1800, []
    for i in range(6):
        maximum = rng.choice((1, 2)) * GIB
        used = maximum * rng.uniform(0.3, 0.5)
        size = used + 60 + 30 + 150 + rng.uniform(100, 160)
        wanted = demand(rng, seconds, used, rng.uniform(16, 24))
        guests.append(Spec(f"g{i}", wanted, maximum, size, **plain(rng)))
    total = 1.5 * sum(guest.size for guest in guests) + 4 * GIB
    return World("noise", seed, seconds, tuple(guests), total, fits=True, rest_s=(60, seconds))


@kind("M8")
def silent(rng: Random, seed: int) -> World:
    """A guest with swap begins to thrash, and then its driver falls silent for the rest; the host has 8G free."""
    seconds = 1200
    begin = 200 + rng.randrange(5)
    thrashing = Spec(
        "silent", demand(rng, seconds, 3 * GIB, 10, [(begin, seconds, 1.2 * GIB)]), 12 * GIB, 3.5 * GIB, swap=6 * GIB,
        rate=rng.choice(RATES[:2]), silent_s=(begin + rng.randrange(10, 17), seconds), **plain(rng),
    )  # fmt: skip
    others = idle(rng, seconds, 3)
    return World("silent", seed, seconds, (thrashing, *others), 28 * GIB, watch="silent", watch_s=begin + 20)


@kind("M9")
def weights(rng: Random, seed: int) -> World:
    """Eight guests with swap starve alike, of weights 1, 2, 4 and 100, and the host has 80 to 140M to give; after
    10 minutes half of them are content again."""
    seconds, guests = 900, []
    names = list(range(8))
    rng.shuffle(names)
    for i in names:
        more = [(100, seconds if i % 2 else 600, rng.uniform(270, 310))]
        wanted = demand(rng, seconds, 1700, 5, more)
        weight = (1.0, 2.0, 4.0, 100.0)[i // 2]
        guests.append(
            Spec(f"g{i}", wanted, 4 * GIB, 2 * GIB, weight=weight, swap=2 * GIB, rate=20, idle=1700, **plain(rng))
        )
    guests.sort(key=lambda guest: guest.name)
    total = (2 * GIB + sum(g.size + max(64, g.overhead) for g in guests) + rng.uniform(80, 140)) / 0.95
    return World("weights", seed, seconds, tuple(guests), total, short=True)


@kind("M10")
def person(rng: Random, seed: int) -> World:
    """A guest was fed before. Then somebody sets it to a size at which it is short by the policy's line but lives
    well; it stays so for the grace of 600 s. What counts is when the first command overrules it."""
    seconds = 900
    at_s = 200 + rng.randrange(10)
    wanted = demand(rng, seconds, 1500, 4, [(40, 150, 800)])
    size = 1500 + 60 + 10 + 64 + rng.uniform(45, 75)
    one = Spec(
        "person",
        wanted,
        8 * GIB,
        2 * GIB,
        person=(at_s, size),
        swap=2 * GIB,
        **told(rng, stats_s=rng.choice((1, 1, 2, 5))),
    )
    return World("person", seed, seconds, (one, *idle(rng, seconds, 2)), 32 * GIB)


@kind("M11")
def zfs(rng: Random, seed: int) -> World:
    """A host whose ARC takes what is free but 1/32: MemAvailable is below the reserve for good. Guests of 4 to 8G
    rest; one comes to lack 300 to 800M. The ARC gives way at 100 to 400 MiB/s."""
    seconds = 1500
    guests = idle(rng, seconds, 4, 8 * GIB, swap=0.0)
    guests = [replace(g, files=g.size * 0.3, reads=25.0, touched=0.95) for g in guests]
    lacks = rng.uniform(300, 800)
    wanted = demand(rng, seconds, 3.2 * GIB, 8, [(300, seconds, 500 + lacks)])
    short = Spec("starved", wanted, 8 * GIB, 3.9 * GIB, rate=50, idle=2 * GIB, swap=GIB, **plain(rng))
    arc = (4 * GIB, rng.uniform(100, 400))
    return World("zfs", seed, seconds, (*guests, short), 64 * GIB, arc=arc, watch="starved", watch_s=330)


@kind("M12")
def cell(rng: Random, seed: int) -> World:
    """Two cells of 32G; cell 0 has 40M free, and the rest of it is file cache, clean and dirty. A guest that is
    bound to it comes to lack 300 to 800M."""
    seconds = 600
    lacks = rng.uniform(300, 800)
    wanted = demand(rng, seconds, 3.3 * GIB, 6, [(100, seconds, 500 + lacks)])
    bound = Spec("bound", wanted, 8 * GIB, 4 * GIB, rate=50, idle=2 * GIB, swap=GIB, cell=0, **plain(rng))
    dirty = rng.uniform(1, 4) * GIB
    clean = 32 * GIB - 4 * GIB - 200 - dirty - 40
    cells = (CellSpec(32 * GIB, clean, dirty), CellSpec(32 * GIB))
    other = (2 * GIB + dirty,)
    return World("cell", seed, seconds, (bound,), 64 * GIB, other, cells=cells, watch="bound", watch_s=130)


@kind("packed")
def packed(rng: Random, seed: int) -> World:
    """Guests of 8G, all resident and calm, with 2 % of the host available: below its reserve for good, and nobody
    starves. After 15 minutes each in turn wants a fifth of its size more for a minute."""
    seconds = 1800
    count = rng.choice((12, 16, 20))
    guests = []
    for i in range(count):
        used = rng.uniform(0.45, 0.6) * 8 * GIB
        begin = 900 + int(900 * i / count)
        wanted = demand(rng, seconds, used, 10, [(begin, begin + 60, 1.6 * GIB)])
        guests.append(
            Spec(
                f"g{i}", wanted, 8 * GIB, 8 * GIB, rate=rng.choice(RATES[2:]), idle=used / 2, files=1.5 * GIB, reads=20,
                **plain(rng),
            )
        )  # fmt: skip
    total = (count * (8 * GIB + 90) + 2 * GIB) / 0.98
    return World("packed", seed, seconds, tuple(guests), total, fits=True)
