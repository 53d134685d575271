# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A libvirtd that accepts and never answers; in a file of its own, for a process has one own libvirtd at a time."""

from __future__ import annotations

import signal
from pathlib import Path

from hurried import Hurried
from lab import OwnLibvirtd


def test_a_libvirtd_that_is_stopped_costs_the_daemon_nothing_more(tmp_path: Path) -> None:
    """It accepts connections all the while, for the kernel does that. An hour's worth of attempts, in half a minute."""
    with OwnLibvirtd() as own, Hurried("qemu:///system", tmp_path, own.inside) as daemon:
        daemon.wait(lambda: [line for line in daemon.lines if "begins, mode act" in line], "its first line")
        own.signal(signal.SIGSTOP)
        daemon.wait_attempts(1)
        daemon.assert_flat()
        own.signal(signal.SIGCONT)
        daemon.wait(lambda: "passes go on" in daemon.lines, "the end of its trouble")
