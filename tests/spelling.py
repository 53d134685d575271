# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find misspelt words in documentation, docstrings, messages and fragments of the change log.

A word is right if English has it, docs/glossary.md explains it, or tests/words.txt lists it. Code, names in
backticks, options and links are not words. Runs in .build/spelling, for `make docs`.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from spellchecker import SpellChecker

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("*.md", "docs/**/*.md", "roles/**/*.md", "tests/**/*.md", "benchmarks/**/*.md", "changelogs/fragments/*.yml")
CODE = ("plugins/**/*.py", "tests/**/*.py", "benchmarks/**/*.py")
# A string of the package with so many words is a sentence for people.
SENTENCE = 4
# Their strings are HTML and JavaScript.
SCRIPTS = ("page.py", "page_script.py")
# Blocks of code, names in quotes, the targets of links, Ansible's markup, and parameters that a docstring names.
NO_PROSE = re.compile(
    r"(?ms)^ *```.*?^ *```|``[^`]+``|`[^`]+`|\]\([^)]*\)|https?://\S+|\b[A-Z]\([^)]*\)|\*\w+\*|<[^>]*>|\{[^}]*\}"
)
WORD = re.compile(r"(?<![\w./@%=\\-])[A-Za-z][a-z']*[a-z](?![\w/(=@-]|\.\w)")


def prose() -> Iterator[tuple[Path, str]]:
    for pattern in PAGES:
        yield from ((path, path.read_text()) for path in sorted(ROOT.glob(pattern)) if path.name != "CHANGELOG.md")
    for pattern in CODE:
        for path in sorted(ROOT.glob(pattern)):
            messages = pattern.startswith("plugins") and path.name not in SCRIPTS
            yield from ((path, text) for text in texts(ast.parse(path.read_text()), messages))


def texts(tree: ast.Module, messages: bool) -> Iterator[str]:
    """Yield the docstrings of a file; where it has *messages*, also the strings that are sentences."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            yield ast.get_docstring(node) or ""
        elif messages and isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value if len(node.value.split()) >= SENTENCE else ""


def known() -> set[str]:
    rows = re.findall(r"^\| (.*?) \| .+ \|$", (ROOT / "docs/glossary.md").read_text(), re.MULTILINE)
    glossary = {word for row in rows for word in re.findall(r"[a-z']+", row.lower())}
    listed = (ROOT / "tests/words.txt").read_text().splitlines()
    return glossary | {line for line in listed if not line.startswith("#")}


def main() -> int:
    english, ours = SpellChecker(distance=1), known()
    found: dict[str, set[str]] = {}
    for path, text in prose():
        for word in WORD.findall(NO_PROSE.sub(" ", text)):
            bare = re.sub(r"'s?$", "", word.lower())
            if bare not in ours and bare not in english:
                found.setdefault(bare, set()).add(str(path.relative_to(ROOT)))
    for word, places in sorted(found.items()):
        print(f"{word}: {', '.join(sorted(places)[:3])}")
    if found:
        print("misspelt, or to be added to tests/words.txt (a word of ours: to docs/glossary.md)")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
