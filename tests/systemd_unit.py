# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""kvmsched.service on a host: what it is told, and what systemd and its journal tell of it."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Union

from lab import Host, HostError, Machine

REPOSITORY = Path(__file__).resolve().parents[1]
PATIENCE_S = 300
POLL_S = 0.2
# What picks such entries out of the journal.
MEMORY_MOVE = "KVMSCHED_EVENT=move KVMSCHED_RESOURCE=memory"


class Unit:
    """The unit of one host. ``journal()`` begins where ``mark()`` was last called."""

    def __init__(self, host: Union[Host, Machine], name: str = "kvmsched") -> None:
        self.host, self.name = host, name
        self._clock = host.clock if isinstance(host, Machine) else time.monotonic
        self._since_s = 0.0

    def write_policy(self, document: Any) -> None:
        text = document if isinstance(document, str) else json.dumps(document)
        self.host.write("/etc/kvmsched/policy.json", text)

    def tell(self, verb: str) -> float:
        """``start``, ``stop``, ``reload`` ...: as systemctl does it; how many seconds that took."""
        began_s = time.monotonic()
        self.host.run(f"systemctl {verb} {self.name}")
        return time.monotonic() - began_s

    # -- what systemd tells

    def show(self, name: str) -> str:
        """One property."""
        return self.host.run(f"systemctl show --property={name} --value {self.name}").strip()

    @property
    def pid(self) -> int:
        """Of its main process, as the host numbers it."""
        return int(self.show("MainPID"))

    @property
    def active(self) -> bool:
        return self.show("ActiveState") == "active"

    @property
    def failed(self) -> bool:
        """Whether it failed and is not restarted."""
        return self.show("ActiveState") == "failed"

    # -- what the daemon tells

    def mark(self) -> None:
        self._since_s = float(self.host.run("date +%s.%N"))

    def journal(self, matches: str = "", boot: str = "") -> list[dict[str, str]]:
        """Its entries since mark(), or of one *boot*."""
        where = f"--boot={boot}" if boot else f"--since=@{self._since_s:.6f}"
        lines = self.host.run(f"journalctl --quiet --unit={self.name} --output=json {where} {matches}").splitlines()
        return [json.loads(line) for line in lines]

    def said(self, part: str, boot: str = "") -> list[str]:
        """Its lines, since mark(), that hold *part*."""
        return [entry["MESSAGE"] for entry in self.journal(boot=boot) if part in entry["MESSAGE"]]

    def status(self) -> dict[str, Any]:
        """What `kvmsched status` tells a member of its group."""
        return dict(json.loads(self.host.run("kvmsched status --json")))

    def domains(self) -> dict[str, dict[str, Any]]:
        return {domain["name"]: domain for domain in self.status()["domains"]}

    # -- waiting

    def wait(self, done: Callable[[], object], what: str, timeout_s: float = PATIENCE_S) -> None:
        end_s = self._clock() + timeout_s
        while not self._try(done):
            if self._clock() > end_s:
                lines = self.host.run("journalctl --boot --output=short-precise --unit='kvmsched*' --lines=80")
                raise AssertionError(f"{self.name} was {what}, not within {timeout_s:g} s; it said:\n{lines}")
            time.sleep(POLL_S)

    def wait_passes(self, more: int = 2) -> None:
        """Wait for further passes over memory."""
        for _turn in range(more):
            before_s = self.status()["memory_pass"]["when_s"]
            self.wait(functools.partial(self._passed, before_s), "to make a pass")

    def _passed(self, before_s: float) -> bool:
        return bool(self.status()["memory_pass"]["when_s"] > before_s)

    def wait_quiet(self, seconds: float) -> None:
        """Wait until it moved no memory for some seconds: pins it may move as long as others keep this machine busy."""
        self.wait(lambda: not self.host.run(self._moves_since(seconds)).strip(), "to come to rest")

    def _moves_since(self, seconds: float) -> str:
        return f"journalctl --quiet --unit={self.name} --since=-{seconds}s {MEMORY_MOVE}"

    @staticmethod
    def _try(done: Callable[[], object]) -> object:
        """While it starts or is down, there is nothing to be read."""
        try:
            return done()
        except (HostError, FileNotFoundError):
            return None
