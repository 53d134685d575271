# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Apply: write a domain's record, then make its changes; live only, one domain after the other."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass, field
from typing import Any, Callable, Iterable, Optional

from .. import baseline
from ..model import BalloonMove, Domain, Failure, FailureCode, Move, Outcome, PeriodMove, PinMove, Record
from ..policy.memory.requests import grown_meanwhile
from ..units import mib, one_line
from .binding import libvirt
from .connection import Calls
from .domain import actual_kib
from .errors import NO_PROCESS, Busy, Gone, Hung, Unavailable, connection_lost, explain, or_gone
from .qemu import Processes, hindrance


@dataclass(frozen=True)
class Change:
    """One domain's part of a plan; *record* is what must stand on it before (None: no record shall be left)."""

    domain: Domain
    record: Optional[Record]
    moves: tuple[Move, ...] = ()


# Told of a domain, with the error and what that means.
HangsNow = Callable[[Domain, Exception, FailureCode, str], None]


@dataclass
class _Attempt:
    """A change that is being made. Once it is ``given_up``, the call under way may still happen, but no further one."""

    change: Change
    done: list[Move] = field(default_factory=list)
    given_up: bool = False


def _larger(handle: Any, change: Change) -> Optional[str]:
    """Return why the plan would shrink a domain too far: it has more than was known then, so it may use more."""
    balloon = change.domain.balloon
    targets_kib = [move.after_kib for move in change.moves if isinstance(move, BalloonMove)]
    if balloon is None or not targets_kib:
        return None
    has_kib = actual_kib(handle) or 0
    if not grown_meanwhile(balloon, targets_kib, has_kib):
        return None
    return (
        f"its QEMU says that it has {mib(has_kib)}, libvirt said {mib(balloon.actual_kib)}: not shrunk until they agree"
    )


def _write_record(handle: Any, record: Optional[Record]) -> None:
    handle.setMetadata(
        libvirt.VIR_DOMAIN_METADATA_ELEMENT,
        baseline.encode(record) if record else None,
        baseline.STATE_PREFIX if record else None,
        baseline.STATE_URI,
        libvirt.VIR_DOMAIN_AFFECT_LIVE,
    )


def _replace_record(handle: Any, before: Optional[Record], after: Optional[Record]) -> None:
    """Have record *after*, or still *before*: what libvirt can't store (its /run is full) it shows all the same."""
    try:
        _write_record(handle, after)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_SYSTEM_ERROR and not connection_lost(error):
            with contextlib.suppress(libvirt.libvirtError):  # that can't be stored either
                _write_record(handle, before)
        raise


def make(handle: Any, move: Move) -> None:
    """Make one live change. These calls mean "live only" on both the QEMU and the test driver, unlike flags of 0."""
    if isinstance(move, BalloonMove):
        handle.setMemory(move.after_kib)
    elif isinstance(move, PeriodMove):
        handle.setMemoryStatsPeriod(move.after_s, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    else:
        _make_pin(handle, move)


def _make_pin(handle: Any, move: PinMove) -> None:
    cpu_map = tuple(cpu in move.after for cpu in range(max(move.after) + 1))
    if move.thread == "vcpu":
        handle.pinVcpu(move.id, cpu_map)
    elif move.thread == "emulator":
        handle.pinEmulator(cpu_map, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    else:
        handle.pinIOThread(move.id, cpu_map, libvirt.VIR_DOMAIN_AFFECT_LIVE)


def _refuses_unplugged(error: Any, move: Move, domain: Domain) -> bool:
    """Return whether a driver pins no vCPU that is unplugged: QEMU's does, the test driver does not."""
    unplugged = isinstance(move, PinMove) and (move.thread, move.id) in domain.unplugged
    return unplugged and bool(error.get_error_code() == libvirt.VIR_ERR_INVALID_ARG)


class Writer:
    """Makes changes over *calls*, and hands a domain whose change hangs to *hung*: it must not be asked again."""

    def __init__(self, calls: Calls, processes: Processes, hung: HangsNow) -> None:
        self._calls, self._processes, self._hung = calls, processes, hung

    def apply(self, changes: Iterable[Change]) -> Outcome:
        """Make *changes*: see Hypervisor.apply()."""
        self._calls.begin()
        moves: list[Move] = []
        failures: list[Failure] = []
        away: Optional[Unavailable] = None
        for change in changes:
            attempt = _Attempt(change)
            try:
                if away or self._calls.patience.left_s <= 0:
                    raise away or Hung(
                        "not tried: what hung used up the time of this pass (deadline), the next one tries"
                    )
                self._calls.about(1 + len(change.moves), functools.partial(self._write, attempt))
            except Exception as error:  # whatever is odd about one domain, the others are changed
                attempt.given_up = True
                away = error if isinstance(error, Unavailable) else None
                code, reason = explain(error)
                failures.append(Failure(change.domain.name, change.domain.uuid, code, reason))
                self._hung(change.domain, error, code, reason)
            moves += attempt.done
        return Outcome(tuple(moves), tuple(failures))

    def _write(self, attempt: _Attempt, connection: Any) -> None:
        """Write one domain's record, then its moves. Done again over a new connection, it does the same."""
        change, attempt.done = attempt.change, []
        handle = connection.lookupByUUIDString(change.domain.uuid)
        # Live state died with any other run than that which was observed.
        if handle.ID() != change.domain.id or self._processes.ended(change.domain):
            raise Gone("it was restarted or stopped meanwhile")
        try:
            busy = hindrance(handle, self._processes.look(change.domain))
            reason = busy.reason if busy else _larger(handle, change)
            if reason:
                raise Busy(reason)
            if change.record != change.domain.record and not attempt.given_up:
                _replace_record(handle, change.domain.record, change.record)
            for move in change.moves:
                if attempt.given_up:
                    return
                try:
                    make(handle, move)
                except libvirt.libvirtError as error:
                    if not _refuses_unplugged(error, move, change.domain):
                        raise
                    raise Gone(f"an unplugged vCPU can't be pinned before it is back: {one_line(error)}") from None
                attempt.done.append(move)
            if change.moves and connection.lookupByUUIDString(change.domain.uuid).ID() != change.domain.id:
                # It was restarted after its record was written: the run that the moves were made on has none.
                _write_record(handle, change.record)
        except libvirt.libvirtError as error:
            ended = error.get_int1() in NO_PROCESS or self._processes.ended(change.domain)
            raise or_gone(error, handle, ended) from None
