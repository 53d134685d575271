# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Public shapes of traces as looks at a host that has none of them yet: capacity is planned without a host.

PlanetLab's: a folder with a file for each guest, a CPU percent a line, one every five minutes. And CSV, with a head:
time (seconds), guest, cpu (percent of one pCPU), memory_used and cache (MiB); and, if known, memory (MiB, what
it has) and vcpus.
"""

from __future__ import annotations

import csv
import math
import uuid
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterable, Iterator, Mapping, Optional, Sequence

from ..model import Balloon, Cell, Domain, Host, HostMemory, Pcpu, Snapshot, Topology, Vcpu
from ..units import counted, one_line
from .bundle import Bundle
from .record import Look, RecordError, Span

_PLANETLAB_S = 300.0
_EPOCH_S = 1_000_000_000.0
# Guests have been up for a day, so that nobody is booting.
_UP_S = 86400.0
# Traces are data that others made: more is a slip.
_MOST_ROWS = 20_000_000
_QEMU_KIB = 64 * 1024
_PERIOD_S = 5
# More than any hypervisor gives a guest.
_MOST_VCPUS = 4096
NEEDED = ("time", "guest", "cpu")


@dataclass
class _Guest:
    """One guest's rows: (time, CPU as a share of a pCPU, memory used and cache in MiB)."""

    rows: list[tuple[float, float, float, float]] = field(default_factory=list)
    memory_mib: float = 0.0
    vcpus: int = 0


def is_trace(path: str) -> bool:
    """Whether *path* is a trace, and no record."""
    here = Path(path)
    if not here.is_dir():
        return here.suffix.lower() == ".csv"
    files = [file for file in here.iterdir() if file.is_file()]
    return bool(files) and not any(file.name.endswith(".gz") for file in files)


class Trace:
    """A trace, read as a whole, on a host of so many pCPUs and so much memory."""

    def __init__(self, path: str, pcpus: int, memory_kib: Optional[int]) -> None:
        here = Path(path)
        self._guests = _planetlab(here) if here.is_dir() else _csv(here)
        if not self._guests:
            raise RecordError(f"{path}: got no guest, expected some")
        for guest in self._guests.values():
            guest.rows.sort()
            most = max(cpu for _time, cpu, _used, _cache in guest.rows)
            guest.vcpus = guest.vcpus or max(1, math.ceil(most - 1e-9))
            if guest.vcpus > _MOST_VCPUS:
                raise RecordError(f"{path}: got a guest of {guest.vcpus} vCPUs, expected {_MOST_VCPUS} at most")
            guest.memory_mib = guest.memory_mib or _power(max(used + cache for _t, _c, used, cache in guest.rows))
        self._times = sorted({row[0] for guest in self._guests.values() for row in guest.rows})
        if len(self._times) < 2:
            raise RecordError(f"{path}: got one instant, expected several")
        whole_mib = sum(guest.memory_mib for guest in self._guests.values())
        self._pcpus, self._memory_kib = pcpus, memory_kib or int((whole_mib * 1.1 + 2048) * 1024)

    def span(self) -> Span:
        return Span(_EPOCH_S + self._times[0], _EPOCH_S + self._times[-1], len(self._times))

    def looks(self) -> Iterator[Look]:
        """Each guest runs what the trace says, for a host that serves all would have recorded that."""
        online = frozenset(range(self._pcpus))
        pcpus = tuple(Pcpu(n, core=n, siblings=frozenset({n}), llc=online) for n in range(self._pcpus))
        topology = Topology(pcpus, (Cell(0, online),))
        at = dict.fromkeys(self._guests, 0)
        ran_ns: dict[str, float] = defaultdict(float)
        before_s = self._times[0]
        frame: Optional[Bundle] = None
        for time_s in self._times:
            domains = []
            for number, (name, guest) in enumerate(sorted(self._guests.items()), 1):
                while at[name] + 1 < len(guest.rows) and guest.rows[at[name] + 1][0] <= time_s:
                    at[name] += 1
                row = guest.rows[at[name]]
                ran_ns[name] += 1e9 * (time_s - before_s) * row[1]
                if row[0] <= time_s <= guest.rows[-1][0]:
                    domains.append(_domain(name, number, guest, row, ran_ns[name], online, time_s))
            before_s = time_s
            resident_kib = sum(d.balloon.rss_kib or 0 for d in domains if d.balloon)
            memory = HostMemory(self._memory_kib, max(0, self._memory_kib - resident_kib))
            host = Host("trace", "trace", "trace:///", "trace", topology, memory=memory)
            now = Snapshot(_UP_S + time_s - self._times[0], _EPOCH_S + time_s, host, tuple(domains))
            begins = frame is None
            frame = frame or Bundle((now,), last_s={})
            yield Look(now, frame, begins, {})


def _domain(
    name: str,
    number: int,
    guest: _Guest,
    row: tuple[float, float, float, float],
    ran_ns: float,
    online: frozenset[int],
    time_s: float,
) -> Domain:
    each_ns = int(ran_ns / guest.vcpus) // 1000 * 1000
    vcpus = tuple(Vcpu(n, online, each_ns, 0, online) for n in range(guest.vcpus))
    size_kib, used_kib, cache_kib = (int(mib * 1024) for mib in (guest.memory_mib, row[2], row[3]))
    balloon = None
    if guest.memory_mib:
        balloon = Balloon(
            size_kib,
            size_kib,
            unused_kib=max(0, size_kib - used_kib - cache_kib),
            usable_kib=max(0, size_kib - used_kib),
            disk_caches_kib=cache_kib,
            swap_in_kib=0,
            swap_out_kib=0,
            major_faults=0,
            rss_kib=size_kib + _QEMU_KIB,
            last_update_s=int(_EPOCH_S + time_s),
            period_s=_PERIOD_S,
        )
    uuid_ = str(uuid.uuid5(uuid.NAMESPACE_DNS, name))
    return Domain(uuid_, name, number, started_s=_EPOCH_S - _UP_S, vcpus=vcpus, balloon=balloon)


def _power(mib: float) -> float:
    """The next power of two: sizes that people give guests."""
    return float(2 ** math.ceil(math.log2(mib))) if mib > 0 else 0.0


def _planetlab(folder: Path) -> dict[str, _Guest]:
    found = {}
    for file in sorted(folder.iterdir()):
        if not file.is_file():
            continue
        values = file.read_text(encoding="ascii", errors="replace").split()
        rows = ((number * _PLANETLAB_S, value) for number, value in enumerate(values))
        try:
            found[file.name] = _Guest([(when_s, _number(value) / 100, 0.0, 0.0) for when_s, value in rows])
        except ValueError as error:
            raise RecordError(f"{file}: {error}") from None
    return {name: guest for name, guest in found.items() if guest.rows}


def _csv(path: Path) -> dict[str, _Guest]:
    found: dict[str, _Guest] = defaultdict(_Guest)
    # Spreadsheets begin a file with a mark of its encoding.
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
        reader = csv.reader(file)
        try:
            head = _head(path, next(reader, []))
            for values in _bounded(reader):
                _add(found, _row(head, values))
        except RecordError:
            raise
        except (ValueError, csv.Error) as error:
            raise RecordError(f"{path}: line {reader.line_num}: {error}") from None
    return dict(found)


_HEAD = "time,guest,cpu,memory_used,cache,memory,vcpus"


def _head(path: Path, names: Sequence[str]) -> list[str]:
    """Return the names of the columns, however a spreadsheet spells them."""
    head = [name.strip().lower() for name in names]
    for name in NEEDED:
        if name not in head:
            came = one_line(",".join(names), 100) or "nothing"
            raise RecordError(f"{path}: missing the column {name}: got {came}, expected a head such as {_HEAD}")
    for name in filter(None, head):
        if head.count(name) > 1:
            raise RecordError(f"{path}: got the column {one_line(name, 40)} twice, expected it once")
    return head


def _bounded(rows: Iterable[list[str]]) -> Iterator[list[str]]:
    """Yield the rows that are not blank."""
    for number, row in enumerate(filter(None, rows)):
        if number >= _MOST_ROWS:
            raise RecordError(f"got more than {_MOST_ROWS} rows")
        yield row


def _row(head: Sequence[str], values: Sequence[str]) -> dict[str, str]:
    if len(values) != len(head):
        raise ValueError(f"got {counted(len(values), 'field')}, expected {len(head)} as in the head")
    return dict(zip(head, values))


def _add(found: dict[str, _Guest], row: dict[str, str]) -> None:
    name = row["guest"].strip()
    if not name:
        raise ValueError("got no guest, expected a name")
    guest = found[name]
    used, cache, memory, vcpus = (_known(row, key) for key in ("memory_used", "cache", "memory", "vcpus"))
    guest.rows.append((_named(row, "time"), _named(row, "cpu") / 100, used, cache))
    guest.memory_mib = max(guest.memory_mib, memory)
    guest.vcpus = max(guest.vcpus, int(vcpus))


def _known(row: Mapping[str, str], key: str) -> float:
    return _named(row, key) if row.get(key, "").strip() else 0.0


def _named(row: Mapping[str, str], key: str) -> float:
    try:
        return _number(row[key])
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1e12:
        raise ValueError(f"got {text[:40]!r}, expected a number of 0 or more")
    return value
