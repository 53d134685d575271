# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was last asked of a balloon, and whether it follows: pending, late, unheard, stuck.

All of it is read from the record on the domain, so that a pass without history knows it too.
"""

from __future__ import annotations

from typing import NamedTuple, Optional, Sequence

from ...model import BALLOON_TOLERANCE_KIB, Balloon, Domain, MemoryRecord
from ...units import mib
from .history import DomainHistory

# A balloon that did less than this share of a request in this time does not follow (squeezed: 5 s). It is left
# alone for a pause, which doubles with every further request that it ignores.
STUCK_AFTER_S = 10
STUCK_PROGRESS = 0.05
STUCK_PAUSE_S = 120
STUCK_PAUSE_MAX_S = 1800


class Request(NamedTuple):
    """What was last asked of a balloon.

    ``expected_kib`` is the size to expect: actual, or a higher target that was not reached yet. ``pending_kib`` is a
    target not reached yet. ``late``: it should have arrived. ``unheard``: we asked it to grow, the time is over, QEMU
    reported nothing. It may have grown, so used memory is computed from the requested size. ``gone``: a take that was
    ignored for its whole pause; the domain is judged as if it had never been asked.
    """

    expected_kib: int
    pending_kib: Optional[int] = None
    late: bool = False
    unheard: bool = False
    gone: bool = False


def request_of(domain: Domain, balloon: Balloon, seen: Optional[DomainHistory], wall_s: float) -> Request:
    """Return what *domain* was last asked for, and how that stands."""
    record, actual_kib = memory_record(domain), balloon.actual_kib
    pending_kib = pending(domain) if record is not None else None
    if record is None or pending_kib is None:
        return Request(actual_kib)
    late = wall_s - record.when_s >= STUCK_AFTER_S
    given, overdue = pending_kib >= actual_kib, _overdue(record, seen, wall_s)
    # Should even a give be ignored that the guest's own word proves, it has the pauses of all others.
    sooner = late and _proven(balloon) and (seen is None or seen.stuck_times == 0)
    unheard = given and (sooner or overdue)
    return Request(max(actual_kib, pending_kib), pending_kib, late, unheard, gone=overdue and not unheard)


def _proven(balloon: Balloon) -> bool:
    """Return whether the guest has more usable memory than its size, as far as that is known, could hold."""
    usable_kib = balloon.usable_kib if balloon.usable_kib is not None else balloon.unused_kib
    return (usable_kib or 0) > balloon.actual_kib + BALLOON_TOLERANCE_KIB


def memory_record(domain: Domain) -> Optional[MemoryRecord]:
    """Return the memory part of the record on *domain*."""
    return domain.record.memory if domain.record else None


def pending(domain: Domain) -> Optional[int]:
    """Return the target that we wrote and that the balloon has not reached yet, in KiB; a save and restore keeps it."""
    record, balloon = memory_record(domain), domain.balloon
    if record is None or balloon is None or not balloon.device:
        return None
    # Whoever writes a domain's metadata may forge a record.
    intended_kib = min(record.intended_kib, balloon.most_kib)
    if abs(intended_kib - balloon.actual_kib) <= BALLOON_TOLERANCE_KIB or set_by_person(record, balloon):
        return None
    low_kib, high_kib = record.span_kib()
    return intended_kib if low_kib <= balloon.actual_kib <= high_kib else None


def set_by_person(record: MemoryRecord, balloon: Balloon) -> bool:
    """Return whether *actual* is neither ours nor the guest's own doing: with autodeflate it takes memory back."""
    if balloon.autodeflate and balloon.actual_kib > record.span_kib()[1]:
        return False
    return record.set_by_person(balloon.actual_kib)


def original_of(record: Optional[MemoryRecord], balloon: Balloon, person: bool = True) -> int:
    """Return what a domain had at first, in KiB: a size that neither we nor its own deflating brought is that now.

    *person* False: the safety that heeds a person's size is off.
    """
    if record is None or (person and set_by_person(record, balloon)):
        return balloon.actual_kib
    return min(record.original_kib, balloon.most_kib)


def stuck(
    domain: Domain, request: Request, least_kib: int, seen: Optional[DomainHistory], wall_s: float
) -> Optional[str]:
    """Return why the balloon is skipped that ignores our last request; *least_kib* is a change worth a command.

    After its pause a take counts as gone: the domain is judged as any other, and asked anew. A give stays promised,
    and is asked for again (``unheard``). A driver that starts and is where it was sent says nothing, and QEMU goes on
    with the size from before the reset. By that it would use too little, so until it answers it is not shrunk.
    """
    record, balloon = memory_record(domain), domain.balloon
    if record is None or balloon is None or request.pending_kib is None or request.unheard or request.gone:
        return None
    asked_kib = abs(record.intended_kib - record.previous_kib)
    done_kib = abs(balloon.actual_kib - record.previous_kib)
    followed = asked_kib < least_kib or done_kib >= asked_kib * STUCK_PROGRESS
    if followed or not request.late:
        return None
    asked = f"{mib(record.previous_kib)} -> {mib(record.intended_kib)} was asked {wall_s - record.when_s:.0f} s ago"
    pause = f"skipped until {_pause_s(seen):.0f} s after that, then asked again"
    return f"{asked} and it still has {mib(balloon.actual_kib)}: {pause}; does its balloon driver run?"


def _overdue(record: MemoryRecord, seen: Optional[DomainHistory], wall_s: float) -> bool:
    """Return whether nothing is awaited of the last request any more; one of the future was made by another clock."""
    age_s = wall_s - record.when_s
    return age_s >= _pause_s(seen) or age_s < -STUCK_AFTER_S


def _pause_s(seen: Optional[DomainHistory]) -> int:
    times = seen.stuck_times if seen is not None else 0
    return min(STUCK_PAUSE_MAX_S, STUCK_PAUSE_S << min(max(0, times - 1), 10))


def grown_meanwhile(balloon: Balloon, targets_kib: Sequence[int], told_kib: int) -> bool:
    """Return whether *told_kib*, the size by QEMU's own word, is more than was known when *targets_kib* were planned.

    Even what was planned as a give would then shrink the guest. libvirt knows a balloon's size by events, and
    where one is missing it is wrong until the next.
    """
    return bool(targets_kib) and told_kib > max(balloon.actual_kib, *targets_kib) + BALLOON_TOLERANCE_KIB
