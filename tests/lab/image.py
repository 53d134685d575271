# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the guests boot: the distribution's kernel, an initramfs around init.c, and a blank disk.

They are built once into a directory that libvirt's QEMU user can reach, and again when the kernel or
init.c changed.
"""

from __future__ import annotations

import lzma
import os
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("init.c")
MODULES = ("virtio_pci", "virtio_blk", "virtio_balloon")
UNPACKERS = {b"\x02\x21\x4c\x18": "lz4", b"\x28\xb5\x2f\xfd": "zstd", b"\x1f\x8b": "gzip", b"\xfd7zXZ": "xz"}
BLANK_MIB = 8192  # sparse: what guests read through their page cache


@dataclass(frozen=True)
class Image:
    """The files of a guest: ``blank`` is the disk that all of them share, read-only."""

    kernel: Path
    initramfs: Path
    blank: Path


def build(directory: Path) -> Image:
    """Build what is missing or older than its source, and return it."""
    version, kernel = newest_kernel()
    image = Image(directory / f"vmlinuz-{version}", directory / f"initramfs-{version}", directory / "blank.img")
    if not image.kernel.exists():
        shutil.copyfile(kernel, image.kernel)
    if not image.initramfs.exists() or image.initramfs.stat().st_mtime < _source_mtime():
        write(image.initramfs, _initramfs(version, directory))
    if not image.blank.exists():
        image.blank.touch()
        os.truncate(image.blank, BLANK_MIB << 20)
    for path in (image.kernel, image.initramfs, image.blank):
        path.chmod(0o644)
    return image


def newest_kernel() -> tuple[str, Path]:
    """Version and file of the newest installed kernel that has its modules beside it, small flavours first."""
    kernels = [path for path in Path("/boot").glob("vmlinuz-*") if (Path("/lib/modules") / _version(path)).is_dir()]
    if not kernels:
        raise RuntimeError("no kernel in /boot with modules in /lib/modules: is a linux-image package installed?")
    best = max(kernels, key=lambda path: (_version(path).endswith(("cloud-amd64", "kvm")), path.stat().st_mtime))
    return _version(best), best


def _version(kernel: Path) -> str:
    return kernel.name.partition("-")[2]


def _source_mtime() -> float:
    return max(SOURCE.stat().st_mtime, Path(__file__).stat().st_mtime)


def write(path: Path, content: bytes) -> None:
    """Replace *path* at once, so that guests which boot meanwhile see the old or the new file."""
    new = path.with_suffix(".new")
    new.write_bytes(content)
    new.rename(path)


def unpacked_kernel(vmlinuz: bytes) -> bytes:
    """The ELF file within a bzImage; the fields are those of the kernel's boot protocol."""
    setup_sectors = vmlinuz[0x1F1]
    offset, length = struct.unpack_from("<II", vmlinuz, 0x248)
    begin = (setup_sectors + 1) * 512 + offset
    packed = vmlinuz[begin : begin + length - 4]  # then comes the size of what it holds
    for magic, tool in UNPACKERS.items():
        if packed.startswith(magic):
            # lz4 objects to what comes after its end.
            unpacked = subprocess.run([tool, "-dc"], input=packed, stdout=subprocess.PIPE, check=True).stdout
            if unpacked.startswith(b"\x7fELF"):
                return unpacked
    raise RuntimeError("the kernel is packed in a way that is not known here")


def _initramfs(version: str, directory: Path) -> bytes:
    program = directory / "init"
    subprocess.run(["gcc", "-O2", "-static", "-o", str(program), str(SOURCE)], check=True)
    files = {"init": program.read_bytes()}
    for number, module in enumerate(_modules(Path("/lib/modules") / version)):
        files[f"modules/{number:02}.ko"] = _unpacked(module)
    return _cpio(("dev", "proc", "sys", "modules"), files)


def _modules(directory: Path) -> list[Path]:
    """The files of MODULES and of what they need, in loading order; those built into the kernel are left out."""
    needs = {}
    for line in (directory / "modules.dep").read_text(encoding="utf-8").splitlines():
        module, _colon, others = line.partition(":")
        needs[module] = others.split()
    order: list[str] = []
    for name in MODULES:
        for module, needed in needs.items():
            if Path(module).name.partition(".")[0] == name:
                order += [*reversed(needed), module]
    return [directory / module for module in dict.fromkeys(order)]


def _unpacked(module: Path) -> bytes:
    content = module.read_bytes()
    if module.suffix == ".xz":
        return lzma.decompress(content)
    if module.suffix == ".zst":
        return subprocess.run(["zstd", "-dc"], input=content, check=True, stdout=subprocess.PIPE).stdout
    return content


def _cpio(directories: tuple[str, ...], files: dict[str, bytes]) -> bytes:
    """Return a cpio archive in the "newc" format of the kernel's early user space."""
    entries = [(name, 0o040755, b"") for name in directories]
    entries += [(name, 0o100755, content) for name, content in files.items()]
    entries += [("TRAILER!!!", 0, b"")]
    return b"".join(_cpio_entry(number, *entry) for number, entry in enumerate(entries, 1))


def _cpio_entry(inode: int, name: str, mode: int, content: bytes) -> bytes:
    fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
    return _padded(head) + _padded(content)


def _padded(content: bytes) -> bytes:
    return content + b"\0" * (-len(content) % 4)
