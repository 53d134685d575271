# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Status as text, for people: the table of top, the story of one guest, the state of the daemon."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any, Callable, Iterable, Mapping, Optional, Sequence

from ..model import RoomFigures, RoomRequest
from ..units import counted, format_cpuset
from .status import DomainMove, DomainStatus, PassStatus, PcpuStatus, Status

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


@dataclass(frozen=True)
class Choice:
    """Which guests are shown, and how: those whose name has *wanted* in it, from one before *selected* on."""

    sort: str = "cpu"
    wanted: str = ""
    selected: str = ""
    first: int = 0


def guests(status: Status, choice: Choice) -> list[DomainStatus]:
    """Return the guests that are to be shown, in their order."""
    found = [domain for domain in status.domains if choice.wanted.lower() in domain.name.lower()]
    return sorted(found, key=SORTS[choice.sort])


def table(status: Status, sort: str = "cpu", width: Optional[int] = None, height: Optional[int] = None) -> list[str]:
    """Return the host, its pCPUs and its guests; *width* None: as wide as the names need, *height* None: all guests."""
    shown = guests(status, Choice(sort))
    columns = Columns.of(shown, width)
    lines = [*head(status, height), columns.titles()]
    rows = [columns.row(domain) for domain in shown]
    if height is not None and len(lines) + len(rows) > height:
        left = max(0, height - len(lines) - 1)
        rows = [*rows[:left], f"... and {len(rows) - left} more guests"]
    return [line[:width].rstrip() for line in lines + rows]


def head(status: Status, height: Optional[int] = None) -> list[str]:
    """Return what stands above the guests."""
    return [*_host_lines(status), "", *_pcpu_lines(status.pcpus, height), ""]


def scrolled(shown: Sequence[DomainStatus], choice: Choice, room: int) -> Choice:
    """Return the choice with somebody selected whom one sees among *room* rows."""
    uuids = [domain.uuid for domain in shown]
    if not uuids:
        return replace(choice, first=0)
    place = uuids.index(choice.selected) if choice.selected in uuids else 0
    first = max(place - room + 1, min(choice.first, place, max(0, len(uuids) - room)))
    return replace(choice, selected=uuids[place], first=max(0, first))


def seen(shown: Sequence[DomainStatus], choice: Choice, room: int) -> str:
    """Return which rows of all one sees, such as ``1-13/35``; "" where these are all."""
    return "" if len(shown) <= room else f"{choice.first + 1}-{min(choice.first + room, len(shown))}/{len(shown)}"


def moved(shown: Sequence[DomainStatus], choice: Choice, by: int) -> Choice:
    """Return the choice with the guest selected that is so many rows further down."""
    uuids = [domain.uuid for domain in shown]
    if not uuids:
        return choice
    place = uuids.index(choice.selected) if choice.selected in uuids else 0
    return replace(choice, selected=uuids[max(0, min(len(uuids) - 1, place + by))])


def foot(choice: Choice, typing: bool = False) -> str:
    """Return the order, the filter and the keys; what an 80-column terminal must show comes first."""
    if typing:
        return f"/{choice.wanted}_  Enter keeps it, Escape ends it"
    wanted = f" /{choice.wanted} (Escape ends it)" if choice.wanted else ""
    return f"by {choice.sort}{wanted}  q quit  / filter  up down why  c CPU w wait m memory u usable n name"


def why(domain: DomainStatus) -> str:
    """Return one line: what is to be said of a guest."""
    told = cause(domain)
    return f"{domain.name}: {told or f'{domain.verdict}; kvmsched explain {domain.name} tells all'}"


def cause(domain: DomainStatus) -> str:
    """Return what it lacks, why it was skipped, else its last move; "" for nothing of that."""
    if domain.unmet:
        return f"lacks {size(domain.unmet_kib)}: {domain.unmet}"
    skips = [f"{what}: {skip}" for what, skip in (("memory", domain.memory_skip), ("vCPUs", domain.vcpu_skip)) if skip]
    if skips or not domain.moves:
        return "; ".join(skips)
    move = domain.moves[-1]
    # Who it is stands before it.
    what = move.what[len(domain.name) :].lstrip(": ") if move.what.startswith(domain.name) else move.what
    return f"{'last' if move.made else 'would make'}: {what}: {move.reason}"


def _host_lines(status: Status) -> Iterable[str]:
    clock = time.strftime("%H:%M:%S", time.localtime(status.written_s))
    domains, vcpus = len(status.domains), sum(len(domain.vcpus) for domain in status.domains)
    counts = f"{counted(domains, 'guest')}, {counted(vcpus, 'vCPU')} on {counted(len(status.pcpus), 'pCPU')}"
    daemon = "no daemon" if status.effective_mode == "look" else f"daemon: {status.effective_mode}"
    yield f"{status.host}  {clock}  {counts}, {daemon}"
    if status.vcpu is not None:
        figures = status.vcpu
        line = f"CPU     average {figures.average_pct:.0f} %, most {figures.max_pct:.0f} %"
        if figures.max_all_pct is not None and figures.max_all_pct > figures.max_pct:
            line += f" ({figures.max_all_pct:.0f} % on a pCPU that may not be used)"
        yield line + f", imbalance {figures.imbalance_pct:.1f} points"
    if status.memory is not None:
        figures_ = status.memory
        host = f"guests {size(figures_.actual_kib)}"
        if status.memory_total_kib is not None and figures_.host_available_kib is not None:
            arc = f" and {size(figures_.host_arc_kib)} of ZFS cache" if figures_.host_arc_kib else ""
            host = f"{size(figures_.host_available_kib)} of {size(status.memory_total_kib)}{arc} available, {host}"
        unknown = f", {figures_.unknown} unknown" if figures_.unknown else ""
        owed = f", {size(figures_.owed_kib)} owed" if figures_.owed_kib else ""
        yield f"Memory  {host}; {figures_.starved} starved, {figures_.wasteful} wasteful{unknown}{owed}"
    if status.trouble:
        yield f"Trouble {status.trouble}"


def _pcpu_lines(pcpus: Sequence[PcpuStatus], height: Optional[int]) -> Iterable[str]:
    """Yield a bar for each of a few pCPUs, a number for each of many."""
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


_PINS = 7
_NUMBERS = " {:>4} {:>6} {:>6} {:>{pins}} {:>11} {:>6} {:>6} {:<8}"
_NUMBERS_WIDTH = len(_NUMBERS.format(*[""] * 8, pins=_PINS))
_NAME = WIDTH - _NUMBERS_WIDTH
# A terminal that is too narrow for all rather loses its last columns than what tells guests apart.
_LEAST_NAME = 8


@dataclass(frozen=True)
class Columns:
    """How wide the columns are that have no width of their own, and by which text each guest is known there."""

    name: int
    pins: int
    names: Mapping[str, str]

    @classmethod
    def of(cls, shown: Sequence[DomainStatus], width: Optional[int] = None) -> Columns:
        longest = max([_NAME, *(len(domain.name) for domain in shown)])
        pins = max([_PINS, *(len(_pins(domain)) for domain in shown)])
        if width is not None:
            longest = max(_LEAST_NAME, min(longest, width - _NUMBERS_WIDTH))
            pins = max(_PINS, min(pins, _PINS + width - _NUMBERS_WIDTH - longest))
        return cls(longest, pins, told_apart((domain.name for domain in shown), longest))

    def titles(self, seen: str = "") -> str:
        """Return what stands above the columns, with which of the guests are *seen* where there is room for it."""
        cells = ("VCPU", "RUN%", "WAIT%", "PINS", "MEM/MAX", "USABLE", "UNUSED", "STATE")
        told = f"GUEST {seen}".strip()
        return (told if len(told) <= self.name else "GUEST").ljust(self.name) + _NUMBERS.format(*cells, pins=self.pins)

    def row(self, domain: DomainStatus) -> str:
        known = any(vcpu.run_pct is not None for vcpu in domain.vcpus)
        return self.names[domain.name].ljust(self.name) + _NUMBERS.format(
            len(domain.vcpus),
            f"{_run(domain):.1f}" if known else "-",
            f"{_wait(domain):.1f}" if known else "-",
            _cut(_pins(domain), self.pins),
            f"{size(domain.actual_kib)}/{size(domain.maximum_kib)}",
            size(domain.usable_kib),
            size(domain.unused_kib),
            "ok, owed" if domain.owed_kib and domain.verdict == "ok" else domain.verdict,
            pins=self.pins,
        )


def told_apart(names: Iterable[str], width: int) -> dict[str, str]:
    """Return a text of at most *width* characters for each name; no two have the same, as far as there is room."""
    texts: dict[str, str] = {}
    taken: set[str] = set()
    for name in sorted(set(names), key=lambda name: (len(name) > width, name)):
        text = name if len(name) <= width else _middle_cut(name, width)
        number = 2
        while text in taken and len(str(number)) < width:
            text = _cut(name, width - len(str(number))) + str(number)
            number += 1
        taken.add(text)
        texts[name] = text
    return texts


def _middle_cut(name: str, width: int) -> str:
    """Return *name* without its middle: guests of one kind differ at their names' ends."""
    tail = (width - 1) // 2
    return name[: width - 1 - tail] + "~" + name[len(name) - tail :]


def _pins(domain: DomainStatus) -> str:
    return format_cpuset(frozenset().union(*(vcpu.pin for vcpu in domain.vcpus)))


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "+"


def size(kib: Optional[int]) -> str:
    """Return *kib* for a narrow column: ``512M``, ``16.5G``; ``-`` if it is not known."""
    if kib is None:
        return "-"
    if kib < 10_000 * 1024:
        return f"{round(kib / 1024)}M"
    return f"{kib / 1024**2:.3g}G" if kib < 1000 * 1024**2 else f"{kib / 1024**3:.3g}T"


# ---------------------------------------------------------------- explain


def story(domain: DomainStatus, status: Status) -> list[str]:
    """Return what a guest wants, what it gets, and why."""
    lines = [f"{domain.name} ({domain.uuid}): {domain.state}, {counted(len(domain.vcpus), 'vCPU')}", ""]
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
        yield "skipped", domain.memory_skip
    if domain.owed_kib:
        yield (
            "is owed",
            f"{size(domain.owed_kib)}, which kvmsched took: it goes back when it is needed, or in calm times",
        )
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
        yield "skipped", domain.vcpu_skip


def _past(moves: Sequence[DomainMove]) -> Iterable[tuple[str, str]]:
    for move in moves:
        when = time.strftime("%H:%M:%S", time.localtime(move.when_s))
        yield when, f"{'' if move.made else 'would make '}{move.what}: {move.reason}"
    if not moves:
        yield "", "none"


# ---------------------------------------------------------------- status


def summary(status: Status, now_s: float) -> list[str]:
    """Return the daemon in a few lines."""
    mode = status.effective_mode
    if status.mode != mode:
        mode += f" (its policy says {status.mode}: {status.mode_reason})"
    policy = f"{status.policy_path} ({status.policy_hash[:12]})" if status.policy_path else "the defaults"
    where, up = status.host or status.uri, _age(now_s - status.started_s)
    lines = [f"kvmsched {status.version} on {where}: pid {status.pid}, up {up}", f"mode    {mode}", f"policy  {policy}"]
    lines += [f"        the last reload was refused: {status.policy_error}"] if status.policy_error else []
    if status.memory is not None and status.memory.owed_kib:
        lines.append(f"owed    {size(status.memory.owed_kib)} to {sum(d.owed_kib > 0 for d in status.domains)} guests")
    if status.memory is not None and status.memory.credit_kib:
        lines.append(f"credit  {size(status.memory.credit_kib)} given to survive, beyond what the host can give")
    lines += [f"trouble {status.trouble}"] if status.trouble else []
    lines += [f"room    {line}" for line in room_lines(status.room)] if status.room else []
    lines += [f"rules   no running domain matches {', '.join(status.idle_rules)}"] if status.idle_rules else []
    for name, one in (("memory", status.memory_pass), ("vCPUs", status.vcpu_pass)):
        lines += [f"{name:<7} {text}" for text in _pass_lines(one, now_s)]
    return lines


def room_lines(
    found: Optional[RoomFigures],
    asked: Optional[RoomRequest] = None,
    until_s: Optional[float] = None,
    acting: bool = True,
) -> list[str]:
    """Return the room that is kept for a guest to start: *found* by the last pass, or only *asked* for as yet.

    *acting*: a daemon is there to make it.
    """
    until = f", kept until {time.strftime('%H:%M:%S', time.localtime(until_s))}" if until_s is not None else ""
    if found is None:
        who = "the daemon makes it in its next passes" if acting else "no daemon acts here to make it"
        return [f"{size(asked.kib if asked else 0)} asked for{until}: {who}"]
    where = f" in cells {format_cpuset(found.cells)}" if found.cells is not None else ""
    there = f"{size(max(0, found.kib - found.lacks_kib))} of {size(found.kib)}{where} is there"
    return [f"{there}{until}", *([f"lacks {size(found.lacks_kib)}: {found.why}"] if found.lacks_kib else [])]


def _pass_lines(one: PassStatus, now_s: float) -> Iterable[str]:
    if not one.when_s:
        yield f"no pass yet{': ' + one.failed if one.failed else ''}"
        return
    skipped = f", {sum(one.skips.values())} skipped" if one.skips else ""
    moves = f", {counted(one.made, 'move')}" + (f" of {one.planned} planned" if one.planned != one.made else "")
    yield f"{_age(now_s - one.when_s)} ago: {one.headline}{moves}{skipped}"
    for text in (one.failed and f"the last pass failed: {one.failed}", *one.failures, *one.warnings):
        if text:
            yield f"  {text}"


def _age(seconds: float) -> str:
    for unit, length_s in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length_s:
            return f"{seconds / length_s:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
