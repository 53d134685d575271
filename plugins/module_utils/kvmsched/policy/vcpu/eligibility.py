# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which domains may be moved, and why the others are skipped: all reasons are in one table, REASONS, in their order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Collection, Iterator, Optional

from ...baseline import fault
from ...config import VcpuPolicy
from ...model import Adoption, Domain, Skip, Snapshot, VcpuCode
from ...units import CpuSet, format_cpuset
from .allowed import Affinity, Masks, Seat
from .dedicated import REALTIME, Dedication, dedication
from .demand import Loads, has_spare
from .history import VcpuHistory
from .records import adopted, grace_left_s, rebased

# Passes in a row that must find a foreign affinity before the domain is skipped for the grace period (decision 29).
FOREIGN_PIN_PASSES = 2


@dataclass(frozen=True)
class Eligible:
    """Who may be moved. ``usable`` are the pCPUs that any of the ``seats`` may be given, or could be."""

    usable: CpuSet
    seats: tuple[Seat, ...]
    skips: tuple[Skip, ...]
    adoptions: tuple[Adoption, ...]
    mismatched: frozenset[str]


def eligible(
    snapshot: Snapshot, policy: VcpuPolicy, history: VcpuHistory, masks: Masks, dedicated: Dedication
) -> Eligible:
    """Sort the selected domains into those that may be moved and those that are skipped."""
    seats: list[Seat] = []
    skips: list[Skip] = []
    adoptions: list[Adoption] = []
    mismatched: set[str] = set()
    for domain in sorted(snapshot.domains, key=lambda d: (d.name, d.uuid)):
        if not policy.selection.matches(domain):
            continue
        case = _case(domain, snapshot, policy, history, masks, dedicated)
        skip = _refusal(case)
        # The threads of who starts or migrates in need not have its pins yet.
        if case.mismatch and not (skip and skip.code in ("busy", "not-running")):
            mismatched.add(domain.uuid)
        if skip is None:
            seats += case.seats
            adoptions += rebased(domain, snapshot, masks)
            continue
        skips.append(skip)
        if skip.code == "human" and case.adoption:
            adoptions.append(case.adoption)
    usable = (masks.host() - masks.avoided).union(*{seat.allowed for seat in seats})
    return Eligible(usable, tuple(seats), tuple(skips), tuple(adoptions), frozenset(mismatched))


def dedication_on(snapshot: Snapshot, policy: VcpuPolicy) -> Dedication:
    """Return which pCPUs of this host are somebody's own."""
    modes = {domain.uuid: _mode(domain, policy) for domain in snapshot.domains}
    return dedication(snapshot, modes, Masks(snapshot, policy))


def masks_for(snapshot: Snapshot, policy: VcpuPolicy, dedicated: Dedication, loads: Loads) -> Masks:
    """Return where vCPUs may run beside the *dedicated* pCPUs. What should stay free does so while there is room."""
    masks = Masks(snapshot, policy, dedicated.pcpus)
    tickless, usable = masks.avoided, masks.host()
    for avoided in (dedicated.preferred | tickless, dedicated.preferred, frozenset()):
        if not avoided or has_spare(usable - avoided, loads):
            break
    return masks if avoided == tickless else Masks(snapshot, policy, dedicated.pcpus, avoided)


# ---------------------------------------------------------------- the table


@dataclass(frozen=True)
class _Case:
    """One domain and what decides whether it may be moved.

    ``mismatch``: how its affinity was changed past libvirt; ``backed_off_s``: how long it is skipped
    for that; ``adoption``: what somebody else pinned, ``grace_s``: how long that is skipped. ``named``: the
    policy names it, other than by "*".
    """

    domain: Domain
    mode: str
    mismatch: Optional[str]
    backed_off_s: float
    adoption: Optional[Adoption]
    grace_s: float
    seats: tuple[Seat, ...]
    masks: Masks
    dedicated: Dedication
    named: bool

    def not_running(self) -> Optional[str]:
        state = self.domain.state
        return f"it is {state}: judged again once it runs" if state != "running" else None

    def busy(self) -> Optional[str]:
        return self.domain.busy

    def ignored(self) -> Optional[str]:
        if self.mode != "ignore":
            return None
        return "its vCPU mode is ignore, by a rule or by its owner: another mode there has it judged"

    def managed(self) -> Optional[str]:
        by = self.domain.managed_by
        return f"{by} manages it: it is moved only where `domains` names it" if by and not self.named else None

    def realtime(self) -> Optional[str]:
        vcpu = next((v for v in self.domain.vcpus if v.scheduler in REALTIME), None)
        return f"vCPU {vcpu.id} has real-time class {vcpu.scheduler}: its pins stay as they are" if vcpu else None

    def cachetune(self) -> Optional[str]:
        return (
            "a part of the cache is allocated to it where it runs (cachetune): its pins stay as they are"
            if self.domain.cachetune
            else None
        )

    def marked_dedicated(self) -> Optional[str]:
        if self.mode != "dedicated":
            return None
        return "its vCPU mode is dedicated, by a rule or by its owner: its pins stay as they are"

    def own_pcpus(self) -> Optional[str]:
        whole = self.dedicated.whole(self.domain)
        return "its definition pins each vCPU to a pCPU of its own: its pins stay as they are" if whole else None

    def overlapping(self) -> Optional[str]:
        if not self.dedicated.overlapping:
            return None
        not_own = (v for v in self.domain.vcpus if (self.domain.uuid, v.id) not in self.dedicated.own)
        pins = [self.masks.defined(self.domain, vcpu) for vcpu in not_own]
        shared = [min(pin) for pin in pins if pin and len(pin) == 1 and min(pin) in self.dedicated.overlapping]
        if not shared or any(pin is None or len(pin) > 1 for pin in pins):
            return None
        names = dict.fromkeys(name for pcpu in shared for name in self.dedicated.overlapping[pcpu])
        others = ", ".join([name for name in names if name != self.domain.name][:3])
        where = format_cpuset(shared)
        return f"its definition pins vCPUs to pCPU {where}, as that of others does, too ({others}): change one of them"

    def bad_policy(self) -> Optional[str]:
        return self.mode if self.mode != "auto" else None

    def record(self) -> Optional[str]:
        return fault(self.domain)

    def foreign_pin(self) -> Optional[str]:
        return self.mismatch

    def backed_off(self) -> Optional[str]:
        left_s = self.backed_off_s
        if left_s <= 0:
            return None
        return f"its affinity was changed past libvirt (numad, cset, taskset?): skipped for {left_s:.0f} s more (grace)"

    def human(self) -> Optional[str]:
        return self.adoption.reason if self.adoption else None

    def in_grace(self) -> Optional[str]:
        left_s = self.grace_s
        return f"somebody else set a pin of it: skipped for {left_s:.0f} s more (grace)" if left_s > 0 else None

    def empty_set(self) -> Optional[str]:
        empty = next((seat.vcpu for seat in self.seats if not seat.allowed), None)
        if empty is None:
            return None
        return (
            f"no pCPU is left for vCPU {empty.id}, change one of these: {self.masks.explain_empty(self.domain, empty)}"
        )


# The first that applies is the reason: first the state of the domain, then its owner's word, then the work of others.
REASONS: tuple[tuple[VcpuCode, Callable[[_Case], Optional[str]]], ...] = (
    ("busy", _Case.busy),
    ("not-running", _Case.not_running),
    ("ignored", _Case.ignored),
    ("managed", _Case.managed),
    ("realtime", _Case.realtime),
    ("cachetune", _Case.cachetune),
    ("dedicated", _Case.marked_dedicated),
    ("dedicated", _Case.own_pcpus),
    ("overlapping", _Case.overlapping),
    ("bad-policy", _Case.bad_policy),
    ("record", _Case.record),
    ("foreign-pin", _Case.foreign_pin),
    ("foreign-pin", _Case.backed_off),
    ("human", _Case.human),
    ("human", _Case.in_grace),
    ("empty-set", _Case.empty_set),
)


def _refusal(case: _Case) -> Optional[Skip]:
    """Return the first reason of the table that applies to a domain."""
    for code, reason in REASONS:
        text = reason(case)
        if text:
            return skipped(case.domain, code, text)
    return None


def skipped(domain: Domain, code: VcpuCode, reason: str) -> Skip:
    """Return the line that says why *domain* is skipped."""
    return Skip(domain.name, domain.uuid, code, reason)


def unknown_loads(seats: Collection[Seat], known: Collection[tuple[str, int]], one_snapshot: bool) -> list[Skip]:
    """Return a line for each domain with vCPUs whose load is not *known*: those vCPUs stay where they are."""
    missing: dict[str, tuple[Domain, list[int]]] = {}
    for seat in seats:
        if (seat.domain.uuid, seat.vcpu.id) not in known:
            missing.setdefault(seat.domain.uuid, (seat.domain, []))[1].append(seat.vcpu.id)
    why = "there is one snapshot only" if one_snapshot else "new, restarted, or its counter went back"
    return [
        skipped(
            domain,
            "unknown-load",
            f"no load is known of {'vCPU' if len(ids) == 1 else 'vCPUs'} {format_cpuset(ids)}: {why}",
        )
        for domain, ids in missing.values()
    ]


# ---------------------------------------------------------------- the facts of one domain


def _case(
    domain: Domain,
    snapshot: Snapshot,
    policy: VcpuPolicy,
    history: VcpuHistory,
    masks: Masks,
    dedicated: Dedication,
) -> _Case:
    return _Case(
        domain=domain,
        mode=_mode(domain, policy),
        mismatch=_foreign_pin(domain, masks),
        backed_off_s=history.backed_off.get(domain.uuid, 0.0) - snapshot.monotonic_s,
        adoption=adopted(domain, snapshot),
        grace_s=grace_left_s(domain, snapshot, policy),
        seats=tuple(_seats(domain, masks, dedicated)),
        masks=masks,
        dedicated=dedicated,
        named=policy.selection.names(domain),
    )


def _seats(domain: Domain, masks: Masks, dedicated: Dedication) -> Iterator[Seat]:
    """Yield the vCPUs that may be moved: none that has pCPUs of its own, none that somebody put on isolated ones."""
    for vcpu in domain.vcpus:
        if (domain.uuid, vcpu.id) not in dedicated.own:
            seat = Seat(domain, vcpu, masks.allowed(domain, vcpu), masks.runs_on(domain, vcpu))
            meant = masks.isolated and seat.now and seat.now <= masks.isolated and seat.now.isdisjoint(seat.allowed)
            if not meant:
                yield seat


def _mode(domain: Domain, policy: VcpuPolicy) -> str:
    """Return the domain's mode, or the line that says why its settings can't be understood."""
    if domain.owner.error:
        return f"metadata: {domain.owner.error}"
    try:
        return policy.settings_for(domain).mode
    except ValueError as error:
        return str(error)


def _foreign_pin(domain: Domain, masks: Affinity) -> Optional[str]:
    """Return where the kernel's affinity is not the configured one, as one line.

    libvirt lets what floats off isolated pCPUs by itself. A vCPU whose pCPUs are all offline was put
    elsewhere by the kernel itself.
    """
    for vcpu in domain.vcpus:
        if vcpu.affinity is None:
            continue
        configured = masks.configured(domain, vcpu)
        real = vcpu.affinity
        if configured and real != configured and (real & masks.online ^ configured) - masks.isolated:
            return (
                f"vCPU {vcpu.id} is configured for pCPU {format_cpuset(configured)}"
                f" but runs on {format_cpuset(real) or 'none'}: changed past libvirt (numad, cset, taskset?)"
            )
    return None
