# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host with ballooned guests, second by second. All sizes are MiB, all times seconds since the start.

A Spec says what a guest is and wants, a World what a host is; neither changes while it runs, so that every
tool meets the same. Guest and Host are their state. A tool sees of a guest only what libvirt would tell it:
``told`` (its size by the last balloon event), ``reading`` (its last statistics), ``rss``. The rest is the truth
that figures are made of: see Guest.step and Host.step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Optional, Sequence

GIB = 1024.0

# What the guest's kernel keeps for itself, and what it never lets programs have (the zones' min watermarks).
KERNEL = 60.0
MIN_FREE = 10.0
# MemAvailable leaves out the low watermarks: free memory and cache that programs would not get.
WATERMARK = 30.0
# A guest without room for the programs that it runs (Spec.hot) reads them from its disk again and again.
HOT_READS = 20.0
# Per second: balloons (1.7 GiB/s was published for an idle guest) and swap.
INFLATE = 1000.0
DEFLATE = 4000.0
SWAP_IN = 250.0
# A killed service comes back after this time and wants the same again.
RESTART_S = 20
# No command is worth its while for less.
LEAST = 16.0
# A guest that was reset has all its memory until its driver runs.
BOOT_S = 10
# Stalled on its own memory, host or guest: what PSI shows then, in percent.
STALLED_PCT = 40.0


class Reading(NamedTuple):
    """What the guest's driver told last, and when."""

    when_s: int
    unused: float
    usable: Optional[float]
    caches: float
    swap_in: float
    swap_out: float
    faults: float


@dataclass(frozen=True)
class Spec:
    """One guest. ``wanted`` is the anonymous memory that it wants at each second, which it allocates by ``rate``.

    ``files`` is the working set that it reads at ``reads`` MiB/s, evenly; what is not in its cache comes from its
    disk, at most ``disk`` MiB/s. ``warm`` is the share of files in the cache at the start, ``touched`` the
    share of its size that the host had to back by then. ``shared`` is the part of ``wanted`` that looks like cache
    (tmpfs, shared buffers), ``hot`` the programs that it runs: without room for these it reads them again and again.
    ``delays_s`` are how late its statistics are, in turn; None: that answer never comes. ``silent_s``: from when to
    when it tells nothing. ``follows_s``: until when its balloon follows. ``lag_s``: how late driver and statistics are
    while it is short of memory. ``keeps``: the host never gets back what its balloon gives, ``locked``: VmLck tells
    so. ``expands``: it fills whatever it gets. ``clamped``: it tells no more usable than unused memory. ``person``:
    when somebody sets which size. ``falls``: its counters are lower at each reading. ``high``: the memory.high of its
    QEMU, above which the kernel lets it crawl. ``offers``: its owner says ``reclaim: idle``. ``hangs_s``: from when to
    when its QEMU answers libvirt nothing.
    """

    name: str
    wanted: Sequence[float]
    maximum: float
    size: float
    rate: float = 1e9
    idle: float = 300.0
    weight: float = 1.0
    swap: float = 0.0
    files: float = 0.0
    reads: float = 0.0
    disk: float = 200.0
    warm: float = 1.0
    shared: float = 0.0
    hot: float = 64.0
    touched: float = 1.0
    overhead: float = 60.0
    stats_s: int = 5
    phase_s: int = 0
    delays_s: tuple[Optional[int], ...] = (0,)
    silent_s: tuple[int, int] = (1 << 60, 1 << 60)
    driver: bool = True
    usable: bool = True
    clamped: bool = False
    follows_s: int = 1 << 60
    lag_s: int = 0
    inflate: float = INFLATE
    keeps: bool = False
    autodeflate: bool = False
    expands: bool = False
    inhibitors: tuple[str, ...] = ()
    locked: bool = False
    room: str = ""
    cell: Optional[int] = None
    starts_s: int = 0
    resets_s: tuple[int, ...] = ()
    person: Optional[tuple[int, float]] = None
    falls: bool = False
    offers: bool = False
    high: float = 0.0
    hangs_s: tuple[int, int] = (1 << 60, 1 << 60)


@dataclass(frozen=True)
class CellSpec:
    """A NUMA cell of ``total`` MiB: ``clean`` and ``dirty`` file cache of the host's own fill what guests leave."""

    total: float
    clean: float = 0.0
    dirty: float = 0.0


@dataclass(frozen=True)
class World:
    """One host. ``other`` is what it uses itself at each second (the last value stays).

    ``arc`` is (minimum, MiB/s of eviction) of a ZFS cache that fills what is free but ``total/32``. ``rooms`` are
    cgroups with their limits. ``swap_ins`` is what the host reads from its swap for itself, by second. ``fits``: what
    all guests want fits into their sizes and the host, so that nobody has to suffer. ``short``: the host has not what
    they want, whoever shares it out. ``asked``: what is taken was offered by its owner. ``rest_s`` is the time in which
    nothing happens but noise. ``daemon_away_s`` is when the daemon is dead, ``forgets`` whether it then begins without
    history, ``eager_until_s`` when the host was upgraded from eager. ``settings`` are the operator's, ``comfort`` is
    how much usable memory above its want a gift may leave.
    """

    name: str
    seed: int
    seconds: int
    guests: tuple[Spec, ...]
    total: float
    other: Sequence[float] = (2048.0,)
    swap: float = 0.0
    swap_ins: dict[int, float] = field(default_factory=dict)
    arc: Optional[tuple[float, float]] = None
    rooms: dict[str, float] = field(default_factory=dict)
    cells: tuple[CellSpec, ...] = ()
    fits: bool = False
    short: bool = False
    asked: bool = False
    rest_s: Optional[tuple[int, int]] = None
    watch: Optional[str] = None
    watch_s: int = 0
    daemon_away_s: tuple[int, int] = (1 << 60, 1 << 60)
    forgets: bool = False
    eager_until_s: int = 0
    settings: dict[str, object] = field(default_factory=dict)
    comfort: float = 300.0


class Guest:
    """The state of one guest; ``starved`` is the truth about this second, see step()."""

    __slots__ = (
        "actual",
        "alloc",
        "asked_s",
        "boot_s",
        "cache",
        "coming",
        "down_s",
        "faults",
        "follows",
        "gift",
        "gift_s",
        "gifts",
        "host_swapped",
        "idle",
        "kills",
        "lack",
        "lacks",
        "moves",
        "overruled_s",
        "period_s",
        "poll_s",
        "polls",
        "reading",
        "reads",
        "rest_moves",
        "running",
        "spare_s",
        "spec",
        "starved",
        "starved_s",
        "swap_in",
        "swap_out",
        "swap_s",
        "swapped",
        "target",
        "told",
        "touched",
        "unused",
        "wanted",
    )  # fmt: skip

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.actual = self.told = self.target = spec.size
        self.asked_s = 0
        self.follows = False
        self.alloc = min(spec.wanted[0], spec.size - KERNEL - MIN_FREE)
        self.wanted = self.alloc
        self.swapped = self.host_swapped = 0.0
        room = spec.size - KERNEL - self.alloc
        self.cache = max(0.0, min(room - MIN_FREE, spec.hot + spec.files * spec.warm))
        self.unused = room - self.cache
        self.touched = max(spec.touched * spec.size, spec.size - self.unused)
        self.swap_in = self.swap_out = self.faults = self.reads = 0.0
        self.starved, self.starved_s, self.spare_s, self.swap_s = False, 0, 0, 0.0
        self.kills, self.down_s, self.boot_s = 0, 0, 0
        self.period_s, self.polls = spec.stats_s, 0
        self.poll_s = 1 + spec.phase_s
        self.coming: Optional[Reading] = None
        self.reading = self._look(spec.phase_s - spec.stats_s) if spec.driver else None
        self.moves = self.rest_moves = 0
        self.running = spec.starts_s == 0
        self.gift, self.lack, self.gift_s, self.gifts, self.lacks = 0.0, 0.0, -1000, 0.0, 0.0
        self.overruled_s: Optional[int] = None
        self.idle = self.unused

    @property
    def rss(self) -> float:
        return self.touched + self.spec.overhead - self.host_swapped

    @property
    def usable(self) -> float:
        return max(0.0, self.unused + self.cache - WATERMARK)

    def step(self, now_s: int) -> None:
        """One second: the balloon moves, programs allocate, the kernel drops cache, swaps, or kills; files are read.

        It starves while part of what it wants is in its swap or not to be had, and while it has no room for the
        programs that run. What it does not read from its cache counts as read from disk.
        """
        if self.follows and self.actual != self.target:
            self._balloon(now_s)
        size = self.spec.maximum if now_s < self.boot_s else self.actual
        left = self._allocate(now_s, size - KERNEL - MIN_FREE)
        size = max(size, self.actual)
        self._read(left)
        self.unused = left - self.cache + MIN_FREE
        held = size - self.unused
        touched = self.touched
        if touched > size and not self.spec.keeps:
            touched = size
        self.touched = held if held > touched else touched
        starved = self.swapped > 1.0 or self.host_swapped > 1.0 or left < self.spec.hot or now_s < self.down_s
        starved = starved or 0.0 < self.spec.high < self.rss
        self.starved = starved
        # To boot takes its time, whoever has memory.
        if starved and now_s >= self.boot_s:
            self.starved_s += 1
            self.swap_s += self.swapped + self.host_swapped
        if self.unused < self.idle:
            self.idle = self.unused
        if now_s >= self.poll_s:
            self._poll(now_s)

    def _allocate(self, now_s: int, room: float) -> float:
        """Programs get what they want of *room*, or swap, or one is killed. Return what is left for the cache."""
        spec = self.spec
        wanted = spec.wanted[now_s] if now_s >= self.down_s else spec.idle
        if spec.expands and now_s >= self.down_s:
            wanted = max(wanted, self.alloc, room - 100.0)
        self.wanted = wanted
        alloc = min(wanted, self.alloc + spec.rate)
        need = alloc - room
        if need > self.swapped and spec.autodeflate:
            # One MiB at a time, as the kernel's notifier does, after the cache is gone.
            more = min(float(int(need - self.swapped) + 1), spec.maximum - self.actual)
            self.actual += more
            self.follows = False
            room += more
            need -= more
        if need > self.swapped:
            if need <= spec.swap:
                self.swap_out += need - self.swapped
                self.swapped = need
            else:
                self._killed(now_s)
                alloc, need = min(alloc, spec.idle), 0.0
        elif self.swapped:
            self._swap_in(need)
        self.alloc = alloc
        return room - alloc + self.swapped

    def _swap_in(self, need: float) -> None:
        back = min(self.swapped - max(0.0, need), SWAP_IN)
        self.swap_in += back
        self.swapped -= back
        if need > 0:
            # It touches what is out as much as what is in.
            self.swap_in += min(self.swapped, 64.0)
            self.swap_out += min(self.swapped, 64.0)

    def _read(self, left: float) -> None:
        """The cache is what was read before, as far as there is room; what it lacks comes from the disk."""
        spec = self.spec
        hot = spec.hot
        cache = min(self.cache, left)
        if cache < hot:
            cache = min(left, hot)
            if cache < hot:
                self.reads += HOT_READS
                self.faults += 2000
        if spec.files and cache < hot + spec.files:
            missed = min(spec.reads * (1.0 - max(0.0, cache - hot) / spec.files), spec.disk)
            self.reads += missed
            cache = min(left, cache + missed)
        self.cache = cache

    def _balloon(self, now_s: int) -> None:
        spec = self.spec
        if now_s >= spec.follows_s or (self.starved and now_s < self.asked_s + spec.lag_s) or now_s < self.boot_s:
            return
        if self.target > self.actual:
            self.actual = min(self.target, self.actual + DEFLATE)
            return
        # It stops where even the kernel's reclaim finds nothing ("out of puff"): it never kills.
        spare = self.unused + self.cache - 32.0 + spec.swap - self.swapped - MIN_FREE
        self.actual -= max(0.0, min(spec.inflate, self.actual - self.target, spare))

    def _killed(self, now_s: int) -> None:
        self.kills += 1
        self.down_s = now_s + RESTART_S
        self.swapped = 0.0

    def _poll(self, now_s: int) -> None:
        """The hypervisor asks again a period after the last answer; answers may be late, or never come."""
        spec = self.spec
        if not spec.driver or self.period_s <= 0 or spec.silent_s[0] <= now_s < spec.silent_s[1] or now_s < self.boot_s:
            return
        if self.coming is None:
            delay = spec.delays_s[self.polls % len(spec.delays_s)]
            self.polls += 1
            if delay is None:
                self.poll_s = now_s + self.period_s
                return
            if self.starved:
                delay += spec.lag_s
            self.coming = self._look(now_s + delay)
            if delay:
                self.poll_s = now_s + delay
                return
        self.reading, self.coming = self.coming, None
        self.poll_s = now_s + self.period_s

    def _look(self, when_s: int) -> Reading:
        usable: Optional[float] = self.usable
        if self.spec.clamped:
            usable = min(self.usable, self.unused)
        if not self.spec.usable:
            usable = None
        faults = 1e9 - when_s if self.spec.falls else self.faults
        return Reading(when_s, self.unused, usable, self.cache + self.spec.shared, self.swap_in, self.swap_out, faults)

    def reset(self, now_s: int) -> None:
        """It boots: counters at 0, all memory its own until the driver runs and follows its target again."""
        self.alloc = self.cache = self.swapped = self.swap_in = self.swap_out = self.faults = 0.0
        self.boot_s = self.down_s = now_s + BOOT_S
        self.coming, self.follows = None, True
        self.actual = self.spec.maximum
        self.unused = self.actual - KERNEL


class Host:
    """The state of one run. ``events``: the guests of which libvirt told in this second; ``reboots``: by REBOOT."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.now_s = 0
        self.all = [Guest(spec) for spec in world.guests]
        self.guests = [guest for guest in self.all if guest.running]
        self.total = world.total
        self.other = world.other[0]
        self.arc = 0.0
        if world.arc:
            self.arc = max(world.arc[0], self.total - self.other - self._rss() - self.total / 32)
        self.swap_in = 0.0
        self.psi_pct = 0.0
        self.cell_clean = [cell.clean for cell in world.cells]
        self.overrun_s = self.reserve_s = 0
        self.events: list[str] = []
        self.reboots: list[str] = []
        self.lowest = self.available
        self.reserve = max(GIB, self.total / 20)
        self.by_name = {guest.spec.name: guest for guest in self.all}

    def _rss(self) -> float:
        return sum(guest.touched + guest.spec.overhead - guest.host_swapped for guest in self.guests)

    @property
    def available(self) -> float:
        """MemAvailable: the ARC is not in it."""
        return self.total - self.other - self.arc - self._rss()

    @property
    def truly_available(self) -> float:
        arc_least = self.world.arc[0] if self.world.arc else 0.0
        return self.available + max(0.0, self.arc - arc_least)

    def set_target(self, guest: Guest, target: float) -> None:
        """What every tool's command comes to. Counts it, and holds a gift against what was lacking (see figures)."""
        target = max(KERNEL, min(target, guest.spec.maximum))
        if abs(target - guest.target) < 0.5 and abs(target - guest.actual) < 0.5:
            return
        self._account(guest, target)
        guest.target, guest.asked_s, guest.follows = target, self.now_s, True

    def _account(self, guest: Guest, target: float) -> None:
        guest.moves += 1
        rest = self.world.rest_s
        if rest and rest[0] <= self.now_s < rest[1]:
            guest.rest_moves += 1
        person = guest.spec.person
        if person and guest.overruled_s is None and self.now_s > person[0] + 2:
            guest.overruled_s = self.now_s - person[0]
        if target <= guest.target or guest.spec.expands:
            return
        if self.now_s - guest.gift_s > 60:
            spec, now_s = guest.spec, self.now_s
            ahead = max(spec.wanted[now_s : now_s + 30])
            # It may rise once more as it did over the last two answers.
            rose = min(spec.rate * spec.stats_s, ahead - min(spec.wanted[max(0, now_s - 2 * spec.stats_s) : now_s + 1]))
            comfortable = ahead + rose + KERNEL + MIN_FREE + self.world.comfort
            guest.lacks += max(LEAST, max(spec.size, comfortable) - guest.target)
        guest.gift_s = self.now_s
        guest.gifts += target - guest.target

    def step(self, now_s: int) -> None:
        self.now_s = now_s
        world = self.world
        self.events, self.reboots = [], []
        if len(self.guests) < len(self.all):
            self._start(now_s)
        for guest in self.guests:
            spec = guest.spec
            if guest.told != guest.actual and now_s >= guest.boot_s:
                guest.told = guest.actual
                self.events.append(spec.name)
            if spec.resets_s and now_s in spec.resets_s:
                guest.reset(now_s)
                self.events.append(spec.name)
                self.reboots.append(spec.name)
            if spec.person and now_s == spec.person[0]:
                guest.target, guest.asked_s, guest.follows = spec.person[1], now_s, True
            guest.step(now_s)
        self.other = world.other[now_s] if now_s < len(world.other) else world.other[-1]
        self.swap_in += world.swap_ins.get(now_s, 0.0)
        self._pay(now_s)

    def _start(self, now_s: int) -> None:
        for guest in self.all:
            if not guest.running and now_s >= guest.spec.starts_s:
                guest.running = True
                self.guests.append(guest)
                self.events.append(guest.spec.name)

    def _pay(self, now_s: int) -> None:
        """The host's own memory: the ARC gives way slowly, then its swap takes what is too much, then a QEMU dies."""
        world = self.world
        free = self.total - self.other - self._rss()
        if world.arc:
            least, speed = world.arc
            wanted = max(least, free - self.total / 32)
            self.arc += max(-speed, min(speed / 4, wanted - self.arc))
        available = free - self.arc
        self.lowest = min(self.lowest, available)
        swapped = sum(guest.host_swapped for guest in self.guests) if world.swap else 0.0
        if available < 0:
            self.overrun_s += 1
            if world.arc and self.arc > world.arc[0]:
                self.arc -= min(self.arc - world.arc[0], -available)
            elif swapped - available <= world.swap:
                self._swap_out(-available)
            else:
                self._kill_one(self.guests, now_s)
            self.psi_pct = min(STALLED_PCT, self.psi_pct + 8)
        elif swapped:
            self._swap_back(min(available / 2, SWAP_IN), swapped)
            # What does not fit is touched as much as what does.
            self.swap_in += min(swapped, 64.0)
            self.psi_pct = max(0.0, self.psi_pct - 2) if available > swapped else self.psi_pct
        else:
            self.psi_pct = max(0.0, self.psi_pct - 4)
        if available < self.reserve - 1:
            self.reserve_s += 1
        if world.rooms or world.cells:
            self._pay_rooms(now_s)
        spare = available + (self.arc - world.arc[0] if world.arc else 0.0) - max(512.0, self.total / 50)
        for guest in self.guests:
            if guest.starved and spare > 64 and guest.actual < guest.spec.maximum - 1 and self._fits(guest):
                guest.spare_s += 1

    def _swap_out(self, size: float) -> None:
        whole = sum(guest.touched for guest in self.guests)
        for guest in self.guests:
            guest.host_swapped += size * guest.touched / whole

    def _swap_back(self, size: float, swapped: float) -> None:
        self.swap_in += size
        for guest in self.guests:
            guest.host_swapped = max(0.0, guest.host_swapped - size * guest.host_swapped / swapped)

    def _kill_one(self, guests: Sequence[Guest], now_s: int) -> None:
        """The host's OOM killer takes the largest QEMU; its guest starts again with all it may have."""
        victim = max(guests, key=lambda guest: guest.rss)
        victim.kills += 1
        victim.reset(now_s)
        victim.touched = victim.host_swapped = 0.0
        victim.down_s = now_s + RESTART_S

    # ------------------------------------------------------------ what only some guests share

    def room_left(self, room: str) -> float:
        return self.world.rooms[room] - sum(guest.rss for guest in self.guests if guest.spec.room == room)

    def cell_free(self, cell: int) -> float:
        spec = self.world.cells[cell]
        held = sum(guest.rss for guest in self.guests if guest.spec.cell == cell)
        return spec.total - held - self.cell_clean[cell] - spec.dirty

    def _fits(self, guest: Guest) -> bool:
        spec = guest.spec
        if spec.room and self.room_left(spec.room) < 64:
            return False
        return spec.cell is None or self.cell_free(spec.cell) + self.cell_clean[spec.cell] > 64

    def _pay_rooms(self, now_s: int) -> None:
        for room in self.world.rooms:
            if self.room_left(room) < 0:
                self._kill_one([guest for guest in self.guests if guest.spec.room == room], now_s)
        for cell, spec in enumerate(self.world.cells):
            free = self.cell_free(cell)
            low = spec.total / 1024
            if free < low:
                self.cell_clean[cell] -= min(self.cell_clean[cell], low - free)
            elif free > 2 * low and self.cell_clean[cell] < spec.clean:
                # The host reads files all the time: what is free becomes cache again.
                self.cell_clean[cell] = min(spec.clean, self.cell_clean[cell] + min(50.0, free - 2 * low))
            if self.cell_free(cell) < 0:
                inside = [guest for guest in self.guests if guest.spec.cell == cell]
                self._kill_one(inside, now_s)
