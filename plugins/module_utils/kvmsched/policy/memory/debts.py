# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was taken from guests below their originals, and how it goes back while nobody needs it (decision 42a).

A guest in need gets its debt at once, before anybody's comfort: see fair. Not owed is what somebody asked for: what
``eager``, ``pairwise``, a ceiling or ``reclaim: idle`` took. A record without that word owes all.
"""

from __future__ import annotations

from typing import Sequence

from ...units import mib
from .donors import Donor
from .guest import Guest
from .sharing import Draft, Grant, Need, left_of, pools_of, spend
from .supply import HOST, HostState

# Calm repayment leaves this share of the reserve beside the reserve: it must not make the next need wait for takes.
KEPT_SHARE = 0.25


def ask_back(donors: Sequence[Donor], owed_kib: int, host: HostState) -> None:
    """Mark what guests have more than their originals and do not use, as far as others are owed it (decision 42b)."""
    owed_kib -= max(0, host.supply_kib or 0)
    for donor in donors:
        guest = donor.guest
        grown_kib = guest.actual_kib - max(guest.original_kib, guest.soft_kib)
        kib = min(grown_kib, guest.unused_kib - guest.limits.middle_kib, owed_kib)
        if kib >= guest.limits.min_change_kib and kib > donor.taken_kib:
            donor.take(kib)
            owed_kib -= kib


def repay(draft: Draft, guests: Sequence[Guest], host: HostState) -> None:
    """Add to *draft* what goes back in calm times: the largest debt for its weight first, out of half of the supply."""
    # What it is paid from is beyond the reserve, or was just asked back: a host below its reserve has no more.
    if host.supply_kib is None or host.level == "low":
        return
    taken_kib = sum(take.kib for take in draft.takes)
    kept_kib = max(host.pool_kib, int((host.reserve_kib or 0) * KEPT_SHARE))
    moved = {need.guest.uuid for need in draft.needs} | {take.guest.uuid for take in draft.takes}
    left_kib = {name: kib - host.kept_kib[name] for name, kib in left_of(host, draft).items()}
    pool_kib = (host.supply_kib + taken_kib - draft.granted_kib - host.kept_kib[HOST] - kept_kib) // 2
    left_kib[HOST] = min(left_kib[HOST], pool_kib)
    _pay_back(draft, [guest for guest in guests if guest.uuid not in moved], left_kib)


def repay_all(draft: Draft, guests: Sequence[Guest], host: HostState) -> None:
    """Add to *draft* all that is owed, as far as the host has it beyond its reserve and all promises."""
    if host.supply_kib is not None and host.level != "low":
        _pay_back(draft, guests, {name: kib - host.asked_of(name) for name, kib in left_of(host, draft).items()})


def _pay_back(draft: Draft, guests: Sequence[Guest], left_kib: dict[str, int]) -> None:
    owed = [_debt(guest) for guest in guests if _is_owed(guest)]
    for need in sorted(owed, key=lambda need: -need.debt_kib / need.guest.limits.weight):
        pools = [name for name in pools_of(need) if name in left_kib]
        kib = min(need.debt_kib, *(left_kib[name] for name in pools))
        if kib >= need.guest.limits.min_change_kib:
            spend(left_kib, pools, kib)
            draft.grants.append(Grant(need.at_most(kib), kib))


def _is_owed(guest: Guest) -> bool:
    # Less than a command moves stays owed; it goes back with the next need. That the host would keep what it gives
    # (inhibited) is no reason against giving back.
    known = guest.fresh and (guest.skip is None or guest.skip[0] == "inhibited")
    return guest.debt_kib >= guest.limits.min_change_kib and known and guest.pending_kib is None


def _debt(guest: Guest) -> Need:
    why = f"back to its original {mib(guest.original_kib)}: {mib(guest.debt_kib)} was taken from it"
    return Need(guest, 0, 0, guest.debt_kib, 0, why)
