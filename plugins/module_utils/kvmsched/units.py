# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The text forms of sizes and CPU sets: ``150M`` and ``0-3,8`` outside, KiB and frozensets inside."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Iterable, Optional

CpuSet = frozenset[int]

# libvirt's RPC carries CPU maps of at most 2,048 bytes (REMOTE_CPUMAP_MAX): no pCPU id is larger.
MAX_PCPU_ID = 16383

_KIB_PER_SUFFIX = {"K": 1, "M": 1024, "G": 1024**2, "T": 1024**3}
_SIZE = re.compile(r"([0-9]{1,13}(?:\.[0-9]{1,6})?)([KMGT])(?:iB)?", re.ASCII)
_PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,6})?)%", re.ASCII)
_CPU_RANGE = re.compile(r"(\^?)([0-9]{1,5})(?:-([0-9]{1,5}))?", re.ASCII)

# More than any host has; a larger size is a slip of the hand, and would overflow libvirt's unsigned long.
MAX_SIZE_KIB = 1024**4

SIZE_HELP = "a size such as 150M or 2G (suffixes K, M, G, T, 1024-based)"
AMOUNT_HELP = f"{SIZE_HELP}, or a percentage such as 5%"
CPUSET_HELP = "a CPU set such as 0-3,8 or 0-7,^2"


@dataclass(frozen=True)
class Amount:
    """A size in KiB or a share of some whole in percent: exactly one of the two is set."""

    kib: Optional[int] = None
    pct: Optional[float] = None

    def of(self, whole_kib: int) -> int:
        """The amount in KiB, where a percentage is taken of *whole_kib*."""
        if self.kib is not None:
            return self.kib
        return int(whole_kib * (self.pct or 0.0) / 100)

    def __str__(self) -> str:
        return f"{self.pct:g}%" if self.kib is None else exact_size(self.kib)


def parse_size(text: str) -> int:
    """Return *text* (``150M``, ``1.5G``, ``512KiB``) in KiB; ValueError says what is allowed."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(SIZE_HELP + _spelling_hint(text.strip()))
    kib = int(float(match.group(1)) * _KIB_PER_SUFFIX[match.group(2)])
    if kib > MAX_SIZE_KIB:
        raise ValueError(f"at most {exact_size(MAX_SIZE_KIB)}")
    return kib


def parse_amount(text: str) -> Amount:
    """Return *text* (a size, or ``5%``) as an Amount; ValueError says what is allowed."""
    match = _PERCENT.fullmatch(text.strip())
    if match is None:
        if text.strip().endswith("%"):
            raise ValueError("a percentage from 0% to 100%")
        try:
            return Amount(kib=parse_size(text))
        except ValueError as error:
            raise ValueError(str(error).replace(SIZE_HELP, AMOUNT_HELP)) from None
    pct = float(match.group(1))
    if pct > 100:
        raise ValueError("a percentage from 0% to 100%")
    return Amount(pct=pct)


def _spelling_hint(text: str) -> str:
    """Name the spelling that was probably meant: ``150`` and ``150MB`` say no unit that we can trust."""
    match = re.fullmatch(r"([0-9.]+)\s*([KMGTkmgt]?)[bB]?", text, re.ASCII)
    if match is None:
        return ""
    return f"; did you mean {match.group(1)}{match.group(2).upper() or 'M'}?"


def exact_size(kib: int) -> str:
    """*kib* in the largest unit that loses nothing, in a form parse_size() reads: ``2G``, ``150M``, ``170004K``."""
    for suffix in "TGM":
        if kib and kib % _KIB_PER_SUFFIX[suffix] == 0:
            return f"{kib // _KIB_PER_SUFFIX[suffix]}{suffix}"
    return f"{kib}K"


def mib(kib: int) -> str:
    """*kib* rounded to MiB, for people: ``2048M``."""
    return f"{round(kib / 1024)}M"


def parse_cpuset(text: str) -> CpuSet:
    """Return libvirt's cpuset syntax (``0-3,^2,8``) as a frozenset; ValueError says what is allowed."""
    wanted: set[int] = set()
    for part in text.split(","):
        match = _CPU_RANGE.fullmatch(part.strip())
        if match is None:
            raise ValueError(CPUSET_HELP)
        first = int(match.group(2))
        last = int(match.group(3) or first)
        if last < first or last > MAX_PCPU_ID:
            raise ValueError(f"{CPUSET_HELP}, with rising ranges and ids up to {MAX_PCPU_ID}")
        cpus = range(first, last + 1)
        if match.group(1):
            wanted.difference_update(cpus)
        else:
            wanted.update(cpus)
    if not wanted:
        raise ValueError(f"{CPUSET_HELP}, naming at least one CPU")
    return frozenset(wanted)


def format_cpuset(cpus: Iterable[int]) -> str:
    """The shortest cpuset syntax of *cpus*: ``0-3,8``; empty for no CPU."""
    parts: list[str] = []
    ids = sorted(cpus)
    start = 0
    for index, cpu in enumerate(ids):
        if index + 1 < len(ids) and ids[index + 1] == cpu + 1:
            continue
        parts.append(str(cpu) if ids[start] == cpu else f"{ids[start]}-{cpu}")
        start = index + 1
    return ",".join(parts)
