# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Root in a guest writes any 64-bit value into the balloon's register and statistics, in any order."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from conftest import Host, standing
from fake_libvirt import MIB, QEMU_KIB, Guest, World
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kvmsched import config, passes
from kvmsched.model import BALLOON_TOLERANCE_KIB
from kvmsched.policy.memory.history import MemoryHistory
from kvmsched.policy.vcpu.history import VcpuHistory

PERIOD_S = 5
POLICY = config.load_daemon({"memory": {"reclaim": "eager"}})
STARVATION_KIB, WASTE_KIB = 150 * MIB, 300 * MIB

# What a guest writes of itself. Its maximum, its resident size and the time of its answer are the host's own words.
FIELDS = [
    *("current", "unused", "usable", "available", "disk_caches"),
    *("swap_in", "swap_out", "major_fault", "minor_fault", "hugetlb_pgalloc"),
]
# The largest that libvirt was seen to tell, and what overflows where.
ODD = (0, 1, -1, 2**31, 2**32, 2**52, 2**63 - 1, 2**63, 2**64 - 1, 18014398492000000, 10**17, 999_999_999_999_999)
VALUES = st.one_of(
    st.none(),
    st.sampled_from(ODD),
    st.integers(0, 8 * 1024 * MIB),
    st.integers(-(2**63), 2**64 - 1),
    st.integers(0, 99),
)
LIE = st.dictionaries(st.sampled_from([f"balloon.{name}" for name in FIELDS]), VALUES, max_size=6)
# A chain goes over its lies again and again, so that what swings does so.
LIES = st.lists(LIE, min_size=1, max_size=5)


def guests(liars: int) -> list[Guest]:
    """An honest one that starves, an honest one with too much, and liars."""
    hungry = Guest("hungry", 4096 * MIB, 1024 * MIB, 1000 * MIB)
    lazy = Guest("lazy", 4096 * MIB, 4096 * MIB, 512 * MIB)
    return [hungry, lazy, *(Guest(f"liar{n}", 2048 * MIB, 1024 * MIB, 512 * MIB) for n in range(liars))]


class Chain:
    """A daemon's passes over a world, and what must hold in each of them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.memory = passes.Turn(POLICY.memory, MemoryHistory())
        self.vcpu = passes.Turn(POLICY.vcpu, VcpuHistory())

    def run(self, lies: list[dict[str, Any]], passes_made: int) -> None:
        with contextlib.closing(standing()) as host:
            for number in range(passes_made):
                for liar in self.liars():
                    liar.says = lies[number % len(lies)]
                self.world.clock.ahead_s += PERIOD_S
                self.turn(host)

    def liars(self) -> list[Guest]:
        return [guest for guest in self.world.guests if guest.name.startswith("liar")]

    def turn(self, host: passes.Standing) -> None:
        self.world.calls, self.world.sent = 0, []
        tick = host.tick(self.memory, self.vcpu, ())
        assert not tick.failed and tick.memory is not None and tick.vcpu is not None
        self.memory = passes.Turn(POLICY.memory, tick.memory.history, tick.snapshot)
        self.vcpu = passes.Turn(POLICY.vcpu, tick.vcpu.history, tick.snapshot)
        seen = {domain.name for domain in tick.snapshot.domains}
        assert {guest.name for guest in self.world.guests} == seen, "a lie is no reason to look away"
        assert self.world.calls <= 30 * (1 + len(self.world.guests)), "work is bounded"
        for skip in tick.memory.skips:
            assert skip.domain.startswith("liar") or skip.code in ("fine", "settling", "booting"), skip
            assert skip.reason.isprintable() and len(skip.reason) < 500
        for guest, kib in self.world.sent:
            self.check(guest, kib)

    def check(self, guest: Guest, kib: int) -> None:
        assert kib <= guest.maximum_kib
        # Who says that it has less than its floor is given some of that: it hurts nobody but itself.
        said_kib = guest.says.get("balloon.current", guest.actual_kib) or 0
        assert kib >= guest.maximum_kib // 10 - BALLOON_TOLERANCE_KIB or kib > said_kib >= 0
        if not guest.name.startswith("liar"):
            assert kib >= guest.used_kib + STARVATION_KIB - BALLOON_TOLERANCE_KIB or kib >= guest.actual_kib


@given(LIES, st.integers(1, 2))
def test_whatever_a_guest_says_no_other_loses_its_turn(host: Host, lies: list[dict[str, Any]], liars: int) -> None:
    Chain(host(*guests(liars), total_kib=6 * 1024 * MIB)).run(lies, 10)


@given(LIES)
@example([{"balloon.current": 18014398492000000, "balloon.usable": 0}])
@example([{"balloon.swap_in": 5}, {"balloon.swap_in": 4}, {"balloon.swap_in": 3}])
def test_where_there_is_room_for_all_maxima_the_hungry_are_fed(host: Host, lies: list[dict[str, Any]]) -> None:
    """However a liar is charged, it is charged at no more than its maximum."""
    everybody = guests(2)
    most_kib = sum(guest.maximum_kib + QEMU_KIB for guest in everybody)
    world = host(*everybody, total_kib=most_kib + 4 * 1024 * MIB)
    Chain(world).run(lies, 10)
    hungry = everybody[0]
    assert hungry.usable_kib >= STARVATION_KIB, "it starves beside memory that nobody can take"


@given(LIES)
def test_what_was_written_can_be_read_and_given_back(host: Host, lies: list[dict[str, Any]]) -> None:
    """Whatever a guest said while its record was written, a release knows what it had."""
    world = host(*guests(2), total_kib=6 * 1024 * MIB)
    Chain(world).run(lies, 6)
    for liar in world.guests:
        liar.says = {}
    world.clock.ahead_s += 3600
    with contextlib.closing(standing()) as hosted:
        now = hosted.tick(None, None).snapshot
    assert not [domain.name for domain in now.domains if domain.record_error], [d.record_error for d in now.domains]


@settings(max_examples=10)
@given(st.lists(st.sampled_from(ODD), min_size=1, max_size=3))
def test_what_it_says_of_its_load_is_bounded_too(host: Host, times: list[int]) -> None:
    """vCPU times are the host's word, but a counter may wrap or stand still."""
    chain = Chain(host(*guests(1)))
    chain.run([{"vcpu.0.time": value} for value in times], 6)


@pytest.mark.nightly
@settings(max_examples=3)
@given(LIES)
def test_a_day_of_lies(host: Host, lies: list[dict[str, Any]]) -> None:
    Chain(host(*guests(2), total_kib=6 * 1024 * MIB)).run(lies, 3000)
