# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The daemon's connection to its host, and the mode that it allows."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, Callable, Collection, Optional

from .. import leases
from ..config import Policy
from ..hypervisor import Unavailable, acting_refusal
from ..passes import Conduct, PassError, Standing, Tick
from .journal import NOTICE, Journal
from .schedule import Pause

# Acting is tried again after 10 s, 20 s ...
_BARRED_S, _BARRED_MOST_S = 10.0, 300.0
# The daemon's own passes wait for the lock no longer than this: the next one comes soon.
_LOCK_S = 1.0


class DaemonConnection:
    """The standing connection and the mode that it allows.

    ``mode`` is the effective one, ``reason`` why it is less than the policy's. ``paused_until_s`` is when a pause ends
    by the wall clock, 0: none.

    Where a policy says act, and libvirt only lets us read, the daemon observes, and tries again later.
    """

    def __init__(self, uri: str, log: Journal, set_mode: Callable[[str], None]) -> None:
        self._uri, self._log, self._set_mode = uri, log, set_mode
        self._standing: Optional[Standing] = None
        self._barred = Pause(_BARRED_S, _BARRED_MOST_S)
        self._barred_until_s = 0.0
        self._bar = ""
        self._paused = ""
        self._announced = ""
        self.mode, self.reason, self.paused_until_s = "observe", "no pass was made yet", 0

    def close(self) -> None:
        if self._standing is not None:
            self._standing.close()
            self._standing = None

    def forgive(self) -> None:
        """Try at once what was refused: something may have changed."""
        self._barred_until_s = 0.0

    def conduct(self, policy: Policy) -> Conduct:
        """Return how the next pass is to be made."""
        observes = policy.daemon.mode == "observe"
        self._look_for_pause()
        return Conduct(
            uri=self._uri,
            check=observes or bool(self._refusal()),
            pins=policy.daemon.mode == "act",
            standing=True,
            deadline_s=policy.deadline_s,
            lock_timeout_s=_LOCK_S,
            holder="kvmsched",
            sets_periods=observes and policy.daemon.observe_sets_stats_period and not self._refusal(),
        )

    def _refusal(self) -> str:
        """Return why nothing may be written now."""
        if acting_refusal(self._uri) or self._paused:
            return acting_refusal(self._uri) or self._paused
        return self._bar if time.monotonic() < self._barred_until_s else ""

    def _look_for_pause(self) -> None:
        """Note whether somebody asked for a pause: see leases."""
        lease = leases.read(self._uri, "pause")
        self.paused_until_s = round(leases.ends_at(lease)) if lease else 0
        until = time.strftime("%F %H:%M", time.localtime(self.paused_until_s))
        self._paused = f"paused until {until} (kvmsched resume ends it)" if lease else ""

    def tick(self, policy: Policy, memory: Any, vcpu: Any, changed: Optional[Collection[str]] = None) -> Tick:
        """Make one tick in the best mode that is possible; *changed* as in Standing. Raises PassError."""
        how = self.conduct(policy)
        try:
            tick = self._tick(how, memory, vcpu, changed)
        except PassError as error:
            if how.read_only or not isinstance(error.__cause__, Unavailable):
                raise
            # Is libvirt away, or does it let us read only?
            tick = self._read(replace(how, check=True, sets_periods=False), memory, vcpu, error)
            how = replace(how, check=True)
        if how.writes:
            self._judge_denials(tick, policy.daemon.mode)
        else:
            self._enter("observe", "" if policy.daemon.mode == "observe" else self._refusal())
        return tick

    def _tick(self, how: Conduct, memory: Any, vcpu: Any, changed: Optional[Collection[str]]) -> Tick:
        if self._standing is not None and self._standing.how != how:
            self.close()
        if self._standing is None:
            self._standing = Standing(how)
        try:
            return self._standing.tick(memory, vcpu, changed)
        except Exception:
            self.close()
            raise

    def _read(self, how: Conduct, memory: Any, vcpu: Any, error: PassError) -> Tick:
        try:
            tick = self._tick(how, memory, vcpu, None)
        except PassError:
            raise error from error.__cause__
        self._let_be(str(error))
        return tick

    def _judge_denials(self, tick: Tick, mode: str) -> None:
        """Observe if libvirt lets us in and refuses every change (its access control)."""
        outcomes = [result.outcome for result in (tick.memory, tick.vcpu) if result is not None]
        failures = [failure for outcome in outcomes for failure in outcome.failures]
        if failures and all(f.code == "denied" for f in failures) and not any(o.moves for o in outcomes):
            self._let_be(failures[0].reason)
            self._enter("observe", self._bar)
        else:
            if any(outcome.moves for outcome in outcomes):
                self._barred.reset()
            self._enter(mode, "")

    def _let_be(self, reason: str) -> None:
        self._bar = reason
        self._barred_until_s = time.monotonic() + self._barred.next_s()

    def _enter(self, mode: str, reason: str) -> None:
        if mode != self._announced:
            # Whoever else would write here asks only whether this daemon does.
            self._set_mode(mode)
            self._announced = mode
        self.mode, self.reason = mode, reason
        if reason:
            self._log.once("mode", f"may only observe: {reason}", event="mode", mode=mode)
        elif mode != "observe" and self._log.over("mode"):
            self._log.say("may act again", NOTICE, event="mode", mode=mode)
