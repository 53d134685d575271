# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which safeties are on: a test or a benchmark switches one off and sees what it is worth."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Safeties:
    """One switch for each rule that protects somebody; nobody but tests and benchmarks switches one off.

    ``fresh``: only readings that are fresh and at rest are believed. ``stuck``: a balloon that does not follow is
    skipped. ``promises``: memory that was promised and not touched is not given twice. ``futile``: a guest
    whose memory the host keeps is not asked for more. ``rise``: growing demand is met before it starves.
    ``one_gift``: what was given since a reading lowers need (decision 43). ``two_rises``: one difference is noise,
    two of one sign are a rise. ``useful``: nothing is taken that can't be granted to anybody (42). ``danger``: a host
    below its reserve takes only as far as it can still fall (20a). ``keep``: a donor keeps what it may need again
    (42b). ``debts``: what was taken below an original goes back first (42a). ``survival``: who starves is paid from
    what is really free (45). ``usable``: without usable memory, caches count for need (47). ``mute``: a guest that
    starved and fell silent is fed (47). ``person``: a person's value holds for its grace (48).
    ``bounds``: what a guest says can't be used against others. ``answers``: who did not answer is promised no more,
    and hardly charged for it. ``caches``: the ZFS cache and the file pages of cells count as available, and are given
    in parts. ``slow``: nothing is taken by default from who tells too seldom how it does (47). ``high``: memory.high
    bounds growth. ``locked``: memory that QEMU locked is never taken. ``rooms``: who is dying in a full room is fed
    from what is really left there. ``edge``: the last of a group's hard limit is given to nobody
    else. ``bottomless``: who fills whatever it gets is fed from free memory alone.
    """

    fresh: bool = True
    stuck: bool = True
    promises: bool = True
    futile: bool = True
    rise: bool = True
    one_gift: bool = True
    two_rises: bool = True
    useful: bool = True
    danger: bool = True
    keep: bool = True
    debts: bool = True
    survival: bool = True
    usable: bool = True
    mute: bool = True
    person: bool = True
    bounds: bool = True
    answers: bool = True
    caches: bool = True
    slow: bool = True
    high: bool = True
    locked: bool = True
    rooms: bool = True
    edge: bool = True
    bottomless: bool = True


ALL_ON = Safeties()
