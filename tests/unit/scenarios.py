# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cases in tests/scenarios: a world, a policy, what is expected. A key that nobody reads is a mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Collection

import pytest
import yaml

SCENARIOS = Path(__file__).parents[1] / "scenarios"


def cases(resource: str, keys: Collection[str], expected: Collection[str]) -> list[Any]:
    """All cases of *resource* as pytest parameters; they may hold *keys*, and under ``expect`` what is *expected*."""
    found = []
    for path in sorted((SCENARIOS / resource).glob("*.yml")):
        for case in yaml.safe_load(path.read_text(encoding="utf-8")):
            name = f"{path.stem}: {case['case']}"
            check_keys(name, case, {"case", "policy", "expect", *keys})
            check_keys(f"{name}, expect", case["expect"], expected)
            found.append(pytest.param(case, id=name))
    return found


def check_keys(name: str, given: Collection[str], known: Collection[str]) -> None:
    """ValueError if *given* holds a key that is not *known*."""
    unknown = sorted(set(given) - set(known), key=str)
    if unknown:
        raise ValueError(f"{name}: unknown {', '.join(map(str, unknown))}, known: {', '.join(sorted(known))}")
