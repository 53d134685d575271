# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A mistake of kvmsched costs one pass, or one command, in one line; and what it is told to read has bounds."""

from __future__ import annotations

import io
import json
import os
import signal
from pathlib import Path
from typing import Any, Optional

import memory_worlds
import pytest
from kvmsched import config, lock, passes
from kvmsched.app import cli, daemon, saved_state
from kvmsched.app.daemon import _Daemon, _Loaded
from kvmsched.app.journal import Journal
from kvmsched.hypervisor import Unavailable
from kvmsched.model import Outcome
from kvmsched.passes import PassError, Result, Tick, Trouble, told
from kvmsched.policy import memory
from kvmsched.policy.memory.history import MemoryHistory
from kvmsched.policy.vcpu.history import VcpuHistory

BOTH = ("memory", "vcpu")


class Signals:
    stopping = False


class Host:
    """Stands for app.access.Access: what its ticks raise, or come to."""

    mode, reason, paused_until_s = "act", "", 0

    def __init__(self) -> None:
        self.raises: Optional[Exception] = None
        self.failed: dict[str, Trouble] = {}
        self.told: list[Any] = []

    def tick(self, _policy: Any, _memory: Any, _vcpu: Any, changed: Any) -> Tick:
        self.told.append(changed if changed is None else set(changed))
        if self.raises is not None:
            raise self.raises
        now = memory_worlds.snapshot([memory_worlds.domain("hog", 1024, 4096)])
        plan, learnt = memory.decide((now,), config.MemoryPolicy())
        whole = None if "memory" in self.failed else Result(now, plan, learnt, Outcome(), {})
        return Tick(now, whole, failed=self.failed)


class Running:
    """A daemon whose host is a fake one."""

    def __init__(self) -> None:
        self.out = io.StringIO()
        signals: Any = Signals()
        loaded = _Loaded(config.load_daemon({"daemon": {"metrics_listen": "none"}}), "", "")
        self.daemon = _Daemon("qemu:///session", loaded, Journal(self.out), signals, lambda _mode: None)
        self.host = Host()
        self.daemon.host = self.host  # type: ignore[assignment]

    def turn(self) -> list[str]:
        """Make a turn; what was said in it."""
        before = len(self.out.getvalue())
        self.daemon._turn(BOTH)
        return self.out.getvalue()[before:].splitlines()


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Running:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    monkeypatch.delenv("KVMSCHED_DEBUG", raising=False)
    (tmp_path / "kvmsched").mkdir()
    return Running()


def broken() -> Exception:
    """An exception as a mistake makes it, with the place where that is."""
    try:
        raise KeyError("no such thing" * 100)
    except KeyError as mistake:
        return mistake


def test_no_exception_of_a_pass_ends_the_daemon(running: Running) -> None:
    running.host.raises = broken()
    (line,) = running.turn()
    assert line.startswith("no pass: a mistake of kvmsched: KeyError at test_mistakes.py:") and len(line) < 500
    assert running.turn() == [], "said once"
    running.host.raises = None
    assert running.turn() == ["passes go on"]


def test_where_it_happened_is_told_to_who_wants_to_know(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVMSCHED_DEBUG", "1")
    running.host.raises = broken()
    lines = running.turn()
    assert "Traceback (most recent call last):" in lines and any("test_mistakes.py" in line for line in lines)
    running.host.raises = PassError("libvirt is away")
    assert running.turn() == ["no pass: libvirt is away"], "what was foreseen needs none"


def test_what_can_not_be_told_ends_no_daemon(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: Any, **_about: Any) -> None:
        raise broken()

    monkeypatch.setattr(running.daemon.publisher, "tell", refuse)
    (line,) = running.turn()
    assert line.startswith("status and metrics are not written: a mistake of kvmsched: ")


def test_after_a_failed_pass_nothing_is_remembered_that_it_may_have_failed_for(running: Running) -> None:
    """A state file that was damaged and still could be read would else fail every pass."""
    running.daemon.memory = passes.Turn(config.MemoryPolicy(), MemoryHistory("no such level"))
    running.daemon.vcpu = passes.Turn(config.VcpuPolicy(), VcpuHistory(7))
    running.host.failed = {"memory": Trouble(told(broken()))}
    (line,) = running.turn()
    assert line.startswith("pass of memory failed: a mistake of kvmsched: KeyError at ")
    assert running.daemon.memory.history == MemoryHistory() and running.daemon.vcpu.history == VcpuHistory(7)
    running.daemon.memory = passes.Turn(config.MemoryPolicy(), MemoryHistory("low"))
    running.host.failed = {"memory": Trouble("it went away", away=True)}
    running.turn()
    assert running.daemon.memory.history == MemoryHistory("low"), "libvirt was away: that says nothing of it"


def test_a_pass_of_one_resource_that_breaks_leaves_the_other_its_turn() -> None:
    failed: dict[str, Trouble] = {}
    with passes._noted(failed, "memory"):
        raise broken()
    assert failed["memory"].reason.startswith("a mistake of kvmsched: KeyError") and not failed["memory"].away
    assert "test_mistakes.py" in failed["memory"].trace
    with pytest.raises(passes._Outdated), passes._noted(failed, "memory"):
        raise passes._Outdated


def test_what_was_foreseen_says_it_itself() -> None:
    for error in (PassError("a"), Unavailable("a"), lock.LockError("a"), ValueError("a")):
        assert told(error) == "a"


def test_who_something_happened_to_is_read_anew_and_nobody_else(running: Running) -> None:
    running.turn()
    for uuid in ("u1", "u2", "u1"):
        running.daemon._heed("balloon", uuid)
    running.turn()
    running.turn()
    running.daemon._heed("connected", "")
    running.daemon._heed("balloon", "u1")
    running.turn()
    assert running.host.told == [None, {"u1", "u2"}, set(), None]


def test_after_a_failure_all_is_read_anew(running: Running) -> None:
    running.turn()
    running.host.raises = PassError("no")
    running.turn()
    running.turn()
    assert running.host.told == [None, set(), None]


@pytest.mark.parametrize("text", ["{", "[1]", "\x00"])
def test_a_daemon_goes_on_without_a_state_that_is_damaged(running: Running, text: str) -> None:
    os.makedirs(saved_state.directory())
    Path(saved_state.directory(), "state.json").write_text(text)
    running.daemon._recall()
    (line,) = running.out.getvalue().splitlines()
    assert line.startswith("what an earlier daemon remembered is not used: ")


def test_a_policy_that_can_not_even_be_judged_is_refused(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_self: Any) -> None:
        raise broken()

    monkeypatch.setattr(daemon._Source, "read", refuse)
    running.daemon._reload()
    (line,) = running.out.getvalue().splitlines()
    assert line.startswith("policy refused, the old one stays: a mistake of kvmsched: KeyError at ")


# ---------------------------------------------------------------- what the command reads and writes

NESTED = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
MERGED = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40))
DOMAINS = NESTED.replace("a11:", "domains:")


@pytest.mark.parametrize("text", [NESTED, MERGED, DOMAINS], ids=["anchors", "merges", "domains"])
def test_nested_anchors_are_refused_before_they_are_expanded(text: str) -> None:
    with pytest.raises(config.ConfigError, match="its anchors make more than 500000 values of it"):
        config.parsed(text.encode(), "policy.yaml")


def test_anchors_that_save_writing_are_no_trouble() -> None:
    text = "rules:\n- &one {match: a, memory: {floor: 1G}}\n- {<<: *one, match: b}\n"
    document = config.parsed(text.encode(), "policy.yaml")
    assert [rule.pattern for rule in config.load(document).memory.rules] == ["a", "b"]


def test_a_policy_has_a_bounded_length() -> None:
    with pytest.raises(config.ConfigError, match="allowed: 4194304"):
        config.parsed(b" " * (config._LONGEST + 1), "policy.json")


@pytest.mark.parametrize(
    ("spelt", "quoted"), [("100", '"100"'), ("1.5", '"1.5"'), ("2026-01-02", '"2026-01-02"'), ("no", '"False"')]
)
def test_a_name_that_yaml_takes_for_something_else_is_refused_with_its_spelling(spelt: str, quoted: str) -> None:
    for text in (f"domains: [{spelt}]", f"exclude: [{spelt}]", f"rules: [{{match: {spelt}}}]"):
        with pytest.raises(config.ConfigError) as caught:
            config.load(config.parsed(text.encode(), "policy.yaml"))
        (line,) = caught.value.mistakes
        assert line.endswith(f"needs quotes: {quoted}") and "a name, a shell pattern for names" in line


@pytest.mark.parametrize("value", ["0x" + "f" * 9999, "[" * 50 + "]" * 50, "1e999", ".nan", "!!binary aGk="])
def test_any_scalar_is_refused_in_a_short_line(value: str) -> None:
    for where in ("domains", "deadline", "memory"):
        with pytest.raises(config.ConfigError) as caught:
            config.load(config.parsed(f"{where}: {value}".encode(), "policy.yaml"))
        assert all(line.isprintable() and len(line) < 700 for line in caught.value.mistakes)


def test_a_snapshot_follows_no_link_and_keeps_no_mode(tmp_path: Path) -> None:
    victim, link, file = tmp_path / "victim", tmp_path / "link", tmp_path / "file"
    victim.write_text("precious")
    link.symlink_to(victim)
    with pytest.raises(cli.Refused, match="allowed: a new or a regular file"):
        cli._write_beside(str(link), "secret")
    file.write_text("old")
    file.chmod(0o666)
    with file.open() as opened:
        cli._write_beside(str(file), "secret")
        assert opened.read() == "old", "who had it open reads nothing of it"
    assert file.read_text() == "secret" and file.stat().st_mode & 0o777 == 0o600
    assert victim.read_text() == "precious" and sorted(os.listdir(tmp_path)) == ["file", "link", "victim"]


@pytest.mark.parametrize("path", ["/dev/null", "/dev/stdout", "/dev/full", "/proc/self/fd/1"])
def test_a_device_is_not_replaced(path: str) -> None:
    with pytest.raises(cli.Refused, match=path):
        cli._write_beside(path, "x")
    assert os.path.exists(path)


def test_a_fifo_in_place_of_the_announcement_holds_no_command_up(running: Running, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "kvmsched" / "daemon")
    out, err = io.StringIO(), io.StringIO()
    signal.alarm(10)  # else this test would wait for ever, too
    try:
        assert cli.main(["status", "--uri", "qemu:///session"], out, err) == cli.FAILED
    finally:
        signal.alarm(0)
    assert "it is no regular file" in err.getvalue() and err.getvalue().count("\n") == 1


NASTY = "vm\x00\x1b[2J\x85\x9b\u2028\u202e\ud800"


def test_no_json_does_more_than_stand_there() -> None:
    out = io.StringIO()
    cli.Terminal(out, out).json({NASTY: [NASTY]})
    assert all(line.isprintable() for line in out.getvalue().split("\n"))
    assert json.loads(out.getvalue()) == {NASTY: [NASTY]}


def test_no_text_does_more_than_stand_there() -> None:
    out = io.StringIO()
    cli.Terminal(out, out).say(NASTY, "x" * 10**7)
    assert all(line.isprintable() and len(line) <= 4000 for line in out.getvalue().split("\n"))
