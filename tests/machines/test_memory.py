# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory of guests of KVM: who starves and who wastes, and what the host would keep of it."""

from __future__ import annotations

import pytest
from lab import Guest, Lab, Machine
from on_machine import records, release, until_unchanged
from starving import (
    HOARDER,
    HOG,
    MIB,
    NEEDY,
    NOISE_KIB,
    STARVATION_MIB,
    WASTE_MIB,
    filled_kib,
    free_again,
    in_use_kib,
    limited,
    starve,
)

pytestmark = pytest.mark.nightly


def test_memory_goes_from_who_wastes_it_to_who_starves(machine: Machine, lab: Lab) -> None:
    hog, hoarder = lab.start(NEEDY, Guest(HOARDER, memory_mib=512))
    sizes = hog.balloon_kib(), hoarder.balloon_kib()
    before = hog.report(), hoarder.report()
    assert before[0].available_kib < STARVATION_MIB * MIB and before[1].free_kib > WASTE_MIB * MIB
    assert until_unchanged(machine, "memory")[0]["changed"]
    after = hog.report(), hoarder.report()
    print(before, after)
    assert after[0].available_kib >= STARVATION_MIB * MIB - NOISE_KIB
    assert after[1].free_kib <= WASTE_MIB * MIB + NOISE_KIB
    assert records(hog, hoarder) == [HOG, HOARDER]
    free_again(hog)
    release(machine)
    assert (hog.balloon_kib(), hoarder.balloon_kib()) == sizes and not records(hog, hoarder)
    assert hog.alive and hoarder.alive and not hog.hog_kills


def test_who_is_dying_gets_something_of_what_a_slice_has_left(machine: Machine, lab: Lab) -> None:
    left_kib = 56 * MIB
    (hog,) = lab.start(NEEDY)
    starve(hog, 5)
    size_kib = hog.balloon_kib()
    own_kib = filled_kib(hog)
    with limited(machine, "MemoryMax", in_use_kib(machine) + left_kib):
        passes = until_unchanged(machine, "memory")
        given_kib = hog.balloon_kib() - size_kib
        print(f"{given_kib} KiB given, {left_kib} were left, {own_kib} of it were its own")
        assert passes[0]["changed"] and 0 < given_kib <= left_kib + own_kib
    assert until_unchanged(machine, "memory")[-1]["before"]["starved"] == 0
    assert hog.balloon_kib() > size_kib + given_kib and hog.alive and not hog.hog_kills
    free_again(hog)
    release(machine)
    assert hog.balloon_kib() == size_kib
