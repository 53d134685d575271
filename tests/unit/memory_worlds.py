# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Builders of snapshots, sizes in MiB, and a small world in which plans are carried out."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Optional, Sequence

from kvmsched.config import MemoryPolicy
from kvmsched.model import (
    Balloon,
    BalloonMove,
    Cell,
    Domain,
    Host,
    HostMemory,
    MemoryPlan,
    MemoryRecord,
    Owner,
    PeriodMove,
    Record,
    Room,
    Snapshot,
    Topology,
    to_json,
)
from kvmsched.policy import memory
from kvmsched.policy.memory.history import DomainHistory, MemoryHistory
from kvmsched.policy.memory.rooms import GROUP_KEPT_KIB
from kvmsched.policy.memory.safeties import ALL_ON, Safeties
from kvmsched.units import Amount

MIB = 1024
NOW_S = 1_000_000.0
TICK_S = 5
# What QEMU holds beside the guest's memory.
QEMU = 64
HOST_UUID = "host"

_SIZES = ("actual", "maximum", "unused", "usable", "rss", "swap_in", "swap_out", "limit")


def uuid_of(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, name))


def balloon(actual: int, maximum: Optional[int] = None, **more: Any) -> Balloon:
    """A balloon, sizes in MiB; resident in full, fresh statistics, nothing unused unless *more* says otherwise."""
    sizes = {"actual": actual, "maximum": maximum or actual, "rss": actual + QEMU, "unused": 0, "usable": 0}
    sizes.update({key: more.pop(key) for key in _SIZES if key in more})
    values: dict[str, Any] = {f"{key}_kib": None if mib is None else mib * MIB for key, mib in sizes.items()}
    values.update({"last_update_s": int(NOW_S) - 1, "period_s": TICK_S, "major_faults": 0, **more})
    return Balloon(**values)


def domain(name: str, actual: int, maximum: Optional[int] = None, **more: Any) -> Domain:
    """A running domain; keys of Domain are its own, all others its balloon's."""
    own = {key: more.pop(key) for key in list(more) if key in Domain.__dataclass_fields__}
    values: dict[str, Any] = {"uuid": uuid_of(name), "name": name, "id": 1, "started_s": NOW_S - 86400, **own}
    return Domain(balloon=balloon(actual, maximum, **more), **values)


def record(original: int, previous: int, intended: int, age_s: int = 3600) -> Record:
    sizes = (original * MIB, previous * MIB, intended * MIB)
    return Record(HOST_UUID, 1, memory=MemoryRecord(*sizes, when_s=int(NOW_S) - age_s))


def snapshot(domains: Sequence[Domain], available: int = 16384, total: int = 32768, **more: Any) -> Snapshot:
    host = Host(HOST_UUID, "host", "test:///", "test", Topology(()), memory=HostMemory(total * MIB, available * MIB))
    return Snapshot(NOW_S, NOW_S, host, tuple(domains), **more)


def a_tick_before(now: Snapshot, **changes: Any) -> Snapshot:
    """The same world one statistics tick ago; *changes* are to every balloon then."""
    domains = tuple(replace(d, balloon=_older(d.balloon, changes)) if d.balloon else d for d in now.domains)
    return replace(now, wall_s=now.wall_s - TICK_S, monotonic_s=now.monotonic_s - TICK_S, domains=domains)


def _older(balloon: Balloon, changes: dict[str, Any]) -> Balloon:
    return replace(balloon, last_update_s=max(0, balloon.last_update_s - TICK_S), **changes)


def pair(now: Snapshot) -> list[Snapshot]:
    """*now* after a tick at rest."""
    return [a_tick_before(now), now]


def decide(now: Snapshot, policy: MemoryPolicy, history: Optional[memory.MemoryHistory] = None) -> MemoryPlan:
    return memory.decide(pair(now), policy, history)[0]


def moves(plan: MemoryPlan) -> dict[str, int]:
    """What each balloon move changes, in MiB, by domain name."""
    return {m.domain: round((m.after_kib - m.before_kib) / MIB) for m in plan.moves if isinstance(m, BalloonMove)}


def skips(plan: MemoryPlan) -> dict[str, str]:
    return {skip.domain: skip.code for skip in plan.skips}


def reproduce(snapshots: Sequence[Snapshot], policy: MemoryPolicy) -> str:
    """What a failure prints: everything that decide() was given."""
    return json.dumps({"snapshots": to_json(list(snapshots)), "policy": to_json(policy)})


# ---------------------------------------------------------------- a world that obeys


@dataclass
class Machine:
    """A guest of World, in KiB. ``used`` is a function of time; ``gap`` is how far usable is below unused + cache.

    ``speed_kib`` is what its balloon moves in a second; ``stuck`` that it never moves.
    """

    name: str
    maximum: int
    actual: int
    used: Callable[[float], int]
    cache: int = 0
    gap: int = 0
    speed_kib: int = 1024 * MIB
    stuck: bool = False
    silent_since_s: Optional[float] = None
    # False: the host keeps what the guest gives back.
    returns: bool = True
    target: int = 0
    rss: int = 0
    record: Optional[Record] = None
    reading: tuple[int, int, int] = (0, 0, 0)
    lowest_slack: int = 1 << 60

    def __post_init__(self) -> None:
        self.target = self.actual
        self.rss = self.actual


@dataclass
class World:
    """A host whose guests follow their targets; ``pass_()`` is one pass of a daemon or of a module."""

    machines: list[Machine]
    total: int = 32768 * MIB
    other: int = 2048 * MIB
    now_s: float = NOW_S
    history: Optional[memory.MemoryHistory] = None
    two_phases: bool = True
    safeties: Safeties = ALL_ON
    lowest_available: int = 1 << 60
    plans: list[MemoryPlan] = field(default_factory=list)

    @property
    def available(self) -> int:
        return self.total - self.other - sum(m.rss + QEMU * MIB for m in self.machines)

    def run(self, seconds: float) -> None:
        """Let time go on, a tenth of a second at a time; statistics are read every TICK_S."""
        for _turn in range(round(seconds * 10)):
            before_s, self.now_s = self.now_s, round(self.now_s + 0.1, 1)
            tick = int(before_s) // TICK_S != int(self.now_s) // TICK_S
            for machine in self.machines:
                self._move(machine)
                if tick and (machine.silent_since_s is None or self.now_s < machine.silent_since_s):
                    self._read(machine)
            self.lowest_available = min(self.lowest_available, self.available)

    def _move(self, machine: Machine) -> None:
        used = machine.used(self.now_s - NOW_S)
        if not machine.stuck:
            step = machine.speed_kib // 10
            machine.actual += max(-step, min(step, machine.target - machine.actual))
        machine.rss = min(machine.rss, machine.actual) if machine.returns else machine.rss
        machine.rss = max(machine.rss, min(used + machine.cache, machine.actual))
        machine.lowest_slack = min(machine.lowest_slack, machine.actual - used)

    def _read(self, machine: Machine) -> None:
        free = machine.actual - machine.used(self.now_s - NOW_S)
        unused = max(0, free - machine.cache)
        machine.reading = (int(self.now_s), max(0, unused), max(0, free - machine.gap))

    def observe(self) -> Snapshot:
        domains = []
        for machine in self.machines:
            when_s, unused, usable = machine.reading
            state = Balloon(
                actual_kib=machine.actual,
                maximum_kib=machine.maximum,
                unused_kib=unused,
                usable_kib=usable,
                rss_kib=machine.rss + QEMU * MIB,
                last_update_s=when_s,
                period_s=TICK_S,
            )
            name = machine.name
            domains.append(Domain(uuid_of(name), name, 1, started_s=NOW_S - 9999, balloon=state, record=machine.record))
        seen = snapshot(domains, available=0)
        host = replace(seen.host, memory=HostMemory(self.total, max(0, self.available)))
        return replace(seen, wall_s=self.now_s, monotonic_s=self.now_s, host=host)

    def pass_(self, policy: MemoryPolicy, *, remember: bool = True, release: bool = False) -> MemoryPlan:
        """Sample twice, decide, take, wait a little, give what is funded."""
        first = self.observe()
        self.run(TICK_S + 1)
        last = self.observe()
        before = self.history
        plan, learn = memory.judge([first, last], policy, before, self.safeties, release)
        takes = [m for m in plan.moves if isinstance(m, BalloonMove) and not m.gives]
        gives = [m for m in plan.moves if isinstance(m, BalloonMove) and m.gives]
        self._ask(takes)
        if self.two_phases:
            self.run(2)
            gives = list(memory.fund(plan, policy, last, self.observe(), before, self.safeties))
        self._ask(gives)
        self.history = learn([*takes, *gives]) if remember else None
        self.run(2)
        self.plans.append(plan)
        return plan

    def _ask(self, asked: Sequence[BalloonMove]) -> None:
        machines = {uuid_of(machine.name): machine for machine in self.machines}
        for move in asked:
            machine = machines[move.uuid]
            old = machine.record.memory if machine.record else None
            original = old.original_kib if old else move.before_kib
            written = MemoryRecord(original, move.before_kib, move.after_kib, int(self.now_s))
            machine.record = Record(HOST_UUID, 1, memory=written)
            machine.target = move.after_kib


def quiet(plan: MemoryPlan) -> bool:
    return not any(isinstance(move, (BalloonMove, PeriodMove)) for move in plan.moves)


# ---------------------------------------------------------------- what tests of several rules begin with

EAGER = MemoryPolicy(reclaim="eager")
RESERVE_1G = replace(EAGER, host_reserve=Amount(kib=1024 * MIB))
WASTEFUL: dict[str, Any] = {"actual": 4096, "unused": 2000, "usable": 2500}
STARVED: dict[str, Any] = {"actual": 2048, "maximum": 4096, "unused": 20, "usable": 96}


def seen(**values: Any) -> MemoryHistory:
    """A history in which the domain ``db`` was seen a tick ago."""
    return MemoryHistory(domains={uuid_of("db"): DomainHistory(**{"last_update_s": int(NOW_S) - 6, **values})})


SLICE = "/sys/fs/cgroup/machine.slice"
# What is kept of its hard limit, in MiB.
EDGE = GROUP_KEPT_KIB // MIB


def in_a_slice(left: int, *domains: Domain) -> Snapshot:
    """A host with much to give; its slice, which holds these domains, has *left* MiB."""
    inside = [replace(d, balloon=replace(d.balloon, rooms=(SLICE,))) if d.balloon else d for d in domains]
    now = snapshot(inside)
    return replace(now, host=replace(now.host, rooms=(Room(SLICE, left * MIB),)))


# Reserve and pool of the made-up host: what is above them is there to be given.
RESERVE, POOL = 1024, 1024
LAZY = MemoryPolicy(reclaim="lazy", host_reserve=Amount(kib=RESERVE * MIB))
GIB = 1024
STARVES: dict[str, Any] = {"unused": 20, "usable": 96}
DYING: dict[str, Any] = {"unused": 2, "usable": 5}


def lazy_pass(
    now: Snapshot,
    policy: MemoryPolicy = LAZY,
    history: Optional[MemoryHistory] = None,
    safeties: Safeties = ALL_ON,
) -> tuple[MemoryPlan, MemoryHistory]:
    return memory.decide(pair(now), policy, history, safeties)


def lazy_moves(now: Snapshot, policy: MemoryPolicy = LAZY, safeties: Safeties = ALL_ON) -> dict[str, int]:
    return moves(lazy_pass(now, policy, safeties=safeties)[0])


def with_host(now: Snapshot, **changes: Any) -> Snapshot:
    return replace(now, host=replace(now.host, **changes))


def with_cells(now: Snapshot, *cells: Cell) -> Snapshot:
    return with_host(now, topology=Topology((), cells))


def in_room(now: Snapshot, left: Optional[int], high_left: Optional[int] = None) -> Snapshot:
    """All domains in one slice, of whose limits so many MiB are left."""
    inside = tuple(replace(d, balloon=replace(d.balloon, rooms=(SLICE,))) for d in now.domains if d.balloon)
    kib = [None if mib is None else mib * MIB for mib in (left, high_left)]
    return replace(with_host(now, rooms=(Room(SLICE, *kib),)), domains=inside)


def weighted(name: str, weight: float, *sizes: int, **more: Any) -> Domain:
    return domain(name, *sizes, owner=Owner({"weight": f"{weight:g}"}), **more)


def read_anew(now: Snapshot, seconds: int = 6) -> Snapshot:
    """The same host a little later, its guests read anew."""
    domains = tuple(
        replace(d, balloon=replace(d.balloon, last_update_s=d.balloon.last_update_s + seconds))
        for d in now.domains
        if d.balloon
    )
    return replace(now, wall_s=now.wall_s + seconds, monotonic_s=now.monotonic_s + seconds, domains=domains)


def needy(actual: int) -> Domain:
    """A guest that needs 2G more, by its floor."""
    return domain("db", actual, 32 * GIB, unused=400, usable=1000, owner=Owner({"floor": "10G"}))


def cell(free: int = 40, low: int = 20, clean: int = 40 * GIB, slab: int = 1 * GIB) -> Cell:
    return Cell(0, free_kib=free * MIB, low_kib=low * MIB, clean_cache_kib=clean * MIB, slab_kib=slab * MIB)


def owed(name: str, mib: int) -> Domain:
    """A content guest of which *mib* were taken, without that anybody asked for it."""
    size = 8 * GIB - mib
    return domain(name, size, 8 * GIB, unused=400, usable=2000, record=record(8 * GIB, 8 * GIB, size))


AUTO = MemoryPolicy(host_reserve=Amount(kib=1024 * MIB))
STARVED_OF_8G: dict[str, Any] = {"actual": 2048, "maximum": 8192, "unused": 20, "usable": 96}
# Starves beyond its original on a host that has nothing free: memory is taken for it, gift after gift.
BESIDE_WASTE = snapshot(
    [
        domain("db", **STARVED_OF_8G, record=record(1024, 1024, 2048)),
        domain("web", 8192, unused=4000, usable=7000),
    ],
    available=1000,
)
HOUR_S = 3600


def auto_plan(
    now: Snapshot,
    history: Optional[MemoryHistory] = None,
    safeties: Safeties = ALL_ON,
    policy: MemoryPolicy = AUTO,
) -> MemoryPlan:
    return memory.decide(pair(now), policy, history, safeties)[0]


def a_tick_ago(name: str = "db", **values: Any) -> MemoryHistory:
    """A history in which the domain was seen a tick ago, at the size that it has in STARVED_OF_8G."""
    known = {"last_update_s": int(NOW_S) - 6, "actual_kib": 2048 * MIB, **values}
    return MemoryHistory(domains={uuid_of(name): DomainHistory(**known)}, wall_s=NOW_S - TICK_S)


def grown(guest: Domain) -> Domain:
    assert guest.balloon is not None
    return replace(guest, balloon=replace(guest.balloon, actual_kib=3000 * MIB, last_update_s=int(NOW_S) - 6))


OWED = domain("db", 2048, 4096, unused=20, usable=96, record=record(3048, 3048, 2048))


def on_credit(**more: Any) -> Snapshot:
    """A guest dies on a host that has 2G to spare, and has promised 8G more than that to another one."""
    asleep = domain("asleep", 12288, unused=250, usable=400, rss=2048)
    return snapshot([domain("db", **{**STARVED_OF_8G, "usable": 10}), asleep, *more.pop("others", ())], available=3072)


def swaps(name: str = "db", **more: Any) -> Domain:
    """A guest that wants far more for its comfort: after a tick without swap 3G of it are there (see its_comfort())."""
    return domain(name, **STARVED_OF_8G, swap_out=3000, **more)


def its_comfort(now: Snapshot, policy: MemoryPolicy = AUTO, history: Optional[MemoryHistory] = None) -> MemoryPlan:
    """The plan for guests of swaps(), which have swapped all of it out since the tick before."""
    return memory.decide([a_tick_before(now, swap_out_kib=0), now], policy, history)[0]
