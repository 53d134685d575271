# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guests that faults are tried on, and what must be true of them whatever breaks."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Optional

import faulty
from faulty_machine import PATIENCE, FarChild, FaultyMachine
from kvmsched.passes import PassError
from lab import Guest, Lab, OwnLibvirtd, RunningGuest, TinyGuest, machine

MEMORY_KIB = 224 * 1024
TOLERANCE_KIB = 1024
HOME = frozenset({0})
ALLOWED = frozenset({0, 1})


def memory_guest(name: str, **more: Any) -> Guest:
    """It has far more memory than it uses: a pass takes some."""
    return Guest(f"kvmsched-test-mem-{name}", memory_mib=MEMORY_KIB >> 10, cpuset="0-1", persistent=True, **more)


def pinned_guest(name: str, **more: Any) -> Guest:
    """It is pinned to pCPU 0, as all others are: a pass spreads them."""
    pinned: dict[str, Any] = {"cpu": [0.12], "pin": {0: "0"}, "cpuset": "0-1"}
    return TinyGuest(f"kvmsched-test-pin-{name}", persistent=True, **pinned, **more)


def snapshot_disk(name: str, own: Optional[FaultyMachine] = None) -> str:
    """A disk that holds snapshots: with none, libvirt takes none of a running domain."""
    file = (own.directory if own else machine.DIRECTORY) / f"{name}.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(file), "1M"], check=True)
    if own:
        own.write_bytes(str(file), file.read_bytes())
    return (
        f"<devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{file}'/>"
        "<target dev='vdz' bus='virtio'/></disk></devices>"
    )


class Herd:
    """Started guests that a pass of one *resource* wants to change: each of them for memory, some for pins.

    ``patience`` is that of its passes, ``clock`` what bounds on waiting are bounds of.
    """

    def __init__(self, lab: Lab, resource: str, guests: Sequence[Guest]) -> None:
        self.lab, self.resource = lab, resource
        self.machine = lab.own if isinstance(lab.own, FaultyMachine) else None
        self.patience = PATIENCE if self.machine else 1.0
        self.clock: Callable[[], float] = self.machine.clock if self.machine else time.monotonic
        self.names = [guest.name for guest in guests]
        self._pattern = self.names[0].rstrip("0123456789") + "*"
        self._made = {guest.name: guest for guest in guests}

    @property
    def guests(self) -> list[RunningGuest]:
        return [self.lab[name] for name in self.names]

    def run(self, release: bool = False, faults: Optional[Mapping[str, Callable[[], object]]] = None) -> Any:
        """One pass, in which each fault happens at its instant."""
        faults = faults or {}
        asked: dict[str, Any] = {"resource": self.resource, "release": release}
        asked.update(names=self._pattern, patience=self.patience)
        if self.machine:
            return self.machine.run_pass(faults, **asked)
        with faulty.breaking(faults):
            return faulty.run(**asked)

    def child(self, state: str = "balance", **how: Any) -> faulty.Child:
        """A pass in a process of its own, where the guests are."""
        asked = {"resource": self.resource, "state": state, "names": self._pattern, "patience": self.patience, **how}
        if self.machine:
            return FarChild(machine=self.machine, **asked)
        own = self.lab.own
        return faulty.Child(**{"inside": own.inside if isinstance(own, OwnLibvirtd) else list, **asked})

    def shell(self, script: str) -> subprocess.Popen[bytes]:
        """Start a script of a shell where the guests are; pipes lead to it and back."""
        command = self.machine.ssh(script) if self.machine else ["sh", "-c", script]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def again(self, guests: Iterable[RunningGuest]) -> None:
        """Start those anew that a test ended."""
        self._start([guest.name for guest in guests])

    def revive(self) -> None:
        """Start those that were not started yet, or that a failed test left dead."""
        self._start([name for name in self.names if name not in self.lab.guests or not self.lab[name].alive])

    def _start(self, names: Sequence[str]) -> None:
        self.lab.stop(names)
        self.lab.start(*(self._made[name] for name in names))

    def reconnect(self) -> None:
        """Find the guests again after their libvirtd was restarted."""
        self.lab.connection = machine.connect(self.lab.uri)
        for guest in self.guests:
            guest.domain = self.lab.connection.lookupByName(guest.name)

    def wake(self) -> None:
        for guest in self.guests:
            if guest.qemu_state:
                guest.signal_qemu(signal.SIGCONT)

    # -- what must be true

    def assert_unharmed(self, but: Iterable[RunningGuest] = ()) -> None:
        """Nobody died *but* those whom the test ended, none is below its floor, none where it must not run."""
        for guest in self.guests:
            if guest in but:
                continue
            assert guest.alive, f"{guest.name} died: {guest.qemu_state or 'no QEMU'}, {guest.console()[-300:]}"
            assert guest.hog_kills == 0, f"{guest.name} ran out of memory"
            assert guest.affinity(0) <= ALLOWED, guest.name
            if self.resource == "memory" and guest.qemu_state != "T":
                assert guest.balloon_kib() >= faulty.FLOOR_KIB - TOLERANCE_KIB, guest.name

    def assert_served(self, result: Any, sick: Iterable[RunningGuest] = ()) -> None:
        """All that was planned for the healthy was done; of memory guests each had something planned."""
        names = {guest.name for guest in sick}
        done = {move.domain for move in result.outcome.moves}
        planned = {move.domain for move in result.plan.moves}
        healthy = set(self.names) - names
        assert planned & healthy <= done, result.outcome.failures
        if self.resource == "memory":
            assert healthy <= planned, result.skips
        elif len(healthy) > 2:
            assert planned, result.plan.note

    def release(self) -> None:
        """A guest that was stopped or restored needs some ticks of its statistics until its memory can be released.

        Whose statistics are late fails no release that does not name it: its record stays, and the next one goes on.
        """
        end_s = self.clock() + faulty.HANG_S
        # Each resource has its own part of a record, and removes no other's.
        parts = re.compile("<kvmsched:(memory|stats_period)" if self.resource == "memory" else "<kvmsched:pin")
        while trouble := self._release() or [g.name for g in self.guests if parts.search(g.domain.XMLDesc(0))]:
            assert self.clock() < end_s, trouble
            time.sleep(1)

    def recorded(self) -> list[RunningGuest]:
        """Those on which a record of ours stands."""
        return [guest for guest in self.guests if "kvmsched:state" in guest.domain.XMLDesc(0)]

    def change(self) -> list[RunningGuest]:
        """Make passes until two guests at least were changed; on a busy machine one may have no reason to."""
        end_s = self.clock() + faulty.HANG_S
        while len(changed := self.recorded()) < 2:
            assert self.clock() < end_s, "no pass changes anything"
            self.run()
        return changed

    def assert_restored(self) -> None:
        """After release() each must be as it was, without a trace of ours."""
        self.assert_unharmed()
        for guest in self.guests:
            if self.resource == "memory":
                kib = guest.balloon_kib()
                assert abs(kib - MEMORY_KIB) <= TOLERANCE_KIB, (guest.name, kib, guest.domain.XMLDesc(0))
            else:
                assert guest.affinity(0) == HOME, guest.name
        assert not self.recorded(), [guest.name for guest in self.recorded()]

    def _release(self) -> str:
        """Why a release failed, or whom it left; empty if it did neither."""
        if self.lab.own and not self.machine:
            status, output = self.child("release").end()
            return output if status else ""
        try:
            result = self.run(release=True)
        except PassError as error:
            return str(error)
        return result.failed or ", ".join(map(str, result.not_restored))
