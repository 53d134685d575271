# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command on a machine, as its operator runs it there, and what the machine's kernel says of its guests."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Optional

from face import GUESTS
from kvmsched.units import parse_cpuset
from lab import Machine, RunningGuest
from lab.machine import connect
from systemd_unit import Unit

POLICY_FILE = "/etc/kvmsched/policy.json"
# Small guests on a slow machine: a healthy libvirt may take long to answer there.
POLICY: dict[str, Any] = {
    "domains": [GUESTS],
    "deadline": 120,
    "lock_timeout": 120,
    "memory": {
        "starvation": "60M",
        "waste": "120M",
        "reclaim": "eager",
        "host_reserve": "128M",
        "arrival_timeout": 60,
    },
    "vcpu": {"floating": "place", "reserved": "0", "hold": 1, "half_life": 0, "cooldown": 0},
}
MANY_PASSES = 10
DAEMON = "kvmsched-test-daemon"
SERVICE = (
    "Type=notify Restart=on-failure StateDirectory=kvmsched RuntimeDirectory=kvmsched RuntimeDirectoryPreserve=yes"
)
# A machine that others keep from running is no failure.
PATIENT = "TimeoutStartSec=infinity TimeoutStopSec=infinity"


def obey(machine: Machine, memory: Optional[Mapping[str, Any]] = None, **vcpu: Any) -> None:
    """Have POLICY there, and these keys of its memory's and of its vCPUs' part."""
    parts = {"memory": {**POLICY["memory"], **(memory or {})}, "vcpu": {**POLICY["vcpu"], **vcpu}}
    machine.write(POLICY_FILE, json.dumps({**POLICY, **parts}))


def kvmsched(machine: Machine, command: str, check: bool = True) -> dict[str, Any]:
    """What a command answers as JSON; with *check* it must succeed."""
    answer = dict(json.loads(machine.run(f"kvmsched {command} --json", check)))
    for part in filter(None, (answer.get(name) for name in ("memory", "vcpu"))):
        print(f"\n{command}: {part['msg']}", *part["moves"], *part["skips"], *part["failures"], sep="\n  ")
    return answer


def refused(machine: Machine, command: str) -> str:
    """What a command says that must fail: a line, and no traceback."""
    said = machine.run(f"! kvmsched {command} 2>&1")
    assert "Traceback" not in said and "a mistake of kvmsched" not in said, said
    return said


def until_unchanged(machine: Machine, part: str) -> list[dict[str, Any]]:
    """What became of the part in all passes up to the one that finds nothing to do, and nothing under way.

    Who does not answer in its time does so later: a machine that others keep from running is that slow.
    """
    passes: list[dict[str, Any]] = []
    while not passes or passes[-1]["changed"] or _waited_for(passes[-1]) & {"settling", "hung"}:
        assert len(passes) < MANY_PASSES, [[one["moves"], one["msg"]] for one in passes]
        passes.append(kvmsched(machine, f"once {part}", check=False)[part])
        assert not passes[-1]["failed"] or "hung" in _waited_for(passes[-1]), passes[-1]
    return passes


def _waited_for(one: dict[str, Any]) -> set[str]:
    """Why guests were skipped in a pass, or not changed."""
    return {*one["skip_counts"], *(failure["code"] for failure in one["failures"])}


def release(machine: Machine) -> None:
    """Have all guests get back what they had, as soon as each answers in its time."""
    for _turn in range(MANY_PASSES):
        released = kvmsched(machine, f"release '{GUESTS}'", check=False)
        left = [released[part]["not_restored"] for part in ("memory", "vcpu")]
        if left == [[], []]:
            return
        print(left)
    raise AssertionError(left)


def find_again(machine: Machine, guest: RunningGuest) -> None:
    """Have *guest* be what runs by its name now, as soon as libvirt has started it: its host is up again."""
    machine.run(f"until virsh domstate {guest.name} | grep --quiet running; do sleep 1; done")
    guest.domain = connect(machine.uri).lookupByName(guest.name)
    guest.refresh()


def core(pcpus: set[int]) -> set[int]:
    """The cores of pCPUs, where each has two threads."""
    return {pcpu // 2 for pcpu in pcpus}


def scope(guest: RunningGuest) -> str:
    """The cgroup of a guest."""
    name = guest.name.replace("-", "?x2d")  # as systemd escapes it
    return f"/sys/fs/cgroup/machine.slice/machine-qemu?x2d*?x2d{name}.scope"


def place(machine: Machine, guest: RunningGuest, vcpu: int = 0) -> set[int]:
    """Where a vCPU may run, by its affinity and by its cgroup, which say the same."""
    place = set(guest.affinity(vcpu))
    assert parse_cpuset(machine.run(f"cat {scope(guest)}/libvirt/vcpu{vcpu}/cpuset.cpus").strip()) == place
    return place


def records(*guests: RunningGuest) -> list[str]:
    """The guests that hold a record of what they had."""
    return [guest.name for guest in guests if "kvmsched:state" in guest.domain.XMLDesc()]


@contextlib.contextmanager
def daemon(machine: Machine) -> Iterator[Unit]:
    """Have the daemon act there for a while."""
    options = " ".join(f"--property={one}" for one in f"{SERVICE} {PATIENT}".split())
    machine.run(f"systemd-run --quiet --unit={DAEMON} {options} /usr/local/bin/kvmsched run")
    try:
        yield Unit(machine, DAEMON)
    finally:
        machine.run(f"systemctl stop {DAEMON}; systemctl reset-failed {DAEMON} 2>/dev/null; true")


@contextlib.contextmanager
def offline(machine: Machine, pcpus: set[int]) -> Iterator[None]:
    """Have pCPUs off for a while."""

    def switch(on: bool) -> None:
        for pcpu in sorted(pcpus):
            machine.write(f"/sys/devices/system/cpu/cpu{pcpu}/online", str(int(on)))

    switch(False)
    try:
        yield
    finally:
        switch(True)
