# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes records: one file that somebody asked for, or the daemon's own, of bounded size, in a directory."""

from __future__ import annotations

import contextlib
import math
import os
import queue
import re
import threading
import time
import zlib
from dataclasses import replace
from typing import Any, Iterable, Mapping, Optional

from .. import leases, lock
from ..config import DaemonPolicy, Policy
from ..hypervisor import acting_refusal, watch_events
from ..passes import Conduct, PassError, Standing, Tick, Turn
from .bundle import Decided
from .record import SUFFIX, Context, Encoder, Entry, Past

# What a killed process loses at most, and a margin for a look that takes long.
_FLUSH_S = 30.0
# Of a directory that is kept within a size, each file may have this part.
_PARTS = 8
_LEAST_PART = 64 * 1024
# After a disk that was full, and whatever else was wrong.
_AGAIN_S = 60.0
_NAME = re.compile(r"[0-9]{8}T[0-9]{9}-[0-9]+" + re.escape(SUFFIX))


class File:
    """A record that is being written. ``size`` is how much of it is on the disk."""

    def __init__(self, path: str) -> None:
        """OSError where it can't be: it is new, or a regular file that is written anew."""
        self.path = path
        self._descriptor = lock.open_regular(path, os.O_WRONLY | os.O_CREAT)
        os.ftruncate(self._descriptor, 0)
        self._pack = zlib.compressobj(6, wbits=31)
        self._encoder = Encoder()
        # The first look is on the disk at once: no record is empty.
        self._flushed_s = -math.inf
        self.size = 0

    def add(self, entry: Entry) -> None:
        """Add one look. OSError."""
        line = self._encoder.line(entry)
        self._write(self._pack.compress(line.encode() + b"\n"))
        if time.monotonic() - self._flushed_s >= _FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Have all that was added on the disk, as far as this process is concerned."""
        self._write(self._pack.flush(zlib.Z_SYNC_FLUSH))
        self._flushed_s = time.monotonic()

    def close(self) -> None:
        """End it. OSError where its last part could not be written."""
        try:
            self._write(self._pack.flush())
        finally:
            os.close(self._descriptor)

    def drop(self) -> None:
        """Close it as it is."""
        with contextlib.suppress(OSError):
            os.close(self._descriptor)

    def _write(self, data: bytes) -> None:
        while data:
            written = os.write(self._descriptor, data)
            self.size += written
            data = data[written:]


def room_of(uri: str) -> Any:
    """Return the room that a pass on this host would be asked to keep."""
    return None if acting_refusal(uri) else leases.room(uri)


def write_lines(path: str, lines: Iterable[str]) -> None:
    """Let the file *path* be a record of *lines*; it stays what it is where they end with an exception. OSError."""
    pack = zlib.compressobj(6, wbits=31)
    with lock.replacing(os.path.abspath(path), 0o600) as file:
        for line in lines:
            file.write(pack.compress(line.encode() + b"\n"))
        file.write(pack.flush())


# ---------------------------------------------------------------- one file that somebody asked for


def watch(how: Conduct, policy: Policy, context: Context, path: str, seconds: float, stop: threading.Event) -> int:
    """Record the host into the file *path* for *seconds*, or until *stop*; return the number of looks.

    It only looks: what a daemon decides meanwhile is in that daemon's own record. PassError if there was nothing to be
    seen at all, OSError where it can't be written.
    """
    inbox: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
    watch_events(how.uri, lambda word, uuid: inbox.put((word, uuid)))
    period_s = min(policy.daemon.memory_period_s, policy.daemon.vcpu_period_s)
    count, end_s, due_s = 0, time.monotonic() + seconds, time.monotonic()
    # Which domains something happened to since the last look; None: not known.
    changed: Optional[set[str]] = None
    standing = Standing(how)
    # Opened with the first look: a record that was there is worth more than none.
    file: Optional[File] = None
    try:
        while not stop.wait(max(0.0, due_s - time.monotonic())) and due_s < end_s:
            due_s = max(due_s + period_s, time.monotonic())
            changed = _heard(inbox, changed)
            try:
                now = standing.tick(None, None, changed).snapshot
            except PassError:
                changed = None
                if file is None:
                    raise
                continue
            changed = set()
            acted = lock.acting_daemon(how.uri) is not None
            file = file or File(path)
            file.add(Entry(now, replace(context, room=room_of(how.uri), acted=acted)))
            count += 1
    finally:
        standing.close()
        if file is not None:
            file.close()
    return count


def _heard(inbox: queue.SimpleQueue[tuple[str, str]], changed: Optional[set[str]]) -> Optional[set[str]]:
    """Return *changed* and what libvirt told since; what happened before it listened, it did not tell."""
    while not inbox.empty():
        word, uuid = inbox.get()
        changed = None if changed is None or word == "connected" else changed | {uuid}
    return changed


# ---------------------------------------------------------------- the daemon's own


class Recorder:
    """The daemon's record. Whatever goes wrong with it is logged, and costs no pass."""

    def __init__(self) -> None:
        self._directory: Optional[str] = None
        self._most = 0
        self._file: Optional[File] = None
        self._again_s = 0.0

    def open(self, policy: DaemonPolicy) -> None:
        """Record where *policy* wants it, or not at all."""
        if (policy.record, policy.record_size_kib * 1024) != (self._directory, self._most):
            self.close()
        self._directory, self._most, self._again_s = policy.record, policy.record_size_kib * 1024, 0.0

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()

    def take(self, tick: Tick, context: Context, turns: Mapping[str, Turn[Any, Any]]) -> None:
        """Add what a tick brought; *turns* are as it was handed them. Whatever it raises, once in _AGAIN_S at most."""
        if self._directory is None or time.monotonic() < self._again_s:
            return
        try:
            self._add(self._directory, tick, context, turns)
        except Exception:
            self._again_s = time.monotonic() + _AGAIN_S
            if self._file is not None:
                self._file.drop()
            self._file = None
            raise

    def _add(self, directory: str, tick: Tick, context: Context, turns: Mapping[str, Turn[Any, Any]]) -> None:
        part = max(_LEAST_PART, self._most // _PARTS)
        if self._file is not None and self._file.size >= part:
            self.close()
        if self._file is None:
            self._file = _new(directory, self._most - 2 * part)
        pasts = {name: Past(turn.history, turn.before) for name, turn in turns.items()}
        results = {"memory": tick.memory, "vcpu": tick.vcpu}
        learnt = {name: result.history for name, result in results.items() if result is not None}
        self._file.add(Entry(tick.snapshot, context, pasts, decided(tick), learnt))


def decided(tick: Tick) -> dict[str, Decided]:
    """Return what the passes of a tick came to."""
    found = {name: Decided(failed=trouble.reason, forgot=not trouble.away) for name, trouble in tick.failed.items()}
    for name, result in (("memory", tick.memory), ("vcpu", tick.vcpu)):
        if result is not None:
            outcome = result.outcome
            found[name] = Decided(result.plan.moves, outcome.moves, outcome.failures, result.failed or "")
    return found


def _new(directory: str, most_beside: int) -> File:
    """Return a new file in *directory*, where the oldest give way until all others have *most_beside* bytes at most."""
    os.makedirs(directory, mode=0o700, exist_ok=True)
    kept = sorted(name for name in os.listdir(directory) if _NAME.fullmatch(name))
    sizes = {name: os.lstat(os.path.join(directory, name)).st_size for name in kept}
    for name in kept:
        if sum(sizes.values()) <= most_beside:
            break
        os.unlink(os.path.join(directory, name))
        del sizes[name]
    now_s = time.time()
    stamp = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(now_s))}{1000 * (now_s % 1):03.0f}"[:18]
    name = f"{stamp}-{os.getpid()}{SUFFIX}"
    return File(os.path.join(directory, name))
