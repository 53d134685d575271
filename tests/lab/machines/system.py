# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the machines boot: a suite's own system with libvirt, QEMU and sshd on a disk, its kernel and initrd beside it.

It is made once a suite, and again when its parts change. Its machines lie over it by overlays.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping

from .. import machine

REPOSITORY = Path(__file__).resolve().parents[3]
DIRECTORY = Path(os.environ.get("KVMSCHED_MACHINES", REPOSITORY / ".build/machines"))
SUITES = ("bookworm", "trixie")
PACKAGES = (
    *("systemd-sysv", "udev", "dbus", "kmod", "openssh-server", "iproute2", "procps", "linux-image-cloud-amd64"),
    *("libvirt-daemon-system", "libvirt-clients", "qemu-system-x86", "seabios", "ipxe-qemu", "numactl"),
    *("python3-libvirt", "python3-jsonschema", "python3-systemd", "python3-yaml", "python3-prometheus-client"),
)
# The first card leads to this process alone, the second one to the other machines.
CARD = "[Match]\nName=eth0\n[Network]\nAddress=10.0.2.15/24\nLinkLocalAddressing=no\n"
FILES = {
    "etc/fstab": "/dev/vda / ext4 defaults,noatime 0 1\n",
    "etc/modules-load.d/kvm.conf": "kvm_amd\n",  # Debian 13 does not load it by itself
    "etc/systemd/network/10-eth0.network": CARD,
    "etc/default/libvirt-guests": "ON_SHUTDOWN=shutdown\nSHUTDOWN_TIMEOUT=1\n",  # the lab's guests heed no power button
    "etc/default/libvirtd": "LIBVIRTD_ARGS=\n",  # it stays, where nobody asks: its start takes long there
}
FILES_BEFORE_PACKAGES = {  # the kernel's makes its initrd by them
    "etc/initramfs-tools/conf.d/lab": "MODULES=list\n",
    "usr/share/initramfs-tools/modules.d/lab": "virtio_pci\nvirtio_blk\next4\ncrc32c\n",  # the direct way to the disk
}
ENABLED = ("systemd-networkd", "ssh")
MASKED = ("systemd-networkd-wait-online.service", "apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer")
DISK_GIB = 8  # sparse


@dataclass(frozen=True)
class System:
    """The files of a suite: ``key`` opens its root by ssh, ``mark`` names what it was made of."""

    root: Path
    kernel: Path
    initrd: Path
    key: Path
    mark: str


def build(suite: str, say: machine.Say = machine.quiet) -> System:
    """Make the system of a suite, unless one of the same parts is there; the lab's lock must be held."""
    if suite not in SUITES:
        raise ValueError(f"{suite!r} is no suite for a machine: {', '.join(SUITES)}")
    parts = json.dumps([PACKAGES, FILES, FILES_BEFORE_PACKAGES, ENABLED, MASKED, DISK_GIB])
    done = DIRECTORY / f"{suite}-{hashlib.sha256(parts.encode()).hexdigest()[:12]}"
    if not done.exists():
        say(f"making the machines' system, {suite} (once, some minutes)")
        new = DIRECTORY / f"{suite}.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        _make(suite, new)
        for old in DIRECTORY.glob(f"{suite}-*"):
            shutil.rmtree(old)
        new.rename(done)
    return System(done / "root.ext4", done / "vmlinuz", done / "initrd.img", done / "key", done.name)


def _make(suite: str, directory: Path) -> None:
    tree, before, after = (directory / part for part in ("tree", "before", "after"))
    machine.quietly(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / "key")])
    _write(before, FILES_BEFORE_PACKAGES)
    _write(after, {**FILES, "root/.ssh/authorized_keys": (directory / "key.pub").read_text(encoding="utf-8")})
    hooks = [
        f'--essential-hook=cp --recursive {before}/. "$1"',
        f'--customize-hook=cp --recursive {after}/. "$1" && chmod 700 "$1"/root',
        f'--customize-hook=chroot "$1" systemctl enable {" ".join(ENABLED)}',
        f'--customize-hook=chroot "$1" systemctl mask {" ".join(MASKED)}',
        # What each machine has from its kernel's arguments.
        '--customize-hook=rm --force "$1"/etc/machine-id "$1"/etc/hostname',
    ]
    include = f"--include={','.join(PACKAGES)}"
    # Its mounts end with it, whatever ends it: else the next try would delete what is below them.
    apart = ["unshare", "--mount", "--propagation", "private"]
    machine.quietly([*apart, "mmdebstrap", "--quiet", "--variant=minbase", include, *hooks, suite, str(tree)])
    for name in ("vmlinuz", "initrd.img"):
        shutil.copyfile(tree / name, directory / name)
    machine.quietly(["mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(directory / "root.ext4"), f"{DISK_GIB}G"])
    for part in (tree, before, after):
        shutil.rmtree(part)


def _write(directory: Path, texts: Mapping[str, str]) -> None:
    for name, text in texts.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
