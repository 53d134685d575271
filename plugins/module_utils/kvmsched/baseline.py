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
    BalloonMove,
    Domain,
    MemoryRecord,
    Move,
    PeriodRecord,
    PinMove,
    PinRecord,
    Record,
    ThreadKind,
)
from .units import CpuSet, format_cpuset, mib, parse_cpuset

STATE_URI = "urn:kvmsched:state/1"
OWNER_URI = "urn:kvmsched:policy/1"
# libvirt wants a prefix for the namespace of each element that it stores.
STATE_PREFIX = "kvmsched"
VERSION = 1
# Why a domain is left alone whose record never was its own. It owes nothing by it.
COPY = "its persistent definition carries a record of another domain: a copy, ignored"
# The same where it may be its own: then it owes something, but nobody knows what.
DOUBTFUL = "its persistent definition carries the same record: whether that is its own or a copy is not known"

# ---------------------------------------------------------------- to and from XML


def encode(record: Record) -> str:
    """The record as the XML element that virDomainSetMetadata takes."""
    root = ET.Element("state", version=str(VERSION), host=record.host_uuid, domain=str(record.domain_id))
    if record.memory is not None:
        ET.SubElement(root, "memory", _memory(record.memory))
    if record.period is not None:
        period = _numbers(record.period, "original_s", "previous_s", "intended_s", "when_s")
        ET.SubElement(root, "stats_period", period)
    for pin in record.pins:
        masks = {name: format_cpuset(getattr(pin, name)) for name in ("original", "previous", "intended")}
        ET.SubElement(root, "pin", {"thread": pin.thread, "id": str(pin.id), "when_s": str(pin.when_s), **masks})
    return ET.tostring(root, encoding="unicode")


def _memory(part: MemoryRecord) -> dict[str, str]:
    reach = {"reach_kib": " ".join(map(str, part.reach_kib))} if part.reach_kib else {}
    return {**_numbers(part, "original_kib", "previous_kib", "intended_kib", "when_s"), **reach}


def _numbers(part: object, *names: str) -> dict[str, str]:
    return {name: str(getattr(part, name)) for name in names}


def decode(element: ET.Element) -> Record:
    """Read a record; ValueError in one line where it is of a newer version or damaged."""
    version = element.get("version", "")
    if version != str(VERSION):
        raise ValueError(f"its record has version {version or 'unknown'}, this kvmsched reads version {VERSION}")
    try:
        _check_numbers(element)
        memory = _part(element, "memory")
        period = _part(element, "stats_period")
        return Record(
            host_uuid=element.attrib["host"],
            domain_id=int(element.attrib["domain"]),
            memory=None if memory is None else _decode_memory(memory),
            period=None if period is None else PeriodRecord(**{key: int(text) for key, text in period.items()}),
            pins=tuple(_decode_pin(child) for child in element if _local_name(child) == "pin"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"its record is damaged ({error})") from None


def _check_numbers(element: ET.Element) -> None:
    """ValueError for what can't be a size or a time, though Python would read it."""
    numbers = (value for child in element for key, value in child.attrib.items() if key.endswith(("_kib", "_s")))
    for text in (text for value in numbers for text in value.split()):
        if not (text.isascii() and text.isdigit()) or len(text) > 15:
            raise ValueError(f"number {text[:20]!r}")


def _decode_memory(attributes: dict[str, str]) -> MemoryRecord:
    reach_kib = tuple(int(text) for text in attributes.pop("reach_kib", "").split())
    return MemoryRecord(**{key: int(text) for key, text in attributes.items()}, reach_kib=reach_kib)


def _part(element: ET.Element, name: str) -> Optional[dict[str, str]]:
    return next((dict(child.attrib) for child in element if _local_name(child) == name), None)


def _local_name(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]


def _decode_pin(element: ET.Element) -> PinRecord:
    masks = {name: parse_cpuset(element.attrib[name]) for name in ("original", "previous", "intended")}
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
    raise ValueError(f"thread {text!r}")


# ---------------------------------------------------------------- how a record changes


def intend(record: Optional[Record], domain: Domain, move: Move, host_uuid: str, now_s: int) -> Record:
    """The record that must stand on *domain* before *move* is made."""
    if isinstance(move, PinMove):
        record = _ours(record, domain, host_uuid)
        return replace(record, pins=_with_pin(record.pins, _intend_pin(record, move, now_s)))
    record = record or _ours(None, domain, host_uuid)
    if isinstance(move, BalloonMove):
        return replace(record, memory=_intend_memory(record.memory, domain, move, now_s))
    original_s = record.period.original_s if record.period else move.before_s
    return replace(record, period=PeriodRecord(original_s, move.before_s, move.after_s, now_s))


def _ours(record: Optional[Record], domain: Domain, host_uuid: str) -> Record:
    """A record for pins of this host: those of another host mean nothing here (decision 13).

    The record's host is that of its pins; the rest of it means the same on every host.
    """
    if record is None:
        return Record(host_uuid=host_uuid, domain_id=domain.id)
    pins = record.pins if record.host_uuid == host_uuid else ()
    return replace(record, host_uuid=host_uuid, pins=pins)


def _intend_memory(part: Optional[MemoryRecord], domain: Domain, move: BalloonMove, now_s: int) -> MemoryRecord:
    if part is None:
        return MemoryRecord(move.before_kib, move.before_kib, move.after_kib, now_s)
    reach_kib = _reach(part, domain.balloon.actual_kib if domain.balloon else move.before_kib)
    return MemoryRecord(part.original_kib, move.before_kib, move.after_kib, now_s, reach_kib)


def _reach(part: MemoryRecord, actual_kib: int) -> tuple[int, ...]:
    """What may become of the requests until now, should the next one be recorded and never come: all that is ours."""
    if abs(actual_kib - part.intended_kib) <= BALLOON_TOLERANCE_KIB:
        return ()
    low_kib, high_kib = part.span_kib()
    return min(low_kib, actual_kib), max(high_kib, actual_kib)


def _intend_pin(record: Record, move: PinMove, now_s: int) -> PinRecord:
    part = record.pin(move.thread, move.id)
    original = part.original if part else move.before
    return PinRecord(move.thread, move.id, original, move.before, move.after, now_s)


def _with_pin(pins: tuple[PinRecord, ...], new: PinRecord) -> tuple[PinRecord, ...]:
    others = [pin for pin in pins if (pin.thread, pin.id) != (new.thread, new.id)]
    return tuple(sorted((*others, new), key=lambda pin: (pin.thread, pin.id)))


def adopt(record: Optional[Record], domain: Domain, adoption: Adoption, host_uuid: str, now_s: int) -> Record:
    """The record after a person's value became the new original; it marks the start of the grace period."""
    if adoption.memory_kib is not None:
        kib = adoption.memory_kib
        return replace(record or _ours(None, domain, host_uuid), memory=MemoryRecord(kib, kib, kib, now_s))
    record = _ours(record, domain, host_uuid)
    for pin in adoption.pins:
        record = replace(record, pins=_with_pin(record.pins, replace(pin, when_s=now_s)))
    return record


def without_restored(record: Record, domain: Domain, memory: bool, pins: bool) -> Optional[Record]:
    """What is left of *record* when all that is back at its original is struck off; None: nothing.

    *memory* and *pins* say which parts a release was about; the other one's part stays. Of a domain that
    does not answer nothing is struck off: what it has is not known, and what it was asked may still happen.
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
    """What *record* still has to give back of one resource or both, in a few words; None: nothing."""
    if domain.record_error not in (None, COPY):
        return domain.record_error
    if record is None:
        return None
    if memory and record.memory:
        size = mib(domain.balloon.actual_kib) if domain.balloon else "an unknown size"
        part = record.memory
        return f"{size}, last sent to {mib(part.intended_kib)}, its original is {mib(part.original_kib)}"
    if memory and record.period:
        return f"its statistics period is not its original {record.period.original_s} s"
    if pins and record.pins:
        return "not on its original pCPUs: " + ", ".join(
            f"{pin.thread} {pin.id} ({format_cpuset(pin.original)})" for pin in record.pins
        )
    return None


def _unrestored_memory(record: Record, domain: Domain) -> Optional[MemoryRecord]:
    """The part that stays: a balloon at its original, but last sent elsewhere, may still go there."""
    part, balloon = record.memory, domain.balloon
    if part is None or balloon is None:
        return part
    home_kib = min(part.original_kib, balloon.maximum_kib)
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
    """Whether the thread still differs from its original; one that is gone (hot-unplugged) does not."""
    current = here.get((pin.thread, pin.id))
    return current is not None and current != pin.original
