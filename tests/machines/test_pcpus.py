# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""SMT, cells, reserved and isolated pCPUs: where vCPUs are placed, by the machine's kernel."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from lab import Lab, Machine, TinyGuest
from on_machine import obey, place, records, release, until_unchanged

pytestmark = pytest.mark.nightly

RESERVED, ISOLATED = 0, 7
CELL_0, CELL_1 = {0, 1, 2, 3}, {4, 5, 6, 7}
FREE, NEAR, BOUND, FAR = NAMES = [f"kvmsched-test-{name}" for name in ("free", "near", "bound", "far")]
BEFORE = [{2}, {2}, {4}, {4}]
# Two of them on one pCPU want more than there is.
LOAD = 0.7
BOUND_XML = "<numatune><memory mode='strict' nodeset='1'/></numatune>"


def beside(cell: int) -> str:
    """A guest cell whose memory is in that cell of the host: its vCPU belongs there."""
    return f"""
<cpu><numa><cell id='0' cpus='0' memory='16' unit='MiB'/></numa></cpu>
<numatune>
  <memory mode='strict' nodeset='0-1'/><memnode cellid='0' mode='strict' nodeset='{cell}'/>
</numatune>"""


def test_an_isolated_pcpu_is_used_by_guests_whose_definition_names_it(machine: Machine) -> None:
    """The kernel balances nothing onto it: both stay on the other one of their set until somebody pins them."""
    obey(machine)
    asked = {6, ISOLATED}
    with Lab(own=machine, say=print) as lab:
        names = [f"kvmsched-test-{name}" for name in ("this", "that")]
        guests = lab.start(*(TinyGuest(name, cpu=[LOAD], cpuset="6-7") for name in names))
        assert [place(machine, guest) for guest in guests] == [asked, asked]
        waited = waits(lab)
        assert until_unchanged(machine, "vcpu")[0]["changed"]
        assert sorted(map(tuple, (place(machine, guest) for guest in guests))) == [(6,), (ISOLATED,)]
        assert max(waits(lab)) < max(waited), waited
        release(machine)
        assert [place(machine, guest) for guest in guests] == [asked, asked] and not records(*guests)


@pytest.fixture(scope="module")
def lab(machine: Machine) -> Iterator[Lab]:
    """Four vCPUs that pile up on one pCPU of each cell."""
    with Lab(own=machine, say=print) as lab:
        lab.start(
            TinyGuest(FREE, cpu=[LOAD], pin={0: "2"}),
            TinyGuest(NEAR, cpu=[LOAD], pin={0: "2"}, extra=beside(0)),
            TinyGuest(BOUND, cpu=[LOAD], pin={0: "4"}, extra=BOUND_XML),
            TinyGuest(FAR, cpu=[LOAD], pin={0: "4"}, extra=beside(1)),
        )
        yield lab


def places(machine: Machine, lab: Lab) -> list[set[int]]:
    """Of all guests, in the order of NAMES."""
    found = [place(machine, lab[name]) for name in NAMES]
    print(found)
    return found


def waits(lab: Lab) -> list[float]:
    """What each waits for its pCPU, of a time that is long enough for any load."""
    measured = lab.measure(8)
    return [measured[name][0].wait for name in lab.guests]


def test_each_gets_a_core_of_its_own_within_its_cell(machine: Machine, lab: Lab) -> None:
    obey(machine)
    assert places(machine, lab) == BEFORE
    waited = waits(lab)
    assert until_unchanged(machine, "vcpu")[0]["changed"]
    found = places(machine, lab)
    assert all(len(place) == 1 and place.isdisjoint({RESERVED, ISOLATED}) for place in found)
    assert len({pcpu // 2 for place in found for pcpu in place}) == len(found), "each on another core"
    _free, near, bound, far = found
    assert near <= CELL_0 and bound <= CELL_1 and far <= CELL_1
    assert all(now < before for now, before in zip(waits(lab), waited))
    release(machine)
    assert places(machine, lab) == BEFORE and not records(*lab.guests.values())
