# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bad input, and hosts that are not there: one clear line, nothing changed, no traceback. Wiring over test:///."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import face
import pytest
from face import ANSIBLE, REPOSITORY
from forked import run, run_ok

TEST = "test:///default"
UNREADABLE = '<k:state xmlns:k="urn:kvmsched:state/1" version="9"/>'
ODD_NAME = "vm\u202e\u2028\x9b2J"


@pytest.mark.parametrize(
    ("module", "options", "words"),
    [
        ("kvm_mem_balance", {"starvation": "400M", "waste": "300M"}, ["waste", "300M", "400M"]),
        ("kvm_mem_balance", {"starvation": "-5M"}, ["starvation", "-5M", "150M"]),
        ("kvm_mem_balance", {"waste": "300"}, ["waste", "did you mean 300M"]),
        ("kvm_mem_balance", {"waste": "99999T"}, ["waste", "at most"]),
        ("kvm_mem_balance", {"starvation": "5%"}, ["waste", "both"]),
        ("kvm_mem_balance", {"floor": "lots"}, ["floor", "lots"]),
        ("kvm_mem_balance", {"host_reserve": "120%"}, ["host_reserve", "120%"]),
        ("kvm_mem_balance", {"strategy": "greedy"}, ["strategy", "greedy", "fair"]),
        ("kvm_mem_balance", {"stats_period": -1}, ["stats_period", "-1"]),
        ("kvm_mem_balance", {"arrival_timeout": "nan"}, ["arrival_timeout", "nan"]),
        ("kvm_mem_balance", {"room": "5%"}, ["room", "5%"]),
        ("kvm_mem_balance", {"room": "64GB"}, ["room", "64GB", "did you mean 64G"]),
        ("kvm_mem_balance", {"room": "1G", "room_cells": "x"}, ["room_cells: got 'x'", "NUMA cells"]),
        ("kvm_mem_balance", {"room_cells": "0"}, ["room_cells: got '0'", "beside room"]),
        ("kvm_mem_balance", {"rules": [{"match": "a", "memory": {"floor": "1MB"}}]}, ["rules[0].memory.floor", "1MB"]),
        ("kvm_vcpu_pin", {"threshold": -1}, ["threshold", "-1"]),
        ("kvm_vcpu_pin", {"interval": 0}, ["interval", "0"]),
        ("kvm_vcpu_pin", {"pcpus": "0-"}, ["pcpus", "0-3,8"]),
        ("kvm_vcpu_pin", {"pcpus": "77"}, ["pcpus", "77", "online"]),
        ("kvm_vcpu_pin", {"max_moves": "many"}, ["max_moves", "int"]),
        ("kvm_vcpu_pin", {"interval": 0.1, "deadline": 0}, ["deadline", "0"]),
        ("kvm_vcpu_pin", {"pcpu": "0"}, ["pcpu", "Unsupported"]),
        ("kvm_sched_info", {"subsets": ["cpu"]}, ["subsets", "cpu"]),
        ("kvm_sched_info", {"interval": -2}, ["interval", "-2"]),
    ],
)
def test_bad_input_is_one_line_that_names_the_option(module: str, options: dict[str, Any], words: list[str]) -> None:
    answer = run(module, uri=TEST, **options)
    assert answer.failed, answer.text
    assert "\n" not in answer.msg
    assert all(word in answer.msg for word in words), answer.msg


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("qemu+tcp://127.0.0.1:1/system", ["qemu+tcp", "qemu:///system", "check mode"]),
        ("nonsense:///x", ["nonsense:///x"]),
        ("lxc:///", ["lxc:///", "qemu:///system"]),
        ("", ["uri"]),
    ],
)
def test_a_host_that_cannot_be_acted_on(uri: str, words: list[str]) -> None:
    for module in ("kvm_mem_balance", "kvm_vcpu_pin"):
        answer = run(module, uri=uri)
        assert answer.failed and all(word in answer.msg for word in words), answer.text


def test_a_host_that_does_not_answer_is_told_in_check_mode_too() -> None:
    answer = run("kvm_sched_info", uri="qemu+tcp://127.0.0.1:1/system")
    assert answer.failed and "can't be reached" in answer.msg, answer.text


@pytest.mark.parametrize("module", ["kvm_mem_balance", "kvm_vcpu_pin"])
@pytest.mark.parametrize("state", ["balanced", "released"])
@pytest.mark.parametrize("check", [True, False])
def test_wiring(module: str, state: str, check: bool) -> None:
    """The test driver's statistics are from 1989 and its load is constant: nothing may be balanced by them."""
    answer = run_ok(module, check, uri=TEST, state=state, domains=["*"])
    asks_for_statistics = module == "kvm_mem_balance" and state == "balanced"
    assert [move["kind"] for move in answer.moves] == (["stats_period"] if asks_for_statistics else [])
    assert set(answer.values["timings_s"]) == {"observe", "decide", "apply"}


def test_a_filter_that_matches_nothing_is_no_error() -> None:
    answer = run_ok("kvm_mem_balance", uri=TEST, domains=["nothing*"])
    assert not answer.changed and answer.values["unmatched"] == ["nothing*"]


def test_a_rule_that_matches_nobody_is_told() -> None:
    rules = [{"match": name, "memory": {"weight": 2}} for name in ("test", "nobody")]
    assert run_ok("kvm_mem_balance", uri=TEST, domains=["*"], rules=rules).values["unmatched"] == ["nobody"]
    rules = [{"match": name, "vcpu": {"mode": "ignore"}} for name in ("test", "nobody")]
    assert run_ok("kvm_vcpu_pin", uri=TEST, domains=["*"], rules=rules, interval=0.2).values["unmatched"] == ["nobody"]


def host(path: Path, **domains: str) -> str:
    """The URI of a host of the test driver, described in *path*, with these domains and their metadata."""
    described = "".join(
        f"<domain type='test'><name>{name}</name><metadata>{metadata}</metadata><memory>2097152</memory>"
        "<vcpu>1</vcpu><os><type>hvm</type></os><devices><memballoon model='virtio'/></devices></domain>"
        for name, metadata in domains.items()
    )
    path.write_text(f"<node>{described}</node>", encoding="utf-8")
    return f"test://{path}"


@pytest.mark.parametrize("module", ["kvm_mem_balance", "kvm_vcpu_pin"])
@pytest.mark.parametrize("check", [True, False])
def test_a_record_that_cannot_be_read_fails_only_who_asks_for_its_domain(
    module: str, check: bool, tmp_path: Path
) -> None:
    uri = host(tmp_path / "host.xml", **{"vm[1]": UNREADABLE, "vm1": ""})
    answer = run_ok(module, check, uri=uri, state="released", domains=["*"])
    (line,) = answer.values["not_restored"]
    assert line.startswith("vm[1]: its record has version 9") and "`virsh metadata " in line
    # A newer ansible-core has more than the text of a warning.
    assert '"vm[1]: its record has version 9' in json.dumps(answer.values["warnings"])
    answer = run(module, check, uri=uri, state="released", domains=["vm[1]"])
    assert answer.failed and "virsh metadata" in answer.msg, "its name, not the pattern"
    assert run_ok(module, check, uri=uri, state="released", domains=["vm1"]).values["not_restored"] == []


@pytest.mark.parametrize("module", ["kvm_mem_balance", "kvm_vcpu_pin", "kvm_sched_info"])
def test_a_name_does_no_more_than_stand_there(module: str, tmp_path: Path) -> None:
    """Ansible shows results as they are: what turns the line around or clears the screen must not be in them."""
    uri = host(tmp_path / "host.xml", **{ODD_NAME: UNREADABLE})
    more = {"interval": 0.2} if module == "kvm_sched_info" else {"state": "released"}
    for domains in (["*"], [ODD_NAME]):
        answer = run(module, uri=uri, domains=domains, **more)
        # What it was asked for Ansible has from the user, not from us.
        told = json.dumps({**answer.values, "invocation": None}, ensure_ascii=False)
        assert "vm???2J" in told and not set("\u202e\u2028\x9b") & set(told), told


def test_ansible_shows_what_modules_say(tmp_path: Path) -> None:
    """The other tests here leave Ansible itself out: see `forked`. A mistake, a diff and two warnings through it."""
    refused = face.run("kvm_mem_balance", uri=TEST, waste="300")
    assert refused.failed and "did you mean 300M" in refused.msg and "\n" not in refused.msg, refused.text
    checked = face.run_ok("kvm_mem_balance", True, uri=TEST, domains=["*"])
    assert checked.changed and "-test stats_period: 0" in checked.text and "+test stats_period: 5" in checked.text
    uri = host(tmp_path / "host.xml", **{"vm[1]": UNREADABLE, ODD_NAME: UNREADABLE})
    warned = face.run_ok("kvm_vcpu_pin", uri=uri, state="released", domains=["*"])
    assert "[WARNING]: vm[1]: its record has version 9" in warned.text, warned.text
    assert "vm???2J" in warned.text and not set("\u202e\u2028\x9b") & set(warned.text), warned.text


def test_room_is_asked_for_once_and_kept_by_every_pass() -> None:
    """The test driver's host has less: what lacks is told, and held against until somebody ends it."""
    asked = run_ok("kvm_mem_balance", uri=TEST, domains=["*"], room="100G").values["room"]
    assert asked["kib"] == 100 << 20 and asked["lacks_kib"] > 0 and "too little" in asked["why"]
    assert run_ok("kvm_mem_balance", uri=TEST, domains=["*"]).values["room"]["since_s"] == asked["since_s"]
    planned = run_ok("kvm_mem_balance", True, uri=TEST, domains=["*"], room="1M", room_cells="0").values["room"]
    assert (planned["kib"], planned["cells"]) == (1024, "0")
    assert run_ok("kvm_mem_balance", uri=TEST, domains=["*"]).values["room"]["kib"] == 100 << 20, "a check asks nobody"
    assert run_ok("kvm_mem_balance", uri=TEST, domains=["*"], room="0").values["room"] is None
    assert run_ok("kvm_mem_balance", uri=TEST, domains=["*"]).values["room"] is None


def test_info_in_subsets() -> None:
    everything = run_ok("kvm_sched_info", uri=TEST, domains=["*"], interval=0.2)
    assert everything.values["snapshot"]["domains"][0]["name"] == "test"
    assert "load" in everything.values and "ansible_facts" not in everything.values
    assert everything.msg.endswith(": 1 running domain, 2 vCPUs on 3 pCPUs")
    host = run_ok("kvm_sched_info", uri=TEST, domains=["*"], interval=0.2, subsets=["host"])
    assert "domains" not in host.values["snapshot"] and "topology" not in host.values["snapshot"]["host"]


def test_defaults_by_the_action_group(tmp_path: Path) -> None:
    playbook = tmp_path / "group.yml"
    playbook.write_text(
        "- hosts: localhost\n  gather_facts: false\n"
        "  module_defaults:\n    group/kvmsched.kvm.kvmsched:\n      uri: test:///default\n"
        "  tasks:\n    - kvmsched.kvm.kvm_mem_balance:\n    - kvmsched.kvm.kvm_vcpu_pin:\n"
        "    - kvmsched.kvm.kvm_sched_info:\n"
    )
    done = subprocess.run(
        [str(ANSIBLE.with_name("ansible-playbook")), str(playbook)],
        cwd=REPOSITORY,
        env={**os.environ, "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg")},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
