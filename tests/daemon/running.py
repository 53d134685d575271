# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The daemon as a process, and all that it tells: its lines, its status, its metrics, and what systemd would hear.

No systemd runs here: a socket made by the test stands where systemd listens (sd_notify(3)).
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from face import COMMAND

REPOSITORY = Path(__file__).resolve().parents[2]
GUESTS = "kvmsched-test-*"
LISTEN = "127.0.0.1:19757"
POLL_S = 0.1
# Bounds on waiting, so that a daemon that does nothing fails its test: no healthy one comes near them.
PATIENCE_S = 300
# Its last lines are read by a thread, which ends with the last process that could write more.
LAST_LINES_S = 30


def policy(daemon: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A policy document that touches the tests' guests only."""
    return {"domains": [GUESTS], "daemon": {"metrics_listen": LISTEN, **(daemon or {})}, **more}


class Daemon:
    """``with Daemon(policy()) as daemon: ...``: ends with it, however the block ends.

    *around* is what its command is wrapped in, *uri* libvirt's; *directory* keeps its policy and state.
    """

    def __init__(
        self,
        document: dict[str, Any],
        directory: Path | None = None,
        uri: str = "qemu:///system",
        around: Callable[[Sequence[str]], Sequence[str]] = list,
        runtime: Path = Path("/run/kvmsched"),
        environment: dict[str, str] | None = None,
    ) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="kvmsched-test-")
        self.directory = directory or Path(self._temporary.name)
        self.directory.chmod(0o755)
        self.policy_file = self.directory / "policy.json"
        self.write_policy(document)
        self.runtime = runtime
        self.lines: list[str] = []
        self.told: list[str] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._listener.bind(str(Path(self._temporary.name) / "notify"))
        os.chmod(Path(self._temporary.name) / "notify", 0o777)
        os.chmod(self._temporary.name, 0o755)
        command = [*COMMAND, "run", "--policy", str(self.policy_file), "--uri", uri]
        variables = {
            "PYTHONPATH": str(REPOSITORY / "plugins/module_utils"),
            "NOTIFY_SOCKET": self._listener.getsockname(),
            "WATCHDOG_USEC": "90000000",
            "STATE_DIRECTORY": str(self.directory / "state"),
            "MALLOC_ARENA_MAX": "1",  # as the unit has it
            **(environment or {}),
        }
        self.process = subprocess.Popen(
            around(command), env={**os.environ, **variables}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        self._reader = threading.Thread(target=self._read_lines, daemon=True)
        self._reader.start()
        threading.Thread(target=self._read_notifications, daemon=True).start()

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join(LAST_LINES_S)
        self._listener.close()
        self._temporary.cleanup()

    def _read_lines(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.lines.append(line.decode().rstrip())

    def _read_notifications(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self.told += self._listener.recv(65536).decode().splitlines()

    # -- what it is told

    def write_policy(self, document: Any) -> None:
        self.policy_file.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")

    def reload(self, document: Any) -> None:
        """Give it another policy, and wait until it has dealt with it."""
        before = self.count("READY=1")
        self.write_policy(document)
        self.process.send_signal(signal.SIGHUP)
        self.wait(lambda: self.count("READY=1") > before, "to reload")

    def end(self, number: signal.Signals = signal.SIGTERM) -> float:
        """End it, and return how many seconds that took."""
        began_s = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(PATIENCE_S)
        took_s = time.monotonic() - began_s
        self._reader.join(LAST_LINES_S)
        return took_s

    # -- what it tells

    def count(self, notification: str) -> int:
        return self.told.count(notification)

    def said(self, part: str) -> list[str]:
        """Its lines that hold *part*."""
        return [line for line in self.lines if part in line]

    @property
    def moves(self) -> list[str]:
        """Its lines that tell of a move that was made."""
        return [line for line in self.lines if " -> " in line and not line.startswith("would move")]

    @property
    def memory_moves(self) -> list[str]:
        return [line for line in self.moves if "vCPU" not in line]

    def status(self) -> dict[str, Any]:
        """Its last status, empty if there is none."""
        with contextlib.suppress(FileNotFoundError):
            return dict(json.loads((self.runtime / "status.json").read_text(encoding="utf-8")))
        return {}

    def domains(self) -> dict[str, dict[str, Any]]:
        return {domain["name"]: domain for domain in self.status().get("domains", [])}

    def metrics(self, path: str = "/metrics") -> str:
        with urllib.request.urlopen(f"http://{LISTEN}{path}", timeout=PATIENCE_S) as answer:
            return str(answer.read().decode())

    def metric(self, name: str) -> float:
        """The value of one series, as the exposition writes it."""
        (line,) = [line for line in self.metrics().splitlines() if line.rpartition(" ")[0] == name]
        return float(line.rpartition(" ")[2])

    # -- what the kernel tells of it

    @property
    def pid(self) -> int:
        """Its own pid, also where it is wrapped."""
        return int(self.status().get("pid") or self.process.pid)

    def rss_kib(self) -> int:
        return self._smaps("Rss")

    def anonymous_kib(self) -> int:
        """What is its own: libraries that others have mapped too are not in it."""
        return self._smaps("Anonymous")

    def _smaps(self, name: str) -> int:
        text = Path(f"/proc/{self.pid}/smaps_rollup").read_text(encoding="ascii")
        (line,) = [line for line in text.splitlines() if line.startswith(f"{name}:")]
        return int(line.split()[1])

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    # -- waiting

    def wait(self, done: Callable[[], object], what: str, timeout_s: float = PATIENCE_S) -> None:
        end_s = time.monotonic() + timeout_s
        while not done():
            if self.process.poll() is not None:
                self._reader.join(LAST_LINES_S)
                raise AssertionError(f"it ended with {self.process.returncode}: {self.lines}")
            if time.monotonic() > end_s:
                raise TimeoutError(f"the daemon was {what}, not within {timeout_s:g} s; it said: {self.lines}")
            time.sleep(POLL_S)

    def wait_said(self, part: str, what: str) -> None:
        """Wait until it said that: a line is read some time after what it tells of."""
        self.wait(lambda: self.said(part), what)

    def wait_ready(self) -> Daemon:
        self.wait(lambda: self.count("READY=1"), "to be ready")
        return self

    def wait_passes(self, more: int = 2) -> None:
        """Wait for further passes over both resources."""
        for _turn in range(more):
            before = self._last_passes()
            self.wait(functools.partial(self._passed, before), "to make a pass")

    def _last_passes(self) -> list[float]:
        return [self.status()[f"{resource}_pass"]["when_s"] for resource in ("memory", "vcpu")]

    def _passed(self, before: list[float]) -> bool:
        return all(now > then for now, then in zip(self._last_passes(), before))

    def wait_quiet(self, seconds: float, pins: bool = False) -> None:
        """Wait until it moved no memory for some seconds; nor *pins*, which others who use this machine may prevent."""
        end_s = time.monotonic() + PATIENCE_S
        moves = self.moves if pins else self.memory_moves
        since_s = time.monotonic()
        while time.monotonic() - since_s < seconds:
            if time.monotonic() > end_s:
                raise TimeoutError(f"it does not come to rest: {self.moves[-20:]}")
            before, moves = moves, self.moves if pins else self.memory_moves
            if moves != before:
                since_s = time.monotonic()
            time.sleep(POLL_S)


@contextlib.contextmanager
def running(document: dict[str, Any], **more: Any) -> Iterator[Daemon]:
    """A daemon that is ready."""
    with Daemon(document, **more) as daemon:
        yield daemon.wait_ready()
