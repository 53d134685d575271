# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A libvirt with guests that may say anything, owners that may write anything, and calls that may answer anything.

Guests do what they are told, but for what a lie says. What they hold is the host's truth: nobody can
lie about the resident size of a QEMU.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Optional

import libvirt as binding
from kvmsched.baseline import STATE_URI
from libvirt_error import Error

MIB = 1024
# What QEMU holds beside its guest's memory.
QEMU_KIB = 64 * MIB
CAPABILITIES = "<capabilities><host><uuid>11111111-1111-1111-1111-111111111111</uuid></host></capabilities>"


class Clock:
    """Stands for the module time: an hour of passes takes no hour."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def time(self) -> float:
        return time.time() + self.ahead_s

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_s

    def sleep(self, seconds: float) -> None:
        self.ahead_s += max(0.0, seconds)

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


@dataclass
class Guest:
    """A guest of *used_kib*; ``says`` overrides its statistics (None: leaves one out), ``xml`` all of its XML."""

    name: str
    maximum_kib: int
    actual_kib: int
    used_kib: int
    number: int = 1
    says: dict[str, Any] = field(default_factory=dict)
    xml: Optional[str] = None
    metadata: str = ""
    vcpus: int = 1
    record: str = ""
    period_s: int = 5
    pins: dict[int, str] = field(default_factory=dict)
    swapped_in_kib: int = 0
    run_ns: int = 0

    @property
    def uuid(self) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_DNS, self.name))

    @property
    def usable_kib(self) -> int:
        return max(0, self.actual_kib - self.used_kib)

    @property
    def rss_kib(self) -> int:
        return self.actual_kib + QEMU_KIB

    def told(self, now_s: float) -> dict[str, Any]:
        """What a bulk record of libvirt says of it."""
        if self.usable_kib < 50 * MIB:
            self.swapped_in_kib += 4 * MIB
        self.run_ns += 10**8
        honest = {
            "balloon.current": self.actual_kib,
            "balloon.maximum": self.maximum_kib,
            "balloon.swap_in": self.swapped_in_kib,
            "balloon.swap_out": self.swapped_in_kib,
            "balloon.major_fault": self.swapped_in_kib,
            "balloon.minor_fault": 5,
            "balloon.unused": self.usable_kib,
            "balloon.available": self.actual_kib,
            "balloon.usable": self.usable_kib,
            "balloon.disk_caches": 0,
            "balloon.last-update": int(now_s),
            "balloon.rss": self.rss_kib,
            "vcpu.current": self.vcpus,
            **{f"vcpu.{n}.time": self.run_ns for n in range(self.vcpus)},
        }
        return {key: value for key, value in {**honest, **self.says}.items() if value is not None}

    def definition(self) -> str:
        """Its live XML."""
        if self.xml is not None:
            return self.xml
        pins = "".join(f"<vcpupin vcpu='{n}' cpuset='{cpus}'/>" for n, cpus in self.pins.items())
        return (
            f"<domain><name>n</name><metadata>{self.metadata}{self.record}</metadata>"
            f"<memory unit='KiB'>{self.maximum_kib}</memory><currentMemory unit='KiB'>{self.actual_kib}</currentMemory>"
            f"<vcpu>{self.vcpus}</vcpu><cputune>{pins}</cputune>"
            f"<devices><memballoon model='virtio'><stats period='{self.period_s}'/></memballoon></devices></domain>"
        )


class Handle:
    """A virDomain."""

    def __init__(self, connection: Connection, guest: Guest) -> None:
        self._connection, self.guest = connection, guest

    def connect(self) -> Connection:
        return self._connection

    def name(self) -> str:
        return self.guest.name

    def UUIDString(self) -> str:
        return self.guest.uuid

    UUID = UUIDString

    def ID(self) -> int:
        return self.guest.number

    def __getattr__(self, call: str) -> Callable[..., Any]:
        if call.startswith("_"):
            raise AttributeError(call)
        return lambda *arguments: self._connection.world.call(self.guest, call, arguments)


class Connection:
    """A virConnect."""

    def __init__(self, world: World) -> None:
        self.world = world

    def __getattr__(self, call: str) -> Callable[..., Any]:
        if call.startswith("_"):
            raise AttributeError(call)
        return lambda *arguments: self.world.call(None, call, arguments, self)


class World:
    """A host of *total_kib* with guests. ``odd`` answers a call of one guest (None: the host's) in its own way."""

    def __init__(self, guests: list[Guest], total_kib: int, clock: Clock) -> None:
        self.guests, self.total_kib, self.clock = guests, total_kib, clock
        for number, guest in enumerate(guests, 1):
            guest.number = number
        self.odd: dict[tuple[Optional[str], str], Callable[[], Any]] = {}
        self.calls = 0
        self.sent: list[tuple[Guest, int]] = []
        self.libvirt = FakeModule()

    @property
    def available_kib(self) -> int:
        return self.total_kib - 512 * MIB - sum(guest.rss_kib for guest in self.guests)

    def open(self, *_arguments: Any) -> Connection:
        return Connection(self)

    def call(
        self, guest: Optional[Guest], call: str, arguments: tuple[Any, ...], connection: Optional[Connection] = None
    ) -> Any:
        self.calls += 1
        odd = self.odd.get((guest.name if guest else None, call))
        if odd is not None:
            return odd()
        if guest is not None:
            return getattr(self, f"_{call}")(guest, *arguments)
        return getattr(self, f"_host_{call}")(connection, *arguments)

    # -- of the host

    def _host_getCPUMap(self, _connection: Connection) -> tuple[int, list[bool], int]:
        return 4, [True] * 4, 4

    def _host_getCapabilities(self, _connection: Connection) -> str:
        return CAPABILITIES

    def _host_getType(self, _connection: Connection) -> str:
        return "QEMU"

    def _host_close(self, _connection: Connection) -> int:
        return 0

    def _host_getMemoryStats(self, _connection: Connection, *_flags: int) -> dict[str, int]:
        return {"total": self.total_kib, "free": max(0, self.available_kib), "buffers": 0, "cached": 0}

    def _host_getInfo(self, _connection: Connection) -> list[Any]:
        return ["x86_64", self.total_kib // 1024, 4]

    def _host_getFreeMemory(self, _connection: Connection) -> int:
        return max(0, self.available_kib) * 1024

    def _host_getAllDomainStats(self, connection: Connection, *_flags: int) -> list[tuple[Handle, dict[str, int]]]:
        return [(Handle(connection, guest), {"state.state": 1}) for guest in self.guests]

    def _host_domainListGetStats(self, connection: Connection, handles: list[Handle], *_flags: int) -> list[Any]:
        return [(Handle(connection, handle.guest), handle.statistics()) for handle in handles]

    def _host_listAllDomains(self, connection: Connection, *_flags: int) -> list[Handle]:
        return []

    def _host_lookupByUUID(self, connection: Connection, uuid_text: str) -> Handle:
        for guest in self.guests:
            if guest.uuid == uuid_text:
                return Handle(connection, guest)
        raise Error(binding.VIR_ERR_NO_DOMAIN)

    _host_lookupByUUIDString = _host_lookupByUUID

    # -- of a guest

    def _statistics(self, guest: Guest) -> dict[str, Any]:
        return guest.told(self.clock.time())

    def _XMLDesc(self, guest: Guest, *_flags: int) -> str:
        return guest.definition()

    def _controlInfo(self, _guest: Guest) -> list[int]:
        return [0, 0, 0]

    def _jobInfo(self, _guest: Guest) -> list[int]:
        return [0]

    def _isActive(self, _guest: Guest) -> int:
        return 1

    def _maxMemory(self, guest: Guest) -> int:
        return guest.maximum_kib

    def _info(self, guest: Guest) -> list[int]:
        return [1, guest.maximum_kib, guest.actual_kib, guest.vcpus, 0]

    def _vcpus(self, guest: Guest) -> tuple[list[Any], list[Any]]:
        return [(n, 1, guest.run_ns, 0) for n in range(guest.vcpus)], [(True,) * 4] * guest.vcpus

    def _vcpuPinInfo(self, guest: Guest, *_flags: int) -> list[tuple[bool, ...]]:
        return [(True,) * 4] * guest.vcpus

    def _memoryStats(self, guest: Guest) -> dict[str, int]:
        told = guest.told(self.clock.time())
        return {key.partition(".")[2]: value for key, value in told.items() if key.startswith("balloon.")} | {
            "actual": told.get("balloon.current", guest.actual_kib)
        }

    def _setMemory(self, guest: Guest, kib: int) -> int:
        self.sent.append((guest, kib))
        guest.actual_kib = max(min(kib, guest.maximum_kib), min(guest.used_kib, guest.actual_kib))
        return 0

    def _setMemoryStatsPeriod(self, guest: Guest, period_s: int, *_flags: int) -> int:
        if not -(2**31) <= period_s < 2**31:
            raise OverflowError("signed integer is greater than maximum")  # as the binding does
        guest.period_s = period_s
        return 0

    def _setMetadata(self, guest: Guest, _kind: int, text: Optional[str], *_more: Any) -> int:
        whole = (text or "").replace("<state", f'<k:state xmlns:k="{STATE_URI}"', 1).replace("</state>", "</k:state>")
        guest.record = whole
        return 0

    def _pinVcpu(self, guest: Guest, number: int, cpu_map: tuple[bool, ...]) -> int:
        guest.pins[number] = ",".join(str(cpu) for cpu, allowed in enumerate(cpu_map) if allowed)
        return 0

    def _pinEmulator(self, _guest: Guest, *_arguments: Any) -> int:
        return 0


class FakeModule:
    """Stands for the module libvirt: its constants are the real ones."""

    libvirtError = Error

    def registerErrorHandler(self, *_arguments: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return getattr(binding, name)
