# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One pass at a time on a host: a flock that root and the daemon's user share (decision 8)."""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import time
from typing import Iterator, TextIO

SYSTEM_DIRECTORY = "/run/kvmsched"
# Members of libvirt's group may act on qemu:///system, so they may hold its lock.
GROUP = "libvirt"
_POLL_S = 0.1


class LockError(Exception):
    """The host's lock can't be had; the text says who holds it, or why it can't be taken."""


def directory_for(uri: str) -> str:
    """Where the lock of *uri* lives: one for the host's system libvirt, one for each user's session."""
    if uri.startswith("qemu:///session") or (os.geteuid() != 0 and not uri.startswith("qemu:///system")):
        return os.path.join(os.environ.get("XDG_RUNTIME_DIR") or os.path.expanduser("~/.cache"), "kvmsched")
    return SYSTEM_DIRECTORY


@contextlib.contextmanager
def hold(uri: str, timeout_s: float, holder: str) -> Iterator[None]:
    """Hold the host's lock, waiting up to *timeout_s* for it; LockError names who has it. *holder* is our own name."""
    path = os.path.join(directory_for(uri), "lock")
    file = _open(path)
    with file:
        _wait(file, path, timeout_s)
        file.seek(0)
        file.truncate()
        file.write(f"{holder} (pid {os.getpid()})\n")
        file.flush()
        try:
            yield
        finally:
            file.seek(0)
            file.truncate()


def _open(path: str) -> TextIO:
    directory = os.path.dirname(path)
    try:
        if not os.path.isdir(directory):
            os.makedirs(directory, mode=0o700, exist_ok=True)
            _share(directory, 0o770)
        # Neither created nor followed through a link that somebody else laid.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        if os.fstat(descriptor).st_uid == os.geteuid():
            _share(path, 0o660)
        return os.fdopen(descriptor, "r+", encoding="utf-8")
    except OSError as error:
        raise LockError(
            f"the host's lock {path} can't be opened ({error.strerror}); run as root, or with become"
        ) from None


def _share(path: str, mode: int) -> None:
    """Let libvirt's group use *path* where we are root and the group exists."""
    if os.geteuid() == 0:
        with contextlib.suppress(KeyError):
            os.chown(path, 0, grp.getgrnam(GROUP).gr_gid)
            os.chmod(path, mode)


def _wait(file: TextIO, path: str, timeout_s: float) -> None:
    end_s = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= end_s:
                file.seek(0)
                who = file.read().strip() or "another process"
                raise LockError(f"{who} holds this host ({path}), waited {timeout_s:g} s (lock_timeout)") from None
            time.sleep(_POLL_S)
