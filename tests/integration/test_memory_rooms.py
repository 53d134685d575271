# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A memory limit on the cgroup of all machines: what it leaves is given to the real guests in it once, not to each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from face import run_ok
from lab import Guest, Lab, RunningGuest

MIB = 1024
NAMES = [f"kvmsched-test-{name}" for name in ("one", "two")]
OPTIONS = {"domains": ["kvmsched-test-*"], "starvation": "100M", "waste": "200M", "reclaim": "eager"}
# Enough for one of two guests in need.
ROOM_MIB = 80
# What QEMUs and the kernel's own pages take and give back between two looks at a cgroup.
NOISE_MIB = 32
PASSES = 10


@pytest.fixture
def needy() -> Iterator[list[RunningGuest]]:
    with Lab() as lab:
        guests = lab.start(*(Guest(name, memory_mib=512, current_mib=256, hold_mib=10) for name in NAMES))
        for guest in guests:
            guest.hold(150)
        for guest in guests:
            guest.wait_held()
        yield guests


class Machines:
    """The cgroup that holds all machines, of either version."""

    def __init__(self, guest: RunningGuest) -> None:
        lines = Path(f"/proc/{guest.pid}/cgroup").read_text(encoding="utf-8").splitlines()
        paths = {kind: path for _number, kind, path in (line.split(":", 2) for line in lines)}
        self.old = "memory" in paths
        root, path = (
            (Path("/sys/fs/cgroup/memory"), paths["memory"]) if self.old else (Path("/sys/fs/cgroup"), paths[""])
        )
        self.group = root / Path(path.removesuffix("/emulator").removesuffix("/libvirt").lstrip("/")).parent
        self._limit = self.group / ("memory.limit_in_bytes" if self.old else "memory.max")

    def used_kib(self) -> int:
        used = (self.group / ("memory.usage_in_bytes" if self.old else "memory.current")).read_text()
        prefix = "total_" if self.old else ""
        caches = re.findall(
            rf"^{prefix}(?:in)?active_file (\d+)", (self.group / "memory.stat").read_text(), re.MULTILINE
        )
        return (int(used) - sum(map(int, caches))) // 1024

    def limit(self, kib: int) -> None:
        self._limit.write_text(str(kib * 1024))

    def lift(self) -> None:
        self._limit.write_text("-1" if self.old else "max")


def test_what_a_shared_limit_leaves_is_given_once(needy: list[RunningGuest]) -> None:
    machines = Machines(needy[0])
    sizes = [guest.balloon_kib() for guest in needy]
    machines.limit(machines.used_kib() + sum(guest.untouched_kib() for guest in needy) + ROOM_MIB * MIB)
    try:
        held = run_ok("kvm_mem_balance", **OPTIONS)
        grown = [guest.balloon_kib() - size for guest, size in zip(needy, sizes)]
        assert 0 < sum(grown) <= (ROOM_MIB + NOISE_MIB) * MIB, held.text
        assert held.values["unmet"] and str(machines.group) in held.values["unmet"][0]["reason"], held.text
    finally:
        machines.lift()
    for _pass in range(PASSES):
        free = run_ok("kvm_mem_balance", **OPTIONS)
        grown = [guest.balloon_kib() - size for guest, size in zip(needy, sizes)]
        if sum(grown) > (ROOM_MIB + NOISE_MIB) * MIB:
            break  # who was just given some is skipped until its driver has answered
    assert min(grown) > 0 and sum(grown) > (ROOM_MIB + NOISE_MIB) * MIB, free.text
    assert all(guest.alive and guest.hog_kills == 0 for guest in needy)
