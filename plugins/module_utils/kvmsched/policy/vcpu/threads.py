# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Emulator and I/O threads: left as they are, spread over what their domain may use, or on reserved pCPUs."""

from __future__ import annotations

from ...config import VcpuPolicy
from ...model import Domain, PinMove, Snapshot
from ...units import CpuSet, format_cpuset
from .allowed import Masks
from .definition import definitions
from .eligibility import Eligible

_WHY = {
    "spread": "emulator: spread over all pCPUs that the domain's vCPUs may use",
    "reserved": "emulator: reserved, off the pCPUs of vCPUs",
}


def thread_moves(
    snapshot: Snapshot, policy: VcpuPolicy, eligible: Eligible, masks: Masks, at_times: CpuSet
) -> list[PinMove]:
    """Return the pins of emulator and I/O threads of eligible domains, without those that a definition pins.

    vCPUs may use the pCPUs *at_times* only while the others are full. What was once spread does not follow that.
    """
    if policy.emulator == "float":
        return []
    domains: dict[str, tuple[Domain, CpuSet]] = {}
    for seat in eligible.seats:
        _domain, allowed = domains.get(seat.domain.uuid, (seat.domain, frozenset()))
        domains[seat.domain.uuid] = (seat.domain, allowed | seat.allowed)
    moves = []
    for domain, allowed in domains.values():
        wanted = allowed if policy.emulator == "spread" else policy.reserved & masks.online
        if domain.cgroup_pcpus is not None:
            wanted &= domain.cgroup_pcpus
        pinned = definitions(domain)
        for thread in domain.threads:
            record = domain.record.pin(thread.kind, thread.id) if domain.record else None
            ours = record is not None and record.intended == thread.pin
            if ours and policy.emulator == "spread" and thread.pin ^ wanted <= at_times:
                continue
            if wanted and thread.kind != "vcpu" and thread.pin != wanted and (thread.kind, thread.id) not in pinned:
                reason = f"{_WHY[policy.emulator]} ({format_cpuset(wanted)})"
                moves.append(
                    PinMove(domain.name, domain.uuid, thread.id, thread.pin, wanted, reason, thread=thread.kind)
                )
    return moves
