# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Status as text, for people: the table of top, the story of one guest, the state of the daemon."""

from __future__ import annotations

import time
from typing import Any, Callable, Iterable, Mapping, Optional, Sequence

from ..units import format_cpuset
from .status import DomainStatus, PassStatus, PastMove, PcpuStatus, Status

WIDTH = 80
_BARS_A_LINE = 4
_NUMBERS_A_LINE = 16
_MOST_BARS = 16
_MOST_PCPU_LINES = 8


# ---------------------------------------------------------------- top


def _run(domain: DomainStatus) -> float:
    return sum(vcpu.run_pct or 0.0 for vcpu in domain.vcpus)


def _wait(domain: DomainStatus) -> float:
    return sum(vcpu.wait_pct or 0.0 for vcpu in domain.vcpus)


# What the guests can be sorted by: most first, but least usable memory first.
SORTS: Mapping[str, Callable[[DomainStatus], Any]] = {
    "cpu": lambda domain: (-_run(domain), domain.name),
    "wait": lambda domain: (-_wait(domain), domain.name),
    "memory": lambda domain: (-(domain.actual_kib or 0), domain.name),
    "usable": lambda domain: (float("inf") if domain.usable_kib is None else domain.usable_kib, domain.name),
    "name": lambda domain: domain.name,
}


def table(status: Status, sort: str = "cpu", width: int = WIDTH, height: Optional[int] = None) -> list[str]:
    """The host, its pCPUs and its guests, in lines of at most *width* characters; *height* None: all guests."""
    lines = [*_host_lines(status), "", *_pcpu_lines(status.pcpus, height), "", _columns(width)]
    rows = [_row(domain, width) for domain in sorted(status.domains, key=SORTS[sort])]
    if height is not None and len(lines) + len(rows) > height:
        left = max(0, height - len(lines) - 1)
        rows = [*rows[:left], f"... and {len(rows) - left} more guests"]
    return [line[:width].rstrip() for line in lines + rows]


def _host_lines(status: Status) -> Iterable[str]:
    clock = time.strftime("%H:%M:%S", time.localtime(status.written_s))
    domains, vcpus = len(status.domains), sum(len(domain.vcpus) for domain in status.domains)
    counts = f"{_counted(domains, 'guest')}, {_counted(vcpus, 'vCPU')} on {_counted(len(status.pcpus), 'pCPU')}"
    daemon = "no daemon" if status.effective_mode == "look" else f"daemon: {status.effective_mode}"
    yield f"{status.host}  {clock}  {counts}, {daemon}"
    if status.vcpu is not None:
        figures = status.vcpu
        line = f"CPU     average {figures.average_pct:.0f} %, most {figures.max_pct:.0f} %"
        yield line + f", imbalance {figures.imbalance_pct:.1f} points"
    if status.memory is not None:
        figures_ = status.memory
        host = f"guests {size(figures_.actual_kib)}"
        if status.memory_total_kib is not None and figures_.host_available_kib is not None:
            host = f"{size(figures_.host_available_kib)} of {size(status.memory_total_kib)} available, {host}"
        unknown = f", {figures_.unknown} unknown" if figures_.unknown else ""
        yield f"Memory  {host}; {figures_.starved} starved, {figures_.wasteful} wasteful{unknown}"
    if status.trouble:
        yield f"Trouble {status.trouble}"


def _pcpu_lines(pcpus: Sequence[PcpuStatus], height: Optional[int]) -> Iterable[str]:
    """A bar for each of a few pCPUs, a number for each of many."""
    if len(pcpus) <= _MOST_BARS:
        for first in range(0, len(pcpus), _BARS_A_LINE):
            yield " ".join(
                f"{p.id:>3} {_bar(p.busy_pct, 8)}{p.busy_pct:4.0f}%" for p in pcpus[first : first + _BARS_A_LINE]
            )
        return
    shown = len(pcpus) if height is None else _MOST_PCPU_LINES * _NUMBERS_A_LINE
    for first in range(0, min(shown, len(pcpus)), _NUMBERS_A_LINE):
        some = pcpus[first : first + _NUMBERS_A_LINE]
        yield f"{some[0].id:>4} % " + "".join(f"{p.busy_pct:4.0f}" for p in some)
    if len(pcpus) > shown:
        fullest = max(pcpus, key=lambda p: p.busy_pct)
        yield f"     ... and {len(pcpus) - shown} more; the fullest is {fullest.id} at {fullest.busy_pct:.0f} %"


def _bar(pct: float, width: int) -> str:
    filled = min(width, round(pct / 100 * width))
    return "[" + "|" * filled + " " * (width - filled) + "]"


_NUMBERS = " {:>4} {:>6} {:>6} {:>7} {:>11} {:>6} {:>6} {:<8}"
_NUMBERS_WIDTH = len(_NUMBERS.format(*[""] * 8))


def _columns(width: int) -> str:
    cells = _NUMBERS.format("VCPU", "RUN%", "WAIT%", "PINS", "MEM/MAX", "USABLE", "UNUSED", "STATE")
    return "GUEST".ljust(width - _NUMBERS_WIDTH) + cells


def _row(domain: DomainStatus, width: int) -> str:
    name_width = width - _NUMBERS_WIDTH
    pins = format_cpuset(frozenset().union(*(vcpu.pin for vcpu in domain.vcpus)))
    known = any(vcpu.run_pct is not None for vcpu in domain.vcpus)
    return _cut(domain.name, name_width).ljust(name_width) + _NUMBERS.format(
        len(domain.vcpus),
        f"{_run(domain):.1f}" if known else "-",
        f"{_wait(domain):.1f}" if known else "-",
        _cut(pins, 7),
        f"{size(domain.actual_kib)}/{size(domain.maximum_kib)}",
        size(domain.usable_kib),
        size(domain.unused_kib),
        domain.verdict,
    )


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "+"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def size(kib: Optional[int]) -> str:
    """*kib* for a narrow column: ``512M``, ``16.5G``; ``-`` if it is not known."""
    if kib is None:
        return "-"
    if kib < 10_000 * 1024:
        return f"{round(kib / 1024)}M"
    return f"{kib / 1024**2:.3g}G" if kib < 1000 * 1024**2 else f"{kib / 1024**3:.3g}T"


# ---------------------------------------------------------------- explain


def story(domain: DomainStatus, status: Status) -> list[str]:
    """What a guest wants, what it gets, and why."""
    lines = [f"{domain.name} ({domain.uuid}): {domain.state}, {_counted(len(domain.vcpus), 'vCPU')}", ""]
    lines += ["memory", *_indented(_memory_story(domain))]
    lines += ["", "CPU", *_indented(_vcpu_story(domain, status.pcpus))]
    lines += ["", "a pass now" if status.mode == "look" else "last moves", *_indented(_past(domain.moves))]
    return lines


def _indented(rows: Iterable[tuple[str, str]]) -> Iterable[str]:
    return (f"  {title:<9} {text}".rstrip() for title, text in rows)


def _memory_story(domain: DomainStatus) -> Iterable[tuple[str, str]]:
    if domain.actual_kib is None:
        yield "", domain.memory_skip or "not known"
        return
    yield "has", f"{size(domain.actual_kib)} of at most {size(domain.maximum_kib)}"
    if domain.usable_kib is not None:
        used_kib = max(0, domain.actual_kib - domain.usable_kib)
        unused = "" if domain.unused_kib is None else f"; {size(domain.unused_kib)} serves nothing (unused)"
        yield "uses", f"{size(used_kib)}, and could get {size(domain.usable_kib)} more (usable){unused}"
        if domain.starvation_kib is not None:
            yield "wants", _wanted(domain, used_kib)
            yield "is", _judged(domain)
    if domain.target_kib is not None and domain.target_kib != domain.actual_kib:
        yield "plan", f"{size(domain.actual_kib)} -> {size(domain.target_kib)}"
    elif not domain.memory_skip:
        yield "plan", "it keeps what it has"
    if domain.memory_skip:
        yield "no turn", domain.memory_skip
    if domain.unmet_kib:
        yield "lacks", f"{size(domain.unmet_kib)}: {domain.unmet}"


def _wanted(domain: DomainStatus, used_kib: int) -> str:
    starvation_kib, floor_kib = domain.starvation_kib or 0, domain.floor_kib or 0
    need_kib = used_kib + starvation_kib
    if floor_kib > need_kib:
        return f"at least {size(floor_kib)}, its floor"
    reason = f"what it uses and {size(starvation_kib)} (starvation)"
    return f"at least {size(need_kib)}: {reason}; its floor is {size(floor_kib)}"


def _judged(domain: DomainStatus) -> str:
    word = domain.verdict
    if word == "starved":
        return f"starved: usable {size(domain.usable_kib)} < {size(domain.starvation_kib)}"
    if word == "wasteful":
        return f"wasteful: unused {size(domain.unused_kib)} > {size(domain.waste_kib)}"
    if word == "ok":
        return (
            f"neither starved (usable < {size(domain.starvation_kib)}) nor wasteful (unused > {size(domain.waste_kib)})"
        )
    return word


def _vcpu_story(domain: DomainStatus, pcpus: Sequence[PcpuStatus]) -> Iterable[tuple[str, str]]:
    busy = {pcpu.id: pcpu for pcpu in pcpus}
    for vcpu in domain.vcpus:
        load = "load not known"
        if vcpu.run_pct is not None:
            load = f"wants {vcpu.run_pct + (vcpu.wait_pct or 0):.0f} %, gets {vcpu.run_pct:.0f} % of a pCPU"
        place = f"on pCPU {format_cpuset(vcpu.pin)}"
        if len(vcpu.pin) == 1 and (pcpu := busy.get(min(vcpu.pin))):
            place += f", which is {pcpu.busy_pct:.0f} % busy ({pcpu.foreign_pct:.0f} % by others than guests)"
        yield f"vCPU {vcpu.id}", f"{load}, {place}"
    if domain.vcpu_skip:
        yield "no turn", domain.vcpu_skip


def _past(moves: Sequence[PastMove]) -> Iterable[tuple[str, str]]:
    for move in moves:
        when = time.strftime("%H:%M:%S", time.localtime(move.when_s))
        yield when, f"{'' if move.made else 'would make '}{move.what}: {move.reason}"
    if not moves:
        yield "", "none"


# ---------------------------------------------------------------- status


def summary(status: Status, now_s: float) -> list[str]:
    """The daemon in a few lines."""
    mode = status.effective_mode
    if status.mode != mode:
        mode += f" (its policy says {status.mode}: {status.mode_reason})"
    policy = f"{status.policy_path} ({status.policy_hash[:12]})" if status.policy_path else "the defaults"
    where, up = status.host or status.uri, _age(now_s - status.started_s)
    lines = [f"kvmsched {status.version} on {where}: pid {status.pid}, up {up}", f"mode    {mode}", f"policy  {policy}"]
    lines += [f"        the last reload was refused: {status.policy_error}"] if status.policy_error else []
    lines += [f"trouble {status.trouble}"] if status.trouble else []
    for name, one in (("memory", status.memory_pass), ("vCPUs", status.vcpu_pass)):
        lines += [f"{name:<7} {text}" for text in _pass_lines(one, now_s)]
    return lines


def _pass_lines(one: PassStatus, now_s: float) -> Iterable[str]:
    if not one.when_s:
        yield f"no pass yet{': ' + one.failed if one.failed else ''}"
        return
    skipped = f", {sum(one.skips.values())} skipped" if one.skips else ""
    moves = f", {_counted(one.made, 'move')}" + (f" of {one.planned} planned" if one.planned != one.made else "")
    yield f"{_age(now_s - one.when_s)} ago: {one.headline}{moves}{skipped}"
    for text in (one.failed and f"the last pass failed: {one.failed}", *one.failures, *one.warnings):
        if text:
            yield f"  {text}"


def _age(seconds: float) -> str:
    for unit, length_s in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length_s:
            return f"{seconds / length_s:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
