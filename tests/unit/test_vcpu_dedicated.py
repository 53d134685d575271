# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose pCPU is it: which ones belong to single vCPUs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from kvmsched.model import Owner
from kvmsched.policy.vcpu import Safeties
from kvmsched.policy.vcpu.allowed import Masks
from kvmsched.policy.vcpu.eligibility import dedication_on
from vcpu_worlds import (
    POLICY,
    FakeHost,
    Guest,
    codes,
    cpus,
    guests,
    led_to,
    one_pass,
    own,
    pinned_guest,
    topology,
)


def test_one_vcpu_of_a_guest_may_have_a_pcpu_of_its_own() -> None:
    mixed = pinned_guest("mixed", "4 0-3 0-3 0-3", 0.3, "4 0-3 0-3 0-3")
    assert own(mixed).pcpus == {4}
    plan = one_pass(mixed, *guests(8, 0.9, "0-7", "float"))
    assert plan.moves and 4 not in led_to(plan)
    off = one_pass(mixed, *guests(8, 0.9, "0-7", "float"), safeties=Safeties(dedicated=False))
    assert 4 in led_to(off)


def test_a_pcpu_that_others_name_too_is_nobodys_own() -> None:
    three = [pinned_guest(name, "0 1 2 3", definitions="0 1 2 3") for name in "abc"]
    told = own(*three)
    assert told.pcpus == frozenset() and told.overlapping == dict.fromkeys(range(4), ("a", "b", "c"))
    plan = one_pass(*three)
    assert plan.moves == () and set(codes(plan).values()) == {"overlapping"}
    assert plan.before.max_pct > 100 and plan.before.pcpus == 8 and plan.note != "balanced"
    assert (
        own(pinned_guest("a", "0", definitions="0"), pinned_guest("fence", "0-1 0-1", definitions="0-1 0-1")).pcpus
        == frozenset()
    )
    assert own(pinned_guest("a", "0 1", definitions="0 1"), pinned_guest("b", "1 2", definitions="1 2")).pcpus == {0, 2}
    half = one_pass(pinned_guest("a", "0 1", definitions="0 1"), pinned_guest("b", "1 2", definitions="1 2"))
    assert codes(half) == {"a": "overlapping", "b": "overlapping"}
    wide = pinned_guest("wide", "0-7", definitions="0-7")
    assert own(pinned_guest("a", "0", definitions="0"), wide).pcpus == {0}, "who names all pCPUs names none"


def test_a_pcpu_that_is_offline_is_nobodys_own_and_blocks_nobody() -> None:
    host = topology(8, offline="4-7")
    gone = pinned_guest("a", "4 5 6 7", 0.1, "4 5 6 7")
    gone.affinity = cpus("0-3")
    plan = one_pass(gone, pinned_guest("b", "0 0 0 0", 0.9), host=host)
    assert len(plan.moves) == 3 and led_to(plan) == {1, 2, 3} and codes(plan) == {"a": "empty-set"}
    marked = replace(gone, definitions={}, fields={"owner": Owner({"vcpu": "dedicated"})})
    assert own(marked, host=host).pcpus == frozenset(), "where it was pinned is offline, where it runs it is by chance"


def test_both_threads_of_a_core_may_be_the_own_of_two_vcpus() -> None:
    pairs = pinned_guest("vfio", "2,6 2,6 3,7 3,7", 0.2, "2,6 2,6 3,7 3,7")
    assert own(pairs).pcpus == {2, 3, 6, 7}
    plan = one_pass(pairs, *guests(4, 0.9, "0", "hog"))
    assert codes(plan) == {"vfio": "dedicated"} and not led_to(plan) & cpus("2-3,6-7")
    assert own(pinned_guest("three", "2,6 2,6 2,6", definitions="2,6 2,6 2,6")).pcpus == frozenset()
    assert own(pinned_guest("one", "2,6", definitions="2,6")).pcpus == frozenset(), "a vCPU alone does not need two"


def test_real_time_vcpus_have_what_their_definition_says_and_floating_ones_nothing() -> None:
    fixed = pinned_guest("rt", "4-5 4-5 4-5", definitions="4-5 4-5 4-5", scheduler="fifo")
    assert own(fixed).pcpus == {4, 5}
    assert own(pinned_guest("rt", "0-7 0-7", scheduler="fifo")).pcpus == frozenset()
    assert own(fixed, pinned_guest("fence", "5-6", definitions="5-6")).pcpus == {4}


@pytest.mark.parametrize(
    ("pins", "pcpus"),
    [
        ("4 5", {4, 5}),
        ("4-5 4-5", {4, 5}),
        ("4-6 4-6", set()),  # no narrower than it needs
        ("0-7 " * 8, set()),  # floats, with as many vCPUs as there are pCPUs
    ],
)
def test_a_marked_guest_has_its_pins_if_they_are_narrow(pins: str, pcpus: set[int]) -> None:
    marked = pinned_guest("own", pins, fields={"owner": Owner({"vcpu": "dedicated"})})
    assert own(marked).pcpus == pcpus
    plan = one_pass(marked, *guests(4, 0.9, "0", "hog"))
    assert codes(plan)["own"] == "dedicated"
    assert plan.moves and not led_to(plan) & pcpus, "the others are balanced beside it"


def test_the_last_pcpu_of_another_guest_is_a_preference_only() -> None:
    greedy = pinned_guest("greedy", "4", definitions="4")
    told = own(greedy, pinned_guest("bound", "4", fields={"cpuset": cpus("4")}))
    assert (told.pcpus, told.preferred, told.too_many) == (frozenset(), {4}, ("greedy",))
    plan = one_pass(greedy, pinned_guest("bound", "4", fields={"cpuset": cpus("4")}), *guests(4, 0.5, "0-7"))
    assert "bound" not in codes(plan) and 4 not in led_to(plan)
    assert any("greedy: pCPUs of their own would leave others too few" in line for line in plan.warnings)


def test_a_whole_cell_or_more_than_half_of_the_host_is_a_preference_only() -> None:
    cell = pinned_guest("cell", "4 5 6 7", definitions="4 5 6 7")
    assert own(cell).pcpus == cpus("4-7")
    assert own(cell, host=topology(8, cells=2)).preferred == cpus("4-7")
    most = pinned_guest("most", "3 4 5 6 7", definitions="3 4 5 6 7")
    assert own(most).preferred == cpus("3-7")


def test_what_is_preferred_is_given_once_the_rest_is_full() -> None:
    most = pinned_guest("most", "3 4 5 6 7", 0.2, "3 4 5 6 7")
    calm = one_pass(most, pinned_guest("calm", "0 0 0", 0.4))
    assert calm.moves and led_to(calm) <= {1, 2}
    full = one_pass(most, *guests(9, 0.9, "0-2", "hog"))
    assert full.moves and led_to(full) & cpus("3-7")


@examples(40)
@given(st.data())
def test_what_is_somebodys_own_leaves_enough_to_all_others(data: st.DataObject) -> None:
    """No other guest's last pCPU, no whole cell, no more than half of the host; and in any order of the domains."""
    host = data.draw(st.sampled_from([topology(8), topology(8, cells=2), topology(6, isolated="5"), topology(2)]))
    some = st.sets(st.sampled_from(sorted(host.online)), min_size=1, max_size=3).map(frozenset)
    members = []
    for number in range(data.draw(st.integers(1, 6))):
        pins = data.draw(st.lists(some, min_size=1, max_size=4))
        fields: dict[str, Any] = {"cpuset": data.draw(some)} if data.draw(st.integers(0, 3)) == 0 else {}
        if data.draw(st.integers(0, 3)) == 0:
            fields["owner"] = Owner({"vcpu": "dedicated"})
        defined = dict(enumerate(pins)) if data.draw(st.booleans()) else {}
        scheduler = "fifo" if data.draw(st.integers(0, 3)) == 0 else None
        members.append(
            Guest(f"g{number}", [0.5] * len(pins), pins, fields=fields, definitions=defined, scheduler=scheduler)
        )
    snapshot = FakeHost(host, members).snapshot()
    told = dedication_on(snapshot, POLICY)
    assert dedication_on(replace(snapshot, domains=snapshot.domains[::-1]), POLICY) == told
    usable = host.online - host.isolated
    assert 2 * len(told.pcpus & usable) <= len(usable)
    assert len(host.cells) == 1 or all(not cell.pcpus & usable <= told.pcpus for cell in host.cells)
    before, after = Masks(snapshot, POLICY), Masks(snapshot, POLICY, told.pcpus)
    for domain in snapshot.domains:
        for one in domain.vcpus:
            if before.allowed(domain, one) and (domain.uuid, one.id) not in told.own:
                owners = {uuid for (uuid, _number), pcpus in told.own.items() if pcpus & before.allowed(domain, one)}
                assert after.allowed(domain, one) or owners == {domain.uuid}
