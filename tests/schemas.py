# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The JSON Schemas in docs/schemas: made of the package, and held against it by a test. Run this file to write them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "plugins/module_utils"))

from kvmsched.app import record
from kvmsched.config import SCHEMA

PUBLISHED: dict[Path, dict[str, Any]] = {
    REPOSITORY / "docs/schemas/policy.schema.json": SCHEMA,
    REPOSITORY / "docs/schemas/record.schema.json": record.schema(),
}


def text_of(schema: dict[str, Any]) -> str:
    return json.dumps(schema, indent=2) + "\n"


if __name__ == "__main__":
    for path, schema in PUBLISHED.items():
        path.write_text(text_of(schema), encoding="utf-8")
