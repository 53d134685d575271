# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The example of docs/replay.md: half an hour of a made-up host, as a record and as a trace.

    python benchmarks/example_night.py docs/examples

Eight guests share four pCPUs, which they fill to 85 % at most, and all of them float. After some minutes
their jobs begin: a database grows beyond the memory that it has, and a file server keeps a large cache.
"""

from __future__ import annotations

import argparse
import csv
import math
import random
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Iterator

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "plugins" / "module_utils"), str(ROOT / "tests" / "unit")]

from kvmsched.app import recorder
from kvmsched.app.record import Context, Entry
from kvmsched.model import Balloon, Domain, Host, HostMemory, Snapshot, Vcpu
from vcpu_worlds import topology, uuid_of

PCPUS, VCPUS, STEP_S, MINUTES = 4, 2, 5, 30
MIB = 1024
HOST_MIB = 16 * 1024
BEGAN_S = 1_700_006_400.0


@dataclass(frozen=True)
class Guest:
    """What it has and may have, in MiB; what it uses and caches at first and at last; the load of a vCPU at most."""

    name: str
    size: int
    most: int
    used: tuple[int, int]
    cache: tuple[int, int]
    load: float


GUESTS = (
    Guest("db", 2048, 4096, (1300, 1960), (400, 60), 0.35),
    Guest("build", 2048, 2048, (500, 1100), (200, 700), 0.65),
    Guest("files", 3072, 3072, (400, 420), (1500, 2300), 0.15),
    Guest("mail", 1024, 1024, (500, 520), (250, 260), 0.1),
    Guest("web1", 1024, 1024, (450, 600), (200, 220), 0.25),
    Guest("web2", 1024, 1024, (450, 580), (200, 210), 0.25),
    Guest("ci", 2048, 2048, (300, 900), (300, 800), 0.4),
    Guest("idle", 1024, 1024, (200, 200), (120, 120), 0.02),
)


@dataclass(frozen=True)
class Minute:
    """What a guest does in one minute: the load of each vCPU, and what it uses and caches, in MiB."""

    load: float
    used: int
    cache: int


def minutes(guest: Guest) -> list[Minute]:
    """Its night, the same each time."""
    rng = random.Random(guest.name)
    found = []
    for number in range(MINUTES + 1):
        grown = min(1.0, max(0.0, (number - 6) / 12))
        wave = 0.55 + 0.45 * math.sin(number / 4 + len(guest.name))
        load = round(min(1.0, guest.load * (0.3 + 0.7 * wave * grown) * rng.uniform(0.8, 1.2)), 3)
        used, cache = (round(first + grown * (last - first)) for first, last in (guest.used, guest.cache))
        found.append(Minute(load, used + rng.randrange(12), cache))
    return found


def looks() -> Iterator[Snapshot]:
    """What would be seen every five seconds."""
    nights = {guest.name: minutes(guest) for guest in GUESTS}
    topology_ = topology(PCPUS)
    ran_us = dict.fromkeys(nights, 0)
    for number in range(MINUTES * 60 // STEP_S + 1):
        elapsed_s = number * STEP_S
        domains = []
        for place, guest in enumerate(GUESTS, 1):
            now = nights[guest.name][min(MINUTES, elapsed_s // 60)]
            ran_us[guest.name] += round(now.load * STEP_S * 1e6) if number else 0
            domains.append(_domain(guest, place, now, ran_us[guest.name], topology_.online, elapsed_s))
        busy_ns = dict.fromkeys(range(PCPUS), 1000 * VCPUS * sum(ran_us.values()) // PCPUS)
        left_kib = (HOST_MIB - sum(guest.size for guest in GUESTS)) * MIB
        host = Host(
            "host", "night", "qemu:///system", "QEMU", topology_, busy_ns, busy_ns, HostMemory(HOST_MIB * MIB, left_kib)
        )
        yield Snapshot(1000.0 + elapsed_s, BEGAN_S + elapsed_s, host, tuple(domains))


def _domain(guest: Guest, place: int, now: Minute, ran_us: int, online: frozenset[int], elapsed_s: int) -> Domain:
    vcpu = Vcpu(0, online, 1000 * ran_us, 1000 * ran_us // 20, online)
    size_kib, used_kib, cache_kib = (mib * MIB for mib in (guest.size, now.used, now.cache))
    usable_kib = max(0, size_kib - used_kib)
    balloon = Balloon(
        size_kib,
        guest.most * MIB,
        unused_kib=max(0, usable_kib - cache_kib),
        usable_kib=usable_kib,
        disk_caches_kib=min(usable_kib, cache_kib),
        swap_in_kib=0,
        swap_out_kib=0,
        major_faults=0,
        rss_kib=size_kib,
        last_update_s=int(BEGAN_S) + elapsed_s,
        period_s=STEP_S,
    )
    vcpus = tuple(replace(vcpu, id=number) for number in range(VCPUS))
    return Domain(uuid_of(guest.name), guest.name, place, started_s=BEGAN_S - 86400, vcpus=vcpus, balloon=balloon)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="where to write night.kvmrec.gz and night.csv")
    directory = parser.parse_args().directory
    file = recorder.File(str(directory / "night.kvmrec.gz"))
    for now in looks():
        file.add(Entry(now, Context()))
    file.close()
    with open(directory / "night.csv", "w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened, lineterminator="\n")
        writer.writerow(["time", "guest", "cpu", "memory_used", "cache", "memory", "vcpus"])
        for guest in GUESTS:
            for number, now in enumerate(minutes(guest)):
                cpu = round(100 * VCPUS * now.load, 1)
                writer.writerow([60 * number, guest.name, cpu, now.used, now.cache, guest.size, VCPUS])
    return 0


if __name__ == "__main__":
    sys.exit(main())
