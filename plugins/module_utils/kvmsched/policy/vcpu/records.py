# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose pins they are: ours by the record on the domain, or somebody else's (decisions 12 and 13)."""

from __future__ import annotations

from typing import Optional

from ...config import VcpuPolicy
from ...model import Adoption, Domain, PinRecord, Snapshot, Vcpu
from ...units import CpuSet, format_cpuset
from .allowed import Affinity


def pin_records(domain: Domain, snapshot: Snapshot) -> tuple[PinRecord, ...]:
    """Return the pins that were recorded on this host."""
    record = domain.record
    return record.pins if record is not None and record.host_uuid == snapshot.host.uuid else ()


def pins_of(domain: Domain) -> dict[tuple[str, int], CpuSet]:
    """Return the configured pin of each thread, by its kind and id."""
    pins: dict[tuple[str, int], CpuSet] = {("vcpu", vcpu.id): vcpu.pin for vcpu in domain.vcpus}
    pins.update({(thread.kind, thread.id): thread.pin for thread in domain.threads})
    return pins


def adopted(domain: Domain, snapshot: Snapshot) -> Optional[Adoption]:
    """Return the pins that somebody else set since our last write (decision 12)."""
    records = pin_records(domain, snapshot)
    if not records:
        return None
    pins = pins_of(domain)
    now_s = int(snapshot.wall_s)
    taken = []
    lines = []
    for record in records:
        current = pins.get((record.thread, record.id))
        if current is not None and record.set_by_person(current):
            taken.append(PinRecord(record.thread, record.id, current, current, current, now_s))
            ours = format_cpuset(record.intended)
            thread = f"{record.thread} {record.id}".replace("vcpu", "vCPU")
            lines.append(f"{thread} is on pCPU {format_cpuset(current)}, last set by kvmsched: {ours}")
    if not taken:
        return None
    reason = f"somebody else pinned it, {lines[0]}: that is its new original, and it is skipped for grace"
    return Adoption(domain.name, domain.uuid, reason, pins=tuple(taken))


def rebased(domain: Domain, snapshot: Snapshot, affinity: Affinity) -> list[Adoption]:
    """Return what another host recorded of its pins, in this host's terms.

    What is still where it was put there has the domain's own set for its original here (decision 13). Of all else
    nothing is known. What has its own set already needs no record: that would read as a person's (see grace_left_s()).
    """
    record = domain.record
    if record is None or record.host_uuid == snapshot.host.uuid or not record.pins:
        return []
    pins = pins_of(domain)
    taken = []
    for part in record.pins:
        current = pins.get((part.thread, part.id))
        if current is not None and not part.set_by_person(current):
            original = affinity.original(domain, part)
            if original != current:
                taken.append(PinRecord(part.thread, part.id, original, current, current, int(snapshot.wall_s)))
    reason = "its pins were recorded on another host: its own set is their original here"
    return [Adoption(domain.name, domain.uuid, reason, pins=tuple(taken))]


def grace_left_s(domain: Domain, snapshot: Snapshot, policy: VcpuPolicy) -> float:
    """Return how long a pin that was adopted from somebody else is still skipped."""
    adopted_s = [r.when_s for r in pin_records(domain, snapshot) if r.original == r.previous == r.intended]
    left_s = max((when_s + policy.grace_s - snapshot.wall_s for when_s in adopted_s), default=0.0)
    return min(left_s, policy.grace_s)  # whichever way the clock was set since


def ours(domain: Domain, vcpu: Vcpu, host_uuid: str) -> Optional[CpuSet]:
    """Return the original of a vCPU that stands where we pinned it on this host; None if it does not."""
    record = domain.record
    if record is None or record.host_uuid != host_uuid:
        return None
    pin = record.pin("vcpu", vcpu.id)
    return pin.original if pin is not None and pin.intended == vcpu.pin != pin.original else None


def narrowed_from(domain: Domain, vcpu: Vcpu, host_uuid: str, balanced: CpuSet) -> Optional[CpuSet]:
    """Return the wider set in which a vCPU floated before we narrowed it; None if it did not.

    Within a set that holds fewer than two *balanced* pCPUs (online, not isolated) nothing floats.
    """
    original = ours(domain, vcpu, host_uuid)
    if original is None or len(original) <= len(vcpu.pin) or len(original & balanced) < 2:
        return None
    return original
