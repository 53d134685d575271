# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""truth.py on a machine: one process there answers, for a Python that starts there takes a second."""

from __future__ import annotations

import json
import shlex
import subprocess
import threading
from pathlib import Path
from typing import Any, Callable, Optional

from .. import truth

ANSWERS = """
import json, sys
for line in sys.stdin:
    name, arguments = json.loads(line)
    try:
        answer = True, globals()[name](*arguments)
    except OSError as error:
        answer = False, error
    print(repr(answer), flush=True)
"""


class Far:
    """The functions of truth.py, as a machine sees itself; *ssh* makes the command line that runs one there."""

    def __init__(self, ssh: Callable[..., list[str]]) -> None:
        self._ssh = ssh
        self._process: Optional[subprocess.Popen[str]] = None
        self._one_at_a_time = threading.Lock()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in vars(truth):
            raise AttributeError(name)
        return lambda *arguments: self._ask(name, *arguments)

    def _ask(self, name: str, *arguments: Any) -> Any:
        with self._one_at_a_time:
            well, answer = self._answer(name, *arguments)
        if not well:
            raise answer
        return answer

    def _answer(self, name: str, *arguments: Any) -> tuple[bool, Any]:
        if not self._process or self._process.poll() is not None:
            program = Path(truth.__file__).read_text(encoding="utf-8") + ANSWERS
            command = self._ssh(f"exec python3 -c {shlex.quote(program)}")
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps([name, arguments]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise OSError("the machine is gone")
        return tuple(eval(line, vars(truth).copy()))  # what this very file has printed there

    def close(self) -> None:
        """End the process; the next question starts another."""
        if self._process:
            self._process.kill()
            self._process.communicate()
            self._process = None
