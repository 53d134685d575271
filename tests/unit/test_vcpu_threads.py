# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Emulator and I/O threads."""

from __future__ import annotations

from dataclasses import replace

from kvmsched.config import VcpuPolicy
from kvmsched.model import PinMove, Thread
from kvmsched.policy import vcpu
from vcpu_worlds import POLICY, FakeHost, cpus, one_pass, pinned_guest, topology


def test_pins_of_emulator_and_io_threads_in_a_definition_stay() -> None:
    threads = (
        Thread("emulator", 0, cpus("3"), definition=cpus("3")),
        Thread("iothread", 1, cpus("3")),
        Thread("vcpu", 7, cpus("3")),  # unplugged: none of these
    )
    plan = one_pass(pinned_guest("g", "0", threads=threads), policy=replace(POLICY, emulator="spread"))
    assert [(move.thread, move.id) for move in plan.moves if isinstance(move, PinMove)] == [("iothread", 1)]


def test_spread_threads_do_not_follow_a_load_that_goes_up_and_down() -> None:
    """pCPUs without a tick are used while the others are full: threads went there and back with each change of load."""
    members = [
        pinned_guest(name, "0-3", 0.9, threads=(Thread("emulator", 0, cpus("0-7")),)) for name in ("a", "b", "c", "d")
    ]
    host = FakeHost(replace(topology(8), nohz_full=cpus("4-7")), members)
    policy, history, made = VcpuPolicy(floating="auto", emulator="spread"), None, []
    for turn in range(8):
        for guest in members:
            guest.wants = [0.9 if turn % 2 == 0 else 0.99]
        plan, history = vcpu.decide(host.window(5.0), policy, history)
        host.apply(plan)
        made.append(len(plan.moves))
    assert made == [4, 0, 0, 0, 0, 0, 0, 0]
