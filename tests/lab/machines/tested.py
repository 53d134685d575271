# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The two machines of the tests; ``make machines`` makes their systems and keeps their first boots."""

from __future__ import annotations

from .. import machine
from .host import Machine
from .topology import Cell, Topology

# Cores 0-1 and 2-3 in cell 0, 4-5 and 6-7 in cell 1; the kernel balances no load on pCPU 7.
TOPOLOGY = Topology(sockets=2, cores=2, threads=2, cells=(Cell("0-3", 1536), Cell("4-7", 1536)))
ARGUMENTS = "isolcpus=7"
# Half as large: what both have are pCPUs 0-3.
SMALL = Topology(sockets=1, cores=2, threads=2, cells=(Cell("0-3", 1536),))


def first(say: machine.Say) -> Machine:
    return Machine("bookworm", TOPOLOGY, ARGUMENTS, say=say)


def second(say: machine.Say) -> Machine:
    """Return one of a newer suite, which the first one reaches."""
    return Machine("trixie", SMALL, number=2, say=say)


def make(say: machine.Say) -> int:
    """Have the snapshots that these start from, and see each start."""
    for one in (first(say), second(say)):
        with one:
            say(one.run("uname --kernel-release").strip())
    return 0
