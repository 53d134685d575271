# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""libvirt fails with any code, or answers what it never should, at every place where it is asked."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Host, standing
from fake_libvirt import MIB, Error, Guest, World
from hypothesis import given
from hypothesis import strategies as st
from kvmsched import config, passes
from kvmsched.policy.memory.history import MemoryHistory
from kvmsched.policy.vcpu.history import VcpuHistory

POLICY = config.load_daemon({"vcpu": {"hold": 1, "cooldown": 0}})
# What is asked about one guest, while it is read and while it is changed.
CALLS = [
    "XMLDesc",
    "controlInfo",
    "jobInfo",
    "statistics",
    "memoryStats",
    "setMetadata",
    "setMemory",
    "maxMemory",
    "isActive",
]
HOST_CALLS = [
    "getCPUMap",
    "getCapabilities",
    "getType",
    "getAllDomainStats",
    "domainListGetStats",
    "listAllDomains",
    "getMemoryStats",
    "lookupByUUID",
    "lookupByUUIDString",
]
CODES = range(112)
# VIR_FROM_QEMU, VIR_FROM_DOM, VIR_FROM_RPC: the last one means that the connection is lost.
DOMAINS = [10, 20, 7]
ODD: list[Any] = [
    None,
    0,
    -1,
    2**70,
    "",
    "text",
    b"x",
    [],
    {},
    (),
    [None],
    {"a": None},
    {"balloon.maximum": None},
    {"balloon.maximum": "1", "balloon.current": 1.5},
    {1: 2},
    float("nan"),
    object(),
    True,
]


def guests() -> list[Guest]:
    return [
        Guest("hungry", 4096 * MIB, 1024 * MIB, 1000 * MIB),
        Guest("sick", 4096 * MIB, 1024 * MIB, 1000 * MIB, period_s=0),
        Guest("lazy", 4096 * MIB, 4096 * MIB, 512 * MIB),
    ]


def ticks(world: World, number: int = 2) -> list[passes.Tick]:
    """Passes over *world*; none of them may fail, but for libvirt as a whole."""
    memory = passes.Turn(POLICY.memory, MemoryHistory())
    vcpu = passes.Turn(POLICY.vcpu, VcpuHistory())
    made = []
    with contextlib.closing(standing()) as hosted:
        for _pass in range(number):
            world.clock.ahead_s += 5
            tick = hosted.tick(memory, vcpu)
            assert not tick.failed, tick.failed
            if tick.memory is not None and tick.vcpu is not None:
                memory = passes.Turn(POLICY.memory, tick.memory.history, tick.snapshot)
                vcpu = passes.Turn(POLICY.vcpu, tick.vcpu.history, tick.snapshot)
            made.append(tick)
    return made


def nobody_else_lost_a_turn(world: World, made: list[passes.Tick]) -> None:
    for tick in made:
        assert {domain.name for domain in tick.snapshot.domains} >= {"hungry", "lazy"}, tick.snapshot.skips
        told: list[Any] = list(tick.snapshot.skips)
        for result in (tick.memory, tick.vcpu):
            assert result is not None and not [f for f in result.outcome.failures if f.domain != "sick"]
            told += [*result.skips, *result.outcome.failures]
        assert all(len(one.reason) < 600 and "\n" not in one.reason for one in told)
    assert world.guests[0].usable_kib >= 150 * MIB


def failing(error: Error) -> Callable[[], Any]:
    def fail() -> Any:
        raise error

    return fail


@pytest.mark.parametrize("call", CALLS)
@given(st.sampled_from(list(itertools.product(CODES, DOMAINS[:2]))), st.text(max_size=500))
def test_an_error_about_one_guest_costs_only_its_turn(host: Host, call: str, code: tuple[int, int], text: str) -> None:
    world = host(*guests())
    world.odd["sick", call] = failing(Error(*code, text))
    nobody_else_lost_a_turn(world, ticks(world))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("odd", ODD, ids=[type(odd).__name__ + str(number) for number, odd in enumerate(ODD)])
def test_an_odd_answer_about_one_guest_costs_only_its_turn(host: Host, call: str, odd: Any) -> None:
    world = host(*guests())
    world.odd["sick", call] = lambda: odd
    nobody_else_lost_a_turn(world, ticks(world))


def in_one_line(world: World) -> None:
    """Either all is well all the same, or the pass fails in one line; and afterwards it is as it was."""
    try:
        ticks(world)
    except Exception as error:
        line = passes.told(error)
        assert len(line) < 700 and "\n" not in line and line, line
    world.odd = {}
    nobody_else_lost_a_turn(world, ticks(world))


@pytest.mark.parametrize("call", HOST_CALLS)
@given(st.sampled_from(list(itertools.product(CODES, DOMAINS))), st.text(max_size=500))
def test_an_error_about_the_host_is_one_line(host: Host, call: str, code: tuple[int, int], text: str) -> None:
    world = host(*guests())
    world.odd[None, call] = failing(Error(*code, text))
    in_one_line(world)


@pytest.mark.parametrize("call", HOST_CALLS)
@pytest.mark.parametrize("odd", ODD, ids=[type(odd).__name__ + str(number) for number, odd in enumerate(ODD)])
def test_an_odd_answer_about_the_host_is_one_line(host: Host, call: str, odd: Any) -> None:
    world = host(*guests())
    world.odd[None, call] = lambda: odd
    in_one_line(world)
