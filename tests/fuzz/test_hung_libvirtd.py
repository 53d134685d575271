# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A socket that accepts and never answers stands where libvirtd's does; libvirt's own client is the real one."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

from hurried import Hurried


def test_a_libvirtd_that_never_answers_costs_the_daemon_nothing_more() -> None:
    # The path of a socket has at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="kvmsched-") as directory:
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(f"{directory}/socket")
        listening.listen(1000)
        with Hurried(f"qemu+unix:///system?socket={directory}/socket", Path(directory)) as daemon:
            daemon.assert_flat()
            assert any("did not answer within 0.1 s" in line for line in daemon.lines)
            daemon.process.terminate()
            assert daemon.process.wait(300) == 0
        listening.close()
