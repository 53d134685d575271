# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A plan in figures and in words: the host before and after, what stays unmet, and what to warn of."""

from __future__ import annotations

from dataclasses import replace
from typing import Iterable, Mapping, Optional, Sequence

from ...config import MemoryPolicy
from ...model import BALLOON_TOLERANCE_KIB, MemoryFigures, Unmet
from ...units import first_of, mib
from .guest import Guest
from .history import DomainHistory
from .mute import STEPS, is_mute
from .rooms import rooms_of
from .sharing import Draft, Loan
from .supply import HostState, owing_after


def figures_of(
    guests: Sequence[Guest], host: HostState, after_kib: Mapping[str, int], limited: set[str]
) -> MemoryFigures:
    """Return the host in figures; *after_kib* maps UUID to a new target, and the rest follows from it."""
    given_kib = taken_kib = 0
    starved = wasteful = unknown = bound = unused_kib = usable_kib = actual_kib = freed_kib = wasted_kib = owed_kib = 0
    for guest in guests:
        change_kib = after_kib.get(guest.uuid, guest.actual_kib) - guest.actual_kib
        actual_kib += guest.actual_kib + change_kib
        given_kib += max(0, guest.actual_kib + change_kib - guest.expected_kib)
        taken_kib += max(0, -change_kib)
        freed_kib += _freed(guest, change_kib)
        owed_kib += max(0, guest.debt_kib - max(0, change_kib)) if guest.uuid in after_kib else guest.debt_kib
        if not guest.fresh:
            unknown += 1
            continue
        # A balloon takes free pages first, then cache.
        unused = max(0, guest.unused_kib + change_kib)
        unused_kib += unused
        usable_kib += guest.usable_kib + change_kib
        if guest.available_kib + change_kib < guest.limits.starvation_kib:
            starved += 1
            bound += guest.ceiling_kib - guest.expected_kib - change_kib < guest.limits.min_change_kib
        elif unused > guest.limits.waste_kib:
            wasteful += 1
            bound += guest.uuid in limited
            wasted_kib += unused - guest.limits.waste_kib
    return MemoryFigures(
        starved=starved,
        wasteful=wasteful,
        unknown=unknown,
        unused_kib=unused_kib,
        usable_kib=usable_kib,
        actual_kib=actual_kib,
        host_available_kib=None if host.available_kib is None else host.available_kib + freed_kib,
        host_reserve_kib=host.reserve_kib,
        limited=bound,
        wasted_kib=wasted_kib,
        owed_kib=owed_kib,
        host_arc_kib=host.lent.cache_kib,
        credit_kib=owing_after(host, given_kib, taken_kib),
    )


# What is not a sum over the domains.
_NO_SUMS = ("host_reserve_kib", "host_arc_kib", "credit_kib")


def figures_after(
    before: MemoryFigures, guests: Sequence[Guest], host: HostState, after_kib: Mapping[str, int], limited: set[str]
) -> MemoryFigures:
    """Return figures_of() all *guests* after a plan, from those *before* it: only who moves changes them."""
    moved = [guest for guest in guests if guest.uuid in after_kib]
    then, now = vars(figures_of(moved, host, {}, limited)), vars(figures_of(moved, host, after_kib, limited))
    sums = {name: value for name, value in vars(before).items() if value is not None and name not in _NO_SUMS}
    return replace(
        before, credit_kib=now["credit_kib"], **{name: kib + now[name] - then[name] for name, kib in sums.items()}
    )


def _freed(guest: Guest, change_kib: int) -> int:
    """Return what the host gets of a change, at once: of a take what was resident, of a give the opposite of all."""
    if change_kib >= 0:
        return -change_kib
    resident_kib = min(guest.balloon.rss_kib or 0, guest.actual_kib)
    return max(0, resident_kib - guest.actual_kib - change_kib)


def note_of(
    guests: Sequence[Guest], after_kib: Mapping[str, int], policy: MemoryPolicy, declined: Optional[Loan]
) -> str:
    """Return which option takes the waste that a plan leaves, where it takes any: not from who only grows."""
    if policy.takes == "eager":
        return ""
    able = [guest for guest in guests if guest.wasteful and guest.shrinkable]
    left = [g.unused_kib - g.limits.waste_kib + after_kib.get(g.uuid, g.actual_kib) - g.actual_kib for g in able]
    wasted_kib = sum(kib for kib in left if kib > 0)
    if not wasted_kib:
        return ""
    kept = f"{mib(wasted_kib)} of waste stays with the guests"
    why = "to take it would help nobody now"
    if declined is not None:
        why = f"{mib(declined.more_kib)} more for those in need would cost them {mib(declined.borrowed_kib)}"
    return f"{kept}: {why}; reclaim=eager takes it"


def unmet_of(
    guest: Guest, after_kib: Mapping[str, int], host: HostState, seen: Optional[DomainHistory], wall_s: float
) -> list[Unmet]:
    """Return what keeps *guest* starved, or below its floor, after this plan."""
    if is_mute(guest, seen, wall_s) and guest.uuid not in after_kib:
        return [_mute(guest, seen, wall_s)]
    if not (guest.starved or guest.actual_kib < guest.limits.floor_kib) or not guest.judged:
        return []
    target_kib = max(guest.expected_kib, after_kib.get(guest.uuid, 0))
    alive_kib = max(guest.limits.floor_kib, guest.busy_kib + guest.limits.starvation_kib)
    kib = (alive_kib if guest.starved else guest.limits.floor_kib) - target_kib
    if kib <= BALLOON_TOLERANCE_KIB:
        return []
    state = f"usable {mib(guest.available_kib)}, starvation {mib(guest.limits.starvation_kib)}"
    return [Unmet(guest.domain.name, guest.uuid, kib, f"{state}, {_why_not(guest, target_kib, host)}")]


def _why_not(guest: Guest, target_kib: int, host: HostState) -> str:
    rooms = [(host.rooms_kib[name], name) for name in rooms_of(guest.balloon) if name in host.rooms_kib]
    if guest.ceiling_kib - target_kib < guest.limits.min_change_kib:
        return f"at its limit {mib(guest.ceiling_kib)}: only a larger maximum, ceiling or cgroup limit helps"
    if guest.blind and target_kib >= guest.original_kib:
        return (
            "it reports neither usable memory nor caches, so it grows above its original only if it swaps:"
            " a newer balloon driver reports more"
        )
    if guest.unanswered:
        asked = f"{mib(guest.expected_kib)} was asked, it has {mib(guest.actual_kib)}"
        return f"{asked}: it gets more once it took that; does its balloon driver run?"
    if host.supply_kib is None:
        return "the host's memory is not known, so nothing is given: does libvirt or /proc/meminfo tell it?"
    if host.level == "low":
        return "host level low: growth is frozen; free memory on the host, or move a guest away"
    if rooms and min(rooms)[0] < host.supply_kib:
        left = mib(max(0, min(rooms)[0]))
        return f"{min(rooms)[1]}, where its memory must be, has {left} to give: free some there, or raise that limit"
    return f"the host has {mib(max(0, host.supply_kib))} to give: move a guest away, or lower host_reserve"


def _mute(guest: Guest, seen: Optional[DomainHistory], wall_s: float) -> Unmet:
    age_s = max(0.0, wall_s - guest.balloon.last_update_s)
    steps = f"{seen.fed_times if seen else 0} of {STEPS} steps were given"
    reason = f"it was in need and has not answered for {age_s:.0f} s, {steps}: look into the guest"
    return Unmet(guest.domain.name, guest.uuid, guest.limits.starvation_kib, reason)


def warnings_of(
    guests: Sequence[Guest], host: HostState, draft: Draft, after_kib: Mapping[str, int], filled: Sequence[str]
) -> Iterable[str]:
    """Return what a person should know of this plan, a line each; *filled* is what charges.filled() returns."""
    if filled:
        yield (
            f"khugepaged may fill what balloons took below the hard limit of {first_of(filled)}:"
            " at the limit QEMU is killed; write 0 to /sys/kernel/mm/transparent_hugepage/khugepaged/max_ptes_none"
        )
    if host.supply_kib is None:
        yield "the host's memory is not known: nothing is given; does libvirt or /proc/meminfo tell it?"
    low = [g for g in guests if g.judged and g.limits.floor_kib - g.ceiling_kib <= 0]
    missing = [g.limits.floor_kib - max(g.expected_kib, after_kib.get(g.uuid, 0)) for g in low]
    short = [kib for kib in missing if kib > BALLOON_TOLERANCE_KIB]
    if short:
        who = "1 guest is" if len(short) == 1 else f"{len(short)} guests are"
        yield (
            f"floors can't be met: {who} {mib(sum(short))} below theirs, and the host has no more:"
            " lower floors, or move a guest away"
        )
    taken_kib = sum(take.kib for take in draft.takes)
    owing_kib = owing_after(host, sum(grant.kib for grant in draft.grants), taken_kib)
    if owing_kib > (host.reserve_kib or 0) > 0:
        yield (
            f"{mib(owing_kib)} are given on credit, more than the reserve {mib(host.reserve_kib or 0)}:"
            " if guests touch all that they were promised, the host has nothing left: move one away"
        )
    below_kib = (host.reserve_kib or 0) - (host.available_kib or 0) - host.lent.cache_kib
    if below_kib > 0 and host.short_kib < host.missing_kib and host.short_kib <= taken_kib:
        yield (
            f"host level {host.level}: {mib(below_kib)} below its reserve, but guests can use only"
            f" {mib(host.short_kib)} more: nothing more is taken"
        )
    elif below_kib > 0 and host.short_kib > taken_kib:
        below = f"{mib(below_kib)} below its reserve"
        yield f"host level {host.level}: {below}, and its guests can give no more in this pass: move one away"
