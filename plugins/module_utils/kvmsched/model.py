# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The words that all rooms share: what was observed, what is planned, what came of it.

Frozen dataclasses only. Memory is KiB, time of day is host wall-clock seconds, counters are
cumulative since an unspecified start, load is a fraction of one pCPU. ``None`` is "not known",
which is never the same as 0. ``to_json`` and ``from_json`` turn any of them into plain data and back.
"""

from __future__ import annotations

import json
import typing
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import Any, Literal, NoReturn, Optional, TypeVar, Union

from .units import CpuSet, format_cpuset, mib, parse_cpuset

SNAPSHOT_FORMAT = 1

# The threads of a QEMU process that libvirt can pin.
ThreadKind = Literal["vcpu", "emulator", "iothread"]

# ---------------------------------------------------------------- observed: the host


@dataclass(frozen=True)
class Pcpu:
    """One online pCPU and its place in the host, as libvirt's capabilities tell it.

    ``core`` is unique only within (socket, die), as in the kernel; ``siblings`` are the hardware
    threads of its core and ``llc`` the pCPUs that share its last-level cache, itself included.
    """

    id: int
    cell: int = 0
    socket: int = 0
    die: int = 0
    core: int = 0
    siblings: CpuSet = frozenset()
    llc: CpuSet = frozenset()


@dataclass(frozen=True)
class Cell:
    """One NUMA cell; it may hold memory without any pCPU. ``distances`` maps cell id to ACPI SLIT distance."""

    id: int
    pcpus: CpuSet = frozenset()
    memory_kib: Optional[int] = None
    free_kib: Optional[int] = None
    distances: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Topology:
    """The online pCPUs. ``isolated`` are those the kernel was told to keep free (isolcpus, nohz_full)."""

    pcpus: tuple[Pcpu, ...]
    cells: tuple[Cell, ...] = ()
    isolated: CpuSet = frozenset()

    @property
    def online(self) -> CpuSet:
        return frozenset(pcpu.id for pcpu in self.pcpus)


@dataclass(frozen=True)
class HostMemory:
    """Host memory: MemTotal, MemAvailable and, where the kernel has it, PSI ``some``/``full`` avg10 in percent."""

    total_kib: int
    available_kib: int
    psi_some_avg10_pct: Optional[float] = None
    psi_full_avg10_pct: Optional[float] = None


@dataclass(frozen=True)
class Room:
    """A cgroup with a memory limit that QEMU processes share; ``left_kib`` is what is left of it, caches dropped."""

    name: str
    left_kib: int


@dataclass(frozen=True)
class Host:
    """The hypervisor. ``busy_ns`` maps pCPU id to its cumulative non-idle time; empty if it is not known.

    ``bound_ns`` is the part of it that no scheduler can move elsewhere: interrupts, and processes
    that are confined to that one pCPU; None if that is not known.
    """

    uuid: str
    name: str
    uri: str
    driver: str
    topology: Topology
    busy_ns: dict[int, int] = field(default_factory=dict)
    bound_ns: Optional[dict[int, int]] = None
    memory: Optional[HostMemory] = None
    rooms: tuple[Room, ...] = ()


# ---------------------------------------------------------------- observed: the domains


@dataclass(frozen=True)
class Vcpu:
    """One online vCPU.

    ``pin`` is the configured live affinity, ``affinity`` what the kernel really has (both include
    every pCPU where the vCPU floats); ``definition`` is the ``<vcpupin>`` of the persistent
    definition, which is the administrator's will; ``scheduler`` a real-time class by ``<vcpusched>``.
    ``delay_ns`` is time spent runnable but waiting for a pCPU.
    """

    id: int
    pin: CpuSet
    time_ns: Optional[int] = None
    delay_ns: Optional[int] = None
    affinity: Optional[CpuSet] = None
    definition: Optional[CpuSet] = None
    scheduler: Optional[str] = None


@dataclass(frozen=True)
class Thread:
    """The emulator threads of a domain (id 0) or one I/O thread: where they are configured to run."""

    kind: Literal["emulator", "iothread"]
    id: int
    pin: CpuSet


@dataclass(frozen=True)
class Balloon:
    """A domain's memory, by libvirt's names.

    ``actual`` is what the guest has now, ``unused`` its free memory (MemFree), ``usable`` what it
    could still get without swapping (MemAvailable; may be below ``unused``), ``rss`` what QEMU holds
    on the host. Swap and fault counters are cumulative. ``last_update_s`` is when the guest's driver
    last answered (0: never); ``period_s`` how often it is asked (0: never).
    ``inhibitors`` name what makes the host keep pages that the guest gives back (VFIO, locked
    memory, hugepages, SEV...); ``limit_kib`` is the ceiling that its own cgroup or memtune sets on the
    QEMU process, ``rooms`` names the Rooms that it shares, ``cells`` are the NUMA cells that a strict
    numatune binds the memory to. ``virtio_mem``: it has memory devices of that kind, whose size libvirt
    adds to ``actual`` while a target leaves it out.
    """

    actual_kib: int
    maximum_kib: int
    device: bool = True
    unused_kib: Optional[int] = None
    usable_kib: Optional[int] = None
    disk_caches_kib: Optional[int] = None
    swap_in_kib: Optional[int] = None
    swap_out_kib: Optional[int] = None
    major_faults: Optional[int] = None
    rss_kib: Optional[int] = None
    last_update_s: int = 0
    period_s: int = 0
    autodeflate: bool = False
    inhibitors: tuple[str, ...] = ()
    limit_kib: Optional[int] = None
    cells: Optional[CpuSet] = None
    virtio_mem: bool = False
    rooms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Owner:
    """What a domain's owner wrote into its metadata under ``urn:kvmsched:policy/1``: read-only to us.

    Attributes are kept as written; config judges them. ``error`` is set where the XML could not be read.
    """

    settings: dict[str, str] = field(default_factory=dict)
    error: Optional[str] = None


@dataclass(frozen=True)
class MemoryRecord:
    """What a domain's memory was before our first change, and what we wrote last.

    ``reach_kib``: the lowest and the highest value that requests from before the last one may still
    bring, or that the balloon is at on its way; empty where it had arrived.
    """

    original_kib: int
    previous_kib: int
    intended_kib: int
    when_s: int
    reach_kib: tuple[int, ...] = ()

    def span_kib(self) -> tuple[int, int]:
        """The lowest and the highest value that our requests may bring."""
        values_kib = (self.previous_kib, self.intended_kib, *self.reach_kib)
        return min(values_kib), max(values_kib)

    def foreign(self, current_kib: int) -> bool:
        """Whether somebody else set *current_kib*: it is no value of ours, nor on the way to one (decision 12)."""
        low_kib, high_kib = self.span_kib()
        near = abs(current_kib - self.original_kib) <= BALLOON_TOLERANCE_KIB
        return not (near or low_kib - BALLOON_TOLERANCE_KIB <= current_kib <= high_kib + BALLOON_TOLERANCE_KIB)


@dataclass(frozen=True)
class PeriodRecord:
    """The statistics period of a domain before we set one."""

    original_s: int
    previous_s: int
    intended_s: int
    when_s: int


@dataclass(frozen=True)
class PinRecord:
    """The affinity of one thread before our first pin of it, and what we wrote last."""

    thread: ThreadKind
    id: int
    original: CpuSet
    previous: CpuSet
    intended: CpuSet
    when_s: int

    def foreign(self, current: CpuSet) -> bool:
        """Whether somebody else set *current* (decision 12)."""
        return current not in (self.original, self.previous, self.intended)


@dataclass(frozen=True)
class Record:
    """The baseline kept in the running domain's own metadata.

    ``domain_id`` is the run of the domain, by libvirt's id, that it was begun on: a save and restore or a migration
    keep the record and all that it tells of (decision 13), so it only tells a copy that a domain began with.
    """

    host_uuid: str
    domain_id: int
    memory: Optional[MemoryRecord] = None
    period: Optional[PeriodRecord] = None
    pins: tuple[PinRecord, ...] = ()

    @property
    def latest_s(self) -> int:
        """When it was last written to."""
        parts = (self.memory, self.period, *self.pins)
        return max((part.when_s for part in parts if part is not None), default=0)

    def pin(self, thread: str, number: int) -> Optional[PinRecord]:
        """The record of one thread, if it has one."""
        return next((p for p in self.pins if p.thread == thread and p.id == number), None)


# Balloon targets round to pages, and a driver may stop a little short of its target.
BALLOON_TOLERANCE_KIB = 1024
# What a balloon is counted in (virtio 1.2, 5.5.6).
PAGE_KIB = 4


@dataclass(frozen=True)
class Domain:
    """One active domain.

    ``state`` is libvirt's word (running, paused...); ``busy`` says why a write would have to wait
    (migration, backup, a monitor that does not answer); ``record_error`` why the record on the
    domain can't be used. ``cpuset`` is ``<vcpu cpuset>``, ``numa_pcpus`` the pCPUs of its numatune or
    automatic nodeset, ``cgroup_pcpus`` the effective cpuset of its machine cgroup; None: no limit.
    ``started_s`` is the start of its QEMU process, wall clock. ``vcpu_quota`` is the share of a pCPU that
    each vCPU may use at most (``<cputune><quota>``), where it is limited.
    """

    uuid: str
    name: str
    id: int
    state: str = "running"
    persistent: bool = True
    started_s: Optional[float] = None
    busy: Optional[str] = None
    cpuset: Optional[CpuSet] = None
    numa_pcpus: Optional[CpuSet] = None
    cgroup_pcpus: Optional[CpuSet] = None
    vcpu_quota: Optional[float] = None
    vcpus: tuple[Vcpu, ...] = ()
    threads: tuple[Thread, ...] = ()
    balloon: Optional[Balloon] = None
    owner: Owner = Owner()
    record: Optional[Record] = None
    record_error: Optional[str] = None


@dataclass(frozen=True)
class Skip:
    """A domain that gets no turn, and why. ``code`` is a short fixed word for counting, ``reason`` one plain line.

    ``untouched_kib``: of one that could not be observed, what it has of its memory that QEMU does not hold yet, as
    far as is known.
    """

    domain: str
    uuid: str
    code: str
    reason: str
    untouched_kib: int = 0


@dataclass(frozen=True)
class Snapshot:
    """The truth about a host at one instant; ``skips`` are domains that could not be observed."""

    monotonic_s: float
    wall_s: float
    host: Host
    domains: tuple[Domain, ...]
    skips: tuple[Skip, ...] = ()
    format: int = SNAPSHOT_FORMAT

    def domain(self, uuid: str) -> Optional[Domain]:
        """The domain of that UUID, if it was observed."""
        return next((d for d in self.domains if d.uuid == uuid), None)


# ---------------------------------------------------------------- planned


@dataclass(frozen=True)
class PinMove:
    """Change the affinity of one thread. ``load`` is its demand as a fraction of one pCPU, where known."""

    domain: str
    uuid: str
    id: int
    before: CpuSet
    after: CpuSet
    reason: str
    load: Optional[float] = None
    thread: ThreadKind = "vcpu"
    kind: Literal["pin"] = "pin"

    def __str__(self) -> str:
        thread = "emulator" if self.thread == "emulator" else f"{self.thread} {self.id}".replace("vcpu", "vCPU")
        return f"{self.domain} {thread}: {format_cpuset(self.before)} -> {format_cpuset(self.after)}"


@dataclass(frozen=True)
class BalloonMove:
    """Change a domain's balloon target; ``on_credit`` if it is given beyond the supply formula (decision 19)."""

    domain: str
    uuid: str
    before_kib: int
    after_kib: int
    reason: str
    on_credit: bool = False
    kind: Literal["balloon"] = "balloon"

    @property
    def gives(self) -> bool:
        return self.after_kib > self.before_kib

    def __str__(self) -> str:
        return f"{self.domain}: {mib(self.before_kib)} -> {mib(self.after_kib)}"


@dataclass(frozen=True)
class PeriodMove:
    """Set how often a domain's balloon driver reports its statistics."""

    domain: str
    uuid: str
    before_s: int
    after_s: int
    reason: str
    kind: Literal["stats_period"] = "stats_period"

    def __str__(self) -> str:
        return f"{self.domain}: stats_period {self.before_s} -> {self.after_s}"


Move = Union[PinMove, BalloonMove, PeriodMove]


def sides(move: Move) -> tuple[str, str, str]:
    """What *move* changes, and how that looks before and after, for people."""
    what, change = str(move).rsplit(": ", 1)
    before, after = change.split(" -> ")
    *setting, before = before.split(" ")
    return " ".join((what, *setting)), before, after


@dataclass(frozen=True)
class MemoryFigures:
    """A host's memory in figures; ``unused_kib`` and ``usable_kib`` are sums over the domains that report them.

    ``limited`` counts the starved and wasteful domains that no move can help: at their floor, at
    their maximum, or with thresholds closer to each other than their readings are.
    """

    starved: int
    wasteful: int
    unknown: int
    unused_kib: int
    usable_kib: int
    actual_kib: int
    host_available_kib: Optional[int] = None
    host_reserve_kib: Optional[int] = None
    limited: int = 0


@dataclass(frozen=True)
class VcpuFigures:
    """pCPU load in figures, in percent of one pCPU.

    ``imbalance_pct`` is the standard deviation of demand over the usable pCPUs, in points (decision
    26); ``bound_pct`` is a proven lower bound on ``max_pct`` for any assignment of these vCPUs.
    """

    pcpus: int
    average_pct: float
    max_pct: float
    imbalance_pct: float
    bound_pct: float


@dataclass(frozen=True)
class Unmet:
    """Memory that a domain needs and does not get, and why."""

    domain: str
    uuid: str
    kib: int
    reason: str


@dataclass(frozen=True)
class Adoption:
    """A value that a person set meanwhile becomes the domain's new baseline; nothing else is written."""

    domain: str
    uuid: str
    reason: str
    memory_kib: Optional[int] = None
    pins: tuple[PinRecord, ...] = ()


@dataclass(frozen=True)
class MemoryPlan:
    """What should change in memory. Takes come before gives in ``moves``.

    ``supply_kib`` is what the host could give at once; ``not_restored`` names domains that a release leaves changed.
    """

    before: MemoryFigures
    after: MemoryFigures
    moves: tuple[Move, ...] = ()
    skips: tuple[Skip, ...] = ()
    unmet: tuple[Unmet, ...] = ()
    adoptions: tuple[Adoption, ...] = ()
    unmatched: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    not_restored: tuple[str, ...] = ()
    supply_kib: Optional[int] = None

    @property
    def headline(self) -> str:
        before, after = self.before, self.after
        return f"starved {before.starved} -> {after.starved}, wasteful {before.wasteful} -> {after.wasteful}"


@dataclass(frozen=True)
class VcpuPlan:
    """What should change in pins, and how good that is.

    ``moves_bound`` is a proven lower bound on the moves after which every pCPU is at most at
    ``target_pct``, or has one busy vCPU only. Placing what floated (and moving emulator or I/O
    threads) is a move, yet no bound applies to it: ``placed`` counts those apart. ``trigger`` names
    what made the plan act, ``note`` says in one line why it acts or not. Not ``measured``: no load
    was known (from one look, as in a release), so the figures say nothing.
    """

    before: VcpuFigures
    after: VcpuFigures
    moves: tuple[Move, ...] = ()
    skips: tuple[Skip, ...] = ()
    adoptions: tuple[Adoption, ...] = ()
    unmatched: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    not_restored: tuple[str, ...] = ()
    placed: int = 0
    moves_bound: int = 0
    target_pct: float = 0.0
    trigger: str = ""
    note: str = ""
    measured: bool = True

    @property
    def headline(self) -> str:
        if not self.measured:
            return "load not measured"
        before, after = self.before.imbalance_pct, self.after.imbalance_pct
        return f"imbalance {before:.1f} -> {after:.1f} points"


Plan = Union[MemoryPlan, VcpuPlan]


# ---------------------------------------------------------------- what came of it


@dataclass(frozen=True)
class Failure:
    """A move that was tried and did not happen; ``code`` is a short fixed word for counting."""

    domain: str
    uuid: str
    code: str
    reason: str


@dataclass(frozen=True)
class Outcome:
    """The moves that did happen, and those that did not."""

    moves: tuple[Move, ...] = ()
    failures: tuple[Failure, ...] = ()

    @property
    def changed(self) -> bool:
        return bool(self.moves)


# ---------------------------------------------------------------- to and from JSON

T = TypeVar("T")


def parse_json(text: Union[str, bytes]) -> Any:
    """Strict JSON: no key twice, no NaN. ValueError says in one line what is wrong and where."""
    try:
        return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("not valid JSON: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"not valid JSON: {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _value in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands there twice")
    return values


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")


def to_json(value: Any) -> Any:
    """Turn a model object into plain JSON data: CPU sets as ``0-3,8``, mapping keys as strings."""
    if value is None or isinstance(value, (str, int, float)):
        return value
    names = getattr(type(value), "__dataclass_fields__", None)
    if names is not None:
        return {name: to_json(getattr(value, name)) for name in names}
    if isinstance(value, frozenset):
        return format_cpuset(value)
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    return value


def from_json(cls: type[T], data: Any) -> T:
    """Rebuild a *cls* from to_json()'s data. Missing keys take their defaults; ValueError names what does not fit."""
    value: T = _decode(cls, data, cls.__name__)
    return value


# Whoever writes a bundle by hand need not know Python.
_PLAIN: dict[Any, str] = {float: "a number", int: "a whole number", str: "a text", bool: "true or false"}


def _decode(wanted: Any, data: Any, where: str) -> Any:
    origin, args = typing.get_origin(wanted), typing.get_args(wanted)
    if wanted is Any:
        return data
    if origin is Literal:
        return _require(data in args, data, where, " or ".join(map(repr, args)))
    if origin is Union:
        return _decode_union(args, data, where)
    if is_dataclass(wanted):
        return _decode_dataclass(wanted, data, where)
    if origin is frozenset:
        _require(isinstance(data, str), data, where, "a CPU set as text")
        return _converted(parse_cpuset, data, where) if data else frozenset()
    if origin is tuple:
        _require(isinstance(data, list), data, where, "a list")
        return tuple(_decode(args[0], item, f"{where}[{index}]") for index, item in enumerate(data))
    if origin is dict:
        _require(isinstance(data, dict), data, where, "an object")
        return {
            _converted(args[0], key, f"{where}, a key"): _decode(args[1], item, f"{where}.{key}")
            for key, item in data.items()
        }
    if wanted is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    fits = isinstance(data, wanted) and isinstance(data, bool) == (wanted is bool)
    return _require(fits, data, where, _PLAIN.get(wanted, wanted.__name__))


def _decode_union(choices: tuple[Any, ...], data: Any, where: str) -> Any:
    nothing = type(None)
    if data is None and nothing in choices:
        return None
    classes = [choice for choice in choices if choice is not nothing]
    if len(classes) > 1 and isinstance(data, dict):
        classes = [c for c in classes if getattr(c, "kind", None) == data.get("kind")] or classes
    return _decode(classes[0], data, where)


def _decode_dataclass(cls: Any, data: Any, where: str) -> Any:
    _require(isinstance(data, dict), data, where, "an object")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(data) - set(hints))
    _require(not unknown, ", ".join(unknown), where, f"only the keys {', '.join(hints)}")
    values = {key: _decode(hints[key], item, f"{where}.{key}") for key, item in data.items()}
    missing = [f.name for f in fields(cls) if f.name not in values and required(f)]
    if missing:
        raise ValueError(f"{where}: missing {', '.join(missing)}")
    return cls(**values)


def _converted(convert: Any, text: str, where: str) -> Any:
    try:
        return convert(text)
    except ValueError as error:
        raise ValueError(f"{where}: got {text!r}, expected {'a number' if convert is int else error}") from None


def required(of: Field[Any]) -> bool:
    """Whether a field has no default."""
    return of.default is MISSING and of.default_factory is MISSING


def _require(fits: bool, data: Any, where: str, allowed: str) -> Any:
    if not fits:
        shown = repr(data)
        raise ValueError(f"{where}: got {shown if len(shown) <= 80 else shown[:77] + '...'}, expected {allowed}")
    return data
