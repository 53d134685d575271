# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Status made by looking oneself, read-only: without a daemon, or more often than it tells one."""

from __future__ import annotations

import contextlib
import os
import time
from collections import defaultdict
from dataclasses import replace
from typing import Any, Mapping, Optional, Sequence

from .. import __version__, config, leases, lock, passes
from ..model import Snapshot
from ..policy.vcpu.demand import measure
from . import bundle
from .status import DomainMove, Status, count_our_pins, describe_domains, describe_pass, describe_pcpus


def once(how: passes.Conduct, policy: config.Policy) -> Status:
    """Look as long as a pass does, so that all is known that it would act upon. Raises PassError."""
    return described(how.uri, passes.run_snapshots(how, policy.vcpu.interval_s), policy)


class Looker:
    """Looks again and again over one connection; loads are those since the look before."""

    def __init__(self, how: passes.Conduct, policy: config.Policy) -> None:
        self._how, self._policy = how, policy
        self._standing = passes.Standing(how)
        self._before: Optional[Snapshot] = None

    def __enter__(self) -> Looker:
        return self

    def __exit__(self, *_ignored: Any) -> None:
        self._standing.close()

    def look(self) -> Status:
        """Return the host now. The first time, it takes as long as load is to be measured. Raises PassError."""
        if self._before is None:
            self._before = self._standing.tick(None, None).snapshot
            time.sleep(self._policy.vcpu.interval_s)
        now = self._standing.tick(None, None).snapshot
        samples, self._before = [self._before, now], now
        return described(self._how.uri, samples, self._policy)


def _mode(uri: str) -> str:
    """Return the mode of the daemon, where one can be seen."""
    with contextlib.suppress(OSError):
        return (lock.daemon(uri) or ("look", 0))[0]
    return "look"


def described(uri: str, samples: Sequence[Snapshot], policy: config.Policy) -> Status:
    """Return what *samples* say, and what a pass would do now. PassError where the policy does not fit the host."""
    whole = bundle.Bundle(tuple(samples), room=leases.room(uri))
    try:
        memory, vcpu = bundle.plan_memory(whole, policy), bundle.plan_vcpu(whole, policy)
    except ValueError as error:
        raise passes.PassError(str(error)) from None
    would: dict[str, list[DomainMove]] = defaultdict(list)
    for resource, plan in (("memory", memory.plan), ("vcpu", vcpu.plan)):
        for move in plan.moves:
            would[move.uuid].append(DomainMove(samples[-1].wall_s, resource, str(move), move.reason, made=False))
    return replace(status_of(uri, samples, policy, memory, vcpu, would), mode="look", effective_mode=_mode(uri))


def status_of(
    uri: str,
    samples: Sequence[Snapshot],
    policy: config.Policy,
    memory: passes.MemoryResult,
    vcpu: passes.VcpuResult,
    moves: Mapping[str, Sequence[DomainMove]],
) -> Status:
    """Return the Status that *samples* and the results of two passes come to."""
    now, loads = samples[-1], measure(samples)
    return Status(
        version=__version__,
        pid=os.getpid(),
        started_s=now.wall_s,
        written_s=now.wall_s,
        uri=uri,
        mode="",
        effective_mode="",
        host=now.host.name,
        memory_pass=describe_pass(memory),
        vcpu_pass=describe_pass(vcpu),
        room=memory.plan.room,
        pins_ours=count_our_pins(now),
        memory=memory.plan.before,
        memory_total_kib=now.host.memory.total_kib if now.host.memory else None,
        vcpu=vcpu.plan.before,
        domains=describe_domains(now, memory, vcpu, loads, policy.memory, moves),
        pcpus=describe_pcpus(loads),
    )
