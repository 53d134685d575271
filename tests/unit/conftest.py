# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds for all unit tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from kvmsched import lock

# How long an example takes on a busy machine is not what is judged, and each run has the same ones.
settings.register_profile(
    "unit", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("unit")


@pytest.fixture(scope="session", autouse=True)
def nothing_of_this_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A daemon, a pause or a lock of the machine that the tests run on is none of theirs."""
    directory: Path = tmp_path_factory.getbasetemp() / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lock, "SYSTEM_DIRECTORY", str(directory / "kvmsched"))
        yield
