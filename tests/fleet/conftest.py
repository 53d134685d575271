# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts for these tests, new ones for each file; a guard against a test that hangs."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest
from lab import Fleet

# Three times what the longest of them takes, on a machine that is three times as busy.
HANG_S = 1500


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """End the whole test run if one test hangs."""
    guard = threading.Timer(HANG_S, lambda: os.kill(os.getpid(), signal.SIGABRT))
    guard.daemon = True
    guard.start()
    yield
    guard.cancel()


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """Three hosts that have what kvmsched needs, and a bare one; up in some seconds, once their system is made."""
    with Fleet("kvmsched-h1", "kvmsched-h2", "kvmsched-h3", bare=["kvmsched-bare"]) as fleet:
        yield fleet
