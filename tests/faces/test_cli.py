# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command as a user has it: a process of the distribution's Python, on libvirt's test driver."""

from __future__ import annotations

import json
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from face import PACKAGE, bare_environment, kvmsched, ok, ok_json, run, run_ok

TEST = ["--uri", "test:///default"]


def test_a_pass_says_what_it_would_do_and_does_it() -> None:
    assert "test: stats_period 0 -> 5: it reports no statistics" in ok("once", "memory", "--dry-run", *TEST)
    diff = ok("once", "memory", "--dry-run", "--diff", *TEST)
    assert "- test stats_period: 0\n+ test stats_period: 5\n    it reports no statistics\n" in diff
    values = ok_json("once", *TEST)
    assert values["changed"] and values["memory"]["changed"] and not values["vcpu"]["changed"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, ["COMMAND"]),
        (["dance"], 2, ["dance", "once"]),
        (["once", "disk"], 2, ["disk", "memory"]),
        (["once", "--uri", "nonsense:///x"], 1, ["nonsense:///x", "qemu:///system"]),
        (["once", "--uri", "qemu+tcp://127.0.0.1:1/system", "--dry-run"], 1, ["can't be reached"]),
        (["once", "--policy", "/nonexistent.json", *TEST], 2, ["/nonexistent.json", "No such file"]),
        (["explain", "nobody", *TEST], 1, ["nobody", "no running domain"]),
        (["release", "nobody", *TEST], 1, ["nobody", "no running domain"]),
        (["plan", "/nonexistent.json"], 2, ["/nonexistent.json"]),
        (["plan", "/usr/bin/env"], 2, ["not valid JSON"]),
        (["top", "-d", "nan", *TEST], 2, ["--delay", "nan"]),
        (["top", "-n", "0", *TEST], 2, ["--iterations", "0"]),
        (["top", *TEST], 2, ["terminal", "--batch"]),
        (["snapshot", "-o", "/nonexistent/x", *TEST], 1, ["/nonexistent/x"]),
        (["snapshot", "-o", "/dev/full", *TEST], 1, ["No space"]),
        (["check", "/nonexistent.json"], 2, ["/nonexistent.json"]),
        (["status", "--policy", "x"], 2, ["--policy"]),
        (["check", "/nonexistent.json", "--defaults"], 2, ["--defaults", "/nonexistent.json"]),
    ],
)
def test_what_goes_wrong_is_one_line_and_a_documented_code(arguments: list[str], code: int, words: list[str]) -> None:
    done = kvmsched(*arguments)
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("kvmsched: ")
    assert all(word in done.stderr for word in words), done.stderr


def test_what_came_of_the_first_pass_is_told_though_the_second_could_not_be(tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text(json.dumps({"vcpu": {"pcpus": "500"}}))
    done = kvmsched("once", "--json", "--policy", str(tmp_path / "policy.json"), *TEST)
    values = json.loads(done.stdout)
    assert done.returncode == 1 and "pcpus: got 500" in done.stderr
    assert values["changed"] and values["memory"]["changed"] and "pcpus: got 500" in values["vcpu"]["failed"]


def test_standard_input_may_be_a_socket_and_output_may_be_closed() -> None:
    ours, theirs = socket.socketpair()
    ours.sendall(b'{"memory": {"waste": "400M"}}')
    ours.shutdown(socket.SHUT_WR)
    command = ["/usr/bin/python3", "-m", "kvmsched", "check"]
    with ours, theirs:
        done = subprocess.run(
            [*command, "-"], stdin=theirs, capture_output=True, text=True, env=bare_environment(), check=False
        )
    assert (done.returncode, done.stdout) == (0, "standard input: good, 0 rules\n")
    closed = subprocess.run(
        ["sh", "-c", f"{shlex.join([*command, '--defaults'])} >&-"],
        capture_output=True,
        text=True,
        env=bare_environment(),
        check=False,
    )
    assert (closed.returncode, closed.stderr) == (0, "")


def test_where_no_daemon_runs_status_says_so() -> None:
    done = kvmsched("status", *TEST)
    assert (done.returncode, done.stderr) == (3, "") and "no daemon runs here" in done.stdout
    values = json.loads(kvmsched("status", "--json", *TEST).stdout)
    assert values["running"] is False and values["installed_version"]


def test_a_reader_that_goes_away_is_no_trouble() -> None:
    for arguments in (["snapshot", *TEST], ["top", "-b", "-d", "0.1", *TEST]):
        with subprocess.Popen(
            ["/usr/bin/python3", "-m", "kvmsched", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=bare_environment(),
        ) as writer:
            assert writer.stdout and writer.stderr
            writer.stdout.close()
            assert writer.wait(60) == 141
            assert writer.stderr.read() == ""


def test_an_interrupted_command_says_so() -> None:
    with subprocess.Popen(
        ["/usr/bin/python3", "-m", "kvmsched", "top", "-b", *TEST],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=bare_environment(),
        # Whoever runs the tests in the background may have it ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout and process.stderr
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read() == "kvmsched: interrupted\n"


def test_without_libvirt_plan_and_check_still_work(tmp_path: Path) -> None:
    shadow = tmp_path / "libvirt.py"
    shadow.write_text('raise ImportError("No module named libvirt")\n')
    without = {"PYTHONPATH": f"{tmp_path}:{PACKAGE}"}
    bundle = ok("snapshot", *TEST)
    assert "vCPUs:" in ok("plan", "-", stdin=bundle, **without)
    assert ok("check", "-", stdin=ok("check", "--defaults", **without), **without)
    done = kvmsched("once", *TEST, **without)
    assert done.returncode == 1 and "install python3-libvirt" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("missing", ["yaml", "jsonschema"])
def test_packages_that_are_not_always_there(missing: str, tmp_path: Path) -> None:
    (tmp_path / f"{missing}.py").write_text("raise ImportError\n")
    without = {"PYTHONPATH": f"{tmp_path}:{PACKAGE}"}
    (tmp_path / "policy.yaml").write_text("memory: {waste: 400M}\n")
    done = kvmsched("check", str(tmp_path / "policy.yaml"), **without)
    assert done.returncode == 2 and f"python3-{missing}" in done.stderr
    assert "vCPUs:" in ok("once", "--dry-run", *TEST, **without), "the defaults need neither"


def test_the_policy_that_is_installed_here_holds(tmp_path: Path) -> None:
    """The module takes the rules of the host's own policy unless it is given some; the command takes all of it."""
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({"rules": [{"match": "test", "memory": {"mode": "ignore"}}]}))
    installed = {"KVMSCHED_POLICY": str(policy)}
    ignored = {"ignored": 1}

    answer = run_ok("kvm_mem_balance", check=True, uri=TEST[1], domains=["*"])
    assert answer.values["policy_source"] == "none" and answer.changed
    answer = run("kvm_mem_balance", True, installed, uri=TEST[1], domains=["*"])
    assert answer.values["policy_source"] == str(policy)
    assert answer.values["skip_counts"] == ignored and not answer.changed
    assert ok_json("once", "--dry-run", *TEST, **installed)["memory"]["skip_counts"] == ignored

    answer = run("kvm_mem_balance", True, installed, uri=TEST[1], domains=["*"], rules=[])
    assert answer.values["policy_source"] == "options" and answer.changed, "what is given explicitly wins"
    answer = run("kvm_vcpu_pin", True, installed, uri=TEST[1], domains=["*"], interval=0.2)
    assert answer.values["policy_source"] == str(policy) and not answer.failed

    policy.write_text('{"rules": [{"match": "test", "memory": {"mode": "off"}}]}')
    answer = run("kvm_mem_balance", True, installed, uri=TEST[1], domains=["*"])
    assert answer.failed and f"{policy}: rules[0].memory.mode" in answer.msg and "\n" not in answer.msg
    done = kvmsched("once", *TEST, **installed)
    assert done.returncode == 2 and "rules[0].memory.mode" in done.stderr


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """A daemon at libvirt's test driver: its pid, and the environment that it has."""
    policy = tmp_path / "policy.json"
    policy.write_text('{"daemon": {"metrics_listen": "none"}}')
    environment = {"STATE_DIRECTORY": str(tmp_path), "KVMSCHED_POLICY": str(policy)}
    with subprocess.Popen(
        ["/usr/bin/python3", "-m", "kvmsched", "run", *TEST],
        env={**bare_environment(), **environment},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        end_s = time.monotonic() + 60
        while kvmsched("status", *TEST).returncode and time.monotonic() < end_s:
            time.sleep(0.2)
        yield process.pid, environment
        process.terminate()
        assert process.wait(60) == 0 and process.stderr
        assert "Traceback" not in process.stderr.read()


def test_beside_a_daemon(daemon: tuple[int, dict[str, str]]) -> None:
    """It is asked first, it alone writes, and a bundle has what it remembers."""
    pid, environment = daemon
    told = json.loads(ok("status", "--json", *TEST))
    assert told["running"] and told["pid"] == pid and told["version"] == told["installed_version"]
    assert f"pid {pid}" in ok("status", *TEST) and "mode    act" in ok("status", *TEST)
    story = ok("explain", "test", *TEST)
    assert f"the daemon (pid {pid}, act)" in story and "test: stats_period 0 -> 5: it reports no statistics" in story
    assert "daemon: act" in ok("top", "--once", *TEST)
    assert f"managed by the daemon (pid {pid})" in ok("once", *TEST)
    assert not ok_json("once", *TEST)["changed"]
    done = kvmsched("release", *TEST)
    assert done.returncode == 1 and f"pid {pid}" in done.stderr and "stop kvmsched" in done.stderr
    bundle = json.loads(ok("snapshot", *TEST, **environment))
    assert bundle["history"]["memory"]["domains"] and bundle["policy"]["vcpu"]["hold"] > 1
    assert ok("plan", "-", stdin=json.dumps(bundle)) == ok("plan", "-", stdin=json.dumps(bundle))
