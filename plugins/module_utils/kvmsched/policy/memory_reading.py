# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the snapshots say of one domain: its limits, its demand, and whether this pass may touch it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Union

from ..config import MemoryPolicy, MemorySettings
from ..model import BALLOON_TOLERANCE_KIB, Balloon, Domain, MemoryRecord, Skip, Snapshot
from ..units import mib
from .memory_history import MemoryHistory, Seen

# Statistics are fresh for two collection periods, and as much as libvirt's whole seconds can hide.
FRESH_PERIODS = 2
FRESH_SLACK_S = 2
# A guest that boots has its whole maximum until its balloon driver runs, and what it uses says nothing yet: for the
# first seconds in any case, then as long as it still rises.
BOOT_LEAST_S = 5
BOOT_GRACE_S = 60
# A balloon that did less than this share of a request in this time does not follow (squeezed: 5 s). It is left
# alone for a pause, which doubles with every further request that it ignores.
STUCK_AFTER_S = 10
STUCK_PROGRESS = 0.05
STUCK_PAUSE_S = 120
STUCK_PAUSE_MAX_S = 1800
# The host keeps what a guest gave back: seen only where that is much, and looked at again after this time.
FUTILE_LEAST_KIB = 256 * 1024
FUTILE_PAUSE_S = 1800
# A guest with little usable memory that reads this much back from swap, or from the files it runs, starves.
SWAP_IN_KIB_PER_S = 1024
MAJOR_FAULTS_PER_S = 500
# libvirt knows a balloon's size by QEMU's events, of which there is at most one a second.
EVENT_S = 2.0
# Memory that is given is in the guest within a second: a deflating balloon only frees pages.
DEFLATED_AFTER_S = 1
# QEMU's own memory beside the guest's, at least: a cgroup's limit holds both.
QEMU_OVERHEAD_KIB = 64 * 1024
# A rise of demand over a longer time than this says little of the next seconds.
RISE_HORIZON_S = 30

Reason = tuple[str, str]


@dataclass
class Limits:
    """One domain's settings in KiB, for its maximum.

    ``middle_kib`` is where a move aims, inside the band between starvation and waste; ``cushion_kib``
    is the usable memory that a donor keeps, so that noise does not starve it at once.
    """

    starvation_kib: int
    waste_kib: int
    floor_kib: int
    ceiling_kib: int
    min_change_kib: int
    middle_kib: int
    cushion_kib: int
    weight: float
    mode: str


@dataclass
class Guest:
    """One domain that the policy may touch, as this pass sees it.

    ``held_kib`` is what it has or was promised: actual, or a higher target that it has not reached.
    ``pending_kib`` is a target not reached yet. ``ceiling_kib`` is how far it may grow,
    ``hard_ceiling_kib`` how far it could if nobody had set it a ceiling. ``lower_kib`` is L, below
    which no target goes (decision 1), ``soft_kib`` the same with a cushion and the coming rise.
    ``rise_kib`` is what it will use more by the next pass, ``hidden_kib`` what it swapped out since
    the last reading. ``judged``: demand is known and no skip stands in the way; ``settled``: known
    well enough to take from it; ``risen``: its balloon grew since the earlier sample; ``still``: it had
    the same size then; ``futile``: the host keeps what it gives back; ``late``: what it was last asked
    for should be there by now; ``unheard``: of a give that is overdue nothing was heard, so it may have
    all of that already, and its use is counted from there.
    """

    domain: Domain
    balloon: Balloon
    limits: Limits
    uuid: str
    actual_kib: int
    held_kib: int
    skip: Optional[Reason] = None
    pending_kib: Optional[int] = None
    fresh: bool = False
    settled: bool = False
    unused_kib: int = 0
    usable_kib: int = 0
    used_kib: int = 0
    rise_kib: int = 0
    hidden_kib: int = 0
    swapping: bool = False
    starved: bool = False
    wasteful: bool = False
    lower_kib: int = 0
    soft_kib: int = 0
    ceiling_kib: int = 0
    hard_ceiling_kib: int = 0
    futile: bool = False
    rebooted: bool = False
    risen: bool = False
    still: bool = False
    late: bool = False
    unheard: bool = False

    def forget_request(self) -> None:
        """What was asked of it and has not arrived is gone."""
        self.pending_kib, self.held_kib = None, self.actual_kib

    @property
    def judged(self) -> bool:
        return self.skip is None and self.fresh

    @property
    def shrinkable(self) -> bool:
        willing = self.limits.mode != "grow-only" and not self.inhibited
        return self.judged and self.settled and willing and self.pending_kib is None

    @property
    def inhibited(self) -> bool:
        """Whether the host would keep what it gives: nothing is taken from it, but it may be in need itself."""
        return self.futile or bool(self.balloon.inhibitors)

    @property
    def pressed(self) -> bool:
        """Whether it needs more than it has, now or soon."""
        below_floor = self.actual_kib < min(self.limits.floor_kib, self.ceiling_kib) - BALLOON_TOLERANCE_KIB
        return self.starved or self.swapping or self.soon_starved or below_floor

    @property
    def soon_starved(self) -> bool:
        """Whether it will starve before the next pass, if its demand goes on to rise as it did."""
        return self.rise_kib > 0 and self.usable_kib - self.rise_kib < self.limits.starvation_kib

    @property
    def dying(self) -> bool:
        """Whether it is about to be killed by its own kernel, or lives on its swap (decision 19)."""
        return self.fresh and (self.usable_kib * 2 < self.limits.starvation_kib or self.swapping)


class Reader:
    """Reads domains of one pass: the newest snapshot in the light of the earlier ones and of history."""

    def __init__(self, snapshots: tuple[Snapshot, ...], policy: MemoryPolicy, history: MemoryHistory) -> None:
        self.now = snapshots[-1]
        self.policy = policy
        self.history = history
        # Newest first: the youngest earlier sample that is a statistics tick older decides.
        self._earlier = [{d.uuid: d for d in snapshot.domains} for snapshot in reversed(snapshots[:-1])]
        self._apart_s = self.now.monotonic_s - snapshots[-2].monotonic_s if snapshots[1:] else 0.0
        self._plain: dict[int, Limits] = {}

    def read(self, domain: Domain, release: bool = False) -> Union[Guest, Skip]:
        """Return the domain's Guest, or the Skip that says why it is not this policy's business at all.

        *release*: what was changed is put back whatever the settings say now; where they can't be
        understood there is no knowing how far the domain may shrink, so it only grows.
        """
        try:
            limits = self._limits(domain)
        except ValueError as error:
            if not release:
                return skip(domain, "bad-policy", str(error))
            limits = limits_of(MemorySettings(mode="grow-only"), self.policy, _maximum(domain))
        balloon = domain.balloon
        if limits.mode == "ignore" and not release:
            return skip(domain, "ignored", "mode ignore, by a rule or by its owner")
        if balloon is None or not balloon.device:
            return skip(domain, "no-balloon", "it has no balloon device")
        if balloon.virtio_mem:
            return skip(domain, "no-balloon", "it has virtio-mem, whose size libvirt counts as its balloon's")
        pending_kib = pending(domain)
        held_kib = max(balloon.actual_kib, pending_kib or 0)
        hard_ceiling_kib = self._hard_ceiling(balloon, held_kib)
        guest = Guest(
            domain=domain,
            balloon=balloon,
            limits=limits,
            uuid=domain.uuid,
            actual_kib=balloon.actual_kib,
            held_kib=held_kib,
            pending_kib=pending_kib,
            ceiling_kib=min(limits.ceiling_kib, hard_ceiling_kib),
            hard_ceiling_kib=hard_ceiling_kib,
            still=self._still(domain.uuid, balloon),
        )
        self._await(guest)
        guest.skip = _unreachable(domain) or _fixed(guest) or self._silent(guest)
        if guest.skip is None:
            self._measure(guest)
            guest.skip = self._booting(guest) or self._moving(guest) or self._human(guest) or self._unwilling(guest)
        return guest

    # ---------------------------------------------------------------- limits

    def _limits(self, domain: Domain) -> Limits:
        maximum_kib = _maximum(domain)
        if self.policy.rules or domain.owner.settings or domain.owner.error:
            return limits_of(self.policy.settings_for(domain), self.policy, maximum_kib)
        known = self._plain.get(maximum_kib)
        if known is None:
            known = limits_of(self.policy.settings_for(domain), self.policy, maximum_kib)
            self._plain[maximum_kib] = known
        return known

    def _hard_ceiling(self, balloon: Balloon, held_kib: int) -> int:
        """How far it could grow: its maximum, and the limit on its QEMU process.

        Beside what it holds, for it may have that already without having said so.
        """
        ceiling_kib = balloon.maximum_kib
        if balloon.limit_kib is not None:
            overhead_kib = max(QEMU_OVERHEAD_KIB, (balloon.rss_kib or 0) - held_kib)
            ceiling_kib = min(ceiling_kib, balloon.limit_kib - overhead_kib)
        return ceiling_kib

    # ---------------------------------------------------------------- may its numbers be believed?

    def _silent(self, guest: Guest) -> Optional[Reason]:
        """Why the guest's statistics say nothing of now."""
        balloon = guest.balloon
        if balloon.period_s <= 0:
            return "no-stats", self._no_period(guest.domain)
        if balloon.last_update_s <= 0:
            return "no-driver", "its balloon driver never answered"
        return _stale(balloon, self.now.wall_s)

    def _no_period(self, domain: Domain) -> str:
        if human_period(domain):
            return "its statistics period was set to 0 by somebody"
        if self.policy.stats_period_s <= 0:
            return "its statistics period is 0, and stats_period is 0"
        return "its statistics period is 0; judged once statistics arrive"

    def _measure(self, guest: Guest) -> None:
        """Fill in demand, from the reading and from what changed since an earlier one."""
        balloon, limits = guest.balloon, guest.limits
        usable_kib = _usable(balloon)
        if usable_kib is None:
            guest.skip = "no-stats", "its driver reports neither usable nor unused memory"
            return
        size_kib = guest.held_kib if guest.unheard else balloon.actual_kib
        if usable_kib > size_kib + BALLOON_TOLERANCE_KIB:
            size = f"usable {mib(usable_kib)} is more than its size of {mib(size_kib)}"
            guest.skip = "settling", f"{size}: what is said of that is old"
            return
        # A driver that reports usable memory alone wastes nothing that we know of.
        guest.unused_kib = balloon.unused_kib or 0
        guest.usable_kib = usable_kib
        guest.used_kib = max(0, size_kib - usable_kib)
        guest.fresh = True
        guest.lower_kib = max(limits.floor_kib, guest.used_kib + limits.starvation_kib)
        self._compare(guest)
        guest.starved = usable_kib < limits.starvation_kib
        guest.wasteful = guest.unused_kib > limits.waste_kib and not guest.starved
        guest.soft_kib = max(limits.floor_kib, guest.used_kib + guest.rise_kib + limits.cushion_kib)

    def _compare(self, guest: Guest) -> None:
        """Rates, rise and proof of rest: what two readings tell and one does not (decision 16)."""
        balloon = guest.balloon
        sample = self._sample(guest.uuid, balloon.last_update_s)
        seen = self.history.domains.get(guest.uuid)
        if seen is not None and seen.last_update_s >= balloon.last_update_s:
            seen = None
        guest.settled = _settled(balloon, sample or seen) or _grown_and_read(guest)
        guest.risen = _grown(balloon.actual_kib, (sample or seen or balloon).actual_kib) > 0
        before: Union[Balloon, Seen, None] = seen or sample
        if before is None:
            return
        guest.rebooted = _fell_back(balloon, before)
        if guest.rebooted:
            return
        elapsed_s = balloon.last_update_s - before.last_update_s
        guest.swapping = guest.usable_kib < guest.limits.waste_kib and (
            _grown(balloon.swap_in_kib, before.swap_in_kib) > SWAP_IN_KIB_PER_S * elapsed_s
            or _grown(balloon.major_faults, before.major_faults) > MAJOR_FAULTS_PER_S * elapsed_s
        )
        guest.hidden_kib = _grown(balloon.swap_out_kib, before.swap_out_kib)
        guest.rise_kib = self._rise(guest, sample, seen)
        guest.futile = seen is not None and _futile(balloon, seen)

    def _rise(self, guest: Guest, sample: Optional[Balloon], seen: Optional[Seen]) -> int:
        """How much more it will use when the next pass can help it, if it goes on as it did; noise is no rise.

        Until then pass the age of this reading and about as long as between this one and the last.
        While we take from it, *actual* may lag behind the reading: what its balloon holds already looks used.
        """
        if guest.unheard or (guest.pending_kib is not None and guest.pending_kib < guest.actual_kib):
            return 0
        read_s = guest.balloon.last_update_s
        if seen is not None and seen.used_kib is not None:
            grown_kib, elapsed_s, ahead_s = (
                guest.used_kib - seen.used_kib,
                read_s - seen.used_s,
                read_s - seen.last_update_s,
            )
        elif sample is not None and (used_before_kib := _used_at_rest(sample, guest)) is not None:
            grown_kib, elapsed_s = guest.used_kib - used_before_kib, read_s - sample.last_update_s
            ahead_s = elapsed_s
        else:
            return 0
        if grown_kib < guest.limits.min_change_kib:
            return 0
        horizon_s = min(RISE_HORIZON_S, ahead_s + max(0.0, self.now.wall_s - read_s))
        return int(grown_kib * horizon_s / elapsed_s)

    def _still(self, uuid: str, balloon: Balloon) -> bool:
        before = self._earlier[0].get(uuid) if self._earlier else None
        if before is None or before.balloon is None or self._apart_s < EVENT_S:
            return False
        return _settled(balloon, before.balloon)

    def _sample(self, uuid: str, last_update_s: int) -> Optional[Balloon]:
        for domains in self._earlier:
            domain = domains.get(uuid)
            if domain is not None and domain.balloon is not None and domain.balloon.last_update_s < last_update_s:
                return domain.balloon
        return None

    # ---------------------------------------------------------------- may it be touched?

    def _booting(self, guest: Guest) -> Optional[Reason]:
        seen = self.history.domains.get(guest.uuid)
        started_s = max(guest.domain.started_s or 0.0, seen.booted_s if seen else 0.0)
        if guest.rebooted:
            started_s = self.now.wall_s
        age_s = self.now.wall_s - started_s
        if 0 <= age_s < BOOT_LEAST_S:
            return "booting", f"started {age_s:.0f} s ago, judged after {BOOT_LEAST_S} s"
        if 0 <= age_s < BOOT_GRACE_S and guest.rise_kib and not guest.starved:
            return "booting", f"started {age_s:.0f} s ago, and its use still rises by {mib(guest.rise_kib)}"
        return None

    def _moving(self, guest: Guest) -> Optional[Reason]:
        """Skip a domain whose balloon may still move, unless its last reading says that it starves.

        Such a domain may be grown, never shrunk: a reading older than the growth that it already got
        costs at most one headroom too much, and waiting for another tick would cost its life.
        """
        if guest.settled or guest.skip is not None or guest.starved or guest.soon_starved:
            return guest.skip
        return "settling", f"not known to be at rest at {mib(guest.actual_kib)}: no two equal readings a tick apart"

    def _human(self, guest: Guest) -> Optional[Reason]:
        """A value that somebody else set is left alone for a while (decision 12)."""
        if guest.domain.record_error:
            return "record", guest.domain.record_error
        record = memory_record(guest.domain)
        if record is None or not guest.settled:
            return None
        if set_by_human(record, guest.balloon):
            return human(guest, record)
        age_s = self.now.wall_s - record.when_s
        if record.original_kib == record.previous_kib == record.intended_kib and 0 <= age_s < self.policy.grace_s:
            left_s = self.policy.grace_s - age_s
            return "human", f"somebody set {mib(guest.actual_kib)}: left alone for another {left_s:.0f} s"
        return None

    def _await(self, guest: Guest) -> None:
        """How long the last request is under way, and whether a give of that age is unheard."""
        record, seen = memory_record(guest.domain), self.history.domains.get(guest.uuid)
        if record is None or guest.pending_kib is None:
            return
        guest.late = self.now.wall_s - record.when_s >= STUCK_AFTER_S
        proven = (_usable(guest.balloon) or 0) > guest.actual_kib + BALLOON_TOLERANCE_KIB
        # Should even a proven one be ignored, it has the pauses of all others.
        sooner = proven and guest.late and (seen is None or seen.stuck_times == 0)
        given = guest.pending_kib >= guest.actual_kib
        guest.unheard = given and (sooner or _overdue(record, seen, self.now.wall_s))

    def _unwilling(self, guest: Guest) -> Optional[Reason]:
        seen = self.history.domains.get(guest.uuid)
        if guest.futile or (seen is not None and 0 <= self.now.wall_s - seen.futile_s < FUTILE_PAUSE_S):
            guest.futile = True
        if guest.inhibited and not guest.pressed:
            return _inhibited(guest.balloon)
        return _stuck(guest, seen, self.now.wall_s)


# ---------------------------------------------------------------- single questions


def _maximum(domain: Domain) -> int:
    return domain.balloon.maximum_kib if domain.balloon else 0


def skip(domain: Domain, code: str, reason: str) -> Skip:
    return Skip(domain.name, domain.uuid, code, reason)


def limits_of(settings: MemorySettings, policy: MemoryPolicy, maximum_kib: int) -> Limits:
    """*settings* in KiB for a domain with that maximum."""
    starvation_kib, waste_kib = settings.starvation_kib(maximum_kib), settings.waste_kib(maximum_kib)
    return Limits(
        starvation_kib=starvation_kib,
        waste_kib=waste_kib,
        floor_kib=settings.floor_kib(maximum_kib),
        ceiling_kib=settings.ceiling_kib(maximum_kib),
        min_change_kib=_min_change(policy, maximum_kib, waste_kib - starvation_kib),
        middle_kib=(starvation_kib + waste_kib) // 2,
        cushion_kib=starvation_kib + (waste_kib - starvation_kib) // 4,
        weight=settings.weight,
        mode=settings.mode,
    )


def _min_change(policy: MemoryPolicy, maximum_kib: int, band_kib: int) -> int:
    """The least change worth a command: 8M pairwise, max(16M, 2 %) fair (decision 17).

    The 2 % end at half the band: a move from its edge to its middle is that large, and a larger
    least change would leave a big guest with size thresholds wasteful for ever.
    """
    if policy.min_change is not None:
        return policy.min_change.of(maximum_kib)
    if policy.strategy == "pairwise":
        return 8 * 1024
    return max(16 * 1024, min(maximum_kib // 50, band_kib // 2))


def memory_record(domain: Domain) -> Optional[MemoryRecord]:
    return domain.record.memory if domain.record else None


def pending(domain: Domain) -> Optional[int]:
    """The target that we wrote and that the balloon has not reached yet, in KiB; a save and restore keeps it."""
    record, balloon = memory_record(domain), domain.balloon
    if record is None or balloon is None or not balloon.device:
        return None
    if abs(record.intended_kib - balloon.actual_kib) <= BALLOON_TOLERANCE_KIB or set_by_human(record, balloon):
        return None
    low_kib, high_kib = record.span_kib()
    return record.intended_kib if low_kib <= balloon.actual_kib <= high_kib else None


def set_by_human(record: MemoryRecord, balloon: Balloon) -> bool:
    """Whether *actual* is neither ours nor the guest's own doing: with autodeflate it takes memory back by itself."""
    if balloon.autodeflate and balloon.actual_kib > record.span_kib()[1]:
        return False
    return record.foreign(balloon.actual_kib)


def human(guest: Guest, record: MemoryRecord) -> Reason:
    """The skip of a guest whose size somebody else set."""
    return "human", f"somebody set {mib(guest.actual_kib)} (ours was {mib(record.intended_kib)}): left alone"


def human_period(domain: Domain) -> bool:
    """Whether somebody switched statistics off after we had switched them on, which the guest then answered."""
    period = domain.record.period if domain.record else None
    if period is None or period.intended_s <= 0 or domain.balloon is None:
        return False
    return domain.balloon.last_update_s >= period.when_s


def _unreachable(domain: Domain) -> Optional[Reason]:
    if domain.state != "running":
        return "not-running", f"it is {domain.state}"
    if domain.busy:
        return "busy", domain.busy
    if domain.record_error:
        return "record", domain.record_error
    return None


def _inhibited(balloon: Balloon) -> Reason:
    if balloon.inhibitors:
        return "inhibited", f"the host would keep its memory: {', '.join(balloon.inhibitors)}"
    return "inhibited", "the host kept the memory that it gave back: its resident size did not fall"


def _fixed(guest: Guest) -> Optional[Reason]:
    """Whether it can neither give nor get, nor owes anything: its statistics need not even be switched on."""
    full = guest.held_kib >= guest.ceiling_kib - BALLOON_TOLERANCE_KIB
    idle = full and memory_record(guest.domain) is None
    return _inhibited(guest.balloon) if guest.balloon.inhibitors and idle else None


def _stale(balloon: Balloon, wall_s: float) -> Optional[Reason]:
    age_s = wall_s - balloon.last_update_s
    allowed_s = FRESH_PERIODS * balloon.period_s + FRESH_SLACK_S
    if -FRESH_SLACK_S <= age_s <= allowed_s:
        return None
    if age_s < 0:
        return "stale", f"its statistics are {-age_s:.0f} s ahead of the host's clock"
    return "stale", f"its statistics are {age_s:.0f} s old, more than {allowed_s} s"


def _settled(balloon: Balloon, before: Union[Balloon, Seen, None]) -> bool:
    """Whether *actual* was the same before and after the guest took its reading."""
    return before is not None and abs(balloon.actual_kib - before.actual_kib) <= BALLOON_TOLERANCE_KIB


def _grown_and_read(guest: Guest) -> bool:
    """Whether our last give arrived, and the guest took its reading after the time that a balloon needs to deflate.

    Should that reading be older than the growth after all, it makes used memory too large: the domain
    is then given too much for once, and taken from too little.
    """
    record = memory_record(guest.domain)
    if record is None or record.intended_kib <= record.previous_kib:
        return False
    arrived = abs(guest.actual_kib - record.intended_kib) <= BALLOON_TOLERANCE_KIB
    return arrived and guest.balloon.last_update_s >= record.when_s + DEFLATED_AFTER_S


def _used_at_rest(sample: Optional[Balloon], guest: Guest) -> Optional[int]:
    """What an earlier sample says was used, where no balloon change of ours can have blurred it."""
    record = memory_record(guest.domain)
    if sample is None or sample.usable_kib is None or not guest.settled or not _settled(guest.balloon, sample):
        return None
    if record is not None and sample.last_update_s < record.when_s + STUCK_AFTER_S:
        return None
    return max(0, sample.actual_kib - sample.usable_kib)


def _usable(balloon: Balloon) -> Optional[int]:
    return balloon.usable_kib if balloon.usable_kib is not None else balloon.unused_kib


def _grown(now: Optional[int], before: Optional[int]) -> int:
    return 0 if now is None or before is None else now - before


def _fell_back(balloon: Balloon, before: Union[Balloon, Seen]) -> bool:
    """Whether cumulative counters are lower than before: the guest was reset."""
    return (
        _grown(balloon.major_faults, before.major_faults) < 0
        or _grown(balloon.swap_in_kib, before.swap_in_kib) < 0
        or _grown(balloon.swap_out_kib, before.swap_out_kib) < 0
    )


def _futile(balloon: Balloon, seen: Seen) -> bool:
    """Whether the guest gave memory back and the host kept it, although all of it was resident (decision 19).

    rss holds QEMU's own memory too, so up to that much of the guest's may have been untouched: only a
    give that is far larger proves anything.
    """
    if balloon.rss_kib is None or seen.rss_kib is None or seen.rss_kib < seen.actual_kib:
        return False
    given_kib = seen.actual_kib - balloon.actual_kib
    return given_kib >= FUTILE_LEAST_KIB and seen.rss_kib - balloon.rss_kib < given_kib // 4


def _stuck(guest: Guest, seen: Optional[Seen], wall_s: float) -> Optional[Reason]:
    """Whether the balloon ignores our last request: the record tells, so that a pass without history knows too.

    After its pause a take counts as gone: the domain is judged as any other, and asked anew. A give stays promised,
    and is asked for again (``unheard``): a driver that starts and is where it was sent says nothing, and QEMU goes on
    with the size from before the reset. By that it would use too little, so until it answers it is not shrunk.
    """
    record = memory_record(guest.domain)
    if record is None or guest.pending_kib is None or guest.unheard:
        return None
    if _overdue(record, seen, wall_s):
        guest.forget_request()
        return None
    asked_kib = abs(record.intended_kib - record.previous_kib)
    done_kib = abs(guest.actual_kib - record.previous_kib)
    followed = asked_kib < guest.limits.min_change_kib or done_kib >= asked_kib * STUCK_PROGRESS
    if followed or not guest.late:
        return None
    asked = f"{mib(record.previous_kib)} -> {mib(record.intended_kib)} was asked {wall_s - record.when_s:.0f} s ago"
    return "stuck", f"{asked} and it did not follow; left alone for {_pause_s(seen):.0f} s"


def _overdue(record: MemoryRecord, seen: Optional[Seen], wall_s: float) -> bool:
    """Whether nothing is to be awaited of its last request any more; one of the future was made by another clock."""
    age_s = wall_s - record.when_s
    return age_s >= _pause_s(seen) or age_s < -STUCK_AFTER_S


def _pause_s(seen: Optional[Seen]) -> int:
    times = seen.stuck_times if seen is not None else 0
    return min(STUCK_PAUSE_MAX_S, STUCK_PAUSE_S << min(max(0, times - 1), 10))
