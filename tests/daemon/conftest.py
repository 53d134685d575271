# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options of these tests, and what holds for all of them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest
import quiet
from lab import machine

# Three times what the longest of them takes, on a machine that is three times as busy.
HANG_S = 1500

pytest_collection_modifyitems = quiet.pytest_collection_modifyitems
pytest_runtest_call = quiet.pytest_runtest_call


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--minutes", type=float, default=1, help="how long the load changes")


@pytest.fixture(autouse=True)
def no_hang(request: pytest.FixtureRequest) -> Iterator[None]:
    """End the whole test run if one test hangs."""
    limit_s = HANG_S + (60 * request.config.getoption("--minutes") if "changing" in request.node.name else 0)
    guard = threading.Timer(limit_s, lambda: os.kill(os.getpid(), signal.SIGABRT))
    guard.daemon = True
    guard.start()
    yield
    guard.cancel()


@pytest.fixture(scope="session", autouse=True)
def nobody_else_is_here() -> None:
    """An acting daemon on a host with other guests than the tests' would be a risk that nobody asked for."""
    machine.prepare()
    connection = machine.connect()
    others = [name for d in connection.listAllDomains() if not (name := d.name()).startswith("kvmsched-")]
    connection.close()
    if others:
        pytest.exit(f"these tests run a daemon, and this host has guests of its own: {', '.join(others)}", 1)
