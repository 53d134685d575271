# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests for all fault tests, booted when the first one needs them; a guard against a test that hangs."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Optional

import faulty
import pytest
from faulty_machine import FaultyMachine, Own
from herd import Herd, memory_guest, pinned_guest, snapshot_disk
from lab import Lab, OwnLibvirtd
from lab import machine as here
from lab.machines.system import SUITES
from lab.machines.tested import ARGUMENTS
from release import build, epoch

# Whatever else its own host does.
MACHINE_HANG_S = 3600.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--machine", choices=SUITES, help="an emulated machine has the guests, of KVM; of that suite")
    parser.addoption("--chaos-s", type=float, default=60, help="how long the chaos lasts, in seconds")
    parser.addoption("--chaos-seed", type=int, default=1, help="which chaos")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --machine, have what is marked so: all of them would take hours there."""
    if config.getoption("--machine"):
        config.hook.pytest_deselected(items=[item for item in items if not item.get_closest_marker("machine")])
        items[:] = [item for item in items if item.get_closest_marker("machine")]


@pytest.fixture(autouse=True)
def no_hang(request: pytest.FixtureRequest) -> Iterator[None]:
    """End the whole test run if one test hangs: a thread that is stuck in libvirt can't be ended otherwise."""
    limit_s = MACHINE_HANG_S if request.config.getoption("--machine") else 3.0 * faulty.HANG_S
    limit_s += request.config.getoption("--chaos-s") if "chaos" in request.node.name else 0
    guard = threading.Timer(limit_s, lambda: os.kill(os.getpid(), signal.SIGABRT))
    guard.daemon = True
    guard.start()
    yield
    guard.cancel()


@pytest.fixture(scope="session")
def machine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Optional[FaultyMachine]]:
    """The machine that was asked for, with kvmsched and without guests."""
    suite = request.config.getoption("--machine")
    if not suite:
        yield None
        return
    # Of the first suite it is the machine of tests/machines, and starts from its snapshot.
    machine = FaultyMachine(suite, arguments=ARGUMENTS, say=print)
    with machine:
        machine.push(build(tmp_path_factory.mktemp("release"), epoch()))
        yield machine


@pytest.fixture(scope="module")
def own(machine: Optional[FaultyMachine]) -> Iterator[Own]:
    """A libvirtd that may be broken."""
    with contextlib.nullcontext(machine) if machine else OwnLibvirtd() as own:
        yield own


@pytest.fixture(scope="module")
def herds(machine: Optional[FaultyMachine]) -> Iterator[dict[str, Herd]]:
    # A machine is slow: one for each instant of a pass, and one more.
    numbers = "01234" if machine else "012345"
    with Lab(own=machine) as lab:
        memory = [memory_guest(number, extra=snapshot_disk(f"mem-{number}", machine)) for number in numbers]
        pinned = [pinned_guest(number, extra=snapshot_disk(f"pin-{number}", machine)) for number in numbers]
        yield {"memory": Herd(lab, "memory", memory), "vcpu": Herd(lab, "vcpu", pinned)}
    for disk in [] if machine else here.DIRECTORY.glob("???-?.qcow2"):
        disk.unlink()


@pytest.fixture(params=faulty.RESOURCES)
def herd(request: pytest.FixtureRequest, herds: dict[str, Herd]) -> Iterator[Herd]:
    """Guests, five or six, that a pass of one resource wants to change; after the test they must be as before it."""
    herd = herds[request.param]
    herd.revive()
    yield herd
    herd.wake()
    herd.release()
    herd.assert_restored()
