# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lines that README.md tells its readers to type, and what is said to them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Optional

README = Path(__file__).resolve().parents[1] / "README.md"


def commands(section: str = "", word: str = "") -> list[str]:
    """The command lines of a *section*, or of all; with *word*, those of the blocks below a paragraph that has it.

    A command is an indented line. What follows ``#`` after two blanks is a remark; output stands in fenced blocks.
    """
    return [line for heading, lead, line in _lines() if section in ("", heading) and word in lead]


def said(command: Sequence[str], where: Optional[Path] = None, environment: Optional[Mapping[str, str]] = None) -> str:
    """Run *command*, which must succeed, and return all that it says."""
    done = subprocess.run(
        command,
        cwd=where,
        env=environment,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}"
    return done.stdout


def _lines() -> Iterator[tuple[str, str, str]]:
    heading = lead = ""
    fenced = ended = False
    for line in README.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced:
            continue
        elif not line.strip():
            ended = True
        elif line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("    "):
            yield heading, lead, re.split(r"\s{2,}# ", line.strip())[0]
        else:
            lead, ended = line if ended else f"{lead} {line}", False
