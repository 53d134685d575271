# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Strategy ``pairwise``: one pair a pass, as kvmsched's first rules do. Guests come sorted by UUID."""

from __future__ import annotations

from dataclasses import replace
from typing import Callable, Optional, Sequence

from ...config import MemoryPolicy
from ...units import mib
from .donors import (
    donor_of,
    grow_only,
    kept_by_mode,
    limit,
    take_cache,
    take_cache_for_room,
    take_of,
    take_surplus,
)
from .guest import Guest
from .rooms import rooms_fed_by, rooms_of
from .sharing import Draft, Need, Take, pay, symptoms
from .supply import HostState


def draft_of(guests: Sequence[Guest], host: HostState, policy: MemoryPolicy) -> Draft:
    """Return the draft of one of four cases: from the most wasteful to the most starved, from or to the host, or none.

    Only domains that can give or get a change worth a command are ranked (decision 17). A host below
    its reserve takes what it misses from all, as in ``fair``.
    """
    draft = Draft()
    wasteful = [g for g in guests if g.shrinkable and g.wasteful]
    halved = _most([g for g in wasteful if _half(g) >= g.limits.min_change_kib], _waste)
    growth_kib = {g.uuid: _growth_kib(g, host, halved) for g in guests if g.judged and g.starved and not g.unanswered}
    starved = _most([g for g in guests if growth_kib.get(g.uuid, -1) >= g.limits.min_change_kib], _deficit)
    relieved = _most([g for g in wasteful if _spare(g) >= g.limits.min_change_kib], _waste)
    if starved is not None and halved is not None:
        draft.takes = [_halve(starved, halved, growth_kib[starved.uuid])]
        draft.needs = [_seed_need(starved, draft.takes[0].kib)]
    elif starved is not None:
        draft.needs = [_seed_need(starved, min(starved.limits.waste_kib, growth_kib[starved.uuid]))]
    elif relieved is not None and (policy.takes == "eager" or (host.supply_kib or 0) < host.pool_kib):
        spare_kib = _spare(relieved)
        why = _wasted(relieved, "what is above that goes back to the host")
        draft.takes = [Take(relieved, spare_kib, why)]
    _refill(draft, guests, host, policy)
    stay = [g for g in wasteful if _spare(g) < g.limits.min_change_kib]
    draft.notes = [limit(guest) for guest in stay] + [grow_only(guest) for guest in guests if kept_by_mode(guest)]
    pay(draft, host)
    return draft


def _halve(starved: Guest, wasteful: Guest, growth_kib: int) -> Take:
    """Return half of what *wasteful* has unused, as far as it can spare that and *starved* can have it."""
    kib = min(_half(wasteful), growth_kib)
    return Take(wasteful, kib, _wasted(wasteful, f"at most half of it goes to {starved.domain.name}, which starves"))


def _refill(draft: Draft, guests: Sequence[Guest], host: HostState, policy: MemoryPolicy) -> None:
    """Take what a host below its reserve misses, beside the takes of the draft."""
    asked_kib = host.newcomer_kib - (host.supply_kib or 0) if host.newcomer_kib else 0
    given_kib = sum(take.kib for take in draft.takes)
    short_kib = host.short_kib - given_kib
    if host.supply_kib is None or max(short_kib, asked_kib - given_kib) <= 0:
        return
    taken = {take.guest.uuid for take in draft.takes}
    donors = [donor_of(g, host, keeps=False) for g in guests if g.shrinkable and not g.starved and g.uuid not in taken]
    take_surplus(donors, max(short_kib, asked_kib - given_kib))
    take_cache(donors, [], replace(host, short_kib=short_kib), policy)
    take_cache_for_room(donors, asked_kib - given_kib, host, policy)
    draft.takes += [take_of(donor) for donor in donors if donor.taken_kib or donor.cached_kib]


def _seed_need(guest: Guest, kib: int) -> Need:
    survive_kib = max(0, guest.busy_kib + guest.limits.survival_kib - guest.expected_kib)
    return Need(guest, survive_kib, 0, 0, max(0, kib - survive_kib), symptoms(guest)).at_most(kib)


def _most(guests: Sequence[Guest], measure: Callable[[Guest], int]) -> Optional[Guest]:
    """Return the guest with the largest *measure*; the first by UUID where several have it."""
    return min(guests, key=lambda guest: (-measure(guest), guest.uuid), default=None)


def _deficit(guest: Guest) -> int:
    return guest.limits.starvation_kib - guest.available_kib


def _waste(guest: Guest) -> int:
    return guest.unused_kib - guest.limits.waste_kib


def _growth_kib(guest: Guest, host: HostState, donor: Optional[Guest]) -> int:
    """Return how much more it can have, where *donor* gives half of what it has unused."""
    shared = [name for name in rooms_of(guest.balloon) if name in host.rooms_kib]
    given = dict.fromkeys(rooms_fed_by(donor.balloon), _half(donor)) if donor else {}
    shares_kib = (host.rooms_kib[name] + given.get(name, 0) for name in shared)
    return min([guest.ceiling_kib - guest.expected_kib, *shares_kib])


def _half(guest: Guest) -> int:
    """Return half of its unused memory, or what it can do without if that is less."""
    return min(guest.unused_kib // 2, guest.actual_kib - guest.soft_kib)


def _spare(guest: Guest) -> int:
    """Return how much of its waste it can do without: what keeps a cushion of usable memory stays.

    It ends half a least change inside the threshold, for on its very edge noise makes it wasteful again.
    """
    return min(_waste(guest) + guest.limits.min_change_kib // 2, guest.actual_kib - guest.soft_kib)


def _wasted(guest: Guest, where: str) -> str:
    return f"unused {mib(guest.unused_kib)} > waste {mib(guest.limits.waste_kib)}: {where}"
