# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What libvirt's XML means: topologies, definitions, the record and the owner's word."""

from __future__ import annotations

import pytest
from kvmsched.baseline import OWNER_URI, STATE_URI, encode
from kvmsched.libvirt_xml import cells_pcpus, parse_capabilities, parse_domain, parse_inactive
from kvmsched.model import Memnode, MemoryRecord, PeriodRecord, PinRecord, Record

ONLINE = frozenset(range(8))

# Two cells, two threads a core, cell 1 with an offline CPU and a third cell that has memory only. Not this machine's.
CAPABILITIES = """<capabilities><host><uuid>11111111-2222-3333-4444-555555555555</uuid>
 <topology><cells num='3'>
  <cell id='0'><memory unit='KiB'>8388608</memory><distances><sibling id='0' value='10'/><sibling id='1' value='21'/>
   </distances><cpus num='4'>
    <cpu id='0' socket_id='0' die_id='0' core_id='0' siblings='0,4'/>
    <cpu id='1' socket_id='0' die_id='0' core_id='1' siblings='1,5'/>
    <cpu id='4' socket_id='0' die_id='0' core_id='0' siblings='0,4'/>
    <cpu id='5' socket_id='0' die_id='0' core_id='1' siblings='1,5'/></cpus></cell>
  <cell id='1'><memory unit='KiB'>8388608</memory><cpus num='4'>
    <cpu id='2' socket_id='1' die_id='0' core_id='0' siblings='2,6'/>
    <cpu id='3' socket_id='1' die_id='0' core_id='1' siblings='3,7'/>
    <cpu id='6' socket_id='1' die_id='0' core_id='0' siblings='2,6'/>
    <cpu id='7'/></cpus></cell>
  <cell id='2'><memory unit='KiB'>4194304</memory><cpus num='0'/></cell>
 </cells></topology>
 <cache><bank id='0' level='2' cpus='0,4'/>
  <bank id='0' level='3' cpus='0-1,4-5'/><bank id='1' level='3' cpus='2-3,6-7'/></cache>
</host></capabilities>"""


def test_topology_of_two_cells_with_threads_and_an_offline_pcpu() -> None:
    online = ONLINE - {7}
    capabilities = parse_capabilities(CAPABILITIES, online, isolated=frozenset({5, 99}))
    topology = capabilities.topology
    assert capabilities.host_uuid == "11111111-2222-3333-4444-555555555555"
    assert topology.online == online
    assert topology.isolated == {5}
    by_id = {pcpu.id: pcpu for pcpu in topology.pcpus}
    assert by_id[4].siblings == {0, 4}
    assert by_id[3].siblings == {3}, "its sibling is offline"
    assert by_id[6].llc == {2, 3, 6}
    assert (by_id[6].cell, by_id[6].socket) == (1, 1)
    assert [cell.pcpus for cell in topology.cells] == [{0, 1, 4, 5}, {2, 3, 6}, frozenset()]
    assert topology.cells[0].distances == {0: 10, 1: 21}
    assert topology.cells[2].memory_kib == 4194304


def test_a_host_that_tells_no_topology_has_flat_pcpus() -> None:
    topology = parse_capabilities("<capabilities><host/></capabilities>", frozenset({0, 2, 4}), frozenset()).topology
    assert topology.online == {0, 2, 4}
    assert all(pcpu.siblings == {pcpu.id} and pcpu.llc == {0, 2, 4} for pcpu in topology.pcpus)


DOMAIN = f"""<domain type='kvm' id='3'><name>db1</name><metadata>
  <kvmsched:policy xmlns:kvmsched="{OWNER_URI}" floor="512M" memory="grow-only"/>
  <other xmlns="urn:other">x</other></metadata>
 <memory unit='MiB'>2048</memory><currentMemory unit='KiB'>1048576</currentMemory>
 <vcpu placement='static' cpuset='0-5' current='2'>4</vcpu><iothreads>2</iothreads>
 <cputune><vcpupin vcpu='0' cpuset='1'/><vcpupin vcpu='2' cpuset='2-3'/><emulatorpin cpuset='5'/>
  <iothreadpin iothread='2' cpuset='4'/><period>50000</period><quota>25000</quota>
  <vcpusched vcpus='2-3' scheduler='fifo' priority='1'/><vcpusched vcpus='0' scheduler='batch'/></cputune>
 <numatune><memory mode='strict' nodeset='1'/></numatune>
 <memtune><hard_limit unit='KiB'>3145728</hard_limit></memtune>
 <memoryBacking><hugepages/><locked/></memoryBacking>
 <devices><hostdev mode='subsystem' type='pci'/><hostdev mode='subsystem' type='usb'/><interface type='vdpa'/>
  <memballoon model='virtio' autodeflate='on'><stats period='5'/></memballoon></devices>
 <launchSecurity type='sev'/></domain>"""


def test_a_domain_with_everything() -> None:
    domain = parse_domain(DOMAIN, ONLINE)
    assert domain.cpuset == set(range(6))
    assert domain.pins == {0: {1}, 2: {2, 3}}
    assert [(t.kind, t.id, set(t.pin)) for t in domain.threads] == [
        ("emulator", 0, {5}),
        ("iothread", 1, set(range(6))),
        ("iothread", 2, {4}),
    ]
    assert domain.vcpu_quota == 0.5
    assert domain.schedulers == {2: "fifo", 3: "fifo"}
    assert (domain.nodeset, domain.memory_cells, domain.memory_auto) == ({1}, {1}, False)
    assert (domain.maximum_kib, domain.current_kib, domain.hard_limit_kib) == (2 * 1024**2, 1024**2, 3 * 1024**2)
    assert (domain.soft_limit_kib, domain.huge_kib, domain.fixed_kib) == (None, 2 * 1024**2, 0)
    assert not domain.virtio_mem
    assert (domain.balloon_device, domain.autodeflate, domain.period_s) == (True, True, 5)
    assert domain.inhibitors == ("hostdev (VFIO)", "interface type vdpa", "hugepages", "locked", "launchSecurity")
    assert domain.owner.settings == {"floor": "512M", "memory": "grow-only"}
    assert (domain.record, domain.record_error) == (None, None)


def test_a_domain_with_nothing() -> None:
    domain = parse_domain("<domain><name>d</name><devices><memballoon model='none'/></devices></domain>", ONLINE)
    assert domain.pins == {} and domain.cpuset is None and domain.nodeset is None
    assert domain.threads[0].pin == ONLINE
    assert not domain.balloon_device
    assert domain.inhibitors == ()


@pytest.mark.parametrize(
    ("numatune", "nodeset", "cells", "auto"),
    [
        ("<memory mode='preferred' nodeset='1'/>", {1}, None, False),
        ("<memory mode='restrictive' nodeset='0-1'/>", {0, 1}, {0, 1}, False),
        ("<memory mode='strict' placement='auto'/>", None, None, True),
        ("<memory mode='interleave' placement='auto'/>", None, None, False),
        ("<memnode cellid='0' nodeset='1'/><memnode cellid='1' mode='strict' nodeset='3'/>", {1, 3}, {1, 3}, False),
        ("<memory mode='preferred' nodeset='0'/><memnode cellid='0' mode='strict' nodeset='1'/>", {0, 1}, {1}, False),
    ],
)
def test_cells_of_the_whole_domain_and_of_its_own_cells(
    numatune: str, nodeset: object, cells: object, auto: bool
) -> None:
    domain = parse_domain(f"<domain><numatune>{numatune}</numatune></domain>", ONLINE)
    assert (domain.nodeset, domain.memory_cells, domain.memory_auto) == (nodeset, cells, auto)


def test_virtio_mem_is_seen() -> None:
    text = "<domain><devices><memory model='dimm'/><memory model='virtio-mem'/></devices></domain>"
    assert parse_domain(text, ONLINE).virtio_mem
    assert not parse_domain(text.replace("virtio-mem", "dimm"), ONLINE).virtio_mem


def devices(text: str) -> str:
    return f"<domain><devices>{text}</devices></domain>"


@pytest.mark.parametrize(
    ("text", "inhibitors"),
    [
        (devices("<disk type='nvme' device='disk'><source type='pci'/></disk>"), ("disk type nvme",)),
        (devices("<disk type='file'><backingStore type='nvme'/></disk>"), ("disk type nvme",)),
        (
            devices("<disk type='file'><backingStore type='file'><backingStore type='nvme'/></backingStore></disk>"),
            ("disk type nvme",),
        ),
        (devices("<disk type='file'><mirror type='nvme' job='copy'/></disk>"), ("disk type nvme",)),
        (devices("<disk type='vhostvdpa'><source dev='/dev/vhost-vdpa-0'/></disk>"), ("disk type vhostvdpa",)),
        (devices("<disk type='file'><driver type='raw'/><target bus='virtio'/></disk>"), ()),
        (devices("<hostdev mode='subsystem' type='mdev' model='vfio-pci'/>"), ("hostdev (VFIO)",)),
        (devices("<hostdev mode='subsystem' type='mdev' model='vfio-ap'/>"), ()),
        (devices("<hostdev mode='subsystem' type='mdev' model='vfio-ccw'/>"), ()),
    ],
)
def test_devices_that_pin_the_guests_memory(text: str, inhibitors: tuple[str, ...]) -> None:
    assert parse_domain(text, ONLINE).inhibitors == inhibitors


@pytest.mark.parametrize(
    ("argument", "inhibitors"),
    [
        ("vfio-pci,host=0000:01:00.0", ("qemu:commandline vfio-pci",)),
        ("{&quot;driver&quot;:&quot;vfio-pci&quot;}", ("qemu:commandline vfio-pci",)),
        ("mem-lock=on", ("qemu:commandline mem-lock=on",)),
        ("mem-lock=on-fault", ("qemu:commandline mem-lock=on",)),
        ("mem-lock=off,cpu-pm=on", ()),
        ("virtio-rng-pci", ()),
    ],
)
def test_arguments_of_qemu_that_pin_the_guests_memory(argument: str, inhibitors: tuple[str, ...]) -> None:
    command = f"<q:commandline><q:arg value='-x'/><q:arg value='{argument}'/></q:commandline>"
    text = f"<domain xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'>{command}</domain>"
    assert parse_domain(text, ONLINE).inhibitors == inhibitors


@pytest.mark.parametrize(("model", "fixed_kib"), [("nvdimm", 524288), ("virtio-pmem", 524288), ("sgx-epc", 524288)])
def test_memory_that_no_balloon_reaches_is_told_apart(model: str, fixed_kib: int) -> None:
    device = f"<memory model='{model}'><target><size unit='MiB'>512</size></target></memory>"
    domain = parse_domain(devices(device).replace("<devices>", "<memory>786432</memory><devices>"), ONLINE)
    assert (domain.maximum_kib, domain.fixed_kib, domain.huge_kib) == (786432, fixed_kib, 0)


GIB = 1024**2
DIMM = "<memory model='dimm'><source>{}</source><target><size unit='GiB'>1</size><node>{}</node></target></memory>"
HUGE, PLAIN = "<pagesize unit='KiB'>2048</pagesize>", "<pagesize unit='KiB'>4</pagesize>"


def numa_guest(pages: str, dimms: str) -> str:
    """Two cells of 2 and 4 GiB, and DIMMs of 1 GiB."""
    total = 6 + dimms.count("dimm")
    backing = f"<memoryBacking><hugepages>{pages}</hugepages></memoryBacking>" if pages else ""
    return (
        f"<domain><memory unit='GiB'>{total}</memory>{backing}<cpu><numa><cell id='0' memory='2' unit='GiB'/>"
        f"<cell id='1' memory='4194304'/></numa></cpu><devices>{dimms}</devices></domain>"
    )


@pytest.mark.parametrize(
    ("pages", "dimms", "huge_gib", "inhibitors"),
    [
        ("", "", 0, ()),
        ("", DIMM.format(HUGE, 0), 1, ()),
        (" ", DIMM.format("", 0), 7, ("hugepages",)),
        ("<page size='1' unit='G' nodeset='0'/>", "", 2, ()),
        ("<page size='2048' unit='KiB' nodeset='0-1'/>", "", 6, ("hugepages",)),
        ("<page size='2048' nodeset='1'/>", DIMM.format("", 1) + DIMM.format("", 0), 5, ()),
        ("<page size='2048' nodeset='1'/>", DIMM.format(PLAIN, 1), 4, ()),
        ("<page size='2048'/><page size='4' nodeset='1'/>", "", 2, ()),
        ("<page size='2048'/>", DIMM.format(PLAIN, 0), 6, ()),
    ],
)
def test_huge_pages_may_be_those_of_a_part_of_the_guest(
    pages: str, dimms: str, huge_gib: int, inhibitors: tuple[str, ...]
) -> None:
    domain = parse_domain(numa_guest(pages, dimms), ONLINE)
    assert (domain.huge_kib, domain.inhibitors) == (huge_gib * GIB, inhibitors)


def test_a_guest_without_cells_is_cell_0() -> None:
    pages = "<memoryBacking><hugepages><page size='2048' nodeset='0'/></hugepages></memoryBacking>"
    domain = parse_domain(f"<domain><memory>524288</memory>{pages}</domain>", ONLINE)
    assert (domain.huge_kib, domain.inhibitors) == (524288, ("hugepages",))


@pytest.mark.parametrize(("kib", "known_kib"), [("65536", 65536), ("9007199254740991", None)])
def test_a_soft_limit(kib: str, known_kib: object) -> None:
    text = f"<domain><memtune><soft_limit>{kib}</soft_limit></memtune></domain>"
    assert parse_domain(text, ONLINE).soft_limit_kib == known_kib


RECORD = Record(
    host_uuid="h",
    domain_id=3,
    memory=MemoryRecord(1048576, 900000, 800000, 1790000000),
    period=PeriodRecord(0, 0, 5, 1790000001),
    pins=(PinRecord("vcpu", 12, frozenset({0, 1, 300}), frozenset({0}), frozenset({300}), 1790000002),),
)


def with_metadata(text: str) -> str:
    return f"<domain><metadata>{text}</metadata></domain>"


def stored(record: Record) -> str:
    """As libvirt keeps it: the element under our namespace."""
    text = encode(record)
    return with_metadata(
        text.replace("<state ", f'<kvmsched:state xmlns:kvmsched="{STATE_URI}" ').replace("</state", "</kvmsched:state")
    )


def test_a_record_survives_libvirt() -> None:
    assert parse_domain(stored(RECORD), ONLINE).record == RECORD
    assert parse_inactive(stored(RECORD)).record is not None
    assert parse_inactive("<domain/>").record is None


@pytest.mark.parametrize(
    "text",
    [
        f'<k:state xmlns:k="{STATE_URI}" version="2" host="h" domain="1"/>',
        f'<k:state xmlns:k="{STATE_URI}" version="1" host="h"/>',
        f'<k:state xmlns:k="{STATE_URI}" version="1" host="h" domain="1"><memory original_kib="x"/></k:state>',
        f'<k:state xmlns:k="{STATE_URI}" version="1" host="h" domain="1"><pin thread="x" id="0"/></k:state>',
        '<k:state xmlns:k="urn:kvmsched:state/2" version="1" host="h" domain="1"/>',
    ],
)
def test_a_record_that_cannot_be_trusted_is_an_error_not_a_baseline(text: str) -> None:
    domain = parse_domain(with_metadata(text), ONLINE)
    assert domain.record is None
    assert domain.record_error and "record" in domain.record_error


def test_an_owner_with_child_elements_is_an_error() -> None:
    domain = parse_domain(with_metadata(f'<k:policy xmlns:k="{OWNER_URI}"><floor>1G</floor></k:policy>'), ONLINE)
    assert domain.owner.error == "got element <floor>, allowed: attributes only"


def test_pins_of_a_persistent_definition() -> None:
    assert parse_inactive(DOMAIN).pins == {0: {1}, 2: {2, 3}}


def capabilities(cells: dict[int, list[dict[str, object]]], banks: str = "") -> str:
    """Cells with their pCPUs' attributes, and cache banks."""
    text = "".join(
        f"<cell id='{cell}'><memory unit='KiB'>8388608</memory><cpus>"
        + "".join("<cpu " + " ".join(f"{k}='{v}'" for k, v in cpu.items()) + "/>" for cpu in cpus)
        + "</cpus></cell>"
        for cell, cpus in cells.items()
    )
    return f"<capabilities><host><topology><cells>{text}</cells></topology><cache>{banks}</cache></host></capabilities>"


def place(number: int, socket: int = 0, die: int = 0) -> dict[str, object]:
    return {"id": number, "socket_id": socket, "die_id": die, "core_id": number, "siblings": number}


def caches(text: str, online: frozenset[int] = ONLINE) -> dict[int, frozenset[int]]:
    return {pcpu.id: pcpu.llc for pcpu in parse_capabilities(text, online, frozenset()).topology.pcpus}


def sets(*groups: set[int]) -> dict[int, set[int]]:
    return {cpu: group for group in groups for cpu in group}


def test_where_no_cache_is_told_the_die_within_its_cell_stands_for_it() -> None:
    """Large ARM, POWER, old AMD."""
    text = capabilities(
        {
            0: [place(0), place(1), place(2, die=1), place(3, die=1)],
            1: [place(4, 1), place(5, 1), place(6, 1), place(7, 1)],
        }
    )
    assert caches(text) == sets({0, 1}, {2, 3}, {4, 5, 6, 7})


def test_pcpus_without_a_last_level_cache_do_not_join_anothers() -> None:
    """As the low-power cores of an Intel hybrid, which lie outside of its ring."""
    text = capabilities({0: [place(number) for number in range(8)]}, "<bank id='0' level='3' cpus='0-5'/>")
    assert caches(text) == sets({0, 1, 2, 3, 4, 5}, {6, 7})


def test_a_cache_that_spans_cells_is_shared_within_each() -> None:
    """Sub-NUMA clustering: one L3 of the socket, two cells of it."""
    text = capabilities(
        {0: [place(number) for number in range(4)], 1: [place(number) for number in range(4, 8)]},
        "<bank id='0' level='3' cpus='0-7'/>",
    )
    assert caches(text) == sets({0, 1, 2, 3}, {4, 5, 6, 7})


def test_a_cell_with_memory_only_limits_no_pcpu() -> None:
    topology = parse_capabilities(CAPABILITIES, ONLINE, frozenset()).topology
    assert cells_pcpus({2}, topology) is None
    assert cells_pcpus({1, 2}, topology) == {2, 3, 6, 7}


GUEST_CELLS = """<domain><numatune>{memory}<memnode cellid='0' mode='strict' nodeset='1'/>{other}</numatune>
 <cpu><topology sockets='2' cores='2' threads='2'/><numa><cell id='0' cpus='0-3' memory='1048576'/>
 <cell id='1' cpus='4-7' memory='1048576'/></numa></cpu></domain>"""


@pytest.mark.parametrize(
    ("memory", "other", "second"),
    [
        ("", "<memnode cellid='1' mode='preferred' nodeset='0'/>", {0}),
        ("<memory mode='strict' nodeset='2-3'/>", "", {2, 3}),
        ("", "", None),
    ],
)
def test_each_vcpus_memory_is_where_its_guest_cell_has_it(memory: str, other: str, second: object) -> None:
    domain = parse_domain(GUEST_CELLS.format(memory=memory, other=other), ONLINE)
    assert {number: domain.vcpu_cells.get(number) for number in (0, 3)} == {0: {1}, 3: {1}}
    assert domain.vcpu_cells.get(4) == domain.vcpu_cells.get(7) == second


BOUND_CELLS = """<domain><numatune><memory mode='strict' nodeset='0-1'/>{memnodes}</numatune>
 <cpu><numa><cell id='0' cpus='0-3' memory='1048576'/><cell id='1' cpus='4-7' memory='2097152'/></numa></cpu>
 <devices><memory model='dimm'><target><size>524288</size><node>1</node></target></memory></devices></domain>"""


@pytest.mark.parametrize(
    ("memnodes", "bound"),
    [
        ({0: "0", 1: "1"}, (Memnode(frozenset({0}), 1048576), Memnode(frozenset({1}), 2621440))),
        ({0: "0"}, (Memnode(frozenset({0}), 1048576), Memnode(frozenset({0, 1}), 2621440))),
        ({0: "1", 1: "1"}, (Memnode(frozenset({1}), 3670016),)),
        ({0: "0-1", 1: "0-1"}, ()),
        ({}, ()),
    ],
)
def test_each_guest_cell_is_bound_where_its_own_memnode_says(
    memnodes: dict[int, str], bound: tuple[Memnode, ...]
) -> None:
    told = "".join(f"<memnode cellid='{one}' mode='strict' nodeset='{nodes}'/>" for one, nodes in memnodes.items())
    domain = parse_domain(BOUND_CELLS.format(memnodes=told), ONLINE)
    assert (domain.memory_cells, domain.memnodes) == ({0, 1}, bound)
    free = told.replace("strict", "preferred")
    assert all(part.cells == {0, 1} for part in parse_domain(BOUND_CELLS.format(memnodes=free), ONLINE).memnodes)


def test_a_guest_cell_without_memory_binds_none() -> None:
    memnodes = "<memnode cellid='0' nodeset='0'/><memnode cellid='1' nodeset='1'/>"
    text = BOUND_CELLS.format(memnodes=memnodes).replace("1048576", "0")
    assert parse_domain(text, ONLINE).memnodes == (Memnode(frozenset({1}), 2621440),)


def test_guest_cells_without_memory_of_their_own_have_none() -> None:
    text = "<domain><cpu><numa><cell cpus='0-3'/></numa></cpu><numatune><memory nodeset='1'/></numatune></domain>"
    assert parse_domain(text, ONLINE).vcpu_cells == {}


def test_guest_threads_and_cachetune() -> None:
    plain = parse_domain("<domain><cpu mode='host-model'/></domain>", ONLINE)
    assert (plain.guest_threads, plain.cachetune) == (1, False)
    assert parse_domain(GUEST_CELLS.format(memory="", other=""), ONLINE).guest_threads == 2
    tuned = "<domain><cputune><cachetune vcpus='0-1'>{}</cachetune></cputune></domain>"
    assert parse_domain(tuned.format("<cache id='0' level='3' size='3'/>"), ONLINE).cachetune
    assert not parse_domain(tuned.format("<monitor level='3' vcpus='0-1'/>"), ONLINE).cachetune, "it is watched only"


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("http://openstack.org/xmlns/libvirt/nova/1.1", "nova"),
        ("http://ovirt.org/vm/1.0", "ovirt"),
        ("http://ovirt.org/vm/tune/1.0", "ovirt"),
        ("http://kubevirt.io", "kubevirt"),
        ("http://libosinfo.org/xmlns/libvirt/domain/1.0", ""),
    ],
)
def test_who_manages_a_domain(uri: str, name: str) -> None:
    assert parse_domain(with_metadata(f'<x:instance xmlns:x="{uri}"/>'), ONLINE).managed_by == name


def test_pins_of_other_threads_in_a_persistent_definition() -> None:
    assert parse_inactive(DOMAIN).thread_pins == {("emulator", 0): {5}, ("iothread", 2): {4}}
