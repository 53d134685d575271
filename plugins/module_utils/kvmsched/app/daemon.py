# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``kvmsched run``: a pass of memory and one of the vCPUs, again and again, under systemd or by hand.

One thread does all of it. What happens outside (signals, libvirt's events) reaches it as words in
its inbox, so nothing happens in the middle of a pass but its end: see _Stop.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import queue
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Optional, TextIO, Union

from .. import __version__, config, leases, lock, passes
from ..config import ConfigError, Policy
from ..hypervisor import Unavailable, watch_events
from ..passes import MemoryResult, PassError, Tick, Turn, VcpuResult, told, trace
from ..policy.memory import MemoryHistory
from ..policy.vcpu import VcpuHistory
from ..policy.vcpu.demand import measure
from . import journal, record, recorder, saved_state
from .daemon_connection import DaemonConnection
from .journal import ERROR, INFO, NOTICE, WARNING, Journal
from .publish import Publisher, tell_systemd
from .schedule import RESOURCES, Pause, Schedule

DONE, FAILED, REFUSED = 0, 1, 2

# libvirt's events, and whose next pass each brings forward.
_CONCERNS = {"balloon": ("memory",), "pin": ("vcpu",)}
# How long the loop may sleep without a sign of life to systemd's watchdog.
_BEAT_S = 10.0
# libvirt is looked for again after 1, 2, 4 ... s.
_RECONNECT_S, _RECONNECT_MOST_S = 1.0, 30.0
# A pass that runs when the daemon has to end has this long to end by itself (2 s is what was promised) ...
_GRACE_S = 1.0
# ... and releasing all domains has this long: less than the unit's TimeoutStopSec=.
_RELEASE_S = 75.0
# Histories change a little in each pass; after a move, or this time, they are kept.
_SAVE_S = 60.0


def run(policy_path: Optional[str] = None, uri: str = "qemu:///system", out: Optional[TextIO] = None) -> int:
    """Run until SIGTERM or SIGINT; return the exit status: 0 ended as told, 1 can't run here, 2 the policy is refused.

    *policy_path* None: the host's installed policy, or the built-in defaults. Lines go to *out*, or stderr.
    """
    log = Journal(out or sys.stderr)
    signals = _Signals()
    with contextlib.ExitStack() as stack:
        try:
            policy = _Source(policy_path).read()
            _check_packages(log)
            # Before the first pass: modules must know that they are not alone.
            set_mode = stack.enter_context(lock.announce(uri, policy.values.daemon.mode))
        except ConfigError as error:
            for line in error.mistakes:
                log.say(f"policy refused: {line}", ERROR, event="policy")
            return REFUSED
        except (lock.LockError, _Missing) as error:
            log.say(str(error), ERROR)
            return FAILED
        _Daemon(uri, policy, log, signals, set_mode).run()
    return DONE


class _Missing(Exception):
    """A package that the daemon can't do without."""


def _check_packages(log: Journal) -> None:
    if importlib.util.find_spec("libvirt") is None:
        raise _Missing("libvirt's Python binding is missing: install python3-libvirt")
    if importlib.util.find_spec("systemd") is None:
        text = "systemd's Python binding is missing (python3-systemd)"
        if "NOTIFY_SOCKET" in os.environ:
            raise _Missing(f"{text}: systemd waits to be told that the daemon is ready")
        log.say(f"{text}: systemd is not notified, and log lines have no fields", NOTICE)


# ---------------------------------------------------------------- what comes from outside


class _Stop(BaseException):
    """Ends a pass that would hold up the daemon's end. Any instant will do: a change's record is written before it."""


class _Signals:
    """Signals and libvirt's events as words in one inbox. ``stopping`` is set as soon as the daemon has to end."""

    def __init__(self) -> None:
        self.inbox: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self.stopping = False
        self._cuttable = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGHUP, lambda _number, _frame: self.inbox.put(("reload", "")))
        signal.signal(signal.SIGALRM, self._on_alarm)

    def wait(self, timeout_s: float) -> Optional[tuple[str, str]]:
        """Return the next word and whom it is about; None if there is none in time."""
        try:
            return self.inbox.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            return None

    @contextlib.contextmanager
    def bounded(self, most_s: Optional[float] = None) -> Any:
        """End what is done within by _Stop soon after the daemon has to end, or after *most_s*."""
        self._cuttable = True
        if most_s is not None or self.stopping:
            signal.setitimer(signal.ITIMER_REAL, _GRACE_S if most_s is None else most_s)
        try:
            yield
        finally:
            self._cuttable = False
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _on_stop(self, _number: int, _frame: Any) -> None:
        if not self.stopping and self._cuttable:
            signal.setitimer(signal.ITIMER_REAL, _GRACE_S)
        self.stopping = True
        self.inbox.put(("stop", ""))

    def _on_alarm(self, _number: int, _frame: Any) -> None:
        if self._cuttable:
            self._cuttable = False
            raise _Stop


@dataclass(frozen=True)
class _Loaded:
    """A policy, and the document and the file that it came from."""

    values: Policy
    path: str
    digest: str
    document: dict[str, Any] = field(default_factory=dict)


class _Source:
    """Where the policy comes from, each time that it is read."""

    def __init__(self, path: Optional[str]) -> None:
        self._path = path

    def read(self) -> _Loaded:
        """Return the policy as it is now. ConfigError, with every mistake, if it can't be used."""
        path = config.installed() if self._path is None else self._path
        if path is None:
            return _Loaded(config.load_daemon({}), "", "")
        document, digest = config.read(path)
        return _Loaded(config.load_daemon(document), path, digest, document)


# ---------------------------------------------------------------- the daemon


class _Daemon:
    def __init__(
        self, uri: str, loaded: _Loaded, log: Journal, signals: _Signals, set_mode: Callable[[str], None]
    ) -> None:
        self.uri, self.log, self.signals = uri, log, signals
        self.loaded = loaded
        self.host = DaemonConnection(uri, log, set_mode)
        self.schedule = Schedule(loaded.values)
        self.reconnect = Pause(_RECONNECT_S, _RECONNECT_MOST_S)
        self.memory: Turn[config.MemoryPolicy, MemoryHistory] = Turn(loaded.values.memory, MemoryHistory())
        self.vcpu: Turn[config.VcpuPolicy, VcpuHistory] = Turn(loaded.values.vcpu, VcpuHistory())
        self.saved_s = time.monotonic()
        self.publisher = Publisher(uri, log)
        self.recorder = recorder.Recorder()
        self.policy_error = ""
        self.leases = leases.stamp(uri)
        self.pinned: set[str] = set()
        # Which domains something happened to since the last pass; None: not known.
        self.changed: Optional[set[str]] = None

    def run(self) -> None:
        """Make passes until told to end."""
        daemon = self.loaded.values.daemon
        source = self.loaded.path or "built-in defaults"
        text = f"kvmsched {__version__} begins, mode {daemon.mode}, policy {source}, {self.uri}"
        self.log.say(text, NOTICE, event="start", mode=daemon.mode, policy_hash=self.loaded.digest)
        self._recall()
        self.publisher.open(daemon)
        self.recorder.open(daemon)
        watch_events(self.uri, lambda word, uuid: self.signals.inbox.put((word, uuid)))
        self._tell_watchdog()
        ready = False
        while not self.signals.stopping:
            tell_systemd("WATCHDOG=1")
            word = self.signals.wait(min(self.schedule.wait_s(), _BEAT_S))
            while word is not None and not self.signals.stopping:
                self._heed(*word)
                word = self.signals.wait(0)
            self._look_for_leases()
            turns = self.schedule.turns()
            if not turns or self.signals.stopping:
                continue
            with contextlib.suppress(_Stop), self.signals.bounded():
                self._turn(turns)
            if not ready:
                tell_systemd("READY=1")
                ready = True
        self._end()

    def _look_for_leases(self) -> None:
        """Begin at once with what somebody asks of this host: it does not wait for the period."""
        before, self.leases = self.leases, leases.stamp(self.uri)
        if before != self.leases:
            self.schedule.hurry(RESOURCES, "")

    def _heed(self, word: str, uuid: str) -> None:
        """Do what one word from outside asks for."""
        if word == "reload":
            self._reload()
            return
        # What happened before we listened was not told.
        if word == "connected":
            self.changed = None
        elif self.changed is not None:
            self.changed.add(uuid)
        if word == "reboot":
            self.memory = replace(self.memory, history=self.memory.history.rebooted(uuid, time.time()))
        # Neither our own pins are news, nor that we listen.
        if not (word == "pin" and uuid in self.pinned) and word != "connected":
            self.schedule.hurry(_CONCERNS.get(word, RESOURCES), uuid)

    # ------------------------------------------------------------ passes

    def _turn(self, turns: tuple[str, ...]) -> None:
        """Make a pass and publish it. Whatever goes wrong, this pass fails, and not the daemon."""
        try:
            self._pass(turns)
        except Exception as error:
            self._fail(turns, error)
        try:
            self._tell()
            self.log.over("telling")
        except Exception as error:
            self.log.once("telling", f"status and metrics are not written: {told(error)}", ERROR, event="trouble")
            self._debug(trace(error))

    def _pass(self, turns: tuple[str, ...]) -> None:
        memory = self.memory if "memory" in turns else None
        vcpu = self.vcpu if "vcpu" in turns else None
        tick = self.host.tick(self.loaded.values, memory, vcpu, self.changed)
        self.reconnect.reset()
        self._learn(tick)
        if self.log.over("host"):
            self.log.say("passes go on", NOTICE, event="trouble_over")
        self.changed = set()

    def _fail(self, turns: tuple[str, ...], error: Exception) -> None:
        reason = told(error)
        self.changed = None
        self.log.once("host", f"no pass: {reason}", event="trouble")
        self.publisher.fail(turns, reason)
        if isinstance(error.__cause__, Unavailable):
            self.schedule.put_off(self.reconnect.next_s())
        self._debug(trace(error))

    def _debug(self, trace: str) -> None:
        """Say where a mistake of kvmsched is, if somebody wants to know."""
        if os.environ.get("KVMSCHED_DEBUG"):
            for line in trace.splitlines():
                self.log.say(line, ERROR, event="debug")

    def _forget(self, resource: str) -> None:
        """Begin anew after a pass that failed: what is remembered may be what it failed for."""
        if resource == "memory":
            self.memory = Turn(self.memory.policy, MemoryHistory())
        else:
            self.vcpu = Turn(self.vcpu.policy, VcpuHistory())

    def _record(self, tick: Tick) -> None:
        """Keep what was seen and decided, where the policy asks for that. It costs no pass."""
        path = self.loaded.values.daemon.record
        try:
            if path is not None:
                self.recorder.take(tick, self._context(), {"memory": self.memory, "vcpu": self.vcpu})
            self.log.over("record")
        except Exception as error:
            reason = getattr(error, "strerror", None) or told(error)
            self.log.once("record", f"no record in {path}: {reason}", event="record")
            self._debug(trace(error))

    def _context(self) -> record.Context:
        return record.Context(
            policy=self.loaded.document,
            policy_hash=self.loaded.digest,
            mode=self.host.mode,
            room=recorder.room_of(self.uri),
            acted=self.host.mode != "observe",
        )

    def _learn(self, tick: Tick) -> None:
        self._record(tick)
        loads = None
        for resource, trouble in tick.failed.items():
            if not trouble.away:
                self._forget(resource)
            self._debug(trouble.trace)
        if tick.memory is not None:
            self.memory = replace(self.memory, history=tick.memory.history, before=tick.snapshot)
        if tick.vcpu is not None:
            loads = measure(self.vcpu.samples(tick.snapshot))
            self.vcpu = replace(self.vcpu, history=tick.vcpu.history, before=tick.snapshot)
        made = [move for result in (tick.memory, tick.vcpu) if result for move in result.outcome.moves]
        self.pinned = {move.uuid for move in made if move.kind == "pin"}
        self.publisher.take(tick, loads, mode=self.host.mode)
        if made or time.monotonic() - self.saved_s > _SAVE_S:
            self._save()

    def _tell(self) -> None:
        daemon = self.loaded.values.daemon
        self.publisher.tell(
            self.loaded.values,
            mode=daemon.mode,
            effective_mode=self.host.mode,
            mode_reason=self.host.reason,
            paused_until_s=self.host.paused_until_s,
            policy_path=self.loaded.path,
            policy_hash=self.loaded.digest,
            policy_error=self.policy_error,
            memory_period_s=daemon.memory_period_s,
            vcpu_period_s=daemon.vcpu_period_s,
        )

    # ------------------------------------------------------------ policy

    def _reload(self) -> None:
        """Read the policy again; one with a mistake is refused as a whole, and the old one stays."""
        tell_systemd("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            loaded = _Source(self.loaded.path or None).read()
        except Exception as error:
            mistakes = error.mistakes if isinstance(error, ConfigError) else (told(error),)
            self.policy_error = "; ".join(mistakes)
            for line in mistakes:
                self.log.say(f"policy refused, the old one stays: {line}", ERROR, event="policy")
        else:
            self.policy_error = ""
            self._adopt(loaded)
        self._tell()
        tell_systemd("READY=1")

    def _adopt(self, loaded: _Loaded) -> None:
        self.loaded = loaded
        policy = loaded.values
        self.memory = replace(self.memory, policy=policy.memory)
        self.vcpu = replace(self.vcpu, policy=policy.vcpu)
        self.schedule.adopt(policy)
        self.host.forgive()
        self.publisher.open(policy.daemon)
        self.recorder.open(policy.daemon)
        self._tell_watchdog()
        text = f"policy {loaded.path or 'built-in defaults'} read again, mode {policy.daemon.mode}"
        self.log.say(text, NOTICE, event="policy", policy_hash=loaded.digest, mode=policy.daemon.mode)

    def _tell_watchdog(self) -> None:
        """Tell systemd how long a pass may last where much hangs at once: beyond that, this process hangs."""
        if "WATCHDOG_USEC" in os.environ:
            longest_s = 30 + 6 * self.loaded.values.deadline_s
            tell_systemd(f"WATCHDOG_USEC={longest_s * 1e6:.0f}")

    # ------------------------------------------------------------ memory of earlier passes

    def _recall(self) -> None:
        try:
            kept = saved_state.load()
        except ValueError as error:
            text = f"what an earlier daemon remembered is not used: {error}; it begins anew"
            self.log.say(text, WARNING, event="state")
            return
        if kept is not None:
            self.memory = replace(self.memory, history=kept.memory)
            self.vcpu = replace(self.vcpu, history=kept.vcpu)
            domains = len(kept.memory.domains)
            self.log.say(f"goes on with what an earlier daemon remembered of {domains} domains", INFO, event="state")

    def _save(self) -> None:
        self.saved_s = time.monotonic()
        try:
            saved_state.save(self.memory.history, self.vcpu.history)
        except OSError as error:
            where = saved_state.directory()
            self.log.once("state", f"what was learnt can't be kept in {where}, a restart forgets it: {error.strerror}")

    # ------------------------------------------------------------ the end

    def _end(self) -> None:
        tell_systemd("STOPPING=1", "STATUS=ending")
        self.host.close()
        self.recorder.close()
        if self.memory.before is not None:
            self._save()
        if self.loaded.values.daemon.on_stop == "release":
            self._release()
        self.publisher.close()
        self.log.say("ended", NOTICE, event="stop")

    def _release(self) -> None:
        """Give every domain back what it had, in the time that there is; what is left keeps its record."""
        if _host_goes_down():
            self.log.say("the host goes down: its domains are not released", NOTICE, event="release")
            return
        if self.host.mode == "observe":
            why = self.host.reason or "mode observe"
            text = f"not released, as it only observes ({why}): kvmsched release gives guests back what they had"
            self.log.say(text, WARNING, event="release")
            return
        policy = self.loaded.values
        how = replace(self.host.conduct(policy), lock_timeout_s=policy.lock_timeout_s)
        try:
            with self.signals.bounded(_RELEASE_S):
                for resource, run in passes.releases(how, policy, config.Selection()):
                    self._report_release(resource, run())
        except _Stop:
            text = f"not all was released within {_RELEASE_S:.0f} s: kvmsched release goes on"
            self.log.say(text, WARNING, event="release")
        except PassError as error:
            self.log.say(f"not released, kvmsched release does it: {error}", WARNING, event="release")

    def _report_release(self, resource: str, result: Union[MemoryResult, VcpuResult]) -> None:
        for move in result.outcome.moves:
            fact = journal.of_move(resource, move, made=True)
            self.log.say(fact.message, fact.priority, **fact.fields)
        for line in result.not_restored:
            self.log.say(f"not released, its record stays: {line}", WARNING, event="release", resource=resource)


def _host_goes_down() -> bool:
    """Return whether systemd is shutting the host down: its domains end anyhow, and libvirt may be gone.

    A systemd that does not answer is taken for that: the bus ends before some services do, and without it systemctl
    says nothing at all. Where no systemd is, it says offline.
    """
    told = ""
    for _turn in range(3):
        try:
            done = subprocess.run(  # pylint: disable=ansible-bad-function
                ["systemctl", "is-system-running"], capture_output=True, text=True, timeout=5, check=False
            )
        except OSError:
            return False
        except subprocess.TimeoutExpired:
            return True
        told = done.stdout.strip()
        # systemd ends all that runs in a unit that it stops. What was begun in that instant says nothing either.
        if done.returncode >= 0:
            break
    return told in ("stopping", "unknown", "")
