# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A libvirtd that accepts and does not answer; in a file of its own, for a process has one own libvirtd at a time."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import faulty
from hurried import Hurried
from lab import Lab, OwnLibvirtd, TinyGuest, machine

NEW = "kvmsched-test-new"
HOOK = """#!/bin/sh
[ "$2" = prepare ] || exit 0
touch {begun}
while [ -e {held} ]; do sleep 0.1; done
"""


def test_a_libvirtd_that_is_stopped_costs_the_daemon_nothing_more(tmp_path: Path) -> None:
    """It accepts connections all the while, for the kernel does that. An hour's worth of attempts, in half a minute."""
    with OwnLibvirtd() as own, Hurried("qemu:///system", tmp_path, own.inside) as daemon:
        daemon.wait(lambda: [line for line in daemon.lines if "begins, mode act" in line], "its first line")
        own.signal(signal.SIGSTOP)
        daemon.wait_attempts(1)
        daemon.assert_flat()
        own.signal(signal.SIGCONT)
        daemon.wait(lambda: "passes go on" in daemon.lines, "the end of its trouble")


def test_while_a_hook_waits_no_pass_can_observe_so_a_hook_must_not_wait_for_one(tmp_path: Path) -> None:
    """It has the lock of its guest, and libvirt tells of all guests or of none."""
    begun, held = tmp_path / "begun", tmp_path / "held"
    held.touch()
    with OwnLibvirtd() as own, Lab(own=own) as lab:
        hook = own.directory / "etc/hooks/qemu"
        hook.parent.mkdir()
        hook.write_text(HOOK.format(begun=begun, held=held), encoding="utf-8")
        hook.chmod(0o755)
        own.restart()
        lab.connection = machine.connect(lab.uri)
        start = threading.Thread(target=lab.start, args=(TinyGuest(NEW),))
        start.start()
        while not begun.exists():
            assert start.is_alive(), "it was to call the hook"
            time.sleep(0.1)
        status, output = faulty.Child("vcpu", inside=own.inside).end()
        held.unlink()
        start.join()
        assert status == 1 and "failed: uri: libvirt at qemu:///system" in output, output
        assert faulty.Child("vcpu", inside=own.inside).end()[0] == 0 and lab[NEW].alive
