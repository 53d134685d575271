# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What libvirt's XML means: topologies, definitions, the record and the owner's word."""

from __future__ import annotations

import pytest
from kvmsched.baseline import OWNER_URI, STATE_URI, encode
from kvmsched.libvirt_xml import parse_capabilities, parse_domain, parse_inactive
from kvmsched.model import MemoryRecord, PeriodRecord, PinRecord, Record

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
