# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where vCPUs can run, and where they may run (decision 24)."""

from __future__ import annotations

from typing import NamedTuple, Optional

from ...config import VcpuPolicy
from ...model import Domain, PinRecord, Snapshot, Vcpu
from ...units import CpuSet, format_cpuset
from .definition import ThreadKey, definitions


class Seat(NamedTuple):
    """A vCPU that may be moved: ``allowed`` is where it may run, ``now`` where it can run at present."""

    domain: Domain
    vcpu: Vcpu
    allowed: CpuSet
    now: CpuSet


class Affinity:
    """Where threads can run on this host, whatever any policy says.

    Masks repeat, and may be wide: each combination is worked out once.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        topology = snapshot.host.topology
        self.online = topology.online
        self.isolated = topology.isolated & self.online
        self.balanced = self.online - self.isolated
        self._host_uuid = snapshot.host.uuid
        self.nohz_full = topology.nohz_full & self.online
        self._cache: dict[tuple[object, ...], CpuSet] = {}
        self._definitions: dict[str, dict[ThreadKey, CpuSet]] = {}

    def everywhere(self, mask: CpuSet) -> bool:
        """Return whether *mask* confines nothing: it has all pCPUs on which the kernel balances load."""
        return self.balanced <= mask

    def floats_in(self, mask: CpuSet) -> CpuSet:
        """Return the part of *mask* that a vCPU can float in; empty where isolated pCPUs leave it one, or none.

        On isolated pCPUs the kernel balances no load: all vCPUs of a set of them would share its first one.
        """
        part = mask & self.balanced
        return part if len(part) > 1 or mask.isdisjoint(self.isolated) else frozenset()

    def runs_on(self, domain: Domain, vcpu: Vcpu) -> CpuSet:
        """Return where the kernel can put *vcpu* now.

        A set that goes beyond the isolated pCPUs is used outside them only: the kernel balances no
        load onto those.
        """
        mask = vcpu.pin if vcpu.affinity is None else vcpu.affinity
        key = ("runs", mask, domain.cgroup_pcpus)
        if key not in self._cache:
            real = _within(mask & self.online, domain.cgroup_pcpus)
            self._cache[key] = real - self.isolated or real
        return self._cache[key]

    def defined(self, domain: Domain, vcpu: Vcpu) -> Optional[CpuSet]:
        """Return the pin that an administrator gave *vcpu* by definition; None where it has none."""
        if vcpu.definition is None and domain.persistent:
            return None
        return self._will(domain, ("vcpu", vcpu.id))

    def _will(self, domain: Domain, key: ThreadKey) -> Optional[CpuSet]:
        if domain.uuid not in self._definitions:
            self._definitions[domain.uuid] = definitions(domain)
        return self._definitions[domain.uuid].get(key)

    def numa(self, domain: Domain, vcpu: Vcpu) -> Optional[CpuSet]:
        """Return the pCPUs beside the memory of *vcpu*, where that is known: of its guest cell, else of its domain."""
        return domain.numa_pcpus if vcpu.numa_pcpus is None else vcpu.numa_pcpus

    def configured(self, domain: Domain, vcpu: Vcpu) -> CpuSet:
        """Return what libvirt's pin comes to: within the online pCPUs and the machine's cgroup."""
        key = ("configured", vcpu.pin, domain.cgroup_pcpus)
        if key not in self._cache:
            self._cache[key] = _within(vcpu.pin & self.online, domain.cgroup_pcpus)
        return self._cache[key]

    def own(self, domain: Domain, vcpu: Vcpu) -> CpuSet:
        """Return the domain's own set, whatever the policy says."""
        mask = self.online
        for limit in (domain.cpuset, self.defined(domain, vcpu), domain.cgroup_pcpus):
            mask = _within(mask, limit)
        near = _within(mask, self.numa(domain, vcpu))
        # Who pinned a vCPU away from the memory of its guest cell meant that pin.
        return _within(mask, domain.numa_pcpus) if vcpu.numa_pcpus is not None and not near else near

    def unpinned(self, domain: Domain, vcpu: Optional[Vcpu]) -> CpuSet:
        """Return what a thread gets that nobody pinned: libvirt leaves isolated pCPUs out unless they are named."""
        will = None if vcpu is None else self.defined(domain, vcpu)
        if will is not None:
            return will
        if domain.cpuset is not None:
            return domain.cpuset
        return domain.numa_pcpus if domain.numa_pcpus is not None else self.online - self.isolated

    def fresh(self, domain: Domain, thread: ThreadKey) -> CpuSet:
        """Return what a thread gets when its domain starts anew, by what stands in no record."""
        will = self._will(domain, thread) if domain.persistent else None
        return self.unpinned(domain, None) if will is None else will

    def original(self, domain: Domain, record: PinRecord) -> CpuSet:
        """Return where a thread belongs: its original, or where another host's means nothing, its own set."""
        if domain.record is not None and domain.record.host_uuid == self._host_uuid:
            return record.original
        vcpu = next((v for v in domain.vcpus if record.thread == "vcpu" and v.id == record.id), None)
        return self.unpinned(domain, vcpu)


class Masks(Affinity):
    """Where vCPUs may run by one policy, beside the *dedicated* pCPUs, which no other domain gets (decision 24).

    *avoided* pCPUs are given only to who has no others; None: those without a tick, unless the policy names pCPUs.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        policy: VcpuPolicy,
        dedicated: CpuSet = frozenset(),
        avoided: Optional[CpuSet] = None,
    ) -> None:
        super().__init__(snapshot)
        self._policy, self.dedicated = policy, dedicated
        if avoided is None:
            avoided = self.nohz_full if policy.pcpus is None else frozenset()
        self.avoided = avoided

    def allowed(self, domain: Domain, vcpu: Vcpu) -> CpuSet:
        """Return where *vcpu* may run. One that runs on avoided pCPUs only need not leave them."""
        there = self.runs_on(domain, vcpu) <= self.avoided if self.avoided else False
        numa = (domain.numa_pcpus, vcpu.numa_pcpus)
        key = (
            "allowed",
            domain.cpuset,
            *numa,
            domain.cgroup_pcpus,
            self.defined(domain, vcpu),
            there,
            self.ruled(domain),
        )
        if key not in self._cache:
            mask = _within(self.host(domain.cpuset) & self.own(domain, vcpu), self.ruled(domain))
            self._cache[key] = mask if there else (mask - self.avoided or mask)
        return self._cache[key]

    def ruled(self, domain: Domain) -> Optional[CpuSet]:
        """Return what a rule limits *domain* to; None: no rule does, or its settings can't be read."""
        if not self._policy.rules:
            return None
        try:
            return self._policy.settings_for(domain).pcpus
        except ValueError:
            return None

    def host(self, named: Optional[CpuSet] = None) -> CpuSet:
        """Return what the host offers: isolated pCPUs only where ``pcpus`` or the domain's own cpuset names them."""
        offered = self._policy.pcpus
        if offered is None:
            offered = self.online - self.isolated | (self.isolated & (named or frozenset()))
        return (offered & self.online) - self._policy.reserved - self.dedicated

    def explain_empty(self, domain: Domain, vcpu: Vcpu) -> str:
        """Return the intersection that leaves nothing, part by part, as text."""
        parts = [
            ("vcpu cpuset", domain.cpuset),
            ("numatune", self.numa(domain, vcpu)),
            ("persistent vcpupin" if domain.persistent else "vcpupin of its start", self.defined(domain, vcpu)),
            ("cgroup", domain.cgroup_pcpus),
            ("pcpus", self._policy.pcpus),
            ("pcpus of its rule", self.ruled(domain)),
            ("online", self.online),
        ]
        minus = [("isolated", self.isolated), ("reserved", self._policy.reserved), ("dedicated", self.dedicated)]
        text = " & ".join(f"{name} {format_cpuset(cpus) or 'none'}" for name, cpus in parts if cpus is not None)
        return text + "".join(f" - {name} {format_cpuset(cpus)}" for name, cpus in minus if cpus)


def _within(mask: CpuSet, limit: Optional[CpuSet]) -> CpuSet:
    return mask if limit is None else mask & limit


def check_pcpus(snapshot: Snapshot, policy: VcpuPolicy, first: bool) -> None:
    """Raise ValueError, in one line, if the policy names a pCPU that is not there.

    After the *first* pass one may have gone offline, which ends no daemon's passes while others are left.
    """
    online = snapshot.host.topology.online
    if policy.pcpus is not None and not policy.pcpus <= online and (first or policy.pcpus.isdisjoint(online)):
        raise ValueError(f"pcpus: got {format_cpuset(policy.pcpus)}, allowed: online pCPUs {format_cpuset(online)}")
