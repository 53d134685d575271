# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way back: each thread with a record gets the affinity that it had before our first pin of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from ...baseline import fault, left_of
from ...config import VcpuPolicy
from ...model import Adoption, Domain, Left, Move, PinMove, PinRecord, Skip, Snapshot, VcpuCode
from ...units import CpuSet, format_cpuset
from .allowed import Affinity
from .dedicated import Dedication
from .eligibility import skipped
from .records import adopted, pin_records, pins_of, rebased


def forbidden_to(domain: Domain, record: PinRecord, affinity: Affinity, dedicated: Dedication) -> CpuSet:
    """Return the part of an original that *record* may not lead onto: who may write metadata may write a record, too.

    What a thread has by its definition, or without any pin, it gets back as it was. The definition of a transient
    domain is known by its record alone, so that is no proof.
    """
    original = affinity.original(domain, record)
    fresh = affinity.fresh(domain, (record.thread, record.id))
    if original == fresh:
        return frozenset()
    outside = frozenset() if domain.cpuset is None else original - domain.cpuset - fresh
    if affinity.everywhere(original):
        return outside
    isolated = affinity.isolated - (domain.cpuset or frozenset())
    own = dedicated.own.get((domain.uuid, record.id), frozenset()) if record.thread == "vcpu" else frozenset()
    return outside | original & (isolated | dedicated.pcpus - own)


@dataclass(frozen=True)
class PinRelease:
    """The parts of a plan that gives threads their originals."""

    moves: tuple[Move, ...]
    skips: tuple[Skip, ...]
    not_restored: tuple[Left, ...]
    adoptions: tuple[Adoption, ...]


def release_pins(snapshot: Snapshot, policy: VcpuPolicy, dedicated: Dedication) -> PinRelease:
    """Return what brings all chosen domains back, what is skipped, and what can't be brought back yet."""
    release = _Release(snapshot, dedicated)
    for domain in sorted(snapshot.domains, key=lambda d: (d.name, d.uuid)):
        if policy.selection.matches(domain):
            release.domain(domain)
    return PinRelease(
        tuple(release.moves),
        tuple(release.skips),
        (*release.not_restored, *policy.selection.unseen(snapshot)),
        tuple(release.adoptions),
    )


class _Release:
    def __init__(self, snapshot: Snapshot, dedicated: Dedication) -> None:
        self._snapshot, self._dedicated = snapshot, dedicated
        self._affinity = Affinity(snapshot)
        self.moves: list[Move] = []
        self.skips: list[Skip] = []
        self.not_restored: list[Left] = []
        self.adoptions: list[Adoption] = []

    def domain(self, domain: Domain) -> None:
        why = fault(domain)
        if why:
            self._skip(domain, "record", why)
            owed = left_of(None, domain, memory=False, pins=True)
            self.not_restored += [owed] if owed else []
            return
        if domain.record is None or not domain.record.pins:
            return
        if domain.busy:
            self._fail(domain, "busy", domain.busy)
            return
        # What somebody else set is where the domain belongs from now on: nothing is left to restore.
        theirs = adopted(domain, self._snapshot)
        self.adoptions += [theirs] if theirs else rebased(domain, self._snapshot, self._affinity)
        pins = pins_of(domain)
        unplugged = domain.unplugged
        # A driver may refuse to pin what is unplugged, which ends the turn of its domain.
        for record in sorted(domain.record.pins, key=lambda record: (record.thread, record.id) in unplugged):
            self._thread(domain, record, pins.get((record.thread, record.id)))

    def _thread(self, domain: Domain, record: PinRecord, current: Optional[CpuSet]) -> None:
        thread = f"{record.thread} {record.id}".replace("vcpu", "vCPU")
        if current is None:
            self._skip(domain, "offline", f"{thread} is not there any more: nothing to give back")
        elif record.set_by_person(current):
            ours = format_cpuset(record.intended)
            where = f"{thread} is on pCPU {format_cpuset(current)}, last set by kvmsched: {ours}"
            line = f"{where}; somebody else pinned it there, so it stays"
            self._skip(domain, "human", line)
        else:
            self._restore(domain, record, current, thread)

    def _restore(self, domain: Domain, record: PinRecord, current: CpuSet, thread: str) -> None:
        original = self._affinity.original(domain, record)
        here = pin_records(domain, self._snapshot)
        whose = "its original" if here else "its own set, as the record is of another host,"
        offline = original - self._affinity.online
        forbidden = forbidden_to(domain, record, self._affinity, self._dedicated) - offline
        after = original - offline - forbidden
        which = ""
        if after != original:
            which = "" if after else "its own set "
            # Where we pinned it last may be little: without an original that may be, it gets what a new start gives it.
            after = after or self._affinity.fresh(domain, (record.thread, record.id)) & self._affinity.online
            left = f"restored to {which}{format_cpuset(after)}" if after else "left as it is"
            faults = [("offline", offline), ("isolated, another domain's own, or outside of its cpuset", forbidden)]
            why = " and ".join(f"pCPU {format_cpuset(pcpus)} {fault}" for fault, pcpus in faults if pcpus)
            text = f"{thread}: {whose} {format_cpuset(original)} has {why}, {left}"
            self.not_restored.append(Left(domain.name, domain.uuid, text, limited=True))
        if after and after != current:
            reason = f"released: back to {which or whose + ' '}{format_cpuset(after if which else original)}"
            self.moves.append(
                PinMove(domain.name, domain.uuid, record.id, current, after, reason, thread=record.thread)
            )

    def _skip(self, domain: Domain, code: VcpuCode, reason: str) -> None:
        self.skips.append(skipped(domain, code, reason))

    def _fail(self, domain: Domain, code: VcpuCode, reason: str) -> None:
        self._skip(domain, code, reason)
        self.not_restored.append(Left(domain.name, domain.uuid, reason))
