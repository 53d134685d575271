# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which pCPUs belong to single vCPUs, or to one domain, alone (decision 52a)."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Iterable, Iterator, Literal, Mapping, NamedTuple

from ...model import Domain, Snapshot, Topology, Vcpu
from ...units import CpuSet
from .allowed import Affinity, Masks

REALTIME = ("fifo", "rr")

# A domain's UUID and a vCPU's id.
VcpuKey = tuple[str, int]
Ground = Literal["real-time", "definition", "marked"]


@dataclass(frozen=True)
class Dedication:
    """Whose own which pCPUs are: ``pcpus`` are given to no other domain, ``preferred`` only if others have no room.

    ``own``: vCPU -> the pCPUs that are its own, of either kind. ``overlapping``: pCPU -> the names of the domains of
    which each pins a vCPU to that pCPU alone: it belongs to none of them. ``too_many``: the names of the domains
    whose pCPUs are preferred only, for the others would be left with too few.
    """

    pcpus: CpuSet = frozenset()
    preferred: CpuSet = frozenset()
    own: Mapping[VcpuKey, CpuSet] = field(default_factory=dict)
    overlapping: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    too_many: tuple[str, ...] = ()

    def whole(self, domain: Domain) -> bool:
        """Return whether all vCPUs of *domain* have pCPUs of their own."""
        return bool(self.own and domain.vcpus) and all((domain.uuid, vcpu.id) in self.own for vcpu in domain.vcpus)


class _Claim(NamedTuple):
    """pCPUs that one domain has a right to, by vCPU."""

    ground: Ground
    domain: Domain
    by_vcpu: dict[int, CpuSet]

    @property
    def pcpus(self) -> CpuSet:
        return frozenset().union(*self.by_vcpu.values())


def dedication(snapshot: Snapshot, modes: Mapping[str, str], masks: Masks) -> Dedication:
    """Return whose own which pCPUs are. *masks* are those of the policy, with nothing dedicated yet.

    No claim may take another domain's last pCPU, a whole cell, or more than half of the usable pCPUs, together with
    those before it: it is a preference then. The surest go first: real-time, then definitions.
    """
    domains = sorted(snapshot.domains, key=lambda d: (d.name, d.uuid))
    pinned = {domain.uuid: _pinned(domain, masks) for domain in domains}
    namers, overlapping = _namers(pinned), _overlapping(domains, pinned)
    claims = [
        claim for d in domains for claim in _claims(d, modes[d.uuid] == "dedicated", pinned[d.uuid], namers, masks)
    ]
    claims.sort(key=lambda claim: ("real-time", "definition", "marked").index(claim.ground))
    if not claims:
        return Dedication(overlapping=overlapping)
    own = {(claim.domain.uuid, n): pcpus for claim in claims for n, pcpus in claim.by_vcpu.items()}
    limits = _Limits(domains, own, masks, snapshot.host.topology)
    taken: CpuSet = frozenset()
    soft = []
    for claim in claims:
        if limits.leave_enough(taken | claim.pcpus, claim):
            taken |= claim.pcpus
        else:
            soft.append(claim)
    return Dedication(
        pcpus=taken,
        preferred=frozenset().union(*(claim.pcpus for claim in soft)) - taken,
        own=own,
        overlapping=overlapping,
        too_many=tuple(dict.fromkeys(claim.domain.name for claim in soft)),
    )


# ---------------------------------------------------------------- claims

_Namers = Mapping[int, frozenset[VcpuKey]]


_Pinned = list[tuple[Vcpu, CpuSet]]


def _pinned(domain: Domain, affinity: Affinity) -> _Pinned:
    """Return the vCPUs that a definition confines, and to what. One that names all pCPUs confines nothing."""
    masks = ((vcpu, affinity.defined(domain, vcpu)) for vcpu in domain.vcpus)
    return [(vcpu, mask) for vcpu, mask in masks if mask and not affinity.everywhere(mask)]


def _namers(pinned: Mapping[str, _Pinned]) -> _Namers:
    """Return the vCPUs whose definition names a pCPU, by pCPU; of many, enough to know that they are many."""
    by_mask: dict[CpuSet, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for uuid, vcpus_of in pinned.items():
        for vcpu, mask in vcpus_of:
            by_mask[mask][uuid].append(vcpu.id)
    found: dict[int, set[VcpuKey]] = defaultdict(set)
    for mask, vcpus in by_mask.items():
        few = [(uuid, number) for uuid in list(vcpus)[:2] for number in vcpus[uuid][:3]]
        for pcpu in mask:
            found[pcpu].update(few)
    return {pcpu: frozenset(keys) for pcpu, keys in found.items()}


def _overlapping(domains: Iterable[Domain], pinned: Mapping[str, _Pinned]) -> dict[int, tuple[str, ...]]:
    names: dict[int, dict[str, str]] = defaultdict(dict)
    for domain in domains:
        for _vcpu, mask in pinned[domain.uuid]:
            if len(mask) == 1:
                names[min(mask)][domain.uuid] = domain.name
    return {pcpu: tuple(of.values()) for pcpu, of in sorted(names.items()) if len(of) > 1}


def _claims(domain: Domain, marked: bool, pinned: _Pinned, namers: _Namers, affinity: Affinity) -> Iterator[_Claim]:
    """Yield what *domain* claims. One with a part of the cache of its own is left to who tuned it."""
    if domain.cachetune:
        return
    found: dict[Ground, dict[int, CpuSet]] = defaultdict(dict)
    for vcpu, mask in pinned:
        realtime = vcpu.scheduler in REALTIME
        own = _unnamed_by_others(mask, domain, namers) if realtime else _alone(mask, (domain.uuid, vcpu.id), namers)
        if own & affinity.online:
            found["real-time" if realtime else "definition"][vcpu.id] = own & affinity.online
    if marked:
        found["marked"] = _marked(domain, affinity)
    yield from (_Claim(ground, domain, by_vcpu) for ground, by_vcpu in found.items() if by_vcpu)


def _unnamed_by_others(mask: CpuSet, domain: Domain, namers: _Namers) -> CpuSet:
    return frozenset(pcpu for pcpu in mask if all(uuid == domain.uuid for uuid, _number in namers[pcpu]))


def _alone(mask: CpuSet, vcpu: VcpuKey, namers: _Namers) -> CpuSet:
    """Return the pCPU that *vcpu* names alone, or two that two of its domain name alone (a core's threads)."""
    who = namers[min(mask)]
    same = len(mask) <= 2 and all(namers[pcpu] == who for pcpu in mask)
    return mask if same and len(who) == len(mask) and {uuid for uuid, _number in who} == {vcpu[0]} else frozenset()


def _marked(domain: Domain, affinity: Affinity) -> dict[int, CpuSet]:
    """Return where the pins of a domain lead that its owner marked, if they are narrow: no more pCPUs than vCPUs."""
    pins = {vcpu.id: affinity.configured(domain, vcpu) for vcpu in domain.vcpus}
    together = frozenset().union(*pins.values())
    if len(together) > len(pins) or affinity.everywhere(together):
        return {}
    return {number: mask for number, mask in pins.items() if mask}


# ---------------------------------------------------------------- what must be left to others


class _Limits:
    """What the pCPUs that are taken must leave."""

    def __init__(
        self, domains: Iterable[Domain], own: Mapping[VcpuKey, CpuSet], masks: Masks, topology: Topology
    ) -> None:
        self._usable = masks.host()
        cells: dict[int, set[int]] = defaultdict(set)
        for pcpu in topology.pcpus:
            if pcpu.id in self._usable:
                cells[pcpu.cell].add(pcpu.id)
        self._cells = list(cells.values())
        # Where others may run: few different sets, each with up to two of the domains that have it.
        self._needed: dict[CpuSet, set[str]] = defaultdict(set)
        for domain in domains:
            for vcpu in domain.vcpus:
                if (domain.uuid, vcpu.id) not in own:
                    whose = self._needed[masks.allowed(domain, vcpu)]
                    if len(whose) < 2:
                        whose.add(domain.uuid)

    def leave_enough(self, taken: CpuSet, claim: _Claim) -> bool:
        if 2 * len(taken & self._usable) > len(self._usable):
            return False
        if len(self._cells) > 1 and any(cell <= taken for cell in self._cells):
            return False
        return not any(mask and mask <= taken and whose != {claim.domain.uuid} for mask, whose in self._needed.items())
