# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a guest's statistics say: what it uses, how fast that rises, and whether it is at rest."""

from __future__ import annotations

from typing import NamedTuple, Optional, Sequence, Union

from ...model import BALLOON_TOLERANCE_KIB, Balloon, MemoryRecord, Snapshot
from .eligibility import BOOT_GRACE_S, Case
from .history import DomainHistory
from .requests import STUCK_AFTER_S
from .sampling import EVENT_S

# The host keeps what a guest gave back: seen only where that is much, and looked at again after this time.
FUTILE_LEAST_KIB = 256 * 1024
FUTILE_PAUSE_S = 1800
# A guest with little usable memory that reads this much back from swap, or from the files it runs, starves.
SWAP_IN_KIB_PER_S = 1024
MAJOR_FAULTS_PER_S = 500
# Memory that is given is in the guest within a second: a deflating balloon only frees pages. Whole seconds hide one.
DEFLATED_AFTER_S = 2
# A rise of demand over a longer time than this says little of the next seconds.
RISE_HORIZON_S = 30


class Reading(NamedTuple):
    """What one reading says, in the light of an earlier one.

    ``usable_kib`` is what the guest could surely still get: L and takes are judged by it. ``available_kib`` is what
    need is judged by: caches where the guest tells no usable memory, and what we gave since it took its reading.
    ``blind``: it tells neither usable memory nor caches, so what looks like use may be cache.
    ``settled``: known well enough to take from it; ``risen``: its balloon grew since the earlier sample.
    ``rise_kib`` is what it will use more by the next pass, ``hidden_kib`` what it swapped out since the last
    reading. ``futile``: the host keeps what it gives back.
    """

    unused_kib: int = 0
    usable_kib: int = 0
    available_kib: int = 0
    blind: bool = False
    used_kib: int = 0
    settled: bool = False
    risen: bool = False
    rebooted: bool = False
    swapping: bool = False
    hidden_kib: int = 0
    rise_kib: int = 0
    futile: bool = False


NOTHING = Reading()


class Samples:
    """The snapshots of one pass, by domain: the newest, and what is older than it."""

    def __init__(self, snapshots: Sequence[Snapshot]) -> None:
        # Newest first: the youngest earlier sample that is a statistics period older decides.
        self._earlier = [{d.uuid: d for d in snapshot.domains} for snapshot in reversed(snapshots[:-1])]
        self._apart_s = snapshots[-1].monotonic_s - snapshots[-2].monotonic_s if snapshots[1:] else 0.0

    def before(self, uuid: str, last_update_s: int) -> Optional[Balloon]:
        """Return the balloon at the youngest earlier reading."""
        for domains in self._earlier:
            domain = domains.get(uuid)
            if domain is not None and domain.balloon is not None and domain.balloon.last_update_s < last_update_s:
                return domain.balloon
        return None

    def still(self, uuid: str, balloon: Balloon) -> bool:
        """Return whether the balloon had the same size at the earlier sample."""
        before = self._earlier[0].get(uuid) if self._earlier else None
        if before is None or before.balloon is None or self._apart_s < EVENT_S:
            return False
        return _same_size(balloon, before.balloon)


def measure(case: Case, samples: Samples) -> Reading:
    """Return what the fresh reading of *case* says: demand, rates, rise and proof of rest (decision 16)."""
    balloon, request, safeties = case.balloon, case.request, case.safeties
    usable_kib = usable_of(balloon) or 0
    available_kib = usable_kib + _caches(balloon, safeties.usable)
    if case.record is not None and safeties.one_gift:
        available_kib += _given(case, case.record)
    size_kib = request.expected_kib if request.unheard else balloon.actual_kib
    used_kib = max(0, size_kib - usable_kib)
    sample = samples.before(case.domain.uuid, balloon.last_update_s)
    seen, again = case.seen, None
    if seen is not None and seen.last_update_s >= balloon.last_update_s:
        # A balloon event brought this pass forward: what the reading said of rates holds until the next.
        again = seen if seen.last_update_s == balloon.last_update_s else None
        seen = None
    settled = _settled(balloon, sample or seen) or not safeties.fresh or _grown_and_read(case)
    before: Union[Balloon, DomainHistory, None] = seen or sample
    compared = before is not None and not _fell_back(balloon, before)
    futile = compared and safeties.futile and seen is not None and _futile(balloon, seen)
    if again is not None:
        swaps, hidden_kib = again.swapping, again.hidden_kib
        rise_kib = again.rise_kib if safeties.rise and not _shrinks(case) else 0
    else:
        swaps = compared and _reads_back(balloon, before)
        hidden_kib = _grown(before.swap_out_kib, balloon.swap_out_kib) if compared and before is not None else 0
        rise_kib = _rise(case, sample, seen, used_kib, settled) if compared and safeties.rise else 0
    return Reading(
        # A driver that reports usable memory alone wastes nothing that we know of.
        unused_kib=balloon.unused_kib or 0,
        usable_kib=usable_kib,
        available_kib=min(available_kib, max(size_kib, usable_kib)),
        blind=safeties.usable and balloon.usable_kib is None and balloon.disk_caches_kib is None,
        used_kib=used_kib,
        settled=settled,
        risen=_grown((sample or seen or balloon).actual_kib, balloon.actual_kib) > 0,
        rebooted=before is not None and not compared and not _booted_lately(case),
        swapping=swaps and available_kib < case.limits.waste_kib,
        hidden_kib=hidden_kib,
        rise_kib=rise_kib,
        futile=futile or _kept_lately(case),
    )


def _caches(balloon: Balloon, counted: bool) -> int:
    """Return the caches of a guest that tells no usable memory.

    They hold tmpfs, shared buffers and dirty pages too, so that only need is judged by them.
    """
    return (balloon.disk_caches_kib or 0) if counted and balloon.usable_kib is None else 0


def _given(case: Case, record: MemoryRecord) -> int:
    """Return what arrived of our gives since the guest took its reading: it has that beside what it says."""
    balloon, seen = case.balloon, case.seen
    if balloon.last_update_s >= record.when_s + DEFLATED_AFTER_S:
        return 0
    if record.when_s > case.wall_s + STUCK_AFTER_S:  # made by another clock
        return 0
    # What it took by itself (autodeflate) is no gift.
    size_kib = min(balloon.actual_kib, record.span_kib()[1])
    first_kib = record.previous_kib
    if seen is not None and seen.last_update_s == balloon.last_update_s and seen.read_kib:
        first_kib = min(first_kib, seen.read_kib)
    return max(0, size_kib - first_kib) if record.intended_kib > record.previous_kib else 0


def usable_of(balloon: Balloon) -> Optional[int]:
    """Return what the guest could still get, by its own word."""
    return balloon.usable_kib if balloon.usable_kib is not None else balloon.unused_kib


def _reads_back(balloon: Balloon, before: Union[Balloon, DomainHistory, None]) -> bool:
    if before is None:
        return False
    elapsed_s = balloon.last_update_s - before.last_update_s
    return (
        _grown(before.swap_in_kib, balloon.swap_in_kib) > SWAP_IN_KIB_PER_S * elapsed_s
        or _grown(before.major_faults, balloon.major_faults) > MAJOR_FAULTS_PER_S * elapsed_s
    )


def _rise(case: Case, sample: Optional[Balloon], seen: Optional[DomainHistory], used_kib: int, settled: bool) -> int:
    """Return how much more it will use when the next pass can help it, if it goes on as it did; noise is no rise.

    Until then pass the age of this reading and about as long as between this one and the last.
    While we take from it, *actual* may lag behind the reading: what its balloon holds already looks used.
    """
    if _shrinks(case):
        return 0
    balloon = case.balloon
    read_s = balloon.last_update_s
    if seen is not None and seen.used_kib is not None:
        grown_kib, elapsed_s, ahead_s = used_kib - seen.used_kib, read_s - seen.used_s, read_s - seen.last_update_s
    elif sample is not None and (used_before_kib := _used_at_rest(sample, case, settled)) is not None:
        grown_kib, elapsed_s = used_kib - used_before_kib, read_s - sample.last_update_s
        ahead_s = elapsed_s
    else:
        return 0
    if grown_kib < case.limits.min_change_kib or not _is_trend(case, seen, used_kib):
        return 0
    horizon_s = min(RISE_HORIZON_S, ahead_s + max(0.0, case.wall_s - read_s))
    return int(grown_kib * horizon_s / elapsed_s)


def _shrinks(case: Case) -> bool:
    """Return whether its size may lag behind its reading: what its balloon holds already would look used."""
    pending_kib = case.request.pending_kib
    return case.request.unheard or (pending_kib is not None and pending_kib < case.balloon.actual_kib)


def _is_trend(case: Case, seen: Optional[DomainHistory], used_kib: int) -> bool:
    """Return whether growth is more than noise: use grew twice in a row, or the guest starves anyway."""
    twice = seen is not None and seen.grew_kib > 0
    return twice or not case.safeties.two_rises or case.balloon.actual_kib - used_kib < case.limits.starvation_kib


def _same_size(balloon: Balloon, before: Union[Balloon, DomainHistory]) -> bool:
    return abs(balloon.actual_kib - before.actual_kib) <= BALLOON_TOLERANCE_KIB


def _settled(balloon: Balloon, before: Union[Balloon, DomainHistory, None]) -> bool:
    """Return whether *actual* was the same before and after the guest took its reading."""
    return before is not None and _same_size(balloon, before)


def _grown_and_read(case: Case) -> bool:
    """Return whether our last give arrived, and the guest took its reading after the time that a balloon deflates in.

    Should that reading be older than the growth after all, it makes used memory too large: the domain
    is then given too much for once, and taken from too little.
    """
    record, balloon = case.record, case.balloon
    if record is None or record.intended_kib <= record.previous_kib:
        return False
    arrived = abs(balloon.actual_kib - record.intended_kib) <= BALLOON_TOLERANCE_KIB
    return arrived and balloon.last_update_s >= record.when_s + DEFLATED_AFTER_S


def _used_at_rest(sample: Balloon, case: Case, settled: bool) -> Optional[int]:
    """Return what an earlier sample says was used, where no balloon change of ours can have blurred it."""
    record = case.record
    if sample.usable_kib is None or not settled or not _same_size(case.balloon, sample):
        return None
    if record is not None and sample.last_update_s < record.when_s + STUCK_AFTER_S:
        return None
    return max(0, sample.actual_kib - sample.usable_kib)


def _grown(before: Optional[int], now: Optional[int]) -> int:
    return 0 if now is None or before is None else now - before


def _fell_back(balloon: Balloon, before: Union[Balloon, DomainHistory]) -> bool:
    """Return whether cumulative counters are lower than before: the guest was reset."""
    return (
        _grown(before.major_faults, balloon.major_faults) < 0
        or _grown(before.swap_in_kib, balloon.swap_in_kib) < 0
        or _grown(before.swap_out_kib, balloon.swap_out_kib) < 0
    )


def _booted_lately(case: Case) -> bool:
    """Return whether its counters fell a little while ago: one that lets them fall all the time would boot for ever."""
    booted_s = case.seen.booted_s if case.seen is not None and case.safeties.bounds else 0.0
    return 0 <= case.wall_s - booted_s < BOOT_GRACE_S


def _futile(balloon: Balloon, seen: DomainHistory) -> bool:
    """Return whether the guest gave memory back and the host kept it, although all was resident (decision 19).

    rss holds QEMU's own memory too, so up to that much of the guest's may have been untouched: only a
    give that is far larger proves anything.
    """
    if balloon.rss_kib is None or seen.rss_kib is None or seen.rss_kib < seen.actual_kib:
        return False
    given_kib = seen.actual_kib - balloon.actual_kib
    return given_kib >= FUTILE_LEAST_KIB and seen.rss_kib - balloon.rss_kib < given_kib // 4


def _kept_lately(case: Case) -> bool:
    return case.seen is not None and 0 <= case.wall_s - case.seen.futile_s < FUTILE_PAUSE_S
