# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan and the history that come of a decision: moves with their reasons, figures, warnings."""

from __future__ import annotations

from typing import Mapping, Optional, Sequence

from ...config import idle_rules
from ...model import Domain, PinMove, VcpuPlan
from ...units import CpuSet, format_cpuset
from .allowed import Seat
from .bounds import moves_bound, reached_target
from .confined import confined
from .definition import ours_in_definition, start_unknown
from .eligibility import FOREIGN_PIN_PASSES, unknown_loads
from .floating import Fence, fences, moves_of, resting_after, trials_after, trials_planned, undone
from .history import PlannedPin, VcpuHistory, key_of
from .problem import NOWHERE
from .proposal import NEW_WINDOWS, Decision, Proposal, waits_long
from .scene import Scene
from .threads import thread_moves
from .world import World


def plan_of(
    scene: Scene, proposal: Proposal, pins: Mapping[int, CpuSet], found: list[Fence], placing: str = ""
) -> VcpuPlan:
    """Return the plan of *proposal*, by its *pins*, with the sets *found* of what floats, and *placing* about those."""
    world, free = scene.world, scene.world.bare
    at_times = scene.dedicated.preferred | scene.masks.nohz_full
    extra = thread_moves(scene.now, scene.policy, scene.eligible, scene.masks, at_times) if scene.measured else []
    fenced = moves_of(found)
    extra = extra[: budget_left(scene, len(pins) + len(fenced))]
    target = reached_target(free, proposal.where)
    return VcpuPlan(
        before=scene.figures,
        after=world.figures(proposal.where),
        moves=(*_moves(world, proposal, pins), *fenced, *extra),
        skips=(*scene.eligible.skips, *unknown_loads(scene.eligible.seats, scene.loads.demand, not scene.measured)),
        adoptions=scene.eligible.adoptions,
        unmatched=scene.policy.selection.unmatched(scene.now.domains),
        idle_rules=idle_rules(scene.policy.rules, scene.now),
        warnings=_warnings(scene, proposal),
        placed=sum(1 for item in pins if free.now[item] == NOWHERE) + len(fenced) + len(extra),
        moves_bound=moves_bound(free, target),
        target_pct=round(100 * target, 2),
        trigger=", ".join(
            (
                *(proposal.triggers if pins else ()),
                *(("floating",) if fenced else ()),
                *(("emulator",) if extra else ()),
            )
        ),
        note="; ".join(filter(None, (placing, proposal.note))) if pins or not fenced else fenced[0].reason,
        measured=scene.measured,
    )


def about_placing(scene: Scene, placed: Sequence[int], auto: Scene) -> str:
    """Return how many of the items that are *placed* come from where they may not run, and a line on the others."""
    floated = [item for item in placed if not _strayed(scene.world.seats[item])]
    strayed = len(placed) - len(floated)
    elsewhere = f"{strayed} vCPUs leave pCPUs where they may not run" if strayed else ""
    return "; ".join(filter(None, (elsewhere, _about_floated(scene, floated, auto) if floated else "")))


def _about_floated(scene: Scene, placed: Sequence[int], auto: Scene) -> str:
    """Return how the items that are *placed* were served by the kernel alone, and what *auto* would do with them."""
    demands = [scene.world.demands[item] for item in placed]
    run, wait = sum(d.run for d in demands), sum(d.wait for d in demands)
    waited = f"waited {100 * wait / run:.0f} % of the time that it ran" if run else "did not run"
    keys = {key_of(scene.world.seats[item].domain, scene.world.seats[item].vcpu) for item in placed}
    if keys <= {key_of(seat.domain, seat.vcpu) for seat in auto.world.seats}:
        return f"placing what the kernel does not balance onto isolated pCPUs, {len(placed)} vCPUs: it {waited}"
    fenced = sum(1 for fence in fences(auto, None) if fence.key in keys)
    would = f"give {fenced} of {len(placed)} another set of pCPUs" if fenced else "leave it to the kernel"
    return f"placing what floats, {len(placed)} vCPUs: it {waited}; floating: auto would {would}"


def budget_left(scene: Scene, taken: int) -> Optional[int]:
    """Return how many more moves ``max_moves`` allows; None: any number."""
    return None if scene.policy.max_moves is None else max(0, scene.policy.max_moves - taken)


def _moves(world: World, proposal: Proposal, pins: Mapping[int, CpuSet]) -> list[PinMove]:
    """Return the *pins* to set as moves: what leaves the fullest bins first."""
    before = world.allowed.now
    then, after = world.totals(before), world.totals(proposal.where)
    level = [total / size for total, size in zip(then, world.problem.capacity)]
    ordered = sorted(pins, key=lambda i: (-level[before[i]] if before[i] != NOWHERE else 0.0, i))
    touched = {b for i in pins for b in (before[i], proposal.where[i])} - {NOWHERE}
    changes = {b: _change(world, b, then, after) for b in touched}
    moves = []
    for item in ordered:
        seat, target = world.seats[item], proposal.where[item]
        parts = [changes[b] for b in (before[item], target) if b != NOWHERE]
        floating = "" if before[item] != NOWHERE else _where_it_was(seat)
        load = world.problem.load[item]
        moves.append(
            PinMove(
                domain=seat.domain.name,
                uuid=seat.domain.uuid,
                id=seat.vcpu.id,
                before=seat.vcpu.pin,
                after=pins[item],
                reason=f"{floating}load {100 * load:.0f} % of a pCPU; {', '.join(parts)}",
                load=round(load, 4),
            )
        )
    return moves


def _strayed(seat: Seat) -> bool:
    """Return whether *seat* is pinned where it may not run at all: nobody let it float."""
    return seat.vcpu.pin.isdisjoint(seat.allowed)


def _where_it_was(seat: Seat) -> str:
    return f"it may not run on pCPU {format_cpuset(seat.vcpu.pin)}, " if _strayed(seat) else "it floated, "


def _change(world: World, bin_: int, before: Sequence[float], after: Sequence[float]) -> str:
    size = world.problem.capacity[bin_]
    name = f"pCPU {format_cpuset(world.bins[bin_])}" if size == 1 else f"pCPUs {format_cpuset(world.bins[bin_])}"
    return f"{name} at {100 * before[bin_] / size:.0f} % -> {100 * after[bin_] / size:.0f} %"


def _warnings(scene: Scene, proposal: Proposal) -> tuple[str, ...]:
    lacking = confined(scene.world, proposal.where, scene.masks) if scene.measured else None
    warnings = [lacking] if lacking else []
    offline = (scene.policy.pcpus or frozenset()) - scene.masks.online
    if offline:
        warnings.append(f"pcpus: pCPU {format_cpuset(offline)} is offline: the others are used until it is back")
    if scene.policy.emulator == "reserved" and not scene.policy.reserved & scene.masks.online:
        warnings.append("emulator: reserved needs reserved pCPUs that are online: no thread is moved, set `reserved`")
    for domain in sorted(scene.now.domains, key=lambda d: (d.name, d.uuid)):
        warnings += _on_pins(domain)
        if domain.uuid in scene.eligible.mismatched and _mismatches(scene, domain.uuid) == FOREIGN_PIN_PASSES:
            warnings.append(
                f"{domain.name}: its affinity was changed past libvirt in {FOREIGN_PIN_PASSES} passes in a row"
                f" (numad, cset, taskset?), skipped for {scene.policy.grace_s} s (grace)"
            )
    if scene.now.host.pinners:
        names = ", ".join(scene.now.host.pinners)
        warnings.append(f"{names} is running here and changes affinities, too: stop it, or what both do is undone")
    if scene.dedicated.too_many:
        names = ", ".join(scene.dedicated.too_many)
        warnings.append(f"{names}: pCPUs of their own would leave others too few: kept free only while there is room")
    return tuple(warnings)


def _on_pins(domain: Domain) -> list[str]:
    """Return what is odd about the pins of a domain's definition."""
    ours = [number for kind, number in ours_in_definition(domain) if kind == "vcpu"]
    lines = []
    if ours:
        which = f"vCPU {format_cpuset(ours)}"
        lines.append(
            f"{domain.name}: its definition has pins that kvmsched set, of {which}:"
            " they limit nothing, `virsh edit` removes them"
        )
    if start_unknown(domain):
        lines.append(f"{domain.name}: transient, seen after its start: its pins of now are taken for its definition")
    return lines


# ---------------------------------------------------------------- the history


def history_of(scene: Scene, decision: Decision, pins: Mapping[int, CpuSet], found: list[Fence]) -> VcpuHistory:
    """Return what the next pass should be handed."""
    now_s = scene.now.monotonic_s
    if not scene.measured:
        return scene.past
    mismatches = {uuid: _mismatches(scene, uuid) for uuid in sorted(scene.eligible.mismatched)}
    backed_off = {uuid: until_s for uuid, until_s in scene.past.backed_off.items() if until_s > now_s}
    backed_off.update(
        {u: now_s + scene.policy.grace_s for u, count in mismatches.items() if count >= FOREIGN_PIN_PASSES}
    )
    trials = trials_after(scene, found)
    return VcpuHistory(
        number=scene.past.number + 1,
        stamp_s=now_s,
        settled_average=decision.settled,
        held=decision.held,
        loads=scene.smoothed,
        foreign=scene.foreign,
        waited=_waited(scene),
        trials=trials,
        planned=trials_planned(scene, found),
        resting=resting_after(scene, found),
        trials_begun=scene.past.trials_begun + len(trials.keys() - scene.past.trials.keys()),
        trials_undone=scene.past.trials_undone + sum(1 for fence in found if undone(scene.past, fence)),
        moves=_past_moves(scene, pins),
        mismatches=mismatches,
        backed_off=backed_off,
    )


def _waited(scene: Scene) -> dict[str, int]:
    """Return the vCPUs that waited long lately, each with the pass that saw it last."""
    number = scene.past.number
    waited = {key: last for key, last in scene.past.waited.items() if number - last < NEW_WINDOWS}
    for seat, demand in zip(scene.world.seats, scene.world.demands):
        if waits_long(demand):
            waited[key_of(seat.domain, seat.vcpu)] = number
    return waited


def _past_moves(scene: Scene, planned: Mapping[int, CpuSet]) -> dict[str, PlannedPin]:
    """Return the moves of this pass, and the earlier ones that still stand."""
    moves = {}
    if scene.past.moves:
        pins = {key_of(domain, vcpu): vcpu.pin for domain in scene.now.domains for vcpu in domain.vcpus}
        moves = {key: move for key, move in scene.past.moves.items() if pins.get(key) == move.after}
    for item, after in planned.items():
        seat = scene.world.seats[item]
        key = key_of(seat.domain, seat.vcpu)
        moves[key] = PlannedPin(seat.vcpu.pin, after, scene.now.monotonic_s, scene.past.number)
    return moves


def _mismatches(scene: Scene, uuid: str) -> int:
    return scene.past.mismatches.get(uuid, 0) + 1
