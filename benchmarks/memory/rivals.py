# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Other balancers' rules, written anew from their published formulas, each at its own period, and equal shares.

No code was taken over. What they lack (freshness, stuck balloons, a host reserve...) is left
lacking; what their surroundings provide (a minimum for each guest) is given to all alike.
"""

from __future__ import annotations

import contextlib
from collections import deque
from typing import Any, Sequence

from .host import Guest, Host


class Rival:
    """A rule with a period of its own; it never touches a guest whose driver never answered."""

    name, period_s = "", 10

    @contextlib.contextmanager
    def on(self, host: Host) -> Any:
        yield

    def tick(self, host: Host) -> None:
        guests = [guest for guest in host.guests if guest.reading is not None and not guest.spec.inhibitors]
        self.guests = guests
        if guests:
            self.look(host, guests)

    def look(self, host: Host, guests: Sequence[Guest]) -> None:
        raise NotImplementedError


def least(guest: Guest) -> float:
    """The minimum that an operator would give a guest: an eighth of its maximum, 256M at least."""
    return max(256.0, guest.spec.maximum / 8)


def unused(guest: Guest) -> float:
    return guest.reading.unused if guest.reading else 0.0


def clamp(value: float, low: float, high: float) -> float:
    return max(low, min(high, value))


class FirstKvmsched(Rival):
    """kvmScheduling's README (github.com/seanchen1991/kvmScheduling), with the arithmetic that it means.

    Judged by unused memory; half of the most wasteful guest's unused memory goes to the most starved,
    else waste is added from the host, else the excess goes back. Period 3 s as in its example.
    """

    name, period_s = "first kvmsched", 3
    starvation, waste = 150.0, 300.0

    def look(self, host: Host, guests: Sequence[Guest]) -> None:
        if host.now_s % self.period_s:
            return
        starved, wasteful = min(guests, key=unused), max(guests, key=unused)
        idle = unused(wasteful)
        if unused(starved) < self.starvation:
            if idle > self.waste:
                host.set_target(wasteful, wasteful.told - idle / 2)
                host.set_target(starved, min(starved.spec.maximum, starved.told + idle / 2))
            else:
                host.set_target(starved, min(starved.spec.maximum, starved.told + self.waste))
        elif idle > self.waste:
            host.set_target(wasteful, wasteful.told - (idle - self.waste))


class Mom(Rival):
    """oVirt MOM, doc/balloon.rules (github.com/oVirt/mom, GPL-2.0): host pressure below 20 % free, steps of 5 %.

    Means over the last 10 samples of 5 s; a pass every 10 s.
    """

    name, period_s = "MOM", 10
    pressure, critical, wanted, step, least = 0.20, 0.05, 0.20, 0.05, 0.0025

    def __init__(self) -> None:
        self.samples: dict[str, deque[tuple[float, float]]] = {}

    def look(self, host: Host, guests: Sequence[Guest]) -> None:
        if host.now_s % 5 == 0:
            for guest in guests:
                row = self.samples.setdefault(guest.spec.name, deque(maxlen=10))
                row.append((guest.told, unused(guest)))
        if host.now_s % self.period_s:
            return
        free = host.available / host.total
        for guest in (guest for guest in guests if guest.spec.name in self.samples):
            target = self.shrunk(guest, free) if free < self.pressure else self.grown(guest)
            if abs(target - guest.told) >= self.least * guest.told:
                host.set_target(guest, target)

    def used(self, guest: Guest) -> float:
        row = self.samples[guest.spec.name]
        return sum(actual - idle for actual, idle in row) / len(row)

    def shrunk(self, guest: Guest, free: float) -> float:
        share = free - self.critical if free <= self.critical else self.wanted * free / self.pressure
        want = max(least(guest), self.used(guest) + share * guest.told)
        return min(guest.told, max((1 - self.step) * guest.told, want))

    def grown(self, guest: Guest) -> float:
        want = max(least(guest), self.used(guest) + self.wanted * guest.told)
        return max(guest.told, min(guest.spec.maximum, (1 + self.step) * guest.told, want))


class Proxmox(Rival):
    """Proxmox VE's AutoBalloon (git.proxmox.com, pve-manager; AGPL-3): the host is kept at 80 % use, by shares.

    Pressed guests (free below a quarter of their minimum, or below it) grow first; +-100 MiB per guest
    and pass of 10 s; deadband 10 MiB.
    """

    name, period_s = "Proxmox", 10
    use, most = 0.80, 100.0

    def look(self, host: Host, guests: Sequence[Guest]) -> None:
        if host.now_s % self.period_s:
            return
        goal = host.total * self.use - (host.total - host.available)
        if goal > 10:
            pressed = [g for g in guests if unused(g) <= 0.25 * least(g) or g.told < least(g)]
            if not self.spread(host, pressed, goal):
                self.spread(host, list(guests), goal)
        elif goal < -10:
            free = [g for g in guests if unused(g) > 0.25 * least(g)]
            if not self.spread(host, free, goal):
                self.spread(host, list(guests), goal)

    def spread(self, host: Host, guests: list[Guest], goal: float) -> bool:
        """Set desired sizes: minimum plus an equal share of what is above the minima; clamped ones drop out."""
        left = list(guests)
        desired: dict[str, float] = {}
        while left:
            spare = sum(g.told - least(g) for g in guests) + goal
            spare -= sum(desired[g.spec.name] - least(g) for g in guests if g.spec.name in desired)
            target = {g.spec.name: least(g) + spare * g.spec.weight / sum(x.spec.weight for x in left) for g in left}
            bound = [g for g in left if not least(g) <= target[g.spec.name] <= g.spec.maximum]
            if not bound:
                desired.update(target)
                break
            desired.update({g.spec.name: clamp(target[g.spec.name], least(g), g.spec.maximum) for g in bound})
            left = [g for g in left if g not in bound]
        changed = False
        for guest in guests:
            wanted = desired[guest.spec.name]
            if (goal > 0) == (wanted > guest.told) and abs(wanted - guest.told) > 1:
                host.set_target(guest, clamp(wanted, guest.told - self.most, guest.told + self.most))
                changed = True
        return changed


class Squeezed(Rival):
    """Xen's squeezed (github.com/xapi-project/xen-api, ocaml/squeezed; LGPL-2.1): one share of every dynamic range.

    Does not look at the guests' need at all. Two phases: targets that free memory first. Every 10 s.
    """

    name, period_s = "squeezed", 10
    reserve = 72.0

    def __init__(self) -> None:
        self.waiting: dict[str, float] = {}

    def look(self, host: Host, guests: Sequence[Guest]) -> None:
        if self.waiting and all(g.told <= g.target + 0.5 for g in guests):
            for guest in guests:
                if guest.spec.name in self.waiting:
                    host.set_target(guest, self.waiting.pop(guest.spec.name))
        if host.now_s % self.period_s:
            return
        ranges = sum(g.spec.maximum - least(g) for g in guests)
        spare = host.available + sum(max(0.0, g.told - least(g)) for g in guests) - self.reserve
        share = clamp(spare / ranges, 0.0, 1.0)
        targets = {g.spec.name: least(g) + share * (g.spec.maximum - least(g)) for g in guests}
        self.waiting = {}
        for guest in guests:
            target = targets[guest.spec.name]
            if target < guest.told - 0.5:
                host.set_target(guest, target)
            elif target > guest.told + 0.5:
                self.waiting[guest.spec.name] = target


class Qmemman(Rival):
    """Qubes OS qmemman (github.com/QubesOS/qubes-core-admin, qubes/qmemman; LGPL/GPL): 1.3 times what is used.

    Who has enough shares the surplus in proportion; short: donors down to that, takers split it. Acts
    when 150 MiB move, or a guest below its need gains 15. Reads every second, donors first.
    """

    name, period_s = "qmemman", 1
    margin, least, reserve = 1.3, 200.0, 50.0

    def __init__(self) -> None:
        self.waiting: dict[str, float] = {}

    def look(self, host: Host, guests: Sequence[Guest]) -> None:
        if self.waiting:
            arrived = all(g.told <= g.target + 0.5 for g in guests if g.spec.name not in self.waiting)
            for guest in guests:
                if arrived and guest.spec.name in self.waiting:
                    host.set_target(guest, self.waiting.pop(guest.spec.name))
        prefs = {g.spec.name: self.preferred(g) for g in guests}
        promised = sum(max(0.0, g.target - min(g.rss, g.told)) for g in guests)
        spare = host.available - self.reserve - promised
        gap = sum(g.told - prefs[g.spec.name] for g in guests) + spare
        targets = self.plenty(host, prefs, gap) if gap > 0 else self.scarce(host, prefs, spare)
        self.send(host, prefs, targets)

    def preferred(self, guest: Guest) -> float:
        reading = guest.reading
        assert reading is not None
        usable = reading.unused + reading.caches if reading.usable is None else reading.usable
        used = guest.told - usable + guest.swapped
        return clamp(self.margin * used, self.least, guest.spec.maximum)

    def plenty(self, host: Host, prefs: dict[str, float], gap: float) -> dict[str, float]:
        whole = sum(prefs.values())
        return {g.spec.name: min(g.spec.maximum, prefs[g.spec.name] * (1 + gap / whole)) for g in self.guests}

    def scarce(self, host: Host, prefs: dict[str, float], spare: float) -> dict[str, float]:
        takers = [g for g in self.guests if prefs[g.spec.name] > g.told]
        freed = max(0.0, spare) + sum(max(0.0, g.told - prefs[g.spec.name]) for g in self.guests)
        whole = sum(prefs[g.spec.name] for g in takers) or 1.0
        targets = {g.spec.name: min(g.told, prefs[g.spec.name]) for g in self.guests}
        for guest in takers:
            targets[guest.spec.name] = min(guest.spec.maximum, guest.told + freed * prefs[guest.spec.name] / whole)
        return targets

    def send(self, host: Host, prefs: dict[str, float], targets: dict[str, float]) -> None:
        moved = sum(abs(targets[g.spec.name] - g.told) for g in self.guests)
        relief = any(g.told < prefs[g.spec.name] and targets[g.spec.name] - g.told > 15 for g in self.guests)
        if moved < 150 and not relief:
            return
        self.waiting = {}
        for guest in self.guests:
            if targets[guest.spec.name] < guest.told - 0.5:
                host.set_target(guest, targets[guest.spec.name])
            elif targets[guest.spec.name] > guest.told + 0.5:
                self.waiting[guest.spec.name] = targets[guest.spec.name]


class EqualShares(Rival):
    """Every guest the same size, once: what can be had of the host, max-min up to the maxima; then nothing."""

    name = "equal shares"

    def __init__(self) -> None:
        self.done = False

    def look(self, host: Host, guests: Sequence[Guest]) -> None:
        if self.done or host.now_s < 10:
            return
        self.done = True
        fixed = sum(guest.spec.maximum for guest in host.guests if guest not in guests)
        left = host.total - host.other - host.reserve - fixed - 64 * len(host.guests)
        order = sorted(guests, key=lambda guest: guest.spec.maximum)
        for index, guest in enumerate(order):
            share = min(guest.spec.maximum, max(least(guest), left / (len(order) - index)))
            left -= share
            host.set_target(guest, share)


RIVALS = (EqualShares, FirstKvmsched, Mom, Proxmox, Squeezed, Qmemman)
