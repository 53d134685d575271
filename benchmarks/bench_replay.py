# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a record of a day takes on disk and in CPU, and how long it takes to replay it.

    python benchmarks/bench_replay.py [--guests N] [--hours H] [--keep FILE] [--page FILE] [--json FILE]

The host is made up: each guest has four vCPUs whose load changes from look to look, to the microsecond, and memory
whose every figure changes with its statistics, to the page. A real host at rest changes less. With the defaults it is a
day of 100 guests, a look every 5 s.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Iterator

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "plugins" / "module_utils"), str(ROOT / "tests" / "unit")]

from kvmsched.app import page, record, recorder, replay
from kvmsched.app.bundle import Decided
from kvmsched.app.record import Context, Entry, Past
from kvmsched.config import load_daemon
from kvmsched.model import Balloon, Domain, Host, HostMemory, Snapshot, Vcpu
from vcpu_worlds import topology, uuid_of

PCPUS, VCPUS, STEP_S, STATISTICS_S = 64, 4, 5.0, 5
MIB, GIB = 1024, 1024 * 1024
BEGAN_S = 1_700_000_000.0


class MadeUp:
    """A host of many guests, in a day of which each does what it likes."""

    def __init__(self, guests: int, seed: int = 1) -> None:
        self._rng = random.Random(seed)
        self._topology = topology(PCPUS, threads=2, llc=16, cells=2)
        online = self._topology.online
        self._busy_ns = dict.fromkeys(sorted(online), 0)
        self._domains = [self._guest(number) for number in range(guests)]
        self._levels = [self._rng.lognormvariate(-2.2, 0.9) for _guest in range(guests)]
        self._phases = [self._rng.uniform(0, 2 * math.pi) for _guest in range(guests)]
        self._total_kib = sum(d.balloon.maximum_kib for d in self._domains if d.balloon) * 6 // 5

    def _guest(self, number: int) -> Domain:
        size = self._rng.choice((2, 4, 8, 16)) * GIB
        vcpus = tuple(Vcpu(n, self._topology.online, 0, 0, self._topology.online) for n in range(VCPUS))
        balloon = Balloon(
            size, size, rss_kib=size, period_s=STATISTICS_S, swap_in_kib=0, swap_out_kib=0, major_faults=0
        )
        name = f"guest-{number:03}"
        return Domain(uuid_of(name), name, number + 1, started_s=BEGAN_S - 86400, vcpus=vcpus, balloon=balloon)

    def looks(self, count: int) -> Iterator[Snapshot]:
        for number in range(count):
            elapsed_s = STEP_S * number
            self._domains = [self._next(n, domain, elapsed_s) for n, domain in enumerate(self._domains)]
            resident_kib = sum(d.balloon.rss_kib or 0 for d in self._domains if d.balloon)
            memory = HostMemory(self._total_kib, self._total_kib - resident_kib - self._rng.randrange(GIB))
            bound_ns = dict(self._busy_ns)
            host = Host(
                "host", "made-up", "qemu:///system", "QEMU", self._topology, dict(self._busy_ns), bound_ns, memory
            )
            yield Snapshot(1000 + elapsed_s, BEGAN_S + elapsed_s, host, tuple(self._domains))

    def _next(self, number: int, domain: Domain, elapsed_s: float) -> Domain:
        rng = self._rng
        wave = 1 + 0.6 * math.sin(2 * math.pi * elapsed_s / 86400 + self._phases[number])
        if rng.random() < 0.001:
            self._levels[number] = rng.lognormvariate(-2.2, 0.9)
        vcpus = []
        for vcpu in domain.vcpus:
            load = min(1.0, self._levels[number] * wave * rng.lognormvariate(0, 0.4))
            ran_us, waited_us = int(load * STEP_S * 1e6), int(load * STEP_S * 1e6 * rng.random() * 0.05)
            vcpus.append(replace(vcpu, time_ns=vcpu.time_ns + 1000 * ran_us, delay_ns=vcpu.delay_ns + 1000 * waited_us))
            # The kernel wakes it near to where it was.
            for near in range(4):
                self._busy_ns[(3 * number + vcpu.id + near) % PCPUS] += 250 * ran_us
        balloon = domain.balloon
        assert balloon is not None
        size = balloon.actual_kib
        used = int(size * min(0.97, 0.45 + 0.3 * wave * rng.lognormvariate(-0.7, 0.05)))
        cache = int((size - used) * 0.6) + rng.randrange(1000) * 4
        balloon = replace(
            balloon,
            unused_kib=max(0, size - used - cache) // 4 * 4,
            usable_kib=max(0, size - used) // 4 * 4,
            disk_caches_kib=cache // 4 * 4,
            major_faults=(balloon.major_faults or 0) + (rng.randrange(40) if rng.random() < 0.3 else 0),
            rss_kib=size - rng.randrange(2000) * 4 if rng.random() < 0.2 else balloon.rss_kib,
            last_update_s=int(BEGAN_S + elapsed_s) - number % STATISTICS_S,
        )
        return replace(domain, vcpus=tuple(vcpus), balloon=balloon)


def write(path: Path, guests: int, looks: int) -> dict[str, float]:
    """Record a day; return its size, and what a look cost. The passes before each look are made only in the first hour.

    Their cost is not the record's.
    """
    file = recorder.File(str(path))
    passes = replay.Passes(load_daemon({}))
    spent_s, decided_s = 0.0, 0.0
    for number, now in enumerate(MadeUp(guests).looks(looks)):
        pasts, decided = {}, {}
        if number < 720:
            pasts = {"memory": Past(*passes.memory), "vcpu": Past(*passes.vcpu)}
            began_s = time.process_time()
            memory, vcpu = passes.decide_memory(now, None)[0], passes.decide_vcpu(now)
            decided_s += time.process_time() - began_s
            decided = {"memory": Decided(memory.moves, ()), "vcpu": Decided(vcpu.moves, ())}
        began_s = time.process_time()
        file.add(Entry(now, Context(), pasts, decided))
        spent_s += time.process_time() - began_s
    file.close()
    return {
        "mib": file.size / 2**20,
        "bytes_a_guest_and_look": file.size / guests / looks,
        "add_ms": 1e3 * spent_s / looks,
        "core_pct": 100 * spent_s / looks / STEP_S,
        "decide_ms": 1e3 * decided_s / min(looks, 720),
    }


def timed(source: replay.Source, jobs: list[replay.Job], picture: bool) -> tuple[float, float, list[replay.Result]]:
    """Seconds that passed, seconds of CPU, and the results."""
    began_s, cpu_s = time.monotonic(), _children_s()
    results = replay.play_all(source, jobs, picture=picture)
    return time.monotonic() - began_s, _children_s() - cpu_s, results


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guests", type=int, default=100)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--keep", type=Path, help="leave the record in this file")
    parser.add_argument("--page", type=Path, help="write the report of the replay at all looks to this file")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    arguments = parser.parse_args()
    looks = round(arguments.hours * 3600 / STEP_S)
    figures: dict[str, Any] = {"guests": arguments.guests, "looks": looks}
    with tempfile.TemporaryDirectory() as directory:
        path = arguments.keep or Path(directory) / f"day{record.SUFFIX}"
        figures.update(write(path, arguments.guests, looks))
        print(
            f"{looks} looks at {arguments.guests} guests: {figures['mib']:.1f} MiB,"
            f" {figures['bytes_a_guest_and_look']:.1f} bytes a guest and look. To write a look takes"
            f" {figures['add_ms']:.2f} ms of CPU, {figures['core_pct']:.3f} % of a core;"
            f" to decide {figures['decide_ms']:.1f} ms"
        )
        jobs = [replay.Job(replay.UNTOUCHED), replay.Job("auto", {})]
        for step_s in (60.0, 0.0):
            spent_s, cpu_s, results = timed(replay.Source((str(path),), step_s=step_s), jobs, bool(arguments.page))
            figures[f"replay_{step_s:g}_s"] = {"s": spent_s, "cpu_s": cpu_s}
            cpus = len(os.sched_getaffinity(0))
            looks_ = results[0].figures.looks
            print(f"replay, {looks_} looks, {len(jobs)} jobs on {cpus} CPUs: {spent_s:.0f} s, {cpu_s:.0f} s of CPU")
    if arguments.page:
        arguments.page.write_text(page.html(results), encoding="utf-8")
        print(f"the page has {arguments.page.stat().st_size / 2**20:.2f} MiB")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
