# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The record of a host over time: what was seen and decided, look by look, and how it is read again.

A record is lines of JSON, compressed by gzip or not. A line is a Bundle, which says all and is called a frame here,
or a Step, which says what changed since the line before. What ``kvmsched snapshot`` writes is a record of one look: one
bundle, laid out over many lines for people. docs/schemas/record.schema.json is made by schema().
"""

from __future__ import annotations

import itertools
import json
import operator
import os
import re
import typing
import zlib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, BinaryIO, Callable, Iterable, Iterator, Mapping, Optional, Sequence

from .. import __version__, config, model
from ..model import Balloon, Domain, Host, Move, RoomRequest, Skip, Snapshot, Vcpu, from_json, to_json
from ..policy.memory import MemoryHistory
from ..units import one_line, shown
from . import bundle
from .bundle import Bundle, Decided, History

# A line of a host of 1,000 guests has some MiB; none of this length is ours.
_LONGEST_LINE = 64 * 1024 * 1024
_CHUNK = 1 << 20
# What is read at once of a compressed file: where a byte is damaged, what stands before it in the same piece is lost.
_PIECE = 4096
# Counters and sizes that change with every look. Each is written as the growth of one column over all domains.
HOT = (
    "actual_kib",
    "unused_kib",
    "usable_kib",
    "disk_caches_kib",
    "swap_in_kib",
    "swap_out_kib",
    "major_faults",
    "rss_kib",
    "last_update_s",
    "locked_kib",
    "swapped_kib",
)
_COLD_DOMAIN = operator.attrgetter(*(f.name for f in fields(Domain) if f.name not in ("vcpus", "balloon")))
_COLD_VCPU = operator.attrgetter(*(f.name for f in fields(Vcpu) if f.name not in ("time_ns", "delay_ns")))
_COLD_BALLOON = operator.attrgetter(*(f.name for f in fields(Balloon) if f.name not in HOT))
_HOT_BALLOON = operator.attrgetter(*HOT)
_OF_HOST = tuple(f.name for f in fields(Host) if f.name not in ("busy_ns", "bound_ns", "topology"))


@dataclass(frozen=True)
class Step:
    """What changed since the look before. Numbers are growth, in microseconds and in Balloon's units.

    ``us`` and ``wall_us`` are of the two clocks, ``busy_us`` and ``bound_us`` of the pCPUs by id. ``ran_us`` and
    ``waited_us`` are of all vCPUs in their order. ``memory`` is of the balloons, a column for each field that changed.
    A column that is left out is all zeros. ``host`` are fields of Host that are others now. ``domains`` are those
    that are new, or changed in another way, as a whole; their places in the columns are left out. ``uuids`` is the
    new order of all domains, where that changed, ``skips`` those of the snapshot. ``rebooted`` are the domains that
    libvirt said were reset since the look before, by UUID, with the time when it was heard.
    """

    us: int
    wall_us: int
    busy_us: tuple[int, ...] = ()
    bound_us: tuple[int, ...] = ()
    ran_us: tuple[int, ...] = ()
    waited_us: tuple[int, ...] = ()
    memory: dict[str, tuple[int, ...]] = field(default_factory=dict)
    host: dict[str, Any] = field(default_factory=dict)
    domains: tuple[Domain, ...] = ()
    uuids: Optional[tuple[str, ...]] = None
    skips: Optional[tuple[Skip, ...]] = None
    decided: dict[str, Decided] = field(default_factory=dict)
    rebooted: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Look:
    """One look of a record, as it is read: ``frame`` is the last one, ``begins``: it is this look's own.

    ``rebooted`` is what its passes were told beside what those before them learnt: see Step. ``passed`` are the looks
    since the one before at which something happened, and which who reads in steps passes over.
    """

    snapshot: Snapshot
    frame: Bundle
    begins: bool
    decided: Mapping[str, Decided]
    rebooted: Mapping[str, float] = field(default_factory=dict)
    passed: tuple[Look, ...] = ()

    @property
    def earlier(self) -> tuple[Snapshot, ...]:
        """What was seen before it, and is no other look of the record."""
        return self.frame.snapshots[:-1] if self.begins and self.frame.last_s is None else ()


class RecordError(ValueError):
    """A record that can't be understood; the text is one line."""


# ---------------------------------------------------------------- writing


def step_between(before: Snapshot, now: Snapshot, decided: Mapping[str, Decided]) -> Optional[Step]:
    """The step from one look to the next; None where only a frame can tell (another host, a clock that went back)."""
    us = _us(now.monotonic_s) - _us(before.monotonic_s)
    host = _host_step(before.host, now.host)
    if us <= 0 or host is None:
        return None
    known = {domain.uuid: domain for domain in before.domains}
    anew: list[Domain] = []
    pairs: list[tuple[Domain, Domain]] = []
    for domain in now.domains:
        old = known.get(domain.uuid)
        if old is not None and _same(old, domain):
            pairs.append((old, domain))
        else:
            anew.append(domain)
    order = tuple(domain.uuid for domain in now.domains)
    vcpus = [(a, b) for old, domain in pairs for a, b in zip(old.vcpus, domain.vcpus)]
    return Step(
        us=us,
        wall_us=_us(now.wall_s) - _us(before.wall_s),
        busy_us=_grown(before.host.busy_ns, now.host.busy_ns),
        bound_us=_grown(before.host.bound_ns or {}, now.host.bound_ns or {}),
        ran_us=_column([(b.time_ns or 0) // 1000 - (a.time_ns or 0) // 1000 for a, b in vcpus]),
        waited_us=_column([(b.delay_ns or 0) // 1000 - (a.delay_ns or 0) // 1000 for a, b in vcpus]),
        memory=_memory_step(pairs),
        host=host,
        domains=tuple(anew),
        uuids=order if order != tuple(known) else None,
        skips=now.skips if now.skips != before.skips else None,
        decided=dict(decided),
    )


def _us(seconds: float) -> int:
    return round(seconds * 1e6)


def _column(values: list[int]) -> tuple[int, ...]:
    return tuple(values) if any(values) else ()


def _known(one: Any) -> tuple[bool, ...]:
    return tuple(value is None for value in one)


def _same(old: Domain, now: Domain) -> bool:
    """Whether nothing but the hot counters differs."""
    if _COLD_DOMAIN(old) != _COLD_DOMAIN(now) or len(old.vcpus) != len(now.vcpus):
        return False
    for a, b in zip(old.vcpus, now.vcpus):
        if (a.time_ns is None) != (b.time_ns is None) or (a.delay_ns is None) != (b.delay_ns is None):
            return False
        if _COLD_VCPU(a) != _COLD_VCPU(b):
            return False
    one, other = old.balloon, now.balloon
    if one is None or other is None:
        return one is other
    return _known(_HOT_BALLOON(one)) == _known(_HOT_BALLOON(other)) and bool(_COLD_BALLOON(one) == _COLD_BALLOON(other))


def _memory_step(pairs: Sequence[tuple[Domain, Domain]]) -> dict[str, tuple[int, ...]]:
    balloons = [(_HOT_BALLOON(a.balloon), _HOT_BALLOON(b.balloon)) for a, b in pairs if a.balloon and b.balloon]
    rows = [[(new or 0) - (old or 0) for old, new in zip(*pair)] for pair in balloons]
    return {name: column for name, *values in zip(HOT, *rows) if (column := _column(values))}


def _host_step(before: Host, now: Host) -> Optional[dict[str, Any]]:
    """The fields that changed, but for the times; None where the columns of the times are others."""
    if before.topology.pcpus != now.topology.pcpus or before.busy_ns.keys() != now.busy_ns.keys():
        return None
    if (before.bound_ns is None) != (now.bound_ns is None):
        return None
    if before.bound_ns is not None and now.bound_ns is not None and before.bound_ns.keys() != now.bound_ns.keys():
        return None
    found = {name: to_json(getattr(now, name)) for name in _OF_HOST if getattr(before, name) != getattr(now, name)}
    if before.topology != now.topology:
        if replace(before.topology, cells=now.topology.cells) != now.topology:
            return None
        found["cells"] = to_json(now.topology.cells)
    return found


def _grown(before: Mapping[int, int], now: Mapping[int, int]) -> tuple[int, ...]:
    return _column([ns // 1000 - before[pcpu] // 1000 for pcpu, ns in sorted(now.items())])


def line_of(one: Any) -> str:
    """A frame or a step as one line; what is as it would be without saying is left out of a step."""
    data = to_json(one)
    if isinstance(one, Step):
        # No skips any more is news, too.
        empty: dict[str, tuple[Any, ...]] = {
            key: ([], {}, None) if key not in ("uuids", "skips") else (None,) for key in data
        }
        data = {key: value for key, value in data.items() if value not in empty[key]}
    for decided in data.get("decided", {}).values():
        for key in [key for key, value in decided.items() if not value and (key != "made" or value is None)]:
            del decided[key]
    return json.dumps(data, separators=(",", ":"), ensure_ascii=True)


# ---------------------------------------------------------------- reading


def read(paths: Iterable[str], lost: Callable[[str], None] = lambda _line: None) -> Iterator[Look]:
    """The looks of one record or of several in turn: files, or directories of them, as the daemon leaves behind.

    *lost* is told of what can't be read at a file's end: whoever was killed left it half written. RecordError, OSError.
    """
    for path in paths:
        for file in _files(Path(path)):
            try:
                yield from looks(file, lambda line, file=file: lost(f"{file}: {line}"))  # type: ignore[misc]
            except RecordError as error:
                raise RecordError(f"{file}: {error}") from None


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.iterdir() if file.name.endswith(SUFFIX) and file.is_file())
    if not found:
        raise RecordError(f"{path}: got a directory without records, expected files named *{SUFFIX}")
    return found


SUFFIX = ".kvmrec.gz"


@dataclass(frozen=True)
class Span:
    """When a record begins and ends, by the wall clock, and how many looks it has."""

    begin_s: float
    end_s: float
    looks: int


_STEP_TIME = re.compile(rb'"wall_us":(-?[0-9]{1,18})[,}]')


def span(paths: Iterable[str]) -> Span:
    """The span of these records, without reading more of each line than that takes. RecordError, OSError."""
    begin_s: Optional[float] = None
    wall_us, count = 0, 0
    for file in (file for path in paths for file in _files(Path(path))):
        with open(file, "rb") as opened:
            lines = _lines(opened, lambda _line: None)
            first = next(lines, b"")
            if not _is_frame(first):
                for look in read([str(file)]):
                    for now in (*look.earlier, look.snapshot):
                        wall_us, count = _us(now.wall_s), count + 1
                        begin_s = now.wall_s if begin_s is None else begin_s
                continue
            for line in itertools.chain((first,), lines):
                found = None if _is_frame(line) else _STEP_TIME.search(line)
                if found is not None:
                    wall_us, count = wall_us + int(found[1]), count + 1
                elif _is_frame(line):
                    try:
                        times_us = _times_us(_object(line))
                    except (ValueError, TypeError, KeyError, IndexError, OverflowError):
                        break
                    begin_s = times_us[0] / 1e6 if begin_s is None else begin_s
                    wall_us, count = times_us[-1], count + len(times_us)
    whole = Span(begin_s or 0.0, wall_us / 1e6, count)
    if not all(0 <= when_s < bundle.LATEST_S for when_s in (whole.begin_s, whole.end_s)):
        raise RecordError(f"got clocks from {whole.begin_s:.0f} to {whole.end_s:.0f}, expected seconds since 1970")
    return whole


def check_order(paths: Sequence[str]) -> None:
    """RecordError where a record is given twice, or begins before the one ends that is named before it. OSError."""
    for number, path in enumerate(paths[1:], 1):
        if any(os.path.samefile(path, other) for other in paths[:number]):
            raise RecordError(f"got {path} twice, expected each record once")
        before, now = span([paths[number - 1]]), span([path])
        if before.looks and now.looks and now.begin_s < before.end_s:
            raise RecordError(
                f"got {path} after {paths[number - 1]}, which ends after it begins: expected the older first"
            )


def _times_us(frame: Mapping[str, Any]) -> list[int]:
    """When there were looks, by the wall clock: the frame's own, and those before it that are no others' (earlier)."""
    snapshots = frame["snapshots"] if frame["last_s"] is None else frame["snapshots"][-1:]
    return [_us(float(snapshot["wall_s"])) for snapshot in snapshots]


def apart(looks_: Iterable[Look]) -> Iterator[Look]:
    """The same looks, and those before them that are no others': each on its own, the history is of the first.

    RecordError where they are of two hosts: no host had what all of them would come to.
    """
    host: Optional[Host] = None
    for look in looks_:
        host, now = host or look.snapshot.host, look.snapshot.host
        if now.uuid != host.uuid:
            names = " and ".join(f"{one.name} ({one.uuid})" for one in (host, now))
            raise RecordError(f"got looks at two hosts, {one_line(names)}, expected one")
        for number, snapshot in enumerate(look.earlier):
            yield Look(snapshot, look.frame, number == 0, {})
        yield replace(look, begins=False) if look.earlier else look


def one_look(looks_: Iterable[Look]) -> Optional[Bundle]:
    """The bundle of a record of one look that no daemon wrote; None if there is more. RecordError, OSError."""
    first, second = itertools.islice(itertools.chain(looks_, (None, None)), 2)
    if first is None:
        raise RecordError("got no look, expected at least one")
    return first.frame if second is None and first.frame.last_s is None else None


def looks(path: Path, lost: Callable[[str], None] = lambda _line: None) -> Iterator[Look]:
    """The looks of one file; see read()."""
    with open(path, "rb") as file:
        yield from looks_in(file, lost)


def looks_in(file: BinaryIO, lost: Callable[[str], None] = lambda _line: None) -> Iterator[Look]:
    """The looks of what is read from *file*; see read()."""
    damaged: list[str] = []

    def lost_of_it(line: str) -> None:
        damaged.append(line)
        lost(line)

    lines = _lines(file, lost_of_it)
    first = next(lines, None)
    if first is None:
        found = "nothing that can be read" if damaged else "an empty file"
        raise RecordError(f"got {found}, expected a record or a bundle")
    if _is_frame(first):
        yield from _played(first, lines, lost)
        return
    try:
        frame = bundle.decoded(model.parse_json(_joined(first, lines)), lost)
    except ValueError as error:
        raise RecordError(str(error)) from None
    yield _first(frame)


def _joined(first: bytes, lines: Iterable[bytes]) -> bytes:
    whole, size = [first], len(first)
    for line in lines:
        whole.append(line)
        size += len(line)
        if size > _LONGEST_LINE:
            raise RecordError(f"a bundle of more than {_LONGEST_LINE} bytes, which no host has")
    return b"\n".join(whole)


def _is_frame(line: bytes) -> bool:
    """Whether *line* is a bundle that others follow; one that somebody wrote by hand may stand on one line, too."""
    return line.startswith(b'{"snapshots":') and b'"policy_hash":' in line


def _first(frame: Bundle) -> Look:
    return Look(frame.snapshots[-1], frame, True, frame.decided)


def _lines(file: BinaryIO, lost: Callable[[str], None]) -> Iterator[bytes]:
    """The whole lines of a file that is compressed or not; a bundle's last line may have no end."""
    rest = b""
    for part in _unpacked(file, lost):
        rest += part
        *whole, rest = rest.split(b"\n")
        if len(rest) > _LONGEST_LINE:
            raise RecordError(f"a line of more than {_LONGEST_LINE} bytes, which no record has")
        yield from whole
    if rest.strip():
        yield rest


def _unpacked(file: BinaryIO, lost: Callable[[str], None]) -> Iterator[bytes]:
    head = file.read(_PIECE)
    if not head.startswith(b"\x1f\x8b"):
        while head:
            yield head
            head = file.read(_CHUNK)
        return
    unpack = zlib.decompressobj(wbits=31)
    while head:
        try:
            yield unpack.decompress(head, _CHUNK)
        except zlib.error as error:
            lost(f"the rest can't be read ({error})")
            return
        head = unpack.unconsumed_tail or unpack.unused_data
        if unpack.eof and head:
            unpack = zlib.decompressobj(wbits=31)
        if len(head) < _PIECE:
            head += file.read(_PIECE)
    if not unpack.eof:
        yield unpack.flush()


def _played(first: bytes, lines: Iterator[bytes], lost: Callable[[str], None]) -> Iterator[Look]:
    frame: Optional[Bundle] = None
    now: Optional[Snapshot] = None
    ahead = next(lines, None)
    line: Optional[bytes] = first
    number = 0
    while line is not None:
        number += 1
        try:
            data = _object(line)
        except ValueError as error:
            # The last line may be half written.
            if ahead is None:
                lost(f"line {number} is not whole, it was left out")
                return
            raise RecordError(f"line {number}: {one_line(error)}") from None
        try:
            if "snapshots" in data:
                frame = _frame_of(data, lost)
                now = frame.snapshots[-1]
                yield _first(frame)
            elif frame is None or now is None:
                raise ValueError("a step without a frame before")
            else:
                now = after(now, data)
                told = model.decoded(typing.Dict[str, float], data.get("rebooted", {}), "rebooted")
                yield Look(now, frame, False, _decided(data.get("decided", {})), told)
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
            raise RecordError(f"line {number}: {one_line(error) or type(error).__name__}") from None
        line, ahead = ahead, next(lines, None)


def _object(line: bytes) -> dict[str, Any]:
    data = model.parse_json(line)
    if not isinstance(data, dict):
        raise ValueError(f"got {type(data).__name__}, expected an object")
    return data


def _frame_of(data: dict[str, Any], lost: Callable[[str], None]) -> Bundle:
    if "format" not in data:
        raise ValueError("format: missing")
    return bundle.decoded(data, lost)


def _decided(data: Mapping[str, Any]) -> dict[str, Decided]:
    found: dict[str, Decided] = model.decoded(typing.Dict[str, Decided], data, "decided")
    if not found.keys() <= {"memory", "vcpu"}:
        raise ValueError(f"decided: got {shown(list(found))}, expected memory and vcpu")
    return found


# ---------------------------------------------------------------- one step further

# Frozen dataclasses are slow to make, and a day has millions: the values that stay are copied as they are.


def _changed(one: Any, **values: Any) -> Any:
    new = object.__new__(type(one))
    vars(new).update(vars(one))
    vars(new).update(values)
    return new


# No look comes so long after the one before, and no clock is set so far.
_MOST_US = 2**50


def _whole(value: int) -> int:
    """A counter or a size after it grew; ValueError for what nothing is counted in."""
    if not 0 <= value < 2**63:
        raise ValueError(f"got a counter that comes to {shown(value)}")
    return value


class _Column:
    """The numbers of one column, taken one by one; zeros, if it was left out."""

    def __init__(self, values: Any) -> None:
        if not isinstance(values, list) or not {type(value) for value in values} <= {int}:
            raise ValueError("got a column that is no list of whole numbers")
        self._values, self._next = values, 0

    def take(self, count: int) -> list[int]:
        if not self._values:
            return [0] * count
        found = self._values[self._next : self._next + count]
        if len(found) < count:
            raise ValueError("a column is too short")
        self._next += count
        return found

    def end(self) -> None:
        if self._next < len(self._values):
            raise ValueError("a column is too long")


def after(now: Snapshot, data: Mapping[str, Any]) -> Snapshot:
    """The look that the step *data* leads to from *now*."""
    _check_keys(data)
    wrong = bundle.out_of_range([data.get("domains", []), data.get("host", {}), data.get("skips")], "step")
    if wrong:
        raise ValueError(wrong)
    anew = {domain.uuid: domain for domain in (from_json(Domain, one) for one in data.get("domains", ()))}
    for domain in anew.values():
        if len({vcpu.id for vcpu in domain.vcpus}) < len(domain.vcpus):
            raise ValueError("domains: the id of a vCPU stands there twice")
    order = data.get("uuids")
    before = {domain.uuid: domain for domain in now.domains}
    uuids: Sequence[str] = tuple(before) if order is None else order
    if len(set(uuids)) < len(uuids) or not anew.keys() <= set(uuids):
        raise ValueError("uuids: one stands there twice, or is missing")
    ran, waited = _Column(data.get("ran_us", [])), _Column(data.get("waited_us", []))
    columns = {name: _Column(values) for name, values in data.get("memory", {}).items()}
    if not columns.keys() <= set(HOT):
        raise ValueError(f"memory: unknown column {', '.join(sorted(set(columns) - set(HOT)))}")
    domains = []
    for uuid in uuids:
        if uuid in anew:
            domains.append(anew[uuid])
        else:
            domain = before[uuid]
            count = len(domain.vcpus)
            domains.append(_grown_domain(domain, ran.take(count), waited.take(count), columns))
    for column in (ran, waited, *columns.values()):
        column.end()
    skips = now.skips if data.get("skips") is None else tuple(from_json(Skip, one) for one in data["skips"])
    wall_us = _us(now.wall_s) + data["wall_us"]
    if not 0 <= wall_us < bundle.LATEST_S * 1_000_000:
        raise ValueError(f"wall_us: got a clock that comes to {shown(wall_us)}")
    return Snapshot(
        monotonic_s=(_us(now.monotonic_s) + data["us"]) / 1e6,
        wall_s=wall_us / 1e6,
        host=_grown_host(now.host, data),
        domains=tuple(domains),
        skips=skips,
    )


_STEP_KEYS = frozenset(f.name for f in fields(Step))


def _check_keys(data: Mapping[str, Any]) -> None:
    unknown = sorted(set(data) - _STEP_KEYS)
    if unknown or not {"us", "wall_us"} <= set(data):
        raise ValueError(f"got a step with the keys {', '.join(map(str, data))[:100]}, expected {sorted(_STEP_KEYS)}")
    us, wall_us = data["us"], data["wall_us"]
    if {type(us), type(wall_us)} != {int} or not 0 < us < _MOST_US or not -_MOST_US < wall_us < _MOST_US:
        raise ValueError(f"us: got {shown(us)}, {shown(wall_us)}, expected whole numbers: the time between two looks")


def _grown_domain(domain: Domain, ran: list[int], waited: list[int], columns: Mapping[str, _Column]) -> Domain:
    changes: dict[str, Any] = {}
    if any(ran) or any(waited):
        changes["vcpus"] = tuple(
            _changed(
                vcpu,
                time_ns=None if vcpu.time_ns is None else _whole(vcpu.time_ns + 1000 * more),
                delay_ns=None if vcpu.delay_ns is None else _whole(vcpu.delay_ns + 1000 * longer),
            )
            if more or longer
            else vcpu
            for vcpu, more, longer in zip(domain.vcpus, ran, waited)
        )
    if domain.balloon is not None:
        grown = {name: column.take(1)[0] for name, column in columns.items()}
        values = vars(domain.balloon)
        fresh = {name: _whole((values[name] or 0) + more) for name, more in grown.items() if more}
        if fresh:
            changes["balloon"] = _changed(domain.balloon, **fresh)
    return _changed(domain, **changes) if changes else domain


def _grown_host(host: Host, data: Mapping[str, Any]) -> Host:
    busy, bound = _Column(data.get("busy_us", [])), _Column(data.get("bound_us", []))
    changes: dict[str, Any] = {
        "busy_ns": _grown_times(host.busy_ns, busy),
        "bound_ns": None if host.bound_ns is None else _grown_times(host.bound_ns, bound),
    }
    told = data.get("host", {})
    cells = told.get("cells")
    if cells is not None:
        decoded = tuple(from_json(model.Cell, cell) for cell in cells)
        changes["topology"] = _changed(host.topology, cells=decoded)
    hints = typing.get_type_hints(Host)
    for name, value in told.items():
        if name in _OF_HOST:
            changes[name] = model.decoded(hints[name], value, name)
        elif name != "cells":
            raise ValueError(f"host.{name}: unknown")
    return typing.cast(Host, _changed(host, **changes))


def _grown_times(times: Mapping[int, int], column: _Column) -> dict[int, int]:
    return {pcpu: _whole(times[pcpu] + 1000 * more) for pcpu, more in zip(sorted(times), column.take(len(times)))}


# ---------------------------------------------------------------- who writes


@dataclass(frozen=True)
class Context:
    """What holds for many looks: another one begins a new frame."""

    policy: Mapping[str, Any] = field(default_factory=dict)
    policy_hash: str = ""
    mode: str = ""
    room: Optional[RoomRequest] = None
    acted: bool = False


@dataclass(frozen=True)
class Past:
    """What a resource's pass was handed: its history, and the snapshot of its pass before."""

    history: Any = None
    before: Optional[Snapshot] = None


@dataclass(frozen=True)
class Entry:
    """One look as it is written.

    ``pasts`` are as its passes were handed them, ``learnt`` the histories that came of it. What else than passes
    changed a history is written, too.
    """

    snapshot: Snapshot
    context: Context = Context()
    pasts: Mapping[str, Past] = field(default_factory=dict)
    decided: Mapping[str, Decided] = field(default_factory=dict)
    learnt: Mapping[str, Any] = field(default_factory=dict)


class Encoder:
    """Turns looks into the lines of a record."""

    # A reader that begins in the middle, or finds a part damaged, goes on from the next frame.
    FRAME_EVERY_S = 3600.0

    def __init__(self) -> None:
        self._before: Optional[Snapshot] = None
        self._context = Context()
        self._frame_s = 0.0
        self._reasons: dict[str, dict[tuple[Any, ...], str]] = {}
        self._learnt: dict[str, Any] = {}

    def line(self, entry: Entry) -> str:
        """The line of one look."""
        now, decided = entry.snapshot, self._terse(entry.decided)
        due = now.monotonic_s - self._frame_s >= self.FRAME_EVERY_S or entry.context != self._context
        rebooted = self._rebooted(entry.pasts)
        self._learnt.update(entry.learnt)
        before, self._before = self._before, now
        if before is not None and not due and rebooted is not None:
            step = step_between(before, now, decided)
            if step is not None:
                return line_of(replace(step, rebooted=rebooted))
        self._context, self._frame_s, self._reasons = entry.context, now.monotonic_s, {}
        return line_of(_frame(replace(entry, decided=self._terse(entry.decided))))

    def _rebooted(self, pasts: Mapping[str, Past]) -> Optional[dict[str, float]]:
        """The reboots that tell the histories of *pasts* from what was learnt; None where something else does, too."""
        told: dict[str, float] = {}
        for name, past in pasts.items():
            known = self._learnt.get(name)
            if known is None or known is past.history:
                continue
            if not isinstance(known, MemoryHistory) or not isinstance(past.history, MemoryHistory):
                return None
            for uuid, seen in past.history.domains.items():
                if uuid in known.domains and known.domains[uuid].booted_s != seen.booted_s:
                    told[uuid] = seen.booted_s
                    known = known.rebooted(uuid, seen.booted_s)
            if known != past.history:
                return None
        return told

    def _terse(self, decided: Mapping[str, Decided]) -> dict[str, Decided]:
        """The same without the reasons that the pass before gave, and without saying twice what was made."""
        found = {}
        for resource, one in decided.items():
            known = self._reasons.get(resource, {})
            self._reasons[resource] = {_what(move): move.reason for move in one.moves}
            made = None if one.made == one.moves else one.made
            moves = tuple(replace(move, reason="") if _what(move) in known else move for move in one.moves)
            found[resource] = replace(one, moves=moves, made=made)
        return found


def _frame(entry: Entry) -> Bundle:
    now, context, pasts = entry.snapshot, entry.context, entry.pasts
    befores = {past.before.monotonic_s: past.before for past in pasts.values() if past.before is not None}
    befores.pop(now.monotonic_s, None)
    return Bundle(
        snapshots=(*(befores[when_s] for when_s in sorted(befores)), now),
        policy=dict(context.policy),
        history=History(**{name: past.history for name, past in pasts.items()}),
        kvmsched=__version__,
        room=context.room,
        last_s={name: past.before.monotonic_s for name, past in pasts.items() if past.before is not None},
        decided=dict(entry.decided),
        mode=context.mode,
        policy_hash=context.policy_hash,
        acted=context.acted,
    )


def _what(move: Move) -> tuple[Any, ...]:
    """What *move* changes, whatever its numbers are now."""
    after_ = next(getattr(move, name) for name in ("after", "after_kib", "after_s") if hasattr(move, name))
    return move.uuid, getattr(move, "thread", ""), getattr(move, "id", 0), after_


def lines_of(looks_: Iterable[Look]) -> Iterator[str]:
    """The lines of a record of these looks."""
    before: Optional[Snapshot] = None
    for look in looks_:
        frame, now, decided = look.frame, look.snapshot, look.decided
        step = None if look.begins or before is None else step_between(before, now, decided)
        if step is not None:
            yield line_of(replace(step, rebooted=dict(look.rebooted)))
        elif not look.begins and before is not None:
            raise RecordError("a look does not follow from the one before")
        else:
            yield line_of(replace(frame, decided=dict(decided)))
        before = now


# ---------------------------------------------------------------- names out


def anonymised(read_again: Callable[[], Iterable[Look]]) -> Iterator[str]:
    """The lines of the same record without any name; it is read twice. See bundle.anonymised().

    ConfigError for a policy that is none: what names something in there is not known.
    """
    names = _names_in(read_again())
    yield from lines_of(_renamed(read_again(), names))


def _renamed(looks_: Iterable[Look], names: bundle.Anonymiser) -> Iterator[Look]:
    frame: Optional[Bundle] = None
    for look in looks_:
        if look.begins or frame is None:
            config.load_daemon(look.frame.policy)
            frame = names.renamed(look.frame)
        decided = {name: names.decided(one) for name, one in look.decided.items()}
        rebooted = {names.uuids[uuid]: when_s for uuid, when_s in look.rebooted.items() if uuid in names.uuids}
        yield Look(names.snapshot(look.snapshot), frame, look.begins, decided, rebooted)


def _names_in(looks_: Iterable[Look]) -> bundle.Anonymiser:
    """All that is named anywhere in a record, as if it were in one snapshot."""
    domains: dict[tuple[str, str, str], Domain] = {}
    skips: dict[tuple[str, str], Skip] = {}
    rooms: dict[str, model.Room] = {}
    uuids: set[str] = set()
    hosts: dict[tuple[str, str], Snapshot] = {}
    for look in looks_:
        for snapshot in (*look.frame.snapshots, look.snapshot) if look.begins else (look.snapshot,):
            hosts[snapshot.host.uuid, snapshot.host.name] = snapshot
            domains.update({(d.uuid, d.name, d.record.host_uuid if d.record else ""): d for d in snapshot.domains})
            skips.update({(s.uuid, s.domain): s for s in snapshot.skips})
            rooms.update({room.name: room for room in snapshot.host.rooms})
        if look.begins:
            history = look.frame.history
            uuids |= {*(history.memory.domains if history.memory else ())}
            uuids |= {*(bundle.uuids_in(history.vcpu) if history.vcpu else ())}
    if not hosts:
        raise RecordError("got no look, expected at least one")
    # Records of several hosts may be read as one, and a host may be given another name.
    first, *others = hosts.values()
    whole = replace(
        first,
        host=replace(first.host, rooms=tuple(rooms.values())),
        domains=tuple(domains.values()),
        skips=tuple(skips.values()),
    )
    return bundle.Anonymiser(Bundle((whole, *(replace(one, domains=(), skips=()) for one in others))), uuids)


# ---------------------------------------------------------------- the schema


def schema() -> dict[str, Any]:
    """The JSON Schema of one line of a record, made of the dataclasses that it consists of."""
    return bundle.line_schema("kvmsched record: one line, or all of what `kvmsched snapshot` writes", Step)
