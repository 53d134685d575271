# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command on a machine, as its operator runs it, and what the machine's kernel says of its guests."""

from __future__ import annotations

import json
from typing import Any

from face import GUESTS
from lab import Machine, RunningGuest

POLICY_FILE = "/etc/kvmsched/policy.json"
# Small guests on a slow machine.
POLICY = {
    "domains": [GUESTS],
    "deadline": 120,
    "lock_timeout": 120,
    "memory": {"starvation": "60M", "waste": "120M", "reclaim": "eager", "host_reserve": "128M"},
}
MANY_PASSES = 10


def obey(machine: Machine, **policy: Any) -> None:
    """Have a policy there: POLICY, and these keys."""
    machine.write(POLICY_FILE, json.dumps({**POLICY, **policy}))


def kvmsched(machine: Machine, command: str) -> dict[str, Any]:
    """What a command answers as JSON."""
    return dict(json.loads(machine.run(f"kvmsched {command} --json")))


def until_unchanged(machine: Machine, part: str) -> list[dict[str, Any]]:
    """All passes up to the one that finds nothing to do, and nothing under way."""
    passes: list[dict[str, Any]] = []
    while not passes or passes[-1]["changed"] or passes[-1][part]["skip_counts"].get("settling"):
        assert len(passes) < MANY_PASSES, [[one[part]["moves"], one[part]["msg"]] for one in passes]
        passes.append(kvmsched(machine, f"once {part}"))
    return passes


def cpuset(machine: Machine, guest: RunningGuest, vcpu: int = 0) -> str:
    """Where the vCPU's cgroup lets it run."""
    pattern = f"/sys/fs/cgroup/machine.slice/*{guest.name.replace('-', '?x2d')}.scope/libvirt/vcpu{vcpu}/cpuset.cpus"
    return machine.run(f"cat {pattern}").strip()


def records(machine: Machine, *guests: RunningGuest) -> list[str]:
    """The guests that hold a record of what they had."""
    return [guest.name for guest in guests if "kvmsched:state" in guest.domain.XMLDesc()]
