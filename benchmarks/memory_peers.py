# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Other balancers' rules, written anew from their published formulas, each at its own period.

No code was taken over. What they lack (freshness, stuck balloons, a host reserve...) is left
lacking; what their surroundings provide (a minimum for each guest) is given to all alike.
"""

from __future__ import annotations

from collections import deque

from memory_simulator import Guest, Host

RESERVE = 1638  # max(1G, 5 %) of the simulated 32 GiB, for the readers of the tables


def clamp(value: float, low: float, high: float) -> float:
    return max(low, min(high, value))


class Seed:
    """kvmScheduling's README (github.com/seanchen1991/kvmScheduling), with the arithmetic that it means.

    Judged by unused memory; half of the most wasteful guest's unused memory goes to the most starved,
    else waste is added from the host, else the excess goes back. Period 3 s as in its example.
    """

    name, stats_s, period_s = "seed", 1, 3
    starvation, waste = 150.0, 300.0

    def tick(self, host: Host) -> None:
        if host.now_s % self.period_s:
            return
        starved = min(host.guests, key=lambda g: g.reading[1])
        wasteful = max(host.guests, key=lambda g: g.reading[1])
        unused = wasteful.reading[1]
        if starved.reading[1] < self.starvation:
            if unused > self.waste:
                host.set_target(wasteful, wasteful.actual - unused / 2)
                host.set_target(starved, min(starved.maximum, starved.actual + unused / 2))
            else:
                host.set_target(starved, min(starved.maximum, starved.actual + self.waste))
        elif unused > self.waste:
            host.set_target(wasteful, wasteful.actual - (unused - self.waste))


class Mom:
    """oVirt MOM, doc/balloon.rules (github.com/oVirt/mom, GPL-2.0): host pressure below 20 % free, steps of 5 %.

    Means over the last 10 samples of 5 s; a pass every 10 s.
    """

    name, stats_s, period_s = "MOM", 5, 10
    pressure, critical, wanted, step, least = 0.20, 0.05, 0.20, 0.05, 0.0025

    def __init__(self) -> None:
        self.samples: dict[str, deque[tuple[float, float]]] = {}

    def tick(self, host: Host) -> None:
        if host.now_s % 5 == 0:
            for guest in host.guests:
                row = self.samples.setdefault(guest.name, deque(maxlen=10))
                row.append((guest.actual, guest.reading[1]))
        if host.now_s % self.period_s:
            return
        free = host.available / host.total
        for guest in host.guests:
            target = self.shrunk(guest, free) if free < self.pressure else self.grown(guest)
            if abs(target - guest.actual) >= self.least * guest.actual:
                host.set_target(guest, target)

    def used(self, guest: Guest) -> float:
        row = self.samples[guest.name]
        return sum(actual - unused for actual, unused in row) / len(row)

    def shrunk(self, guest: Guest, free: float) -> float:
        share = free - self.critical if free <= self.critical else self.wanted * free / self.pressure
        want = max(guest.minimum, self.used(guest) + share * guest.actual)
        return min(guest.actual, max((1 - self.step) * guest.actual, want))

    def grown(self, guest: Guest) -> float:
        want = max(guest.minimum, self.used(guest) + self.wanted * guest.actual)
        return max(guest.actual, min(guest.maximum, (1 + self.step) * guest.actual, want))


class Proxmox:
    """Proxmox VE's AutoBalloon (git.proxmox.com, pve-manager; AGPL-3): the host is kept at 80 % use, by shares.

    Pressed guests (free below a quarter of their minimum, or below it) grow first; +-100 MiB per guest
    and pass of 10 s; deadband 10 MiB.
    """

    name, stats_s, period_s = "Proxmox", 2, 10
    use, most = 0.80, 100.0

    def tick(self, host: Host) -> None:
        if host.now_s % self.period_s:
            return
        goal = host.total * self.use - (host.total - host.available)
        if goal > 10:
            pressed = [g for g in host.guests if g.reading[1] <= 0.25 * g.minimum or g.actual < g.minimum]
            if not self.spread(host, pressed, goal):
                self.spread(host, list(host.guests), goal)
        elif goal < -10:
            free = [g for g in host.guests if g.reading[1] > 0.25 * g.minimum]
            if not self.spread(host, free, goal):
                self.spread(host, list(host.guests), goal)

    def spread(self, host: Host, guests: list[Guest], goal: float) -> bool:
        """Set desired sizes: minimum plus an equal share of what is above the minima; clamped ones drop out."""
        left, desired = list(guests), {}
        while left:
            spare = sum(g.actual - g.minimum for g in guests) + goal
            spare -= sum(desired[g.name] - g.minimum for g in guests if g.name in desired)
            target = {g.name: g.minimum + spare * g.weight / sum(x.weight for x in left) for g in left}
            bound = [g for g in left if not g.minimum <= target[g.name] <= g.maximum]
            if not bound:
                desired.update(target)
                break
            desired.update({g.name: clamp(target[g.name], g.minimum, g.maximum) for g in bound})
            left = [g for g in left if g not in bound]
        changed = False
        for guest in guests:
            wanted = desired[guest.name]
            if (goal > 0) == (wanted > guest.actual) and abs(wanted - guest.actual) > 1:
                host.set_target(guest, clamp(wanted, guest.actual - self.most, guest.actual + self.most))
                changed = True
        return changed


class Squeezed:
    """Xen's squeezed (github.com/xapi-project/xen-api, ocaml/squeezed; LGPL-2.1): one share of every dynamic range.

    Does not look at the guests' need at all. Two phases: targets that free memory first. Every 10 s.
    """

    name, stats_s, period_s = "squeezed", 5, 10
    reserve = 72.0

    def __init__(self) -> None:
        self.waiting: dict[str, float] = {}

    def tick(self, host: Host) -> None:
        if self.waiting and all(g.actual <= g.target + 0.5 for g in host.guests):
            for guest in host.guests:
                if guest.name in self.waiting:
                    host.set_target(guest, self.waiting.pop(guest.name))
        if host.now_s % self.period_s:
            return
        ranges = sum(g.maximum - g.minimum for g in host.guests)
        spare = host.available + sum(max(0.0, g.actual - g.minimum) for g in host.guests) - self.reserve
        share = clamp(spare / ranges, 0.0, 1.0)
        targets = {g.name: g.minimum + share * (g.maximum - g.minimum) for g in host.guests}
        self.waiting = {}
        for guest in host.guests:
            target = targets[guest.name]
            if target < guest.actual - 0.5:
                host.set_target(guest, target)
            elif target > guest.actual + 0.5:
                self.waiting[guest.name] = target


class Qmemman:
    """Qubes OS qmemman (github.com/QubesOS/qubes-core-admin, qubes/qmemman; LGPL/GPL): 1.3 times what is used.

    Who has enough shares the surplus in proportion; short: donors down to that, takers split it. Acts
    when 150 MiB move, or a guest below its need gains 15. Reads every second, donors first.
    """

    name, stats_s, period_s = "qmemman", 1, 1
    margin, least, reserve = 1.3, 200.0, 50.0

    def __init__(self) -> None:
        self.waiting: dict[str, float] = {}

    def tick(self, host: Host) -> None:
        if self.waiting:
            arrived = all(g.actual <= g.target + 0.5 for g in host.guests if g.name not in self.waiting)
            for guest in host.guests:
                if arrived and guest.name in self.waiting:
                    host.set_target(guest, self.waiting.pop(guest.name))
        prefs = {g.name: self.preferred(g) for g in host.guests}
        promised = sum(max(0.0, g.target - min(g.touched, g.actual)) for g in host.guests)
        spare = host.available - self.reserve - promised
        gap = sum(g.actual - prefs[g.name] for g in host.guests) + spare
        targets = self.plenty(host, prefs, gap) if gap > 0 else self.scarce(host, prefs, spare)
        self.send(host, prefs, targets)

    def preferred(self, guest: Guest) -> float:
        _when, _unused, usable, swapped, _in, _out = guest.reading
        used = guest.actual - usable + swapped
        return clamp(self.margin * used, self.least, guest.maximum)

    def plenty(self, host: Host, prefs: dict[str, float], gap: float) -> dict[str, float]:
        whole = sum(prefs.values())
        return {g.name: min(g.maximum, prefs[g.name] * (1 + gap / whole)) for g in host.guests}

    def scarce(self, host: Host, prefs: dict[str, float], spare: float) -> dict[str, float]:
        takers = [g for g in host.guests if prefs[g.name] > g.actual]
        freed = max(0.0, spare) + sum(max(0.0, g.actual - prefs[g.name]) for g in host.guests)
        whole = sum(prefs[g.name] for g in takers) or 1.0
        targets = {g.name: min(g.actual, prefs[g.name]) for g in host.guests}
        for guest in takers:
            targets[guest.name] = min(guest.maximum, guest.actual + freed * prefs[guest.name] / whole)
        return targets

    def send(self, host: Host, prefs: dict[str, float], targets: dict[str, float]) -> None:
        moved = sum(abs(targets[g.name] - g.actual) for g in host.guests)
        relief = any(g.actual < prefs[g.name] and targets[g.name] - g.actual > 15 for g in host.guests)
        if moved < 150 and not relief:
            return
        self.waiting = {}
        for guest in host.guests:
            if targets[guest.name] < guest.actual - 0.5:
                host.set_target(guest, targets[guest.name])
            elif targets[guest.name] > guest.actual + 0.5:
                self.waiting[guest.name] = targets[guest.name]


PEERS = (Seed, Mom, Proxmox, Squeezed, Qmemman)
