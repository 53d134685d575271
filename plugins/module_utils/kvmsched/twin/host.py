# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A twin of the recorded host: it sees the same demand, and has pins and sizes of its own."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Iterable, Mapping, NamedTuple, Optional

from .. import baseline
from ..config import MemoryPolicy
from ..model import (
    BALLOON_TOLERANCE_KIB,
    Balloon,
    BalloonMove,
    Domain,
    HostMemory,
    MemoryPlan,
    Move,
    PeriodMove,
    PinMove,
    Record,
    Snapshot,
    Vcpu,
    VcpuPlan,
)
from ..policy import memory as memory_policy
from ..policy.memory import MemoryHistory
from ..policy.vcpu.allowed import Affinity
from ..policy.vcpu.demand import VcpuKey
from ..units import CpuSet
from . import cpu
from .memory import Squeezed, read_again, resized

# How fast a balloon moves until one was seen that is faster, in KiB a second.
_SPEED_KIB = 256 * 1024
# A guest that lacks what it uses is killed once, and not again while that lasts, or for this long after it.
_CALM_S = 60.0


@dataclass
class Run:
    """One run of a domain on the twin. Pins that are not in ``pins`` are as recorded.

    ``mine`` are the pins that the recorded daemon, and nobody else, set. ``ran_ns`` and ``waited_ns`` are what each
    vCPU ran and waited more than recorded, ``read_kib`` and ``swapped_kib`` what was read more.
    """

    recorded: Domain
    record: Optional[Record]
    pins: dict[int, CpuSet]
    actual_kib: int = 0
    target_kib: int = 0
    ran_ns: dict[int, float] = field(default_factory=dict)
    waited_ns: dict[int, float] = field(default_factory=dict)
    squeezed: Squeezed = Squeezed()
    read_kib: int = 0
    swapped_kib: int = 0
    short_s: float = -_CALM_S
    swaps: bool = False


class Costs(NamedTuple):
    """What a look found that moves had cost: memory read again since the one before, and guests that were killed."""

    read_kib: int = 0
    killed: tuple[str, ...] = ()


class Seen(NamedTuple):
    """One look at the twin: ``snapshot`` as libvirt would tell it, ``window`` what was wanted since the look before."""

    snapshot: Snapshot
    window: Optional[cpu.Window]
    shares: Optional[cpu.Shares]
    costs: Costs


class Twin:
    """``released``: every guest has the pins and the memory that it had before any kvmsched changed them.

    ``foretold``: nothing was recorded of who got what, only what was wanted (a trace), so the model says all of it.
    """

    def __init__(self, released: bool = False, foretold: bool = False) -> None:
        self._released, self._foretold = released, foretold
        self._runs: dict[tuple[str, int], Run] = {}
        self._before: Optional[Snapshot] = None
        self._busy_ns: dict[int, float] = {}
        self._speed_kib = float(_SPEED_KIB)

    # ------------------------------------------------------------ a look

    def look(self, now: Snapshot) -> Seen:
        """Let the time pass until *now*, which was recorded, and tell what would be seen then."""
        before, self._before = self._before, now
        elapsed_s = 0.0 if before is None else now.monotonic_s - before.monotonic_s
        affinity = Affinity(now)
        runs: dict[tuple[str, int], Run] = {}
        for domain in now.domains:
            key = (domain.uuid, domain.id)
            run = self._runs.get(key)
            runs[key] = self._begun(domain) if run is None else self._followed(run, domain, elapsed_s)
        self._runs = runs
        window, shares = None, None
        if before is not None and elapsed_s > 0:
            window = cpu.window(before, now)
            places = self._places(now, affinity)
            shares = window.model(places) if self._foretold else window.shares(places)
            self._account(window, shares)
        costs = self._costs(now.wall_s)
        return Seen(self._snapshot(now, affinity), window, shares, costs)

    def _begun(self, domain: Domain) -> Run:
        """A run that is seen for the first time: as recorded, or as it was before any kvmsched changed it."""
        balloon, record = domain.balloon, domain.record
        actual_kib = balloon.actual_kib if balloon else 0
        run = Run(domain, record, {}, actual_kib, actual_kib)
        if record is not None and record.memory is not None:
            run.target_kib = record.memory.intended_kib
        if self._released and record is not None:
            run.record = None
            if record.memory is not None:
                run.actual_kib = run.target_kib = record.memory.original_kib
            run.pins = {pin.id: pin.original for pin in record.pins if pin.thread == "vcpu"}
        run.swaps = bool(balloon and balloon.swap_out_kib)
        return run

    def _followed(self, run: Run, domain: Domain, elapsed_s: float) -> Run:
        """The same run, after what others than the recorded daemon did to it, and what its balloon did meanwhile."""
        _keep_pins(run, domain)
        if domain.balloon is not None and run.recorded.balloon is not None:
            self._move_balloon(run, run.recorded.balloon, domain.balloon, domain.record, elapsed_s)
            run.swaps = run.swaps or bool(domain.balloon.swap_out_kib)
        run.recorded = domain
        return run

    def _move_balloon(
        self, run: Run, before: Balloon, now: Balloon, record: Optional[Record], elapsed_s: float
    ) -> None:
        moved_kib = now.actual_kib - before.actual_kib
        if moved_kib and elapsed_s > 0:
            self._speed_kib = max(self._speed_kib, abs(moved_kib) / elapsed_s)
        part = record.memory if record else None
        ours = part is not None and not part.set_by_person(now.actual_kib)
        if abs(moved_kib) > BALLOON_TOLERANCE_KIB and not ours:
            run.actual_kib = run.target_kib = now.actual_kib
        step_kib = int(self._speed_kib * elapsed_s)
        target_kib = min(run.target_kib, now.most_kib)
        run.actual_kib += max(-step_kib, min(step_kib, target_kib - run.actual_kib))

    # ------------------------------------------------------------ what it comes to

    def _places(self, now: Snapshot, affinity: Affinity) -> dict[VcpuKey, CpuSet]:
        places = {}
        for domain in now.domains:
            pins = self._runs[domain.uuid, domain.id].pins
            for vcpu in domain.vcpus if pins else ():
                if vcpu.id in pins:
                    places[domain.uuid, vcpu.id] = affinity.runs_on(domain, _pinned(domain, vcpu, pins, affinity))
        return places

    def _account(self, window: cpu.Window, shares: cpu.Shares) -> None:
        if shares is window.seen:
            return
        ns = window.seconds * 1e9
        for run in self._runs.values():
            for vcpu in run.recorded.vcpus:
                key = (run.recorded.uuid, vcpu.id)
                if key in shares.runs:
                    more = shares.runs[key] - window.seen.runs[key]
                    run.ran_ns[vcpu.id] = run.ran_ns.get(vcpu.id, 0.0) + ns * more
                    longer = shares.waits[key] - window.seen.waits[key]
                    run.waited_ns[vcpu.id] = run.waited_ns.get(vcpu.id, 0.0) + ns * longer
        for pcpu, share in shares.busy.items():
            more = share - window.seen.busy[pcpu]
            self._busy_ns[pcpu] = self._busy_ns.get(pcpu, 0.0) + ns * more

    def _costs(self, wall_s: float) -> Costs:
        """Cache that goes is read once more; what a guest uses and does not have is swapped, or kills."""
        read_kib, killed = 0, []
        for run in self._runs.values():
            balloon = run.recorded.balloon
            if balloon is None or (run.actual_kib == balloon.actual_kib and run.squeezed == Squeezed()):
                continue
            squeezed = resized(balloon, run.actual_kib)[1]
            again_kib = max(0, squeezed.cache_kib - run.squeezed.cache_kib)
            run.read_kib += again_kib
            read_kib += again_kib
            short_kib = max(0, squeezed.short_kib - run.squeezed.short_kib)
            if squeezed.short_kib > BALLOON_TOLERANCE_KIB:
                if not run.swaps and wall_s - run.short_s > _CALM_S:
                    killed.append(run.recorded.name)
                run.swapped_kib += short_kib
                read_kib += short_kib if run.swaps else 0
                run.short_s = wall_s
            run.squeezed = squeezed
        return Costs(read_kib, tuple(killed))

    # ------------------------------------------------------------ what libvirt would tell

    def _snapshot(self, now: Snapshot, affinity: Affinity) -> Snapshot:
        domains = tuple(self._domain(domain, affinity) for domain in now.domains)
        host = now.host
        if self._busy_ns and host.busy_ns:
            busy_ns = {pcpu: int(ns + self._busy_ns.get(pcpu, 0.0)) for pcpu, ns in host.busy_ns.items()}
            host = replace(host, busy_ns=busy_ns)
        freed = [
            (old.balloon, _freed_kib(old.balloon, new.balloon))
            for old, new in zip(now.domains, domains)
            if old.balloon and new.balloon and old.balloon is not new.balloon
        ]
        if any(kib for _balloon, kib in freed):
            host = replace(
                host,
                memory=_with_freed(host.memory, sum(kib for _balloon, kib in freed)),
                rooms=tuple(_room_with(room, freed) for room in host.rooms),
            )
        return replace(now, domains=domains, host=host)

    def _domain(self, domain: Domain, affinity: Affinity) -> Domain:
        run = self._runs[domain.uuid, domain.id]
        changes: dict[str, Any] = {} if run.record == domain.record else {"record": run.record}
        if run.pins or run.ran_ns:
            changes["vcpus"] = tuple(_vcpu(domain, vcpu, run, affinity) for vcpu in domain.vcpus)
        balloon = domain.balloon
        if balloon is not None and (run.actual_kib != balloon.actual_kib or run.read_kib or run.swapped_kib):
            told = resized(balloon, run.actual_kib)[0]
            changes["balloon"] = read_again(told, run.read_kib, run.swapped_kib if run.swaps else 0)
        return replace(domain, **changes) if changes else domain

    # ------------------------------------------------------------ moves

    def carry_out_pins(self, plan: VcpuPlan, seen: Snapshot) -> list[Move]:
        """Make the moves of *plan*, which was made from *seen*; return them."""
        domains = {domain.uuid: domain for domain in seen.domains}
        self._adopt(plan, domains, seen)
        self._send_all(plan.moves, domains, seen)
        return list(plan.moves)

    def carry_out_memory(
        self, plan: MemoryPlan, policy: MemoryPolicy, seen: Snapshot, history: Optional[MemoryHistory]
    ) -> list[Move]:
        """The same for memory, in the order of a daemon's pass: takes, what is payable at once, then what is left."""
        domains = {domain.uuid: domain for domain in seen.domains}
        self._adopt(plan, domains, seen)
        if not plan.moves:
            return []
        made: list[Move] = [move for move in plan.moves if isinstance(move, PeriodMove)]
        balloons = [move for move in plan.moves if isinstance(move, BalloonMove)]
        taken = [move for move in balloons if not move.gives]
        made += taken
        self._send_all(made, domains, seen)
        given: list[BalloonMove] = []
        if taken:
            funded = memory_policy.fund(plan, policy, seen, seen, history)
            given = [move for move in funded if move in balloons]
            self._send_all(given, domains, seen)
        rest = replace(plan, moves=tuple(move for move in plan.moves if move not in given))
        records = {run.recorded.uuid: run.record for run in self._runs.values()}
        current = replace(seen, domains=tuple(replace(d, record=records.get(d.uuid, d.record)) for d in seen.domains))
        more = list(memory_policy.fund(rest, policy, current, current, history))
        self._send_all(more, domains, seen)
        return [*made, *given, *more]

    def _adopt(self, plan: Any, domains: Mapping[str, Domain], seen: Snapshot) -> None:
        for adoption in plan.adoptions:
            domain = domains[adoption.uuid]
            run = self._runs[domain.uuid, domain.id]
            run.record = baseline.adopt(run.record, domain, adoption, seen.host.uuid, int(seen.wall_s))

    def _send_all(self, moves: Iterable[Move], domains: Mapping[str, Domain], seen: Snapshot) -> None:
        for move in moves:
            domain = domains[move.uuid]
            run = self._runs[domain.uuid, domain.id]
            run.record = baseline.intend(run.record, domain, move, seen.host.uuid, int(seen.wall_s))
            if isinstance(move, BalloonMove):
                run.target_kib = move.after_kib
            elif isinstance(move, PinMove) and move.thread == "vcpu":
                run.pins[move.id] = move.after


def _keep_pins(run: Run, domain: Domain) -> None:
    """Keep the pins that the twin has where the recorded daemon changes them; where a person does, follow."""
    before = {vcpu.id: vcpu.pin for vcpu in run.recorded.vcpus}
    for vcpu in domain.vcpus:
        old = before.get(vcpu.id)
        if old is None or old == vcpu.pin:
            continue
        recorded = domain.record.pin("vcpu", vcpu.id) if domain.record else None
        if recorded is not None and not recorded.set_by_person(vcpu.pin):
            run.pins.setdefault(vcpu.id, old)
        else:
            run.pins[vcpu.id] = vcpu.pin


def _pinned(domain: Domain, vcpu: Vcpu, pins: Mapping[int, CpuSet], affinity: Affinity) -> Vcpu:
    pin = pins.get(vcpu.id)
    if pin is None or pin == vcpu.pin:
        return vcpu
    moved = replace(vcpu, pin=pin, affinity=None)
    return moved if vcpu.affinity is None else replace(moved, affinity=affinity.configured(domain, moved))


def _vcpu(domain: Domain, vcpu: Vcpu, run: Run, affinity: Affinity) -> Vcpu:
    told = _pinned(domain, vcpu, run.pins, affinity)
    ran_ns, waited_ns = run.ran_ns.get(vcpu.id), run.waited_ns.get(vcpu.id)
    if not ran_ns and not waited_ns:
        return told
    return replace(
        told,
        time_ns=None if told.time_ns is None else max(0, told.time_ns + int(ran_ns or 0) // 1000 * 1000),
        delay_ns=None if told.delay_ns is None else max(0, told.delay_ns + int(waited_ns or 0) // 1000 * 1000),
    )


def _freed_kib(old: Balloon, new: Balloon) -> int:
    """What the host has more than was recorded, for this guest has another size."""
    if old.rss_kib is None or new.rss_kib is None:
        return 0
    return old.rss_kib - new.rss_kib


def _with_freed(memory: Optional[HostMemory], kib: int) -> Optional[HostMemory]:
    if memory is None:
        return None
    return replace(memory, available_kib=max(0, min(memory.total_kib, memory.available_kib + kib)))


def _room_with(room: Any, freed: list[tuple[Balloon, int]]) -> Any:
    kib = sum(kib for balloon, kib in freed if room.name in balloon.rooms)
    left_kib = None if room.left_kib is None else max(0, room.left_kib + kib)
    high_kib = None if room.high_left_kib is None else max(0, room.high_left_kib + kib)
    return replace(room, left_kib=left_kib, high_left_kib=high_kib)
