# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the host's own files say of its pCPUs, of its memory, and of that of a QEMU process."""

from __future__ import annotations

from typing import Optional

import pytest
from kvmsched import procfs
from kvmsched.model import Cell, HostMemory

MEMINFO = "MemTotal:       65011712 kB\nMemFree:         102400 kB\nMemAvailable:     734003 kB\n"
CPUS = "/sys/devices/system/cpu"
GIB = 1024 * 1024


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A host's files by path."""
    made_up: dict[str, str] = {}
    monkeypatch.setattr(procfs, "_read", made_up.get)
    monkeypatch.setattr(procfs, "_PAGE_KIB", 4)
    return made_up


def test_what_a_kernel_does_not_tell_is_not_known(files: dict[str, str]) -> None:
    assert procfs.memory() is None
    files["/proc/meminfo"] = MEMINFO
    assert procfs.memory() == HostMemory(65011712, 734003)


def test_huge_pages_are_no_part_of_what_a_host_has(files: dict[str, str]) -> None:
    """They serve only who asks for them: a share of them would be a reserve that nothing can fill."""
    files["/proc/meminfo"] = (
        f"{MEMINFO}HugePages_Total:      20\nHugepagesize:    1048576 kB\nHugetlb:        20971520 kB\n"
    )
    assert procfs.memory() == HostMemory(65011712 - 20 * GIB, 734003)


def test_pressure_and_host_swap(files: dict[str, str]) -> None:
    files["/proc/meminfo"] = MEMINFO
    files["/proc/pressure/memory"] = "some avg10=1.50 avg60=0.00 total=1\nfull avg10=0.25 avg60=0.00 total=1\n"
    files["/proc/vmstat"] = "nr_free_pages 1\npswpin 300\npswpout 5\n"
    assert procfs.memory() == HostMemory(65011712, 734003, 1.5, 0.25, swap_in_kib=1200)


@pytest.mark.parametrize(
    ("mode", "most_missing", "fills"),
    [
        ("always [madvise] never", "511", True),
        ("[always] madvise never", "1", True),
        ("always [madvise] never", "0", False),
        ("always madvise [never]", "511", False),
        (None, None, False),
    ],
)
def test_khugepaged_fills_what_balloons_took_unless_told_otherwise(
    files: dict[str, str], mode: Optional[str], most_missing: Optional[str], fills: bool
) -> None:
    files["/proc/meminfo"] = MEMINFO
    if mode and most_missing:
        files["/sys/kernel/mm/transparent_hugepage/enabled"] = f"{mode}\n"
        files["/sys/kernel/mm/transparent_hugepage/khugepaged/max_ptes_none"] = f"{most_missing}\n"
    memory = procfs.memory()
    assert memory and memory.fills_holes is fills


def arcstats(**gib: int) -> str:
    lines = [f"{name:31s} 4    {value * GIB * 1024}" for name, value in gib.items()]
    return "\n".join(["9 1 0x01 147 39984 1 2", "name                            type data", *lines, ""])


@pytest.mark.parametrize(
    ("stats", "arc_gib"),
    [
        ({"size": 40, "c_min": 2}, 38),
        ({"size": 40, "c_min": 2, "mru_evictable_data": 5, "mru_evictable_metadata": 1, "mfu_evictable_data": 4}, 10),
        ({"size": 40, "c_min": 2, "mru_evictable_data": 90}, 38),
        ({"size": 40, "c_min": 2, "mru_evictable_data": 0, "mfu_evictable_data": 0}, 0),
        ({"size": 1, "c_min": 2}, 0),
        ({"size": 40}, None),
    ],
)
def test_the_zfs_cache_gives_back_what_is_evictable_above_its_least(
    files: dict[str, str], stats: dict[str, int], arc_gib: Optional[int]
) -> None:
    files["/proc/meminfo"] = MEMINFO
    files["/proc/spl/kstat/zfs/arcstats"] = arcstats(**stats)
    memory = procfs.memory()
    assert memory and memory.arc_kib == (None if arc_gib is None else arc_gib * GIB)


NODE = """
Node 1 MemTotal:       67108864 kB
Node 1 MemFree:           40960 kB
Node 1 Active(anon):        500 kB
Node 1 Active(file):      20000 kB
Node 1 Inactive(file):    30000 kB
Node 1 Dirty:              1000 kB
Node 1 Writeback:           200 kB
Node 1 Mapped:             3000 kB
Node 1 SReclaimable:       7000 kB
"""
ZONES = """Node 0, zone      DMA
  per-node stats
      nr_inactive_anon 1
  pages free     3840
        min      10
        low      55
        high     100
Node 1, zone   Normal
  pages free     10240
        min      10
        low      200
Node 1, zone  Movable
  pages free     0
        low      32
"""


def test_of_a_cell_what_the_kernel_could_free_counts_beside_what_is_free(files: dict[str, str]) -> None:
    files.update({"/sys/devices/system/node/node1/meminfo": NODE, "/proc/zoneinfo": ZONES})
    cell = Cell(1, frozenset({1}), 67108864)
    (told,) = procfs.cells_memory([cell], bound=True)
    assert told == Cell(1, frozenset({1}), 67108864, free_kib=40960, low_kib=928, clean_cache_kib=45800, slab_kib=7000)


def test_watermarks_are_read_only_where_a_guest_is_bound_to_cells(files: dict[str, str]) -> None:
    files.update({"/sys/devices/system/node/node1/meminfo": NODE, "/proc/zoneinfo": ZONES})
    (told,) = procfs.cells_memory([Cell(1)], bound=False)
    assert (told.free_kib, told.low_kib) == (40960, None)


def test_a_cell_that_cannot_be_read_is_not_known(files: dict[str, str]) -> None:
    assert procfs.cells_memory([Cell(7)], bound=True) == (Cell(7),)


def test_what_mapped_and_dirty_pages_leave_of_a_cells_cache_is_never_negative(files: dict[str, str]) -> None:
    files["/sys/devices/system/node/node1/meminfo"] = NODE.replace("3000 kB", "90000 kB")
    assert procfs.cells_memory([Cell(1)], bound=False)[0].clean_cache_kib == 0


@pytest.mark.parametrize(
    ("status", "told"),
    [
        ("Name:\tqemu\nVmLck:\t 1352784 kB\nVmPin:\t 16 kB\nVmRSS:\t 900 kB\nVmSwap:\t 7 kB\n", (900, 1352800, 7)),
        ("Name:\tqemu\nVmRSS:\t 900 kB\n", (900, None, None)),
        ("Name:\tqemu\n", (None, None, None)),
        (None, (None, None, None)),
    ],
)
def test_what_a_process_holds(files: dict[str, str], status: Optional[str], told: object) -> None:
    if status is not None:
        files["/proc/42/status"] = status
    assert procfs.Process(42, 0.0, False).memory == told


def test_isolated_are_those_that_get_no_work_by_themselves(files: dict[str, str]) -> None:
    files.update(
        {
            f"{CPUS}/isolated": "2-3\n",
            f"{CPUS}/nohz_full": "2-5\n",
            "/sys/fs/cgroup/cpuset.cpus.isolated": "6-7\n",
        }
    )
    assert procfs.isolated() == {2, 3, 6, 7}
    assert procfs.nohz_full() == {2, 3, 4, 5}
    files.clear()
    files.update({f"{CPUS}/isolated": "\n", f"{CPUS}/nohz_full": "(null)\n"})
    assert procfs.isolated() == procfs.nohz_full() == frozenset()


def test_classes_of_pcpus_only_where_the_kernel_tells_them(files: dict[str, str]) -> None:
    online = frozenset(range(4))
    files.clear()
    files.update({f"{CPUS}/cpu{cpu}/cpu_capacity": "1024\n" for cpu in online})
    assert procfs.pcpu_kinds(online) == {}
    files.clear()
    files.update({f"{CPUS}/cpu{cpu}/cpu_capacity": "446\n" if cpu < 2 else "1024\n" for cpu in online})
    assert procfs.pcpu_kinds(online)[0] == ("capacity-446", 446)
    assert procfs.pcpu_kinds(online)[3] == ("capacity-1024", 1024)
    files.clear()
    files.update({"/sys/devices/cpu_core/cpus": "0-1\n", "/sys/devices/cpu_atom/cpus": "2-9\n"})
    assert {cpu: kind.kind for cpu, kind in procfs.pcpu_kinds(online).items()} == {
        **dict.fromkeys((0, 1), "cpu_core"),
        **dict.fromkeys((2, 3), "cpu_atom"),
    }
    files.clear()
    files.update({f"{CPUS}/cpu{cpu}/acpi_cppc/highest_perf": f"{200 + cpu}\n" for cpu in online})
    assert procfs.pcpu_kinds(online) == {}, "ranks of a boost are no classes"
