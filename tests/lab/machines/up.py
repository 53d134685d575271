# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine to play with: it runs until somebody ends it, by ``make machine-up`` and ``make machine-down``."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import tempfile
import time
from pathlib import Path

from .. import machine
from .host import Machine

DIRECTORY = machine.DIRECTORY / "machine-kept"
PLAY = """
{name} runs {suite} with {pcpus} pCPUs, KVM, and this checkout's command. To enter it:

    {enter}
    {enter} kvmsched once --dry-run

For Ansible: --inventory {inventory}
`make machine-down` ends it.
"""


def up(suite: str, say: machine.Say) -> int:
    """Start a machine, unless one is there, and say how to enter it."""
    from release import build, epoch

    if DIRECTORY.exists():
        print(f"there is one already: {DIRECTORY}/m1/enter, or `make machine-down`")
        return os.EX_USAGE
    kept = Machine(suite, say=say, kept=True)
    kept.start()
    with tempfile.TemporaryDirectory() as place:
        kept.push(build(Path(place), epoch()))
    enter = kept.directory / "enter"
    command = shlex.join(kept.ssh("")[:-1])
    enter.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
    enter.chmod(0o755)
    told = {
        "name": kept.name,
        "suite": suite,
        "pcpus": kept.topology.pcpus,
        "enter": enter,
        "inventory": kept.inventory,
    }
    print(PLAY.format(**told))
    return 0


def down() -> int:
    """End the machine of up()."""
    ended = []
    for directory in DIRECTORY.glob("*"):
        with contextlib.suppress(OSError, ValueError):
            pid = int((directory / "pid").read_text(encoding="utf-8"))
            if os.fsencode(directory) in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
                ended.append(directory.name)
                while machine.process_start(pid):
                    time.sleep(0.1)
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    print("ended:", " ".join(ended) or "nothing")
    return 0
