# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What docs/replay.md shows, typed: its what-ifs come out as they stand there, and its examples are their script's."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from face import REPOSITORY
from kvmsched.app import cli, record

EXAMPLES = REPOSITORY / "docs/examples"
SHOWN = re.findall(
    r"^    (kvmsched replay night.*)\n((?:    .*\n)+)", (REPOSITORY / "docs/replay.md").read_text(), re.MULTILINE
)


@pytest.mark.parametrize(("command", "table"), SHOWN, ids=["recording", "trace"])
def test_the_three_what_ifs_come_out_as_the_documentation_shows_them(
    command: str, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`untouched` against the defaults, `place` and `eager` against `auto`."""
    monkeypatch.chdir(EXAMPLES)
    out, err = io.StringIO(), io.StringIO()
    assert (cli.main(command.split()[1:], out, err), err.getvalue()) == (0, "")
    told = out.getvalue()
    assert told.startswith(textwrap.dedent(table)), told
    assert {"untouched", "auto.json", "place.json", "eager.json"} <= set(told.splitlines()[0].split())


def test_the_examples_are_what_their_script_writes(tmp_path: Path) -> None:
    script = [sys.executable, str(REPOSITORY / "benchmarks/example_night.py"), str(tmp_path)]
    subprocess.run(script, check=True)
    assert (tmp_path / "night.csv").read_bytes() == (EXAMPLES / "night.csv").read_bytes()
    written, shipped = (list(record.read([str(path / "night.kvmrec.gz")])) for path in (tmp_path, EXAMPLES))
    assert [look.snapshot for look in written] == [look.snapshot for look in shipped] and len(shipped) == 361
