# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Chaos: passes over six guests while QEMUs, libvirtd and the passes themselves are hurt at random.

Throughout, from outside: nobody dies whom the chaos did not kill, none is below its floor by the word of
its own kernel, and none is changed without a record that tells what it was. After it, ``released`` brings
everyone back.
"""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator

import faulty
import pytest
from faulty import Child
from faulty_machine import FaultyMachine, Own
from herd import ALLOWED, MEMORY_KIB, TOLERANCE_KIB, Herd, memory_guest
from kvmsched.baseline import STATE_URI
from lab import Lab, RunningGuest
from lab.truth import reports

# A QEMU or libvirtd is stopped for at most so long, which is longer than a pass waits for it.
LONGEST_STOP_S = 8.0
# A guest's kernel rounds, and takes some pages for itself as its memory changes.
KERNEL_TOLERANCE_KIB = 6 * 1024
# A guest reports once a second, and libvirt hears of its balloon as often; on a busy machine both come late. What was
# changed without a record stays so, or a later pass takes for an original what is none: either is seen later, too.
LAG_S = 20.0
FAULTS = {
    "kill_pass": 3,
    "stop_qemu": 5,
    "stop_libvirtd": 1,
    "kill_libvirtd": 1,
    "want_memory": 4,
    "want_cpu": 4,
    "save_and_restore": 2,
    "reboot": 1,
    "kill_qemu": 1,
}


def _wrong_original(part: ET.Element) -> bool:
    """Whether a part of a record calls anything else original than what all guests began with."""
    kind = part.tag.rpartition("}")[2]
    if kind == "memory":
        return abs(int(part.attrib["original_kib"]) - MEMORY_KIB) > TOLERANCE_KIB
    return part.attrib["original"] != "0" if kind == "pin" else False


class Watcher(threading.Thread):
    """Looks at all guests past libvirt, again and again, and notes whatever is wrong."""

    def __init__(self, herd: Herd, own: Own) -> None:
        super().__init__(daemon=True)
        self.herd = herd
        self.status_directory = own.run_directory / "qemu"
        self.wrong: list[str] = []
        self.looks = 0
        self.over = threading.Event()
        # What its kernel needs for itself is missing in a guest's own MemTotal.
        self.kernel_kib = {guest.name: MEMORY_KIB - guest.report().total_kib for guest in herd.guests}
        self._excused, self._excuses = "", 0
        # Since when a guest seems to be changed without a record.
        self._lost_s: dict[str, float] = {}

    def run(self) -> None:
        while not self.over.wait(0.3):
            for name in self.herd.names:
                guest = self.herd.lab.guests.get(name)
                if guest and name != self._excused:
                    # It may be excused only while it is looked at.
                    excuses = self._excuses
                    found = [f"{name} {what}" for what in self._wrong_with(guest)]
                    self.wrong += found if excuses == self._excuses else []
                    self.looks += 1

    def _wrong_with(self, guest: RunningGuest) -> Iterator[str]:
        if not guest.alive:
            yield "died"
        if guest.hog_kills:
            yield "had to kill a process for want of memory"
        with contextlib.suppress(OSError, KeyError):  # its QEMU just ends, or starts
            if not guest.affinity(0) <= ALLOWED:
                yield f"runs on {guest.affinity(0)}"
        for report in reports(guest.console()[-1000:])[-1:]:
            has_kib = report.total_kib + self.kernel_kib[guest.name]
            if has_kib < faulty.FLOOR_KIB - KERNEL_TOLERANCE_KIB:
                yield f"is below its floor: {report}"
            away = guest.qemu_state != "T" and abs(has_kib - MEMORY_KIB) > KERNEL_TOLERANCE_KIB
            yield from self._unrecorded(guest, away)

    def _unrecorded(self, guest: RunningGuest, away: bool) -> Iterator[str]:
        """What libvirt keeps of a running domain on disk: pins, memory and record as they were at one instant.

        Its size may be old there, and for good after a restore: the guest's own kernel must say, too, that it is
        *away*, and both for longer than either lags.
        """
        now_s = self.herd.clock()
        with contextlib.suppress(FileNotFoundError):
            text = guest.kernel.read_text(f"{self.status_directory}/{guest.name}.xml")
            domain = ET.fromstring(text).find("domain")
            assert domain is not None, text
            pins = {pin.get("cpuset") for pin in domain.findall("cputune/vcpupin")}
            kib = int(domain.findtext("currentMemory", "0"))
            state = domain.find(f"metadata/{{{STATE_URI}}}state")
            lost = state is None and away and abs(kib - MEMORY_KIB) > TOLERANCE_KIB
            since_s = self._lost_s.setdefault(guest.name, now_s) if lost else self._lost_s.pop(guest.name, now_s)
            if (state is None and pins - {"0"}) or now_s - since_s > LAG_S:
                yield f"was changed, and no record tells what it was: {kib} KiB, pinned to {pins}"
            if state is not None and (wrong := [part.attrib for part in state if _wrong_original(part)]):
                yield f"has a record that does not tell what it was: {wrong}"

    @contextlib.contextmanager
    def excusing(self, guest: RunningGuest) -> Iterator[None]:
        """While its QEMU is ended or replaced on purpose, it may be gone."""
        self._excused, self._excuses = guest.name, self._excuses + 1
        yield
        self._excused = ""


class Chaos:
    """Passes, one after the other, and the faults that *dice* chooses."""

    def __init__(self, herd: Herd, own: Own, watcher: Watcher, dice: random.Random) -> None:
        self.herd, self.own, self.watcher, self.dice = herd, own, watcher, dice
        self.log: list[str] = []
        self.passes: list[tuple[int, str]] = []
        self._child = self._pass()
        self._later: list[tuple[float, Callable[[], None]]] = []

    def step(self) -> None:
        if self._child.process.poll() is not None or self.herd.clock() - self._began_s > faulty.HANG_S:
            self.passes.append(self._child.end())
            self._child = self._pass()
        (fault,) = self.dice.choices(list(FAULTS), list(FAULTS.values()))
        guest = self.dice.choice(self.herd.guests)
        self.log.append(f"{fault} {guest.name}")
        getattr(self, fault)(guest)
        time.sleep(self.dice.uniform(0.0, 1.0))
        self.undo(time.monotonic())

    def end(self) -> None:
        """Undo what still is broken, and let the last pass end."""
        self.undo(float("inf"))
        self.passes.append(self._child.end())
        for guest in self.herd.guests:
            guest.hold(0)
            guest.wait_held()

    def last_pass(self) -> None:
        """One more, in peace: on a slow machine the chaos may have let none come to its end."""
        end_s = self.herd.clock() + faulty.HANG_S
        while not self.herd.recorded():
            assert self.herd.clock() < end_s, f"no pass does anything: {self.passes[-1]}"
            self.passes.append(self.herd.child().end())

    def undo(self, now_s: float) -> None:
        for due_s, action in list(self._later):
            if due_s <= now_s:
                self._later.remove((due_s, action))
                action()

    def _pass(self) -> Child:
        self._began_s = self.herd.clock()
        state = self.dice.choices(("balance", "release"), (3, 1))[0]
        # Not more patient than elsewhere: what is given up is a part of the chaos.
        return self.herd.child(state, resource=self.dice.choice(faulty.RESOURCES), patience=1.0)

    def _undo_later(self, action: Callable[[], None]) -> None:
        self._later.append((time.monotonic() + self.dice.uniform(0.3, LONGEST_STOP_S), action))

    def _mend(self) -> None:
        """For a fault that needs libvirt and its guests."""
        self.undo(float("inf"))
        self.herd.reconnect()

    # -- the faults

    def kill_pass(self, _guest: RunningGuest) -> None:
        self._child.signal(signal.SIGKILL)

    def stop_qemu(self, guest: RunningGuest) -> None:
        guest.signal_qemu(signal.SIGSTOP)
        self._undo_later(self.herd.wake)

    def stop_libvirtd(self, _guest: RunningGuest) -> None:
        self.own.signal(signal.SIGSTOP)
        self._undo_later(self.own.ensure)

    def kill_libvirtd(self, _guest: RunningGuest) -> None:
        self.own.signal(signal.SIGKILL)
        self._undo_later(self.own.ensure)

    def want_memory(self, guest: RunningGuest) -> None:
        """No more than what even a guest at its floor has: the guest must never be in danger by itself."""
        self.herd.wake()
        guest.hold(self.dice.choice((0, 10, 20)))

    def want_cpu(self, guest: RunningGuest) -> None:
        self.herd.wake()
        guest.cpu(self.dice.choice((0.0, 0.1, 0.25)))

    def save_and_restore(self, guest: RunningGuest) -> None:
        self._mend()
        with self.watcher.excusing(guest):
            guest.domain.managedSave()
            guest.domain.create()
            guest.refresh()

    def reboot(self, guest: RunningGuest) -> None:
        self._mend()
        boots = guest.console().count(" ready\n")
        guest.domain.reset()
        guest.wait_until(lambda: guest.console().count(" ready\n") > boots, "to come up again")

    def kill_qemu(self, guest: RunningGuest) -> None:
        self._mend()
        with self.watcher.excusing(guest):
            guest.signal_qemu(signal.SIGKILL)
            self.herd.again([guest])


@pytest.mark.machine
def test_chaos_harms_nobody_whom_it_does_not_kill(request: pytest.FixtureRequest, own: Own) -> None:
    seconds, seed = request.config.getoption("--chaos-s"), request.config.getoption("--chaos-seed")
    where = f" --machine={own.suite}" if isinstance(own, FaultyMachine) else ""
    repeat = f'repeat it with: make chaos ARGS="--chaos-s={seconds:g} --chaos-seed={seed}{where}"'
    print(repeat)
    number = 3 if where else 6
    guests = [memory_guest(f"chaos{n}", cpu=[0.1], pin={0: "0"}, load_at_boot=True) for n in range(number)]
    with Lab(own=own) as lab:
        lab.start(*guests)
        herds = [Herd(lab, resource, guests) for resource in faulty.RESOURCES]
        watcher = Watcher(herds[0], own)
        chaos = Chaos(herds[0], own, watcher, random.Random(seed))
        watcher.start()
        end_s = time.monotonic() + seconds
        try:
            while time.monotonic() < end_s and not watcher.wrong:
                chaos.step()
            chaos.end()
            herds[0].reconnect()
            chaos.last_pass()
            for herd in herds:
                herd.release()
        finally:
            watcher.over.set()
            watcher.join()
            print(f"{len(chaos.passes)} passes, {watcher.looks} looks, faults: {', '.join(chaos.log)}")
            print("the last passes:", *(f"{status}: {output}" for status, output in chaos.passes[-4:]), sep="\n")
        assert not watcher.wrong, (watcher.wrong[:5], repeat)
        traces = [output for _status, output in chaos.passes if "Traceback" in output]
        assert not traces, (traces[0], repeat)
        for herd in herds:
            herd.assert_restored()
