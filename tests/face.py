# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules and the command as a user has them.

Ad-hoc ansible from this checkout, by short names; and a process of the distribution's Python.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
ANSIBLE = Path(sys.executable).with_name("ansible")
GUESTS = "kvmsched-test-*"
PACKAGE = REPOSITORY / "plugins/module_utils"
# The command under the distribution's Python, whose path PYTHONPATH leads to PACKAGE.
COMMAND = ("/usr/bin/python3", "-c", "from kvmsched.app.cli import main; raise SystemExit(main())")


@dataclass(frozen=True)
class Answer:
    """What a module said. ``failed`` is Ansible's word for it, ``text`` everything that was printed."""

    failed: bool
    values: dict[str, Any]
    text: str
    moves: list[dict[str, Any]] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        return bool(self.values.get("changed"))

    @property
    def msg(self) -> str:
        return str(self.values.get("msg", ""))

    def skip(self, domain: str) -> dict[str, Any]:
        """The one skip of *domain*."""
        (found,) = [skip for skip in self.values["skips"] if skip["domain"] == domain]
        return dict(found)


def run(module: str, check: bool = False, environment: dict[str, str] | None = None, **options: Any) -> Answer:
    """Run *module* on localhost; without ``domains`` it is confined to the guests of the tests."""
    options.setdefault("domains", [GUESTS])
    command = [str(ANSIBLE), "localhost", "-m", module, "-a", json.dumps(options), "-D", *(["-C"] if check else [])]
    variables = {"ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", **(environment or {})}
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    text = done.stdout + done.stderr
    assert "Traceback" not in text, text
    head, brace, _rest = done.stdout.partition("=> {")
    assert brace, text
    values, _end = json.JSONDecoder().raw_decode("{" + done.stdout[len(head) + len(brace) :])
    return Answer("FAILED!" in head, values, text, values.get("moves", []))


def run_ok(module: str, check: bool = False, **options: Any) -> Answer:
    """The same, where the module must not fail."""
    answer = run(module, check, **options)
    assert not answer.failed, answer.text
    return answer


# ---------------------------------------------------------------- the command


def bare_environment() -> dict[str, str]:
    """What the shell of a user may lack, and nothing that this checkout sets; its lock is that of these tests."""
    runtime = {name: os.environ[name] for name in ("XDG_RUNTIME_DIR",) if name in os.environ}
    return {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(PACKAGE), "LANG": "C.UTF-8", **runtime}


def kvmsched(
    *arguments: str, stdin: str = "", python: str = "/usr/bin/python3", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command. Whatever happens, a mistake is one line, and nobody sees a traceback."""
    done = subprocess.run(
        [python, *COMMAND[1:], *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        env={**bare_environment(), **environment},
        timeout=600,
        check=False,
    )
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    assert "a mistake of kvmsched" not in done.stderr, done.stderr
    return done


def ok(*arguments: str, **more: str) -> str:
    done = kvmsched(*arguments, **more)
    assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def ok_json(*arguments: str, **more: str) -> dict[str, Any]:
    return dict(json.loads(ok(*arguments, "--json", **more)))
