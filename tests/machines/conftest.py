# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The machine of these tests, up once for all of them; a guard against a test that hangs."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Lab, Machine
from lab.machines import tested
from on_machine import obey
from release import build, epoch

# Three times what the longest of them takes, on a machine that is three times as busy.
HANG_S = 3600


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """End the whole test run if one test hangs."""
    guard = threading.Timer(HANG_S, lambda: os.kill(os.getpid(), signal.SIGABRT))
    guard.daemon = True
    guard.start()
    yield
    guard.cancel()


@pytest.fixture(scope="session")
def tarball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The collection, built."""
    return build(tmp_path_factory.mktemp("release"), epoch())


@pytest.fixture(scope="session")
def machine(tarball: Path) -> Iterator[Machine]:
    """A hypervisor with kvmsched and without guests."""
    with tested.first(print) as machine:
        machine.push(tarball)
        yield machine


@pytest.fixture(scope="session")
def target(tarball: Path) -> Iterator[Machine]:
    """Another hypervisor, which the first one reaches."""
    with tested.second(print) as target:
        target.push(tarball)
        yield target


@pytest.fixture
def lab(machine: Machine) -> Iterator[Lab]:
    """Guests for one test, under the policy of them all."""
    obey(machine)
    with Lab(own=machine, say=print) as lab:
        yield lab
