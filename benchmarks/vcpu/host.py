# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A fake host as the kernel is: guests under load, foreign load, SMT, caches, cells, and what a migration costs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from kvmsched import baseline
from kvmsched.model import Domain, ForeignTime, Host, PinMove, Record, Snapshot, Topology, Vcpu, VcpuPlan

from .sharing import Claim, Mask, Shared, share, waits

HOST_UUID = "00000000-0000-4000-8000-000000000001"
BEGAN_S = 1_700_000_000.0

# What two busy threads of a core lose each: together they do 1.25 times the work of one.
SMT_LOSS = 0.375

# What a pCPU of each class gets done: an assumption, of the order of what is published of such cores.
CLASS_SPEED = {"cpu_core": 1.0, "cpu_atom": 0.6, "": 1.0}

# How often a vCPU that is busy half of the time wakes up: an assumption, of the order of a server under requests.
WAKEUPS_PER_S = 250.0

# How often the kernel takes a thread out of its cache by itself, where pCPUs are busy: periodic and new-idle balancing.
BALANCINGS_PER_S = 1.0
NEW_IDLE_PART = 0.2

# Speeds that change by less than this from one round to the next are taken for found.
_SPEED_STEP = 0.003

Key = Tuple[str, int]


@dataclass(frozen=True)
class Prices:
    """What a change of pCPU costs, in microseconds of lost work, and by what factor remote memory slows a vCPU down.

    At *point* 1 a change within the cache costs 5 us, to another cache 30 us, to another cell 100 us.
    Li, Ding and Shen (2007), "Quantifying the cost of context switch", measured some microseconds to
    more than a thousand, by how much cache the work uses: so points 0, 1, 3 and 10 are looked at.
    """

    point: float = 1.0
    remote: float = 1.0

    def __str__(self) -> str:
        return f"price {self.point:g}" + (f", remote {self.remote:g}" if self.remote > 1 else "")

    def s(self, distance: int) -> float:
        """The seconds that one change costs over *distance*: 0 none, 1 within a cache, 2 a cell, 3 beyond it."""
        return (0.0, 5e-6, 30e-6, 100e-6)[distance] * self.point


@dataclass
class Guest:
    """A domain and what each of its vCPUs wants, as a share of a pCPU.

    ``weight`` is its CPU weight beside that of others, ``cell`` where its memory is (None: no matter).
    ``backlog``: what it can't do now it does later, so that it is always runnable once it gets too
    little; else that work is given up.
    """

    name: str
    wants: List[float]
    pins: List[Mask]
    weight: float = 1.0
    cell: Optional[int] = None
    backlog: bool = False
    fields: Dict[str, object] = field(default_factory=dict)
    definitions: Dict[int, Mask] = field(default_factory=dict)

    @property
    def uuid(self) -> str:
        number = sum(ord(c) * 257**i for i, c in enumerate(self.name)) % 16**12
        return f"10000000-0000-4000-8000-{number:012x}"


@dataclass
class Foreign:
    """One host process that is no vCPU: what it wants, and where it may run."""

    mask: Mask
    load: float
    weight: float = 1.0


class Step(NamedTuple):
    """What came of one stretch of time, in seconds, by vCPU."""

    wanted: List[float]
    worked: List[float]
    ran: List[float]
    waited: List[float]
    lost: List[float]


class FakeHost:
    """Guests on a topology over time. ``groups``: each guest has a cgroup that its vCPUs share, as systemd makes it."""

    def __init__(
        self,
        topology: Topology,
        guests: Iterable[Guest],
        foreign: Sequence[Foreign] = (),
        prices: Prices = Prices(),
        groups: bool = True,
    ) -> None:
        self.topology, self.guests, self.foreign = topology, list(guests), list(foreign)
        self.prices, self.groups = prices, groups
        self.now_s = 1000.0
        self.records: Dict[str, Optional[Record]] = {}
        self._place = {pcpu.id: pcpu for pcpu in topology.pcpus}
        self._smt = any(len(pcpu.siblings) > 1 for pcpu in topology.pcpus)
        self._hybrid = any(pcpu.kind for pcpu in topology.pcpus)
        self._shapes: Dict[Mask, _Shape] = {}
        self._time: Dict[Key, float] = {}
        self._delay: Dict[Key, float] = {}
        self._busy = {pcpu.id: 0.0 for pcpu in topology.pcpus}
        self._foreign_time = {f.mask & topology.online: 0.0 for f in foreign}
        self._owed: Dict[Key, float] = {}

    # ------------------------------------------------------------ time

    def keys(self) -> List[Key]:
        return [(guest.uuid, n) for guest in self.guests for n in range(len(guest.wants))]

    def run(self, seconds: float) -> Step:
        """Let *seconds* pass."""
        wants, weights, masks = self._threads()
        claims = [Claim(min(1.0, w), g, m) for w, g, m in zip(wants, weights, masks)]
        others = self._others()
        shared = share([*claims, *others])
        speeds, costs = [1.0] * len(wants), [0.0] * len(wants)
        for _round in range(self._rounds(masks)):
            known = speeds
            speeds, costs = self._frictions(claims, shared)
            claims = [c._replace(want=min(1.0, w / s + k)) for c, w, s, k in zip(claims, wants, speeds, costs)]
            shared = share([*claims, *others])
            if max(map(abs, map(float.__sub__, speeds, known))) < _SPEED_STEP:
                break
        queued = waits([*claims, *others], shared)
        return self._account(seconds, wants, claims, shared, queued, speeds, costs)

    def _rounds(self, masks: Sequence[Mask]) -> int:
        """How often to look at what makes work slower: siblings slow each other down, so they are busy for longer."""
        if self._smt:
            return 8
        if self._hybrid:
            return 2
        return int(self.prices.remote > 1 or (self.prices.point > 0 and any(len(mask) > 1 for mask in masks)))

    def _threads(self) -> Tuple[List[float], List[float], List[Mask]]:
        wants: List[float] = []
        weights: List[float] = []
        masks: List[Mask] = []
        for guest in self.guests:
            total = sum(guest.wants)
            for number, want in enumerate(guest.wants):
                wants.append(want)
                # Its part of the guest's weight: calc_group_shares() in the kernel's fair.c, with mean loads.
                weights.append(guest.weight / (1 + total - want) if self.groups else 1.0)
                masks.append(self.real_mask(guest, number))
        return wants, weights, masks

    def _others(self) -> List[Claim]:
        online = self.topology.online
        return [Claim(f.load, f.weight, f.mask & online) for f in self.foreign if f.load > 0]

    def real_mask(self, guest: Guest, number: int) -> Mask:
        """Where the kernel can put a vCPU. It balances nothing onto isolated pCPUs, nor among them."""
        affinity = self.affinity(guest, number)
        balanced = affinity - self.topology.isolated if self.topology.isolated else affinity
        return balanced or frozenset({min(affinity)})

    def affinity(self, guest: Guest, number: int) -> Mask:
        """What the kernel makes of a pin: without any pCPU that is online, the thread may run on all that are."""
        within = self.topology.online
        cgroup = guest.fields.get("cgroup_pcpus")
        if isinstance(cgroup, frozenset):
            within &= cgroup
        return guest.pins[number] & within or within

    def _account(
        self,
        seconds: float,
        wants: List[float],
        claims: List[Claim],
        shared: Shared,
        queued: List[float],
        speeds: List[float],
        costs: List[float],
    ) -> Step:
        worked, waited, lost = [], [], []
        index = 0
        for guest in self.guests:
            for number in range(len(guest.wants)):
                key = (guest.uuid, number)
                run, want = shared.runs[index], claims[index].want
                wait = queued[index]
                if run < want - 1e-9:
                    wait = max(wait, 1.0 - run if guest.backlog else want - run)
                toll = min(run, costs[index]) + min(run, self._owed.pop(key, 0.0) / seconds)
                worked.append(seconds * min(wants[index], max(0.0, run - toll) * speeds[index]))
                waited.append(seconds * wait)
                lost.append(seconds * toll)
                self._time[key] = self._time.get(key, 0.0) + seconds * run
                self._delay[key] = self._delay.get(key, 0.0) + seconds * wait
                index += 1
        for pcpu, busy in shared.busy.items():
            self._busy[pcpu] += seconds * min(1.0, busy)
        for claim, run in zip(self._others(), shared.runs[index:]):
            self._foreign_time[claim.mask] += seconds * run
        self.now_s += seconds
        ran = [seconds * run for run in shared.runs[:index]]
        return Step([seconds * want for want in wants], worked, ran, waited, lost)

    # ------------------------------------------------------------ what makes work slower

    def _frictions(self, claims: List[Claim], shared: Shared) -> Tuple[List[float], List[float]]:
        """How fast each vCPU works while it runs, and what share of a pCPU its changes of pCPU cost it."""
        pace = {mask: self._pace(mask, shared) for mask in {claim.mask for claim in claims}}
        far = {(mask, cell): self._remote_part(mask, cell, shared) for mask in pace for cell in self._memory_cells()}
        speeds, costs = [], []
        cells = [guest.cell for guest in self.guests for _want in guest.wants]
        for claim, cell, run in zip(claims, cells, shared.runs):
            speed = pace[claim.mask]
            if cell is not None and self.prices.remote > 1:
                speed /= 1 + (self.prices.remote - 1) * far[claim.mask, cell]
            speeds.append(speed)
            costs.append(self._roaming(claim, run, shared) if len(claim.mask) > 1 and self.prices.point else 0.0)
        return speeds, costs

    def _memory_cells(self) -> List[int]:
        cells = {guest.cell for guest in self.guests if guest.cell is not None}
        return sorted(cells) if self.prices.remote > 1 else []

    def _pace(self, mask: Mask, shared: Shared) -> float:
        """The speed of a thread of *mask*, by how often its sibling is busy too; a set uses its idle cores first."""
        own = self._class_speed(mask, shared)
        if not self._smt:
            return own
        busy = shared.busy
        if len(mask) == 1:
            (pcpu,) = mask
            siblings = self._place[pcpu].siblings - {pcpu}
            return own * (1 - SMT_LOSS * min(1.0, sum(busy.get(p, 0.0) for p in siblings)))
        cores = len({min(self._place[p].siblings) for p in mask})
        total = sum(busy.get(p, 0.0) for p in mask)
        return own * (1 - SMT_LOSS * min(1.0, 2 * max(0.0, total - cores) / total)) if total > 0 else own

    def _class_speed(self, mask: Mask, shared: Shared) -> float:
        """The speed of the pCPUs on which a thread of *mask* runs: of a set the kernel uses the strong ones first."""
        if not self._hybrid:
            return 1.0
        total = left = min(len(mask), sum(shared.flows.get(mask, {}).values())) or 1.0
        done = 0.0
        for speed in sorted((CLASS_SPEED[self._place[p].kind] for p in mask), reverse=True):
            done += min(1.0, left) * speed
            left -= min(1.0, left)
        return done / total

    def _remote_part(self, mask: Mask, cell: int, shared: Shared) -> float:
        flow = shared.flows.get(mask, {})
        total = sum(flow.values())
        there = sum(amount for pcpu, amount in flow.items() if self._place[pcpu].cell != cell)
        return there / total if total > 0 else 0.0

    def _roaming(self, claim: Claim, run: float, shared: Shared) -> float:
        """The cost of a floating thread's changes of pCPU: it is woken where an idle pCPU of its cache is."""
        shape = self._shape(claim.mask)
        taken = sum(shared.busy.get(p, 0.0) for p in claim.mask) / len(claim.mask)
        crowded = max(0.0, taken - run / len(claim.mask))
        wakeups = WAKEUPS_PER_S * 4 * claim.want * (1 - claim.want)
        near_full = taken**shape.near
        near = wakeups * crowded * (1 - near_full) if shape.near > 1 else 0.0
        cost = near * self.prices.s(1)
        if shape.caches > 1:
            idle_there = 1 - taken ** (len(claim.mask) - shape.near)
            away = (wakeups * near_full * NEW_IDLE_PART * idle_there + BALANCINGS_PER_S) * crowded
            cost += away * (shape.beyond * self.prices.s(3) + (1 - shape.beyond) * self.prices.s(2))
        return cost

    def _shape(self, mask: Mask) -> _Shape:
        if mask not in self._shapes:
            caches = {self._place[p].llc for p in mask}
            cells = [sum(1 for p in mask if self._place[p].cell == c) for c in {self._place[p].cell for p in mask}]
            near = len(mask) / len(caches)
            other = len(mask) - near
            beyond = (len(mask) - len(mask) / len(cells)) / other if other > 0 else 0.0
            self._shapes[mask] = _Shape(near, len(caches), min(1.0, beyond))
        return self._shapes[mask]

    # ------------------------------------------------------------ what libvirt tells

    def snapshot(self) -> Snapshot:
        """vCPU time in ticks of 10 ms, delay and busy time exactly."""
        return Snapshot(
            monotonic_s=self.now_s,
            wall_s=BEGAN_S + self.now_s,
            host=Host(
                uuid=HOST_UUID,
                name="fake",
                uri="fake:///",
                driver="QEMU",
                topology=self.topology,
                busy_ns={pcpu: int(busy * 1e9) for pcpu, busy in self._busy.items()},
                bound_ns={pcpu: int(1e9 * self._foreign_time.get(frozenset({pcpu}), 0.0)) for pcpu in self._busy},
                foreign_ns=self._confined(),
            ),
            domains=tuple(self._domain(number, guest) for number, guest in enumerate(self.guests, 1)),
        )

    def _confined(self) -> Tuple[ForeignTime, ...]:
        """Foreign time on sets: what may run everywhere is in none, what is bound to one pCPU is told elsewhere."""
        known = self._foreign_time.items()
        return tuple(ForeignTime(m, int(1e9 * t)) for m, t in known if len(m) > 1 and m != self.topology.online)

    def _domain(self, number: int, guest: Guest) -> Domain:
        uuid = guest.uuid
        vcpus = tuple(
            Vcpu(
                id=n,
                pin=guest.pins[n],
                time_ns=int(self._time.get((uuid, n), 0.0) * 100 + 1e-6) * 10_000_000,
                delay_ns=int(self._delay.get((uuid, n), 0.0) * 1e9),
                affinity=self.affinity(guest, n),
                definition=guest.definitions.get(n),
            )
            for n in range(len(guest.wants))
        )
        weight = 100 * guest.weight if self.groups else None
        record = self.records.get(uuid)
        domain = Domain(uuid=uuid, name=guest.name, id=number, vcpus=vcpus, cpu_weight=weight, record=record)
        return replace(domain, **guest.fields) if guest.fields else domain

    # ------------------------------------------------------------ change

    def apply(self, plan: VcpuPlan, seen: Snapshot) -> Dict[Key, Tuple[Mask, Mask]]:
        """Carry the plan out with its records, as the project does; return what changed of the vCPUs."""
        now_s = int(seen.wall_s)
        domains = {domain.uuid: domain for domain in seen.domains}
        for adoption in plan.adoptions:
            domain = domains[adoption.uuid]
            self.records[domain.uuid] = baseline.adopt(domain.record, domain, adoption, HOST_UUID, now_s)
        pins = {}
        for move in plan.moves:
            assert isinstance(move, PinMove)
            record = self.records.get(move.uuid)
            self.records[move.uuid] = baseline.intend(record, domains[move.uuid], move, HOST_UUID, now_s)
            if move.thread == "vcpu":
                pins[move.uuid, move.id] = move.after
        return self.repin(pins)

    def repin(self, pins: Dict[Key, Mask]) -> Dict[Key, Tuple[Mask, Mask]]:
        """Set pins; return before and after of those that changed. Each change is paid for once."""
        changed = {}
        for guest in self.guests:
            for number, before in enumerate(guest.pins):
                after = pins.get((guest.uuid, number), before)
                if after != before:
                    changed[guest.uuid, number] = (before, after)
                    guest.pins[number] = after
                    self._owed[guest.uuid, number] = self.prices.s(self._distance(before, after))
        return changed

    def _distance(self, before: Mask, after: Mask) -> int:
        """How far a change of pin takes a vCPU; a wider set costs nothing by itself."""
        if before <= after:
            return 0
        old, new = self._place.get(min(before)), self._place[min(after)]
        if old is None or old.cell != new.cell:
            return 3
        return 1 if old.llc == new.llc else 2


class _Shape(NamedTuple):
    """A mask's caches: pCPUs in each (mean), how many there are, and which part of the others lies in other cells."""

    near: float
    caches: int
    beyond: float
