# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What floats: the kernel balances it at once and for nothing, so it is pinned only where that serves it (decision 54).

``place`` pins it like everything else. ``leave`` never touches it. ``auto`` gives it another set of
pCPUs only where it can't serve itself: see _reasons(). Both give back what we narrowed before.
"""

from __future__ import annotations

from typing import Collection, Iterator, NamedTuple, Optional

from ...model import PinMove
from ...units import CpuSet, format_cpuset
from .allowed import Seat
from .certainty import LEAST_WORK
from .history import Trial, VcpuHistory, key_of
from .hold import last_move
from .records import narrowed_from, ours
from .restore import forbidden_to
from .scene import Scene
from .width import may_have
from .world import bins_of

# A trial is judged after so many windows: what waited must wait this much less, or it gets its set back.
TRIAL_WINDOWS = 3
LESS_WAIT = 0.10

# A set beside its memory is worth some waiting: it is kept unless the wait rises by this share of the time.
MORE_WAIT = 0.05

# How long a vCPU whose trial failed is skipped.
TRIAL_REST_S = 3600.0

# What has_spare() let in is sent back above this load per pCPU only: no two measurements are the same.
CROWDED = 1.10


class Fence(NamedTuple):
    """A new set for one vCPU and why; ``trial``: it is given back unless it helps, ``memory``: unless it harms."""

    seat: Seat
    after: CpuSet
    reason: str
    trial: bool = False
    memory: bool = False

    @property
    def key(self) -> str:
        """Return the vCPU, as the history names it."""
        return key_of(self.seat.domain, self.seat.vcpu)


def fences(scene: Scene, most: Optional[int], moving: Collection[str] = ()) -> list[Fence]:
    """Return the sets that floating vCPUs should get in this pass, at most *most*; none that is *moving* anyway."""
    if scene.policy.floating == "place" or not scene.measured:
        return []
    crowd = _Crowd(scene) if scene.policy.floating == "auto" else None
    found = [fence for fence in _given_back(scene, crowd) if fence.key not in moving]
    if crowd:
        found += _reasons(scene, crowd, {*moving, *(fence.key for fence in found)})
    return [fence for fence in found if fence.after != fence.seat.vcpu.pin][:most]


def moves_of(found: list[Fence]) -> list[PinMove]:
    """Return the moves that carry *found* out."""
    return [
        PinMove(f.seat.domain.name, f.seat.domain.uuid, f.seat.vcpu.id, f.seat.vcpu.pin, f.after, f.reason)
        for f in found
    ]


# ---------------------------------------------------------------- back to the kernel


def _given_back(scene: Scene, crowd: Optional[_Crowd]) -> Iterator[Fence]:
    """Yield what we narrowed, but for trials that go on or went well; and what a rule says to widen."""
    for seat in scene.eligible.seats:
        trial = _standing(scene.past, seat)
        if trial is not None:
            original = ours(seat.domain, seat.vcpu, scene.now.host.uuid)
            home = _home(scene, seat, original) if original else frozenset()
            if home and failed(trial, scene.past.number):
                waits = f"waits {100 * trial.waited:.0f} % of the time, {100 * trial.wait:.0f} % before"
                yield Fence(seat, home, f"the trial did not help, it {waits}: back to {format_cpuset(home)}")
            continue
        original = narrowed_from(seat.domain, seat.vcpu, scene.now.host.uuid, scene.masks.balanced)
        if original and crowd and crowd.keeps(seat, original):
            continue
        home = _home(scene, seat, original) if original else frozenset()
        if home and home != seat.vcpu.pin:
            yield Fence(seat, home, f"it floated before we pinned it: back to {format_cpuset(home)}")
        else:
            yield from _widened(scene, seat)


def _widened(scene: Scene, seat: Seat) -> Iterator[Fence]:
    """Yield what a rule says to widen, to those of its pCPUs over which the kernel balances load."""
    wide = scene.masks.floats_in(seat.allowed)
    if len(wide) > 1 and seat.now < wide and scene.policy.settings_for(seat.domain).widen:
        yield Fence(seat, wide, f"widened to {format_cpuset(wide)}, as its rule says")


def _home(scene: Scene, seat: Seat, original: CpuSet) -> CpuSet:
    """Return where *seat* goes back to: its original, as far as a rule, what is online and what others own allow it."""
    ruled = scene.masks.ruled(seat.domain)
    if ruled is not None and not original <= ruled:
        return scene.masks.floats_in(seat.allowed)
    record = seat.domain.record.pin("vcpu", seat.vcpu.id) if seat.domain.record else None
    forbidden = forbidden_to(seat.domain, record, scene.masks, scene.dedicated) if record else frozenset()
    home = (original & scene.masks.online) - forbidden
    group = seat.domain.cgroup_pcpus
    return frozenset() if group is not None and home.isdisjoint(group) else home


def _standing(past: VcpuHistory, seat: Seat) -> Optional[Trial]:
    """Return the trial that *seat* is on; None where its pin is another one by now."""
    key = key_of(seat.domain, seat.vcpu)
    trial = past.trials.get(key) or past.planned.get(key)
    return trial if trial is not None and trial.after == seat.vcpu.pin else None


def failed(trial: Trial, number: int) -> bool:
    """Return whether a trial is over and did not help."""
    if number - trial.number < TRIAL_WINDOWS:
        return False
    if trial.memory:
        return trial.waited > trial.wait + MORE_WAIT
    return trial.waited > (1 - LESS_WAIT) * trial.wait


# ---------------------------------------------------------------- where it can't serve itself


def _reasons(scene: Scene, crowd: _Crowd, moving: Collection[str]) -> Iterator[Fence]:
    """Yield what floats beyond its rule's pCPUs, away from its memory, or in an overfull set beside a free one."""
    if scene.past.number + 1 < scene.policy.hold and scene.patient:
        return
    for seat in scene.eligible.seats:
        if len(seat.now) < 2 or key_of(seat.domain, seat.vcpu) in moving:
            continue
        named = scene.masks.ruled(seat.domain)
        if named is not None and not seat.now <= named:
            place = scene.masks.floats_in(seat.allowed)
            if place:
                yield Fence(seat, place, f"its rule allows pCPU {format_cpuset(named)} only")
        elif not _rests(scene, seat):
            yield from _tried(scene, crowd, seat)


def _rests(scene: Scene, seat: Seat) -> bool:
    """Return whether nothing new is tried with *seat*: it is on trial, was moved lately, or its last trial failed."""
    until_s = scene.past.resting.get(key_of(seat.domain, seat.vcpu), 0.0)
    if until_s > scene.now.monotonic_s or _standing(scene.past, seat) is not None:
        return True
    last = last_move(seat, scene.now, scene.past)
    return last is not None and last.since_s < scene.policy.cooldown_s


def _tried(scene: Scene, crowd: _Crowd, seat: Seat) -> Iterator[Fence]:
    """Yield the set that *seat* is given by way of trial."""
    beside = crowd.beside_memory(seat, seat.now)
    if beside and crowd.has_spare(seat, beside):
        yield Fence(seat, beside, f"its memory is beside pCPU {format_cpuset(beside)}", trial=True, memory=True)
        return
    full = crowd.level(seat.now)
    better = crowd.better(seat)
    if better is not None:
        overfull = f"pCPUs {format_cpuset(seat.now)} are wanted by {100 * full:.0f} % each"
        yield Fence(seat, better, f"{overfull}, {format_cpuset(better)} have room", trial=True)


class _Crowd:
    """How full the sets are, with what was decided in this pass."""

    def __init__(self, scene: Scene) -> None:
        self._scene, self._world = scene, scene.world
        self._floating = dict(scene.world.floating)
        pcpus = scene.now.host.topology.pcpus
        self._groups = [
            group
            for granularity in ("core", "llc", "cell")
            for group in bins_of(pcpus, scene.eligible.usable, scene.masks.isolated, granularity)
        ]
        self._totals = self._laid(self._floating)

    def _laid(self, floating: dict[CpuSet, float]) -> list[float]:
        return self._world.totals(self._world.allowed.now, self._world.mean, floating)

    def level(self, pcpus: CpuSet) -> float:
        """Return the load per pCPU of those of *pcpus* that are in a bin."""
        bins = {self._world.bin_of[p] for p in pcpus if p in self._world.bin_of}
        return sum(self._totals[b] for b in bins) / max(1, sum(self._world.problem.capacity[b] for b in bins))

    def _load(self, seat: Seat) -> float:
        known = self._scene.smoothed.get(key_of(seat.domain, seat.vcpu))
        return known.mean if known else 0.0

    def _fits(self, seat: Seat, place: CpuSet, most: float = 1.0) -> bool:
        inside = len(place & seat.now) / len(seat.now)
        return self.level(place) + self._load(seat) * (1 - inside) / len(place) <= most

    def has_spare(self, seat: Seat, place: CpuSet) -> bool:
        """Return whether *seat* fits into *place*; then it counts there."""
        if not self._fits(seat, place):
            return False
        self._move(seat, place)
        return True

    def beside_memory(self, seat: Seat, now: CpuSet) -> CpuSet:
        """Return the set that brings *seat* from *now* beside its memory; empty if it is there, or may not be."""
        near, place = self._scene.masks.numa(seat.domain, seat.vcpu), self._scene.masks.floats_in(seat.allowed)
        away = near is not None and place <= near and not now <= near
        return place if away and may_have(self._scene, seat, place) else frozenset()

    def keeps(self, seat: Seat, original: CpuSet) -> bool:
        """Return whether a reason of now would bring *seat* from *original* to where it is, for no trial is known."""
        beside = self.beside_memory(seat, original)
        if beside and seat.now == beside:
            return self._fits(seat, seat.now, CROWDED)
        masks = self._scene.masks
        return len(seat.now) == 1 and seat.now <= masks.isolated and not self._fits(seat, masks.floats_in(original))

    def better(self, seat: Seat) -> Optional[CpuSet]:
        """Return a set of that size, or one isolated pCPU, in which more of *seat* is served; then it counts there."""
        if not seat.now < seat.allowed or self.level(seat.now) <= 1 or self._load(seat) < LEAST_WORK:
            return None
        isolated = self._scene.masks.isolated
        sized = (g for g in self._groups if len(g) == len(seat.now) or (len(g) == 1 and g <= isolated))
        options = {g for g in sized if g <= seat.allowed and g != seat.now}
        target = min(options, key=lambda g: (self.level(g), min(g)), default=None)
        if target is None:
            return None
        problem = self._world.problem
        before, totals, floating = problem.work(self._totals), self._totals, dict(self._floating)
        self._move(seat, target)
        if problem.work(self._totals) < before + LEAST_WORK:
            self._totals, self._floating = totals, floating
            return None
        return target

    def _move(self, seat: Seat, target: CpuSet) -> None:
        load = self._load(seat)
        self._floating[seat.now] = max(0.0, self._floating.get(seat.now, 0.0) - load)
        self._floating[target] = self._floating.get(target, 0.0) + load
        self._totals = self._laid(self._floating)


# ---------------------------------------------------------------- what the next pass has to know


def trials_after(scene: Scene, found: list[Fence]) -> dict[str, Trial]:
    """Return the trials that go on, with this window: what was planned is one once its set is seen."""
    now = {}
    for seat in scene.eligible.seats if scene.past.trials or scene.past.planned else ():
        demand = scene.loads.demand.get((seat.domain.uuid, seat.vcpu.id))
        trial = _standing(scene.past, seat)
        if trial is not None and demand is not None:
            now[key_of(seat.domain, seat.vcpu)] = trial.then(demand.wait)
    for fence in found:
        now.pop(fence.key, None)
    return now


def trials_planned(scene: Scene, found: list[Fence]) -> dict[str, Trial]:
    """Return the trials that begin if *found* is carried out."""
    planned = {}
    for fence in found:
        if fence.trial:
            demand = scene.loads.demand.get((fence.seat.domain.uuid, fence.seat.vcpu.id))
            wait = demand.wait if demand else 0.0
            planned[fence.key] = Trial(fence.after, scene.past.number, wait, memory=fence.memory)
    return planned


def resting_after(scene: Scene, found: list[Fence]) -> dict[str, float]:
    """Return until when vCPUs rest whose trial failed."""
    now_s = scene.now.monotonic_s
    resting = {key: until_s for key, until_s in scene.past.resting.items() if until_s > now_s}
    for fence in found:
        if undone(scene.past, fence):
            resting[fence.key] = now_s + TRIAL_REST_S
    return resting


def undone(past: VcpuHistory, fence: Fence) -> bool:
    """Return whether *fence* ends a trial that did not help."""
    trial = _standing(past, fence.seat)
    return trial is not None and failed(trial, past.number)
