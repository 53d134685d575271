# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Strategy ``fair``: every guest by its need, in one pass. Guests come sorted by UUID."""

from __future__ import annotations

from dataclasses import replace
from typing import Mapping, Optional, Sequence

from ...config import MemoryPolicy
from ...units import mib
from .debts import ask_back, repay
from .donors import (
    Donor,
    donor_of,
    grow_only,
    kept_by_mode,
    kept_for_silence,
    limit,
    slow_stats,
    take_cache,
    take_cache_for_room,
    take_deep,
    take_of,
    take_resident,
    take_surplus,
)
from .eligibility import skip
from .growth import need_of
from .guest import Guest
from .history import DomainHistory
from .idle import reclaim_idle
from .rooms import rooms_fed_by, rooms_of
from .safeties import ALL_ON, Safeties
from .sharing import LEAST_SURVIVAL_KIB, Draft, Loan, Need, fit, pay
from .supply import CREDIT_SHARE, HostState

# After its demand went up and down this often a domain keeps what it got for a while, twice as long for each time more.
FREE_REVERSALS = 2
REST_S = 30
REST_MAX_S = 600
# Guests below their originals lend at most this much for each KiB that reaches somebody in the same pass.
MOST_BORROWED = 4


def draft_of(
    guests: Sequence[Guest],
    host: HostState,
    policy: MemoryPolicy,
    seen: Mapping[str, DomainHistory],
    wall_s: float,
    safeties: Safeties = ALL_ON,
) -> Draft:
    """Return the draft that serves every domain by its need: from the host, then surplus, then cache for debts."""
    needs = [need for guest in guests if (need := need_of(guest, seen.get(guest.uuid), wall_s, safeties)) is not None]
    needy = {need.guest.uuid for need in needs}
    owed_kib = sum(guest.debt_kib for guest in guests if guest.debt_kib and guest.judged)
    # On a calm host, which most are, nobody need be asked what it can do without.
    calm = policy.takes == "auto" and not owed_kib and not _lacks(needs, host)
    asked = [g for g in guests if (not calm or _may_give_by_order(g)) and g.shrinkable and g.uuid not in needy]

    def served(takes: bool, lives: bool = False) -> Draft:
        """Return the draft in which others pay for needs and debts too; without *takes* they are paid by the host.

        *lives*: others pay for survival alone.
        """
        draft = Draft(needs=needs)
        donors = [donor_of(guest, host, safeties.keep and policy.takes != "eager") for guest in asked]
        for donor in donors:
            _order(donor, draft, policy, seen.get(donor.guest.uuid), wall_s)
        if takes and policy.takes != "eager":
            ask_back(donors, owed_kib, host)
        collect(donors, needs if takes else [], host, policy, safeties, lives)
        draft.takes = [take_of(donor) for donor in donors if donor.taken_kib or donor.cached_kib]
        pay(draft, host)
        if policy.takes != "eager":
            repay(draft, guests, host)
        return draft

    draft = served(takes=True)
    if draft.takes and policy.takes == "auto" and safeties.useful and (needs or owed_kib):
        without = served(takes=False)
        # What helps nobody in this pass stays where it is (decision 42).
        if not _pays(draft, without):
            draft = _for_lives(draft, served(takes=True, lives=True), without)
    draft.notes += [grow_only(guest) for guest in guests if kept_by_mode(guest)]
    draft.notes += [slow_stats(guest) for guest in guests if kept_for_silence(guest)]
    return draft


def _pays(draft: Draft, without: Draft) -> bool:
    """Return whether its takes help enough: more is granted, and not far more is borrowed for that.

    The rest would but cover promises that nobody calls in now.
    """
    loan = _loan(draft, without)
    return loan.more_kib > 0 and loan.borrowed_kib <= loan.more_kib * MOST_BORROWED


def _for_lives(draft: Draft, frugal: Draft, without: Draft) -> Draft:
    """Return what keeps most alive, and of those the one that takes least: survival needs no promise covered first."""
    best = max((frugal, draft), key=_lives_kib)
    if _lives_kib(best) - _lives_kib(without) >= LEAST_SURVIVAL_KIB:
        return best
    loan = _loan(draft, without)
    return replace(without, declined=loan if loan.more_kib > 0 else None)


def _loan(draft: Draft, without: Draft) -> Loan:
    return Loan(draft.borrowed_kib - without.borrowed_kib, draft.granted_kib - without.granted_kib)


def _lives_kib(draft: Draft) -> int:
    """Return how much of what is needed for survival is granted."""
    paid_kib = {grant.need.guest.uuid: grant.kib for grant in draft.grants}
    return sum(min(need.survive_kib, paid_kib.get(need.guest.uuid, 0)) for need in draft.needs)


def _order(donor: Donor, draft: Draft, policy: MemoryPolicy, seen: Optional[DomainHistory], wall_s: float) -> None:
    """Mark what *donor* must give whoever needs it: what is above its ceiling, its waste or what was idle."""
    _cap(donor)
    if policy.takes == "eager" and donor.guest.wasteful:
        _reclaim(donor, draft, seen, wall_s)
    elif policy.takes == "auto":
        reclaim_idle(donor, seen, wall_s)


def _lacks(needs: Sequence[Need], host: HostState) -> bool:
    wanted_kib = sum(need.total_kib for need in needs) + host.newcomer_kib
    if wanted_kib and host.rooms:
        return True
    return host.short_kib > 0 or wanted_kib > max(0, host.supply_kib or 0)


def _may_give_by_order(guest: Guest) -> bool:
    """Return whether a ceiling, or an offer of idle memory, may take from it though nobody needs that."""
    above = guest.actual_kib > guest.limits.ceiling_kib
    return above or guest.limits.reclaim == "idle" or guest.balloon.autodeflate


def _cap(donor: Donor) -> None:
    """Mark what *donor* holds above its ceiling to be taken, as far as it can do without."""
    kib = min(donor.guest.actual_kib - donor.guest.limits.ceiling_kib, donor.surplus_kib)
    if kib >= donor.guest.limits.min_change_kib:
        donor.order(kib)


def _reclaim(donor: Donor, draft: Draft, seen: Optional[DomainHistory], wall_s: float) -> None:
    """Mark all that *donor* wastes to be taken, or note why it stays."""
    guest = donor.guest
    if donor.surplus_kib < guest.limits.min_change_kib:
        draft.notes.append(limit(guest))
    elif _resting(seen, wall_s):
        turned = f"its demand went up and down {seen.reversals if seen else 0} times, a larger waste would end that"
        why = f"unused {mib(guest.unused_kib)} stays for a while: {turned}"
        draft.notes.append(skip(guest.domain, "resting", why))
    else:
        donor.taken_kib = donor.surplus_kib


def _resting(seen: Optional[DomainHistory], wall_s: float) -> bool:
    """Return whether its demand went up and down so often that what it wastes now will be needed again (ping-pong)."""
    if seen is None or seen.direction <= 0 or seen.reversals < FREE_REVERSALS:
        return False
    rest_s = min(REST_MAX_S, REST_S << min(seen.reversals - FREE_REVERSALS, 10))
    return 0 <= wall_s - seen.moved_s < rest_s


def collect(
    donors: Sequence[Donor],
    needs: Sequence[Need],
    host: HostState,
    policy: MemoryPolicy,
    safeties: Safeties,
    lives: bool = False,
) -> None:
    """Mark what *donors* must give beyond what is taken already, for *needs*, the pool and the reserve.

    *lives*: of needs no more than what keeps alive, which is paid from what is really free.
    """
    if host.supply_kib is None:
        return
    paid = [need for need in needs if policy.takes != "auto" or _others_pay(need.guest, safeties)]
    fitting = fit(paid, host)
    wanted_kib = sum(need.total_kib for need in fitting) + host.pool_kib
    taken_kib = sum(donor.taken_kib for donor in donors)
    lack_kib = wanted_kib - host.supply_kib
    asked_kib = max(0, lack_kib + host.newcomer_kib) if host.newcomer_kib else 0
    if policy.takes == "auto" and safeties.useful:
        lack_kib = _useful(lack_kib, fitting, donors, host, policy.cache == "share", lives)
    take_surplus(donors, max(lack_kib, asked_kib) - taken_kib)
    if host.short_kib:
        take_resident(donors, host.short_kib)
    for name, room in host.rooms.items():
        here = [need for need in paid if name in rooms_of(need.guest.balloon)]
        needed_kib = sum(need.total_kib for need in here) + host.asked_of(name)
        if needed_kib and not room.throttled:
            inside = [donor for donor in donors if name in rooms_fed_by(donor.guest.balloon)]
            lacks_kib = _for_survival(here, room.free_kib) if lives else needed_kib - room.supply_kib
            take_surplus(inside, lacks_kib - sum(donor.taken_kib for donor in inside))
    take_cache(donors, fitting if lack_kib > 0 else [], host, policy)
    take_cache_for_room(donors, asked_kib, host, policy)
    where = host.newcomer_room
    if host.newcomer_kib and where is not None and where in host.rooms:
        inside = [donor for donor in donors if where in rooms_fed_by(donor.guest.balloon)]
        take_cache_for_room(inside, host.newcomer_kib - host.rooms[where].supply_kib, host, policy)
    dying_kib = sum(min(need.total_kib, need.guest.debt_kib) for need in fitting if need.guest.dying)
    if dying_kib and lack_kib > 0:
        given_kib = sum(donor.taken_kib + donor.cached_kib for donor in donors)
        take_deep(donors, min(lack_kib - given_kib, dying_kib))


def _others_pay(guest: Guest, safeties: Safeties) -> bool:
    """Return whether others give for what *guest* needs; else it is paid from what is free alone.

    A forecast is nobody else's loss. Who fills whatever it gets would have all that others leave unused, and when they
    want it again, nothing would be free.
    """
    return not (guest.only_rises or (guest.bottomless and safeties.bottomless))


def _for_survival(needs: Sequence[Need], free_kib: int) -> int:
    """Return what has to arrive beside what is really free, until survival is paid from a part of both."""
    return int(sum(need.survive_kib for need in needs) / CREDIT_SHARE) - free_kib


def _useful(
    lack_kib: int, needs: Sequence[Need], donors: Sequence[Donor], host: HostState, caches: bool, lives: bool
) -> int:
    """Return how much of *lack_kib* is worth taking: nothing, if all that can be taken could not be granted to anybody.

    The supply is what the host has beyond all promises. Where takes can't bring it above zero, or only *lives* count,
    they help only who is paid from what is really free (decision 42).
    """
    if not needs:
        return 0
    cache_kib = sum(donor.cache_kib for donor in donors)
    if not caches:
        cache_kib = min(cache_kib, sum(min(need.total_kib, need.guest.debt_kib) for need in needs))
    all_kib = sum(donor.surplus_kib for donor in donors) + cache_kib
    if (host.supply_kib or 0) + all_kib > 0 and not lives:
        return lack_kib
    return _for_survival(needs, host.free_kib) if host.free_kib + all_kib > 0 else 0
