# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the daemon's own process costs, as the metrics that every program has for Prometheus."""

from __future__ import annotations

import os
import resource
from typing import Iterable

from .exposition import Counter, Family, Gauge


def families() -> Iterable[Family]:
    """Return the metrics of this process; none where /proc does not tell."""
    try:
        with open("/proc/self/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        with open("/proc/stat", encoding="utf-8") as file:
            booted_s = next(int(line.split()[1]) for line in file if line.startswith("btime "))
        descriptors = len(os.listdir("/proc/self/fd"))
    except (OSError, StopIteration, ValueError):
        return
    tick = os.sysconf("SC_CLK_TCK")
    user, system, started, virtual, pages = (int(fields[place]) for place in (11, 12, 19, 20, 21))
    yield Counter("kvmsched_process_cpu_seconds", "Time that the daemon ran.", (user + system) / tick)
    for name, text, value in (
        ("virtual_memory_bytes", "Its virtual memory.", virtual),
        ("resident_memory_bytes", "Its resident memory.", pages * os.sysconf("SC_PAGE_SIZE")),
        ("start_time_seconds", "When it was started.", booted_s + started / tick),
        ("open_fds", "Its open files.", descriptors),
        ("max_fds", "How many it may open.", resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
    ):
        yield Gauge(f"kvmsched_process_{name}", text, value)
