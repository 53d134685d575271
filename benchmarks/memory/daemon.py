# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""kvmsched on a simulated host: its own decide(), fund(), records and Schedule, with the daemon's order of events.

A pass by the clock, brought forward by balloon events; takes, what is payable at once, and at the next look the rest.
libvirt's place is taken by observe() and send(). Nothing of the policy is written again here.
"""

from __future__ import annotations

import contextlib
from dataclasses import fields, replace
from typing import Any, Callable, Iterable, Iterator, Optional

from kvmsched import baseline
from kvmsched.app import schedule
from kvmsched.config import MemoryPolicy, load, load_daemon
from kvmsched.model import (
    Balloon,
    BalloonMove,
    Cell,
    Domain,
    HostMemory,
    MemoryPlan,
    Move,
    Owner,
    PeriodMove,
    Record,
    Room,
    Skip,
    Snapshot,
    Topology,
)
from kvmsched.model import Host as ModelHost
from kvmsched.policy import memory as policy_room

from .host import Guest, Host

MIB = 1024
# Time of day when a run begins; its guests have been up for a day.
EPOCH_S = 1_000_000
UP_S = 86_400
HOST = "simulated"
# A module run waits so long for what it took, and its two samples are a tick of the statistics apart.
ARRIVAL_S = 10


class _Clock:
    """The simulated monotonic clock that the daemon's Schedule reads."""

    now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s


def silence(_line: str) -> None:
    pass


class Kvmsched:
    """The daemon: *reclaim* None is the default of its policy; *more* goes to MemoryPolicy, *safeties* to decide()."""

    def __init__(self, name: str, safeties: Optional[dict[str, Any]] = None, **more: Any) -> None:
        self.name = name
        self.more = {key: value for key, value in more.items() if value is not None}
        self.asks = _asks(safeties or {})
        self.clock = _Clock()
        self.before: Optional[Snapshot] = None
        self.history: Any = None
        self.records: dict[str, Record] = {}
        self._known: dict[str, tuple[Any, Domain]] = {}
        self.passes = self.planned = 0
        self.sent: list[Move] = []
        self.say: Callable[[str], None] = silence
        self.codes: dict[str, str] = {}

    def defaults(self) -> MemoryPolicy:
        return load_daemon({}).memory

    @contextlib.contextmanager
    def on(self, host: Host) -> Iterator[None]:
        """Run by the simulated clock while this lasts."""
        world = host.world
        settings = {**world.settings, **self.more}
        self.policy = replace(self.defaults(), **settings)
        self.eager = replace(self.policy, reclaim="eager")
        self.phase_s = 0.5 * (world.seed % 2)
        real = vars(schedule)["time"]
        vars(schedule)["time"] = self.clock
        try:
            self.schedule = schedule.Schedule(load_daemon({}))
            yield
        finally:
            vars(schedule)["time"] = real

    def tick(self, host: Host) -> None:
        """One second of the daemon's life: it is told of events, and passes when its Schedule says so."""
        world, now_s = host.world, host.now_s
        if world.daemon_away_s[0] <= now_s < world.daemon_away_s[1]:
            return
        if now_s == world.daemon_away_s[1] or (world.eager_until_s and now_s == world.eager_until_s):
            self.before = None
            self.history = None if world.forgets else self.history
        self.clock.now_s = now_s
        for uuid in host.reboots:
            self.history = self.history and self.history.rebooted(uuid, EPOCH_S + now_s)
        for uuid in host.events:
            self.schedule.hurry(("memory",), uuid)
        for half_s in (0.0, 0.5):
            self.clock.now_s = now_s + half_s
            if "memory" in self.schedule.turns():
                self._pass(host, self.clock.now_s)

    def _pass(self, host: Host, now_s: float) -> None:
        self.passes += 1
        now = self.observe(host, now_s)
        samples = [now] if self.before is None else [self.before, now]
        policy = self.eager if now_s < host.world.eager_until_s else self.policy
        known = self.history
        plan, learn = policy_room.judge(samples, policy, known, **self.asks)
        self.before, self.sent = now, []
        self._explain(host, plan)
        self.carry_out(host, plan, policy, now, known)
        self.history = learn(self.sent)

    def _explain(self, host: Host, plan: MemoryPlan) -> None:
        """Say why a domain is skipped or gets less than it needs, when that changes."""
        if self.say is silence:
            return
        codes = {skip.domain: (skip.code, skip.reason) for skip in plan.skips}
        codes.update({lack.domain: ("unmet", f"{lack.kib // MIB}M, {lack.reason}") for lack in plan.unmet})
        for name, (code, reason) in codes.items():
            if self.codes.get(name) != code:
                self.say(f"{host.now_s:6} {name}: {code}, {reason}")
        self.codes = {name: code for name, (code, _reason) in codes.items()}

    def carry_out(
        self,
        host: Host,
        plan: MemoryPlan,
        policy: MemoryPolicy,
        planned: Snapshot,
        known: Optional[policy_room.MemoryHistory] = None,
    ) -> list[BalloonMove]:
        """What passes.py does with a plan where nothing is waited for. Returns the gives that are left."""
        domains = {domain.uuid: domain for domain in planned.domains}
        for adoption in plan.adoptions:
            domain = domains[adoption.uuid]
            record = self.records.get(domain.name)
            self.records[domain.name] = baseline.adopt(record, domain, adoption, HOST, int(planned.wall_s))
        if not plan.moves:
            return []
        self.send(host, [move for move in plan.moves if isinstance(move, PeriodMove)], planned)
        balloons = [move for move in plan.moves if isinstance(move, BalloonMove)]
        self.planned += len(balloons)
        taken = [move for move in balloons if not move.gives]
        self.send(host, taken, planned)
        given: list[BalloonMove] = []
        if taken:
            funded = policy_room.fund(plan, policy, planned, planned, known, **self.asks)
            given = [move for move in funded if move in balloons]
            self.send(host, given, planned)
        rest = replace(plan, moves=tuple(move for move in plan.moves if move not in given))
        current = replace(planned, domains=tuple(replace(d, record=self.records.get(d.name)) for d in planned.domains))
        more = list(policy_room.fund(rest, policy, current, current, known, **self.asks))
        self.send(host, more, planned)
        done = {move.uuid for move in (*given, *more)}
        return [move for move in balloons if move.gives and move.uuid not in done]

    def send(self, host: Host, moves: Iterable[Move], planned: Snapshot) -> None:
        domains = {domain.uuid: domain for domain in planned.domains}
        for move in moves:
            self.sent.append(move)
            self.say(f"{host.now_s:6} {move}: {move.reason}")
            record = self.records.get(move.domain)
            record = baseline.intend(record, domains[move.uuid], move, HOST, int(planned.wall_s))
            self.records[move.domain] = record
            guest = host.by_name[move.domain]
            if isinstance(move, PeriodMove):
                guest.period_s, guest.poll_s = move.after_s, host.now_s + 1
            elif isinstance(move, BalloonMove):
                host.set_target(guest, move.after_kib / MIB)

    # ------------------------------------------------------------ what libvirt would tell

    def observe(self, host: Host, now_s: float) -> Snapshot:
        hung = [guest for guest in host.guests if guest.spec.hangs_s[0] <= now_s < guest.spec.hangs_s[1]]
        domains = tuple([self._domain(guest) for guest in host.guests if guest not in hung])
        arc = None if host.world.arc is None else int(max(0.0, host.arc - host.world.arc[0]) * MIB)
        sizes = HostMemory(
            int(host.total * MIB),
            max(0, int(host.available * MIB)),
            psi_some_avg10_pct=host.psi_pct,
            psi_full_avg10_pct=host.psi_pct,
            arc_kib=arc,
            swap_in_kib=int(host.swap_in * MIB),
        )
        rooms = tuple(Room(room, int(host.room_left(room) * MIB)) for room in host.world.rooms)
        cells = tuple(
            Cell(
                number,
                memory_kib=int(spec.total * MIB),
                free_kib=max(0, int(host.cell_free(number) * MIB)),
                low_kib=int(spec.total * MIB / 1024),
                clean_cache_kib=int(host.cell_clean[number] * MIB),
                slab_kib=0,
            )
            for number, spec in enumerate(host.world.cells)
        )
        model = ModelHost(HOST, HOST, "bench:///", "bench", Topology((), cells), memory=sizes, rooms=rooms)
        return Snapshot(UP_S + now_s, EPOCH_S + now_s, model, domains, tuple(map(_hung, hung)))

    def _domain(self, guest: Guest) -> Domain:
        """The same Domain as before where nothing about it changed: building one costs as much as judging it."""
        name = guest.spec.name
        record = self.records.get(name)
        rss_kib = int((guest.touched + guest.spec.overhead - guest.host_swapped) * MIB)
        key = (guest.told, guest.reading, rss_kib, guest.period_s, record)
        known = self._known.get(name)
        if known is not None and known[0] == key:
            return known[1]
        domain = _build(guest, rss_kib, record)
        self._known[name] = key, domain
        return domain


class OnePass(Kvmsched):
    """A module run, once: two samples a tick of the statistics apart, no history; gives wait for what was taken."""

    def __init__(self, name: str, at_s: int = 120, **more: Any) -> None:
        super().__init__(name, **more)
        self.at_s = at_s
        self.left: list[tuple[MemoryPlan, Snapshot]] = []

    def defaults(self) -> MemoryPolicy:
        return load({}).memory

    def tick(self, host: Host) -> None:
        ripe_s = self.at_s + 2 + max(guest.period_s if guest.period_s <= 10 else 0 for guest in host.guests)
        if host.now_s == self.at_s:
            self.before = self.observe(host, host.now_s)
        elif host.now_s == ripe_s and self.before is not None:
            now = self.observe(host, host.now_s)
            plan, _history = policy_room.decide([self.before, now], self.policy, None, **self.asks)
            left = self.carry_out(host, plan, self.policy, now)
            self.left = [(replace(plan, moves=tuple(left)), now)] if left else []
        elif self.left and host.now_s <= ripe_s + ARRIVAL_S:
            if all(abs(g.told - g.target) < 1 for g in host.guests) or host.now_s == ripe_s + ARRIVAL_S:
                plan, planned = self.left.pop()
                domains = tuple(replace(d, record=self.records.get(d.name)) for d in planned.domains)
                current = replace(planned, domains=domains)
                funded = policy_room.fund(plan, self.policy, current, self.observe(host, host.now_s), **self.asks)
                self.send(host, funded, planned)


def _asks(safeties: dict[str, Any]) -> dict[str, Any]:
    """decide()'s further arguments: *safeties* as changes to the policy's own."""
    if not safeties:
        return {}
    return {"safeties": replace(policy_room.Safeties(), **safeties)}


def switches() -> list[str]:
    """The names of the safeties that can be switched off; none where the policy has no such thing."""
    return [
        one.name for one in fields(policy_room.Safeties) if isinstance(getattr(policy_room.Safeties(), one.name), bool)
    ]


# Frozen dataclasses are slow to make, and one is made for each guest and pass.
_BALLOON = vars(Balloon(0, 0)).copy()
_DOMAIN = vars(Domain("", "", 0)).copy()


def _hung(guest: Guest) -> Skip:
    """What is told of a guest that does not answer."""
    untouched_kib = int(max(0.0, guest.told + guest.spec.overhead - guest.rss) * MIB)
    return Skip(guest.spec.name, guest.spec.name, "hung", "it did not answer", untouched_kib)


def _build(guest: Guest, rss_kib: int, record: Optional[Record]) -> Domain:
    spec, reading = guest.spec, guest.reading
    balloon = object.__new__(Balloon)
    vars(balloon).update(_BALLOON)
    vars(balloon).update(
        actual_kib=int(guest.told * MIB),
        maximum_kib=int(spec.maximum * MIB),
        rss_kib=rss_kib,
        period_s=guest.period_s,
        autodeflate=spec.autodeflate,
        inhibitors=spec.inhibitors,
        rooms=(spec.room,) if spec.room else (),
        cells=None if spec.cell is None else frozenset((spec.cell,)),
        locked_kib=int(spec.maximum * MIB) if spec.locked else 0,
        swapped_kib=int(guest.host_swapped * MIB),
        high_kib=int(spec.high * MIB) if spec.high else None,
    )
    if reading is not None:
        vars(balloon).update(
            unused_kib=int(reading.unused * MIB),
            usable_kib=None if reading.usable is None else int(reading.usable * MIB),
            disk_caches_kib=int(reading.caches * MIB),
            swap_in_kib=int(reading.swap_in * MIB),
            swap_out_kib=int(reading.swap_out * MIB),
            major_faults=int(reading.faults),
            last_update_s=EPOCH_S + reading.when_s,
        )
    domain = object.__new__(Domain)
    vars(domain).update(_DOMAIN)
    started_s = float(EPOCH_S + (spec.starts_s or -UP_S))
    vars(domain).update(uuid=spec.name, name=spec.name, id=1, started_s=started_s, balloon=balloon, record=record)
    if spec.weight != 1.0 or spec.offers:
        settings = {"weight": f"{spec.weight:g}", **({"reclaim": "idle"} if spec.offers else {})}
        vars(domain).update(owner=Owner(settings))
    return domain
