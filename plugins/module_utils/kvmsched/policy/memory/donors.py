# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What guests can do without, and who gives first: memory that serves nothing, then cache."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Sequence

from ...config import MemoryPolicy
from ...model import BALLOON_TOLERANCE_KIB, Skip
from ...units import mib
from .eligibility import skip
from .guest import Guest
from .sampling import LONGEST_PERIOD_S
from .sharing import Need, Take, water_fill
from .supply import HostState


@dataclass
class Donor:
    """What a domain can do without, in KiB: ``surplus_kib`` of memory that serves nothing, ``cache_kib`` beyond it.

    ``deep_kib`` is what it could give of both if it kept nothing but its life: for who dies below its original.
    ``ordered_kib`` is the part of ``taken_kib`` that somebody asked for.
    """

    guest: Guest
    surplus_kib: int
    cache_kib: int
    deep_kib: int
    taken_kib: int = 0
    cached_kib: int = 0
    ordered_kib: int = 0

    def take(self, kib: int) -> None:
        """Mark *kib* to be taken; what of it goes beyond the surplus is no longer there to be taken as cache."""
        self.cache_kib = max(0, self.cache_kib - max(0, kib - self.surplus_kib))
        self.taken_kib = kib

    def order(self, kib: int) -> None:
        """Mark *kib* to be taken because somebody asked for it."""
        self.take(kib)
        self.ordered_kib = kib


# A donor gives at most this share of what it has unused at its original size: nobody knows what it will need next.
GIVES_SHARE = 0.3


def donor_of(guest: Guest, host: HostState, keeps: bool = True) -> Donor:
    """Return what *guest* can do without.

    It *keeps* its worst rise, and most of its unused memory (decision 42b); else it gives half of that in one pass.
    Where the host is tight it keeps L, and its worst rise.
    """
    limits = guest.limits
    kept_kib = guest.lower_kib + guest.worst_kib if keeps else 0
    movable_kib = max(0, guest.actual_kib - max(guest.soft_kib, kept_kib))
    idle_kib = guest.unused_kib - limits.middle_kib
    if not host.tight and keeps:
        idle_kib = min(idle_kib, int((guest.unused_kib + guest.debt_kib) * GIVES_SHARE) - guest.debt_kib)
    elif not host.tight:
        idle_kib = min(idle_kib, guest.unused_kib // 2)
    above_kib = guest.actual_kib - limits.ceiling_kib
    surplus_kib = max(0, min(idle_kib, movable_kib), min(above_kib, guest.actual_kib - guest.soft_kib))
    deep_kib = max(0, guest.actual_kib - guest.soft_kib)
    if host.tight:
        return Donor(guest, surplus_kib, max(0, guest.actual_kib - guest.lower_kib - surplus_kib), deep_kib)
    # Who is owed memory itself gives no cache for another's debt; what is unused is no cache.
    most_kib = movable_kib // 2 - surplus_kib
    if keeps:
        most_kib = 0 if guest.debt_kib else min(most_kib, guest.usable_kib - guest.unused_kib)
    return Donor(guest, surplus_kib, max(0, most_kib), deep_kib)


def take_surplus(donors: Sequence[Donor], lack_kib: int) -> None:
    """Take idle memory: from who has more than its original first, from who is owed some last.

    Among equals, from who has most for its weight: few commands, and it costs nobody anything.
    """
    for donor in sorted(donors, key=_giving_order):
        if lack_kib <= 0:
            return
        least_kib = donor.guest.limits.min_change_kib
        if donor.surplus_kib <= donor.taken_kib or donor.surplus_kib < least_kib:
            continue
        kib = min(donor.surplus_kib, max(donor.taken_kib + lack_kib, least_kib))
        lack_kib -= kib - donor.taken_kib
        donor.taken_kib = kib


def take_resident(donors: Sequence[Donor], short_kib: int) -> None:
    """Take what a host in danger lacks from idle memory that is resident: the rest would bring it nothing."""
    short_kib -= sum(_gain(donor, donor.taken_kib) for donor in donors)
    for donor in sorted(donors, key=lambda donor: (-_gain(donor, donor.surplus_kib), donor.guest.uuid)):
        brings_kib = min(_gain(donor, donor.surplus_kib) - _gain(donor, donor.taken_kib), short_kib)
        untouched_kib = max(0, donor.guest.actual_kib - (donor.guest.balloon.rss_kib or 0))
        kib = max(donor.taken_kib, untouched_kib) + brings_kib
        # Who would lose far more than the host gets is not asked.
        if kib - donor.taken_kib <= 2 * brings_kib and kib >= donor.guest.limits.min_change_kib:
            donor.taken_kib = min(kib, donor.surplus_kib)
            short_kib -= brings_kib


def _gain(donor: Donor, kib: int) -> int:
    """Return what the host gets of a take, at once: of a guest's memory only what is resident."""
    rss_kib = min(donor.guest.balloon.rss_kib or 0, donor.guest.actual_kib)
    return max(0, rss_kib - (donor.guest.actual_kib - kib)) if kib else 0


def _giving_order(donor: Donor) -> tuple[int, float, str]:
    guest = donor.guest
    grown = guest.actual_kib > guest.original_kib + BALLOON_TOLERANCE_KIB
    return -1 if grown else int(guest.debt_kib > 0), -donor.surplus_kib / guest.limits.weight, guest.uuid


def take_deep(donors: Sequence[Donor], lack_kib: int) -> None:
    """Take what donors keep for themselves, for who dies below its original (decision 42b)."""
    for donor in sorted(donors, key=lambda d: (-d.deep_kib / d.guest.limits.weight, d.guest.uuid)):
        kib = min(donor.deep_kib - donor.taken_kib - donor.cached_kib, lack_kib)
        if kib >= donor.guest.limits.min_change_kib:
            donor.cached_kib += kib
            lack_kib -= kib


def take_cache(donors: Sequence[Donor], needs: Sequence[Need], host: HostState, policy: MemoryPolicy) -> None:
    """Take page cache for what surplus could not cover: from who holds most for its weight, by weighted max-min.

    The host's danger and what is owed come before anybody's cache (decision 42b). With ``cache: share`` urgent needs
    do, too, and comfort competes with it. What the host has promised and does not have is covered before any need is:
    where all caches can't do that, they give only what keeps somebody alive.
    """
    taken_kib = sum(donor.taken_kib for donor in donors)
    left_kib = (host.supply_kib or 0) + taken_kib
    funds_kib = max(0, left_kib)
    short_kib = max(0, host.short_kib - taken_kib)
    hole_kib = max(0, -left_kib - short_kib)
    urgent_kib = max(0, sum(need.urgent_kib + need.debt_kib for need in needs) - funds_kib)
    comfort_kib = max(0, sum(need.total_kib for need in needs) - funds_kib - urgent_kib)
    if policy.cache == "keep":
        owed_kib = sum(min(need.total_kib, need.guest.debt_kib) for need in needs)
        urgent_kib, comfort_kib = max(0, owed_kib - funds_kib), 0
        # With auto being short is danger; else it is a number until the host is in trouble, or a newcomer asked.
        asked = host.tight or host.newcomer_kib or policy.takes == "auto"
        short_kib = short_kib if asked else 0
    elif hole_kib and needs and short_kib + hole_kib < sum(donor.cache_kib for donor in donors):
        urgent_kib += hole_kib
    elif hole_kib:
        survive_kib = sum(need.survive_kib for need in needs)
        urgent_kib, comfort_kib = max(0, host.lacks_for_survival(survive_kib) - taken_kib - short_kib), 0
    if urgent_kib + comfort_kib + short_kib == 0:
        return
    caches = [donor.cache_kib for donor in donors]
    whole_kib = max(1, sum(need.comfort_kib for need in needs))
    comforts = [need.comfort_kib * comfort_kib // whole_kib for need in needs]
    weights = [guest.limits.weight for guest in [*(d.guest for d in donors), *(n.guest for n in needs)]]
    pool_kib = max(0, sum(caches) - urgent_kib - short_kib)
    kept = water_fill(caches + comforts, weights, pool_kib)
    for donor, kept_kib in zip(donors, kept):
        kib = donor.cache_kib - kept_kib
        if kib > BALLOON_TOLERANCE_KIB and donor.taken_kib + kib >= donor.guest.limits.min_change_kib:
            donor.cached_kib = kib


def take_cache_for_room(donors: Sequence[Donor], lack_kib: int, host: HostState, policy: MemoryPolicy) -> None:
    """Take page cache for what a newcomer still lacks, even with ``cache: keep``: somebody asked for that."""
    lack_kib -= sum(donor.taken_kib + donor.cached_kib for donor in donors)
    if lack_kib <= 0:
        return
    spare = [donor for donor in donors if not donor.cached_kib]
    short_kib = lack_kib + sum(donor.taken_kib for donor in spare)
    take_cache(spare, [], replace(host, short_kib=short_kib), replace(policy, cache="share"))


def take_of(donor: Donor) -> Take:
    """Return what is taken from *donor*, with its reason."""
    guest = donor.guest
    whys = []
    if donor.taken_kib:
        if guest.actual_kib > guest.limits.ceiling_kib:
            whys.append(f"above its ceiling {mib(guest.limits.ceiling_kib)}")
        else:
            whys.append(f"unused {mib(guest.unused_kib)}, {mib(donor.taken_kib)} of it serves nothing")
    if donor.cached_kib:
        whys.append(f"{mib(donor.cached_kib)} of its cache is needed more elsewhere, weight {guest.limits.weight:g}")
    whys.append(f"used {mib(guest.used_kib)}, usable {mib(guest.usable_kib)}")
    return Take(guest, donor.taken_kib + donor.cached_kib, ", ".join(whys), donor.ordered_kib)


# ---------------------------------------------------------------- why waste stays


def limit(guest: Guest) -> Skip:
    """Say why waste can't be taken: the floor, or usable so far below unused that the thresholds can't both be met."""
    waste = f"unused {mib(guest.unused_kib)} > waste {mib(guest.limits.waste_kib)}"
    if guest.actual_kib - guest.limits.floor_kib < guest.limits.min_change_kib:
        floor = f"{mib(guest.limits.floor_kib)} is its floor: lower that to take more"
        return skip(guest.domain, "at-floor", f"{waste}, but {floor}")
    kept = f"but usable {mib(guest.usable_kib)} is to stay above {mib(guest.limits.cushion_kib)}"
    least = f"a change below {mib(guest.limits.min_change_kib)} is not made: raise waste, or lower starvation"
    return skip(guest.domain, "band", f"{waste}, {kept}, and {least}")


def kept_by_mode(guest: Guest) -> bool:
    return guest.wasteful and guest.limits.mode == "grow-only" and guest.judged


def kept_for_silence(guest: Guest) -> bool:
    """Return whether waste stays with *guest* for nothing but its slow statistics (decision 47)."""
    return guest.wasteful and guest.slow and guest.limits.mode != "grow-only" and guest.judged


def slow_stats(guest: Guest) -> Skip:
    period_s, most_s = guest.balloon.period_s, LONGEST_PERIOD_S
    late = "are late, does its balloon driver run?"
    slow = f"come every {period_s} s, set a shorter stats_period" if period_s > most_s else late
    why = f"{most_s} s is the most at which reclaim=auto takes any, and its statistics {slow}"
    return skip(guest.domain, "slow-stats", f"unused {mib(guest.unused_kib)} stays: {why}")


def grow_only(guest: Guest) -> Skip:
    return skip(guest.domain, "grow-only", f"unused {mib(guest.unused_kib)} stays: its mode is grow-only")
