# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Change each code of a skip or a failure in the package, and see mypy or a unit test object.

A code is changed in two ways: misspelt, which mypy has to see; and into another code of the same kind, which only a
test can see. All is done in a copy of the checkout. Run it by `make mutants`; it takes a while.
"""

from __future__ import annotations

import argparse
import ast
import re
import shutil
import subprocess
import sys
import tempfile
import typing
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "plugins/module_utils"))

from kvmsched.model import FailureCode, MemoryCode, VcpuCode

PACKAGE = Path("plugins/module_utils/kvmsched")
KINDS = [typing.get_args(kind) for kind in (FailureCode, MemoryCode, VcpuCode)]
CODES = {code for kind in KINDS for code in kind}
# The same words as modes, commands, counters, names of fields and words of a text. model.py is where codes are listed.
NO_CODES = {
    "app/arguments.py": {"record"},
    "app/bundle.py": {"resting"},
    "app/cli.py": {"record", "grow-only"},
    "app/daemon.py": {"record"},
    "app/page.py": {"busy"},
    "app/replay.py": {"grow-only", "record"},
    "config.py": {"grow-only", "ignored", "dedicated", "record"},
    "libvirt_xml.py": {"cachetune"},
    "policy/vcpu/allowed.py": {"dedicated"},
    "policy/vcpu/dedicated.py": {"dedicated"},
    "twin/host.py": {"record"},
}
NO_CODES_IN = re.compile(r"\bmode\b ?[!=]=? ?\"|faults = \[")
# The tests that are asked first, after the rule's own file, by where the code stands; whoever lives has to stand all.
NEAR = {
    "policy/memory/": ("memory_eligibility", "memory_scenarios", "memory_restore", "memory_requests", "memory_locked"),
    "policy/vcpu/": ("vcpu_eligibility", "vcpu_restore", "vcpu_records", "vcpu_policy", "vcpu_scenarios"),
    "hypervisor/": ("hypervisor",),
    "app/": ("daemon", "cli", "monitoring"),
    "": ("release_pass", "hypervisor", "memory_passes", "config", "daemon"),
}


@dataclass(frozen=True)
class Literal:
    """A code as it stands in a file of the package."""

    path: str
    line: int
    column: int
    code: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column} {self.code}"


def literals() -> list[Literal]:
    found = []
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        name = path.relative_to(ROOT / PACKAGE).as_posix()
        if name == "model.py":
            continue
        text = path.read_text()
        codes = CODES - NO_CODES.get(name, set())
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in codes:
                if not NO_CODES_IN.search(text.splitlines()[node.lineno - 1]):
                    # Columns count bytes; what stands before a code in its line is ASCII.
                    found.append(Literal(name, node.lineno, node.col_offset, node.value))
    return found


def others(code: str) -> list[str]:
    """Return codes that may stand where *code* does."""
    return [other for kind in KINDS if code in kind for other in kind if other != code]


class Copy:
    """A copy of the checkout, in which codes are changed and put back."""

    def __init__(self, directory: str) -> None:
        self.root = Path(directory)
        listed = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        files = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
        for file in filter(None, files):
            if (ROOT / file).exists():
                (self.root / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / file, self.root / file, follow_symlinks=False)

    def change(self, changes: dict[Literal, str]) -> None:
        by_path = defaultdict(list)
        for literal in changes:
            by_path[literal.path].append(literal)
        for path, those in by_path.items():
            lines = (ROOT / PACKAGE / path).read_text().splitlines(keepends=True)
            for one in sorted(those, key=lambda literal: -literal.column):
                line = lines[one.line - 1]
                end = one.column + len(one.code) + 2
                assert line[one.column + 1 : end - 1] == one.code, one
                lines[one.line - 1] = f"{line[: one.column]}{changes[one]!r}{line[end:]}"
            (self.root / PACKAGE / path).write_text("".join(lines))

    def put_back(self, paths: set[str]) -> None:
        for path in paths:
            shutil.copy2(ROOT / PACKAGE / path, self.root / PACKAGE / path)

    def mypy(self) -> set[tuple[str, int]]:
        """Return the files and lines that mypy objects to."""
        told = subprocess.run(
            [sys.executable, "-m", "mypy", "--no-error-summary", "--show-column-numbers", "--show-error-end"],
            cwd=self.root, capture_output=True, text=True, check=False,
        ).stdout  # fmt: skip
        found = re.findall(r"module_utils/kvmsched/(\S+?\.py):(\d+):\d+:(\d+):\d+: error:", told)
        return {(path, line) for path, first, last in found for line in range(int(first), int(last) + 1)}

    def tests_fail(self, files: Sequence[str]) -> bool:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files]
        return subprocess.run(command, cwd=self.root, capture_output=True, check=False).returncode != 0


def misspelt(copy: Copy, chosen: Sequence[Literal]) -> list[Literal]:
    """Return the codes whose misspelling mypy does not see. Of a line, one at a time is misspelt."""
    lines = defaultdict(list)
    for literal in chosen:
        lines[literal.path, literal.line].append(literal)
    missed = []
    for number in range(max(map(len, lines.values()), default=0)):
        turn = [those[number] for those in lines.values() if len(those) > number]
        copy.change({literal: f"{literal.code}x" for literal in turn})
        seen = copy.mypy()
        copy.put_back({literal.path for literal in turn})
        missed += [literal for literal in turn if (literal.path, literal.line) not in seen]
    return missed


def near(literal: Literal) -> list[str]:
    """Return the test files that are asked first: the rule's own, as in test_memory_idle.py, then those beside it."""
    prefix, names = next((prefix, names) for prefix, names in NEAR.items() if literal.path.startswith(prefix))
    own = literal.path[len("policy/") : -len(".py")].replace("/", "_") if prefix.startswith("policy/") else ""
    files = [f"tests/unit/test_{name}.py" for name in dict.fromkeys((own, *names))]
    return [file for file in files if (ROOT / file).exists()]


def swapped(copy: Copy, literal: Literal) -> str:
    """Return what objects to *literal* when it is another code: a test near it, any test, or nobody."""
    copy.change({literal: others(literal.code)[-1]})
    try:
        if copy.tests_fail(near(literal)):
            return "a test near it"
        return "another test" if copy.tests_fail(["--numprocesses=2", "tests/unit"]) else "NOBODY"
    finally:
        copy.put_back({literal.path})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--misspelt", action="store_true", help="only the misspellings, which mypy sees in a minute")
    parser.add_argument("only", nargs="*", help="only files whose path begins so, as in policy/memory/")
    options = parser.parse_args()
    chosen = [one for one in literals() if one.path.startswith(tuple(options.only) or "")]
    with tempfile.TemporaryDirectory() as directory:
        copy = Copy(directory)
        missed = misspelt(copy, chosen)
        print(f"misspelt: mypy sees {len(chosen) - len(missed)} of {len(chosen)}", *missed, sep="\n  ", flush=True)
        if options.misspelt:
            return 1 if missed else 0
        counts: dict[str, int] = defaultdict(int)
        for literal in chosen:
            who = swapped(copy, literal)
            counts[who] += 1
            print(f"{literal} -> {others(literal.code)[-1]}: {who}", flush=True)
    print("swapped:", ", ".join(f"{count} seen by {who}" for who, count in counts.items()))
    return 1 if missed or counts["NOBODY"] else 0


if __name__ == "__main__":
    sys.exit(main())
