# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way back: each thread with a record gets the affinity that it had before our first pin of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from ..baseline import COPY
from ..config import VcpuPolicy
from ..model import Adoption, Domain, Move, PinMove, PinRecord, Skip, Snapshot
from ..units import CpuSet, format_cpuset
from .vcpu_turns import Masks, adopted, pin_records, pins_of, rebased


@dataclass(frozen=True)
class WayBack:
    moves: tuple[Move, ...]
    skips: tuple[Skip, ...]
    not_restored: tuple[str, ...]
    adoptions: tuple[Adoption, ...]


def way_back(snapshot: Snapshot, policy: VcpuPolicy) -> WayBack:
    """What brings all chosen domains back, what is left alone, and what can't be brought back yet."""
    release = _Release(snapshot, policy)
    for domain in sorted(snapshot.domains, key=lambda d: (d.name, d.uuid)):
        if policy.selection.matches(domain):
            release.domain(domain)
    return WayBack(
        tuple(release.moves),
        tuple(release.skips),
        (*release.not_restored, *policy.selection.unseen(snapshot)),
        tuple(release.adoptions),
    )


class _Release:
    def __init__(self, snapshot: Snapshot, policy: VcpuPolicy) -> None:
        self._snapshot = snapshot
        self._masks = Masks(snapshot, policy)
        self.moves: list[Move] = []
        self.skips: list[Skip] = []
        self.not_restored: list[str] = []
        self.adoptions: list[Adoption] = []

    def domain(self, domain: Domain) -> None:
        if domain.record_error:
            tell = self._skip if domain.record_error == COPY else self._fail
            tell(domain, "record", domain.record_error)
            return
        if domain.record is None or not domain.record.pins:
            return
        if domain.busy:
            self._fail(domain, "busy", domain.busy)
            return
        # What somebody else set is where the domain belongs from now on: nothing is left to restore.
        theirs = adopted(domain, self._snapshot)
        self.adoptions += [theirs] if theirs else rebased(domain, self._snapshot, self._masks)
        pins = pins_of(domain)
        for record in domain.record.pins:
            self._thread(domain, record, pins.get((record.thread, record.id)))

    def _thread(self, domain: Domain, record: PinRecord, current: Optional[CpuSet]) -> None:
        thread = f"{record.thread} {record.id}".replace("vcpu", "vCPU")
        if current is None:
            self._skip(domain, "offline", f"{thread} is not there any more: nothing to give back")
        elif record.foreign(current):
            ours = format_cpuset(record.intended)
            line = f"{thread} is on {format_cpuset(current)}, last set by kvmsched: {ours}: somebody else's, left alone"
            self._skip(domain, "human", line)
        else:
            self._restore(domain, record, current, thread)

    def _restore(self, domain: Domain, record: PinRecord, current: CpuSet, thread: str) -> None:
        original = self._masks.original(domain, record)
        here = pin_records(domain, self._snapshot)
        whose = "its original" if here else "its own set, as the record is of another host,"
        after = original if original <= self._masks.online else original & self._masks.online
        if after != original:
            gone = format_cpuset(original - after)
            left = f"restored to {format_cpuset(after)}" if after else "left as it is"
            text = f"{thread}: {whose} {format_cpuset(original)} has pCPU {gone} offline, {left}"
            self.not_restored.append(f"{domain.name}: {text}")
        if after and after != current:
            reason = f"released: back to {whose} {format_cpuset(original)}"
            self.moves.append(
                PinMove(domain.name, domain.uuid, record.id, current, after, reason, thread=record.thread)
            )

    def _skip(self, domain: Domain, code: str, reason: str) -> None:
        self.skips.append(Skip(domain.name, domain.uuid, code, reason))

    def _fail(self, domain: Domain, code: str, reason: str) -> None:
        self._skip(domain, code, reason)
        self.not_restored.append(f"{domain.name}: {reason}")
