# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory of guests of KVM: who starves and who wastes, and what the host would keep of it."""

from __future__ import annotations

import pytest
from lab import Guest, Lab, Machine
from on_machine import records, release, until_unchanged
from starving import HOARDER, HOG, MIB, NEEDY, NOISE_KIB, STARVATION_MIB, WASTE_MIB, free_again

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
