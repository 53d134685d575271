# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a guest should be: its domain XML and the load that it is told to make."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Mapping, Optional, Sequence

from .image import Image

OWNER = "urn:kvmsched:lab/1"  # the metadata that tells which process a guest belongs to
NAME = re.compile(r"kvmsched-(test|demo|lab)-[A-Za-z0-9._-]+")
# no_timer_check: on a busy host too few of an emulated timer's ticks come while the kernel counts them, and it panics.
KERNEL_ARGUMENTS = "console=ttyS0 quiet edd=off audit=0 selinux=0 apparmor=0 mitigations=off no_timer_check"
TCG_ARGUMENTS = "clocksource=acpi_pm"  # on a busy host the kernel measures an emulated TSC wrong, by factors


def require_own(name: str) -> str:
    """Return *name*; refuse any name that is not a lab guest's."""
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name for a lab guest: kvmsched-test-*, kvmsched-demo-* or kvmsched-lab-*")
    return name


@dataclass(frozen=True)
class Files:
    """Where a guest's console (a file), its control port (a unix socket) and its own disk are."""

    console: Path
    control: Path
    disk: Path

    @classmethod
    def of(cls, name: str, directory: Path) -> Files:
        return cls(*(directory / f"{require_own(name)}.{kind}" for kind in ("console", "control", "disk")))

    def remove(self) -> None:
        for path in (self.console, self.control, self.disk):
            path.unlink(missing_ok=True)


@dataclass(frozen=True, eq=False)
class Guest:
    """A guest to boot. Everything but its name has a default: one idle vCPU in 256 MiB.

    The load: ``cpu`` is the share of a pCPU that each vCPU wants (the last one counts for the rest),
    ``hold_mib`` what a process holds, ``cache_mib`` what is in the page cache, ``later`` further
    commands of init.c with the seconds after start() at which they come: ``[(20, "mem 240 10")]``.
    It begins when all guests of a start() are up, or with ``load_at_boot`` at each boot.

    ``pin`` are live pins, set once the guest is up; administrator's pins belong into ``cputune``. A transient
    guest (not ``persistent``) has no other definition than the pins that it is first seen with.
    ``cputune``, ``metadata`` and ``extra`` are XML: what these elements hold, and what the domain holds.
    """

    name: str
    vcpus: int = 1
    max_vcpus: int = 0
    memory_mib: int = 256
    current_mib: Optional[int] = None
    cpu: Sequence[float] = (0.0,)
    hold_mib: float = 0
    cache_mib: int = 0
    later: Sequence[tuple[float, str]] = ()
    load_at_boot: bool = False
    pin: Mapping[int, str] = field(default_factory=dict)
    cpuset: str = ""
    balloon: str = "virtio"
    free_page_reporting: bool = False
    driver: bool = True
    stats_period_s: int = 1
    swap_mib: int = 0
    persistent: bool = True
    cputune: str = ""
    metadata: str = ""
    extra: str = ""

    def __post_init__(self) -> None:
        require_own(self.name)

    @property
    def reports_memory(self) -> bool:
        """Whether libvirt will have fresh memory statistics of it."""
        return self.balloon != "none" and self.driver and self.stats_period_s > 0

    def memory_commands(self) -> list[str]:
        """What it shall hold and cache from the start, in init.c's words."""
        lines = [f"cache {self.cache_mib}"] if self.cache_mib else []
        return [*lines, f"mem {self.hold_mib:g}"] if self.hold_mib else lines

    def cpu_commands(self) -> list[str]:
        """Its CPU load, and what comes later."""
        shares = " ".join(f"{share * 100:.0f}" for share in self.cpu)
        return [f"cpu {shares}", *[f"at {when_s:g} {command}" for when_s, command in self.later]]

    def kernel_arguments(self, hypervisor: str) -> str:
        arguments = KERNEL_ARGUMENTS if hypervisor == "kvm" else f"{KERNEL_ARGUMENTS} {TCG_ARGUMENTS}"
        if not self.driver:
            arguments += " initcall_blacklist=virtio_balloon_driver_init"
        if self.load_at_boot:
            load = "; ".join(self.memory_commands() + self.cpu_commands())
            arguments += f' lab="{load}"'
        return arguments

    def write_disk(self, disk: Path) -> None:
        """Make the disk that only this guest has: an empty one to swap on."""
        if self.swap_mib:
            disk.touch()
            os.truncate(disk, self.swap_mib << 20)

    def xml(self, image: Image, files: Files, hypervisor: str, owner: str) -> str:
        """The domain XML. *hypervisor* is libvirt's domain type: kvm, or qemu for TCG."""
        cpuset = f" cpuset='{self.cpuset}'" if self.cpuset else ""
        return f"""
<domain type='{hypervisor}'>
  <name>{self.name}</name>
  <metadata><lab:owner xmlns:lab='{OWNER}'>{owner}</lab:owner>{self.metadata}</metadata>
  <memory unit='MiB'>{self.memory_mib}</memory>
  <currentMemory unit='MiB'>{self.current_mib or self.memory_mib}</currentMemory>
  <vcpu placement='static'{cpuset} current='{self.vcpus}'>{self.max_vcpus or self.vcpus}</vcpu>
  <cputune>{self.cputune}</cputune>
  {self.boot_xml(image, hypervisor)}
  <features><acpi/></features>
  <devices>
    {self.disks_xml(image, files)}
    <controller type='usb' model='none'/>
    <serial type='file'><source path='{files.console}'/><target port='0'/></serial>
    <serial type='unix'><source mode='bind' path='{files.control}'/><target port='1'/></serial>
    {self._balloon_xml()}
  </devices>
  {self.extra}
</domain>"""

    def boot_xml(self, image: Image, hypervisor: str) -> str:
        """What it boots."""
        arguments = self.kernel_arguments(hypervisor).replace('"', "&quot;")
        return f"""<os><type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{image.kernel}</kernel><initrd>{image.initramfs}</initrd><cmdline>{arguments}</cmdline>
  </os>"""

    def disks_xml(self, image: Image, files: Files) -> str:
        """The blank disk that all guests share, and its own."""
        swap = _disk_xml(files.disk, "vdb", "") if self.swap_mib else ""
        return _disk_xml(image.blank, "vda", "<readonly/><shareable/>") + swap

    def _balloon_xml(self) -> str:
        period = f"<stats period='{self.stats_period_s}'/>" if self.stats_period_s and self.balloon != "none" else ""
        reporting = " freePageReporting='on'" if self.free_page_reporting else ""
        return f"<memballoon model='{self.balloon}'{reporting}>{period}</memballoon>"


def _disk_xml(path: Path, target: str, flags: str) -> str:
    return (
        f"<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{path}'/>"
        f"<target dev='{target}' bus='virtio'/>{flags}</disk>"
    )
