# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is remembered between two memory passes: plain data, handed in and handed back.

A pass without it is safe: it only knows less (no rise of demand over time, no back-off).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Optional

from ...model import BALLOON_TOLERANCE_KIB, Balloon, MemoryRecord
from .cache import Lent

if TYPE_CHECKING:
    from .guest import Guest

# A domain that did not move for this long has no direction left to turn from.
QUIET_S = 600
# The worst rise of a guest's use is kept for at least this long, and at most twice as long.
WORST_S = 24 * 3600
# Unused memory is watched in windows of this length: what was unused in the last whole one and since then is idle.
# Who told nothing for longer than the gap is watched anew.
IDLE_S, IDLE_GAP_S = 3600, 900
# What a domain was given counts less and less where shares are thin, and no more after this time.
LATELY_S = 600


# A thousand are made in every pass: neither frozen nor with a dictionary each, which would cost a tenth of it each.
_LIGHT: dict[str, bool] = {"slots": True} if sys.version_info >= (3, 10) else {}


@dataclass(**_LIGHT)
class DomainHistory:
    """One domain as the last pass saw it; fields named as in Balloon are the last reading, in KiB.

    ``used_kib`` is what the last settled reading said was used, and ``used_s`` when that was taken.
    ``moved_s`` and ``direction`` (1 given, -1 taken, 0 none) are its last move, ``reversals``
    how often the direction turned lately. ``stuck_asked_s`` is the record's time of the last request
    that it did not follow, ``stuck_times`` how many such requests in a row. ``futile_s`` is when the
    host was found to keep what it gave back, ``booted_s`` when a reboot was seen or told. All times are wall
    clock. ``at_risk_kib`` is what it may still touch beyond ``rss``, for a pass that can't observe it.
    ``read_kib`` is the size at which the last reading was first seen. ``grew_kib`` is how much more was used at that
    than at the one before, ``used_before_kib`` what was used then. ``worst_kib`` is the worst rise of use over two
    readings since ``worst_s``, ``worst_old_kib`` that of as long a time before. ``pressed``: it was in need at its
    last reading; ``fed_s`` and ``fed_times`` are the steps that it was given since, silent. ``idle_kib`` is the least
    that was unused since ``idle_s``, ``idle_old_kib`` in the window of IDLE_S before that, None where it is not known.
    ``returned_s`` is when it last took memory by itself, ``missed_s`` when that was
    idle memory, after we had taken some of it.
    ``given_kib`` is what it was given lately, as it counted at ``given_s``. ``locked``: see locked_looks().
    ``gifts`` is in how many passes it was given memory since it was last out of need.
    ``swapping``, ``hidden_kib`` and ``rise_kib`` are what the last reading said of its rates, see Reading.
    """

    last_update_s: int
    actual_kib: int
    used_kib: Optional[int] = None
    used_s: int = 0
    rss_kib: Optional[int] = None
    swap_in_kib: Optional[int] = None
    swap_out_kib: Optional[int] = None
    major_faults: Optional[int] = None
    at_risk_kib: int = 0
    direction: int = 0
    moved_s: float = 0.0
    reversals: int = 0
    stuck_asked_s: int = 0
    stuck_times: int = 0
    futile_s: float = 0.0
    booted_s: float = 0.0
    given_kib: int = 0
    given_s: float = 0.0
    locked: int = 0
    read_kib: int = 0
    used_before_kib: Optional[int] = None
    grew_kib: int = 0
    worst_kib: int = 0
    worst_old_kib: int = 0
    worst_s: float = 0.0
    pressed: bool = False
    fed_s: float = 0.0
    fed_times: int = 0
    idle_kib: int = 0
    idle_old_kib: Optional[int] = None
    idle_s: float = 0.0
    returned_s: float = 0.0
    missed_s: float = 0.0
    swapping: bool = False
    hidden_kib: int = 0
    rise_kib: int = 0
    gifts: int = 0

    def lately_kib(self, wall_s: float) -> int:
        """Return what it was given in the last minutes; what is long ago counts less."""
        return int(self.given_kib * max(0.0, min(1.0, 1 - (wall_s - self.given_s) / LATELY_S)))

    def given(self, kib: int, wall_s: float) -> DomainHistory:
        """Return the same after *kib* more were given, which it may touch."""
        return replace(
            self, given_kib=self.lately_kib(wall_s) + kib, given_s=wall_s, at_risk_kib=self.at_risk_kib + kib
        )

    def boots(self, balloon: Balloon, wall_s: float) -> bool:
        """Return whether it was reset, and its driver has told nothing since: until then it has its maximum."""
        return balloon.period_s > 0 and balloon.last_update_s < self.booted_s <= wall_s


@dataclass(frozen=True)
class OwnUse:
    """What the host itself used at some time, all but its domains."""

    wall_s: float
    own_kib: int


@dataclass(frozen=True)
class MemoryHistory:
    """What is remembered of a host: ``level`` at the last pass, ``domains`` by UUID.

    ``lent`` maps the name of a room (the host: "") to what was given out of its caches and not seen to come yet.
    ``swap_in_kib`` is what the host had ever read back from its swap at ``wall_s``, ``swapping_s`` since when it goes
    on reading from there, None where it does not. ``own_use`` is what it used itself in the last minutes.
    ``credit_kib`` is what was given on credit and not covered yet (decision 45).
    """

    level: str = "ok"
    domains: dict[str, DomainHistory] = field(default_factory=dict)
    lent: dict[str, Lent] = field(default_factory=dict)
    wall_s: float = 0.0
    swap_in_kib: Optional[int] = None
    swapping_s: Optional[float] = None
    own_use: tuple[OwnUse, ...] = ()
    credit_kib: int = 0

    def rebooted(self, uuid: str, wall_s: float) -> MemoryHistory:
        """Return the same after the hypervisor told that *uuid* was reset; of one that was never seen nothing is kept.

        Its word needs no bounds: a guest may reset itself again and again, and boots each time.
        """
        known = self.domains.get(uuid)
        if known is None:
            return self
        return replace(self, domains={**self.domains, uuid: replace(known, booted_s=wall_s)})


def remembered(
    balloon: Balloon,
    guest: Optional[Guest],
    seen: Optional[DomainHistory],
    direction: int,
    risk_kib: int,
    wall_s: float,
) -> DomainHistory:
    """Return what the next pass should know of a domain; *direction* is the direction of its move in this one."""
    if guest is None or not guest.fresh:
        if seen is None:
            return DomainHistory(balloon.last_update_s, balloon.actual_kib, at_risk_kib=risk_kib)
        if direction > 0:
            return replace(seen, at_risk_kib=risk_kib, fed_s=wall_s, fed_times=seen.fed_times + 1)
        return seen if seen.at_risk_kib == risk_kib else replace(seen, at_risk_kib=risk_kib)
    old = seen or DomainHistory(0, 0)
    record = guest.domain.record.memory if guest.domain.record else None
    asked_s = record.when_s if record else 0
    stuck = guest.unheard or (guest.skip is not None and guest.skip[0] == "stuck")
    # While it may have more than it says, what it uses is not known: the answer would look like a rise.
    known = (guest.settled or guest.risen) and (guest.unheard or guest.expected_kib == guest.actual_kib)
    quiet = wall_s - old.moved_s > QUIET_S
    anew = balloon.last_update_s > old.last_update_s
    grew_kib, climbed_kib = _climb(old, guest.used_kib) if known and anew else (old.grew_kib, 0)
    aged = wall_s - old.worst_s > WORST_S
    returned = _took_back(guest, record, old)
    # What is idle is watched anew after each change of its size, by us or by itself.
    resized = abs(balloon.actual_kib - old.actual_kib) > BALLOON_TOLERANCE_KIB
    unwatched = not old.idle_s or balloon.last_update_s - old.last_update_s > IDLE_GAP_S
    restart = bool(direction or resized or guest.rebooted or old.booted_s > old.idle_s or unwatched)
    # What was in use hours ago must not count for ever.
    over = wall_s - old.idle_s >= IDLE_S
    pressed = guest.starved or guest.swapping or guest.soon_starved or _fills(guest, grew_kib)
    return DomainHistory(
        last_update_s=balloon.last_update_s,
        actual_kib=balloon.actual_kib,
        used_kib=guest.used_kib if known else old.used_kib,
        used_s=balloon.last_update_s if known else old.used_s,
        rss_kib=balloon.rss_kib,
        swap_in_kib=balloon.swap_in_kib,
        swap_out_kib=balloon.swap_out_kib,
        major_faults=balloon.major_faults,
        at_risk_kib=risk_kib,
        direction=direction or (0 if quiet else old.direction),
        moved_s=wall_s if direction else old.moved_s,
        reversals=(0 if quiet else old.reversals) + (1 if direction * old.direction < 0 and not quiet else 0),
        stuck_asked_s=asked_s if stuck else old.stuck_asked_s,
        stuck_times=_stuck_times(old, stuck, asked_s, guest.pending_kib is None),
        futile_s=(old.futile_s or wall_s) if guest.futile else 0.0,
        booted_s=wall_s if guest.rebooted else old.booted_s,
        given_kib=old.given_kib,
        given_s=old.given_s,
        locked=guest.locked,
        read_kib=balloon.actual_kib if anew else old.read_kib,
        used_before_kib=old.used_kib if known and anew else old.used_before_kib,
        grew_kib=grew_kib,
        worst_kib=climbed_kib if aged else max(old.worst_kib, climbed_kib),
        worst_old_kib=old.worst_kib if aged else old.worst_old_kib,
        worst_s=wall_s if aged else old.worst_s,
        pressed=pressed,
        idle_kib=guest.unused_kib if restart or over else min(old.idle_kib, guest.unused_kib),
        idle_old_kib=None if restart else old.idle_kib if over else old.idle_old_kib,
        idle_s=wall_s if restart or over else old.idle_s,
        returned_s=wall_s if returned else old.returned_s,
        swapping=guest.swapping,
        hidden_kib=guest.hidden_kib,
        rise_kib=guest.rise_kib,
        gifts=(old.gifts if pressed or not anew else 0) + (1 if direction > 0 else 0),
        missed_s=wall_s if returned and record is not None and record.ordered_kib else old.missed_s,
    )


def _took_back(guest: Guest, record: Optional[MemoryRecord], old: DomainHistory) -> bool:
    """Return whether it took memory by itself: its balloon may do that, and it grew beyond all that we asked for."""
    asked_kib = record.span_kib()[1] if record is not None else 0
    grew = old.actual_kib and guest.actual_kib > max(old.actual_kib, asked_kib) + BALLOON_TOLERANCE_KIB
    return guest.balloon.autodeflate and bool(grew)


def _fills(guest: Guest, grew_kib: int) -> bool:
    """Return whether it would starve in the two periods after which it counts as silent, if it goes on as it did."""
    return grew_kib >= guest.limits.min_change_kib and guest.available_kib - 2 * grew_kib < guest.limits.starvation_kib


def _climb(old: DomainHistory, used_kib: int) -> tuple[int, int]:
    """Return how much use grew since the reading before, and since the lower one of the two before."""
    if old.used_kib is None:
        return 0, 0
    before_kib = old.used_kib if old.used_before_kib is None else min(old.used_kib, old.used_before_kib)
    return used_kib - old.used_kib, max(0, used_kib - before_kib)


def _stuck_times(old: DomainHistory, stuck: bool, asked_s: int, arrived: bool) -> int:
    """Return how many requests in a row were ignored: one more for a new request, none once one was followed."""
    if stuck:
        return old.stuck_times + (1 if asked_s != old.stuck_asked_s else 0)
    return 0 if arrived and asked_s != old.stuck_asked_s else old.stuck_times
