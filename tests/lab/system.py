# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the hosts boot: the distribution's own system with systemd, libvirt and sshd, made once a machine.

It has two layers. ``bare`` is a hypervisor as its operator has it; ``ready`` lies over it, with what kvmsched needs.
Hosts have no way out: the packages of ``ready`` are in a repository of files that every host carries.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from . import machine

PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "openssh-server", "iproute2", "procps", "python3", "python3-apt"),
    *("libvirt-daemon-system", "libvirt-clients", "qemu-system-x86"),
)
ADDED = ("python3-libvirt", "python3-jsonschema", "python3-systemd", "python3-prometheus-client")
REPOSITORY = "/srv/packages"
FILES = {
    "etc/apt/sources.list": f"deb [trusted=yes] file:{REPOSITORY} ./\n",
    # A host's cgroups are read-only where the outside has version 1: libvirt can't make any for guests.
    "etc/libvirt/qemu.conf": "cgroup_controllers = [ ]\n",
    # The lab's guests do not heed a power button: nobody waits for them when a host goes down.
    "etc/default/libvirt-guests": "ON_SHUTDOWN=shutdown\nSHUTDOWN_TIMEOUT=1\n",
}
ENABLED = ("systemd-networkd", "ssh")
# No address comes by DHCP, an overlay is not remounted, and nothing but the tests may hold the lock of apt.
MASKED = (
    "systemd-networkd-wait-online.service",
    "systemd-remount-fs.service",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
)


@dataclass(frozen=True)
class System:
    """The directories of both layers."""

    bare: Path
    ready: Path


def build(directory: Path, say: machine.Say = machine.quiet) -> System:
    """Make the system, unless one of the same parts is there; the lab's lock must be held."""
    suite = platform.freedesktop_os_release()["VERSION_CODENAME"]
    parts = json.dumps([suite, PACKAGES, ADDED, REPOSITORY, FILES, ENABLED, MASKED])
    done = directory / f"system-{suite}-{hashlib.sha256(parts.encode()).hexdigest()[:12]}"
    if not done.exists():
        say(f"making the hosts' system, {suite} (once)")
        new = directory / "system.new"
        shutil.rmtree(new, ignore_errors=True)
        _make_bare(suite, new / "bare")
        _make_ready(new)
        for old in directory.glob("system-*"):
            if not any(directory.glob("fleet-*")):  # whose hosts lie on it
                shutil.rmtree(old)
        new.rename(done)
    return System(done / "bare", done / "ready")


def _make_bare(suite: str, root: Path) -> None:
    root.mkdir(parents=True)
    download = f"apt-get install --yes --no-install-recommends --download-only {' '.join(ADDED)}"
    archives = '"$1"/var/cache/apt/archives'
    hooks = [
        f'chroot "$1" apt-get clean && chroot "$1" {download}',
        f'mkdir "$1"{REPOSITORY} && mv {archives}/*.deb "$1"{REPOSITORY}',
        f'chroot "$1" systemctl enable {" ".join(ENABLED)}',
        f'chroot "$1" systemctl mask {" ".join(MASKED)}',
    ]
    packages = ",".join(PACKAGES)
    machine.quietly(
        ["mmdebstrap", "--quiet", "--variant=apt", f"--include={packages}"]
        + [f"--customize-hook={hook}" for hook in hooks]
        + [suite, str(root)]
    )
    for name, text in FILES.items():
        with (root / name).open("w" if "apt" in name else "a", encoding="utf-8") as file:
            file.write(text)
    index = "\n".join(_index_entry(package) for package in sorted((root / REPOSITORY[1:]).glob("*.deb")))
    (root / REPOSITORY[1:] / "Packages").write_text(index, encoding="utf-8")


def _index_entry(package: Path) -> str:
    fields = subprocess.run(["dpkg-deb", "--field", str(package)], stdout=subprocess.PIPE, text=True, check=True).stdout
    content = package.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return f"{fields}Filename: ./{package.name}\nSize: {len(content)}\nSHA256: {digest}\n"


def _make_ready(parts: Path) -> None:
    for part in ("ready", "work", "root"):
        (parts / part).mkdir()
    overlay = f"lowerdir={parts}/bare,upperdir={parts}/ready,workdir={parts}/work"
    chroot = f"chroot {shlex.quote(f'{parts}/root')}"
    commands = [
        f"mount -t overlay overlay -o {shlex.quote(overlay)} {shlex.quote(f'{parts}/root')}",
        f"{chroot} apt-get --quiet update",
        f"DEBIAN_FRONTEND=noninteractive {chroot} apt-get install --yes --no-install-recommends {' '.join(ADDED)}",
    ]
    machine.quietly(["unshare", "--mount", "--propagation", "private", "sh", "-c", " && ".join(commands)])
    for part in ("work", "root"):
        shutil.rmtree(parts / part)
