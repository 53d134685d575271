# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the daemon tells of itself after each pass: one JSON file in its runtime directory, and who reads it.

Memory is KiB, loads are percent of one pCPU, times are wall-clock seconds; None is "not known".
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from typing import Mapping, Optional, Sequence, Union

from .. import lock
from ..config import MemoryPolicy
from ..model import BalloonMove, Domain, MemoryFigures, Skip, Snapshot, VcpuFigures, from_json, parse_json
from ..passes import MemoryResult, VcpuResult
from ..policy.vcpu_load import Loads
from ..units import CpuSet

FORMAT = 1
# Enough for "why did it move?", few enough to be written every few seconds.
KEPT_MOVES = 5

# Skips that say that the guest's statistics are none, or none of now.
_UNJUDGED = ("no-stats", "no-driver", "stale")
# Skips that say that its memory is not kvmsched's business.
_EXCLUDED = "excluded: the policy's domains and exclude leave it out"
_LEFT_ALONE = ("ignored", "excluded")


@dataclass(frozen=True)
class PastMove:
    """A move that was made, or in observe mode would have been: ``what`` as in ``db1: 2048M -> 2912M``."""

    when_s: float
    resource: str
    what: str
    reason: str
    made: bool = True


@dataclass(frozen=True)
class VcpuStatus:
    """One vCPU: where it is pinned, and what share of the last window it ran and waited."""

    id: int
    pin: CpuSet
    run_pct: Optional[float] = None
    wait_pct: Optional[float] = None


@dataclass(frozen=True)
class DomainStatus:
    """One running domain. ``target_kib`` is where the last plan sends its balloon, ``unmet`` why ``unmet_kib`` lack.

    ``starvation_kib``, ``waste_kib`` and ``floor_kib`` are its limits, None where it has no valid ones.
    ``memory_skip`` and ``vcpu_skip`` say why it had no turn; ``moves`` are its last ones, oldest first.
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
    memory_skip: str = ""
    vcpu_skip: str = ""
    vcpus: tuple[VcpuStatus, ...] = ()
    moves: tuple[PastMove, ...] = ()

    @property
    def managed(self) -> bool:
        """Whether the policy wants its memory balanced."""
        return self.memory_skip.partition(":")[0] not in _LEFT_ALONE

    @property
    def verdict(self) -> str:
        """How it does for memory, in one word: starved, wasteful, ok, unknown; its state where that is not running."""
        if self.state != "running":
            return self.state
        if self.usable_kib is None or self.starvation_kib is None or self.memory_skip.partition(":")[0] in _UNJUDGED:
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
    ``mode`` is what its policy says, ``effective_mode`` what it does, ``mode_reason`` why they differ.
    ``policy_hash`` is the SHA-256 of the policy file's bytes ("" without a file), ``policy_error`` why the
    last reload was refused. ``trouble`` is why libvirt can't be observed now, "" if it can.
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
    policy_path: str = ""
    policy_hash: str = ""
    policy_error: str = ""
    memory_period_s: float = 0.0
    vcpu_period_s: float = 0.0
    host: str = ""
    trouble: str = ""
    memory_pass: PassStatus = PassStatus()
    vcpu_pass: PassStatus = PassStatus()
    memory: Optional[MemoryFigures] = None
    memory_total_kib: Optional[int] = None
    vcpu: Optional[VcpuFigures] = None
    domains: tuple[DomainStatus, ...] = ()
    pcpus: tuple[PcpuStatus, ...] = ()
    format: int = FORMAT


# ---------------------------------------------------------------- the file


def path_for(uri: str) -> str:
    """Where the daemon of *uri* tells its status: beside the host's lock."""
    return os.path.join(lock.directory_for(uri), "status.json")


def read(uri: str) -> Optional[Status]:
    """The last status of the daemon of *uri*; None if there is none. ValueError where it is no status of this format.

    The daemon may be gone since: lock.daemon tells.
    """
    try:
        with open(path_for(uri), "rb") as file:
            data = parse_json(file.read())
    except FileNotFoundError:
        return None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(f"{path_for(uri)}: it is of another format than {FORMAT}, which this kvmsched reads")
    return from_json(Status, data)


def write_atomically(path: str, text: str, mode: int) -> None:
    """Let *path*, of its directory's group, hold *text*: all of it, or what was there before. OSError if not."""
    directory = os.path.dirname(path)
    descriptor, temporary = tempfile.mkstemp(dir=directory, prefix=f".{os.path.basename(path)}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            with contextlib.suppress(PermissionError):
                os.fchown(file.fileno(), -1, os.stat(directory).st_gid)
            os.fchmod(file.fileno(), mode)
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


# ---------------------------------------------------------------- what a tick says of each domain and pCPU


def describe_pass(result: Union[MemoryResult, VcpuResult]) -> PassStatus:
    """One resource's last pass in figures."""
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
    moves: Mapping[str, Sequence[PastMove]],
) -> tuple[DomainStatus, ...]:
    """All running domains by name, as of *now* and of the last pass over each resource; those too that hid."""
    targets = {m.uuid: m.after_kib for m in memory.plan.moves if isinstance(m, BalloonMove)} if memory else {}
    unmet = {missing.uuid: missing for missing in memory.plan.unmet} if memory else {}
    skips = [{s.uuid: _reason(s) for s in result.skips} if result else {} for result in (memory, vcpu)]
    found = [_unseen(skip) for skip in now.skips if skip.code != "gone"]
    for domain in now.domains:
        uuid = domain.uuid
        memory_of = _memory(domain, policy)
        excluded = "" if policy.selection.matches(domain) else _EXCLUDED
        found.append(
            DomainStatus(
                name=domain.name,
                uuid=uuid,
                state=domain.state,
                **memory_of,
                target_kib=targets.get(uuid, memory_of.get("actual_kib")),
                unmet_kib=unmet[uuid].kib if uuid in unmet else 0,
                unmet=unmet[uuid].reason if uuid in unmet else "",
                memory_skip=excluded or skips[0].get(uuid, ""),
                vcpu_skip=excluded or skips[1].get(uuid, ""),
                vcpus=_vcpus(domain, loads),
                moves=tuple(moves.get(uuid, ())),
            )
        )
    return tuple(sorted(found, key=lambda domain: domain.name))


def describe_pcpus(loads: Loads) -> tuple[PcpuStatus, ...]:
    return tuple(
        PcpuStatus(pcpu, _pct(busy), _pct(loads.foreign.get(pcpu, 0.0))) for pcpu, busy in sorted(loads.busy.items())
    )


def _unseen(skip: Skip) -> DomainStatus:
    """A domain that could not be observed: that is all that is known of it."""
    return DomainStatus(skip.domain, skip.uuid, skip.code, memory_skip=_reason(skip), vcpu_skip=_reason(skip))


def _reason(skip: Skip) -> str:
    return f"{skip.code}: {skip.reason}"


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
        settings = policy.settings_for(domain)
        for name in ("starvation_kib", "waste_kib", "floor_kib"):
            values[name] = getattr(settings, name)(balloon.maximum_kib)
    return values


def _vcpus(domain: Domain, loads: Loads) -> tuple[VcpuStatus, ...]:
    found = []
    for vcpu in domain.vcpus:
        demand = loads.demand.get((domain.uuid, vcpu.id))
        shares = (_pct(demand.run), _pct(demand.wait)) if demand else (None, None)
        found.append(VcpuStatus(vcpu.id, vcpu.pin, *shares))
    return tuple(found)


def _pct(fraction: float) -> float:
    return round(100 * fraction, 1)
