# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command as a user has it: a process of the distribution's Python, on libvirt's test driver and on real guests."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from face import GUESTS, REPOSITORY, run, run_ok
from lab import Guest, Lab, RunningGuest

TEST = ["--uri", "test:///default"]
PACKAGE = REPOSITORY / "plugins/module_utils"
# A bare environment: what the shell of a user may lack, and nothing that this checkout sets.
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(PACKAGE), "LANG": "C.UTF-8"}


@pytest.fixture(scope="module", autouse=True)
def _own_lock(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whoever else is at libvirt's test driver holds another lock."""
    ENVIRONMENT["XDG_RUNTIME_DIR"] = str(tmp_path_factory.mktemp("runtime"))


def kvmsched(
    *arguments: str, stdin: str = "", python: str = "/usr/bin/python3", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command. Whatever happens, a mistake is one line, and nobody sees a traceback."""
    done = subprocess.run(
        [python, "-m", "kvmsched", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        env={**ENVIRONMENT, **environment},
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    assert "a mistake of kvmsched" not in done.stderr, done.stderr
    return done


def ok(*arguments: str, **more: str) -> str:
    done = kvmsched(*arguments, **more)
    assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def ok_json(*arguments: str, **more: str) -> dict[str, Any]:
    return dict(json.loads(ok(*arguments, "--json", **more)))


# ---------------------------------------------------------------- on libvirt's test driver


def test_a_pass_says_what_it_would_do_and_does_it() -> None:
    assert "test: stats_period 0 -> 5: it reports no statistics" in ok("once", "memory", "--dry-run", *TEST)
    assert ok("once", "--dry-run", "--diff", *TEST).count("\n+ test: stats_period: 5") <= 1
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
    ],
)
def test_what_goes_wrong_is_one_line_and_a_documented_code(arguments: list[str], code: int, words: list[str]) -> None:
    done = kvmsched(*arguments)
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("kvmsched: ")
    assert all(word in done.stderr for word in words), done.stderr


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
            env=ENVIRONMENT,
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
        env=ENVIRONMENT,
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
        env={**ENVIRONMENT, **environment},
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


# ---------------------------------------------------------------- on real guests

HOG, HOARDER, BUSY = (f"kvmsched-test-{name}" for name in ("hog", "hoarder", "busy"))
POLICY = {"domains": [GUESTS], "memory": {"starvation": "60M", "waste": "120M"}, "vcpu": {"pcpus": "0-1"}}


@pytest.fixture(scope="module")
def guests() -> Iterator[dict[str, RunningGuest]]:
    """One guest starves, one hoards, and all three crowd on one pCPU."""
    pcpu_0 = {0: "0"}
    with Lab() as lab:
        lab.start(
            Guest(HOG, memory_mib=512, current_mib=256, hold_mib=180, cpu=[0.3], pin=pcpu_0),
            Guest(HOARDER, memory_mib=512, cpu=[0.3], pin=pcpu_0),
            Guest(BUSY, memory_mib=144, cpu=[0.6], pin=pcpu_0),
        )
        until_libvirt_sees(lab[HOG], lambda usable_mib: usable_mib < 60)
        yield {name: lab[name] for name in (HOG, HOARDER, BUSY)}


def until_libvirt_sees(guest: RunningGuest, enough: Callable[[float], bool]) -> None:
    """Wait until the statistics, which a busy guest sends late, say what the guest itself says already."""
    end_s = time.monotonic() + 60
    while not enough(guest.domain.memoryStats().get("usable", 0) / 1024):
        assert time.monotonic() < end_s, guest.domain.memoryStats()
        time.sleep(0.5)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("policy") / "policy.json"
    path.write_text(json.dumps(POLICY))
    return str(path)


def state(guests: dict[str, RunningGuest]) -> dict[str, Any]:
    return {name: (guest.affinity(0), guest.balloon_kib()) for name, guest in guests.items()}


def directions(moves: list[dict[str, Any]]) -> dict[str, Any]:
    """Whom a plan changes and which way; sizes and loads differ a little from one look to the next."""
    return {
        move["domain"]: move["after"] if "after" in move else move["after_kib"] > move["before_kib"] for move in moves
    }


def test_one_pass_after_a_look_from_all_sides(guests: dict[str, RunningGuest], policy: str) -> None:
    before = state(guests)
    foreseen = ok_json("once", "--dry-run", "--policy", policy)
    options = {"starvation": "60M", "waste": "120M"}
    checked = run_ok("kvm_mem_balance", check=True, **options)
    expected = {HOG: True, HOARDER: False}
    assert directions(foreseen["memory"]["moves"]) == expected, foreseen["memory"]
    assert directions(checked.moves) == expected, checked.text
    pinned = run_ok("kvm_vcpu_pin", check=True, pcpus="0-1")
    assert len(foreseen["vcpu"]["moves"]) == len(pinned.moves) >= 1
    same = set(foreseen["memory"]) & set(checked.values)
    assert same >= {"msg", "moves", "skips", "skip_counts", "before", "after", "unmet"}, "one set of keys in all faces"

    story = ok("explain", HOG, "--policy", policy)
    print(story)
    assert f"{HOG} (" in story and "starved: usable" in story and "would make" in story and "no daemon" in story
    assert json.loads(ok("explain", HOG, "--json", "--policy", policy))["domain"]["name"] == HOG

    table = ok("top", "--once", "--policy", policy)
    print(table)
    assert all(len(line) <= 80 for line in table.splitlines())
    rows = {line.split()[0]: line.split() for line in table.splitlines() if line.startswith("kvmsched-test-")}
    assert {name: row[-1] for name, row in rows.items()} == {
        _shown(HOG): "starved",
        _shown(HOARDER): "wasteful",
        _shown(BUSY): "ok",
    }
    assert all(row[1] == "1" and row[4] == "0" for row in rows.values()), table
    assert 40 < float(rows[_shown(BUSY)][2]) + float(rows[_shown(BUSY)][3]) < 80, "it wants 60 % of a pCPU"
    assert state(guests) == before, "looking changed something"
    assert not any("kvmsched:state" in guest.domain.XMLDesc(0) for guest in guests.values())


def _shown(name: str) -> str:
    return name if len(name) <= 18 else name[:17] + "+"


def test_a_bundle_gives_the_same_plan_elsewhere(guests: dict[str, RunningGuest], policy: str, tmp_path: Path) -> None:
    path = tmp_path / "bundle.json"
    ok("snapshot", "--policy", policy, "-o", str(path))
    assert path.stat().st_mode & 0o777 == 0o600
    first = ok_json("plan", str(path))
    assert directions(first["memory"]["moves"]) == {HOG: True, HOARDER: False} and first["vcpu"]["moves"]
    assert ok_json("plan", str(path)) == first
    assert json.loads(ok("plan", "-", "--json", stdin=path.read_text(), python=sys.executable)) == first
    fresh = ok_json("once", "--dry-run", "--policy", policy)
    assert directions(fresh["memory"]["moves"]) == directions(first["memory"]["moves"])
    assert set(first["memory"]) == set(fresh["memory"]) and set(first["vcpu"]) == set(fresh["vcpu"])

    loose = tmp_path / "loose.json"
    loose.write_text('{"memory": {"starvation": "1M", "waste": "2G", "floor": "64M"}}')
    assert not ok_json("plan", str(path), "memory", "--policy", str(loose))["memory"]["moves"]


def test_an_anonymised_bundle_names_nobody(guests: dict[str, RunningGuest], policy: str) -> None:
    text = ok("snapshot", "--anonymise", "--policy", policy)
    uuids = [guest.domain.UUIDString() for guest in guests.values()]
    for secret in (*guests, *uuids, os.uname().nodename, GUESTS.rstrip("*")):
        assert not re.search(rf"\b{secret}\b", text), secret
    assert not re.search(r"<\w+", text)
    planned = ok_json("plan", "-", stdin=text)
    assert sorted(directions(planned["memory"]["moves"]).values()) == [False, True]


def test_a_pass_and_back(guests: dict[str, RunningGuest], policy: str) -> None:
    before = state(guests)
    done = ok("once", "--policy", policy)
    assert f"{HOG}:" in done and "vCPUs: made" in done
    assert len({guest.affinity(0) for guest in guests.values()}) == 2
    assert guests[HOG].balloon_kib() > before[HOG][1]
    for _again in range(6):
        values = ok_json("once", "--policy", policy)
        if not values["changed"] and not values["memory"]["skip_counts"].get("settling"):
            break
    assert not values["changed"], values

    refused = kvmsched("release", "--policy", policy, HOG)
    assert refused.returncode == 1 and HOG in refused.stderr, "what it had before would kill it by now"
    guests[HOG].hold(40)
    guests[HOG].wait_held()
    until_libvirt_sees(guests[HOG], lambda usable_mib: usable_mib > 150)
    ok("release", "--policy", policy, HOG)
    assert guests[HOG].balloon_kib() == before[HOG][1] and guests[HOG].affinity(0) == before[HOG][0]
    assert "kvmsched:state" in guests[HOARDER].domain.XMLDesc(0), "only the named one was released"
    ok("release", "--policy", policy)
    assert state(guests) == before
    assert not any("kvmsched:state" in guest.domain.XMLDesc(0) for guest in guests.values())
    assert all(guest.hog_kills == 0 for guest in guests.values())
