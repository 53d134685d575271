# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run of a module costs beside `ansible -m ping`, on the same host, in turns, in one run.

On one host of the lab, over ssh, with two real guests: the time over that of a ping, less the time that the module
measures load (``interval``) or waits for a guest's next statistics. Then on 1, 10 and 50 targets on this machine, over
libvirt's test driver: how it grows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Optional

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests"))

from lab import Fleet, Guest, Lab

ANSIBLE = Path(sys.executable).with_name("ansible")
HOST = "kvmsched-bench"
INTERVAL_S = 1.0
PING = ("ansible.builtin.ping", {})
TARGETS, FORKS = (1, 10, 50), 10
# Each with what it waits for by itself; None: its own word for it, from its result.
MODULES: dict[str, tuple[dict[str, Any], Optional[float]]] = {
    "kvm_vcpu_pin": ({"interval": INTERVAL_S}, INTERVAL_S),
    "kvm_sched_info": ({"interval": INTERVAL_S}, INTERVAL_S),
    "kvm_mem_balance": ({}, None),
}


def run(inventory: Path, module: str, options: dict[str, Any], *more: str) -> tuple[float, str]:
    """Run a module in check mode on all hosts of an inventory; the seconds that it took, and what it said."""
    command = [str(ANSIBLE), "all", "--inventory", str(inventory), "--check", "-m", module]
    command += ["-a", json.dumps(options)] if options else []
    environment = {**os.environ, "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    began_s = time.monotonic()
    done = subprocess.run([*command, *more], env=environment, capture_output=True, text=True, check=True)
    return time.monotonic() - began_s, done.stdout


def observed_s(said: str) -> float:
    """How long a module says that it observed."""
    result, _end = json.JSONDecoder().raw_decode("{" + said.partition("=> {")[2])
    return float(result["timings_s"]["observe"])


def one_host(inventory: Path, rounds: int) -> dict[str, Any]:
    """The medians of each module's time over the ping of the same round."""
    pings: list[float] = []
    over: dict[str, list[float]] = {name: [] for name in MODULES}
    for _round in range(rounds + 1):  # the first one opens the connection and warms the caches
        pings.append(run(inventory, *PING)[0])
        for name, (options, waits_s) in MODULES.items():
            took_s, said = run(inventory, name, options)
            over[name].append(took_s - pings[-1] - (observed_s(said) if waits_s is None else waits_s))
    return {
        "ping_s": statistics.median(pings[1:]),
        "over_ping_s": {name: statistics.median(values[1:]) for name, values in over.items()},
        "most_over_ping_s": {name: max(values[1:]) for name, values in over.items()},
    }


def many_targets(directory: Path, rounds: int) -> list[dict[str, Any]]:
    """How long a ping and a pass of each kind take on so many targets at once."""
    rows = []
    for count in TARGETS:
        inventory = directory / f"{count}.ini"
        line = "ansible_connection=local ansible_python_interpreter=/usr/bin/python3"
        inventory.write_text("".join(f"target{i} {line}\n" for i in range(count)), encoding="utf-8")
        times: dict[str, list[float]] = {"ping": [], "kvm_vcpu_pin": []}
        options = {"uri": "test:///default", "interval": INTERVAL_S}
        for _round in range(rounds):
            times["ping"].append(run(inventory, *PING, f"--forks={FORKS}")[0])
            times["kvm_vcpu_pin"].append(run(inventory, "kvm_vcpu_pin", options, f"--forks={FORKS}")[0])
        medians = {name: statistics.median(values) for name, values in times.items()}
        rows.append({"targets": count, **{f"{name}_s": median for name, median in medians.items()}})
    return rows


def tell(result: dict[str, Any]) -> None:
    one = result["one_host"]
    print(f"On one host, over ssh; a ping takes {one['ping_s']:.2f} s\n")
    print("| module | over a ping, less what it measures or observes | most |\n|---|---|---|")
    for name, median_s in one["over_ping_s"].items():
        print(f"| {name} | {median_s:.2f} s | {one['most_over_ping_s'][name]:.2f} s |")
    print(f"\nOn targets of this machine, {FORKS} forks; a pass measures for {INTERVAL_S:g} s\n")
    print("| targets | ping | kvm_vcpu_pin | more for each round of forks |\n|---|---|---|---|")
    for row in result["many_targets"]:
        turns = -(-row["targets"] // FORKS)
        more_s = (row["kvm_vcpu_pin_s"] - row["ping_s"]) / turns - INTERVAL_S
        print(f"| {row['targets']} | {row['ping_s']:.2f} s | {row['kvm_vcpu_pin_s']:.2f} s | {more_s:.2f} s |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns that are measured (5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    options = parser.parse_args()
    with Fleet(HOST) as fleet, Lab(own=fleet[HOST]) as lab, tempfile.TemporaryDirectory() as directory:
        lab.start(Guest("kvmsched-test-b1", stats_period_s=1), Guest("kvmsched-test-b2", stats_period_s=1))
        result = {
            "one_host": one_host(fleet.inventory, options.rounds),
            "many_targets": many_targets(Path(directory), max(1, options.rounds // 2)),
        }
    tell(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
