# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest that is nothing but one vCPU's load: a boot sector in 16 MiB, so that dozens fit on a small machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .guest import Files, Guest
from .image import Image

LOAD_ADDRESS = 0x7C00
PERIOD_TICKS = 1 << 19  # of the ACPI timer (3579545 Hz), which has 24 bits: 146 ms
MESSAGE = b"\nlab 0 ready\n\0"
FLOPPY_BYTES = 1474560


def boot_sector(share: float) -> bytes:
    """Real-mode code: let a timer interrupt at 100 Hz, say that it is ready, then be busy *share* of each period."""
    busy_ticks = round(share * PERIOD_TICKS)
    code = bytes.fromhex(
        "fa 31c0 8ed8 8ed0 bc007c"  # cli; ds = ss = 0; sp = 0x7c00
        "b034 e643 b09c e640 b02e e640 fb"  # timer 0 divides 1193182 Hz by 0x2e9c; sti
        "be0000 baf803"  # si = message (filled in below); dx = first serial port
        "ac 84c0 7403 ee ebf8"  # print bytes up to the 0
        f"ba0806 66ed 6625{(PERIOD_TICKS - 1).to_bytes(4, 'little').hex()}"  # eax = ACPI timer % PERIOD_TICKS
        f"663d{busy_ticks.to_bytes(4, 'little').hex()} 72ed"  # busy: look again
        "f4 ebea"  # else sleep until the next interrupt
    )
    message = (LOAD_ADDRESS + len(code)).to_bytes(2, "little")
    code = code.replace(bytes.fromhex("be0000"), b"\xbe" + message)
    return (code + MESSAGE).ljust(510, b"\0") + b"\x55\xaa"


@dataclass(frozen=True, eq=False)
class TinyGuest(Guest):
    """One vCPU with a fixed share, no memory statistics, no commands; of Guest's fields it uses
    ``name``, ``cpu``, ``pin``, ``cpuset``, ``cputune``, ``persistent``, ``metadata`` and ``extra``.
    """

    memory_mib: int = 16
    balloon: str = "none"

    def memory_commands(self) -> list[str]:
        return []

    def cpu_commands(self) -> list[str]:
        return []

    def write_disk(self, disk: Path) -> None:
        disk.write_bytes(boot_sector(self.cpu[0]).ljust(FLOPPY_BYTES, b"\0"))

    def boot_xml(self, image: Image, hypervisor: str) -> str:
        return "<os><type arch='x86_64' machine='pc'>hvm</type><boot dev='fd'/></os>"

    def disks_xml(self, image: Image, files: Files) -> str:
        return (
            f"<disk type='file' device='floppy'><driver name='qemu' type='raw'/><source file='{files.disk}'/>"
            "<target dev='fda' bus='fdc'/><readonly/></disk>"
        )
