# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The record on a domain: written before a change, judged by content, struck off when all is back."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import Any

import pytest
from kvmsched import baseline
from kvmsched.model import (
    Adoption,
    Balloon,
    BalloonMove,
    Domain,
    MemoryRecord,
    PeriodMove,
    PeriodRecord,
    PinMove,
    PinRecord,
    Record,
    Thread,
    Vcpu,
)

HOST = "host-1"
CPU0, CPU1, BOTH = frozenset({0}), frozenset({1}), frozenset({0, 1})
DOMAIN = Domain(uuid="u", name="d", id=7, vcpus=(Vcpu(0, BOTH), Vcpu(2, CPU1)), balloon=Balloon(1048576, 2097152))


def balloon(before_kib: int, after_kib: int) -> BalloonMove:
    return BalloonMove("d", "u", before_kib, after_kib, "because")


def pin(number: int, before: frozenset[int], after: frozenset[int]) -> PinMove:
    return PinMove("d", "u", number, before, after, "because")


def test_the_original_is_that_from_before_the_first_change() -> None:
    first = baseline.intend(None, DOMAIN, balloon(1000000, 900000), HOST, 10)
    arrived = replace(DOMAIN, balloon=Balloon(900000, 2097152))
    second = baseline.intend(first, arrived, balloon(900000, 800000), HOST, 20)
    assert second.memory == MemoryRecord(1000000, 900000, 800000, when_s=20, most_kib=2097152)
    assert (second.host_uuid, second.domain_id) == (HOST, 7)


def test_parts_merge() -> None:
    record = baseline.intend(None, DOMAIN, pin(0, BOTH, CPU0), HOST, 1)
    record = baseline.intend(record, DOMAIN, PeriodMove("d", "u", 0, 5, "because"), HOST, 2)
    record = baseline.intend(record, DOMAIN, pin(2, CPU1, CPU0), HOST, 3)
    record = baseline.intend(record, DOMAIN, pin(0, CPU0, CPU1), HOST, 4)
    assert record.period == PeriodRecord(0, 0, 5, 2)
    assert record.pins == (PinRecord("vcpu", 0, BOTH, CPU0, CPU1, 4), PinRecord("vcpu", 2, CPU1, CPU1, CPU0, 3))


def test_pins_of_another_host_mean_nothing_here_but_its_memory_does() -> None:
    there = baseline.intend(None, DOMAIN, pin(0, BOTH, CPU0), "host-0", 1)
    there = baseline.intend(there, DOMAIN, balloon(1000000, 900000), "host-0", 1)
    here = baseline.intend(there, DOMAIN, pin(2, CPU1, CPU0), HOST, 2)
    assert [part.id for part in here.pins] == [2]
    assert here.memory == there.memory
    assert here.host_uuid == HOST


def test_a_change_of_memory_leaves_the_pins_of_another_host_to_be_brought_back() -> None:
    there = baseline.intend(None, DOMAIN, pin(0, BOTH, CPU0), "host-0", 1)
    here = baseline.intend(there, DOMAIN, balloon(1000000, 900000), HOST, 2)
    here = baseline.intend(here, DOMAIN, PeriodMove("d", "u", 0, 5, "because"), HOST, 3)
    here = baseline.adopt(here, DOMAIN, Adoption("d", "u", "because", memory_kib=950000), HOST, 4)
    assert (here.host_uuid, here.pins) == ("host-0", there.pins)


@pytest.mark.parametrize("number", ["9" * 400, "-5", "5.0", "٣"])
def test_a_number_that_is_none_damages_the_record_and_nothing_else(number: str) -> None:
    text = baseline.encode(baseline.intend(None, DOMAIN, balloon(1000000, 900000), HOST, 1234))
    with pytest.raises(ValueError, match="its record is damaged"):
        baseline.decode(ET.fromstring(text.replace("1234", number)))


@pytest.mark.parametrize(
    "record",
    [
        Record(HOST, 7, MemoryRecord(18014398492000000, 900000, 800000, 1)),
        Record(HOST, 7, MemoryRecord(1000000, -5, 800000, 1)),
        Record(HOST, 7, MemoryRecord(1000000, 900000, 800000, 1, (10**15, 1))),
        Record(HOST, 7, period=PeriodRecord(0, 0, 10**20, 1)),
        Record(HOST, 7, pins=(PinRecord("vcpu", 0, BOTH, CPU0, frozenset(), 1),)),
    ],
)
def test_a_record_that_could_not_be_read_is_not_written(record: Record) -> None:
    with pytest.raises(ValueError, match="its record "):
        baseline.encode(record)


@pytest.mark.parametrize("kib", [0, 3])
def test_an_original_below_a_page_is_not_known(kib: int) -> None:
    """A guest that lied was recorded so by an earlier version: the rest of its record holds, and can be given back."""
    period = PeriodRecord(0, 0, 5, 1)
    text = baseline.encode(Record(HOST, 7, MemoryRecord(4, 4, 900000, 1), period))
    record = baseline.decode(ET.fromstring(text.replace('original_kib="4"', f'original_kib="{kib}"')))
    assert record == Record(HOST, 7, None, period)
    assert baseline.without_restored(record, DOMAIN, memory=True, pins=False) is None


def test_a_period_that_libvirt_cannot_take_is_not_known() -> None:
    """Its binding refuses what is no int of C: that domain could never be given back what it had."""
    for original_s in (2**31 - 1, 2**31):
        text = baseline.encode(Record(HOST, 7, period=PeriodRecord(1, 0, 5, 1)))
        record = baseline.decode(ET.fromstring(text.replace('original_s="1"', f'original_s="{original_s}"')))
        assert (record.period is None) == (original_s == 2**31)


def test_a_value_of_nobody_we_know_is_foreign() -> None:
    part = MemoryRecord(original_kib=1000000, previous_kib=900000, intended_kib=500000, when_s=0)
    for ours in (1000000, 900000, 500000, 700000, 499400):
        assert not part.set_by_person(ours), ours
    for theirs in (400000, 950000, 2000000):
        assert part.set_by_person(theirs), theirs
    masks = PinRecord("vcpu", 0, BOTH, CPU0, CPU0, 0)
    assert not masks.set_by_person(BOTH) and not masks.set_by_person(CPU0) and masks.set_by_person(CPU1)


def at(actual_kib: int) -> Domain:
    return replace(DOMAIN, balloon=Balloon(actual_kib, 2097152))


def test_where_an_earlier_request_leads_is_ours_though_a_later_one_was_recorded() -> None:
    """The pass died before it made the later one: the balloon goes on to where it was sent first."""
    taking = baseline.intend(None, at(1000000), balloon(1000000, 700000), HOST, 10)
    for actual_kib, after_kib in [(800000, 900000), (1000000, 600000), (900000, 800000), (700000, 720000)]:
        later = baseline.intend(taking, at(actual_kib), balloon(actual_kib, after_kib), HOST, 20).memory
        assert later and (later.previous_kib, later.intended_kib) == (actual_kib, after_kib)
        assert not any(map(later.set_by_person, (1000000, actual_kib, after_kib, 700000))), later
        assert later.set_by_person(500000) and later.set_by_person(1100000)


def test_a_request_that_was_called_back_is_ours_wherever_its_balloon_is() -> None:
    """Such a move begins at the target of the earlier one, and the balloon may not have moved at all."""
    taking = baseline.intend(None, at(1000000), balloon(1000000, 700000), HOST, 10)
    back = baseline.intend(taking, at(990000), balloon(700000, 750000), HOST, 20)
    assert back.memory and not any(map(back.memory.set_by_person, (1000000, 990000, 750000, 700000)))


def test_requests_that_were_never_made_pile_up_until_the_balloon_arrives() -> None:
    record = baseline.intend(None, at(1000000), balloon(1000000, 700000), HOST, 10)
    record = baseline.intend(record, at(900000), balloon(900000, 1100000), HOST, 20)
    record = baseline.intend(record, at(850000), balloon(850000, 840000), HOST, 30)
    assert record.memory and not any(map(record.memory.set_by_person, (1100000, 850000, 840000, 700000)))
    assert baseline.decode(ET.fromstring(baseline.encode(record))) == record
    record = baseline.intend(record, at(840000), balloon(840000, 860000), HOST, 40)
    assert record.memory == MemoryRecord(1000000, 840000, 860000, 40, most_kib=2097152)
    assert record.memory.set_by_person(700000) and record.memory.set_by_person(900000)


def test_an_adopted_value_is_the_new_original() -> None:
    record = baseline.intend(None, DOMAIN, balloon(1000000, 900000), HOST, 1)
    record = baseline.adopt(record, DOMAIN, Adoption("d", "u", "because", memory_kib=600000), HOST, 9)
    assert record.memory == MemoryRecord(600000, 600000, 600000, 9, most_kib=2097152)


DIMM = 524288


def test_a_dimm_is_the_guests_and_no_size_that_somebody_set() -> None:
    """QEMU adds it to the balloon's size, to where that was sent, and to where it may still go."""
    taken = baseline.intend(None, at(1000000), balloon(1000000, 900000), HOST, 1)
    taken = baseline.intend(taken, at(950000), balloon(950000, 800000), HOST, 2)
    assert taken.memory == MemoryRecord(1000000, 950000, 800000, 2, (900000, 1000000), most_kib=2097152)
    here = at(800000 + DIMM).balloon
    assert here is not None and taken.memory.set_by_person(here.actual_kib)
    plugged = baseline.resized(taken, replace(here, maximum_kib=2097152 + DIMM))
    assert plugged is not None and plugged.memory is not None and not plugged.memory.set_by_person(here.actual_kib)
    reach_kib = (900000 + DIMM, 1000000 + DIMM)
    part = MemoryRecord(1000000 + DIMM, 950000 + DIMM, 800000 + DIMM, 2, reach_kib, most_kib=2097152 + DIMM)
    assert plugged.memory == part
    assert baseline.resized(plugged, here) == taken, "and it was unplugged again"


@pytest.mark.parametrize("changes", [{}, {"maximum_kib": 9437184, "fixed_kib": 7340032}, {"virtio_mem": True}])
def test_what_no_balloon_can_have_makes_no_size_another(changes: dict[str, Any]) -> None:
    taken = baseline.intend(None, at(1000000), balloon(1000000, 900000), HOST, 1)
    here = Balloon(900000, **{"maximum_kib": 4194304, **changes})
    assert (baseline.resized(taken, here) == taken) is (changes != {})
    assert baseline.resized(taken, None) == taken and baseline.resized(None, here) is None
    unknown = Record(HOST, 7, MemoryRecord(1000000, 1000000, 900000, 1))
    assert baseline.resized(unknown, here) == unknown, "of an earlier version"


@pytest.mark.parametrize("forged_kib", [1, 2097152 - 4, 10**15 - 1])
@pytest.mark.parametrize("size_kib", [4, 1000000, 10**15 - 1])
def test_whatever_was_forged_no_size_is_made_one_that_can_not_be(forged_kib: int, size_kib: int) -> None:
    sizes = (size_kib, size_kib, size_kib, 1, (size_kib, size_kib))
    record = baseline.resized(Record(HOST, 7, MemoryRecord(*sizes, most_kib=forged_kib)), DOMAIN.balloon)
    assert record is not None and record.memory is not None
    assert all(4 <= kib <= 2097152 for kib in (record.memory.original_kib, *record.memory.span_kib()))
    assert baseline.decode(ET.fromstring(baseline.encode(record))) == record


def test_an_earlier_version_reads_over_what_a_balloon_could_have() -> None:
    record = baseline.intend(None, DOMAIN, balloon(1000000, 900000), HOST, 1)
    root = ET.fromstring(baseline.encode(record))
    memory, most = root
    assert set(memory.attrib) == {"original_kib", "previous_kib", "intended_kib", "when_s"}
    root.remove(most)
    assert baseline.decode(root).memory == replace(record.memory, most_kib=0)


def test_what_is_back_is_struck_off_and_the_rest_stays() -> None:
    record = baseline.intend(None, DOMAIN, balloon(1048576, 900000), HOST, 1)
    record = baseline.intend(record, DOMAIN, balloon(900000, 1048576), HOST, 2)
    record = baseline.intend(record, DOMAIN, pin(0, BOTH, CPU0), HOST, 1)
    record = baseline.intend(record, DOMAIN, pin(2, CPU0, CPU1), HOST, 1)
    left = baseline.without_restored(record, DOMAIN, memory=False, pins=True)
    assert left is not None
    assert [part.id for part in left.pins] == [2] and left.memory is not None
    back = replace(DOMAIN, vcpus=(Vcpu(0, BOTH), Vcpu(2, CPU0)))
    left = baseline.without_restored(record, back, memory=False, pins=True)
    assert left is not None and left.pins == ()
    assert baseline.without_restored(left, back, memory=True, pins=False) is None


def test_an_original_above_a_maximum_that_shrank_is_restored_at_the_maximum() -> None:
    """A DIMM was unplugged: nobody can give it back."""
    record = baseline.intend(None, DOMAIN, balloon(4194304, 900000), HOST, 1)
    record = baseline.intend(record, DOMAIN, balloon(900000, 2097152), HOST, 2)
    assert baseline.without_restored(record, at(2097152), memory=True, pins=False) is None
    assert baseline.without_restored(record, at(1048576), memory=True, pins=False) == record


def test_an_original_that_no_balloon_can_have_is_restored_at_what_it_can_have() -> None:
    """Before the first event libvirt counts an NVDIMM as part of the balloon; the plan brings it no higher."""
    record = baseline.intend(None, DOMAIN, balloon(2097152, 900000), HOST, 1)
    record = baseline.intend(record, DOMAIN, balloon(900000, 1572864), HOST, 2)
    here = replace(DOMAIN, balloon=Balloon(1572864, 2097152, fixed_kib=524288))
    assert baseline.without_restored(record, here, memory=True, pins=False) is None


def test_what_is_left_is_told_for_the_resource_that_was_released() -> None:
    record = baseline.intend(None, DOMAIN, balloon(1048576, 900000), HOST, 1)
    record = baseline.intend(record, DOMAIN, pin(0, BOTH, CPU0), HOST, 1)
    told = baseline.left_over(record, at(950000), memory=True, pins=False)
    assert told == "it has 928M, was last sent to 879M, and its original is 1024M"
    assert baseline.left_over(record, DOMAIN, memory=False, pins=True) == "not on its original pCPUs: vCPU 0 (0-1)"
    assert baseline.left_over(replace(record, pins=()), DOMAIN, memory=False, pins=True) is None
    assert baseline.left_over(replace(record, memory=None), DOMAIN, memory=True, pins=False) is None
    assert baseline.left_over(None, DOMAIN, memory=True, pins=True) is None


def test_of_what_is_not_known_to_be_back_nothing_is_struck_off() -> None:
    """A QEMU that does not answer counts as at its maximum; a balloon at home may have been sent away again."""
    record = baseline.intend(None, DOMAIN, balloon(1048576, 900000), HOST, 1)
    record = baseline.intend(record, DOMAIN, pin(0, BOTH, CPU0), HOST, 1)
    assert baseline.without_restored(record, DOMAIN, memory=True, pins=False) == record
    called_back = baseline.intend(record, DOMAIN, balloon(900000, 1048576), HOST, 2)
    left = baseline.without_restored(called_back, DOMAIN, memory=True, pins=False)
    assert left is not None and left.memory is None and left.pins == record.pins
    hung = replace(DOMAIN, busy="QEMU does not answer")
    assert baseline.without_restored(called_back, hung, memory=True, pins=True) == called_back
    unseen = replace(DOMAIN, vcpus=())
    assert baseline.without_restored(record, unseen, memory=False, pins=True) == record


@pytest.mark.parametrize(("now_s", "stays"), [(0, False), (3, True), (5, True), (9, False)])
def test_a_period_stays_while_it_is_ours(now_s: int, stays: bool) -> None:
    """Back at its original, or set by somebody else since, there is nothing to restore."""
    record = baseline.intend(None, DOMAIN, PeriodMove("d", "u", 0, 3, "because"), HOST, 1)
    record = baseline.intend(record, DOMAIN, PeriodMove("d", "u", 3, 5, "because"), HOST, 2)
    here = replace(DOMAIN, balloon=Balloon(1048576, 2097152, period_s=now_s))
    left = baseline.without_restored(record, here, memory=True, pins=False)
    assert (left is not None) is stays


def test_a_thread_that_is_gone_leaves_nothing_to_restore() -> None:
    record = baseline.intend(None, DOMAIN, pin(3, BOTH, CPU0), HOST, 1)
    assert baseline.without_restored(record, DOMAIN, memory=False, pins=True) is None


def test_a_vcpu_that_was_unplugged_stays_on_record_while_it_keeps_our_pin() -> None:
    """It would come back with that; until then no release need be run again for it."""
    record = baseline.intend(None, DOMAIN, pin(3, BOTH, CPU0), HOST, 1)
    unplugged = replace(DOMAIN, threads=(Thread("vcpu", 3, CPU0),))
    assert baseline.without_restored(record, unplugged, memory=False, pins=True) == record
    assert baseline.left_over(record, unplugged, memory=False, pins=True) is None
    restored = replace(DOMAIN, threads=(Thread("vcpu", 3, BOTH),))
    assert baseline.without_restored(record, restored, memory=False, pins=True) is None


def test_the_definition_from_before_the_first_pin_is_kept_with_it() -> None:
    domain = replace(DOMAIN, vcpus=(replace(DOMAIN.vcpus[0], definition=CPU1), DOMAIN.vcpus[1]))
    record = baseline.intend(None, domain, pin(0, BOTH, CPU1), HOST, 1)
    record = baseline.intend(record, DOMAIN, pin(2, CPU1, CPU0), HOST, 2)
    record = baseline.intend(record, DOMAIN, pin(0, CPU1, CPU0), HOST, 3)
    assert [part.defined for part in record.pins] == [CPU1, None]
    assert baseline.decode(ET.fromstring(baseline.encode(record))) == record
