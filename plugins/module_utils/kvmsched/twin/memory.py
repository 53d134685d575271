# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a guest would tell if its balloon had another size, while it uses what it used."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..model import Balloon

# What a guest's kernel keeps free, whatever is asked of it.
_FREE_KIB = 10 * 1024
_PAGE_KIB = 4


@dataclass(frozen=True)
class Squeezed:
    """What a smaller size costs a guest: cache that is gone, and memory that it uses and does not have."""

    cache_kib: int = 0
    short_kib: int = 0


def resized(balloon: Balloon, actual_kib: int) -> tuple[Balloon, Squeezed]:
    """Return *balloon* as it would tell of itself at *actual_kib*, and what that costs its guest.

    More memory is unused at first. Less comes out of what is unused, then out of the cache, then out of what is used.
    """
    more_kib = actual_kib - balloon.actual_kib
    if not more_kib:
        return balloon, Squeezed()
    rss_kib = balloon.rss_kib
    if rss_kib is not None and more_kib < 0:
        rss_kib = min(rss_kib, actual_kib + max(0, rss_kib - balloon.actual_kib))
    told = replace(balloon, actual_kib=actual_kib, rss_kib=rss_kib)
    unused_kib, usable_kib = balloon.unused_kib, balloon.usable_kib
    if unused_kib is None:
        return told, Squeezed()
    if more_kib > 0:
        usable_kib = None if usable_kib is None else usable_kib + more_kib
        return replace(told, unused_kib=unused_kib + more_kib, usable_kib=usable_kib), Squeezed()
    return _smaller(told, unused_kib, -more_kib)


def _smaller(told: Balloon, unused_kib: int, less_kib: int) -> tuple[Balloon, Squeezed]:
    free_kib = min(less_kib, max(0, unused_kib - _FREE_KIB))
    usable_kib = unused_kib + (told.disk_caches_kib or 0) if told.usable_kib is None else told.usable_kib
    cache_kib = min(less_kib - free_kib, max(0, usable_kib - unused_kib))
    caches_kib = told.disk_caches_kib
    changed = replace(
        told,
        unused_kib=unused_kib - free_kib,
        usable_kib=None if told.usable_kib is None else max(0, told.usable_kib - less_kib),
        disk_caches_kib=None if caches_kib is None else max(0, caches_kib - cache_kib),
    )
    return changed, Squeezed(cache_kib, less_kib - free_kib - cache_kib)


def read_again(balloon: Balloon, read_kib: int, swapped_kib: int) -> Balloon:
    """Return *balloon* after its guest read so much more from its disk, and from its swap, than was recorded."""
    faults, swap_in_kib, swap_out_kib = balloon.major_faults, balloon.swap_in_kib, balloon.swap_out_kib
    return replace(
        balloon,
        major_faults=None if faults is None else faults + read_kib // _PAGE_KIB,
        swap_in_kib=None if swap_in_kib is None else swap_in_kib + swapped_kib,
        swap_out_kib=None if swap_out_kib is None else swap_out_kib + swapped_kib,
    )
