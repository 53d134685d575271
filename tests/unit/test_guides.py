# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guides: no dead link among them, and an answer for each code and each alert."""

from __future__ import annotations

import re
import typing
from pathlib import Path

import pytest
import release
import yaml
from kvmsched.model import SkipCode

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "roles").rglob("*.md")])
TROUBLE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")


def prose(path: Path) -> str:
    """What is neither a fenced block nor code."""
    return re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)


def anchors(path: Path) -> set[str]:
    """The names by which headings are reached, as code forges make them."""
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_link_is_dead(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _hash, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.exists(), f"{page.name}: {target}"
        assert not anchor or there.suffix != ".md" or anchor in anchors(there), f"{page.name}: {target}"


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_every_guide_is_found(page: Path) -> None:
    """On the site, whose making fails otherwise, and in the list of guides."""
    assert f"docs/{page.stem}\n" in (ROOT / "tests/site/index.md").read_text(encoding="utf-8")
    assert page.name == "README.md" or f"]({page.name})" in (ROOT / "docs/README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("code", sorted(set(typing.get_args(SkipCode))))
def test_every_code_has_an_answer(code: str) -> None:
    assert re.search(rf"^\|[^|]*`{code}`[^|]*\|", TROUBLE, re.MULTILINE)


def test_every_alert_leads_to_its_answer() -> None:
    groups = yaml.safe_load((ROOT / "monitoring/alerts.yml").read_text(encoding="utf-8"))["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert re.findall(r"^### (\w+)$", TROUBLE, re.MULTILINE) == [rule["alert"] for rule in rules]
    page = f"{release.galaxy()['repository']}/blob/main/docs/troubleshooting.md"
    for rule in rules:
        assert rule["annotations"]["runbook_url"] == f"{page}#{rule['alert'].lower()}"
