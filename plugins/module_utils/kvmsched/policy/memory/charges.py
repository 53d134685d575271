# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What each domain may still touch: memory that was promised to it, and that must not be given twice."""

from __future__ import annotations

from typing import Mapping, Optional

from ...model import Balloon, Domain, Snapshot
from .guest import QEMU_OVERHEAD_KIB, Guest
from .history import DomainHistory
from .requests import pending
from .safeties import Safeties


def risks(
    snapshot: Snapshot, guests: Mapping[str, Guest], seen: Mapping[str, DomainHistory], safeties: Safeties
) -> dict[str, int]:
    """Return at_risk() of all domains by UUID, chosen or not; one that could not be observed counts as last seen.

    Of one that starts nothing was seen but an earlier run: it counts as what is told of it, if that is more.
    """
    if not safeties.promises:
        return dict.fromkeys([domain.uuid for domain in snapshot.domains], 0)
    unobserved = {
        skip.uuid: max(skip.untouched_kib, seen[skip.uuid].at_risk_kib if skip.uuid in seen else 0)
        for skip in snapshot.skips
    }
    observed = {}
    for domain in snapshot.domains:
        known = seen.get(domain.uuid)
        boots = known is not None and domain.balloon is not None and known.boots(domain.balloon, snapshot.wall_s)
        observed[domain.uuid] = at_risk(domain, guests.get(domain.uuid), boots, safeties)
    return {**unobserved, **observed}


def at_risk(domain: Domain, guest: Optional[Guest], boots: bool, safeties: Safeties) -> int:
    """Return what *domain* may still touch beyond what QEMU holds, in KiB.

    rss holds QEMU's own memory too, so that is part of the charge: without it a host with many
    domains would sink below its reserve by as much for each.
    A domain that *boots* is charged at its maximum (decision 22), however long it takes. Where rss is not known nothing
    counts as touched.
    Nobody is charged for more than his balloon can have, whatever he says or a record asks for (decision 44).
    """
    balloon = domain.balloon
    if balloon is None:
        return 0
    charge_kib = promised_kib(guest) if guest is not None else max(balloon.actual_kib, pending(domain) or 0)
    if boots:
        charge_kib = max(charge_kib, balloon.most_kib)
    if safeties.bounds:
        charge_kib = min(charge_kib, balloon.most_kib)
    return max(0, _plain_kib(balloon, charge_kib) + QEMU_OVERHEAD_KIB - (balloon.rss_kib or 0))


def _plain_kib(balloon: Balloon, charge_kib: int) -> int:
    """Return the part of a charge that may lie on plain pages. Huge ones are the host's to give no more, nor in rss."""
    if "hugepages" in balloon.inhibitors:
        return 0
    return min(charge_kib, max(0, balloon.most_kib - balloon.huge_kib)) if balloon.huge_kib else charge_kib


def promised_kib(guest: Guest) -> int:
    """Return what *guest* is charged for: what it holds, or of what it did not take in time a part.

    What is resident beyond its size proves that it has all of it (decision 46). One that boots may have its maximum.
    """
    if guest.skip is not None and guest.skip[0] == "booting":
        return max(guest.expected_kib, guest.balloon.most_kib)
    rss_kib = guest.balloon.rss_kib
    overdue = guest.unanswered and (guest.late or guest.unheard)
    if not overdue or rss_kib is None or rss_kib > guest.actual_kib + QEMU_OVERHEAD_KIB:
        return guest.expected_kib
    return max(guest.actual_kib, min(rss_kib + QEMU_OVERHEAD_KIB + guest.rise_kib, guest.expected_kib))


def uncharged_kib(guests: Mapping[str, Guest]) -> int:
    """Return the sum of what guests were promised and are not charged for."""
    return sum(max(0, guest.expected_kib - promised_kib(guest)) for guest in guests.values())


def filled(snapshot: Snapshot) -> list[str]:
    """Return the hard limits below which khugepaged may take all that is left: of groups, and of a domain alone.

    It fills what balloons took, and a page that QEMU needs then gets it killed.
    """
    memory = snapshot.host.memory
    if memory is None or not memory.fills_holes:
        return []
    balloons = {domain.name: domain.balloon for domain in snapshot.domains if domain.balloon is not None}
    groups = [
        room.name
        for room in snapshot.host.rooms
        if room.left_kib is not None
        and sum(_holes_kib(one) for one in balloons.values() if room.name in one.rooms) > room.left_kib
    ]
    own_left_kib = {
        name: one.limit_kib - (one.rss_kib or 0) for name, one in balloons.items() if one.limit_kib is not None
    }
    return [*groups, *(name for name, left_kib in own_left_kib.items() if _holes_kib(balloons[name]) > left_kib)]


def _holes_kib(balloon: Balloon) -> int:
    """Return what a balloon took, as far as it is known not to be resident again."""
    held_kib = max(balloon.actual_kib, (balloon.rss_kib or 0) - QEMU_OVERHEAD_KIB)
    return max(0, _plain_kib(balloon, balloon.most_kib) - held_kib)


def callable_kib(domain: Domain) -> int:
    """Return what was taken from *domain* by order, and may be called back by it at any time.

    No more than it lacks: whoever writes a domain's metadata may forge a record.
    """
    record, balloon = domain.record.memory if domain.record else None, domain.balloon
    if record is None or balloon is None:
        return 0
    return min(record.ordered_kib, max(0, min(record.original_kib, balloon.most_kib) - balloon.actual_kib))


def untouched_kib(balloon: Balloon, rss_kib: Optional[int], target_kib: int = 0) -> int:
    """Return what a domain has, or was promised, that QEMU does not hold yet, as far as is known."""
    promised_kib = max(balloon.actual_kib, target_kib)
    return max(0, _plain_kib(balloon, min(promised_kib, balloon.most_kib)) - (rss_kib or 0))
