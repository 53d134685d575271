# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the daemon tells of itself after each pass: one JSON file in its runtime directory, and who reads it.

Memory is KiB, loads are percent of one pCPU, times are wall-clock seconds; None is "not known".
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from dataclasses import dataclass, field
from typing import Mapping, Optional, Sequence, Union

from .. import lock
from ..config import MemoryPolicy
from ..model import (
    BalloonMove,
    Domain,
    MemoryFigures,
    RoomFigures,
    Skip,
    SkipCode,
    Snapshot,
    VcpuFigures,
    from_json,
    parse_json,
)
from ..passes import MemoryResult, VcpuResult
from ..policy.memory.limits import limits_of
from ..policy.memory.requests import memory_record, original_of
from ..policy.vcpu.demand import Loads
from ..units import CpuSet, percent

FORMAT = 1
# Enough for "why did it move?", few enough to be written every few seconds.
KEPT_MOVES = 5

# Skips that say that the guest's statistics are none, or none of now.
_UNJUDGED: tuple[SkipCode, ...] = ("no-stats", "no-driver", "stale")
# Those that say that its memory is not kvmsched's business; the policy does not even see what is excluded.
_EXCLUDED_CODE = "excluded"
_EXCLUDED = f"{_EXCLUDED_CODE}: the policy's domains and exclude leave it out"
_IGNORED_CODE: SkipCode = "ignored"
# Nothing is taken from such a guest, because it says so seldom how it does.
SLOW: SkipCode = "slow-stats"


@dataclass(frozen=True)
class DomainMove:
    """A move that was made, or in observe mode would have been: ``what`` as in ``db1: 2048M -> 2912M``."""

    when_s: float
    resource: str
    what: str
    reason: str
    made: bool = True


@dataclass(frozen=True)
class VcpuStatus:
    """One vCPU: where it is pinned, what share of the last window it ran and waited, and how long since its start."""

    id: int
    pin: CpuSet
    run_pct: Optional[float] = None
    wait_pct: Optional[float] = None
    run_ns: Optional[int] = None
    wait_ns: Optional[int] = None


@dataclass(frozen=True)
class DomainStatus:
    """One running domain. ``target_kib`` is where the last plan sends its balloon, ``unmet`` why ``unmet_kib`` lack.

    ``owed_kib`` was taken from it below what it had, though nobody asked for that.
    ``starvation_kib``, ``waste_kib`` and ``floor_kib`` are its limits, None where it has no valid ones.
    ``memory_skip`` and ``vcpu_skip`` say why it was skipped; ``memory_code`` is the code of the first, or "".
    ``moves`` are its last ones, oldest first.
    ``state`` is libvirt's, or where it could not be observed the code of that skip: ``hung``, ``busy`` ...
    """

    name: str
    uuid: str
    state: str
    maximum_kib: Optional[int] = None
    actual_kib: Optional[int] = None
    target_kib: Optional[int] = None
    usable_kib: Optional[int] = None
    unused_kib: Optional[int] = None
    rss_kib: Optional[int] = None
    starvation_kib: Optional[int] = None
    waste_kib: Optional[int] = None
    floor_kib: Optional[int] = None
    unmet_kib: int = 0
    unmet: str = ""
    owed_kib: int = 0
    memory_skip: str = ""
    vcpu_skip: str = ""
    memory_code: str = ""
    vcpus: tuple[VcpuStatus, ...] = ()
    moves: tuple[DomainMove, ...] = ()

    @property
    def managed(self) -> bool:
        """Return whether the policy wants its memory balanced."""
        return self.memory_code not in (_IGNORED_CODE, _EXCLUDED_CODE)

    @property
    def verdict(self) -> str:
        """Return how it does for memory in a word: starved, wasteful, ok, unknown; its state if it does not run."""
        if self.state != "running":
            return self.state
        if self.usable_kib is None or self.starvation_kib is None or self.memory_code in _UNJUDGED:
            return "unknown"
        if self.usable_kib < self.starvation_kib:
            return "starved"
        if self.unused_kib is not None and self.waste_kib is not None and self.unused_kib > self.waste_kib:
            return "wasteful"
        return "ok"


@dataclass(frozen=True)
class PcpuStatus:
    """How busy one pCPU was in the last window, and what share of that no vCPU explains."""

    id: int
    busy_pct: float
    foreign_pct: float


@dataclass(frozen=True)
class PassStatus:
    """The last pass over one resource. ``when_s`` is when it last succeeded, 0: never; ``failed`` why the last did not.

    ``planned`` moves equal those ``made`` unless the daemon observes, or some failed. ``skips`` counts by code.
    """

    when_s: float = 0.0
    headline: str = ""
    note: str = ""
    planned: int = 0
    made: int = 0
    skips: dict[str, int] = field(default_factory=dict)
    failures: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    timings_s: dict[str, float] = field(default_factory=dict)
    failed: str = ""


@dataclass(frozen=True)
class Status:
    """The daemon after a pass.

    ``package`` is the directory that it was loaded from, which is another one for each release that is installed.
    ``mode`` is what its policy says, ``effective_mode`` what it does, ``mode_reason`` why they differ,
    ``paused_until_s`` when a pause ends, 0: none. ``pins_ours`` is how many vCPUs have a pin of ours.
    ``trials`` are the floating vCPUs that are pinned by way of trial now; begun and undone count since the boot.
    ``policy_hash`` is the SHA-256 of the policy file's bytes ("" without a file), ``policy_error`` why the
    last reload was refused. ``trouble`` is why libvirt can't be observed now, "" if it can. ``idle_rules`` are the
    patterns of rules that match no running domain. ``room`` is what is kept for a guest that is to start.
    """

    version: str
    pid: int
    started_s: float
    written_s: float
    uri: str
    mode: str
    effective_mode: str
    package: str = ""
    mode_reason: str = ""
    paused_until_s: float = 0.0
    pins_ours: Optional[int] = None
    trials: int = 0
    trials_begun: int = 0
    trials_undone: int = 0
    policy_path: str = ""
    policy_hash: str = ""
    policy_error: str = ""
    memory_period_s: float = 0.0
    vcpu_period_s: float = 0.0
    host: str = ""
    trouble: str = ""
    memory_pass: PassStatus = PassStatus()
    vcpu_pass: PassStatus = PassStatus()
    room: Optional[RoomFigures] = None
    memory: Optional[MemoryFigures] = None
    memory_total_kib: Optional[int] = None
    vcpu: Optional[VcpuFigures] = None
    idle_rules: tuple[str, ...] = ()
    domains: tuple[DomainStatus, ...] = ()
    pcpus: tuple[PcpuStatus, ...] = ()
    format: int = FORMAT


# ---------------------------------------------------------------- the file


def path_for(uri: str) -> str:
    """Return where the daemon of *uri* tells its status: beside the host's lock."""
    return os.path.join(lock.directory_for(uri), "status.json")


def read(uri: str) -> Optional[Status]:
    """Return the last status of the daemon of *uri*, or None. ValueError where it is of another format.

    The daemon may be gone since: lock.daemon tells.
    """
    try:
        with os.fdopen(lock.open_regular(path_for(uri), os.O_RDONLY), "rb") as file:
            data = parse_json(file.read())
    except FileNotFoundError:
        return None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(f"{path_for(uri)}: it is of another format than {FORMAT}, which this kvmsched reads")
    return from_json(Status, data)


# ---------------------------------------------------------------- what a tick says of each domain and pCPU


def describe_pass(result: Union[MemoryResult, VcpuResult]) -> PassStatus:
    """Return one resource's last pass in figures."""
    plan, outcome = result.plan, result.outcome
    return PassStatus(
        when_s=result.snapshot.wall_s,
        headline=plan.headline,
        note=getattr(plan, "note", ""),
        planned=len(plan.moves),
        made=len(outcome.moves),
        skips=dict(Counter(skip.code for skip in result.skips)),
        failures=tuple(f"{failure.domain}: {failure.reason}" for failure in outcome.failures),
        warnings=result.warnings,
        timings_s=result.timings_s,
        failed=result.failed or "",
    )


def describe_domains(
    now: Snapshot,
    memory: Optional[MemoryResult],
    vcpu: Optional[VcpuResult],
    loads: Loads,
    policy: MemoryPolicy,
    moves: Mapping[str, Sequence[DomainMove]],
) -> tuple[DomainStatus, ...]:
    """Return all running domains by name, as of *now* and of the last pass over each resource; those too that hid."""
    targets = {m.uuid: m.after_kib for m in memory.plan.moves if isinstance(m, BalloonMove)} if memory else {}
    unmet = {missing.uuid: missing for missing in memory.plan.unmet} if memory else {}
    skips = [{skip.uuid: skip for skip in result.skips} if result else {} for result in (memory, vcpu)]
    found = [_unseen(skip) for skip in now.skips if skip.code != "gone"]
    for domain in now.domains:
        uuid = domain.uuid
        memory_of = _memory(domain, policy)
        chosen = policy.selection.matches(domain)
        skip, vcpu_skip = skips[0].get(uuid), skips[1].get(uuid)
        found.append(
            DomainStatus(
                name=domain.name,
                uuid=uuid,
                state=domain.state,
                **memory_of,
                target_kib=targets.get(uuid, memory_of.get("actual_kib")),
                unmet_kib=unmet[uuid].kib if uuid in unmet else 0,
                unmet=unmet[uuid].reason if uuid in unmet else "",
                owed_kib=memory.plan.owed_kib.get(uuid, 0) if memory else 0,
                memory_skip=_reason(skip) if chosen else _EXCLUDED,
                vcpu_skip=_reason(vcpu_skip) if chosen else _EXCLUDED,
                memory_code=(skip.code if skip else "") if chosen else _EXCLUDED_CODE,
                vcpus=_vcpus(domain, loads),
                moves=tuple(moves.get(uuid, ())),
            )
        )
    return tuple(sorted(found, key=lambda domain: domain.name))


def count_our_pins(now: Snapshot) -> int:
    """Return how many vCPUs are pinned where we pinned them, and not where they were before."""
    pins = {(domain.uuid, vcpu.id): vcpu.pin for domain in now.domains for vcpu in domain.vcpus}
    recorded = ((d.uuid, pin) for d in now.domains if d.record for pin in d.record.pins if pin.thread == "vcpu")
    return sum(pins.get((uuid, pin.id)) == pin.intended != pin.original for uuid, pin in recorded)


def describe_pcpus(loads: Loads) -> tuple[PcpuStatus, ...]:
    return tuple(
        PcpuStatus(pcpu, percent(busy), percent(loads.foreign.get(pcpu, 0.0)))
        for pcpu, busy in sorted(loads.busy.items())
    )


def _unseen(skip: Skip) -> DomainStatus:
    """Return a domain that could not be observed: that is all that is known of it."""
    line = _reason(skip)
    return DomainStatus(skip.domain, skip.uuid, skip.code, memory_skip=line, vcpu_skip=line, memory_code=skip.code)


def _reason(skip: Optional[Skip]) -> str:
    return f"{skip.code}: {skip.reason}" if skip else ""


def _memory(domain: Domain, policy: MemoryPolicy) -> dict[str, Optional[int]]:
    balloon = domain.balloon
    if balloon is None:
        return {}
    values: dict[str, Optional[int]] = {
        name: getattr(balloon, name) for name in ("maximum_kib", "actual_kib", "usable_kib", "unused_kib", "rss_kib")
    }
    if domain.busy and not balloon.last_update_s:
        values["actual_kib"] = None  # nobody answered: the pass charges such a domain at its maximum
    # Settings that contradict each other are told by the skip.
    with contextlib.suppress(ValueError):
        limits = limits_of(policy.settings_for(domain), policy, balloon.most_kib)
        limits = limits.beside(original_of(memory_record(domain), balloon))
        values.update({name: getattr(limits, name) for name in ("starvation_kib", "waste_kib", "floor_kib")})
    return values


def _vcpus(domain: Domain, loads: Loads) -> tuple[VcpuStatus, ...]:
    found = []
    for vcpu in domain.vcpus:
        demand = loads.demand.get((domain.uuid, vcpu.id))
        run, wait = (percent(demand.run), percent(demand.wait)) if demand else (None, None)
        found.append(VcpuStatus(vcpu.id, vcpu.pin, run, wait, vcpu.time_ns, vcpu.delay_ns))
    return tuple(found)
