# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How worlds are drawn: each by its seed from the ranges that stand in its function, whose docstring says what it is.

``fits`` means that what all guests want fits into their sizes and the host: no tool has an excuse for harm there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from typing import Any, Callable, Sequence

from .host import GIB, Spec, World

# MiB/s at which programs allocate: a cron job in shell, a JVM's heap, a build, memset.
RATES = (40.0, 60.0, 100.0, 200.0, 500.0, 1000.0)


@dataclass(frozen=True)
class Kind:
    """One kind of world; ``shows``: the fault of the first default that it shows; ``most``: how many seeds it gets."""

    name: str
    build: Callable[[Random, int], World]
    shows: str
    text: str
    most: int = 1000


KINDS: dict[str, Kind] = {}

Build = Callable[[Random, int], World]


def kind(shows: str = "", most: int = 1000) -> Callable[[Build], Build]:
    """Register a function that draws a world."""

    def register(build: Build) -> Build:
        name = build.__name__
        KINDS[name] = Kind(name, build, shows, " ".join((build.__doc__ or "").split()), most)
        return build

    return register


def draw(name: str, seed: int) -> World:
    """The world *name* of that seed: the same for every tool."""
    return KINDS[name].build(Random(f"{name} {seed}"), seed)


# ---------------------------------------------------------------- demand


def demand(
    rng: Random, seconds: int, base: float, sd: float = 6.0, more: Sequence[tuple[float, float, float]] = ()
) -> list[float]:
    """Anonymous memory at each second: *base*, *more* as (from, to, MiB), AR(1) noise of 5 s with deviation *sd*."""
    keep = math.exp(-1 / 5)
    fresh = sd * math.sqrt(1 - keep * keep)
    steps = sorted({round(edge) for one in more for edge in one[:2]} | {0, seconds})
    values = []
    noise = rng.gauss(0, sd)
    gauss = rng.gauss
    for start, end in zip(steps, steps[1:]):
        level = base + sum(one[2] for one in more if one[0] <= start < one[1])
        for _second in range(max(0, start), min(end, seconds)):
            noise = keep * noise + fresh * gauss(0, 1)
            values.append(max(50.0, level + noise))
    return values


def wave(rng: Random, seconds: int, low: float, high: float, period: float, sd: float = 6.0) -> list[float]:
    """Back and forth between *low* and *high*, with a phase of its own."""
    phase = rng.random()
    noise = demand(rng, seconds, 1000.0, sd)
    swing = [low + (high - low) * 0.5 * (1 - math.cos(2 * math.pi * (i / period + phase))) for i in range(seconds)]
    return [max(50.0, a + b - 1000.0) for a, b in zip(swing, noise)]


def told(rng: Random, **more: Any) -> dict[str, Any]:
    """How a guest's statistics come: every 1 to 10 s, mostly at once, at times late or not at all."""
    period = rng.choice((1, 2, 5, 5, 5, 10))
    delays = tuple(rng.choice((0, 0, 0, 0, 0, 1, 2, None)) for _each in range(31))
    return {
        "stats_s": period,
        "phase_s": rng.randrange(period),
        "delays_s": delays,
        "overhead": rng.uniform(40, 90),
        **more,
    }


def plain(rng: Random, **more: Any) -> dict[str, Any]:
    """Statistics every 5 s, at once."""
    return {"stats_s": 5, "phase_s": rng.randrange(5), "overhead": rng.uniform(40, 90), **more}


def idle(rng: Random, seconds: int, count: int, size: float = 4 * GIB, **more: Any) -> list[Spec]:
    """Guests that use 15 to 35 % of their size and let it be."""
    return [
        Spec(
            f"idle{i}", demand(rng, seconds, size * rng.uniform(0.15, 0.35)), maximum=size, size=size,
            **plain(rng, **{"touched": rng.uniform(0.4, 1.0), **more}),
        )
        for i in range(count)
    ]  # fmt: skip
