# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A daemon that waits hardly at all between two attempts: an hour of a libvirt that hangs takes half a minute."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
# With pauses of up to 30 s and two deadlines of 10 s each, that is what an hour has.
ATTEMPTS_AN_HOUR = 72
# During so many attempts there is a moment without one.
LOOKED_AT = 6
# A bound on waiting: on a machine that does nothing else it takes half a minute.
PATIENCE_S = 600

SCRIPT = """
import sys
from kvmsched import passes
from kvmsched.app import daemon, daemon_connection
passes.acting_refusal = daemon_connection.acting_refusal = lambda uri: None
daemon._RECONNECT_S = daemon._RECONNECT_MOST_S = daemon_connection._BARRED_S = daemon_connection._BARRED_MOST_S = 0.05
fail = daemon._Daemon._fail
def failed(self, turns, error):
    fail(self, turns, error)
    print("attempt", file=sys.stderr, flush=True)
daemon._Daemon._fail = failed
sys.exit(daemon.run(sys.argv[1], sys.argv[2]))
"""


class Hurried:
    """``with Hurried(uri, directory) as daemon: daemon.assert_flat()``; *around* is what its command is wrapped in.

    It acts, whatever its *uri*, on no guest.
    """

    def __init__(self, uri: str, directory: Path, around: Callable[[Sequence[str]], Sequence[str]] = list) -> None:
        policy = directory / "policy.json"
        document: dict[str, Any] = {
            "deadline": 0.1,
            "domains": ["no-such-guest"],
            "daemon": {"period": 1, "metrics_listen": "none"},
        }
        policy.write_text(json.dumps(document))
        variables = {
            "PYTHONPATH": str(REPOSITORY / "plugins/module_utils"),
            "STATE_DIRECTORY": str(directory / "state"),
            "XDG_RUNTIME_DIR": str(directory),
        }
        command = ["/usr/bin/python3", "-c", SCRIPT, str(policy), uri]
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            list(around(command)), env={**os.environ, **variables}, stdout=sys.stderr, stderr=subprocess.PIPE, text=True
        )
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Hurried:
        return self

    def __exit__(self, *_error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.lines.append(line.rstrip())

    @property
    def attempts(self) -> int:
        """How many passes failed by now."""
        return self.lines.count("attempt")

    def held(self) -> tuple[int, int]:
        """Its threads and descriptors, between attempts: an attempt that is under way has some of its own."""
        looks: list[tuple[int, int]] = []
        end = self.attempts + LOOKED_AT

        def looked() -> bool:
            directory = f"/proc/{self.process.pid}"
            looks.append((len(os.listdir(f"{directory}/task")), len(os.listdir(f"{directory}/fd"))))
            return self.attempts >= end

        self.wait(looked, f"{LOOKED_AT} attempts")
        return min(threads for threads, _descriptors in looks), min(descriptors for _threads, descriptors in looks)

    def wait(self, done: Callable[[], object], what: str) -> None:
        end_s = time.monotonic() + PATIENCE_S
        while not done():
            assert self.process.poll() is None, f"it ended: {self.lines}"
            assert time.monotonic() < end_s, f"{what} did not come: {self.lines}"
            time.sleep(0.05)

    def wait_attempts(self, more: int) -> None:
        """Wait until so many more passes have failed."""
        before = self.attempts
        self.wait(lambda: self.attempts >= before + more, f"{more} attempts")

    def assert_flat(self) -> None:
        """An hour of attempts costs no thread and no descriptor more than the first ones did."""
        self.wait_attempts(ATTEMPTS_AN_HOUR // 3)
        threads, descriptors = self.held()
        self.wait_attempts(ATTEMPTS_AN_HOUR)
        after = self.held()
        assert after[0] <= threads and after[1] <= descriptors, (threads, descriptors, after)
        assert threads <= 20, "the unit allows 128"
        assert not [line for line in self.lines if "Traceback" in line or "a mistake of kvmsched" in line], self.lines
