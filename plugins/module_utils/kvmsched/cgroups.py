# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The control groups of a QEMU process, and what they limit: of version 1, of version 2, or of both side by side."""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass
from typing import NamedTuple, Optional, Sequence

from .model import Room
from .procfs import _read
from .units import CpuSet, parse_cpuset


@dataclass(frozen=True)
class Groups:
    """Directories, the innermost first and without the root, which limits no memory.

    ``machine`` is the machine's own group and the one that libvirt makes in it, ``above`` those around it, of the
    hierarchy that counts memory. ``cpusets`` are both of that which confines to pCPUs, and its root, which lacks the
    pCPUs of partitions. ``cpu`` is the machine's own one of that which shares pCPUs. A machine may have none of its
    own: it is then in that of its daemon, with others.
    """

    machine: tuple[str, ...] = ()
    above: tuple[str, ...] = ()
    cpusets: tuple[str, ...] = ()
    cpu: Optional[str] = None

    @property
    def cpus(self) -> Optional[CpuSet]:
        """Return where its threads may run: a group without a cpuset of its own has that of the next one above."""
        for group in self.cpusets:
            for name in ("cpuset.cpus.effective", "cpuset.effective_cpus"):
                text = (_read(os.path.join(group, name)) or "").strip()
                if text:
                    return parse_cpuset(text)
        return None

    @property
    def cpu_weight(self) -> Optional[float]:
        """Return the weight of the machine beside others, 100 by default; None where its group has none."""
        for name, scale in (("cpu.weight", 1.0), ("cpu.shares", 100 / 1024)):
            text = (_read(os.path.join(self.cpu, name)) or "").strip() if self.cpu else ""
            if text.isdigit():
                return int(text) * scale
        return None

    @property
    def max_kib(self) -> Optional[int]:
        """Return what the process may have at most, or is killed."""
        limits = (_limits(group).max_kib for group in self.machine)
        return min((kib for kib in limits if kib is not None), default=None)

    @property
    def high_kib(self) -> Optional[int]:
        """Return the size in KiB above which the kernel throttles it; None: none."""
        limits = (_limits(group).high_kib for group in self.machine)
        return min((kib for kib in limits if kib is not None), default=None)

    @property
    def rooms(self) -> tuple[str, ...]:
        """Return the groups that it shares with others and that have a memory limit."""
        return tuple(group for group in self.above if _limits(group) != _NO_LIMITS)


def of_process(pid: int) -> Groups:
    """Return the groups of a process. Their limits are read when they are asked for."""
    directories = _directories(_read(f"/proc/{pid}/cgroup") or "")
    memory = directories.get("memory") or directories.get("", [])
    own = _own(memory)
    cpusets = [group for name in ("", "cpuset") if name in directories for group in (*directories[name], _root(name))]
    shares = _own(directories.get("cpu") or directories.get("", []))
    return Groups(own, tuple(memory[len(own) :]), tuple(cpusets), shares[-1] if shares else None)


# systemd's scope of one machine, or the group that libvirt makes where there is no systemd.
_MACHINE = re.compile(r"(?:/machine-[^/]+\.scope|\.libvirt-qemu)(/libvirt)?$")


def _own(groups: Sequence[str]) -> tuple[str, ...]:
    """Return those that are made for one machine: libvirt sets a limit in the group that it makes, systemd around that.

    Their names tell that. Any other may be shared, as that of the daemon of ``qemu:///session`` is. Even where only
    one QEMU is in it now, another may start at once: its limit must not have been given away by then.
    """
    found = _MACHINE.search(groups[0]) if groups else None
    return tuple(groups[: 2 if found[1] else 1]) if found else ()


def of_main_thread(pid: int) -> Optional[str]:
    """Return the directory of the group (version 2) of a process's main thread, libvirt's "emulator"; or None."""
    lines = (_read(f"/proc/{pid}/cgroup") or "").splitlines()
    path, mount = next((line[3:] for line in lines if line.startswith("0::")), ""), _mounts().get("")
    inside = mount.upwards(path) if mount else []
    return inside[0] if inside else None


def _root(controller: str) -> str:
    return _mounts()[controller].point


def _directories(text: str) -> dict[str, list[str]]:
    """Return the machine's group and those around it, by controller ("" for the unified hierarchy).

    QEMU's threads are in sub-groups that libvirt makes (emulator, vcpuN) and narrows by itself: they say nothing.
    """
    found = {}
    for line in text.splitlines():
        _hierarchy, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            mount = _mounts().get(controller)
            if mount is not None and mount.holds(path):
                found[controller] = mount.upwards(path.removesuffix("/emulator"))
    return found


class _Mount(NamedTuple):
    """Where a hierarchy is mounted, and which of its groups stands there."""

    point: str
    root: str

    def holds(self, path: str) -> bool:
        return path == self.root or path.startswith(self.root + "/")

    def upwards(self, path: str) -> list[str]:
        """Return the directories of the group *path* and of those around it; none where it is mounted elsewhere."""
        inside = path[len(self.root) :].strip("/") if self.holds(path) else ""
        parts = inside.split("/") if inside else []
        return [os.path.join(self.point, *parts[:depth]) for depth in range(len(parts), 0, -1)]


@functools.lru_cache(maxsize=1)
def _mounts() -> dict[str, _Mount]:
    """Return the mount of each controller (proc(5), mountinfo); hosts with both versions have a place for each."""
    mounts: dict[str, _Mount] = {}
    for line in (_read("/proc/self/mountinfo") or "").splitlines():
        here, _sep, what = line.partition(" - ")
        _id, _parent, _device, root, point, *_rest = here.split(" ")
        kind, _source, options = what.split(" ", 2)
        mount = _Mount(point, root.rstrip("/"))
        for name in {"cgroup2": [""], "cgroup": options.split(",")}.get(kind, []):
            # A part of the hierarchy may be mounted elsewhere, too, as for a container: the most of it counts.
            if name not in mounts or len(mount.root) <= len(mounts[name].root):
                mounts[name] = mount
    return mounts


# ---------------------------------------------------------------- memory


class _Limits(NamedTuple):
    max_kib: Optional[int] = None
    high_kib: Optional[int] = None


_NO_LIMITS = _Limits()


class _Files(NamedTuple):
    """A group's memory limits, what is charged to it, and what of that is cache; of one version."""

    max: str
    high: Optional[str]
    used: str
    cache: str


_V2 = _Files("memory.max", "memory.high", "memory.current", r"^(?:in)?active_file (\d+)")
_V1 = _Files("memory.limit_in_bytes", None, "memory.usage_in_bytes", r"^total_(?:in)?active_file (\d+)")


def _limits(group: str) -> _Limits:
    for files in (_V2, _V1):
        limits = _Limits(_bytes(group, files.max), _bytes(group, files.high) if files.high else None)
        if limits != _NO_LIMITS:
            return limits
    return _NO_LIMITS


def _bytes(group: str, name: str) -> Optional[int]:
    """Return a limit in KiB."""
    text = (_read(os.path.join(group, name)) or "").strip()
    # Version 1 writes "no limit" as the largest multiple of a page that fits a long.
    return int(text) // 1024 if text.isdigit() and int(text) < 2**62 else None


def room(group: str) -> Optional[Room]:
    """Return what is left of a group's limits, once its caches are dropped; None where it has none."""
    limits = _limits(group)
    for files in (_V2, _V1):
        used_kib = _bytes(group, files.used)
        if used_kib is not None and limits != _NO_LIMITS:
            cached = re.findall(files.cache, _read(os.path.join(group, "memory.stat")) or "", re.MULTILINE)
            used_kib -= sum(map(int, cached)) // 1024
            left = (None if limit_kib is None else max(0, limit_kib - used_kib) for limit_kib in limits)
            return Room(group, *left)
    return None
