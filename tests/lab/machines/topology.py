# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a machine is made of: sockets, cores, threads, cells and memory, and how QEMU is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

NEAR, FAR = 10, 20


@dataclass(frozen=True)
class Cell:
    """A NUMA node: its pCPUs ("0-3,8", or none), its memory in MiB (or 0), its distance to each cell, itself too."""

    pcpus: str = ""
    memory_mib: int = 0
    distances: Sequence[int] = ()

    def options(self, number: int) -> list[str]:
        """What tells QEMU of it."""
        node = f"node,nodeid={number}"
        node += "".join(f",cpus={span}" for span in self.pcpus.split(",") if span)
        if not self.memory_mib:
            return ["-numa", node]
        memory = f"memory-backend-ram,id=cell{number},size={self.memory_mib}M"
        return ["-object", memory, "-numa", f"{node},memdev=cell{number}"]


@dataclass(frozen=True)
class Topology:
    """Sockets of cores of threads, numbered in this order, in cells that have all of the memory.

    A cell without distances is at FAR from all others. One without pCPUs, or without memory, is as good as any.
    """

    sockets: int = 2
    cores: int = 2
    threads: int = 2
    cells: Sequence[Cell] = (Cell("0-3", 1536), Cell("4-7", 1536))

    @property
    def pcpus(self) -> int:
        return self.sockets * self.cores * self.threads

    @property
    def memory_mib(self) -> int:
        return sum(cell.memory_mib for cell in self.cells)

    def options(self) -> list[str]:
        """QEMU's command line for it."""
        shape = f"{self.pcpus},sockets={self.sockets},cores={self.cores},threads={self.threads}"
        options = ["-smp", shape, "-m", f"{self.memory_mib}M"]
        for number, cell in enumerate(self.cells):
            options += cell.options(number)
        for source, cell in enumerate(self.cells):
            for target in range(len(self.cells)):
                value = cell.distances[target] if cell.distances else NEAR if source == target else FAR
                options += ["-numa", f"dist,src={source},dst={target},val={value}"]
        return options
