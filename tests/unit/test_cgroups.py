# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which control groups hold a QEMU process, and what they limit, on hosts of each layout."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Optional

import pytest
from kvmsched import cgroups
from kvmsched.model import Room

PID = 42
V2 = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
# OpenRC's hybrid layout: version 1 counts memory, version 2 has a place of its own.
HYBRID = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "34 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 none rw\n"
)
# The same where version 1 counts nothing.
UNIFIED_ELSEWHERE = "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 none rw\n"
SCOPE = "/machine.slice/machine-qemu.scope"
GIB = 1024 * 1024


class Files(dict[str, str]):
    """A host's files by path."""

    def groups(self) -> cgroups.Groups:
        return cgroups.of_process(PID)


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Iterator[Files]:
    made_up = Files()
    monkeypatch.setattr(cgroups, "_read", made_up.get)
    cgroups._mounts.cache_clear()
    yield made_up
    cgroups._mounts.cache_clear()


def host(files: Files, mountinfo: str, groups: str) -> None:
    files.update({"/proc/self/mountinfo": mountinfo, f"/proc/{PID}/cgroup": groups})


@pytest.mark.parametrize(
    ("mountinfo", "groups", "root"),
    [
        (V2, f"0::{SCOPE}/libvirt/emulator\n", "/sys/fs/cgroup"),
        (UNIFIED_ELSEWHERE, f"0::{SCOPE}/libvirt/emulator\n", "/sys/fs/cgroup/unified"),
        (HYBRID, f"4:memory:{SCOPE}/libvirt/emulator\n0::/\n", "/sys/fs/cgroup/memory"),
        (V2.replace("0:26 / ", "0:26 /pod "), f"0::/pod{SCOPE}/libvirt/emulator\n", "/sys/fs/cgroup"),
    ],
)
def test_groups_are_where_the_hierarchy_is_mounted(files: Files, mountinfo: str, groups: str, root: str) -> None:
    host(files, mountinfo, groups)
    assert files.groups().machine == (f"{root}{SCOPE}/libvirt", f"{root}{SCOPE}")
    assert files.groups().above == (f"{root}/machine.slice",)


@pytest.mark.parametrize("inside", ["", "/emulator"])
def test_where_libvirt_makes_the_group_itself_it_is_the_machines_own(files: Files, inside: str) -> None:
    host(files, V2, f"0::/machine/qemu-1-db.libvirt-qemu{inside}\n")
    assert files.groups().machine == ("/sys/fs/cgroup/machine/qemu-1-db.libvirt-qemu",)
    assert files.groups().above == ("/sys/fs/cgroup/machine",)


@pytest.mark.parametrize(
    "path",
    [
        "/virtqemud.service",  # cgroup_controllers = []
        "/virtqemud.service/emulator",
        "/session-3.scope",  # the daemon of qemu:///session, from a login
        "/libvirt",
    ],
)
def test_a_group_that_is_not_made_for_one_machine_is_shared_even_by_one(files: Files, path: str) -> None:
    """A second QEMU may start in it at any time: what it may have is a room, and no machine's own limit."""
    host(files, V2, f"0::{path}\n")
    group = "/sys/fs/cgroup" + path.removesuffix("/emulator")
    files.update({f"{group}/memory.max": f"{8 * GIB * 1024}\n", f"{group}/cpu.weight": "250\n"})
    groups = files.groups()
    assert (groups.machine, groups.max_kib, groups.high_kib, groups.cpu_weight) == ((), None, None, None)
    assert groups.rooms == (group,)


def test_a_process_in_the_root_is_in_no_group(files: Files) -> None:
    host(files, V2, "0::/\n")
    assert files.groups().machine == files.groups().above == ()


def test_what_cannot_be_read_limits_nothing(files: Files) -> None:
    assert files.groups() == cgroups.Groups()
    assert (files.groups().cpus, files.groups().max_kib, files.groups().high_kib, files.groups().rooms) == (
        None,
    ) * 3 + ((),)


def test_a_group_beside_what_is_mounted_is_not_in_it(files: Files) -> None:
    host(files, "34 31 0:31 /machine /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", f"0::{SCOPE}/libvirt/emulator\n")
    assert not cgroups.of_process(PID).machine and cgroups.of_main_thread(PID) is None


def test_a_part_of_the_hierarchy_that_is_mounted_elsewhere_too_says_nothing(files: Files) -> None:
    whole = "34 31 0:31 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    part = "99 31 0:31 /lxc/web /srv/web/cgroup rw - cgroup2 cgroup2 rw\n"
    for mountinfo in (whole + part, part + whole):
        cgroups._mounts.cache_clear()
        host(files, mountinfo, f"0::{SCOPE}/libvirt/emulator\n")
        assert cgroups.of_process(PID).machine[0] == f"/sys/fs/cgroup{SCOPE}/libvirt"


@pytest.mark.parametrize(
    ("confined", "cpus"),
    [
        (f"/sys/fs/cgroup{SCOPE}/libvirt", {2, 3}),
        (f"/sys/fs/cgroup{SCOPE}", {2, 3}),
        ("/sys/fs/cgroup/machine.slice", {2, 3}),
        ("/sys/fs/cgroup", {2, 3}),  # what partitions leave
        ("/sys/fs/cgroup/other.slice", None),
    ],
)
def test_a_cpuset_above_the_machines_group_confines_it(files: Files, confined: str, cpus: Optional[set[int]]) -> None:
    host(files, V2, f"0::{SCOPE}/libvirt/emulator\n")
    files[f"{confined}/cpuset.cpus.effective"] = "2-3\n"
    assert files.groups().cpus == cpus


def test_a_cpuset_of_version_1_counts_beside_the_unified_hierarchy(files: Files) -> None:
    host(files, HYBRID, f"3:cpuset:{SCOPE}/libvirt/emulator\n4:memory:/\n0::{SCOPE}/libvirt/emulator\n")
    files[f"/sys/fs/cgroup/cpuset{SCOPE}/libvirt/cpuset.effective_cpus"] = "1\n"
    assert files.groups().cpus == {1}


@pytest.mark.parametrize(
    ("group", "text", "weight"),
    [
        (SCOPE, "250\n", 250),
        (f"{SCOPE}/libvirt", "250\n", None),  # of libvirt's threads among themselves
        ("/machine.slice", "250\n", None),  # without one of its own, its threads compete one by one
    ],
)
def test_a_machines_weight_is_that_of_its_own_group(
    files: Files, group: str, text: str, weight: Optional[float]
) -> None:
    host(files, V2, f"0::{SCOPE}/libvirt/emulator\n")
    files[f"/sys/fs/cgroup{group}/cpu.weight"] = text
    assert files.groups().cpu_weight == weight
    assert cgroups.of_main_thread(PID) == f"/sys/fs/cgroup{SCOPE}/libvirt/emulator"


def test_shares_of_version_1_are_weights_in_another_scale(files: Files) -> None:
    mountinfo = "34 31 0:31 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    host(files, mountinfo, f"3:cpu,cpuacct:{SCOPE}/emulator\n")
    files[f"/sys/fs/cgroup/cpu,cpuacct{SCOPE}/cpu.shares"] = "2048\n"
    assert files.groups().cpu_weight == 200 and cgroups.of_main_thread(PID) is None


def test_the_machines_own_limits_are_those_of_libvirt_and_of_systemd(files: Files) -> None:
    host(files, V2, f"0::{SCOPE}/libvirt/emulator\n")
    libvirt, systemd = files.groups().machine
    files.update({f"{libvirt}/memory.max": f"{8 * GIB * 1024}\n", f"{libvirt}/memory.high": f"{5 * GIB * 1024}\n"})
    files.update({f"{systemd}/memory.max": "max\n", f"{systemd}/memory.high": f"{4 * GIB * 1024}\n"})
    assert (files.groups().max_kib, files.groups().high_kib) == (8 * GIB, 4 * GIB)


@pytest.mark.parametrize(
    ("limits", "shared"),
    [({"memory.max": "max\n", "memory.high": "max\n"}, 0), ({"memory.max": "4096\n"}, 1), ({"memory.high": "4096"}, 1)],
)
def test_a_group_around_with_either_limit_is_a_room(files: Files, limits: dict[str, str], shared: int) -> None:
    host(files, V2, f"0::{SCOPE}/libvirt/emulator\n")
    files.update({f"/sys/fs/cgroup/machine.slice/{name}": text for name, text in limits.items()})
    assert files.groups().rooms == ("/sys/fs/cgroup/machine.slice",) * shared


@pytest.mark.parametrize(
    ("told", "room"),
    [
        ({"memory.max": "max\n", "memory.high": "max\n", "memory.current": "4096\n"}, None),
        (
            {"memory.max": "8192\n", "memory.high": "max\n", "memory.current": "6144\n", "memory.stat": "anon 1\n"},
            Room("g", 2),
        ),
        (
            {
                "memory.max": "8192\n",
                "memory.high": "7168\n",
                "memory.current": "9216\n",
                "memory.stat": "inactive_anon 9\ninactive_file 1024\nactive_file 2048\n",
            },
            Room("g", 2, 1),
        ),
        ({"memory.max": "max\n", "memory.high": "4096\n", "memory.current": "9216\n"}, Room("g", None, 0)),
        (
            {
                "memory.limit_in_bytes": "8192\n",
                "memory.usage_in_bytes": "10240\n",
                "memory.stat": "active_file 9\ntotal_inactive_file 0\ntotal_active_file 1024\n",
            },
            Room("g", 0),
        ),
        ({"memory.limit_in_bytes": "9223372036854771712\n", "memory.usage_in_bytes": "1\n"}, None),
        ({"memory.max": "8192\n"}, None),
        ({}, None),
    ],
)
def test_what_is_left_of_a_group(files: Files, told: dict[str, str], room: Optional[Room]) -> None:
    files.update({f"g/{name}": text for name, text in told.items()})
    assert cgroups.room("g") == room
