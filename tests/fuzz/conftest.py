# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What all fuzzing shares: how many examples there are, and hosts that are fake."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_binding
import pytest
from fake_libvirt import MIB, Clock, Guest, World
from hypothesis import HealthCheck, settings
from kvmsched import passes
from kvmsched.hypervisor import THREAD, connection

URI = "test:///default"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--times", type=int, default=1, help="how many times as many examples as in each change's tests")


def pytest_configure(config: pytest.Config) -> None:
    # The same examples in each run: a change's tests must not fail for what it did not change.
    settings.register_profile(
        "fuzz",
        max_examples=60 * config.getoption("--times"),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    settings.load_profile("fuzz")


Host = Callable[..., World]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Host]:
    """Make a world that Hypervisor and passes believe in."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    # What hangs here, it hangs at once.
    monkeypatch.setattr(connection, "_STALL_S", 5.0)

    def make(*guests: Guest, total_kib: int = 64 * 1024 * MIB) -> World:
        world = World(list(guests), total_kib, Clock())
        fake_binding.use(monkeypatch, world.libvirt, world.open, world.clock)
        monkeypatch.setattr(passes, "time", world.clock)
        return world

    yield make
    for thread in threading.enumerate():
        if thread.name == THREAD:
            thread.join(10)


def standing(**how: Any) -> passes.Standing:
    return passes.Standing(passes.Conduct(URI, **{"deadline_s": 20.0, **how}))
