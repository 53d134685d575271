# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Emulator and I/O threads."""

from __future__ import annotations

from dataclasses import replace

from kvmsched.model import PinMove, Thread
from vcpu_worlds import POLICY, cpus, one_pass, pinned_guest


def test_pins_of_emulator_and_io_threads_in_a_definition_stay() -> None:
    threads = (
        Thread("emulator", 0, cpus("3"), definition=cpus("3")),
        Thread("iothread", 1, cpus("3")),
        Thread("vcpu", 7, cpus("3")),  # unplugged: none of these
    )
    plan = one_pass(pinned_guest("g", "0", threads=threads), policy=replace(POLICY, emulator="spread"))
    assert [(move.thread, move.id) for move in plan.moves if isinstance(move, PinMove)] == [("iothread", 1)]
