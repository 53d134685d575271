# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What `kvmsched record` costs beside a daemon that looks on, in CPU of its own process (root).

    python benchmarks/bench_record.py [--guests N] [--seconds S] [--period S] [--test-driver] [--json FILE]

The guests are real and small, and idle but for a fiftieth of a pCPU. With --test-driver (no root) they are those of
libvirt's test driver, which runs within the recording process: no QEMU and no libvirtd are asked, and no daemon is
beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / part) for part in ("benchmarks", "plugins/module_utils", "tests", "tests/daemon")]

from bench_pass import node_xml
from face import COMMAND, bare_environment
from kvmsched.app import record
from lab import Lab, TinyGuest
from running import policy, running

PATIENCE_S = 300


def cpu_s(pid: int) -> float:
    """What all threads of a process ran, to the nanosecond: a tick of 10 ms would be much of it."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text(encoding="ascii").split()[0]) for thread in threads) / 1e9


@contextmanager
def hosted(directory: Path, guests: int, test_driver: bool) -> Iterator[str]:
    """The URI of a host with so many guests, and a daemon that looks on."""
    if test_driver:
        (directory / "node.xml").write_text(node_xml(guests), encoding="utf-8")
        yield f"test://{directory}/node.xml"
        return
    with ExitStack() as stack:
        lab = stack.enter_context(Lab())
        lab.start(*(TinyGuest(f"kvmsched-test-record{n}", cpu=[0.02]) for n in range(guests)))
        stack.enter_context(running(policy({"mode": "observe"}), directory=directory)).wait_passes(2)
        yield "qemu:///system"


def measure(directory: Path, uri: str, guests: int, seconds: float, period_s: float) -> dict[str, Any]:
    path = directory / f"r{record.SUFFIX}"
    (directory / "record.json").write_text(json.dumps({"daemon": {"period": period_s}}), encoding="utf-8")
    words = [*COMMAND, "record", "--policy", str(directory / "record.json"), "--uri", uri, str(path)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, env=bare_environment())
    try:
        # The first looks read what later ones know.
        time.sleep(2 * period_s + 1)
        began_s, before_s = time.monotonic(), cpu_s(process.pid)
        time.sleep(seconds)
        spent_s, ran_s = time.monotonic() - began_s, cpu_s(process.pid) - before_s
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_S)
    looks = list(record.read([str(path)]))
    assert len(looks[-1].snapshot.domains) >= guests, "it saw all guests"
    return {
        "guests": guests,
        "looks": len(looks),
        "core_pct": 100 * ran_s / spent_s,
        "ms_a_look": 1e3 * ran_s / (spent_s / period_s),
        "bytes_a_guest_and_look": path.stat().st_size / len(looks) / guests,
        "load": os.getloadavg()[0],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guests", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--period", type=float, default=5.0)
    parser.add_argument("--test-driver", action="store_true", help="no real guests")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kvmsched-test-") as name, ExitStack() as stack:
        uri = stack.enter_context(hosted(Path(name), arguments.guests, arguments.test_driver))
        told = measure(Path(name), uri, arguments.guests, arguments.seconds, arguments.period)
    what = "guests of the test driver, in this process" if arguments.test_driver else "real guests"
    print(
        f"recording {told['guests']} {what}, a look every {arguments.period:g} s: {told['core_pct']:.2f} % of a core,"
        f" {told['ms_a_look']:.1f} ms of CPU a look, {told['bytes_a_guest_and_look']:.0f} bytes a guest and look"
        f" (load of this machine: {told['load']:.1f})"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
