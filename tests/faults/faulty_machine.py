# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An emulated machine whose passes and libvirtd can be broken: faulty.py runs there, what breaks is chosen here."""

from __future__ import annotations

import base64
import json
import pickle
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union

import faulty
from kvmsched.passes import PassError
from lab import Machine, OwnLibvirtd
from lab.machines.host import COLLECTION

# Where it finds the package, as it does in a checkout.
PROGRAM = f"{COLLECTION}/tests/faults/faulty.py"
# A healthy libvirt takes longer to answer there: others may keep the whole machine from running.
PATIENCE = 10.0
POLL_S = 0.1
# What a shell says of who ended by a signal.
BY_SIGNAL = 128


class FaultyMachine(Machine):
    """What OwnLibvirtd gives to a Herd, of a machine's libvirtd."""

    run_directory = Path("/run/libvirt")
    _passes: Optional[subprocess.Popen[str]] = None

    def push(self, tarball: Path) -> None:
        super().push(tarball)
        self.write(PROGRAM, Path(faulty.__file__).read_text(encoding="utf-8"))
        # Each guest's console has one: sshd lets a connection have ten, and what is more takes long.
        self.write("/etc/ssh/sshd_config.d/sessions.conf", "MaxSessions 100\n")
        self.run("systemctl reload ssh")
        self.connect()

    def inside(self, command: Sequence[str]) -> list[str]:
        """*command* as it is run there; its first line is its pid."""
        there = {sys.executable: "python3", faulty.__file__: PROGRAM}
        line = shlex.join(there.get(word, word) for word in command)
        return self.ssh(f"{line} & echo $!; wait $!")

    def signal(self, number: signal.Signals) -> None:
        """Send libvirtd a signal, unless it has ended."""
        self.run(f"pkill --signal {number.value} --exact libvirtd; true")

    def ensure(self) -> None:
        """Make it answer again, if it was stopped or killed."""
        self.signal(signal.SIGCONT)
        # systemd starts it anew by itself, but not as often as chaos kills it.
        self.run("systemctl reset-failed libvirtd libvirtd.socket; systemctl start libvirtd.socket libvirtd")

    def restart(self) -> None:
        """End libvirtd and start it; its guests run on."""
        self.run("systemctl restart libvirtd")

    def run_pass(self, faults: Mapping[str, Callable[[], object]], **asked: Any) -> Any:
        """Return the result of faulty.run() there, with *faults* that happen here at its instants. Raises PassError."""
        if not self._passes or self._passes.poll() is not None:
            command = self.ssh(f"exec python3 {PROGRAM} serve")
            self._passes = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._tell(json.dumps({**asked, "instants": list(faults)}))
        word, rest = self._hear()
        while word == "at":
            try:
                faults[rest]()
            except BaseException:
                self._end_passes()  # it waits for an answer
                raise
            self._tell("")
            word, rest = self._hear()
        if word == "failed":
            raise PassError(rest)
        return pickle.loads(base64.b64decode(rest))

    def _tell(self, line: str) -> None:
        assert self._passes and self._passes.stdin
        self._passes.stdin.write(line + "\n")
        self._passes.stdin.flush()

    def _hear(self) -> tuple[str, str]:
        assert self._passes and self._passes.stdout
        line = self._passes.stdout.readline()
        assert line, "the pass died"
        word, _space, rest = line.rstrip("\n").partition(" ")
        return word, rest

    def _end_passes(self) -> None:
        if self._passes:
            self._passes.kill()
            self._passes.communicate()
        self._passes = None

    def _hang_up(self) -> None:
        self._end_passes()
        super()._hang_up()


# Whose libvirtd may be broken.
Own = Union[OwnLibvirtd, FaultyMachine]


@dataclass
class FarChild(faulty.Child):
    """A pass in a process of its own on a machine."""

    machine: Optional[FaultyMachine] = None

    def __post_init__(self) -> None:
        assert self.machine
        within, around = self.inside, self.machine.inside
        self.inside, self.clock = lambda command: around(within(command)), self.machine.clock
        super().__post_init__()
        assert self.process.stdout
        self._pid = int(self.process.stdout.readline())

    def wait_stopped(self) -> None:
        assert self.machine
        while self.process.poll() is None and self.machine.kernel.process_state(self._pid) != "T":
            time.sleep(POLL_S)

    def signal(self, number: signal.Signals) -> None:
        assert self.machine
        if self.machine.kernel.process_state(self._pid):
            self.machine.kernel.send_signal(self._pid, number)

    def end(self) -> tuple[int, str]:
        status, output = super().end()
        return (BY_SIGNAL - status if status > BY_SIGNAL else status), output
