# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fake hosts for tests of the vCPU policy: topologies as libvirt tells them, and guests that share pCPUs fairly.

All topologies here are made up. Loads come from a small model of the kernel's fair scheduler: each
pCPU is shared max-min fairly, and what a vCPU wants beyond its share is run-queue delay.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any, Iterable, Optional, Sequence

from kvmsched.config import VcpuPolicy
from kvmsched.model import (
    Cell,
    Domain,
    Host,
    Pcpu,
    PinMove,
    PinRecord,
    Record,
    Snapshot,
    Thread,
    Topology,
    Vcpu,
    VcpuPlan,
    to_json,
)
from kvmsched.policy import vcpu
from kvmsched.policy.vcpu import Safeties
from kvmsched.policy.vcpu.dedicated import Dedication
from kvmsched.policy.vcpu.demand import Demand, measure
from kvmsched.policy.vcpu.eligibility import dedication_on
from kvmsched.policy.vcpu.history import VcpuHistory
from kvmsched.policy.vcpu.problem import Problem
from kvmsched.units import CpuSet, parse_cpuset

HOST_UUID = "00000000-0000-4000-8000-000000000001"


def cpus(text: str) -> CpuSet:
    return parse_cpuset(text) if text else frozenset()


def uuid_of(name: str) -> str:
    return f"10000000-0000-4000-8000-{sum(ord(c) * 257**i for i, c in enumerate(name)) % 16**12:012x}"


def topology(
    count: int,
    *,
    threads: int = 1,
    llc: int = 0,
    cells: int = 1,
    isolated: str = "",
    offline: str = "",
    ids: Optional[Sequence[int]] = None,
    distance: int = 20,
    weak: str = "",
) -> Topology:
    """*count* pCPUs: neighbours are SMT siblings; *llc* pCPUs share a cache; offline ones are left out.

    *weak* ones are of a class of their own, and have no siblings: a hybrid host.
    """
    numbers = list(ids) if ids is not None else list(range(count))
    size = count // cells
    rows = []
    for position, number in enumerate(numbers):
        core, group = position // threads, position // (llc or size)
        rows.append(
            Pcpu(
                id=number,
                cell=position // size,
                socket=position // size,
                core=core,
                siblings=frozenset(
                    {number} if number in cpus(weak) else numbers[core * threads : (core + 1) * threads]
                ),
                llc=frozenset(numbers[group * (llc or size) : (group + 1) * (llc or size)]),
                kind=("cpu_atom" if number in cpus(weak) else "cpu_core") if weak else "",
            )
        )
    online = [row for row in rows if row.id not in cpus(offline)]
    return Topology(
        pcpus=tuple(online),
        cells=tuple(
            Cell(
                id=c,
                pcpus=frozenset(p.id for p in online if p.cell == c),
                distances={other: 10 if other == c else distance for other in range(cells)},
            )
            for c in range(cells)
        ),
        isolated=cpus(isolated),
    )


@dataclass
class Guest:
    """A domain and what each of its vCPUs wants, as a share of a pCPU.

    ``backlog``: its work piles up while it waits (a server), so that it is always runnable once it
    gets too little; else it is busy for a share of the wall-clock time (a periodic task).
    ``latency``: how long it waits, all in all, at its many short wake-ups, if its pCPU is busy.
    """

    name: str
    wants: list[float]
    pins: list[CpuSet]
    backlog: bool = False
    latency: float = 0.0
    fields: dict[str, object] = field(default_factory=dict)
    definitions: dict[int, CpuSet] = field(default_factory=dict)
    scheduler: Optional[str] = None
    affinity: Optional[CpuSet] = None
    threads: tuple[Thread, ...] = ()

    @property
    def uuid(self) -> str:
        return uuid_of(self.name)


class FakeHost:
    """Guests on a fake topology over time: ``run`` lets time pass, ``apply`` carries a plan out."""

    def __init__(self, host: Topology, guests: Iterable[Guest], foreign: Optional[dict[int, float]] = None) -> None:
        self.topology = host
        self.guests = list(guests)
        self.foreign = dict(foreign or {})
        self.now_s = 1000.0
        self.records: dict[str, Record] = {}
        self._ids: dict[str, int] = {}
        self._time: dict[tuple[str, int], float] = {}
        self._delay: dict[tuple[str, int], float] = {}
        self._busy: dict[int, float] = {p.id: 0.0 for p in host.pcpus}

    # ------------------------------------------------------------ time

    def run(self, seconds: float) -> None:
        """Let *seconds* pass."""
        for pcpu, threads in self._queues().items():
            foreign = self.foreign.get(pcpu, 0.0)
            wants = [want for _guest, _number, want in threads]
            shares = _max_min([*wants, foreign], 1.0)
            self._busy[pcpu] += seconds * min(1.0, sum(shares))
            for (guest, number, want), share in zip(threads, shares):
                key = (guest.uuid, number)
                waits = (1.0 if guest.backlog else want) - share if share < want - 1e-9 else 0.0
                waits += guest.latency * min(1.0, sum(shares))
                self._time[key] = self._time.get(key, 0.0) + seconds * share
                self._delay[key] = self._delay.get(key, 0.0) + seconds * waits
        self.now_s += seconds

    def _queues(self) -> dict[int, list[tuple[Guest, int, float]]]:
        """The vCPUs on each pCPU; what floats goes to the emptiest one that it may use, largest first."""
        queues: dict[int, list[tuple[Guest, int, float]]] = {p.id: [] for p in self.topology.pcpus}
        level = {p.id: self.foreign.get(p.id, 0.0) for p in self.topology.pcpus}
        online = self.topology.online
        threads = [(_affinity(g, n, online), want, g, n) for g in self.guests for n, want in enumerate(g.wants)]
        for mask, want, guest, number in sorted(threads, key=lambda t: (len(t[0]) > 1, -t[1])):
            pcpu = min(mask, key=lambda p: (level[p], p))
            queues[pcpu].append((guest, number, want))
            level[pcpu] += want
        return queues

    def snapshot(self) -> Snapshot:
        """What libvirt would tell: vCPU time in ticks of 10 ms, delay and busy time exactly."""
        online = self.topology.online
        return Snapshot(
            monotonic_s=self.now_s,
            wall_s=1_700_000_000 + self.now_s,
            host=Host(
                uuid=HOST_UUID,
                name="fake",
                uri="fake:///",
                driver="QEMU",
                topology=self.topology,
                busy_ns={p: int(busy * 1e9) for p, busy in self._busy.items()},
            ),
            domains=tuple(self._domain(guest, online) for guest in self.guests),
        )

    def _domain(self, guest: Guest, online: CpuSet) -> Domain:
        number = self._ids.setdefault(guest.name, len(self._ids) + 1)
        vcpus = tuple(
            Vcpu(
                id=n,
                pin=guest.pins[n],
                time_ns=int(self._time.get((guest.uuid, n), 0.0) * 100 + 1e-6) * 10_000_000,
                delay_ns=int(self._delay.get((guest.uuid, n), 0.0) * 1e9),
                affinity=_affinity(guest, n, online),
                definition=guest.definitions.get(n),
                scheduler=guest.scheduler,
            )
            for n in range(len(guest.wants))
        )
        values: dict[str, object] = {"record": self.records.get(guest.uuid), **guest.fields}
        return Domain(uuid=guest.uuid, name=guest.name, id=number, vcpus=vcpus, threads=guest.threads, **values)  # type: ignore[arg-type]

    def window(self, seconds: float = 2.0) -> list[Snapshot]:
        """Two snapshots *seconds* apart."""
        first = self.snapshot()
        self.run(seconds)
        return [first, self.snapshot()]

    # ------------------------------------------------------------ change

    def apply(self, plan: VcpuPlan) -> None:
        """Carry the plan's moves out, and keep a record of each as the project does."""
        for move in plan.moves:
            assert isinstance(move, PinMove)
            guest = next(g for g in self.guests if g.uuid == move.uuid)
            self._keep(guest, move)
            if move.thread == "vcpu":
                assert guest.pins[move.id] == move.before
                guest.pins[move.id] = move.after
            else:
                guest.threads = tuple(
                    replace(t, pin=move.after) if (t.kind, t.id) == (move.thread, move.id) else t for t in guest.threads
                )

    def _keep(self, guest: Guest, move: PinMove) -> None:
        record = self.records.get(guest.uuid) or Record(HOST_UUID, 1)
        old = record.pin(move.thread, move.id)
        new = PinRecord(
            thread=move.thread,
            id=move.id,
            original=old.original if old else move.before,
            previous=move.before,
            intended=move.after,
            when_s=int(1_700_000_000 + self.now_s),
            defined=old.defined if old else guest.definitions.get(move.id) if move.thread == "vcpu" else None,
        )
        others = tuple(p for p in record.pins if (p.thread, p.id) != (move.thread, move.id))
        self.records[guest.uuid] = replace(record, pins=(*others, new))

    def on(self, pcpu: int) -> list[str]:
        """The names of the guests with a vCPU pinned to *pcpu*, sorted."""
        return sorted(g.name for g in self.guests for pin in g.pins if pin == {pcpu})


def _affinity(guest: Guest, number: int, online: CpuSet) -> CpuSet:
    """What the kernel makes of a pin: without any pCPU that is online, the thread may run on all that are."""
    if guest.affinity is not None:
        return guest.affinity
    cgroup = guest.fields.get("cgroup_pcpus")
    within = online & cgroup if isinstance(cgroup, frozenset) else online
    return guest.pins[number] & within or within


def _max_min(wants: Sequence[float], capacity: float) -> list[float]:
    """Max-min fair shares of *capacity*."""
    shares = [0.0] * len(wants)
    left = capacity
    order = sorted(range(len(wants)), key=lambda i: wants[i])
    for position, index in enumerate(order):
        shares[index] = min(wants[index], left / (len(order) - position))
        left -= shares[index]
    return shares


def guests(count: int, want: float, pin: str, prefix: str = "g", backlog: bool = False) -> list[Guest]:
    """*count* guests of one vCPU, each wanting *want*, all on *pin*."""
    return [Guest(f"{prefix}{n}", [want], [cpus(pin)], backlog=backlog) for n in range(count)]


def shown(snapshots: Sequence[Snapshot]) -> str:
    """The snapshots as JSON, to reproduce a failure from."""
    return json.dumps([to_json(s) for s in snapshots])


# ---------------------------------------------------------------- what tests of several rules begin with

POLICY = VcpuPolicy()


ALL = Safeties()


DAEMON = VcpuPolicy(hold=2, half_life_s=30.0, cooldown_s=30.0, max_moves=2)


def module_passes(
    host: FakeHost, count: int, policy: VcpuPolicy = POLICY, window_s: float = 2.0, safeties: Safeties = ALL
) -> list[int]:
    """The moves of *count* module passes, each carried out."""
    made = []
    for _turn in range(count):
        plan, _history = vcpu.decide(host.window(window_s), policy, safeties=safeties)
        host.apply(plan)
        made.append(len(plan.moves))
    return made


def daemon_passes(
    host: FakeHost, count: int, policy: VcpuPolicy = DAEMON, history: Optional[VcpuHistory] = None
) -> tuple[list[int], VcpuHistory]:
    """The moves of *count* daemon passes, 5 s apart, and the history after them."""
    made = []
    history = history or VcpuHistory()
    for _turn in range(count):
        plan, history = vcpu.decide(host.window(5.0), policy, history)
        host.apply(plan)
        made.append(len(plan.moves))
    return made, history


def pinned_guest(name: str, pins: str, wants: float = 0.5, definitions: str = "", **more: Any) -> Guest:
    """A guest with a vCPU for each word of *pins*; *definitions* are as many words, "-" for none."""
    masks = [cpus(word) for word in pins.split()]
    defined = {n: cpus(word) for n, word in enumerate(definitions.split()) if word != "-"}
    return Guest(name, [wants] * len(masks), masks, definitions=defined, **more)


def own(*members: Guest, host: Optional[Topology] = None, policy: VcpuPolicy = POLICY) -> Dedication:
    return dedication_on(FakeHost(host or topology(8), members).snapshot(), policy)


def one_pass(*members: Guest, host: Optional[Topology] = None, policy: VcpuPolicy = POLICY, **more: Any) -> VcpuPlan:
    plan, _history = vcpu.decide(FakeHost(host or topology(8), members).window(), policy, **more)
    return plan


def led_to(plan: VcpuPlan) -> CpuSet:
    return frozenset().union(*(move.after for move in plan.moves if isinstance(move, PinMove)))


def codes(plan: VcpuPlan) -> dict[str, str]:
    return {skip.domain: skip.code for skip in plan.skips}


def recorded(host: FakeHost, name: str, pins: Iterable[tuple[str, str, str]], where: str = HOST_UUID) -> Snapshot:
    """*pins*: (original, previous, intended) by vCPU."""
    made = tuple(
        PinRecord("vcpu", n, *(cpus(mask) for mask in masks), when_s=1_699_000_000) for n, masks in enumerate(pins)
    )
    host.records[next(g.uuid for g in host.guests if g.name == name)] = Record(where, 1, pins=made)
    return host.snapshot()


# ---------------------------------------------------------------- what tests of several rules begin with


def demand_of(snapshots: list[Snapshot], guest: Guest, vcpu: int = 0) -> Demand:
    return measure(snapshots).demand[guest.uuid, vcpu]


def plain_problem(load: list[float], now: list[int], bins: int) -> Problem:
    count = len(load)
    return Problem(
        [1] * bins, [0.0] * bins, [()] * bins, [0.0] * bins, load, now, list(range(count)), [0] * count,
        [tuple(range(bins))], [False] * count,
    )  # fmt: skip
