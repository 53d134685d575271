# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documentation has short sentences, and its tables say what the code says.

tests/faces/test_documentation.py holds the modules, the role and the dry run against the policy's schema, and
tests/unit/test_cli.py holds docs/policy.md.
"""

from __future__ import annotations

import ast
import json
import re
import statistics
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
from kvmsched.config import DAEMON_VCPU, SCHEMA
from kvmsched.model import FailureCode

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
PAGES = sorted(DOCS.glob("*.md"))
# Not the change log: tools make it of its fragments.
PROSE = [*PAGES, *(REPOSITORY / f"{name}.md" for name in ("README", "CONTRIBUTING", "MAINTAINERS", "SECURITY"))]
MOST_WORDS, MEDIAN_WORDS, MOST_COLUMNS = 30, 15, 120


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def prose_lines(text: str) -> Iterator[str]:
    """The lines of a page without its code, tables, headings and pictures; an empty one where a paragraph ends."""
    fenced, before = False, ""
    for line in text.splitlines():
        code = line.startswith("    ") and not before.strip()
        if line.startswith("```"):
            fenced = not fenced
        if fenced or code or line.startswith(("```", "|", "#", "![")):
            yield ""
            continue
        before = line
        if re.match(r" *([-*]|\d+\.) ", line):
            yield ""
        yield line


def sentences(text: str) -> Iterator[str]:
    for paragraph in "\n".join(prose_lines(text)).split("\n\n"):
        plain = re.sub(r"`[^`]*`", "CODE", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(paragraph.split())))
        yield from re.split(r"(?<=[.!?])[\"')]*\s+(?=[\"'(]?[A-Z0-9*])", plain.replace("**", ""))


def words(sentence: str) -> int:
    return len(re.findall(r"\S*\w\S*", re.sub(r"^ *([-*]|\d+\.) ", "", sentence)))


def test_the_sentences_are_those_of_a_page() -> None:
    page = "# No\n\nOne `a b` [two](x.md).\n`Three`\nfour!\n\n- Five six\n- Seven\n\n    no code\n\n| no | table |\n"
    assert [words(s) for s in sentences(page) if words(s)] == [3, 2, 2, 1]


@pytest.mark.parametrize("page", PROSE, ids=lambda page: page.name)
def test_no_sentence_is_long(page: Path) -> None:
    assert [sentence for sentence in sentences(read(page)) if words(sentence) > MOST_WORDS] == []


def test_most_sentences_are_short() -> None:
    counts = [words(sentence) for page in PAGES for sentence in sentences(read(page))]
    assert statistics.median(count for count in counts if count) <= MEDIAN_WORDS


def docstrings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(read(path))):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            yield (ast.get_docstring(node) or "").replace("``", "`").replace("    ", "")


def test_sentences_of_docstrings_are_short() -> None:
    found: dict[str, int] = {}
    for path in (REPOSITORY / "plugins/module_utils").rglob("*.py"):
        for text in docstrings(path):
            found.update(
                {f"{path.name}: {sentence}": words(sentence) for sentence in sentences(text) if words(sentence)}
            )
    assert [sentence for sentence, count in found.items() if count > MOST_WORDS] == []
    assert statistics.median(found.values()) <= MEDIAN_WORDS


@pytest.mark.parametrize("page", PROSE, ids=lambda page: page.name)
def test_lines_are_wrapped(page: Path) -> None:
    assert [line for line in prose_lines(read(page)) if len(line) > MOST_COLUMNS] == []


def test_decisions_that_the_code_names_are_told() -> None:
    told = set(re.findall(r"^### (\d+[a-z]?)\. ", read(DOCS / "decisions.md"), re.MULTILINE))
    for folder in ("plugins", "benchmarks", "roles", "tests"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            named = re.findall(r"\bdecisions? +(\d+[a-z]?(?:(?:, | and )\d+[a-z]?)*)", " ".join(read(path).split()))
            assert {number for each in named for number in re.findall(r"\d+[a-z]?", each)} <= told, path


def test_the_files_that_contributing_names_are_there() -> None:
    package = REPOSITORY / "plugins/module_utils/kvmsched"
    named = re.findall(r"`((?:[\w.]+/)*\w+\.(?:py|sh|json))`", read(REPOSITORY / "CONTRIBUTING.md"))
    rooms = (package / room for room in (".", "..", "app", "hypervisor", "policy/memory", "policy/vcpu"))
    roots = (REPOSITORY, *rooms)
    assert len(named) > 40
    assert [name for name in named if not any((root / name).exists() for root in roots)] == []


def test_a_word_has_one_row_in_the_glossary() -> None:
    rows = re.findall(r"^\| (.*?) \| .+ \|$", read(DOCS / "glossary.md"), re.MULTILINE)
    found = [word for row in rows if row != "word" for word in row.split(", ")]
    assert len(found) > 50 and len(found) == len(set(found))


# ---------------------------------------------------------------- tables


def rows(name: str, heading: str) -> dict[str, str]:
    """The first two cells of each row of the table under a heading, the first without its quotes."""
    section = re.split(r"^## ", read(DOCS / name).split(f"\n## {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    return dict(re.findall(r"^\| `(\w+)` \| (.*?) ?\|", section, re.MULTILINE))


def test_reliability_explains_each_code_of_a_failure() -> None:
    assert list(rows("reliability.md", "What an error means")) == list(typing.get_args(FailureCode))


def test_the_daemon_s_options_have_their_defaults_on_its_page() -> None:
    schemas = SCHEMA["properties"]["daemon"]["properties"]
    for name, told in rows("daemon.md", "Policy").items():
        default = schemas[name].get("default", "")
        assert told.strip("`") == (default if isinstance(default, str) else f"{json.dumps(default)}".replace(".0", ""))


def test_what_the_daemon_alone_has_for_a_default_is_told_in_the_table_of_options() -> None:
    told = rows("policy.md", "`vcpu`")
    for name, default in DAEMON_VCPU.items():
        assert re.search(rf"the daemon( and the command)?: `{re.escape(json.dumps(default))}`$", told[name]), name


def test_all_that_a_rule_may_say_is_told() -> None:
    section = read(DOCS / "policy.md").split("\n## `rules`\n", 1)[1].split("\n## ", 1)[0]
    for part, schema in SCHEMA["properties"]["rules"]["items"]["properties"].items():
        for name in schema.get("properties", {}):
            assert re.search(rf"`({part}\.)?{name}\b", section), f"{part}.{name}"
