# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A second libvirtd, to stop, kill and hang without touching the machine's own and its guests.

It lives in a mount and a network namespace of its own, with its own sockets, state and configuration.
Processes see each other as ever, so what /proc tells about its guests is the truth outside, too.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Optional, Sequence

from . import machine

# A bound on waiting: no healthy daemon comes near it.
START_S = 180


class OwnLibvirtd:
    """``with OwnLibvirtd() as own, Lab(own=own) as lab: ...; own.signal(SIGSTOP); own.restart()``."""

    def __init__(self) -> None:
        self.directory = machine.DIRECTORY / f"own-{os.getpid()}-{machine.process_start(os.getpid())}"
        self.run_directory = self.directory / "run"
        self.uri = f"qemu+unix:///system?socket={self.run_directory}/libvirt-sock"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> OwnLibvirtd:
        machine.install()
        clean()
        mounts = {"run": "/run/libvirt", "state": "/var/lib/libvirt/qemu", "etc": "/etc/libvirt"}
        for part, where in mounts.items():
            (self.directory / part).mkdir(parents=True)
            Path(where).mkdir(parents=True, exist_ok=True)
        for part in ("run", "state"):
            (self.directory / part).chmod(0o755)
        with contextlib.suppress(FileNotFoundError):
            shutil.copy("/etc/libvirt/qemu.conf", self.directory / "etc")
        bind = [f"mount --bind {shlex.quote(str(self.directory / part))} {where}" for part, where in mounts.items()]
        script = " && ".join([*bind, "echo ready", "exec sleep infinity"])
        namespace = ["unshare", "--mount", "--net", "--propagation", "private", "sh", "-c", script]
        holder = self._processes["holder"] = subprocess.Popen(namespace, stdout=subprocess.PIPE)
        try:
            if not holder.stdout or holder.stdout.readline() != b"ready\n":
                raise RuntimeError("can't make a namespace for a second libvirtd")
            self._start("virtlogd")
            self.restart()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        remove(self.directory)
        for process in self._processes.values():
            process.wait()

    @property
    def pid(self) -> int:
        return self._processes["libvirtd"].pid

    def qemu_pid(self, guest: str) -> int:
        return machine.qemu_pid(guest, self.run_directory)

    def inside(self, command: Sequence[str]) -> list[str]:
        """*command* as it must be run so that its qemu:///system is this libvirtd."""
        return ["nsenter", f"--target={self._processes['holder'].pid}", "--mount", "--net", "--", *command]

    def signal(self, number: signal.Signals) -> None:
        """Send libvirtd a signal, e.g. SIGSTOP, SIGCONT or SIGKILL."""
        self._processes["libvirtd"].send_signal(number)

    def restart(self) -> None:
        """End libvirtd, whatever state it is in, and start it; its guests run on."""
        running: Optional[subprocess.Popen[bytes]] = self._processes.pop("libvirtd", None)
        if running:
            running.kill()
            running.wait()
        self._start("libvirtd")
        machine.connect(self.uri).close()

    def ensure(self) -> None:
        """Make it answer again, if it was stopped or killed."""
        self.signal(signal.SIGCONT)
        if self._processes["libvirtd"].poll() is not None:
            self.restart()

    def _start(self, daemon: str) -> None:
        command = self.inside([daemon, "--pid-file", f"/run/libvirt/{daemon}.pid"])
        log = (self.directory / f"{daemon}.log").open("ab")
        self._processes[daemon] = subprocess.Popen(command, stdout=log, stderr=log, env=machine.environment())
        log.close()
        deadline = time.monotonic() + START_S
        while not (self.run_directory / f"{daemon}.pid").exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{daemon} does not start: see {self.directory}/{daemon}.log")
            time.sleep(0.05)


def clean(kind: str = "own") -> list[str]:
    """Remove second libvirtds, with their guests, whose process is gone or this one; return their names.

    So for other namespaces that hold a directory of *kind*-PID-START.
    """
    left = [directory for directory in machine.DIRECTORY.glob(f"{kind}-*-*") if not _in_use(directory.name)]
    for directory in left:
        remove(directory)
    return [directory.name for directory in left]


def _in_use(name: str) -> bool:
    """Whether the process that made it lives, and is another one."""
    _kind, pid, start = name.split("-")
    return machine.process_start(int(pid)) == int(start) and int(pid) != os.getpid()


def remove(directory: Path) -> None:
    """End every process that has this directory mounted, which are those of its namespace, and delete it."""
    while pids := _processes_within(directory):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    shutil.rmtree(directory, ignore_errors=True)


def _processes_within(directory: Path) -> list[int]:
    found = []
    mark = re.compile(rf"/{directory.name}[/ ]")
    for mounts in Path("/proc").glob("[0-9]*/mountinfo"):
        with contextlib.suppress(OSError):  # it has ended, or is a zombie
            if mark.search(mounts.read_text(encoding="utf-8")):
                found.append(int(mounts.parent.name))
    return found
