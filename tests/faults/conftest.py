# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests for all fault tests, booted once; a guard against a test that hangs."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import faulty
import pytest
from herd import Herd, memory_guest, pinned_guest, snapshot_disk
from lab import Lab, machine


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--chaos-s", type=float, default=60, help="how long the chaos lasts, in seconds")
    parser.addoption("--chaos-seed", type=int, default=1, help="which chaos")


@pytest.fixture(autouse=True)
def no_hang(request: pytest.FixtureRequest) -> Iterator[None]:
    """End the whole test run if one test hangs: a thread that is stuck in libvirt can't be ended otherwise."""
    limit_s = 3 * faulty.HANG_S + (request.config.getoption("--chaos-s") if "chaos" in request.node.name else 0)
    guard = threading.Timer(limit_s, lambda: os.kill(os.getpid(), signal.SIGABRT))
    guard.start()
    yield
    guard.cancel()


@pytest.fixture(scope="session")
def herds() -> Iterator[dict[str, Herd]]:
    with Lab() as lab:
        memory = [memory_guest(number, extra=snapshot_disk(f"mem-{number}")) for number in "012345"]
        pinned = [pinned_guest(number, extra=snapshot_disk(f"pin-{number}")) for number in "012345"]
        lab.start(*memory, *pinned)
        yield {"memory": Herd(lab, "memory", memory), "vcpu": Herd(lab, "vcpu", pinned)}
    for disk in machine.DIRECTORY.glob("???-?.qcow2"):
        disk.unlink()


@pytest.fixture(params=faulty.RESOURCES)
def herd(request: pytest.FixtureRequest, herds: dict[str, Herd]) -> Iterator[Herd]:
    """Six guests that a pass of one resource wants to change; after the test they must be as before it."""
    herd = herds[request.param]
    herd.revive()
    yield herd
    herd.wake()
    herd.release()
    herd.assert_restored()
