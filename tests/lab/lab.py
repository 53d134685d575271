# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Boot guests, talk to them, and leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import time
from types import TracebackType
from typing import Any, Callable, Iterable, Optional, Sequence, Union

from . import image, machine, truth
from .guest import NAME, OWNER, Files, Guest, require_own
from .hosts import Host
from .machines.host import Machine
from .own import OwnLibvirtd

KIB_PER_MIB = 1024
BALLOON_TOLERANCE_KIB = 1024
# What each QEMU may still take for itself, as docs/memory.md has it.
OVERHEAD_KIB = 64 * KIB_PER_MIB
POLL_S = 0.1
# Bounds on waiting, so that a guest that hangs fails its test: no healthy one comes near them.
PATIENCE_S = 300
BOOT_S = 600
# The owner of guests that belong to no process, but to whoever plays with them.
KEPT = "kept"


class RunningGuest:
    """A guest that runs: what to tell it, and the truth about it. ``domain`` is its virDomain."""

    def __init__(
        self,
        guest: Guest,
        files: Files,
        domain: Any,
        qemu_pid: Callable[[str], int],
        kernel: Any = truth,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.guest = guest
        self.name = guest.name
        self.files = files
        self.domain = domain
        self._told_up_s = 0.0
        self._qemu_pid = qemu_pid
        self.kernel = kernel  # who knows its threads: truth.py, here or on the machine where it runs
        self._clock = clock  # what bounds on waiting are bounds of
        self.refresh()

    def refresh(self) -> None:
        """Look up its QEMU process, which is another one after a restore or a new start."""
        self.pid = self._qemu_pid(self.name)
        self._start = self.kernel.process_start(self.pid)

    # -- its load

    def cpu(self, *shares: float) -> None:
        """From now on vCPU n wants that share of a pCPU; the last one counts for the rest."""
        self.tell("cpu " + " ".join(f"{share * 100:.0f}" for share in shares))

    def hold(self, mib: float, mib_per_s: float = 0) -> None:
        """Hold that much memory, at once or growing (shrinking) at a rate; wait_held() waits for it."""
        self.tell(f"mem {mib:g} {mib_per_s:g}")

    def cache(self, mib: int) -> None:
        """Have that much of the blank disk in the page cache."""
        self.tell(f"cache {mib}")

    def tell(self, command: str, timeout_s: float = PATIENCE_S) -> None:
        """Send one command of init.c and wait until the guest says that it did it."""
        answer = bytearray()
        with socket.socket(socket.AF_UNIX) as port:
            port.connect(str(self.files.control))
            port.sendall(f"{command}\n".encode())
            port.setblocking(False)

            def done() -> bool:
                with contextlib.suppress(BlockingIOError):
                    answer.extend(port.recv(4096))
                found = re.search(rb"([\d.]+) did %b\n" % re.escape(command).encode(), answer)
                self._told_up_s = float(found[1]) if found else self._told_up_s
                return bool(found)

            self._wait(done, timeout_s, f"to do {command!r}")

    def tell_all(self, commands: Sequence[str]) -> None:
        for command in commands:
            self.tell(command)

    # -- the guest's own view

    def console(self) -> str:
        """Everything on its serial console so far."""
        try:
            return self.files.console.read_text(encoding="utf-8", errors="replace").replace("\r", "")
        except FileNotFoundError:
            return ""

    def reports(self) -> list[truth.Report]:
        """Its memory as it sees it, once a second since boot; less often where one takes half of that."""
        return truth.reports(self.console())

    def report(self, timeout_s: float = PATIENCE_S) -> truth.Report:
        """A report that is newer than this call, and than the last command."""
        before = len(self.reports())
        self._wait(lambda: len(self.reports()) > before and self._is_up_to_date(), timeout_s, "to report")
        return self.reports()[-1]

    def wait_held(self, timeout_s: float = PATIENCE_S) -> truth.Report:
        """Wait until it holds what it was last told (or its hog was killed for it)."""

        def held() -> bool:
            return self._is_up_to_date() and self.reports()[-1].held_kib == self.reports()[-1].target_kib

        self._wait(held, timeout_s, "to hold its memory")
        return self.reports()[-1]

    def _is_up_to_date(self) -> bool:
        """Whether its last report is newer than the last command (one that is far older comes after a reboot)."""
        up_s = next((report.up_s for report in reversed(self.reports())), self._told_up_s)
        return up_s > self._told_up_s or up_s < self._told_up_s - 5

    @property
    def hog_kills(self) -> int:
        """How often its OOM killer took the process that holds memory."""
        return self.console().count(" killed hog ")

    @property
    def panicked(self) -> bool:
        return "Kernel panic" in self.console()

    # -- the host kernel's view

    @property
    def alive(self) -> bool:
        """Whether its QEMU process is there (stopped or not) and its kernel has not given up."""
        return self.qemu_state not in ("", "Z") and not self.panicked

    @property
    def qemu_state(self) -> str:
        """State of the QEMU process as in ps (T: stopped); empty if it is gone."""
        return self.kernel.process_state(self.pid) if self.kernel.process_start(self.pid) == self._start else ""

    def signal_qemu(self, number: signal.Signals) -> None:
        """Send a signal to its QEMU process, e.g. SIGSTOP, SIGCONT or SIGKILL."""
        if not self.qemu_state:
            raise ProcessLookupError(f"{self.name}: its QEMU is gone")
        self.kernel.send_signal(self.pid, number)

    def threads(self) -> dict[int, int]:
        """The host thread of each vCPU."""
        return self.kernel.vcpu_threads(self.pid)

    def affinity(self, vcpu: int = 0) -> frozenset[int]:
        """Where the kernel lets a vCPU run."""
        return self.kernel.affinity(self.threads()[vcpu])

    def cpu_time(self, vcpu: int = 0) -> truth.CpuTime:
        """What a vCPU had of its pCPU since it started."""
        return self.kernel.cpu_time(self.pid, self.threads()[vcpu])

    # -- QEMU's view

    def balloon_kib(self) -> int:
        """The balloon as QEMU has it now; the guest's own word for it is report().total_kib."""
        return int(self.domain.memoryStats()["actual"])

    def resident_kib(self) -> int:
        """What its QEMU has touched."""
        return self.kernel.resident_kib(self.pid)

    def untouched_kib(self) -> int:
        """What its QEMU may still touch: what the guest has and did not use yet, and QEMU's own part."""
        return max(0, self.balloon_kib() + OVERHEAD_KIB - self.resident_kib())

    # -- waiting

    def wait_until(self, done: Callable[[], bool], what: str) -> None:
        """Wait until *done* says so; TimeoutError, with *what* was waited for and its console, where it never does."""
        self._wait(done, PATIENCE_S, what)

    def wait_seen(self) -> None:
        """Wait until libvirt has statistics that are newer than this call."""
        since_s = time.time()
        # last_update counts whole seconds.
        self.wait_until(lambda: self.domain.memoryStats().get("last_update", 0) > since_s + 1, "to be seen by libvirt")

    def _wait(self, done: Callable[[], bool], timeout_s: float, what: str) -> None:
        deadline = self._clock() + timeout_s
        while not done():
            if not self.alive:
                raise RuntimeError(f"{self.name} was {what}: it is dead; its console ends:\n{self.console()[-1500:]}")
            if self._clock() > deadline:
                why = f"not within {timeout_s:g} s"
                raise TimeoutError(f"{self.name} was {what}: {why}; its console ends:\n{self.console()[-1500:]}")
            time.sleep(POLL_S)

    def wait_booted(self, timeout_s: float) -> None:
        self._wait(lambda: bool(re.search(r"^lab \S+ ready$", self.console(), re.MULTILINE)), timeout_s, "to boot")

    def wait_statistics(self, since_s: float, timeout_s: float) -> None:
        """Wait until libvirt has statistics newer than that wall-clock time, and the balloon is where it should be."""
        target_kib = (self.guest.current_mib or self.guest.memory_mib) * KIB_PER_MIB

        def fresh() -> bool:
            stats = self.domain.memoryStats()
            there = abs(stats["actual"] - target_kib) <= BALLOON_TOLERANCE_KIB
            return there and "usable" in stats and stats.get("last_update", 0) > since_s

        self._wait(fresh, timeout_s, "to report fresh memory statistics")


class Lab:
    """The place where guests run: ``with Lab() as lab: one, two = lab.start(Guest(...), Guest(...))``.

    However the block ends (an error, Ctrl-C, SIGTERM), all guests that it started are gone then.
    They run on the machine's libvirtd, on an OwnLibvirtd, on a Host, or on an emulated Machine. Where the lab is to
    *keep* its guests, they outlive a block that ends well, until somebody removes them: see up.py.
    """

    def __init__(
        self, say: machine.Say = machine.quiet, own: Union[OwnLibvirtd, Host, Machine, None] = None, keep: bool = False
    ) -> None:
        self.say = say
        self.keep = keep
        self.own = own
        self.directory = own.directory if own else machine.DIRECTORY
        self.guests: dict[str, RunningGuest] = {}
        self._names: set[str] = set()  # of all guests that were begun: one may be there before it is in guests

    @property
    def uri(self) -> str:
        return self.own.uri if self.own else "qemu:///system"

    def __enter__(self) -> Lab:
        if not self.own:
            machine.prepare(self.say)
        if isinstance(self.own, Machine):
            self.image, self.hypervisor = self.own.image, "kvm"
        else:
            self._prepare_here()
        self.connection = machine.connect(self.uri)
        clean(self.connection, ownerless=False)
        self._endings = machine.Endings()
        return self

    def _prepare_here(self) -> None:
        with machine.exclusive():
            machine.DIRECTORY.mkdir(parents=True, exist_ok=True)
            self.image = image.build(machine.DIRECTORY)
            # Who may use /dev/kvm within a host is not settled: TCG there.
            kvm = not isinstance(self.own, Host) and machine.kvm_works(self.image.kernel, self.image.initramfs)
            self.hypervisor = "kvm" if kvm else "qemu"

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        with self._endings.put_off(), contextlib.closing(self.connection):
            if error is not None or not self.keep:
                self.stop()

    def __getitem__(self, name: str) -> RunningGuest:
        return self.guests[name]

    def start(self, *guests: Guest, timeout_s: float = BOOT_S) -> list[RunningGuest]:
        """Boot guests together and return them when all are up, pinned, loaded, and seen by libvirt."""
        running = [self._create(guest) for guest in guests]
        for one in running:
            one.wait_booted(timeout_s)
            self.say(f"{one.name} is up")
        to_load = [one for one in running if not one.guest.load_at_boot]
        for one in to_load:
            one.tell_all(one.guest.memory_commands())
        for one in running:
            if one.guest.memory_commands():
                one.wait_held(timeout_s)
        for one in to_load:
            one.tell_all(one.guest.cpu_commands())
        for one in running:
            self.apply_pins(one)
        loaded_s = time.time()
        for one in running:
            if one.guest.reports_memory:
                one.wait_statistics(loaded_s, timeout_s)
        return running

    def _create(self, guest: Guest) -> RunningGuest:
        if guest.name in [domain.name() for domain in self.connection.listAllDomains()]:
            raise RuntimeError(f"a guest {guest.name} is there already: is another test running?")
        self._names.add(guest.name)
        files = Files.of(guest.name, self.directory)
        files.remove()
        guest.write_disk(files.disk)
        if isinstance(self.own, Machine):
            self.own.mirror(files)
        owner = KEPT if self.keep else _identity(os.getpid())
        xml = guest.xml(self.image, files, self.hypervisor, owner)
        if guest.persistent:
            domain = self.connection.defineXML(xml)
            domain.create()
        else:
            domain = self.connection.createXML(xml)
        qemu_pid = self.own.qemu_pid if self.own else machine.qemu_pid
        here = (self.own.kernel, self.own.clock) if isinstance(self.own, Machine) else (truth, time.monotonic)
        self.guests[guest.name] = RunningGuest(guest, files, domain, qemu_pid, *here)
        return self.guests[guest.name]

    def apply_pins(self, running: RunningGuest) -> None:
        """Set the live pins that its Guest asks for."""
        pcpus = self.connection.getCPUMap()[0]
        for vcpu, cpuset in running.guest.pin.items():
            wanted = _parse_cpuset(cpuset)
            running.domain.pinVcpu(vcpu, tuple(pcpu in wanted for pcpu in range(pcpus)))

    def measure(self, window_s: float = 2) -> dict[str, dict[int, truth.Share]]:
        """What each vCPU of each guest gets of its pCPU in a window that starts now, and how long it waits for it."""
        before = {name: _cpu_times(one) for name, one in self.guests.items()}
        started_s = time.monotonic()
        time.sleep(window_s)
        after = {name: _cpu_times(one) for name, one in self.guests.items()}
        window_ns = (time.monotonic() - started_s) * 1e9
        return {
            name: {v: truth.Share.between(before[name][v], t, window_ns) for v, t in times.items() if v in before[name]}
            for name, times in after.items()
            if name in before
        }

    def stop(self, names: Optional[Iterable[str]] = None) -> None:
        """End and forget guests: those named, or all."""
        chosen = sorted(self._names if names is None else names)
        for name in chosen:  # at once, and also if it is stopped or libvirt is away
            if name in self.guests:
                with contextlib.suppress(ProcessLookupError):
                    self.guests.pop(name).signal_qemu(signal.SIGKILL)
        if self.own:
            self.own.ensure()
        with contextlib.closing(machine.connect(self.uri)) as connection:  # ours may be lost
            for name in chosen:
                _remove(connection, name)
                Files.of(name, self.directory).remove()
                self._names.discard(name)


# ---------------------------------------------------------------- cleaning up


def clean(connection: Any, ownerless: bool = True, everybody: bool = False) -> list[str]:
    """Remove left-over lab guests and return their names: those whose process is gone.

    ``ownerless`` includes guests with a lab name that no Lab started, ``everybody`` those still in use.
    """
    import libvirt

    removed = []
    for domain in connection.listAllDomains():
        with contextlib.suppress(libvirt.libvirtError):  # another process may have removed it meanwhile
            name = domain.name()
            if NAME.fullmatch(name) and (everybody or _left_over(_owner(domain), ownerless)):
                _remove(connection, name)
                Files.of(name, machine.DIRECTORY).remove()
                removed.append(name)
    return removed


def kept(connection: Any) -> list[str]:
    """Return the names of the guests that are kept."""
    import libvirt

    names = []
    for domain in connection.listAllDomains():
        with contextlib.suppress(libvirt.libvirtError):  # another process may have removed it meanwhile
            if NAME.fullmatch(domain.name()) and _owner(domain) == KEPT:
                names.append(domain.name())
    return sorted(names)


def remove_kept(connection: Any, but: Sequence[str] = ()) -> list[str]:
    """Remove the guests that are kept, *but* these, and no others; return their names."""
    names = [name for name in kept(connection) if name not in but]
    for name in names:
        _remove(connection, name)
        Files.of(name, machine.DIRECTORY).remove()
    return names


def _left_over(owner: str, ownerless: bool) -> bool:
    if owner == KEPT:
        return False
    return owner != _identity(int(owner.partition(" ")[0])) if owner else ownerless


def _owner(domain: Any) -> str:
    found = re.search(rf"<lab:owner xmlns:lab=['\"]{OWNER}['\"]>([^<]+)<", domain.XMLDesc())
    return found[1] if found else ""


def _identity(pid: int) -> str:
    return f"{pid} {machine.process_start(pid)}"


def _remove(connection: Any, name: str) -> None:
    """Destroy and undefine one lab guest, whatever state it is in."""
    import libvirt

    keep_nothing = (
        libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
        | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
        | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    )
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            domain = connection.lookupByName(require_own(name))
            if domain.isActive():
                domain.destroy()
            domain.undefineFlags(keep_nothing)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)  # it may just be dying


# ---------------------------------------------------------------- small things


def _cpu_times(one: RunningGuest) -> dict[int, truth.CpuTime]:
    threads = one.threads() if one.qemu_state else {}
    return {vcpu: one.kernel.cpu_time(one.pid, thread) for vcpu, thread in threads.items()}


def _parse_cpuset(text: str) -> frozenset[int]:
    """``0-2,5`` as a set."""
    spans = [part.split("-") for part in text.split(",")]
    return frozenset(pcpu for span in spans for pcpu in range(int(span[0]), int(span[-1]) + 1))
