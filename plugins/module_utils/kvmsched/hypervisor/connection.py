# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Call libvirt so that a call which never returns costs a bounded time.

libvirt bounds hardly any call: a QEMU that does not answer its monitor blocks a bulk statistics
call for ever. So calls run in a daemon thread with a connection of its own. One that stalls is
abandoned with its connection, and the pass goes on with the other domains on a new one.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from dataclasses import dataclass
from typing import Any, Callable, Generic, Optional, TypeVar
from urllib.parse import SplitResult, urlsplit

from ..units import one_line
from .binding import libvirt
from .errors import Hung, Unavailable, connection_lost

# A healthy domain on a host at 99 % load answered within 62 ms, and many of them within 17 ms each.
_STALL_S = 1.0
_STALL_PER_DOMAIN_S = 0.03
# An abandoned call keeps one of libvirtd's 20 workers (max_workers): take few of them at a time.
_MOST_ABANDONED = 6
# So many calls of this process may hang at once, each with a thread, a connection and a worker of libvirtd.
_MOST_HANGING = 12
# A restart of libvirtd was measured to take 0.2 to 0.6 s.
_RESTART_S = 5.0
THREAD = "libvirt connection"

T = TypeVar("T")

# Threads whose call was abandoned. They end by themselves once it returns.
_abandoned: set[threading.Thread] = set()


def hanging() -> int:
    """Return how many calls to libvirt were abandoned and have not returned yet."""
    _abandoned.intersection_update([thread for thread in list(_abandoned) if thread.is_alive()])
    return len(_abandoned)


class _Job(Generic[T]):
    def __init__(self, work: Callable[[Any], T]) -> None:
        self.work = work
        self.done = threading.Event()
        self.result: Optional[T] = None
        self.error: Optional[BaseException] = None

    def run(self, connection: Any) -> None:
        try:
            self.result = self.work(connection)
        except BaseException as error:
            self.error = error
        self.done.set()


class Line:
    """A connection to libvirt whose calls can be abandoned; it opens itself again after one was."""

    def __init__(self, uri: str, read_only: bool) -> None:
        self._uri, self._read_only = uri, read_only
        self._jobs: Optional[queue.SimpleQueue[Optional[_Job[Any]]]] = None
        self._thread: Optional[threading.Thread] = None

    def run(self, work: Callable[[Any], T], timeout_s: float) -> T:
        """Return work(connection); Hung if it takes longer, Unavailable if there is no connection.

        Where the connection is lost, *work* is done again over a new one: it must bear that.
        """
        try:
            return self._run_once(work, timeout_s)
        except libvirt.libvirtError as error:
            if not connection_lost(error):
                raise
        self.close()
        self._wait_for_libvirt(timeout_s)
        try:
            return self._run_once(work, timeout_s)
        except libvirt.libvirtError as error:
            if not connection_lost(error):
                raise
            self.close()
            raise Unavailable(f"uri: libvirt at {self._uri} went away: {one_line(error)}") from None

    def _wait_for_libvirt(self, timeout_s: float) -> None:
        end_s = time.monotonic() + _RESTART_S
        while True:
            try:
                return self._run_once(lambda _connection: None, timeout_s)
            except Unavailable:
                if time.monotonic() >= end_s:
                    raise
            time.sleep(_RESTART_S / 50)

    def _run_once(self, work: Callable[[Any], T], timeout_s: float) -> T:
        jobs = self._jobs or self._begin()
        job = _Job(work)
        jobs.put(job)
        if not job.done.wait(timeout_s):
            hung = Hung()
            hung.thread = self._thread
            if self._thread is not None:
                _abandoned.add(self._thread)
            self.close()
            raise hung
        if job.error is not None:
            if isinstance(job.error, Unavailable):
                self._jobs = None
            raise job.error
        return job.result  # type: ignore[return-value]

    def _begin(self) -> queue.SimpleQueue[Optional[_Job[Any]]]:
        """Start a thread with a connection of its own; Unavailable where too many hang already."""
        stuck = hanging()
        if stuck > _MOST_HANGING:
            more = "no more before one of them returns; does virsh list answer?"
            raise Unavailable(f"uri: {stuck} calls to libvirt at {self._uri} hang: {more}")
        jobs: queue.SimpleQueue[Optional[_Job[Any]]] = queue.SimpleQueue()
        thread = threading.Thread(target=self._serve, args=(jobs,), name=THREAD, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the unit's TasksMax=, or the host's own limit
            raise Unavailable(f"uri: no thread to ask libvirt at {self._uri}: {error}") from None
        self._jobs, self._thread = jobs, thread
        return jobs

    def close(self) -> None:
        """Let the connection go as soon as its last call returns, without waiting for that."""
        if self._jobs is not None:
            self._jobs.put(None)
            self._jobs = None

    def _serve(self, jobs: queue.SimpleQueue[Optional[_Job[Any]]]) -> None:
        connection = None
        while (job := jobs.get()) is not None:
            if connection is None:
                try:
                    connection = _open(self._uri, self._read_only)
                except Unavailable as error:
                    job.error = error
                    job.done.set()
                    return
            job.run(connection)
        if connection is not None:
            with contextlib.suppress(libvirt.libvirtError):
                connection.close()


def _open(uri: str, read_only: bool) -> Any:
    # Without a handler of its own, the binding prints every error to stderr.
    libvirt.registerErrorHandler(lambda *_ignored: None, None)
    try:
        return libvirt.openReadOnly(uri) if read_only else libvirt.open(uri)
    except libvirt.libvirtError as error:
        raise Unavailable(f"uri: libvirt at {uri} can't be reached: {one_line(error)}") from None


def _stall_s(domains: int) -> float:
    """Return how long a call that concerns so many domains may take."""
    return _STALL_S + domains * _STALL_PER_DOMAIN_S


@dataclass
class Patience:
    """How long calls that hang may still delay this pass, and how many more of them may be left hanging."""

    left_s: float
    left_calls: int = _MOST_ABANDONED

    def for_call(self, wanted_s: float) -> float:
        # Most healthy domains answer within this: they are asked even if the sick ones used up all the time.
        return max(0.05, min(wanted_s, self.left_s))

    def short_of(self, domains: int) -> bool:
        """Return whether what hung left too little time to ask so many at once: healthy ones need some, too."""
        return self.left_calls < _MOST_ABANDONED and self.left_s < _stall_s(domains)


class Calls:
    """The calls of one pass to the libvirt at *uri*: each has a time of its own, and all share one patience.

    *deadline_s* is how long libvirt itself may take, and half of it what all that hang may take together.
    """

    def __init__(self, uri: str, read_only: bool, deadline_s: float) -> None:
        self.uri, self.deadline_s = uri, deadline_s
        self._line = Line(uri, read_only)
        self.patience = Patience(deadline_s / 2)

    def begin(self) -> None:
        """Begin observing or applying, with patience anew.

        One call more may hang each time: else nobody would be asked again.
        """
        self.patience = Patience(self.deadline_s / 2, max(1, min(_MOST_ABANDONED, _MOST_HANGING - hanging())))

    def ask(self, work: Callable[[Any], T]) -> T:
        """Run what concerns libvirt as a whole: without an answer there is nothing to go on with."""
        try:
            return self._line.run(work, self.deadline_s)
        except Hung:
            text = f"uri: libvirt at {self.uri} did not answer within {self.deadline_s:g} s (deadline)"
            raise Unavailable(f"{text}; does virsh list answer?") from None
        except libvirt.libvirtError as error:
            raise Unavailable(f"uri: libvirt at {self.uri}: {one_line(error)}") from None

    def about(self, domains: int, work: Callable[[Any], T]) -> T:
        """Run what concerns so many domains; Hung if they take longer than those may, or if too many hang already."""
        if self.patience.left_calls <= 0:
            raise Hung("not asked: too many others hang, and libvirt must stay able to serve; see to those first")
        began_s = time.monotonic()
        try:
            return self._line.run(work, self.patience.for_call(_stall_s(domains)))
        except Hung:
            self.patience.left_s -= time.monotonic() - began_s
            self.patience.left_calls -= 1
            raise

    def close(self) -> None:
        self._line.close()


def uri_parts(uri: str) -> SplitResult:
    """Return the parts of a connection URI; ValueError in one line where it is none."""
    try:
        parts = urlsplit(uri)
        if parts.scheme and uri.isprintable() and " " not in uri:
            return parts
    except ValueError:
        pass
    raise ValueError(f"uri: got {uri!r}, allowed: qemu:///system or another URI that libvirt connects to")


def acting_refusal(uri: str) -> Optional[str]:
    """Return why *uri* allows no change, or None: lock, /proc and host memory are truths of this host alone."""
    try:
        parts = uri_parts(uri)
    except ValueError as error:
        return str(error)
    if parts.scheme == "test":
        return None
    if uri in ("qemu:///system", "qemu:///session"):
        return None
    return (
        f"uri: got {uri}, allowed: qemu:///system or qemu:///session of the host itself;"
        " other URIs work for kvm_sched_info and in check mode only"
    )
