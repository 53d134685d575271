# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bad input, and hosts that are not there: one clear line, nothing changed, no traceback. Wiring over test:///."""

from __future__ import annotations

import os
import subprocess
from typing import Any

import pytest
from face import ANSIBLE, REPOSITORY, run, run_ok

TEST = "test:///default"


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
        ("kvm_mem_balance", {"rules": [{"match": "a", "memory": {"floor": "1MB"}}]}, ["rules[0].memory.floor", "1MB"]),
        ("kvm_vcpu_pin", {"threshold": -1}, ["threshold", "-1"]),
        ("kvm_vcpu_pin", {"interval": 0}, ["interval", "0"]),
        ("kvm_vcpu_pin", {"pcpus": "0-"}, ["pcpus", "0-3,8"]),
        ("kvm_vcpu_pin", {"pcpus": "77"}, ["pcpus", "77", "online"]),
        ("kvm_vcpu_pin", {"max_moves": "many"}, ["max_moves", "many"]),
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


def test_info_in_subsets() -> None:
    everything = run_ok("kvm_sched_info", uri=TEST, domains=["*"], interval=0.2)
    assert everything.values["snapshot"]["domains"][0]["name"] == "test"
    assert "load" in everything.values and "ansible_facts" not in everything.values
    host = run_ok("kvm_sched_info", uri=TEST, domains=["*"], interval=0.2, subsets=["host"])
    assert "domains" not in host.values["snapshot"] and "topology" not in host.values["snapshot"]["host"]


def test_defaults_by_the_action_group(tmp_path: Any) -> None:
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
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
