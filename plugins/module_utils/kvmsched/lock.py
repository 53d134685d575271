# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who acts on a host (decision 8): one pass at a time, and modules keep away from an acting daemon.

Both are a flock that root and the daemon's user share; the kernel lets go of it however its holder ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import os
import re
import stat
import tempfile
import time
from typing import BinaryIO, Callable, Iterator, Optional, TextIO

SYSTEM_DIRECTORY = "/run/kvmsched"
# Members of libvirt's group may act on qemu:///system, so they may hold its lock.
GROUP = "libvirt"
_POLL_S = 0.1
# A holder says what it is, and its pid.
_LONGEST_NAME = 200
# Whoever only looks whether a daemon is there holds its file for an instant.
_LOOK_S = 1.0


class LockError(Exception):
    """The host's lock can't be had; the text says who has it, or why it can't be taken."""


def directory_for(uri: str) -> str:
    """Return the path of the lock of *uri*: one for the system's libvirt, one for each user's session (and tests)."""
    if uri.startswith("qemu:///system"):
        return SYSTEM_DIRECTORY
    return os.path.join(os.environ.get("XDG_RUNTIME_DIR") or os.path.expanduser("~/.cache"), "kvmsched")


@contextlib.contextmanager
def acquire(uri: str, timeout_s: float, holder: str) -> Iterator[None]:
    """Acquire the host's lock for a pass, waiting up to *timeout_s* for it; LockError names who has it.

    *holder* is our own name.
    """
    path = os.path.join(directory_for(uri), "lock")
    with _open(path) as file:
        if not _lock(file, timeout_s):
            who = _said(file) or "another process"
            waited = f"waited {timeout_s:g} s, try again or raise lock_timeout"
            raise LockError(f"{who} has this host's lock ({path}), {waited}")
        _say(file, f"{holder} (pid {os.getpid()})")
        yield


@contextlib.contextmanager
def announce(uri: str, mode: str) -> Iterator[Callable[[str], None]]:
    """Say that a daemon is here, as long as it is: ``with lock.announce(uri, "act") as set_mode: ...``.

    *mode* is a policy's: ``set_mode("observe")`` changes it. In any mode but ``observe`` the passes of other
    processes on this host write nothing (acting_daemon). The daemon's own passes take the host's lock as any other
    pass does. Announce before the first pass. LockError if another daemon is there.
    """
    path = os.path.join(directory_for(uri), "daemon")
    with _open(path) as file:
        if not _lock(file, _LOOK_S):
            raise LockError(
                f"{_said(file) or 'another daemon'} manages this host already ({path}): stop that one first"
            )

        def set_mode(mode: str) -> None:
            acts = "observe" if mode == "observe" else "act"
            _say(file, f"kvmsched in mode {acts} (pid {os.getpid()})")

        set_mode(mode)
        yield set_mode


def daemon(uri: str) -> Optional[tuple[str, int]]:
    """Return the mode and the pid of the daemon on this host, or None if there is none.

    ("act", 0) if it did not say (yet) who it is. Never waits, writes nothing. OSError if we may not look.
    """
    try:
        descriptor = open_regular(os.path.join(directory_for(uri), "daemon"), os.O_RDONLY)
        with os.fdopen(descriptor, encoding="utf-8", errors="replace") as file:
            if _try(file, fcntl.LOCK_SH):
                return None  # whoever wrote the file is gone
            said = re.search(r"mode (\w+) \(pid (\d+)\)", _said(file))
    except (FileNotFoundError, NotADirectoryError):
        return None
    return (said[1], int(said[2])) if said else ("act", 0)


def acting_daemon(uri: str) -> Optional[int]:
    """Return the pid of the acting daemon of this host; None if there is none, it observes, or is this process.

    0 if it did not say (yet) who it is. Never waits, never fails, writes nothing: who may not look may not
    take the lock, either.
    """
    mode, pid = "observe", 0
    with contextlib.suppress(OSError):
        mode, pid = daemon(uri) or (mode, pid)
    return None if mode != "act" or pid == os.getpid() else pid


# ---------------------------------------------------------------- the files


def _open(path: str) -> TextIO:
    try:
        _make(os.path.dirname(path))
        # Neither created nor followed through a link that somebody else laid.
        descriptor = open_regular(path, os.O_RDWR | os.O_CREAT)
        if os.fstat(descriptor).st_uid == os.geteuid():
            _share(path, 0o660)
        return os.fdopen(descriptor, "r+", encoding="utf-8", errors="replace")
    except OSError as error:
        hint = "; run as root, or with become" if isinstance(error, PermissionError) else ""
        raise LockError(f"the host's lock {path} can't be opened ({error.strerror}){hint}") from None


def make_directory(uri: str) -> None:
    """Make the directory of *uri*'s lock, if it is not there. OSError if that can't be."""
    _make(directory_for(uri))


def _make(directory: str) -> None:
    if not os.path.isdir(directory):
        os.makedirs(directory, mode=0o700, exist_ok=True)
        _share(directory, 0o770)


def open_regular(path: str, flags: int) -> int:
    """Return a descriptor of the file *path*; OSError where it is a link, or anything else that is no file.

    Never waits: a FIFO in its place would, for ever.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file", path)
    return descriptor


def write_atomically(path: str, text: str, mode: int) -> None:
    """Let *path*, of its directory's group, hold *text*: all of it, or what was there before. OSError if not."""
    with replacing(path, mode) as file:
        file.write(text.encode())


@contextlib.contextmanager
def replacing(path: str, mode: int) -> Iterator[BinaryIO]:
    """Hand out a file that takes the place of *path* at the end; whatever is raised meanwhile, it does not. OSError."""
    directory = os.path.dirname(path)
    descriptor, temporary = tempfile.mkstemp(dir=directory, prefix=f".{os.path.basename(path)}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            with contextlib.suppress(PermissionError):
                os.fchown(file.fileno(), -1, os.stat(directory).st_gid)
            os.fchmod(file.fileno(), mode)
            yield file
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _share(path: str, mode: int) -> None:
    """Let libvirt's group use *path*, which is ours: where we are root, or whoever may use its directory."""
    directory = os.stat(os.path.dirname(path))
    with contextlib.suppress(KeyError, PermissionError):
        if os.geteuid() == 0:
            os.chown(path, 0, grp.getgrnam(GROUP).gr_gid)
        elif directory.st_mode & stat.S_IWGRP:
            # A member's pass makes it before the daemon's first one, too: else nobody but that member could hold it.
            # The hardened unit may call no chown, and has that group anyhow.
            if os.stat(path).st_gid != directory.st_gid:
                os.chown(path, -1, directory.st_gid)
        else:
            return
        os.chmod(path, mode)


def _lock(file: TextIO, timeout_s: float) -> bool:
    end_s = time.monotonic() + timeout_s
    while not _try(file, fcntl.LOCK_EX):
        if time.monotonic() >= end_s:
            return False
        time.sleep(_POLL_S)
    return True


def _try(file: TextIO, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _said(file: TextIO) -> str:
    """Return what its holder said of itself."""
    file.seek(0)
    return file.readline(_LONGEST_NAME).strip()


def _say(file: TextIO, text: str) -> None:
    """Write one line in one go, so that nobody reads half of it; without room for it the lock still holds."""
    with contextlib.suppress(OSError):
        os.pwrite(file.fileno(), f"{text}\n".encode(), 0)
