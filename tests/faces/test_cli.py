# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command as a user has it: a process of the distribution's Python, on libvirt's test driver."""

from __future__ import annotations

import contextlib
import curses
import json
import os
import pty
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import face
import pytest
from face import COMMAND, PACKAGE, REPOSITORY, bare_environment
from forked import kvmsched, ok, ok_json, run, run_ok

TEST = ["--uri", "test:///default"]


def test_a_pass_says_what_it_would_do_and_does_it() -> None:
    assert "test: stats_period 0 -> 5: it reports no statistics" in face.ok("once", "memory", "--dry-run", *TEST)
    diff = ok("once", "memory", "--dry-run", "--diff", *TEST)
    assert "- test stats_period: 0\n+ test stats_period: 5\n    it reports no statistics" in diff
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
        (["repay", "nobody", *TEST], 1, ["nobody", "no running domain"]),
        (["room", "64GB", *TEST], 2, ["64GB", "did you mean 64G"]),
        (["room", "5%", *TEST], 2, ["5%"]),
        (["room", "1G", "--cells", "x", *TEST], 2, ["--cells", "x"]),
        (["room", "1G", "--uri", "qemu+ssh://elsewhere/system"], 2, ["qemu+ssh", "qemu:///system"]),
        (["pause", "1h", "--uri", "qemu+ssh://elsewhere/system"], 2, ["qemu+ssh", "qemu:///system"]),
        (["resume", "--uri", "qemu+ssh://elsewhere/system"], 2, ["qemu+ssh", "qemu:///system"]),
        (["pause", "1", *TEST], 2, ["1", "90s"]),
        (["pause", "31d", *TEST], 2, ["31d", "30d"]),
        (["pause", *TEST], 2, ["DURATION"]),
        (["plan", "/nonexistent.json"], 2, ["/nonexistent.json"]),
        (["plan", "/usr/bin/env"], 2, ["not valid JSON"]),
        (["top", "-d", "nan", *TEST], 2, ["--delay", "nan"]),
        (["top", "-n", "0", *TEST], 2, ["--iterations", "0"]),
        (["top", *TEST], 2, ["terminal", "--batch"]),
        (["snapshot", "-o", "/nonexistent/x", *TEST], 1, ["/nonexistent/x"]),
        (["snapshot", "-o", "/dev/full", *TEST], 2, ["/dev/full", "a new or a regular file"]),
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
    command = [*COMMAND, "check"]
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
            [*COMMAND, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=bare_environment(),
        ) as writer:
            assert writer.stdout and writer.stderr
            writer.stdout.close()
            assert writer.wait(300) == 141
            assert writer.stderr.read() == ""


def test_an_interrupted_command_says_so() -> None:
    with subprocess.Popen(
        [*COMMAND, "top", "-b", *TEST],
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
        assert process.wait(300) == 130
        assert process.stderr.read() == "kvmsched: interrupted\n"


def test_without_libvirt_plan_and_check_still_work(tmp_path: Path) -> None:
    shadow = tmp_path / "libvirt.py"
    shadow.write_text('raise ImportError("No module named libvirt")\n')
    without = {"PYTHONPATH": f"{tmp_path}:{PACKAGE}"}
    bundle = ok("snapshot", *TEST)
    assert "vCPUs:" in face.ok("plan", "-", stdin=bundle, **without)
    assert face.ok("check", "-", stdin=face.ok("check", "--defaults", **without), **without)
    done = face.kvmsched("once", *TEST, **without)
    assert done.returncode == 1 and "install python3-libvirt" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("missing", ["yaml", "jsonschema"])
def test_packages_that_are_not_always_there(missing: str, tmp_path: Path) -> None:
    (tmp_path / f"{missing}.py").write_text("raise ImportError\n")
    without = {"PYTHONPATH": f"{tmp_path}:{PACKAGE}"}
    (tmp_path / "policy.yaml").write_text("memory: {waste: 400M}\n")
    done = face.kvmsched("check", str(tmp_path / "policy.yaml"), **without)
    assert done.returncode == 2 and f"python3-{missing}" in done.stderr
    assert "vCPUs:" in face.ok("once", "--dry-run", *TEST, **without), "the defaults need neither"


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


def test_without_a_daemon_room_is_made_by_a_pass_and_held() -> None:
    done = kvmsched("room", "100G", *TEST)
    assert done.returncode == 1 and "memory: " in done.stdout and not done.stderr, done.stdout
    assert "0M of 100G is there" in done.stdout and "lacks" in done.stdout, done.stdout
    values = json.loads(kvmsched("once", "memory", "--json", *TEST).stdout)["memory"]
    assert values["room"]["kib"] == 100 << 20 and values["room"]["lacks_kib"] > 0
    assert kvmsched("room", "100G", "--wait", "--json", *TEST).returncode == 1
    assert ok("room", "0", *TEST) == "no room is kept any more\n"
    assert ok("room", "0", *TEST) == "no room was kept\n"
    assert ok_json("once", "memory", *TEST)["memory"]["room"] is None


def test_who_only_asks_calls_no_libvirt() -> None:
    """With a URI that leads nowhere: nobody tries."""
    done = ok("room", "1G", "--ask-only", "--uri", "test:///nonexistent/file.xml")
    assert "1024M asked for, kept until " in done and "no daemon acts here" in done
    waited = kvmsched("room", "1G", "--ask-only", "--wait", "--uri", "test:///nonexistent/file.xml")
    assert waited.returncode == 1, "nobody is there to make it, so nobody waits"
    ok("room", "0", "--uri", "test:///nonexistent/file.xml")


def test_what_is_owed_is_nothing_on_a_host_that_was_never_changed() -> None:
    values = ok_json("repay", *TEST)
    assert not values["changed"] and not values["memory"]["moves"]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """A daemon at libvirt's test driver: its pid, and the environment that it has."""
    policy = tmp_path / "policy.json"
    policy.write_text('{"daemon": {"metrics_listen": "none"}, "rules": [{"match": "nobody"}, {"match": "test"}]}')
    environment = {"STATE_DIRECTORY": str(tmp_path), "KVMSCHED_POLICY": str(policy)}
    with subprocess.Popen(
        [*COMMAND, "run", *TEST],
        env={**bare_environment(), **environment},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        end_s = time.monotonic() + 300
        while kvmsched("status", *TEST).returncode and time.monotonic() < end_s:
            time.sleep(0.2)
        yield process.pid, environment
        process.terminate()
        assert process.wait(300) == 0 and process.stderr
        assert "Traceback" not in process.stderr.read()


def test_beside_a_daemon(daemon: tuple[int, dict[str, str]]) -> None:
    """It is asked first, it alone writes, and a bundle has what it remembers."""
    pid, environment = daemon
    told = json.loads(ok("status", "--json", *TEST))
    assert told["running"] and told["pid"] == pid and told["version"] == told["installed_version"]
    assert f"pid {pid}" in ok("status", *TEST) and "mode    act" in ok("status", *TEST)
    story = ok("explain", "test", *TEST)
    assert f"the daemon (pid {pid}, act)" in story and "test: stats_period 0 -> 5: it reports no statistics" in story
    assert told["idle_rules"] == ["nobody"] and "no running domain matches nobody\n" in ok("status", *TEST)
    nobody = "  a rule that matches no running domain: nobody\n"
    assert ok("check", *TEST, **environment).endswith(nobody)
    assert nobody in ok("once", *TEST, **environment)
    assert "daemon: act" in ok("top", "--once", *TEST)
    assert f"managed by the daemon (pid {pid})" in ok("once", *TEST)
    assert not ok_json("once", *TEST)["changed"]
    done = kvmsched("release", *TEST)
    assert done.returncode == 1 and f"pid {pid}" in done.stderr and "stop kvmsched" in done.stderr
    bundle = json.loads(ok("snapshot", *TEST, **environment))
    assert bundle["history"]["memory"]["domains"] and bundle["policy"]["vcpu"]["hold"] > 1
    assert ok("plan", "-", stdin=json.dumps(bundle)) == ok("plan", "-", stdin=json.dumps(bundle))


def until_told(true: str) -> dict[str, Any]:
    """Wait until the daemon's status has this key, or does not say no any more."""
    end_s = time.monotonic() + 300
    while not (told := json.loads(ok("status", "--json", *TEST)))[true]:
        assert time.monotonic() < end_s, told
        time.sleep(0.2)
    return dict(told)


def test_a_daemon_pauses_and_makes_room_as_it_is_asked(daemon: tuple[int, dict[str, str]]) -> None:
    pid, _environment = daemon
    assert "asked for, kept until" in ok("room", "100G", *TEST), "it calls no libvirt, and asks the daemon"
    told = until_told("room")
    assert told["room"]["kib"] == 100 << 20 and told["room"]["lacks_kib"] > 0
    assert "room    " in ok("status", *TEST) and "lacks" in ok("status", *TEST)
    ok("room", "0", *TEST)

    assert "until " in ok("pause", "1h", *TEST)
    told = until_told("paused_until_s")
    assert (told["mode"], told["effective_mode"]) == ("act", "observe") and "kvmsched resume" in told["mode_reason"]
    assert "is paused here until" in ok("once", "memory", *TEST), "a pass by hand goes on, and says so"
    assert ok("resume", *TEST) == "the pause is over\n" and ok("resume", *TEST) == "there was no pause\n"
    end_s = time.monotonic() + 300
    while json.loads(ok("status", "--json", *TEST))["effective_mode"] != "act":
        assert time.monotonic() < end_s
        time.sleep(0.2)
    done = kvmsched("repay", *TEST)
    assert done.returncode == 1 and f"pid {pid}" in done.stderr and "pause it" in done.stderr
    assert not ok_json("repay", "--dry-run", *TEST)["changed"], "to look is allowed beside the daemon"


# ---------------------------------------------------------------- from a checkout


def typed(program: Path, *arguments: str, path: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(program), *arguments],
        env={"PATH": path, "PYTHONPATH": "/nonexistent", "LANG": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_checkout_s_command_finds_the_distribution_s_python(tmp_path: Path) -> None:
    """Another python3 comes first, as in a virtual environment, and the command is reached by a link."""
    subprocess.run(["/usr/bin/python3", "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    link = tmp_path / "kvmsched"
    link.symlink_to(REPOSITORY / "scripts/kvmsched")
    done = typed(link, "top", "--once", *TEST, path=f"{tmp_path / 'venv/bin'}:/usr/bin:/bin")
    assert (done.returncode, done.stderr) == (0, "") and "1 guest, 2 vCPUs" in done.stdout


def test_the_checkout_s_command_runs_under_no_python_that_is_too_old(tmp_path: Path) -> None:
    for name in ("readlink", "dirname"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    text = (REPOSITORY / "scripts/kvmsched").read_text().replace("/usr/bin/python3 /usr/libexec/platform-python ", "")
    program = tmp_path / "kvmsched"
    program.write_text(text)
    program.chmod(0o755)
    (tmp_path / "python3").write_text("#!/bin/sh\nexit 1\n")  # what an old one ends with
    (tmp_path / "python3").chmod(0o755)
    done = typed(program, "--version", path=str(tmp_path))
    assert (done.returncode, done.stderr) == (1, "kvmsched: no Python 3.9 or newer was found: install python3\n")


def test_a_dry_run_tells_by_its_exit_status_whether_something_would_change() -> None:
    assert kvmsched("once", "memory", "--dry-run", "--exit-code", *TEST).returncode == 3
    assert kvmsched("once", "memory", "--dry-run", "--exit-code", "--json", *TEST).returncode == 3
    assert kvmsched("once", "vcpu", "--dry-run", "--exit-code", *TEST).returncode == 0


@pytest.mark.skipif(not hasattr(curses, "set_escdelay"), reason="this build of curses does not know it")
def test_a_key_after_escape_is_a_key() -> None:
    """It was taken for the rest of a sequence, for a whole second."""
    ours, its = pty.openpty()
    words = [*COMMAND, "top", "--delay", "60", *TEST]
    variables = {**bare_environment(), "TERM": "xterm"}
    with subprocess.Popen(words, stdin=its, stdout=its, stderr=its, env=variables) as process:
        os.close(its)
        drawn = b""
        while b"GUEST" not in drawn:
            drawn += os.read(ours, 4096)
        # On a machine that is busy both may come at once, and are one.
        for _again in range(5):
            os.write(ours, b"\x1b")
            time.sleep(0.5)
            os.write(ours, b"q")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(3)
                break
        ended = process.poll()
        process.kill()
    os.close(ours)
    assert ended == 0


def test_a_terminal_that_can_t_show_top_is_told_so() -> None:
    command = shlex.join(["env", "TERM=dumb", *COMMAND, "top", "-n", "1", *TEST])
    done = subprocess.run(
        ["script", "--quiet", "--return", "--command", command, "/dev/null"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=bare_environment(),
        check=False,
    )
    assert done.returncode == 2 and "this terminal can't show it" in done.stdout, done.stdout + done.stderr
