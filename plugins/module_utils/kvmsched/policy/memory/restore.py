# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A release: every domain back to the memory and the statistics period that its record calls original (decision 2)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Optional, Sequence

from ... import baseline
from ...model import BALLOON_TOLERANCE_KIB, PAGE_KIB, BalloonMove, Domain, Left, MemoryCode, MemoryRecord, PeriodMove
from ...units import mib
from .eligibility import human
from .guest import Guest
from .limits import LEAST_ORIGINAL_KIB
from .requests import memory_record, set_by_person
from .sharing import Draft, Need, Take, pay
from .supply import HostState

# Reasons to leave a domain alone for now, whichever way it would have to go.
_UNREACHABLE: tuple[MemoryCode, ...] = ("not-running", "busy")
# Reasons why nothing is known of what a domain uses, however long one waits.
_SILENT: tuple[MemoryCode, ...] = ("no-stats", "no-driver", "stale")

# Reasons to leave a domain alone that a release need not heed.
_SHRUNK_ANYWAY: tuple[MemoryCode, ...] = ("stuck", "inhibited")


class Why(NamedTuple):
    """Why a domain has not its originals yet; ``limited`` and ``command_told`` as in Left."""

    reason: str
    limited: bool = False
    command_told: bool = False


@dataclass
class MemoryRelease:
    """A release before it is a plan, by guest.

    ``retargets`` call back requests that are under way, or make them again. ``left`` maps UUID to why a domain has
    not its originals yet. ``adopted`` are those whose size somebody else set: that is their original from now on.
    """

    draft: Draft = field(default_factory=Draft)
    retargets: list[BalloonMove] = field(default_factory=list)
    periods: list[PeriodMove] = field(default_factory=list)
    left: dict[str, Left] = field(default_factory=dict)
    adopted: dict[str, Guest] = field(default_factory=dict)


def release_memory(guests: Sequence[Guest], apart: Sequence[Domain], host: HostState) -> MemoryRelease:
    """Return what gives *guests* their originals: takes at once down to L, gives by what the host has, periods last.

    Those *apart* have virtio-mem: they get their periods, and a person is told how to bring their memory back.
    """
    back = MemoryRelease()
    for guest in guests:
        why = _plan_one(guest, back)
        if why is not None:
            back.left[guest.uuid] = Left(guest.domain.name, guest.uuid, *why)
    pay(back.draft, host)
    granted = {grant.need.guest.uuid: grant.kib for grant in back.draft.grants}
    for need in back.draft.needs:
        missing_kib = need.total_kib - granted.get(need.guest.uuid, 0)
        if missing_kib > BALLOON_TOLERANCE_KIB:
            if need.guest.uuid not in granted and need.guest.expected_kib > need.guest.actual_kib:
                back.retargets.append(again(need.guest, need.guest.expected_kib))
            missing = f"{mib(missing_kib)} of its {mib(_original(need.guest))} are missing"
            line = f"{missing}: the host has no more to give now"
            # That goes before a limit: the host may have it later.
            back.left[need.guest.uuid] = Left(need.guest.domain.name, need.guest.uuid, line)
    domains = [guest.domain for guest in guests if guest.uuid not in back.left]
    back.left.update({domain.uuid: left for domain in apart if (left := _left_apart(domain)) is not None})
    back.periods = [move for domain in (*domains, *apart) for move in _period(domain)]
    return back


def _left_apart(domain: Domain) -> Optional[Left]:
    """Return what a guest with virtio-mem has not back yet.

    libvirt adds what is plugged to its balloon's size, and a target leaves it out: what it has is not known.
    """
    rest = domain.record and baseline.without_restored(domain.record, domain, memory=True, pins=False)
    if domain.busy or rest is None or rest.memory is None:
        return None if _period(domain) else baseline.left_of(rest, domain, memory=True, pins=False)
    part = rest.memory
    original = f"its original is {mib(part.original_kib)}"
    sizes = f"it has virtio-mem, was last sent to {mib(part.intended_kib)}, and {original}"
    by_hand = f"`virsh setmem {domain.uuid} {part.original_kib} --live` brings it back where that is enough"
    end = f"`{baseline.removal(domain.uuid)}` lets it keep what it has"
    return Left(domain.name, domain.uuid, f"{sizes}: {by_hand}, {end}", limited=True, command_told=True)


def _original(guest: Guest) -> int:
    record = memory_record(guest.domain)
    return min(record.original_kib, guest.balloon.most_kib) if record else guest.actual_kib


def _plan_one(guest: Guest, back: MemoryRelease) -> Optional[Why]:
    """Add what *guest* needs to *back*; return why that does not restore it whole, if so."""
    record = memory_record(guest.domain)
    if guest.domain.record_error:
        left = baseline.left_of(None, guest.domain, memory=True, pins=False)
        return Why(left.reason, left.limited, left.command_told) if left else None
    if guest.skip is not None and guest.skip[0] in _UNREACHABLE:
        return Why(guest.skip[1]) if _owed(guest.domain) else None
    if record is None:
        return None
    if set_by_person(record, guest.balloon):
        return _leave(guest, record, back)
    original_kib = _original(guest)
    missing_kib = original_kib - guest.actual_kib
    if abs(missing_kib) <= BALLOON_TOLERANCE_KIB:
        return _stay(guest, record, original_kib, back)
    if missing_kib > 0:
        return _grow(guest, original_kib, back)
    return _shrink(guest, original_kib, back)


def _owed(domain: Domain) -> bool:
    """Return whether its memory or its period is not back."""
    record = domain.record and baseline.without_restored(domain.record, domain, memory=True, pins=False)
    return baseline.left_over(record, domain, memory=True, pins=False) is not None


def _leave(guest: Guest, record: MemoryRecord, back: MemoryRelease) -> Optional[Why]:
    """Leave a size that somebody set where it is, once it is known to be that, and not a guest that boots."""
    code = guest.skip[0] if guest.skip is not None else ""
    if code == "human" and guest.settled:
        return None
    booting = abs(guest.actual_kib - guest.balloon.most_kib) <= BALLOON_TOLERANCE_KIB
    if booting or not _silent(guest) or not guest.still:
        line = f"it is not known whether somebody set its {mib(guest.actual_kib)}: {_why_not_judged(guest)}"
        return Why(line, limited=_silent(guest))
    back.adopted[guest.uuid] = guest._replace(skip=human(guest.balloon, record))
    return None


def _silent(guest: Guest) -> bool:
    """Return whether its use is not known, and waiting does not help: what it has is the least then."""
    return guest.skip is not None and guest.skip[0] in _SILENT


def _why_not_judged(guest: Guest) -> str:
    return guest.skip[1] if guest.skip is not None else "no two equal readings a statistics period apart"


def _stay(guest: Guest, record: MemoryRecord, original_kib: int, back: MemoryRelease) -> Optional[Why]:
    """Leave a guest that has its original as it is; call back a request that would still change it, even an old one."""
    if abs(record.intended_kib - original_kib) < PAGE_KIB:
        return None
    if (needed := _needed(guest, original_kib, back)) is not None:
        return needed
    back.retargets.append(retarget(guest, record.intended_kib, original_kib, "back to its original"))
    return None


def _needed(guest: Guest, original_kib: int, back: MemoryRelease) -> Optional[Why]:
    """Return why what is on its way to a guest is not called back: it may have that already, and need it.

    Of a guest that has no driver nothing is on its way.
    """
    if guest.pending_kib is None or (guest.skip is not None and guest.skip[0] == "no-driver"):
        return None
    silent_kib = 0 if guest.unheard else guest.expected_kib - guest.actual_kib
    needs_kib = guest.lower_kib + silent_kib if guest.fresh else guest.pending_kib
    if min(guest.pending_kib, needs_kib) <= original_kib:
        return None
    back.retargets.append(again(guest, guest.pending_kib))
    way = f"on its way to {mib(guest.pending_kib)}, more than its {mib(original_kib)}"
    return Why(f"{way}, and may need that", limited=_silent(guest))


def _grow(guest: Guest, original_kib: int, back: MemoryRelease) -> Optional[Why]:
    """Grow a guest to its original. That needs no statistics: what the host has is enough.

    What was promised already is asked for again: whether it ever was is not known, should its pass have died.
    """
    if (needed := _needed(guest, original_kib, back)) is not None:
        return needed
    target_kib = min(original_kib, guest.hard_ceiling_kib)
    if target_kib > guest.expected_kib + BALLOON_TOLERANCE_KIB:
        back.draft.needs.append(_need_of(guest, target_kib - guest.expected_kib, original_kib))
    if target_kib < original_kib:
        return Why(
            f"its limits allow {mib(target_kib)} of its {mib(original_kib)}: raise that of its cgroup", limited=True
        )
    if target_kib <= guest.expected_kib + BALLOON_TOLERANCE_KIB:
        move = again(guest, original_kib)
        back.retargets.append(move)
        if move.after_kib != original_kib or (guest.unheard and _silent(guest)):
            told = f"{mib(guest.expected_kib)} was asked before, and libvirt still says {mib(guest.actual_kib)}"
            return Why(f"{told}: asked again, a page off, so that its driver answers", limited=_silent(guest))
    return None


def _need_of(guest: Guest, kib: int, original_kib: int) -> Need:
    survive_kib = max(0, guest.busy_kib + guest.limits.survival_kib - guest.expected_kib) if guest.starved else 0
    need = Need(guest, survive_kib, 0, max(0, kib - survive_kib), 0, f"back to its original {mib(original_kib)}")
    return need.at_most(kib)


def _shrink(guest: Guest, original_kib: int, back: MemoryRelease) -> Optional[Why]:
    """Shrink a guest to its original at once, but never below L, and only where L is known."""
    if not _at_rest(guest):
        return _move_on(guest, original_kib, back)
    if guest.limits.mode == "grow-only":
        return Why(f"not shrunk to its {mib(original_kib)}: its mode is grow-only, change that first", limited=True)
    target_kib = max(original_kib, guest.lower_kib)
    kib = guest.actual_kib - target_kib
    if kib >= guest.limits.min_change_kib or (target_kib == original_kib and kib > 0):
        back.draft.takes.append(Take(guest, kib, f"back to its original {mib(original_kib)}"))
    return None if target_kib == original_kib else _needs_more(guest, original_kib)


def _needs_more(guest: Guest, original_kib: int) -> Why:
    needs = f"used {mib(guest.used_kib)} + starvation {mib(guest.limits.starvation_kib)}"
    line = f"{needs}, at least its floor {mib(guest.limits.floor_kib)}"
    text = (
        f"not shrunk to its {mib(original_kib)}: it needs {mib(guest.lower_kib)} ({line}); release it when it uses less"
    )
    return Why(text, limited=original_kib < LEAST_ORIGINAL_KIB)


def _at_rest(guest: Guest) -> bool:
    """Return whether L is known. A take that may never have been made, should its pass have died, is made again."""
    given = guest.pending_kib is not None and guest.pending_kib > guest.actual_kib
    # Of one whose memory the host keeps it gets nothing back, but that guest has its original then.
    willing = guest.skip is None or guest.skip[0] in _SHRUNK_ANYWAY
    return guest.fresh and guest.settled and not given and willing


def _move_on(guest: Guest, original_kib: int, back: MemoryRelease) -> Optional[Why]:
    """Call back what would make a guest too small, although it may not be shrunk now.

    Where its use is not known, to what it has: should its request never have been made, anything less would shrink it.
    """
    least_kib = max(original_kib, guest.lower_kib) if guest.fresh else guest.actual_kib
    after_kib = min(guest.actual_kib, least_kib)
    if guest.pending_kib is not None and guest.pending_kib < original_kib - BALLOON_TOLERANCE_KIB:
        back.retargets.append(retarget(guest, guest.pending_kib, after_kib, "back to its original"))
        if after_kib <= original_kib:
            return None
    elif guest.pending_kib is not None and guest.fresh:
        if guest.pending_kib > guest.actual_kib:
            back.retargets.append(again(guest, guest.pending_kib))
        return Why(f"on its way from {mib(guest.actual_kib)} to {mib(guest.pending_kib)}")
    if guest.fresh and guest.lower_kib > original_kib:
        return _needs_more(guest, original_kib)
    return Why(f"not shrunk to its {mib(original_kib)}: {_why_not_judged(guest)}", limited=_silent(guest))


def again(guest: Guest, target_kib: int) -> BalloonMove:
    """Ask once more for what was promised: it may never have been asked, should its pass have died.

    If it was asked more than once, or long ago, do not ask for exactly the same. A driver that has it, but did not
    say so (see requests.stuck), would go on saying nothing.
    """
    record = memory_record(guest.domain)
    if record is not None and (guest.unheard or record.reach_kib) and abs(record.intended_kib - target_kib) < PAGE_KIB:
        target_kib -= PAGE_KIB
    why = f"asked again: {mib(guest.expected_kib)} was promised, it has {mib(guest.actual_kib)}"
    return BalloonMove(guest.domain.name, guest.uuid, guest.actual_kib, target_kib, why)


def retarget(guest: Guest, before_kib: int, after_kib: int, why: str) -> BalloonMove:
    """Call back a request that is under way: ``before`` is its target, for the balloon need not move at all."""
    reason = f"{why}: {mib(before_kib)} was asked, it has {mib(guest.actual_kib)}"
    return BalloonMove(guest.domain.name, guest.uuid, before_kib, after_kib, reason)


def _period(domain: Domain) -> list[PeriodMove]:
    """Set the statistics period back, unless somebody else set it since, or it is back."""
    record = domain.record.period if domain.record else None
    if record is None or domain.balloon is None or domain.busy or domain.state != "running":
        return []
    current_s = domain.balloon.period_s
    if current_s == record.original_s or current_s not in (record.previous_s, record.intended_s):
        return []
    reason = f"back to its original {record.original_s} s"
    return [PeriodMove(domain.name, domain.uuid, current_s, record.original_s, reason)]
