# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which pins an administrator gave a domain's threads by its definition, and which of them are ours (decision 52)."""

from __future__ import annotations

from typing import Optional

from ...model import Domain, PinRecord
from ...units import CpuSet

# Kind of thread, and id.
ThreadKey = tuple[str, int]


def definitions(domain: Domain) -> dict[ThreadKey, CpuSet]:
    """Return the pins of a domain's definition, without those that are ours."""
    records = _records(domain)
    wills = ((key, _will(domain, records.get(key), mask)) for key, mask in _defined(domain).items())
    return {key: mask for key, mask in wills if mask is not None}


def ours_in_definition(domain: Domain) -> list[ThreadKey]:
    """Return the threads whose persistent definition has a pin that we wrote: it was defined by its live XML."""
    records = _records(domain)
    if not records:
        return []
    return [key for key, mask in _defined(domain).items() if mask and _will(domain, records.get(key), mask) is None]


def _records(domain: Domain) -> dict[ThreadKey, PinRecord]:
    return {(pin.thread, pin.id): pin for pin in domain.record.pins} if domain.record else {}


def start_unknown(domain: Domain) -> bool:
    """Return whether the pins of now are taken for those that a transient domain began with."""
    recorded = _records(domain)
    unseen = (v for v in domain.vcpus if v.definition is None and ("vcpu", v.id) not in recorded)
    return domain.start_unknown or (not domain.persistent and any(True for _each in unseen))


def _defined(domain: Domain) -> dict[ThreadKey, Optional[CpuSet]]:
    found: dict[ThreadKey, Optional[CpuSet]] = {
        ("vcpu", vcpu.id): vcpu.pin if vcpu.definition is None and not domain.persistent else vcpu.definition
        for vcpu in domain.vcpus
    }
    found.update({(thread.kind, thread.id): thread.definition for thread in domain.threads})
    return found


def _will(domain: Domain, record: Optional[PinRecord], mask: Optional[CpuSet]) -> Optional[CpuSet]:
    """Return the mask of a definition; of a transient domain that is what it had before our first pin.

    A mask that we wrote is ours in whatever XML it stands, but for one that stood there before.
    """
    if record is None:
        return mask
    if not domain.persistent:
        return record.original if record.defined is None else record.defined
    ours = mask in (record.previous, record.intended) and mask not in (record.original, record.defined)
    return None if ours else mask
