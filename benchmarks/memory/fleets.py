# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Worlds of many guests: need that others' waste covers, fleets of all kinds, whole days."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from .drawing import RATES, demand, kind, plain, told, wave
from .host import GIB, Spec, World


@kind()
def cover(rng: Random, seed: int) -> World:
    """A full host; one guest with swap comes to lack 1 to 3G, and five others hold more than twice that in memory that
    serves nothing. Half of it should be there in a pass, 90 % in four."""
    seconds = 600
    lacks = rng.uniform(1, 3) * GIB
    hog = Spec(
        "hog", demand(rng, seconds, 2 * GIB, 6, [(200, seconds, lacks + 400)]), 8 * GIB, 2.5 * GIB, swap=6 * GIB,
        rate=500, **plain(rng),
    )  # fmt: skip
    others = [
        Spec(f"idle{i}", demand(rng, seconds, rng.uniform(1, 1.5) * GIB), 4 * GIB, 4 * GIB, **plain(rng))
        for i in range(5)
    ]
    total = 2 * GIB + sum(g.size + 70 for g in (hog, *others)) + 0.06 * 24 * GIB
    return World("cover", seed, seconds, (hog, *others), total, watch="hog", watch_s=206)


@kind()
def fleet(rng: Random, seed: int) -> World:
    """What comes: 4 to 24 guests of 1 to 64G, sum of maxima 60 to 150 % of RAM, first sizes anywhere between use
    and maximum, half with swap; waves, bursts, caches, noise; statistics late, missing, clamped, of 1 to 10 s, at
    times none, or without `usable`."""
    return _drawn("fleet", rng, seed, rng.randrange(4, 25), 1200)


@kind(most=6)
def fleet64(rng: Random, seed: int) -> World:
    """The same with 64 guests."""
    return _drawn("fleet64", rng, seed, 64, 900)


def _drawn(name: str, rng: Random, seed: int, count: int, seconds: int) -> World:
    guests = [_any(rng, f"g{i}", seconds) for i in range(count)]
    whole = sum(guest.maximum for guest in guests)
    total = whole / rng.uniform(0.6, 1.5)
    other = max(GIB, 0.04 * total)
    # A host begins with what it can hold: the first sizes of an overbooked one are smaller.
    room = total * 0.94 - other - 80 * count
    sizes = sum(guest.size for guest in guests)
    least = sum(guest.wanted[0] + 500 for guest in guests)
    total = max(total, (least + other + 80 * count) / 0.9)
    room = max(room, least)
    if sizes > room:
        share = (room - least) / max(1.0, sizes - least)
        guests = [replace(g, size=g.wanted[0] + 500 + max(0.0, share) * (g.size - g.wanted[0] - 500)) for g in guests]
    return World(name, seed, seconds, tuple(guests), total, (other,), swap=rng.choice((0.0, 8 * GIB)))


def _any(rng: Random, name: str, seconds: int) -> Spec:
    """A guest of any kind that is common."""
    maximum = rng.choice((1, 2, 4, 4, 8, 8, 16, 32, 64)) * GIB
    used = maximum * rng.uniform(0.1, 0.5)
    sd = min(rng.choice((5.0, 14.0, 23.0, 0.01 * maximum, 0.02 * maximum)), used / 4)
    what = rng.random()
    peak = rng.uniform(1.1, 2.0)
    room = maximum - 60 - 200
    if what < 0.35:
        wanted = demand(rng, seconds, used, sd)
    elif what < 0.6:
        wanted = wave(rng, seconds, used, min(room, used * peak), rng.uniform(120, 900), sd)
    else:
        begin = rng.randrange(100, seconds - 100)
        more = [(begin, begin + rng.randrange(60, 400), min(room, used * peak) - used)]
        wanted = demand(rng, seconds, used, sd, more)
    wanted = [min(value, room) for value in wanted]
    size = min(maximum, max(used + 500, rng.uniform(used, maximum)))
    files = rng.choice((0.0, 0.0, 0.1, 0.3)) * maximum
    swap = rng.choice((0.0, 0.0, 1.0, 2.0)) * min(maximum, 4 * GIB)
    weight = rng.choice((1.0, 1.0, 1.0, 2.0, 4.0))
    return Spec(
        name, wanted, maximum, size, rate=rng.choice(RATES), idle=used / 2, files=files, reads=rng.uniform(5, 60),
        swap=swap, weight=weight, touched=rng.uniform(0.5, 1.0), autodeflate=rng.random() < 0.15,
        usable=rng.random() > 0.06, clamped=rng.random() < 0.08, driver=rng.random() > 0.04,
        lag_s=rng.choice((0, 0, 0, 5)), **told(rng),
    )  # fmt: skip


@kind(most=3)
def idle_offered(rng: Random, seed: int) -> World:
    """Six guests of 4 to 16G with autodeflate, whose owners say `reclaim: idle`, are idle for three hours; then all
    want half of their size more in the same second."""
    return _idle("idle_offered", rng, seed, 11_000, offers=True)


@kind(most=3)
def idle_seen(rng: Random, seed: int) -> World:
    """The same for five hours, and nobody says so, but they were seen to take back by themselves: in the first minutes
    they want 1,000M more within a second, which their autodeflate gives them."""
    return _idle("idle_seen", rng, seed, 18_300, offers=False)


def _idle(name: str, rng: Random, seed: int, end_s: int, offers: bool) -> World:
    guests = []
    for i in range(6):
        size = rng.choice((4, 8, 16)) * GIB
        used = size * rng.uniform(0.1, 0.3)
        more = [(end_s, end_s + 300, size * 0.5)]
        if not offers:
            more += [(0, 400 + 20 * i, size - 70 - 600 - used), (100 + 20 * i, 160 + 20 * i, 1000.0)]
        wanted = demand(rng, end_s + 600, used, rng.choice((5.0, 0.005 * size)), more)
        rate = rng.choice(RATES) if offers else 1000.0
        guests.append(
            Spec(
                f"g{i}", wanted, 1.5 * size, size, rate=rate, idle=used, autodeflate=True, offers=offers, **plain(rng)
            )
        )  # fmt: skip
    total = 1.3 * sum(guest.size for guest in guests) + 3 * GIB
    return World(
        name, seed, end_s + 600, tuple(guests), total, fits=not offers, asked=offers, rest_s=(7200, end_s - 10)
    )


@kind(most=2)
def day(rng: Random, seed: int) -> World:
    """24 hours of eight guests of 4 to 16G, sum of maxima 110 % of RAM: up by day and down by night, nightly jobs,
    bursts each hour within the first size; half without swap."""
    seconds, guests = 86_400, []
    for i in range(8):
        maximum = rng.choice((4, 8, 16)) * GIB
        low = maximum * rng.uniform(0.1, 0.2)
        high = maximum * rng.uniform(0.3, 0.5)
        size = maximum * rng.uniform(0.7, 0.9)
        first = rng.randrange(1200, 3600)
        bursts = [(start + rng.randrange(600), start + 900, maximum * 0.15) for start in range(first, seconds, 3600)]
        noise = demand(rng, seconds, 1000.0, 0.003 * maximum, bursts)
        sun = wave(rng, seconds, low, high, 86_400, 1.0)
        wanted = [max(50.0, a + b - 1000.0) for a, b in zip(sun, noise)]
        guests.append(
            Spec(
                f"g{i}", wanted, maximum, size, rate=rng.choice(RATES), idle=low, files=0.15 * maximum, reads=10,
                swap=rng.choice((0.0, 4 * GIB)), **told(rng),
            )
        )  # fmt: skip
    total = sum(guest.maximum for guest in guests) / 1.1
    return World("day", seed, seconds, tuple(guests), total, fits=True)
