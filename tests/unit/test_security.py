# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/security.md says what is so: its tests are there, the units' scores are those, and each line has its reason."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENT = REPOSITORY / "docs/security.md"
UNITS = REPOSITORY / "roles/kvmsched/files"
NAMES = ["kvmsched.service", "kvmsched-rescue.service"]
# The scores depend on the systemd that makes them; those in the document are of this one.
SYSTEMD = "systemd 252"


def test_each_test_that_is_named_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", DOCUMENT.read_text()))
    there = {
        name
        for path in (REPOSITORY / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    assert len(named) >= 30 and named <= there, named - there


def test_each_line_names_its_test() -> None:
    rows = [
        line for line in DOCUMENT.read_text().splitlines() if line.startswith("| ") and "`kvmsched" not in line[:20]
    ]
    heads = ("| Who |", "| What is done |", "| Unit |", "| root on the host |", "| group `libvirt`")
    for row in rows:
        assert row.startswith(heads) or "`test_" in row, row


def directives(name: str) -> list[tuple[str, bool]]:
    """The lines of a unit's sandbox, and whether a comment stands above them or those that they stand with."""
    text = (UNITS / name).read_text()
    found, explained = [], False
    for line in text[text.index("# Membership in group") :].splitlines():
        if line.startswith("["):
            break
        if line.startswith("#"):
            explained = True
        elif not line:
            explained = False
        else:
            found.append((line, explained))
    return found


def test_each_line_of_the_sandbox_has_its_reason() -> None:
    lines = directives("kvmsched.service")
    assert len(lines) >= 25 and all(explained for _line, explained in lines)


def test_the_rescue_may_no_more_than_the_daemon() -> None:
    daemon = {line for line, _explained in directives("kvmsched.service")}
    rescue = set((UNITS / "kvmsched-rescue.service").read_text().splitlines())
    assert daemon - rescue == {"RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6", "IPAddressAllow=localhost"}
    assert "RestrictAddressFamilies=AF_UNIX" in rescue


def version() -> str:
    command = ["systemd-analyze", "--version"]
    return (
        subprocess.run(command, capture_output=True, text=True, check=True).stdout if shutil.which(command[0]) else ""
    )


@pytest.mark.skipif(SYSTEMD not in version(), reason=f"the scores in the document are those of {SYSTEMD}")
@pytest.mark.parametrize("name", NAMES)
def test_the_score_in_the_docs_is_the_units(name: str) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(UNITS / name)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    score = re.search(r"exposure level for \S+: ([0-9.]+)", told)
    assert score is not None
    assert f"| `{name}` | {score[1]} |" in DOCUMENT.read_text()
    if name == NAMES[0]:
        assert f"(`systemd-analyze security`: {score[1]};" in (REPOSITORY / "docs/daemon.md").read_text()
