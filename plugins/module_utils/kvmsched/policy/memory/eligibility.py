# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a domain is skipped: every reason, in the order in which they are asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Optional, Union

from ... import baseline
from ...config import MemoryPolicy
from ...model import BALLOON_TOLERANCE_KIB, Balloon, Domain, MemoryCode, MemoryRecord, Skip
from ...units import mib
from .history import DomainHistory
from .limits import Limits
from .locked import locked_kib
from .requests import Request, set_by_person, stuck
from .safeties import Safeties
from .sampling import FRESH_PERIODS, FRESH_SLACK_S

if TYPE_CHECKING:
    from .guest import Guest

# A guest that boots has its whole maximum until its balloon driver runs, and what it uses says nothing yet: for the
# first seconds in any case, then as long as it still rises.
BOOT_LEAST_S = 5
BOOT_GRACE_S = 60

Reason = tuple[MemoryCode, str]


class Case(NamedTuple):
    """One domain, and all that a skip may depend on, before its demand is read."""

    domain: Domain
    balloon: Balloon
    record: Optional[MemoryRecord]
    limits: Limits
    request: Request
    seen: Optional[DomainHistory]
    policy: MemoryPolicy
    wall_s: float
    safeties: Safeties


def skip(domain: Domain, code: MemoryCode, reason: str) -> Skip:
    """Return the Skip of *domain*."""
    return Skip(domain.name, domain.uuid, code, reason)


# ---------------------------------------------------------------- all reasons, in the order in which they are asked


def in_scope(domain: Domain, limits: Limits, release: bool) -> Union[Balloon, Reason]:
    """Return the balloon of *domain*, or why it is none of this policy's business. A release asks for no mode."""
    balloon = domain.balloon
    if limits.mode == "ignore" and not release:
        return "ignored", "its memory mode is ignore, by a rule or by its owner: another mode there has it judged"
    if balloon is None or not balloon.device:
        return "no-balloon", "it has no balloon device: it needs <memballoon model='virtio'/>, and a new start"
    if balloon.virtio_mem:
        return (
            "no-balloon",
            "it has virtio-mem, whose size libvirt counts as its balloon's: nothing to do, whoever plugs it manages it",
        )
    return balloon


def unknown(case: Case, ceiling_kib: int) -> Optional[Reason]:
    """Return why what it uses is not known, or need not be."""
    return _unreachable(case.domain) or _fixed(case, ceiling_kib) or _silent(case) or _meaningless(case)


def known_skip(case: Case, guest: Guest) -> Optional[Reason]:
    """Return why it is skipped although what it uses is known."""
    return _booting(case, guest) or _human(case, guest) or _moving(guest) or _unwilling(guest) or _stuck(case)


# ---------------------------------------------------------------- what it uses is not known


def _unreachable(domain: Domain) -> Optional[Reason]:
    # Who migrates in is paused until all of it is here.
    if domain.busy:
        return "busy", domain.busy
    if domain.state != "running":
        return "not-running", f"it is {domain.state}: judged again once it runs"
    fault = baseline.fault(domain)
    return ("record", fault) if fault else None


def _fixed(case: Case, ceiling_kib: int) -> Optional[Reason]:
    """Skip who can neither give nor get, nor owes anything: its statistics need not even be switched on."""
    if not case.balloon.inhibitors:
        return None
    full = case.request.expected_kib >= ceiling_kib - BALLOON_TOLERANCE_KIB
    return _inhibited(case.balloon, 0) if full and case.record is None else None


def _silent(case: Case) -> Optional[Reason]:
    balloon = case.balloon
    if balloon.period_s <= 0:
        return "no-stats", _no_period(case.domain, case.policy)
    if balloon.last_update_s <= 0:
        age_s = case.wall_s - (case.domain.started_s or 0.0)
        if 0 <= age_s < BOOT_GRACE_S:
            return "no-driver", f"started {age_s:.0f} s ago, its balloon driver has not answered yet"
        return (
            "no-driver",
            "its balloon driver never answered: load virtio_balloon in the guest (Windows: driver and service)",
        )
    return _stale(balloon, case.wall_s) if case.safeties.fresh else None


def _no_period(domain: Domain, policy: MemoryPolicy) -> str:
    if period_set_by_person(domain):
        return (
            "its statistics period was set to 0 by somebody, so it is not judged:"
            f" virsh dommemstat {domain.name} --period 5 --live ends that"
        )
    if policy.stats_period_s <= 0:
        return "its statistics period is 0, and so is the option stats_period: set that to 5, or it is not judged"
    return f"its statistics period is 0: a pass that acts sets {policy.stats_period_s} s, a later one judges it"


def period_set_by_person(domain: Domain) -> bool:
    """Return whether somebody switched statistics off after we had switched them on, which the guest then answered."""
    period = domain.record.period if domain.record else None
    if period is None or period.intended_s <= 0 or domain.balloon is None:
        return False
    return domain.balloon.last_update_s >= period.when_s


def _stale(balloon: Balloon, wall_s: float) -> Optional[Reason]:
    age_s = wall_s - balloon.last_update_s
    allowed_s = FRESH_PERIODS * balloon.period_s + FRESH_SLACK_S
    if -FRESH_SLACK_S <= age_s <= allowed_s:
        return None
    if age_s < 0:
        return "stale", f"its statistics are {-age_s:.0f} s ahead of the host's clock: judged once it has passed them"
    return "stale", f"its statistics are {age_s:.0f} s old, more than {allowed_s} s: does its balloon driver still run?"


def _meaningless(case: Case) -> Optional[Reason]:
    balloon, request = case.balloon, case.request
    usable_kib = balloon.usable_kib if balloon.usable_kib is not None else balloon.unused_kib
    if balloon.void:
        return "no-stats", (
            f"its balloon driver reports a size that can't be ({mib(balloon.maximum_kib)} is its maximum):"
            " nothing that it reports is believed; restart or update that driver"
        )
    if usable_kib is None:
        return "no-stats", "its driver reports neither usable nor unused memory: it needs a newer one"
    size_kib = request.expected_kib if request.unheard else balloon.actual_kib
    if usable_kib > size_kib + BALLOON_TOLERANCE_KIB:
        size = f"usable {mib(usable_kib)} is more than its size of {mib(size_kib)}"
        return "settling", f"{size}: one of the two is old, so it is judged by its next reading"
    return None


# ---------------------------------------------------------------- it is known, and may not be acted on


def _booting(case: Case, guest: Guest) -> Optional[Reason]:
    started_s = max(case.domain.started_s or 0.0, case.seen.booted_s if case.seen else 0.0)
    age_s = 0.0 if guest.rebooted else case.wall_s - started_s
    if 0 <= age_s < BOOT_LEAST_S:
        return "booting", f"started {age_s:.0f} s ago, judged after {BOOT_LEAST_S} s"
    if 0 <= age_s < BOOT_GRACE_S and guest.rise_kib and not guest.starved:
        return "booting", (
            f"started {age_s:.0f} s ago, and its use still rises by {mib(guest.rise_kib)}:"
            f" judged after {BOOT_GRACE_S} s at the latest"
        )
    return None


def _moving(guest: Guest) -> Optional[Reason]:
    """Leave alone a domain whose balloon may still move, unless its last reading says that it starves.

    Such a domain may be grown, never shrunk: a reading older than the growth that it already got
    costs at most one headroom too much. To wait for another reading would cost its life.
    """
    if guest.settled or guest.starved or guest.soon_starved:
        return None
    return (
        "settling",
        f"its {mib(guest.actual_kib)} may still change: judged after two equal readings, a statistics period apart",
    )


def _human(case: Case, guest: Guest) -> Optional[Reason]:
    """Keep a value that somebody else set for its grace, unless the guest is dying (decisions 12, 48)."""
    record = case.record
    if record is None or (guest.dying if case.safeties.person else not guest.settled):
        return None
    if set_by_person(record, case.balloon):
        return human(case.balloon, record)
    age_s = case.wall_s - record.when_s
    # What we called back before its balloon moved leaves the same three sizes, and a reach beside them.
    adopted = record.original_kib == record.previous_kib == record.intended_kib and not record.reach_kib
    if adopted and 0 <= age_s < case.policy.grace_s:
        left_s = case.policy.grace_s - age_s
        return "human", f"somebody set {mib(guest.actual_kib)}: skipped for {left_s:.0f} s more (grace)"
    return None


def human(balloon: Balloon, record: MemoryRecord) -> Reason:
    """Return the reason for a guest whose size somebody else set."""
    size = f"somebody set {mib(balloon.actual_kib)} (ours was {mib(record.intended_kib)})"
    return "human", f"{size}: that is its new original, and it is skipped for grace"


def _unwilling(guest: Guest) -> Optional[Reason]:
    return _inhibited(guest.balloon, guest.locked) if guest.inhibited and not guest.pressed else None


def _inhibited(balloon: Balloon, locked: int) -> Reason:
    if balloon.inhibitors:
        return "inhibited", f"nothing is taken, the host would keep its memory: {', '.join(balloon.inhibitors)}"
    if locked:
        held = f"QEMU holds {mib(locked_kib(balloon))} locked or on huge pages, the guest has {mib(balloon.actual_kib)}"
        return "inhibited", f"nothing is taken, the host would keep its memory: {held}"
    return "inhibited", "nothing is taken for now, the host kept what it gave back: its resident size did not fall"


def _stuck(case: Case) -> Optional[Reason]:
    if case.request.pending_kib is None:
        return None
    why = stuck(case.domain, case.request, case.limits.min_change_kib, case.seen, case.wall_s)
    return None if why is None else ("stuck", why)
