# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a domain was before its first change: the record on the domain, and how it changes.

The record is one XML element in the running domain's own metadata, so it outlives module run,
daemon and control machine. It is written before the change that it describes: whoever finds it
knows the original, the value before our last change, and the value that this change meant to set.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import Optional, get_args

from .model import (
    BALLOON_TOLERANCE_KIB,
    PAGE_KIB,
    Adoption,
    Balloon,
    BalloonMove,
    Domain,
    Left,
    MemoryRecord,
    Move,
    PeriodRecord,
    PinMove,
    PinRecord,
    Record,
    ThreadKind,
)
from .units import CpuSet, CpuSets, format_cpuset, mib, one_line, shown

STATE_URI = "urn:kvmsched:state/1"
OWNER_URI = "urn:kvmsched:policy/1"
# libvirt wants a prefix for the namespace of each element that it stores.
STATE_PREFIX = "kvmsched"
VERSION = 1
# In attributes: enough for 3,000 vCPUs, each with another original.
LONGEST = 256 * 1024
# What libvirt takes for one: an int of C.
_LONGEST_PERIOD_S = 2**31 - 1
# Why a domain is skipped whose record never was its own. It owes nothing by it.
COPY = "its persistent definition carries a record of another domain: a copy, ignored"
# The same where it may be its own: then it owes something, but nobody knows what.
DOUBTFUL = "its persistent definition carries the same record: whether that is its own or a copy is not known"
# Nothing is known of its record yet. The next pass reads it.
UNREAD = "its definition was not read: it began meanwhile"

# ---------------------------------------------------------------- to and from XML


def encode(record: Record) -> str:
    """Return the record as XML for virDomainSetMetadata; ValueError where decode() could not read it.

    What can't be read later must not be written: the domain could never be given back what it had.
    """
    root = ET.Element("state", version=str(VERSION), host=record.host_uuid, domain=str(record.domain_id))
    if record.memory is not None:
        ET.SubElement(root, "memory", _memory(record.memory))
        if record.memory.most_kib:
            # An element of its own, which versions without it read over.
            ET.SubElement(root, "most", _numbers(record.memory, "most_kib"))
    if record.period is not None:
        period = _numbers(record.period, "original_s", "previous_s", "intended_s", "when_s")
        ET.SubElement(root, "stats_period", period)
    # Most pins have one of few masks, and a wide one takes a millisecond.
    texts: dict[CpuSet, str] = {}
    for pin in record.pins:
        masks = {name: mask for name in _MASKS if (mask := getattr(pin, name)) is not None}
        masks = {name: texts.get(mask) or texts.setdefault(mask, format_cpuset(mask)) for name, mask in masks.items()}
        ET.SubElement(root, "pin", {"thread": pin.thread, "id": str(pin.id), "when_s": str(pin.when_s), **masks})
    if decode(root) != record:
        raise ValueError("its record would not be read as it was written")
    return ET.tostring(root, encoding="unicode")


def _memory(part: MemoryRecord) -> dict[str, str]:
    reach = {"reach_kib": " ".join(map(str, part.reach_kib))} if part.reach_kib else {}
    ordered = {"ordered_kib": str(part.ordered_kib)} if part.ordered_kib else {}
    return {**_numbers(part, "original_kib", "previous_kib", "intended_kib", "when_s"), **reach, **ordered}


def _numbers(part: object, *names: str) -> dict[str, str]:
    return {name: str(getattr(part, name)) for name in names}


def decode(element: ET.Element) -> Record:
    """Read a record; ValueError in one line where it is of a newer version or damaged."""
    version = element.get("version", "")
    if version != str(VERSION):
        raise ValueError(
            f"its record has version {one_line(version, 20) or 'unknown'}, this kvmsched reads version {VERSION}"
        )
    try:
        _check_length(element)
        _check_numbers(element)
        memory = _part(element, "memory")
        period = _part(element, "stats_period")
        cpus = CpuSets()
        return Record(
            host_uuid=element.attrib["host"],
            domain_id=int(element.attrib["domain"]),
            memory=None if memory is None else _decode_memory({**memory, **(_part(element, "most") or {})}),
            period=None if period is None else _decode_period(period),
            pins=tuple(_decode_pin(child, cpus) for child in element if _local_name(child) == "pin"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"its record is damaged ({one_line(error, 200)})") from None


def _check_length(element: ET.Element) -> None:
    """Raise ValueError for a record that is longer than any of ours."""
    length = sum(len(key) + len(text) for part in element.iter() for key, text in part.attrib.items())
    if length > LONGEST:
        raise ValueError(f"a record of {length} characters, allowed: {LONGEST}")


def _check_numbers(element: ET.Element) -> None:
    """Raise ValueError for what can't be a size or a time, though Python would read it."""
    numbers = (value for child in element for key, value in child.attrib.items() if key.endswith(("_kib", "_s")))
    for text in (text for value in numbers for text in value.split()):
        if not (text.isascii() and text.isdigit()) or len(text) > 15:
            raise ValueError(f"number {text[:20]!r}")


def _decode_memory(attributes: dict[str, str]) -> Optional[MemoryRecord]:
    """Return the part, or None where no guest can have had the original: it is not known then."""
    reach_kib = tuple(int(text) for text in attributes.pop("reach_kib", "").split())
    part = MemoryRecord(**{key: int(text) for key, text in attributes.items()}, reach_kib=reach_kib)
    return part if part.original_kib >= PAGE_KIB else None


def _decode_period(attributes: dict[str, str]) -> Optional[PeriodRecord]:
    """Return the part, or None where libvirt can't have told the original: it is not known then."""
    part = PeriodRecord(**{key: int(text) for key, text in attributes.items()})
    return part if part.original_s <= _LONGEST_PERIOD_S else None


def _part(element: ET.Element, name: str) -> Optional[dict[str, str]]:
    return next((dict(child.attrib) for child in element if _local_name(child) == name), None)


def _local_name(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]


_MASKS = ("original", "previous", "intended", "defined")


def _decode_pin(element: ET.Element, cpus: CpuSets) -> PinRecord:
    masks = {name: cpus(element.attrib[name]) for name in _MASKS if name != "defined" or name in element.attrib}
    return PinRecord(
        thread=_thread_kind(element.attrib["thread"]),
        id=int(element.attrib["id"]),
        when_s=int(element.attrib["when_s"]),
        **masks,
    )


def _thread_kind(text: str) -> ThreadKind:
    for kind in get_args(ThreadKind):
        if text == kind:
            known: ThreadKind = kind
            return known
    raise ValueError(f"thread {shown(text)}")


# ---------------------------------------------------------------- how a record changes


def intend(record: Optional[Record], domain: Domain, move: Move, host_uuid: str, now_s: int) -> Record:
    """Return the record that must stand on *domain* before *move* is made."""
    if isinstance(move, PinMove):
        record = _ours(record, domain, host_uuid)
        return replace(record, pins=_with_pin(record.pins, _intend_pin(record, domain, move, now_s)))
    record = record or _ours(None, domain, host_uuid)
    if isinstance(move, BalloonMove):
        return replace(record, memory=_intend_memory(record.memory, domain, move, now_s))
    original_s = record.period.original_s if record.period else move.before_s
    return replace(record, period=PeriodRecord(original_s, move.before_s, move.after_s, now_s))


def _ours(record: Optional[Record], domain: Domain, host_uuid: str) -> Record:
    """Return a record for pins of this host: those of another host mean nothing here (decision 13).

    The record's host is that of its pins; the rest of it means the same on every host.
    """
    if record is None:
        return Record(host_uuid=host_uuid, domain_id=domain.id)
    pins = record.pins if record.host_uuid == host_uuid else ()
    return replace(record, host_uuid=host_uuid, pins=pins)


def _intend_memory(part: Optional[MemoryRecord], domain: Domain, move: BalloonMove, now_s: int) -> MemoryRecord:
    original_kib = part.original_kib if part else move.before_kib
    lacking_kib = max(0, original_kib - move.after_kib)
    ordered_kib = min((part.ordered_kib if part else 0) + move.ordered_kib, lacking_kib)
    # A move that calls a request back begins at that request's target, where the balloon need not be.
    actual_kib = domain.balloon.actual_kib if part and domain.balloon else move.before_kib
    reach_kib = _reach(part, actual_kib) if part else ()
    return MemoryRecord(original_kib, actual_kib, move.after_kib, now_s, reach_kib, ordered_kib, _most_kib(domain))


def _most_kib(domain: Domain) -> int:
    return domain.balloon.most_kib if domain.balloon else 0


def _reach(part: MemoryRecord, actual_kib: int) -> tuple[int, ...]:
    """Return the lowest and highest size that earlier requests may still bring: one in between was set by us."""
    if abs(actual_kib - part.intended_kib) <= BALLOON_TOLERANCE_KIB:
        return ()
    low_kib, high_kib = part.span_kib()
    return min(low_kib, actual_kib), max(high_kib, actual_kib)


def _intend_pin(record: Record, domain: Domain, move: PinMove, now_s: int) -> PinRecord:
    part = record.pin(move.thread, move.id)
    original = part.original if part else move.before
    defined = part.defined if part else _defined(domain, move)
    return PinRecord(move.thread, move.id, original, move.before, move.after, now_s, defined)


def copied(
    live: Optional[Record], inactive: Optional[Record], domain_id: int, started_s: Optional[float], resumed: bool
) -> Optional[str]:
    """Return why the record of a domain can't be taken for its own, where its persistent definition has one.

    A clone began with that. Who defines a running domain by its own live XML copies a record, too, but one that
    was begun in this very run. After a save and restore, or a step of the clock, the two can't be told apart.
    *started_s* is when its process did, where that is known; *resumed*: it went on from a saved state.
    """
    if inactive is None or (live is not None and live != inactive):
        return None
    if live is None:
        return COPY
    same_id = live.domain_id == domain_id
    if same_id and started_s is not None and live.latest_s >= started_s:
        return None
    return DOUBTFUL if same_id or resumed else COPY


def _defined(domain: Domain, move: PinMove) -> Optional[CpuSet]:
    """Return the pin in the definition of a thread, before ours."""
    if move.thread == "vcpu":
        return next((vcpu.definition for vcpu in domain.vcpus if vcpu.id == move.id), None)
    threads = (thread for thread in domain.threads if (thread.kind, thread.id) == (move.thread, move.id))
    return next((thread.definition for thread in threads), None)


def _with_pin(pins: tuple[PinRecord, ...], new: PinRecord) -> tuple[PinRecord, ...]:
    others = [pin for pin in pins if (pin.thread, pin.id) != (new.thread, new.id)]
    return tuple(sorted((*others, new), key=lambda pin: (pin.thread, pin.id)))


def adopt(record: Optional[Record], domain: Domain, adoption: Adoption, host_uuid: str, now_s: int) -> Record:
    """Return the record after a person's value became the new original; it marks the start of the grace period."""
    if adoption.memory_kib is not None:
        kib = adoption.memory_kib
        part = MemoryRecord(kib, kib, kib, now_s, most_kib=_most_kib(domain))
        return replace(record or _ours(None, domain, host_uuid), memory=part)
    record = _ours(record, domain, host_uuid)
    for pin in adoption.pins:
        record = replace(record, pins=_with_pin(record.pins, replace(pin, when_s=now_s)))
    return record


def resized(record: Optional[Record], balloon: Optional[Balloon]) -> Optional[Record]:
    """Return *record* as if all of what *balloon* can have now had been there when it was written.

    QEMU adds a DIMM to a balloon's size and to where that was sent, in the moment when it is plugged.
    """
    part = record.memory if record else None
    if record is None or part is None or balloon is None or balloon.virtio_mem:
        return record
    most_kib = balloon.most_kib
    if part.most_kib in (0, most_kib):
        return record

    def now_kib(kib: int) -> int:
        return min(max(PAGE_KIB, kib + most_kib - part.most_kib), most_kib)

    sizes = {name: now_kib(getattr(part, name)) for name in ("original_kib", "previous_kib", "intended_kib")}
    reach_kib = tuple(map(now_kib, part.reach_kib))
    return replace(record, memory=replace(part, **sizes, reach_kib=reach_kib, most_kib=most_kib))


def without_restored(record: Record, domain: Domain, memory: bool, pins: bool) -> Optional[Record]:
    """Return what is left of *record* without all that is back at its original; None: nothing.

    *memory* and *pins* say which parts a release was about; the other one's part stays. Of a domain that
    does not answer all of it is left: what it has is not known, and what it was asked may still happen.
    """
    if domain.busy:
        return record
    if memory:
        record = replace(record, memory=_unrestored_memory(record, domain), period=_unrestored_period(record, domain))
    if pins and domain.vcpus:
        here = {("vcpu", vcpu.id): vcpu.pin for vcpu in domain.vcpus}
        here.update({(thread.kind, thread.id): thread.pin for thread in domain.threads})
        record = replace(record, pins=tuple(pin for pin in record.pins if _unrestored_pin(pin, here)))
    return record if record.memory or record.period or record.pins else None


def left_over(record: Optional[Record], domain: Domain, memory: bool, pins: bool) -> Optional[str]:
    """Return what *record* still has to give back of one resource or both, in a few words; None: nothing."""
    if domain.record_error not in (None, COPY):
        return unreadable(domain) or _to_be_read(domain)
    if record is None:
        return None
    if memory and record.memory:
        size = mib(domain.balloon.actual_kib) if domain.balloon else "an unknown size"
        part = record.memory
        return f"it has {size}, was last sent to {mib(part.intended_kib)}, and its original is {mib(part.original_kib)}"
    if memory and record.period:
        return f"its statistics period is not its original {record.period.original_s} s"
    # What is unplugged runs nowhere: that part stays on record, and is nothing to run a release again for.
    unplugged = domain.unplugged
    there = [pin for pin in record.pins if (pin.thread, pin.id) not in unplugged]
    if pins and there:
        return "not on its original pCPUs: " + ", ".join(
            f"{pin.thread} {pin.id} ({format_cpuset(pin.original)})".replace("vcpu", "vCPU") for pin in there
        )
    return None


def left_of(record: Optional[Record], domain: Domain, memory: bool, pins: bool) -> Optional[Left]:
    """Return the same as left_over(), of a domain that is not about to be restored."""
    why = left_over(record, domain, memory, pins)
    if why is None:
        return None
    unreadable = domain.record_error not in (None, UNREAD)
    return Left(domain.name, domain.uuid, why, limited=unreadable, command_told=unreadable)


def fault(domain: Domain) -> Optional[str]:
    """Return why the record on *domain* can't be used, and the command that ends that; None where it can be."""
    if domain.record_error == COPY:
        return f"{COPY}; {_removal(domain.uuid, '--live --config')} removes it"
    if domain.record_error == UNREAD:
        return f"{UNREAD}, the next pass reads it"
    return unreadable(domain) or _to_be_read(domain)


def unreadable(domain: Domain) -> Optional[str]:
    """Return why no release can give back what *domain* had, and what ends that; None where its record can be read."""
    if domain.record_error in (None, COPY, DOUBTFUL, UNREAD):
        return None
    everywhere = "--live --config" if domain.persistent else "--live"
    return (
        f"{domain.record_error}: it keeps what it has, for this kvmsched can't restore it (a newer one may);"
        f" {_removal(domain.uuid, everywhere)} removes the record"
    )


def _to_be_read(domain: Domain) -> Optional[str]:
    if domain.record_error != DOUBTFUL:
        return domain.record_error
    command = _removal(domain.uuid, "--config")
    return f"{DOUBTFUL}; if its own, {command} lets it be released, if a copy, with --live as well"


def _removal(uuid: str, where: str) -> str:
    """Return the command that takes the record off; by UUID, for a name may be anything."""
    return f"`{removal(uuid, where)}`"


def removal(uuid: str, where: str = "--live") -> str:
    """Return the command that ends all that is owed to a domain by its record: it keeps what it has."""
    return f"virsh metadata {uuid} {STATE_URI} {where} --remove"


def _unrestored_memory(record: Record, domain: Domain) -> Optional[MemoryRecord]:
    """Return the part that stays: a balloon at its original, but last sent elsewhere, may still go there."""
    part, balloon = record.memory, domain.balloon
    if part is None or balloon is None:
        return part
    home_kib = min(part.original_kib, balloon.most_kib)
    home = abs(balloon.actual_kib - home_kib) <= BALLOON_TOLERANCE_KIB
    return None if home and abs(part.intended_kib - home_kib) < PAGE_KIB else part


def _unrestored_period(record: Record, domain: Domain) -> Optional[PeriodRecord]:
    part, balloon = record.period, domain.balloon
    if part is None or balloon is None:
        return part
    # What somebody else set since is not ours to restore.
    ours = balloon.period_s in (part.previous_s, part.intended_s)
    return part if ours and balloon.period_s != part.original_s else None


def _unrestored_pin(pin: PinRecord, here: dict[tuple[str, int], CpuSet]) -> bool:
    """Return whether the thread still differs from its original; one that is gone, with its pin, does not."""
    current = here.get((pin.thread, pin.id))
    return current is not None and current != pin.original
