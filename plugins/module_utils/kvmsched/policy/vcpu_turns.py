# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which domains get a turn, where each of their vCPUs may run (decision 24), and why the others get none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable, NamedTuple, Optional

from ..config import VcpuPolicy
from ..model import Adoption, Domain, PinRecord, Skip, Snapshot, Vcpu
from ..units import CpuSet, format_cpuset
from .vcpu_history import VcpuHistory

REALTIME = ("fifo", "rr", "deadline")

# Passes in a row that must find a foreign affinity before the domain is left alone for the grace period (decision 29).
FOREIGN_PASSES = 2


class Seat(NamedTuple):
    """A vCPU that may be moved: ``allowed`` is where it may run, ``now`` where it can run at present."""

    domain: Domain
    vcpu: Vcpu
    allowed: CpuSet
    now: CpuSet


@dataclass(frozen=True)
class Turns:
    """Who gets a turn. ``usable`` are the pCPUs that any of the ``seats`` may be given, or could be."""

    usable: CpuSet
    seats: tuple[Seat, ...]
    skips: tuple[Skip, ...]
    adoptions: tuple[Adoption, ...]
    mismatched: frozenset[str]


class Masks:
    """Where vCPUs can run and may run. Masks repeat, and may be wide: each combination is worked out once."""

    def __init__(self, snapshot: Snapshot, policy: VcpuPolicy) -> None:
        topology = snapshot.host.topology
        self.online = topology.online
        self.isolated = topology.isolated & self.online
        self._policy, self._host_uuid = policy, snapshot.host.uuid
        self.dedicated: CpuSet = frozenset()
        self._cache: dict[tuple[object, ...], CpuSet] = {}

    def runs_on(self, domain: Domain, vcpu: Vcpu) -> CpuSet:
        """Where the kernel can put *vcpu* now.

        A set that goes beyond the isolated pCPUs is used outside them only: the kernel balances no
        load onto those.
        """
        mask = vcpu.pin if vcpu.affinity is None else vcpu.affinity
        key = ("runs", mask, domain.cgroup_pcpus)
        if key not in self._cache:
            real = self._within(mask & self.online, domain.cgroup_pcpus)
            self._cache[key] = real - self.isolated or real
        return self._cache[key]

    def configured(self, domain: Domain, vcpu: Vcpu) -> CpuSet:
        """What libvirt's pin comes to: within the online pCPUs and the machine's cgroup."""
        key = ("configured", vcpu.pin, domain.cgroup_pcpus)
        if key not in self._cache:
            self._cache[key] = self._within(vcpu.pin & self.online, domain.cgroup_pcpus)
        return self._cache[key]

    def allowed(self, domain: Domain, vcpu: Vcpu) -> CpuSet:
        """Where *vcpu* may run (decision 24)."""
        key = ("allowed", domain.cpuset, domain.numa_pcpus, domain.cgroup_pcpus, vcpu.definition)
        if key not in self._cache:
            mask = self.host(domain.cpuset) & self.own(domain, vcpu)
            self._cache[key] = mask
        return self._cache[key]

    def host(self, named: Optional[CpuSet] = None) -> CpuSet:
        """What the host offers: isolated pCPUs only where ``pcpus`` or the domain's own cpuset names them."""
        offered = self._policy.pcpus
        if offered is None:
            offered = self.online - self.isolated | (self.isolated & (named or frozenset()))
        return (offered & self.online) - self._policy.reserved - self.dedicated

    def own(self, domain: Domain, vcpu: Vcpu) -> CpuSet:
        """The domain's own set, whatever the policy says."""
        mask = self.online
        for limit in (domain.cpuset, domain.numa_pcpus, vcpu.definition):
            mask = self._within(mask, limit)
        return self._within(mask, domain.cgroup_pcpus)

    def unpinned(self, domain: Domain, vcpu: Optional[Vcpu]) -> CpuSet:
        """What a thread gets that nobody pinned: libvirt leaves isolated pCPUs out unless they are named."""
        if vcpu is not None and vcpu.definition is not None:
            return vcpu.definition
        if domain.cpuset is not None:
            return domain.cpuset
        return domain.numa_pcpus if domain.numa_pcpus is not None else self.online - self.isolated

    def original(self, domain: Domain, record: PinRecord) -> CpuSet:
        """Where a thread belongs: its original, or where another host's means nothing, its own set (decision 13)."""
        if domain.record is not None and domain.record.host_uuid == self._host_uuid:
            return record.original
        vcpu = next((v for v in domain.vcpus if record.thread == "vcpu" and v.id == record.id), None)
        return self.unpinned(domain, vcpu)

    def explain_empty(self, domain: Domain, vcpu: Vcpu) -> str:
        """The intersection that leaves nothing, part by part."""
        parts = [
            ("vcpu cpuset", domain.cpuset),
            ("numatune", domain.numa_pcpus),
            ("persistent vcpupin", vcpu.definition),
            ("cgroup", domain.cgroup_pcpus),
            ("pcpus", self._policy.pcpus),
            ("online", self.online),
        ]
        minus = [("isolated", self.isolated), ("reserved", self._policy.reserved), ("dedicated", self.dedicated)]
        text = " & ".join(f"{name} {format_cpuset(cpus) or 'none'}" for name, cpus in parts if cpus is not None)
        return text + "".join(f" - {name} {format_cpuset(cpus)}" for name, cpus in minus if cpus)

    @staticmethod
    def _within(mask: CpuSet, limit: Optional[CpuSet]) -> CpuSet:
        return mask if limit is None else mask & limit


def check_pcpus(snapshot: Snapshot, policy: VcpuPolicy) -> None:
    """ValueError, in one line, if the policy names a pCPU that is not there."""
    online = snapshot.host.topology.online
    if policy.pcpus is not None and not policy.pcpus <= online:
        raise ValueError(f"pcpus: got {format_cpuset(policy.pcpus)}, allowed: online pCPUs {format_cpuset(online)}")


def turns(snapshot: Snapshot, policy: VcpuPolicy, history: VcpuHistory, masks: Masks) -> Turns:
    """Sort the domains into those that get a turn and those that don't; sets the dedicated pCPUs of *masks*."""
    modes = {domain.uuid: _mode(domain, policy) for domain in snapshot.domains}
    masks.dedicated = _dedicated_pcpus(snapshot.domains, modes, masks)
    seats: list[Seat] = []
    skips: list[Skip] = []
    adoptions: list[Adoption] = []
    mismatched: set[str] = set()
    for domain in sorted(snapshot.domains, key=lambda d: (d.name, d.uuid)):
        if not policy.selection.matches(domain):
            continue
        mismatch = _foreign_affinity(domain, masks)
        if mismatch:
            mismatched.add(domain.uuid)
        adoption = adopted(domain, snapshot)
        skip = _refusal(domain, modes[domain.uuid]) or _hands_off(domain, snapshot, policy, history, mismatch, adoption)
        here = [] if skip else [_seat(domain, vcpu, masks) for vcpu in domain.vcpus]
        skip = skip or _empty_set(here, masks)
        if skip is None:
            seats += here
            adoptions += rebased(domain, snapshot, masks)
            continue
        skips.append(skip)
        if skip.code == "human" and adoption:
            adoptions.append(adoption)
    usable = masks.host().union(*{seat.allowed for seat in seats})
    return Turns(usable, tuple(seats), tuple(skips), tuple(adoptions), frozenset(mismatched))


def _seat(domain: Domain, vcpu: Vcpu, masks: Masks) -> Seat:
    return Seat(domain, vcpu, masks.allowed(domain, vcpu), masks.runs_on(domain, vcpu))


def _mode(domain: Domain, policy: VcpuPolicy) -> str:
    """The domain's mode, or the line that says why its settings can't be understood."""
    if domain.owner.error:
        return f"metadata: {domain.owner.error}"
    try:
        return policy.settings_for(domain).mode
    except ValueError as error:
        return str(error)


def _one_to_one(domain: Domain) -> bool:
    """Whether the persistent definition pins each vCPU to a pCPU of its own: the administrator dedicated those."""
    pins = [vcpu.definition for vcpu in domain.vcpus if vcpu.definition is not None]
    if not pins or not domain.persistent:
        return False
    return len(domain.vcpus) == len(pins) == len(set(pins)) == sum(map(len, pins))


def _dedicated_pcpus(domains: Iterable[Domain], modes: dict[str, str], masks: Masks) -> CpuSet:
    """The pCPUs that no other domain may be given: those of dedicated domains with no more pCPUs than vCPUs."""
    taken: set[int] = set()
    for domain in domains:
        if modes[domain.uuid] == "dedicated" or _one_to_one(domain):
            own = frozenset().union(*(masks.runs_on(domain, vcpu) for vcpu in domain.vcpus))
            if len(own) <= len(domain.vcpus):
                taken |= own
    return frozenset(taken)


def _refusal(domain: Domain, mode: str) -> Optional[Skip]:
    """Why the domain's own state or settings keep it from getting a turn."""
    realtime = next((v for v in domain.vcpus if v.scheduler in REALTIME), None)
    if domain.state != "running":
        return _skip(domain, "not-running", f"{domain.state}: only running domains are moved")
    if domain.busy:
        return _skip(domain, "busy", domain.busy)
    if mode == "ignore":
        return _skip(domain, "ignored", "vCPU mode is ignore")
    if realtime:
        return _skip(domain, "realtime", f"vCPU {realtime.id} has real-time class {realtime.scheduler}")
    if mode == "dedicated":
        return _skip(domain, "dedicated", "vCPU mode is dedicated")
    if _one_to_one(domain):
        return _skip(domain, "dedicated", "its persistent definition pins each vCPU to a pCPU of its own")
    if mode != "auto":
        return _skip(domain, "bad-policy", mode)
    return None


def _hands_off(
    domain: Domain,
    snapshot: Snapshot,
    policy: VcpuPolicy,
    history: VcpuHistory,
    mismatch: Optional[str],
    adoption: Optional[Adoption],
) -> Optional[Skip]:
    """Why somebody else's work on the domain's pins keeps it from getting a turn."""
    if domain.record_error:
        return _skip(domain, "record", domain.record_error)
    if mismatch:
        return _skip(domain, "foreign-pin", mismatch)
    until_s = history.backed_off.get(domain.uuid, 0.0)
    if snapshot.monotonic_s < until_s:
        left_s = until_s - snapshot.monotonic_s
        return _skip(
            domain, "foreign-pin", f"its affinity was changed past libvirt: left alone for {left_s:.0f} s more"
        )
    if adoption:
        return _skip(domain, "human", adoption.reason)
    grace_s = _grace_left_s(domain, snapshot, policy)
    if grace_s > 0:
        return _skip(domain, "human", f"a pin that somebody else set is left alone for {grace_s:.0f} s more")
    return None


def _empty_set(seats: list[Seat], masks: Masks) -> Optional[Skip]:
    empty = next((seat for seat in seats if not seat.allowed), None)
    if empty is None:
        return None
    explained = masks.explain_empty(empty.domain, empty.vcpu)
    return _skip(empty.domain, "empty-set", f"no pCPU is left for vCPU {empty.vcpu.id}: {explained}")


def _foreign_affinity(domain: Domain, masks: Masks) -> Optional[str]:
    """Where the kernel's affinity is not the configured one. libvirt lets what floats off isolated pCPUs by itself."""
    for vcpu in domain.vcpus:
        if vcpu.affinity is None:
            continue
        configured = masks.configured(domain, vcpu)
        real = vcpu.affinity
        # A vCPU whose pCPUs are all offline was put elsewhere by the kernel itself.
        if configured and real != configured and (real & masks.online ^ configured) - masks.isolated:
            return (
                f"vCPU {vcpu.id} is configured for pCPU {format_cpuset(configured)}"
                f" but runs on {format_cpuset(real) or 'none'}: changed past libvirt"
            )
    return None


def pin_records(domain: Domain, snapshot: Snapshot) -> tuple[PinRecord, ...]:
    """The pins that were recorded on this host."""
    record = domain.record
    return record.pins if record is not None and record.host_uuid == snapshot.host.uuid else ()


def pins_of(domain: Domain) -> dict[tuple[str, int], CpuSet]:
    """(kind of thread, id) -> its configured pin."""
    pins: dict[tuple[str, int], CpuSet] = {("vcpu", vcpu.id): vcpu.pin for vcpu in domain.vcpus}
    pins.update({(thread.kind, thread.id): thread.pin for thread in domain.threads})
    return pins


def adopted(domain: Domain, snapshot: Snapshot) -> Optional[Adoption]:
    """The pins that somebody else set since our last write (decision 12)."""
    records = pin_records(domain, snapshot)
    if not records:
        return None
    pins = pins_of(domain)
    now_s = int(snapshot.wall_s)
    taken = []
    lines = []
    for record in records:
        current = pins.get((record.thread, record.id))
        if current is not None and record.foreign(current):
            taken.append(PinRecord(record.thread, record.id, current, current, current, now_s))
            ours = format_cpuset(record.intended)
            lines.append(f"{record.thread} {record.id} is on {format_cpuset(current)}, last set by kvmsched: {ours}")
    if not taken:
        return None
    reason = f"somebody else moved it, which is its new original: {lines[0]}"
    return Adoption(domain.name, domain.uuid, reason, pins=tuple(taken))


def rebased(domain: Domain, snapshot: Snapshot, masks: Masks) -> list[Adoption]:
    """What another host recorded of its pins, in this host's terms: what is still where it was put there has
    the domain's own set for its original here (decision 13), and of all else nothing is known.
    """
    record = domain.record
    if record is None or record.host_uuid == snapshot.host.uuid or not record.pins:
        return []
    pins = pins_of(domain)
    taken = []
    for part in record.pins:
        current = pins.get((part.thread, part.id))
        if current is not None and not part.foreign(current):
            original = masks.original(domain, part)
            taken.append(PinRecord(part.thread, part.id, original, current, current, int(snapshot.wall_s)))
    reason = "its pins were recorded on another host: its own set is their original here"
    return [Adoption(domain.name, domain.uuid, reason, pins=tuple(taken))]


def _grace_left_s(domain: Domain, snapshot: Snapshot, policy: VcpuPolicy) -> float:
    """How long a pin that was adopted from somebody else is still left alone."""
    adopted_s = [r.when_s for r in pin_records(domain, snapshot) if r.original == r.previous == r.intended]
    return max((when_s + policy.grace_s - snapshot.wall_s for when_s in adopted_s), default=0.0)


def _skip(domain: Domain, code: str, reason: str) -> Skip:
    return Skip(domain.name, domain.uuid, code, reason)
