# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many examples a property has: a few in the unit tests, four times as many in `make fuzz`."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, settings

TIMES = int(os.environ.get("KVMSCHED_EXAMPLES", "1"))


def examples(few: int, **more: Any) -> settings:
    """Return the settings of a property that has so *few* examples in the unit tests, the same ones in each run."""
    fixed: dict[str, Any] = {"derandomize": True, "database": None, "deadline": None, "print_blob": False}
    return settings(max_examples=few * TIMES, suppress_health_check=list(HealthCheck), **fixed, **more)


def seeds(few: int) -> range:
    """Return the seeds of random worlds, so *few* in the unit tests."""
    return range(few * TIMES)
