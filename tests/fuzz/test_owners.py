# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may define a domain or write its metadata writes anything: it costs that domain its turn, and a bounded time."""

from __future__ import annotations

import contextlib
import time
from typing import Any
from xml.sax.saxutils import quoteattr

from conftest import Host, standing
from fake_libvirt import MIB, Guest
from hypothesis import example, given
from hypothesis import strategies as st
from kvmsched import config, libvirt_xml, passes
from kvmsched.baseline import OWNER_URI, STATE_URI
from kvmsched.policy.memory.history import MemoryHistory
from kvmsched.policy.vcpu.history import VcpuHistory

POLICY = config.load_daemon({})
# What costs the CPU this long holds the others up. It is CPU time, of this thread and those that it asks.
MOST_CPU_S = 10.0

CPUSETS = st.one_of(
    st.sampled_from(
        ["", "0", "0-3", "0-16383", "16384", "3-1", "^0", "0,^0", "0-3,", "a", "-1", "0-16383," * 30000 + "0"]
    ),
    st.text("0123456789,-^ ", max_size=30),
)
NUMBERS = st.one_of(
    st.sampled_from(
        [
            "",
            "0",
            "1",
            "-1",
            "9" * 15,
            "9" * 16,
            "2147483647",
            "2147483648",
            "1048576",
            "9" * 5000,
            "1e9",
            "0x10",
            "\u0661",
            "1_0",
            " 7 ",
        ]
    ),
    st.integers(-(2**64), 2**64).map(str),
)
# What XML can hold: libvirt refuses the rest.
TEXT = st.text(
    st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="\ufffe\uffff"), max_size=40
) | st.just("x" * 20000)
WORDS = st.one_of(TEXT, NUMBERS, st.sampled_from(["ignore", "auto", "dedicated", "grow-only", "5%", "1G", "1g", "nan"]))
KEYS = st.sampled_from([*sorted(config.OWNER_KEYS), "floor2", "k" * 5000])


def attributes(values: dict[str, str]) -> str:
    return " ".join(f"{key}={quoteattr(text)}" for key, text in values.items())


OWNER = st.dictionaries(KEYS, WORDS, max_size=6).map(lambda a: f'<o:policy xmlns:o="{OWNER_URI}" {attributes(a)}/>')
MEMORY = st.fixed_dictionaries(
    {"original_kib": NUMBERS, "previous_kib": NUMBERS, "intended_kib": NUMBERS, "when_s": NUMBERS},
    optional={"reach_kib": NUMBERS, "most_kib": NUMBERS, "more": TEXT},
)
PERIOD = st.fixed_dictionaries(
    {"original_s": NUMBERS, "previous_s": NUMBERS, "intended_s": NUMBERS | st.just("5"), "when_s": NUMBERS}
)
PIN = st.fixed_dictionaries(
    {
        "thread": st.sampled_from(["vcpu", "emulator", "iothread"]) | TEXT,
        "id": NUMBERS,
        "when_s": NUMBERS,
        "original": CPUSETS,
        "previous": CPUSETS,
        "intended": CPUSETS,
    }
)


def state(host: str, domain: str, memory: Any, pins: list[Any], times: int, period: Any = None) -> str:
    parts = [f"<k:{name} {attributes(part)}/>" for name, part in (("memory", memory), ("stats_period", period)) if part]
    parts += [f"<k:pin {attributes(pin)}/>" for pin in pins]
    head = f'xmlns:k="{STATE_URI}" version="1" host={quoteattr(host)} domain={quoteattr(domain)}'
    return f"<k:state {head}>{''.join(parts) * times}</k:state>"


HOST_UUID = "11111111-1111-1111-1111-111111111111"
STATE = st.builds(
    state,
    st.just(HOST_UUID) | TEXT,
    st.just("1") | NUMBERS,
    st.none() | MEMORY,
    st.lists(PIN, max_size=3),
    st.sampled_from([1, 1, 1, 40]),
    st.none() | PERIOD,
)
METADATA = st.lists(OWNER | STATE, max_size=3).map("".join)
ELEMENTS = st.one_of(
    NUMBERS.map(lambda n: f"<memory unit='KiB'>{n}</memory>"),
    NUMBERS.map(lambda n: f"<currentMemory unit='bytes'>{n}</currentMemory>"),
    st.tuples(NUMBERS, CPUSETS).map(lambda t: f"<vcpu cpuset={quoteattr(t[1])}>{t[0]}</vcpu>"),
    st.lists(st.tuples(NUMBERS, CPUSETS), max_size=4).map(
        lambda rows: (
            "<cputune>"
            + "".join(f"<vcpupin vcpu={quoteattr(n)} cpuset={quoteattr(c)}/>" for n, c in rows)
            + "".join(f"<vcpusched vcpus={quoteattr(c)} scheduler='fifo'/>" for _n, c in rows)
            + "</cputune>"
        )
    ),
    CPUSETS.map(lambda c: f"<numatune><memory mode='strict' nodeset={quoteattr(c)}/></numatune>"),
    NUMBERS.map(lambda n: f"<iothreads>{n}</iothreads>"),
    NUMBERS.map(lambda n: f"<devices><memballoon model='virtio'><stats period={quoteattr(n)}/></memballoon></devices>"),
    NUMBERS.map(lambda n: f"<memtune><hard_limit>{n}</hard_limit></memtune>"),
    METADATA.map(lambda m: f"<metadata>{m}</metadata>"),
)
XML = st.one_of(
    st.lists(ELEMENTS, max_size=5).map(lambda parts: f"<domain>{''.join(parts)}</domain>"),
    st.text(max_size=40),
    st.just("<domain>" + "<a>" * 200000),
    st.just("x" * (libvirt_xml.LONGEST + 1)),
)


def look_twice(host: Host, *odd: Guest) -> None:
    """Two passes beside an honest guest, which must have its turn; and what must hold of all that is told."""
    honest = Guest("honest", 4096 * MIB, 1024 * MIB, 1000 * MIB)
    world = host(honest, *odd)
    memory = passes.Turn(POLICY.memory, MemoryHistory())
    vcpu = passes.Turn(POLICY.vcpu, VcpuHistory())
    began_s = time.process_time()
    with contextlib.closing(standing()) as hosted:
        for _pass in range(4):
            world.clock.ahead_s += 5
            world.calls = 0
            tick = hosted.tick(memory, vcpu)
            assert not tick.failed and tick.memory is not None and tick.vcpu is not None
            memory = passes.Turn(POLICY.memory, tick.memory.history, tick.snapshot)
            vcpu = passes.Turn(POLICY.vcpu, tick.vcpu.history, tick.snapshot)
            for skip in (*tick.memory.skips, *tick.vcpu.skips):
                assert len(skip.reason) < 600 and "\n" not in skip.reason, skip
            assert "honest" in {domain.name for domain in tick.snapshot.domains}
            assert world.calls <= 100
            for failure in (*tick.memory.outcome.failures, *tick.vcpu.outcome.failures):
                assert failure.domain != "honest" and len(failure.reason) < 600, failure
    assert honest.usable_kib >= 150 * MIB, "it was not served"
    assert time.process_time() - began_s < MOST_CPU_S


@given(METADATA, st.integers(1, 4))
@example(
    state(
        HOST_UUID,
        "1",
        None,
        [
            {
                "thread": "vcpu",
                "id": "0",
                "when_s": "1",
                "original": "0-16383," * 29000 + "0",
                "previous": "0",
                "intended": "0",
            }
        ],
        1,
    ),
    1,
)
def test_whatever_stands_in_metadata_nobody_else_loses_a_turn(host: Host, metadata: str, vcpus: int) -> None:
    look_twice(host, Guest("odd", 2048 * MIB, 1024 * MIB, 512 * MIB, metadata=metadata, vcpus=vcpus))


@given(XML)
def test_whatever_stands_in_its_xml_nobody_else_loses_a_turn(host: Host, text: str) -> None:
    look_twice(host, Guest("odd", 2048 * MIB, 1024 * MIB, 512 * MIB, xml=text))


@given(METADATA)
def test_a_forged_record_can_be_released_or_is_told(host: Host, metadata: str) -> None:
    """What it may not give back is said, and nobody else's release fails for it."""
    world = host(
        Guest("honest", 4096 * MIB, 1024 * MIB, 512 * MIB),
        Guest("odd", 2048 * MIB, 1024 * MIB, 512 * MIB, metadata=metadata),
    )
    how = passes.Conduct("test:///default", deadline_s=20.0)
    results: list[Any] = [
        passes.run_vcpu(how, config.load({}).vcpu, release=True),
        passes.run_memory(how, config.load({}).memory, release=True),
    ]
    for result in results:
        assert all(left.domain == "odd" and len(str(left)) < 600 for left in result.not_restored), result.not_restored
        assert result.failed is None, result
        assert not [failure for failure in result.outcome.failures if failure.domain == "honest"]
    assert all(kib <= guest.maximum_kib for guest, kib in world.sent)
