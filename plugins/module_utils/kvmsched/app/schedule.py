# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When the daemon looks at its host: by the clock, and sooner when something happens there."""

from __future__ import annotations

import time
from typing import Iterable

from ..config import Policy

RESOURCES = ("memory", "vcpu")
# Where one domain starts, others often do: wait so long for more before a pass that an event asks for.
_SETTLE_S = 0.5
# Passes over memory that events ask for keep this distance; those over vCPUs keep `interval`, for load is a rate.
_APART_S = 1.0
# Whoever brings passes forward all the time does so this often, and then once in so many seconds: an event costs
# its guest nothing, and a pass costs the host some milliseconds.
_BURST, _REFILL_S = 6, 20.0
# Two passes that are due within this time share one look at the host.
_TOGETHER_S = 1.0


class Schedule:
    """When each resource's next pass is due, in monotonic seconds."""

    def __init__(self, policy: Policy) -> None:
        now_s = time.monotonic()
        self._due_s = dict.fromkeys(RESOURCES, now_s)
        self._last_s = dict.fromkeys(RESOURCES, now_s - 3600)
        # By UUID: how many passes a domain may bring forward, and as of when.
        self._left: dict[str, tuple[float, float]] = {}
        self.adopt(policy)

    def adopt(self, policy: Policy) -> None:
        """Follow *policy* from now on."""
        self._apart_s = {"memory": _APART_S, "vcpu": max(_APART_S, policy.vcpu.interval_s)}
        wanted_s = {"memory": policy.daemon.memory_period_s, "vcpu": policy.daemon.vcpu_period_s}
        self._period_s = {resource: max(wanted_s[resource], self._apart_s[resource]) for resource in RESOURCES}
        for resource in RESOURCES:
            self._due_s[resource] = min(self._due_s[resource], self._last_s[resource] + self._period_s[resource])

    def wait_s(self) -> float:
        return min(self._due_s.values()) - time.monotonic()

    def turns(self) -> tuple[str, ...]:
        """Return whose pass begins now: who is due, and with them who would be soon."""
        now_s = time.monotonic()
        if min(self._due_s.values()) > now_s:
            return ()
        chosen = tuple(resource for resource in RESOURCES if self._joins(resource, now_s))
        for resource in chosen:
            self._last_s[resource] = now_s
            self._due_s[resource] = now_s + self._period_s[resource]
        return chosen

    def _joins(self, resource: str, now_s: float) -> bool:
        due_s = self._due_s[resource]
        return due_s <= now_s or (due_s <= now_s + _TOGETHER_S and self._soonest_s(resource) <= now_s)

    def hurry(self, resources: Iterable[str], uuid: str) -> None:
        """Look soon, for something happened to the domain *uuid*; not if it asks for that all the time."""
        now_s = time.monotonic()
        soon_s = {resource: max(now_s + _SETTLE_S, self._soonest_s(resource)) for resource in resources}
        sooner_s = {resource: due_s for resource, due_s in soon_s.items() if due_s < self._due_s[resource]}
        if sooner_s and self._may_hurry(uuid, now_s):
            self._due_s.update(sooner_s)

    def _may_hurry(self, uuid: str, now_s: float) -> bool:
        left, as_of_s = self._left.pop(uuid, (float(_BURST), now_s))
        left = min(_BURST, left + (now_s - as_of_s) / _REFILL_S)
        allowed = left >= 1
        self._left[uuid] = (left - 1 if allowed else left, now_s)
        # Those that were silent for long come first.
        while self._left and now_s - next(iter(self._left.values()))[1] > _BURST * _REFILL_S:
            del self._left[next(iter(self._left))]
        return allowed

    def put_off(self, pause_s: float) -> None:
        """Let no pass begin before this time is over."""
        self._due_s = dict.fromkeys(RESOURCES, time.monotonic() + pause_s)

    def _soonest_s(self, resource: str) -> float:
        return self._last_s[resource] + self._apart_s[resource]


class Pause:
    """A time that doubles with each failure in a row."""

    def __init__(self, least_s: float, most_s: float) -> None:
        self._least_s, self._most_s = least_s, most_s
        self.reset()

    def reset(self) -> None:
        self._next_s = self._least_s

    def next_s(self) -> float:
        pause_s, self._next_s = self._next_s, min(self._most_s, 2 * self._next_s)
        return pause_s
