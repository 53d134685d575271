# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a whole pass costs beside the raw libvirt calls that it can't avoid, measured in turns in one run (root).

    python benchmarks/bench_pass.py [--turns N] [--json FILE]

100 and 1,000 domains are libvirt's test driver behind a libvirtd of our own, 20 are real guests. Passes
are in check mode; the time that they sleep between two samples is not counted. "module" is a pass in a
new process, as far as caches go; "tick" is a daemon's, for both resources at once, over a standing connection:
at rest it reads no XML, as nothing happened. "raw" are the libvirt calls that yield what a pass needs to know,
"made" those of them that it makes: of real guests it reads the vCPUs from /proc. "cpu" is what of the pass's
time this process itself was busy; "decide" is a part of it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "plugins" / "module_utils"), str(ROOT / "tests")]

import libvirt
from kvmsched import config, passes, procfs
from kvmsched.policy.memory import MemoryHistory
from kvmsched.policy.vcpu import VcpuHistory
from lab import Lab, OwnLibvirtd, TinyGuest

T = TypeVar("T")

GUESTS = 20
VCPUS = 4
POLICY = config.load({"vcpu": {"interval": 0.3}, "deadline": 60.0})

# ---------------------------------------------------------------- hosts


def node_xml(domains: int) -> str:
    """A host of the test driver; its domains' XML is as long as that of small real ones."""
    disks = "".join(
        f"<disk type='file' device='disk'><source file='/images/{letter}.img'/><target dev='vd{letter}'/></disk>"
        for letter in "abcd"
    )
    nets = "<interface type='network'><source network='default'/></interface>" * 2
    domain = (
        "<domain type='test'><name>d{}</name><memory unit='KiB'>4194304</memory>"
        "<currentMemory unit='KiB'>2097152</currentMemory>"
        f"<vcpu>{VCPUS}</vcpu><os><type arch='i686'>hvm</type></os><devices>{disks}{nets}"
        "<memballoon model='virtio'><stats period='5'/></memballoon></devices></domain>"
    )
    return (
        "<node>"
        + "".join(domain.format(number) for number in range(domains))
        + "<cpu><mhz>2600</mhz><model>i686</model><active>8</active><nodes>1</nodes><sockets>2</sockets>"
        "<cores>4</cores><threads>1</threads></cpu><memory>1073741824</memory></node>"
    )


@contextmanager
def fake_host(own: OwnLibvirtd, domains: int) -> Iterator[str]:
    with tempfile.NamedTemporaryFile("w", suffix=".xml") as node:
        node.write(node_xml(domains))
        node.flush()
        Path(node.name).chmod(0o644)
        yield f"test+unix:///{node.name}?socket={own.run_directory}/libvirt-sock"


# ---------------------------------------------------------------- the raw calls


def raw_look(connection: Any, made: bool, read: bool, memory: bool, vcpus: bool) -> None:
    """One observation's calls, and nothing else; *read*: the domains' XML, too; *made*: without what /proc saves."""
    connection.getCPUMap()
    if read:
        connection.getCapabilities()
    active = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE
    handles = [handle for handle, _record in connection.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE, active)]
    test = connection.getType() != "QEMU"
    if read:
        raw_read(connection, handles, test, vcpus and not made and not test)
    if test:
        for handle in handles:
            if memory:
                handle.memoryStats()
                handle.info()
            if vcpus:
                handle.vcpus()
        refused(lambda: connection.getMemoryStats(-1))
        return
    groups = libvirt.VIR_DOMAIN_STATS_BALLOON if memory else 0
    groups |= libvirt.VIR_DOMAIN_STATS_VCPU if vcpus and not made else 0
    for first in range(0, len(handles), 32) if groups else ():
        connection.domainListGetStats(handles[first : first + 32], groups, 0)


def raw_read(connection: Any, handles: list[Any], test: bool, affinities: bool) -> None:
    """Of each domain once: pins, record and owner's policy stand in its XML, and a migration forbids changes."""
    chosen = libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE | libvirt.VIR_CONNECT_LIST_DOMAINS_PERSISTENT
    persistent = {handle.UUID() for handle in connection.listAllDomains(chosen)}
    for handle in handles:
        handle.XMLDesc(0)
        if handle.UUID() in persistent:
            handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        if not test:
            handle.controlInfo()
            handle.jobInfo()
        if affinities:
            handle.vcpus()


def refused(call: Callable[[], object]) -> None:
    """The test driver has no such call, which costs a round trip all the same."""
    with suppress(libvirt.libvirtError):
        call()


def raw_pass(uri: str, resource: str, made: bool) -> None:
    memory = resource == "memory"
    connection = libvirt.openReadOnly(uri)
    raw_look(connection, made, memory, memory, not memory)
    # A pass asks again after a pause, when nothing is in any cache.
    time.sleep(POLICY.vcpu.interval_s)
    raw_look(connection, made, not memory, memory, not memory)
    connection.close()


# ---------------------------------------------------------------- the passes


def whole_pass(uri: str, resource: str) -> dict[str, float]:
    how = passes.Conduct(uri=uri, check=True, deadline_s=POLICY.deadline_s)
    if resource == "memory":
        return passes.run_memory(how, POLICY.memory).timings_s
    return passes.run_vcpu(how, POLICY.vcpu).timings_s


class Daemon:
    """Ticks over a standing connection."""

    def __init__(self, uri: str) -> None:
        self._standing = passes.Standing(passes.Conduct(uri=uri, check=True, deadline_s=POLICY.deadline_s))
        self._turns = passes.Turn(POLICY.memory, MemoryHistory()), passes.Turn(POLICY.vcpu, VcpuHistory())

    def tick(self, quiet: bool = False) -> dict[str, float]:
        memory, vcpu = self._turns
        done = self._standing.tick(memory, vcpu, () if quiet else None)
        assert done.memory and done.vcpu, done.failed
        self._turns = (
            replace(memory, history=done.memory.history, before=done.snapshot),
            replace(vcpu, history=done.vcpu.history, before=done.snapshot),
        )
        decide_s = done.memory.timings_s["decide"] + done.vcpu.timings_s["decide"]
        return {"decide": decide_s}


@contextmanager
def sleeping() -> Iterator[list[float]]:
    """How long time.sleep() was asked to sleep within."""
    slept, sleep = [0.0], time.sleep

    def counted(seconds: float) -> None:
        began_s = time.monotonic()
        sleep(seconds)
        slept[0] += time.monotonic() - began_s

    time.sleep = counted
    try:
        yield slept
    finally:
        time.sleep = sleep


def timed(work: Callable[[], T]) -> tuple[float, float, T]:
    """Seconds that passed, seconds of CPU of this process, and what *work* returned."""
    with sleeping() as slept:
        began_s, cpu_s = time.perf_counter(), time.process_time()
        result = work()
        return time.perf_counter() - began_s - slept[0], time.process_time() - cpu_s, result


# ---------------------------------------------------------------- the table


COLUMNS = ("raw_s", "made_s", "pass_s", "cpu_s", "decide_s")
Raw = Callable[[bool], None]
Whole = Callable[[], dict[str, float]]


def compare(turns: int, raw: Raw, whole: Whole) -> dict[str, float]:
    rows = []
    for _turn in range(turns):
        raw_s = timed(lambda: raw(False))[0]
        pass_s, cpu_s, timings_s = timed(whole)
        made_s = timed(lambda: raw(True))[0]
        rows.append((raw_s, made_s, pass_s, cpu_s, timings_s["decide"]))
    figures = dict(zip(COLUMNS, map(statistics.median, zip(*rows))))
    return {**figures, "ratio": figures["pass_s"] / figures["raw_s"], "to_made": figures["pass_s"] / figures["made_s"]}


def measure(host: str, uri: str, turns: int) -> dict[str, dict[str, float]]:
    connection, daemon = libvirt.openReadOnly(uri), Daemon(uri)
    daemon.tick()
    pairs: dict[str, tuple[Raw, Whole]] = {
        "module, memory": (partial(raw_pass, uri, "memory"), partial(whole_pass, uri, "memory")),
        "module, vcpu": (partial(raw_pass, uri, "vcpu"), partial(whole_pass, uri, "vcpu")),
        "tick, an event": (lambda made: raw_look(connection, made, True, True, True), daemon.tick),
        "tick, at rest": (lambda made: raw_look(connection, made, False, True, True), lambda: daemon.tick(True)),
    }
    rows = {}
    for name, (raw, whole) in pairs.items():
        rows[name] = row = compare(turns, raw, whole)
        figures = " ".join(f"{row[key] * 1e3:9.1f}" for key in COLUMNS)
        print(f"{host:16} {name:16} {figures} {row['ratio']:6.2f} {row['to_made']:8.2f}", flush=True)
    return rows


def vcpu_times(uri: str, turns: int) -> dict[str, float]:
    """Microseconds a domain: its vCPUs' times from libvirt, and from the kernel."""
    connection = libvirt.openReadOnly(uri)
    handles = connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
    processes = [process for handle in handles if (process := procfs.qemu_process(handle.name(), False))]
    threads = [procfs.VcpuThreads(process.pid) for process in processes]

    def ask() -> None:
        connection.domainListGetStats(handles, libvirt.VIR_DOMAIN_STATS_VCPU, 0)

    def read() -> None:
        for of_one in threads:
            of_one.read()

    asked, read_ = zip(*((timed(ask)[0], timed(read)[0]) for _turn in range(turns)))
    return {
        "libvirt_us": statistics.median(asked) / len(handles) * 1e6,
        "proc_us": statistics.median(read_) / len(threads) * 1e6,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5, help="measurements of each, of which the median counts")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    arguments = parser.parse_args()
    hosts: dict[str, Any] = {}
    heads = " ".join(f"{column[:-2] + ' ms':>9}" for column in COLUMNS)
    print(f"{'':33} {heads} {'to raw':>6} {'to made':>8}")
    with Lab() as lab:
        lab.start(*(TinyGuest(f"kvmsched-test-bench{n}", cpu=[0.02]) for n in range(GUESTS)))
        host = f"{GUESTS} real guests"
        hosts[host] = measure(host, "qemu:///system", arguments.turns)
        times = vcpu_times("qemu:///system", 5 * arguments.turns)
    with OwnLibvirtd() as own:
        for domains in (100, 1000):
            with fake_host(own, domains) as uri:
                host = f"{domains} domains"
                hosts[host] = measure(host, uri, arguments.turns)
    print(f"vCPU times of a domain: {times['libvirt_us']:.0f} us from libvirt, {times['proc_us']:.0f} us from /proc")
    if arguments.json:
        arguments.json.write_text(json.dumps({**hosts, "vcpu_times": times}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
