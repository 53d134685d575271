# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a tool on a world, and say what came of it: by guest, and against the same host left alone.

Harm is counted by guest, paired by seed: the gravest thing in which a guest differs from its twin on the untouched
host decides. Graver first: killed more often; starved longer (by SLACK_S at least, and 5 %); more read from its
disk (by 5 %, and SLACK_READS at least). The better way round it is saved.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any, ContextManager, Optional, Protocol, Sequence

from .host import GIB, Guest, Host, World

# A difference below one period of the statistics, or below what a boot reads, is no difference.
SLACK_S = 5
SLACK_READS = 256.0
MORE = 1.05
# What was unused for so long could be with the host.
IDLE_S = 7200


class Tool(Protocol):
    """A policy under test: told of every second, it sets targets."""

    name: str

    def on(self, host: Host) -> ContextManager[Any]:
        """It, at work on the host until the context ends."""

    def tick(self, host: Host) -> None:
        """A second that went by."""


class Untouched:
    """The host left alone."""

    name = "untouched"

    @contextlib.contextmanager
    def on(self, host: Host) -> Any:
        yield

    def tick(self, host: Host) -> None:
        pass


class Traced:
    """Says what happens while another tool runs: its commands with their reasons, who starves, who is killed."""

    def __init__(self, tool: Any) -> None:
        self.tool, self.name = tool, tool.name
        tool.say = print
        self.kills: dict[str, int] = {}
        self.starved: dict[str, bool] = {}

    def on(self, host: Host) -> ContextManager[Any]:
        for guest in host.all:
            one = guest.spec
            print(f"       {one.name}: {one.size:.0f}M of {one.maximum:.0f}M, wants {one.wanted[0]:.0f}M at first")
        done: ContextManager[Any] = self.tool.on(host)
        return done

    def tick(self, host: Host) -> None:
        for guest in host.guests:
            name = guest.spec.name
            state = f"size {guest.actual:.0f}M, wants {guest.wanted:.0f}M, host has {host.available:.0f}M available"
            if guest.kills > self.kills.get(name, 0):
                print(f"{host.now_s:6} {name} KILLED, {state}")
            elif guest.starved != self.starved.get(name, False):
                print(f"{host.now_s:6} {name} {'starves' if guest.starved else 'is content'}, {state}")
            self.kills[name], self.starved[name] = guest.kills, guest.starved
        self.tool.tick(host)


@dataclass(frozen=True)
class Fate:
    """What became of one guest. ``owed``: MiB below its first size that it would use now; ``helpless``: is deaf."""

    name: str
    weight: float
    kills: int
    starved_s: int
    spare_s: int
    reads: float
    swap_s: float
    moves: int
    rest_moves: int
    gifts: float
    lacks: float
    returned: float
    idle: float
    owed: float
    size: float
    helpless: bool
    overruled_s: Optional[int]


@dataclass
class Run:
    """One run: fates, and the host's own figures. ``relief_s``: when the watched guest had enough after its peak."""

    world: str
    seed: int
    tool: str
    fits: bool
    short: bool
    asked: bool
    seconds: int
    fates: list[Fate]
    overrun_s: int
    reserve_s: int
    lowest: float
    rest_h: float
    relief_s: Optional[float] = None
    half_s: Optional[float] = None
    most_s: Optional[float] = None
    returned: float = 0.0


def run(world: World, tool: Tool) -> Run:
    """Run *tool* on *world*; the same world gives every tool the same guests, noise and statistics."""
    host = Host(world)
    watch = _Watch(host, world)
    held = 0.0
    told: dict[str, tuple[float, float]] = {}
    # What is idle is given back until something happens.
    counted_s = min(world.rest_s[1] if world.rest_s else world.seconds, world.seconds) - 1
    with tool.on(host):
        for now_s in range(1, world.seconds):
            host.step(now_s)
            tool.tick(host)
            if world.watch:
                watch.look(now_s)
            held += sum([guest.actual for guest in host.guests])
            if now_s == counted_s - IDLE_S:
                for guest in host.all:
                    guest.idle = guest.unused
            if now_s == counted_s:
                told = {guest.spec.name: (max(0.0, guest.spec.size - guest.actual), guest.idle) for guest in host.all}
    fates = [_fate(guest, *told[guest.spec.name]) for guest in host.all]
    rest = world.rest_s or (0, 0)
    whole = sum(guest.spec.size * (world.seconds - max(1, guest.spec.starts_s)) for guest in host.all)
    return Run(
        world=world.name,
        seed=world.seed,
        tool=tool.name,
        fits=world.fits,
        short=world.short,
        asked=world.asked,
        seconds=world.seconds,
        fates=fates,
        overrun_s=host.overrun_s,
        reserve_s=host.reserve_s,
        lowest=host.lowest,
        rest_h=len(host.all) * (rest[1] - rest[0]) / 3600,
        relief_s=watch.relief_s,
        half_s=watch.half_s,
        most_s=watch.most_s,
        returned=(whole - held) / world.seconds / GIB,
    )


def _fate(guest: Guest, returned: float, idle: float) -> Fate:
    spec = guest.spec
    would_use = max(0.0, spec.files + 64 - guest.cache) + (64.0 if guest.starved else 0.0) + guest.swapped
    below = max(0.0, spec.size - guest.actual)
    return Fate(
        name=spec.name,
        weight=spec.weight,
        kills=guest.kills,
        starved_s=guest.starved_s,
        spare_s=guest.spare_s,
        reads=guest.reads,
        swap_s=guest.swap_s,
        moves=guest.moves,
        rest_moves=guest.rest_moves,
        gifts=guest.gifts,
        lacks=guest.lacks,
        returned=returned,
        idle=idle,
        owed=min(below, would_use),
        size=guest.actual,
        helpless=spec.follows_s == 0,
        overruled_s=guest.overruled_s,
    )


class _Watch:
    """Times the relief of one guest from its peak on: how soon half, 90 % and all of what it lacked was there."""

    def __init__(self, host: Host, world: World) -> None:
        self.guest = host.by_name[world.watch] if world.watch else None
        self.peak_s = world.watch_s
        self.relief_s: Optional[float] = None
        self.half_s: Optional[float] = None
        self.most_s: Optional[float] = None
        self.lacked = 0.0
        self.began = 0.0

    def look(self, now_s: int) -> None:
        guest = self.guest
        if guest is None or now_s < self.peak_s:
            return
        if now_s == self.peak_s:
            self.began = guest.actual
            self.lacked = max(0.0, guest.wanted + 60 + 10 + 64 - guest.actual)
        got = guest.actual - self.began
        if self.half_s is None and got >= self.lacked / 2:
            self.half_s = now_s - self.peak_s
        if self.most_s is None and got >= 0.9 * self.lacked:
            self.most_s = now_s - self.peak_s
        if self.relief_s is None and not guest.starved:
            self.relief_s = now_s - self.peak_s


# ---------------------------------------------------------------- against the host left alone


@dataclass
class Verdict:
    """Guests of one run that fared worse or better than untouched; how many weights were not kept.

    ``heavier`` counts harmed guests that weigh more than a saved one.
    """

    harmed: list[str] = field(default_factory=list)
    saved: list[str] = field(default_factory=list)
    unkept: int = 0
    heavier: int = 0


def judge(run: Run, untouched: Run) -> Verdict:
    verdict = Verdict()
    for fate, twin in zip(run.fates, untouched.fates):
        sign = worse(fate, twin)
        if sign:
            (verdict.harmed if sign > 0 else verdict.saved).append(fate.name)
    verdict.unkept = _unkept(run, untouched)
    saved = [fate.weight for fate in run.fates if fate.name in verdict.saved]
    verdict.heavier = sum(f.weight > min(saved) for f in run.fates if saved and f.name in verdict.harmed)
    return verdict


def _unkept(run: Run, untouched: Run) -> int:
    """How many got less relief than another one that lacked as much and weighs less."""
    pairs = [(fate, twin) for fate, twin in zip(run.fates, untouched.fates) if twin.starved_s >= 30]
    told = [(fate.weight, 1 - fate.starved_s / twin.starved_s, twin.swap_s / twin.starved_s) for fate, twin in pairs]
    return sum(
        any(other < weight and relief + 0.1 < got and lacked <= lacks * 1.1 for other, got, lacks in told)
        for weight, relief, lacked in told
    )


def worse(fate: Fate, twin: Fate) -> int:
    """1 if *fate* is worse than its twin's, -1 if it is better, 0 if there is no difference that counts."""
    if fate.kills != twin.kills:
        return 1 if fate.kills > twin.kills else -1
    for one, other, slack in ((fate.starved_s, twin.starved_s, SLACK_S), (fate.reads, twin.reads, SLACK_READS)):
        if one > max(other * MORE, other + slack):
            return 1
        if other > max(one * MORE, one + slack):
            return -1
    return 0


@dataclass
class Row:
    """What a tool came to on one world over all seeds: sums, and the worst where it says so."""

    world: str
    tool: str
    fits: bool = False
    short: bool = False
    asked: bool = False
    seeds: int = 0
    guests: int = 0
    harmed: int = 0
    saved: int = 0
    unkept: int = 0
    heavier: int = 0
    kills: int = 0
    starved_s: int = 0
    spare_s: int = 0
    reads_gib: float = 0.0
    swap_gib_s: float = 0.0
    moves: int = 0
    rest_moves: Optional[float] = None
    gift: Optional[float] = None
    overrun_s: int = 0
    reserve_s: int = 0
    returned_gib: float = 0.0
    owed_gib: float = 0.0
    half_s: Optional[float] = None
    most_s: Optional[float] = None
    relief_s: Optional[float] = None
    overruled_s: Optional[float] = None
    idle_back_pct: Optional[float] = None
    worst_kills: int = 0
    seconds: int = 0
    killed_more: int = 0


def tabulate(runs: Sequence[Run], untouched: Sequence[Run]) -> Row:
    """One row of the table: the runs of one tool on one world, and the untouched host's by the same seeds."""
    first = runs[0]
    row = Row(first.world, first.tool, first.fits, first.short, first.asked, len(runs))
    rest_h = rest = gifts = lacks = idle = back = 0.0
    for one, twin in zip(runs, untouched):
        verdict = judge(one, twin)
        kills = sum(fate.kills for fate in one.fates)
        row.guests += len(one.fates)
        row.harmed += len(verdict.harmed)
        row.saved += len(verdict.saved)
        row.unkept += verdict.unkept
        row.heavier += verdict.heavier
        row.kills += kills
        row.killed_more += max(0, kills - sum(fate.kills for fate in twin.fates))
        row.starved_s += sum(fate.starved_s for fate in one.fates if not fate.helpless)
        row.spare_s += sum(fate.spare_s for fate in one.fates if not fate.helpless)
        row.reads_gib += sum(fate.reads for fate in one.fates) / GIB
        row.swap_gib_s += sum(fate.swap_s for fate in one.fates) / GIB
        row.moves += sum(fate.moves for fate in one.fates)
        row.overrun_s += one.overrun_s
        row.reserve_s += one.reserve_s
        row.returned_gib += one.returned / len(runs)
        row.owed_gib += sum(fate.owed for fate in one.fates) / GIB / len(runs)
        row.seconds += one.seconds
        rest_h += one.rest_h
        rest += sum(fate.rest_moves for fate in one.fates)
        gifts += sum(fate.gifts for fate in one.fates)
        lacks += sum(fate.lacks for fate in one.fates)
        idle += sum(fate.idle for fate in twin.fates)
        back += sum(min(fate.returned, twin_fate.idle) for fate, twin_fate in zip(one.fates, twin.fates))
    row.rest_moves = rest / rest_h if rest_h else None
    row.gift = gifts / max(1.0, lacks) if gifts else None
    row.idle_back_pct = 100 * back / idle if idle else None
    row.half_s, row.most_s, row.relief_s = (_worst(runs, name) for name in ("half_s", "most_s", "relief_s"))
    times = [fate.overruled_s for one in runs for fate in one.fates if fate.overruled_s is not None]
    row.overruled_s = min(times) if times else None
    return row


def _worst(runs: Sequence[Run], name: str) -> Optional[float]:
    if not any(getattr(one, name) is not None for one in runs):
        return None
    return max(float("inf") if getattr(one, name) is None else getattr(one, name) for one in runs)
