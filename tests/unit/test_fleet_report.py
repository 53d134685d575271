# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report on a fleet, made of what modules return: built by hand here, real on the lab's hosts (tests/fleet)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).resolve().parents[2] / "plugins/filter/fleet_report.py"
SPEC = importlib.util.spec_from_file_location("fleet_report", SOURCE)
assert SPEC and SPEC.loader
MODULE = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(MODULE)

GIVE = {"kind": "balloon", "domain": "db1", "before_kib": 262144, "after_kib": 347136, "reason": "usable 7M < 60M"}
PIN = {"kind": "pin", "domain": "web1", "thread": "vcpu", "id": 3, "before": "0", "after": "5", "reason": "load 84 %"}
PERIOD = {"kind": "stats_period", "domain": "new1", "before_s": 0, "after_s": 5, "reason": "no statistics yet"}


def memory(starved: int = 0, wasteful: int = 0, unknown: int = 0, **more: Any) -> dict[str, Any]:
    figures = {"starved": starved, "wasteful": wasteful, "unknown": unknown}
    return {"msg": "", "moves": [], "unmet": [], "before": figures, "after": figures, **more}


def vcpu(before: float = 1.0, after: float = 1.0, **more: Any) -> dict[str, Any]:
    return {"moves": [], "before": {"imbalance_pct": before}, "after": {"imbalance_pct": after}, **more}


def report(**hosts: Any) -> dict[str, Any]:
    variables = {name: {"kvmsched_memory": one, "kvmsched_vcpu": two} for name, (one, two) in hosts.items()}
    return dict(MODULE.FilterModule().filters()["fleet_report"](list(hosts), variables))


LOST = {"unreachable": True, "msg": "Failed to connect\nvia ssh"}
BROKEN = {"failed": True, "msg": "libvirt's Python binding is missing on kvm4: install python3-libvirt"}


def test_a_host_in_trouble_is_a_row_and_comes_first() -> None:
    made = report(
        kvm1=(memory(), vcpu()),
        kvm2=(memory(1, 1, moves=[GIVE]), vcpu(61.3, 2.2, moves=[PIN])),
        kvm3=(LOST, {"skipped": True, "changed": False}),
        kvm4=(BROKEN, BROKEN),
    )
    assert [(host["host"], host["state"]) for host in made["hosts"]] == [
        ("kvm3", "unreachable"),
        ("kvm4", "failed"),
        ("kvm2", "ok"),
        ("kvm1", "ok"),
    ]
    assert made["totals"]["hosts"] == {"unreachable": 1, "failed": 1, "ok": 2} and made["totals"]["moves"] == 2
    assert made["text"] == [
        "HOST  STARVED  WASTEFUL  UNKNOWN  LACKING  IMBALANCE  MOVES",
        "kvm3  unreachable: Failed to connect via ssh",
        f"kvm4  failed: {BROKEN['msg']}",
        "kvm2  1        1         0        0M       61 -> 2    2",
        "kvm1  0        0         0        0M       1 -> 1     0",
        "",
        "kvm2",
        "  db1 256M -> 339M: usable 7M < 60M",
        "  web1 vcpu 3 pCPU 0 -> 5: load 84 %",
        "",
        "4 hosts (1 failed, 2 ok, 1 unreachable): 1 guest starved, 1 wasteful, 0 unknown; 2 changes",
    ]


def test_a_host_without_guests_does_not_look_like_one_where_all_is_well() -> None:
    figures = {"starved": 0, "wasteful": 0, "unknown": 0, "actual_kib": 0}
    made = report(kvm1=(memory(before=figures), vcpu()), kvm2=(memory(before=figures, skip_counts={"busy": 1}), vcpu()))
    assert made["text"][1:3] == [
        "kvm1  no guest to balance runs here",
        "kvm2  0        0         0        0M       1 -> 1     0",
    ]


def test_what_lacks_and_what_is_not_known_is_told() -> None:
    unmet = [{"domain": "db1", "kib": 51200, "reason": "host short"}]
    made = report(kvm1=(memory(1, 0, 1, unmet=unmet, moves=[PERIOD]), BROKEN), kvm2=(memory(unmet=unmet), vcpu()))
    assert made["hosts"][0]["state"] == "failed" and made["hosts"][0]["starved"] == 1
    assert "  new1 statistics period 0 -> 5 s: no statistics yet" in made["text"]
    assert "  db1 lacks 50M: host short" in made["text"]


def test_a_host_that_nothing_is_known_of() -> None:
    made = MODULE.fleet_report(["kvm1"], {"kvm1": {}})
    assert made["hosts"][0]["reason"] == "not looked at"


def test_a_module_that_did_not_start_says_what_its_shell_wrote() -> None:
    """So older Ansible tells of an interpreter that is missing: its message says where to look only."""
    shell = "/bin/sh: 1: /nowhere/python3: not found"
    told = {"failed": True, "msg": "it did not execute, see stdout/stderr"}
    for wrote in ({"module_stdout": "", "module_stderr": f"{shell}\n"}, {"module_stdout": f"\r\n{shell}\r\n"}):
        made = report(kvm1=({**told, **wrote}, {**told, **wrote}))
        assert made["hosts"][0]["reason"] == f"it did not execute, see stdout/stderr {shell}"
