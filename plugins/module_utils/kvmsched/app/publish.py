# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the daemon tells of a pass, and whom: the journal, the status file, Prometheus, systemd."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import deque
from dataclasses import replace
from typing import Any, Iterable, Optional, Union

from .. import __version__, lock
from ..config import DaemonPolicy, Policy, idle_rules
from ..model import Snapshot, to_json
from ..passes import MemoryResult, Tick, VcpuResult
from ..policy.vcpu.demand import Loads
from ..units import counted
from . import journal, status
from .journal import NOTICE, Journal
from .metrics import Metrics, Port, Totals
from .status import DomainMove, PassStatus, Status

try:
    from systemd import daemon as systemd
except ImportError:  # the daemon says so
    systemd = None

_PACKAGE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def tell_systemd(*lines: str) -> None:
    """Tell the service manager, if one listens: see sd_notify(3)."""
    if systemd is not None:
        systemd.notify("\n".join(lines))


class Publisher:
    """Tells journal, status file, metrics and systemd what a tick brought."""

    def __init__(self, uri: str, log: Journal) -> None:
        self._uri, self._log = uri, log
        self._began_s = time.time()
        self._totals = Totals()
        self.metrics = Metrics(self._totals)
        self._port: Optional[Port] = None
        self._listen = "none"
        self._textfile: Optional[str] = None
        self._now: Optional[Snapshot] = None
        self._memory: Optional[MemoryResult] = None
        self._vcpu: Optional[VcpuResult] = None
        self._loads = Loads()
        self._passes = {"memory": PassStatus(), "vcpu": PassStatus()}
        self._moves: dict[str, deque[DomainMove]] = {}
        self._trouble = ""
        self._line = ""

    def open(self, policy: DaemonPolicy) -> None:
        """Have metrics where *policy* wants them."""
        if self._textfile != policy.metrics_textfile:
            self._remove(self._textfile)
        self._textfile, self._listen = policy.metrics_textfile, policy.metrics_listen
        if self._port is not None and self._port.listen != self._listen:
            self._port.close()
            self._port = None
        self._bind()

    def _bind(self) -> None:
        """Have the port: at boot its address may not be there yet, or another process may have it."""
        if self._port is not None or self._listen == "none":
            return
        try:
            self._port = Port(self._listen, self.metrics)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            self._log.once("metrics", f"no metrics at {self._listen}: {reason}", event="metrics")
        else:
            if self._log.over("metrics"):
                self._log.say(f"metrics at {self._listen}", NOTICE, event="metrics_over")

    def close(self) -> None:
        """End the metrics: what stands there now would stand there for ever."""
        if self._port is not None:
            self._port.close()
        self._remove(status.path_for(self._uri))
        self._remove(self._textfile)

    @staticmethod
    def _remove(path: Optional[str]) -> None:
        if path:
            with contextlib.suppress(OSError):
                os.unlink(path)

    def fail(self, turns: Iterable[str], reason: str) -> None:
        """Count a pass that could not be, with its reason."""
        self._trouble = reason
        for resource in turns:
            self._totals.count_failed(resource)
            self._passes[resource] = replace(self._passes[resource], failed=reason)

    def take(self, tick: Tick, loads: Optional[Loads], mode: str) -> None:
        """Log what a tick brought where it is news, and keep it for tell()."""
        self._trouble = ""
        self._now = tick.snapshot
        self._loads = loads or self._loads
        self._totals.count_tick(tick)
        if tick.memory is not None:
            self._memory = tick.memory
            self._take("memory", tick.memory, acting=mode != "observe")
        if tick.vcpu is not None:
            self._vcpu = tick.vcpu
            self._take("vcpu", tick.vcpu, acting=mode == "act")
        for resource, trouble in tick.failed.items():
            reason = trouble.reason
            self._passes[resource] = replace(self._passes[resource], failed=reason)
            self._log.once(f"failed {resource}", f"pass of {resource} failed: {reason}", event="failed")
        here = {domain.uuid for domain in tick.snapshot.domains}
        self._moves = {uuid: moves for uuid, moves in self._moves.items() if uuid in here}

    def _take(self, resource: str, result: Union[MemoryResult, VcpuResult], acting: bool) -> None:
        described = status.describe_pass(result)
        if result.failed:
            described = replace(described, when_s=self._passes[resource].when_s)
        self._passes[resource] = described
        for move in result.outcome.moves:
            fact = journal.of_move(resource, move, made=True)
            self._log.say(fact.message, fact.priority, **fact.fields)
            self._remember(resource, move, made=True)
        if not acting:
            planned = {f"would {resource} {i}": move for i, move in self._by_what(result)}
            said = self._log.facts(
                {key: journal.of_move(resource, move, False) for key, move in planned.items()}, journal.PAUSE_S
            )
            for key in said:
                self._remember(resource, planned[key], made=False)
        self._log.facts(journal.of_result(resource, result), journal.PAUSE_S)
        self._log.facts(journal.of_warnings(resource, result.plan.warnings), journal.PAUSE_S)
        self._say_failure(resource, result.failed)

    @staticmethod
    def _by_what(result: Union[MemoryResult, VcpuResult]) -> Iterable[tuple[str, Any]]:
        made = set(result.outcome.moves)
        for move in result.plan.moves:
            if move not in made:
                yield f"{move.uuid} {move.kind} {getattr(move, 'thread', '')} {getattr(move, 'id', '')}", move

    def _say_failure(self, resource: str, failed: Optional[str]) -> None:
        key = f"failed {resource}"
        if failed:
            self._log.once(key, f"pass of {resource} failed: {failed}", event="failed", resource=resource)
        elif self._log.over(key):
            self._log.say(f"passes of {resource} succeed again", NOTICE, event="failed_over", resource=resource)

    def _remember(self, resource: str, move: Any, made: bool) -> None:
        kept = self._moves.setdefault(move.uuid, deque(maxlen=status.KEPT_MOVES))
        kept.append(DomainMove(round(time.time(), 3), resource, str(move), move.reason, made))

    def tell(self, policy: Policy, **about: Any) -> None:
        """Write the status file and the metrics, and systemd's line."""
        current = self._status(policy, about)
        try:
            lock.write_atomically(status.path_for(self._uri), json.dumps(to_json(current)), 0o640)
            self._log.over("status file")
        except OSError as error:
            self._log.once("status file", f"{status.path_for(self._uri)} can't be written: {error.strerror}")
        self.metrics.tell(current)
        self._bind()
        if self._textfile:
            try:
                self.metrics.write(self._textfile)
                self._log.over("textfile")
            except OSError as error:
                self._log.once("textfile", f"{self._textfile} can't be written: {error.strerror}")
        line = _summary(current)
        if line != self._line:
            tell_systemd(f"STATUS={line}")
            self._line = line

    def _status(self, policy: Policy, about: dict[str, Any]) -> Status:
        known: dict[str, Any] = {}
        if self._now is not None:
            memory, vcpu = self._memory, self._vcpu
            host_memory = self._now.host.memory
            known = {
                "host": self._now.host.name,
                "room": memory.plan.room if memory else None,
                "pins_ours": status.count_our_pins(self._now),
                "trials": len(vcpu.history.trials) if vcpu else 0,
                "trials_begun": vcpu.history.trials_begun if vcpu else 0,
                "trials_undone": vcpu.history.trials_undone if vcpu else 0,
                "memory": memory.plan.before if memory else None,
                "memory_total_kib": host_memory.total_kib if host_memory else None,
                "vcpu": vcpu.plan.before if vcpu and vcpu.plan.measured else None,
                "idle_rules": idle_rules(policy.memory.rules, self._now),
                "domains": status.describe_domains(self._now, memory, vcpu, self._loads, policy.memory, self._moves),
                "pcpus": status.describe_pcpus(self._loads),
            }
        return Status(
            version=__version__,
            pid=os.getpid(),
            started_s=self._began_s,
            written_s=time.time(),
            uri=self._uri,
            package=_PACKAGE,
            trouble=self._trouble,
            memory_pass=self._passes["memory"],
            vcpu_pass=self._passes["vcpu"],
            **about,
            **known,
        )


def _summary(current: Status) -> str:
    """Return what `systemctl status` shows."""
    if current.trouble:
        return f"waits: {current.trouble}"
    mode = current.effective_mode if not current.mode_reason else f"only observes ({current.mode_reason})"
    parts = [f"mode {mode}", counted(len(current.domains), "domain")]
    if current.memory is not None:
        parts.append(f"{current.memory.starved} starved, {current.memory.wasteful} wasteful")
    if current.vcpu is not None:
        parts.append(f"imbalance {current.vcpu.imbalance_pct:.0f} points")
    return ", ".join(parts)
