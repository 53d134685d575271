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
# Two passes that are due within this time share one look at the host.
_TOGETHER_S = 1.0


class Schedule:
    """When each resource's next pass is due, in monotonic seconds."""

    def __init__(self, policy: Policy) -> None:
        now_s = time.monotonic()
        self._due_s = dict.fromkeys(RESOURCES, now_s)
        self._last_s = dict.fromkeys(RESOURCES, now_s - 3600)
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
        """Whose pass begins now: who is due, and with them who would be soon."""
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

    def hurry(self, resources: Iterable[str]) -> None:
        """Something happened: look soon."""
        for resource in resources:
            soon_s = max(time.monotonic() + _SETTLE_S, self._soonest_s(resource))
            self._due_s[resource] = min(self._due_s[resource], soon_s)

    def put_off(self, pause_s: float) -> None:
        """Nobody's turn comes before this time is over."""
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
