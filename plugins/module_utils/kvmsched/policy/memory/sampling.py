# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When two samples of a host are worth a plan: a statistics period of each domain between them, no balloon moves."""

from __future__ import annotations

from ...model import BALLOON_TOLERANCE_KIB, Balloon, Domain, Snapshot

# Statistics are fresh for two collection periods, and as much as libvirt's whole seconds can hide.
FRESH_PERIODS = 2
FRESH_SLACK_S = 2
# libvirt knows a balloon's size by QEMU's events: at most one a second.
EVENT_S = 2.0
# The statistics of a domain that reports less often than this can't be sampled twice within one pass.
LONGEST_PERIOD_S = 10


def is_slow(balloon: Balloon, wall_s: float) -> bool:
    """Return whether a domain tells too seldom how it does, by its period or by the age of its reading."""
    return balloon.period_s > LONGEST_PERIOD_S or wall_s - balloon.last_update_s > LONGEST_PERIOD_S + FRESH_SLACK_S


def ripe(first: Snapshot, last: Snapshot) -> bool:
    """Return whether each domain's driver answered between the samples, and no balloon moved."""
    return all(_same_balloon(first, domain) for domain in reporting(last)) and all_reported(first, last)


def all_reported(first: Snapshot, last: Snapshot) -> bool:
    """Return whether each domain's driver answered between the samples."""
    before = {d.uuid: d.balloon.last_update_s for d in first.domains if d.balloon}
    return all(d.balloon.last_update_s > before.get(d.uuid, 0) for d in reporting(last) if d.balloon)


def next_report_s(snapshot: Snapshot) -> float:
    """Return the wall-clock time by which all drivers that answer should have answered once more; 0: none does."""
    return max((d.balloon.last_update_s + d.balloon.period_s for d in reporting(snapshot) if d.balloon), default=0)


def reporting(snapshot: Snapshot) -> list[Domain]:
    """Return the domains whose driver answers, often enough to wait for it."""
    return [
        domain
        for domain in snapshot.domains
        if domain.state == "running"
        and domain.balloon is not None
        and 0 < domain.balloon.period_s <= LONGEST_PERIOD_S
        and snapshot.wall_s - domain.balloon.last_update_s <= FRESH_PERIODS * domain.balloon.period_s + FRESH_SLACK_S
    ]


def _same_balloon(first: Snapshot, domain: Domain) -> bool:
    before = first.domain(domain.uuid)
    if before is None or before.balloon is None or domain.balloon is None:
        return True
    return abs(before.balloon.actual_kib - domain.balloon.actual_kib) <= BALLOON_TOLERANCE_KIB
