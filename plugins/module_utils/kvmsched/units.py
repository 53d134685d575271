# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The text forms of sizes and CPU sets: ``150M`` and ``0-3,8`` outside, KiB and frozensets inside.

And of what others wrote: cut to a bounded length, without characters that do something to a terminal.
"""

from __future__ import annotations

import re
import reprlib
from dataclasses import dataclass
from typing import Any, Iterable, Optional, Sequence

CpuSet = frozenset[int]

# libvirt's RPC carries CPU maps of at most 2,048 bytes (REMOTE_CPUMAP_MAX): no pCPU id is larger.
MAX_PCPU_ID = 16383
# The longest text that is needed: every second id, alone, is 47 KiB.
_LONGEST_CPUSET = 65536
# What all CPU sets of one document may name: four times all pCPUs. Each id costs some 64 bytes.
_MOST_IDS = 4 * (MAX_PCPU_ID + 1)

_KIB_PER_SUFFIX = {"K": 1, "M": 1024, "G": 1024**2, "T": 1024**3}
_SIZE = re.compile(r"([0-9]{1,13}(?:\.[0-9]{1,6})?)([KMGT])(?:iB)?", re.ASCII)
_PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,6})?)%", re.ASCII)
_CPU_RANGE = re.compile(r"(\^?)([0-9]{1,5})(?:-([0-9]{1,5}))?", re.ASCII)

# A sentence that names more guests is cut.
_MOST_NAMES = 3

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
        """Return the amount in KiB, where a percentage is taken of *whole_kib*."""
        if self.kib is not None:
            return self.kib
        return int(whole_kib * (self.pct or 0.0) / 100)

    def __str__(self) -> str:
        return f"{self.pct:g}%" if self.kib is None else exact_size(self.kib)


def parse_size(text: str) -> int:
    """Return *text* (``150M``, ``1.5G``, ``512KiB``) in KiB; ValueError says what is allowed."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(SIZE_HELP + spelling_hint(text.strip()))
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


def spelling_hint(text: str) -> str:
    """Name the spelling that was probably meant: ``150`` and ``150MB`` say no unit that we can trust."""
    match = re.fullmatch(r"([0-9.]+)\s*([KMGTkmgt]?)[bB]?", text, re.ASCII)
    if match is None:
        return ""
    return f"; did you mean {match.group(1)}{match.group(2).upper() or 'M'}?"


def exact_size(kib: int) -> str:
    """Return *kib* in the largest unit that loses nothing, for parse_size() to read: ``2G``, ``150M``, ``170004K``."""
    for suffix in "TGM":
        if kib and kib % _KIB_PER_SUFFIX[suffix] == 0:
            return f"{kib // _KIB_PER_SUFFIX[suffix]}{suffix}"
    return f"{kib}K"


def mib(kib: int) -> str:
    """Return *kib* rounded to MiB, for people: ``2048M``."""
    return f"{round(kib / 1024)}M"


def parse_cpuset(text: str) -> CpuSet:
    """Return libvirt's cpuset syntax (``0-3,^2,8``) as a frozenset; ValueError says what is allowed."""
    if len(text) > _LONGEST_CPUSET:
        raise ValueError(f"{CPUSET_HELP}, of at most {_LONGEST_CPUSET} characters")
    # As bits of one number: a range of any width costs next to nothing, however often it is named.
    wanted = 0
    for part in text.split(","):
        match = _CPU_RANGE.fullmatch(part.strip())
        if match is None:
            raise ValueError(CPUSET_HELP)
        first = int(match.group(2))
        last = int(match.group(3) or first)
        if last < first or last > MAX_PCPU_ID:
            raise ValueError(f"{CPUSET_HELP}, with rising ranges and ids up to {MAX_PCPU_ID}")
        cpus = ((1 << (last - first + 1)) - 1) << first
        wanted = wanted & ~cpus if match.group(1) else wanted | cpus
    if not wanted:
        raise ValueError(f"{CPUSET_HELP}, naming at least one CPU")
    return frozenset(cpu for cpu, bit in enumerate(reversed(f"{wanted:b}")) if bit == "1")


class CpuSets:
    """Reads the CPU sets of one document: the same text once, and so many ids in all as a host can have."""

    def __init__(self) -> None:
        self._read: dict[str, CpuSet] = {}
        self._left = _MOST_IDS

    def __call__(self, text: str) -> CpuSet:
        """Return the same as parse_cpuset(); ValueError also where all texts together name too many CPUs."""
        if text not in self._read:
            cpus = parse_cpuset(text)
            self._left -= len(cpus)
            if self._left < 0:
                raise ValueError(f"its CPU sets name more than {_MOST_IDS} CPUs")
            self._read[text] = cpus
        return self._read[text]


def format_cpuset(cpus: Iterable[int]) -> str:
    """Return the shortest cpuset syntax of *cpus*: ``0-3,8``; empty for no CPU."""
    parts: list[str] = []
    ids = sorted(cpus)
    start = 0
    for index, cpu in enumerate(ids):
        if index + 1 < len(ids) and ids[index + 1] == cpu + 1:
            continue
        parts.append(str(cpu) if ids[start] == cpu else f"{ids[start]}-{cpu}")
        start = index + 1
    return ",".join(parts)


# ---------------------------------------------------------------- what others wrote

# A line for people. It may name many domains, each of at most 255 characters.
LONGEST_LINE = 4000
_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxdict, _REPR.maxlist, _REPR.maxstring, _REPR.maxother = 2, 4, 4, 60, 60


def shown(value: Any, most: int = 60) -> str:
    """Return *value* as Python writes it, cut to *most* characters before it is written: it may be of any size."""
    if isinstance(value, str):
        value = value[:most]
    try:
        text = repr(value) if isinstance(value, str) else _REPR.repr(value)
    except ValueError:  # Python 3.11 and later write no number of so many digits
        text = f"a number of {value.bit_length()} bits" if isinstance(value, int) else "a value with a long number"
    return text if len(text) <= most else text[: most - 3] + "..."


def one_line(text: object, most: int = 300) -> str:
    """Return *text* as one line of at most *most* characters."""
    line = " ".join(str(text)[: 4 * most].split())
    return line if len(line) <= most else line[: most - 3] + "..."


def printable(text: str, most: int = LONGEST_LINE) -> str:
    """Return *text* cut to *most* characters, with ``?`` for each that does more than stand there.

    That is all that Unicode counts among controls, formats (the bidirectional ones, too), separators of
    lines and surrogates.
    """
    text = text if len(text) <= most else text[: most - 3] + "..."
    return text if text.isprintable() else "".join(char if char.isprintable() else "?" for char in text)


def escaped(text: str) -> str:
    """Return *text* with such characters as JSON escapes them (``\\u202e``): for documents, where nothing may be lost.

    Line feeds stay: in JSON they are between its parts only.
    """
    return "\n".join(
        line if line.isprintable() else "".join(char if char.isprintable() else _escape(char) for char in line)
        for line in text.split("\n")
    )


def _escape(char: str) -> str:
    code = char.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{code[first : first + 4]}" for first in range(0, len(code), 4))


def percent(fraction: float) -> float:
    """Return a fraction in percent, with one digit after the point."""
    return round(100 * fraction, 1)


def first_of(names: Sequence[str]) -> str:
    """Return *names* for a sentence; of many the first, and how many more there are."""
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


def counted(number: int, noun: str) -> str:
    """Return ``1 guest``, ``2 guests``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
