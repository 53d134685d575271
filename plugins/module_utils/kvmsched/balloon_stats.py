# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What libvirt's statistics say of a balloon, within the bounds of what can be. Pure.

The guest itself writes its balloon's size into a register (virtio 1.2, 5.5.4), and its driver tells the statistics:
whoever is root there may tell anything. And libvirt passes on what it gets, and even wraps what is negative.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Mapping, Optional

from .model import BALLOON_TOLERANCE_KIB, PAGE_KIB, Balloon

_MOST = 2**64 - 1


def counter(value: object) -> Optional[int]:
    """Return a number that QEMU, libvirt and kernel can count to; anything else is not known."""
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if 0 <= value <= _MOST else None


def within(size_kib: object, maximum_kib: int) -> int:
    """Return the size of a balloon; one that tells what can't be, or nothing, may have all of its maximum.

    No guest runs in less than a page.
    """
    kib = counter(size_kib)
    return kib if kib is not None and kib >= PAGE_KIB and _fits(kib, maximum_kib) else maximum_kib


def _fits(kib: int, maximum_kib: int) -> bool:
    return kib <= maximum_kib + BALLOON_TOLERANCE_KIB


def outgrown(balloon: Balloon, record: Mapping[str, Any]) -> bool:
    """Return whether its definition is too old for this bulk *record*: its maximum is another, or not enough."""
    maximum_kib = counter(record.get("balloon.maximum"))
    size_kib = counter(record.get("balloon.current")) or 0
    return maximum_kib is not None and (maximum_kib != balloon.maximum_kib or not _fits(size_kib, maximum_kib))


def measured(balloon: Optional[Balloon], record: Mapping[str, Any]) -> Optional[Balloon]:
    """Return *balloon*, known by its definition, with what a bulk *record* says; what that lacks is unknown.

    A size that can't be voids the whole reading, a counter that can't be only itself.
    """
    maximum_kib = counter(record.get("balloon.maximum"))
    if maximum_kib is None:
        return balloon
    balloon = balloon or Balloon(maximum_kib, maximum_kib)
    told_kib = record.get("balloon.current", balloon.maximum_kib)
    actual_kib = within(told_kib, balloon.maximum_kib)
    sizes = [record.get(f"balloon.{name}", 0) for name in ("unused", "usable", "disk_caches")]
    void = counter(told_kib) != actual_kib or not all(_is_size(kib, balloon.maximum_kib) for kib in sizes)
    read = {} if void else record
    return replace(
        balloon,
        void=void,
        actual_kib=actual_kib,
        unused_kib=read.get("balloon.unused"),
        usable_kib=read.get("balloon.usable"),
        disk_caches_kib=read.get("balloon.disk_caches"),
        swap_in_kib=counter(record.get("balloon.swap_in")),
        swap_out_kib=counter(record.get("balloon.swap_out")),
        major_faults=counter(record.get("balloon.major_fault")),
        rss_kib=counter(record.get("balloon.rss")),
        last_update_s=counter(record.get("balloon.last-update")) or 0,
    )


def _is_size(kib: object, maximum_kib: int) -> bool:
    known_kib = counter(kib)
    return known_kib is not None and _fits(known_kib, maximum_kib)
