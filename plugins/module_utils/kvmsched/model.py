# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The words that all layers share: what was observed, what is planned, what came of it.

Frozen dataclasses only. Memory is KiB, time of day is host wall-clock seconds, counters are
cumulative since an unspecified start, load is a fraction of one pCPU. ``None`` is "not known",
which is never the same as 0. ``to_json`` and ``from_json`` turn any of them into plain data and back.
"""

from __future__ import annotations

import functools
import json
import typing
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import Any, Literal, NamedTuple, NoReturn, Optional, TypeVar, Union

from .units import CpuSet, format_cpuset, mib, parse_cpuset, shown

SNAPSHOT_FORMAT = 1

# The threads of a QEMU process that libvirt can pin.
ThreadKind = Literal["vcpu", "emulator", "iothread"]

# What can go wrong with one domain, whatever is read or changed; docs/reliability.md explains each code.
FailureCode = Literal["gone", "busy", "hung", "denied", "unsupported", "away", "unreadable", "error"]
# Why it is skipped for memory; docs/memory.md explains each of them.
MemoryCode = Literal[
    # none of this policy's business
    "bad-policy",
    "ignored",
    "no-balloon",
    # what it uses is not known
    "busy",
    "not-running",
    "record",
    "no-stats",
    "no-driver",
    "stale",
    # it is known, and may not be acted on
    "booting",
    "human",
    "settling",
    "inhibited",
    "stuck",
    # it is acted on, and yet its waste stays
    "at-floor",
    "band",
    "resting",
    "grow-only",
    "slow-stats",
]
# Why it is skipped for vCPUs; docs/vcpu.md explains each of them.
VcpuCode = Literal[
    "busy",
    "not-running",
    "ignored",
    "managed",
    "realtime",
    "cachetune",
    "dedicated",
    "overlapping",
    "bad-policy",
    "record",
    "foreign-pin",
    "human",
    "empty-set",
    "unknown-load",
    "offline",
]
SkipCode = Literal[FailureCode, MemoryCode, VcpuCode]

# ---------------------------------------------------------------- observed: the host


@dataclass(frozen=True)
class Pcpu:
    """One online pCPU and its place in the host, as libvirt's capabilities tell it.

    ``core`` is unique only within (socket, die), as in the kernel. ``siblings`` are the hardware
    threads of its core and ``llc`` the pCPUs of its cell that share its last-level cache, itself included.
    ``kind`` tells classes of pCPUs apart where the kernel calls the host hybrid: ``cpu_core`` and
    ``cpu_atom`` (Intel), or ``capacity-446``; empty where all are alike. ``capacity`` is the kernel's
    cpu_capacity, 1024 for the strongest, where pCPUs differ in it.
    """

    id: int
    cell: int = 0
    socket: int = 0
    die: int = 0
    core: int = 0
    siblings: CpuSet = frozenset()
    llc: CpuSet = frozenset()
    kind: str = ""
    capacity: Optional[int] = None


@dataclass(frozen=True)
class Cell:
    """One NUMA cell; it may hold memory without any pCPU. ``distances`` maps cell id to ACPI SLIT distance.

    ``low_kib`` is the part of ``free_kib`` that the kernel keeps for itself (the zones' low watermarks).
    ``clean_cache_kib`` are file pages that are neither mapped nor dirty nor under writeback, ``slab_kib``
    what the kernel could reclaim of its own (SReclaimable).
    """

    id: int
    pcpus: CpuSet = frozenset()
    memory_kib: Optional[int] = None
    free_kib: Optional[int] = None
    distances: dict[int, int] = field(default_factory=dict)
    low_kib: Optional[int] = None
    clean_cache_kib: Optional[int] = None
    slab_kib: Optional[int] = None


@dataclass(frozen=True)
class Topology:
    """The online pCPUs.

    ``isolated`` are those on which the kernel balances no load (isolcpus, isolated cpuset partitions).
    ``nohz_full`` are those without a tick that are not isolated: the kernel uses them as any other.
    """

    pcpus: tuple[Pcpu, ...]
    cells: tuple[Cell, ...] = ()
    isolated: CpuSet = frozenset()
    nohz_full: CpuSet = frozenset()

    @functools.cached_property
    def online(self) -> CpuSet:
        return frozenset(pcpu.id for pcpu in self.pcpus)


@dataclass(frozen=True)
class HostMemory:
    """Host memory: MemTotal without huge pages, MemAvailable and, where the kernel has it, PSI ``some``/``full`` avg10
    in percent.

    ``arc_kib`` is what the ZFS cache can give back, which MemAvailable leaves out: its evictable part, at most
    its size above its minimum. ``swap_in_kib`` is what the host ever read back from its own swap. ``fills_holes``:
    khugepaged makes huge pages of memory that a balloon took in part.
    """

    total_kib: int
    available_kib: int
    psi_some_avg10_pct: Optional[float] = None
    psi_full_avg10_pct: Optional[float] = None
    arc_kib: Optional[int] = None
    swap_in_kib: Optional[int] = None
    fills_holes: bool = False


@dataclass(frozen=True)
class Room:
    """A cgroup with a memory limit that QEMU processes share; ``left_kib`` is what is left of it, caches dropped.

    ``high_left_kib`` is the same for its memory.high, above which the kernel throttles: it bounds growth only.
    One of the two may not be set.
    """

    name: str
    left_kib: Optional[int] = None
    high_left_kib: Optional[int] = None


@dataclass(frozen=True)
class ForeignTime:
    """Cumulative time of host work that no vCPU did, by threads that may run on ``pcpus`` only."""

    pcpus: CpuSet
    time_ns: int


@dataclass(frozen=True)
class Host:
    """The hypervisor. ``busy_ns`` maps pCPU id to its cumulative non-idle time; empty if it is not known.

    ``bound_ns`` is the part of it that no scheduler can move elsewhere: interrupts, and threads
    that are confined to that one pCPU; None if that is not known. ``foreign_ns`` is the part that can
    be moved within a set of two pCPUs or more, but not everywhere: one entry a set; None if that is
    not known. What is in neither may run anywhere. ``pinners`` names running programs that set
    affinities, too (numad, cset...).
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
    foreign_ns: Optional[tuple[ForeignTime, ...]] = None
    pinners: tuple[str, ...] = ()


# ---------------------------------------------------------------- observed: the domains


@dataclass(frozen=True)
class Vcpu:
    """One online vCPU.

    ``pin`` is the configured live affinity, ``affinity`` what the kernel really has (both include
    every pCPU where the vCPU floats). ``definition`` is the ``<vcpupin>`` of the persistent
    definition, which is the administrator's will, and of a transient domain the pin that stood when it
    was first seen (None: not known). ``scheduler`` is a real-time class by ``<vcpusched>``. ``delay_ns`` is
    time spent runnable but waiting for a pCPU. ``numa_pcpus`` are the pCPUs of the cells where the memory
    of its guest cell is (``<memnode>``), where that is told; it goes before the domain's own.
    """

    id: int
    pin: CpuSet
    time_ns: Optional[int] = None
    delay_ns: Optional[int] = None
    affinity: Optional[CpuSet] = None
    definition: Optional[CpuSet] = None
    scheduler: Optional[str] = None
    numa_pcpus: Optional[CpuSet] = None


@dataclass(frozen=True)
class Thread:
    """The emulator threads of a domain (id 0) or one I/O thread: where they are configured to run.

    ``definition`` is their pin in the persistent definition, as a vCPU has one. A vCPU is among them while it is
    unplugged, if its pin was recorded: libvirt keeps that pin for when it is plugged again.
    """

    kind: ThreadKind
    id: int
    pin: CpuSet
    definition: Optional[CpuSet] = None


@dataclass(frozen=True)
class Memnode:
    """The part of a domain's memory, in KiB, that strict memnodes bind to the same NUMA *cells* of the host."""

    cells: CpuSet
    kib: int


@dataclass(frozen=True)
class Balloon:
    """A domain's memory, by libvirt's names.

    ``actual`` is what the guest has now, ``unused`` its free memory (MemFree), ``usable`` what it
    could still get without swapping (MemAvailable). It may be below ``unused``. ``rss`` is what QEMU holds
    on the host. Swap and fault counters are cumulative. ``last_update_s`` is when the guest's driver
    last answered (0: never); ``period_s`` how often it is asked (0: never).
    ``inhibitors`` name what makes the host keep pages that the guest gives back (VFIO, locked
    memory, hugepages, SEV...). ``limit_kib`` is the ceiling that its own cgroup or memtune sets on the
    QEMU process. ``rooms`` names the Rooms that it shares. ``cells`` are the NUMA cells that a strict
    numatune binds the memory to. ``virtio_mem``: it has memory devices of that kind, whose size libvirt
    adds to ``actual`` while a target leaves it out. ``fixed_kib`` is the part of ``maximum_kib`` that no balloon
    can have (NVDIMM, virtio-pmem, SGX EPC), ``huge_kib`` the part of the guest's memory that lies on huge pages.
    Of the QEMU process: ``locked_kib`` can't be given back (VmLck and VmPin), ``swapped_kib`` is in the host's
    swap (VmSwap). ``high_kib`` is its own memory.high, above which the kernel throttles it. ``void``: one of the sizes
    that the guest told can't be, so none of them is known. ``memnodes`` are the parts of its memory that are bound to
    cells of their own, where not all of it may be in any of ``cells``.
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
    fixed_kib: int = 0
    huge_kib: int = 0
    locked_kib: Optional[int] = None
    swapped_kib: Optional[int] = None
    high_kib: Optional[int] = None
    void: bool = False
    memnodes: tuple[Memnode, ...] = ()

    @property
    def most_kib(self) -> int:
        """Return how much of its memory a balloon can have: NVDIMM, virtio-pmem and SGX EPC are not among it."""
        return max(0, self.maximum_kib - self.fixed_kib)


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
    bring, or that the balloon is at on its way. It is empty where it had arrived. ``ordered_kib`` is the part of what
    it lacks to its original that was taken because somebody asked for it (``eager``, ``pairwise``, a ceiling, idle
    memory). The rest is owed to the guest. ``most_kib`` is what the balloon could have when this was written (0: not
    known), so that a DIMM plugged since is not taken for a size that somebody set.
    """

    original_kib: int
    previous_kib: int
    intended_kib: int
    when_s: int
    reach_kib: tuple[int, ...] = ()
    ordered_kib: int = 0
    most_kib: int = 0

    def span_kib(self) -> tuple[int, int]:
        """Return the lowest and the highest value that our requests may bring."""
        values_kib = (self.previous_kib, self.intended_kib, *self.reach_kib)
        return min(values_kib), max(values_kib)

    def set_by_person(self, current_kib: int) -> bool:
        """Return whether somebody else set *current_kib*: it is neither ours nor on the way there (decision 12)."""
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
    """The affinity of one thread before our first pin of it, and what we wrote last.

    ``defined`` is the pin that its definition had before that, if it had one: it stays its owner's, also where we
    wrote the same.
    """

    thread: ThreadKind
    id: int
    original: CpuSet
    previous: CpuSet
    intended: CpuSet
    when_s: int
    defined: Optional[CpuSet] = None

    def set_by_person(self, current: CpuSet) -> bool:
        """Return whether somebody else set *current* (decision 12)."""
        return current not in (self.original, self.previous, self.intended)


@dataclass(frozen=True)
class Record:
    """The baseline kept in the running domain's own metadata.

    ``domain_id`` is the run of the domain, by libvirt's id, that it was begun on. A save and restore or a migration
    keep the record and all that it tells of (decision 13). So it only tells a copy that a domain began with.
    """

    host_uuid: str
    domain_id: int
    memory: Optional[MemoryRecord] = None
    period: Optional[PeriodRecord] = None
    pins: tuple[PinRecord, ...] = ()

    @property
    def latest_s(self) -> int:
        """Return when it was last written to, in seconds of the wall clock."""
        parts = (self.memory, self.period, *self.pins)
        return max((part.when_s for part in parts if part is not None), default=0)

    def pin(self, thread: str, number: int) -> Optional[PinRecord]:
        """Return the record of one thread, if it has one."""
        return next((p for p in self.pins if p.thread == thread and p.id == number), None)


# Balloon targets round to pages, and a driver may stop a little short of its target.
BALLOON_TOLERANCE_KIB = 1024
# What a balloon is counted in (virtio 1.2, 5.5.6).
PAGE_KIB = 4


@dataclass(frozen=True)
class Domain:
    """One active domain.

    ``state`` is libvirt's word (running, paused...). ``busy`` says why a write would have to wait
    (migration, backup, a monitor that does not answer). ``record_error`` says why the record on the
    domain can't be used. ``cpuset`` is ``<vcpu cpuset>``, ``numa_pcpus`` the pCPUs of its numatune or
    automatic nodeset, ``cgroup_pcpus`` the effective cpuset of its machine cgroup; None: no limit.
    ``started_s`` is the start of its QEMU process, wall clock. ``vcpu_quota`` is the share of a pCPU that
    each vCPU may use at most (``<cputune><quota>``), where it is limited. ``cpu_weight`` is the weight of its
    cgroup beside others (cgroup v2's cpu.weight, 100 is the default); None where it has none, so that its
    threads compete one by one. ``guest_threads`` is how many of its vCPUs, by consecutive ids, the guest
    takes for hardware threads of one core. ``cachetune``: a part of the cache is allocated to its vCPUs.
    ``managed_by`` names the program whose metadata it carries (nova, ovirt, kubevirt).
    ``start_unknown``: it is transient, and it ran for a while when it was first seen, so that the pins of its
    start are not known.
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
    cpu_weight: Optional[float] = None
    guest_threads: int = 1
    cachetune: bool = False
    managed_by: str = ""
    start_unknown: bool = False

    @property
    def unplugged(self) -> frozenset[tuple[ThreadKind, int]]:
        """Its vCPUs that are unplugged and have a recorded pin, by kind of thread and id."""
        return frozenset((thread.kind, thread.id) for thread in self.threads if thread.kind == "vcpu")


@dataclass(frozen=True)
class Skip:
    """A domain that gets no move, and why. ``code`` is a short fixed word for counting, ``reason`` one plain line.

    ``untouched_kib``: of one that could not be observed, what it has of its memory that QEMU does not hold yet, as
    far as is known. ``rooms``: the names of the rooms that it shares, None where they are not known.
    """

    domain: str
    uuid: str
    code: SkipCode
    reason: str
    untouched_kib: int = 0
    rooms: Optional[tuple[str, ...]] = None


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
        """Return the domain of that UUID, if it was observed."""
        return next((d for d in self.domains if d.uuid == uuid), None)


# ---------------------------------------------------------------- planned


class Sides(NamedTuple):
    """A move for people: of what or whom, which setting if that does not go without saying, before and after."""

    whose: str
    before: str
    after: str
    setting: str = ""

    @property
    def what(self) -> str:
        return f"{self.whose} {self.setting}".rstrip()

    def __str__(self) -> str:
        return f"{self.whose}: {self.setting} ".rstrip() + f" {self.before} -> {self.after}"


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

    @property
    def sides(self) -> Sides:
        thread = "emulator" if self.thread == "emulator" else f"{self.thread} {self.id}".replace("vcpu", "vCPU")
        return Sides(f"{self.domain} {thread}", format_cpuset(self.before), format_cpuset(self.after))

    def __str__(self) -> str:
        return str(self.sides)


@dataclass(frozen=True)
class BalloonMove:
    """Change a domain's balloon target; ``on_credit`` if it is given beyond the supply formula (decision 45).

    ``ordered_kib`` is the part of a take that somebody asked for: it is not owed to the guest.
    """

    domain: str
    uuid: str
    before_kib: int
    after_kib: int
    reason: str
    on_credit: bool = False
    ordered_kib: int = 0
    kind: Literal["balloon"] = "balloon"

    @property
    def gives(self) -> bool:
        return self.after_kib > self.before_kib

    @property
    def sides(self) -> Sides:
        return Sides(self.domain, mib(self.before_kib), mib(self.after_kib))

    def __str__(self) -> str:
        return str(self.sides)


@dataclass(frozen=True)
class PeriodMove:
    """Set how often a domain's balloon driver reports its statistics."""

    domain: str
    uuid: str
    before_s: int
    after_s: int
    reason: str
    kind: Literal["stats_period"] = "stats_period"

    @property
    def sides(self) -> Sides:
        return Sides(self.domain, str(self.before_s), str(self.after_s), "stats_period")

    def __str__(self) -> str:
        return str(self.sides)


Move = Union[PinMove, BalloonMove, PeriodMove]


@dataclass(frozen=True)
class MemoryFigures:
    """A host's memory in figures; ``unused_kib`` and ``usable_kib`` are sums over the domains that report them.

    ``limited`` counts the starved and wasteful domains that no move can help: at their floor, at
    their maximum, or with thresholds closer to each other than their readings are. ``wasted_kib`` is unused
    memory above the waste thresholds, ``owed_kib`` what guests lack to their originals by our doing.
    ``host_available_kib`` is MemAvailable, ``host_arc_kib`` what the ZFS cache could give beside it.
    ``credit_kib`` is what guests were given beyond what the host can give, to survive, and is not covered yet.
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
    wasted_kib: int = 0
    owed_kib: int = 0
    host_arc_kib: int = 0
    credit_kib: int = 0


@dataclass(frozen=True)
class VcpuFigures:
    """pCPU load in figures, in percent of one pCPU.

    ``imbalance_pct`` is the standard deviation of demand over the usable pCPUs, in points (decision
    26). ``bound_pct`` is a proven lower bound on ``max_pct`` for any assignment of these vCPUs within their sets.
    All but ``max_all_pct``, the load of the fullest pCPU that is online, are of the usable pCPUs.
    """

    pcpus: int
    average_pct: float
    max_pct: float
    imbalance_pct: float
    bound_pct: float
    max_all_pct: Optional[float] = None


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
class RoomRequest:
    """Memory to be kept for a guest that is to start: in *cells*, or wherever the host has it.

    ``since_s`` is when it was asked for, wall clock: domains that started since then are what it was for.
    """

    kib: int
    cells: Optional[CpuSet] = None
    since_s: float = 0.0


@dataclass(frozen=True)
class RoomFigures:
    """What is kept for a guest that is to start: ``kib`` of it still, ``there_kib`` of that before the plan.

    ``lacks_kib`` is what still lacks once the plan's takes arrived, and ``why`` that is so.
    """

    kib: int
    cells: Optional[CpuSet]
    there_kib: int
    lacks_kib: int
    why: str = ""
    since_s: float = 0.0


@dataclass(frozen=True)
class Left:
    """A domain that a release leaves changed, or may, and why, in one plain line.

    ``limited``: what its record asks for is not allowed now, or nobody can tell what that is, so its part that is
    allowed was all there was to do. Who may write metadata may write a record: that fails no release of a whole host.
    ``command_told``: the reason names the command that ends this.
    """

    domain: str
    uuid: str
    reason: str
    limited: bool = False
    command_told: bool = False

    def __str__(self) -> str:
        return f"{self.domain}: {self.reason}"


@dataclass(frozen=True)
class MemoryPlan:
    """What should change in memory. Takes come before gives in ``moves``.

    ``supply_kib`` is what the host could give at once; ``not_restored`` names domains that a release leaves changed.
    ``room`` is what is kept for a guest that is to start, if that was asked for. ``owed_kib`` what was taken from
    domains below their originals and nobody asked for, by UUID, before the plan.
    ``unmatched`` are the patterns of the selection, ``idle_rules`` those of rules, that match no domain here.
    ``note`` says in one line which option takes the waste that the plan leaves.
    """

    before: MemoryFigures
    after: MemoryFigures
    moves: tuple[Move, ...] = ()
    skips: tuple[Skip, ...] = ()
    unmet: tuple[Unmet, ...] = ()
    adoptions: tuple[Adoption, ...] = ()
    unmatched: tuple[str, ...] = ()
    idle_rules: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    not_restored: tuple[Left, ...] = ()
    supply_kib: Optional[int] = None
    room: Optional[RoomFigures] = None
    owed_kib: dict[str, int] = field(default_factory=dict)
    note: str = ""

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
    idle_rules: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    not_restored: tuple[Left, ...] = ()
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
    code: FailureCode
    reason: str


@dataclass(frozen=True)
class Outcome:
    """The moves that did happen, and those that did not."""

    moves: tuple[Move, ...] = ()
    failures: tuple[Failure, ...] = ()


# ---------------------------------------------------------------- to and from JSON

T = TypeVar("T")


def parse_json(text: Union[str, bytes]) -> Any:
    """Read strict JSON: no key twice, no NaN. ValueError says in one line what is wrong and where."""
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


def decoded(wanted: Any, data: Any, where: str) -> Any:
    """Return the same for a value of any type that a field may have; *where* names it."""
    return _decode(wanted, data, where)


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
        raise ValueError(f"{where}: got {shown(text)}, expected {'a number' if convert is int else error}") from None


def required(of: Field[Any]) -> bool:
    """Return whether a field has no default."""
    return of.default is MISSING and of.default_factory is MISSING


def _require(fits: bool, data: Any, where: str, allowed: str) -> Any:
    if not fits:
        raise ValueError(f"{where}: got {shown(data, 80)}, expected {allowed}")
    return data
