# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Under a Python that is too old a module fails in one line. `make matrix` tries it with real ones."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
GUARD = PLUGINS / "module_utils/old_python.py"
MODULES = sorted((PLUGINS / "modules").glob("*.py"))


def test_it_is_said_in_one_line_that_ansible_understands() -> None:
    code = f"import runpy, sys; sys.version_info = (3, 6, 15); runpy.run_path({str(GUARD)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (1, "", 1)
    told = json.loads(done.stdout)
    assert told["failed"] and "Python 3.9 or newer" in told["msg"] and "is 3.6" in told["msg"]
    subprocess.run([sys.executable, str(GUARD)], check=True)


@pytest.mark.parametrize("path", [GUARD, *MODULES], ids=lambda path: path.stem)
def test_what_comes_before_can_be_read_by_python_3_6(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 6))
    imports = [node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert "__future__" not in imports
    ours = [
        alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and "kvmsched" in (node.module or "")
        for alias in node.names
    ]
    assert path == GUARD or ours[0] == "old_python"
