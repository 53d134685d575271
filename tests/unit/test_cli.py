# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line without a host: help, documentation, policy checks, and how a host is shown."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import completions
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kvmsched import __version__, config, passes
from kvmsched.app import arguments, cli, daemon, status_text
from kvmsched.app.status import DomainMove, DomainStatus, PcpuStatus, Status, VcpuStatus
from kvmsched.config import VcpuPolicy
from kvmsched.model import Balloon, Domain, MemoryFigures, Outcome, VcpuFigures
from kvmsched.policy import vcpu
from vcpu_worlds import FakeHost, Guest, cpus, topology

REPOSITORY = Path(__file__).resolve().parents[2]
MAN = REPOSITORY / "roles/kvmsched/files/kvmsched.8"
COMPLETION = REPOSITORY / "roles/kvmsched/files/kvmsched.bash"
MIB = 1024


def run(*arguments: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    code = cli.main(list(arguments), out, err)
    return code, out.getvalue(), err.getvalue()


def commands() -> dict[str, argparse.ArgumentParser]:
    (choices,) = [a for a in arguments.parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(choices.choices)


def options(parser: argparse.ArgumentParser) -> list[str]:
    return [text for action in parser._actions for text in action.option_strings]


def every() -> Iterator[tuple[str, list[str]]]:
    for name, parser in commands().items():
        yield name, options(parser)


# ---------------------------------------------------------------- plans of a bundle


def test_a_plan_is_made_as_by_the_daemon_and_tells_what_waste_it_leaves(tmp_path: Path) -> None:
    text = re.search(r"^```json\n(.*?)^```", (REPOSITORY / "docs/cli.md").read_text(), re.DOTALL | re.MULTILINE)
    assert text
    document = json.loads(text[1])

    def memory(**policy: Any) -> str:
        path = tmp_path / "bundle.json"
        path.write_text(json.dumps({**document, "policy": {**document["policy"], **policy}}))
        return run("plan", str(path), "memory")[1]

    assert "web: 2048M -> 1536M" in memory() and "of waste stays" not in memory()
    grown = memory(daemon={"mode": "grow-only"})
    assert "web: 2048M ->" not in grown, "a daemon that only gives takes nothing"
    assert "of waste stays with the guests" in memory(memory={"waste": "400M", "starvation": "50M"})


@pytest.mark.parametrize("mode", ["act", "grow-only"])
def test_a_pass_by_hand_keeps_to_the_mode_of_the_policy(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release does not: it gives back all, from whomever that is."""
    asked: list[tuple[str, bool, bool]] = []

    def refused(what: str, *taken: Any) -> None:
        how, policy = taken[:2]
        asked.append((what, getattr(policy, "grow_only", False), how.pins))
        raise passes.PassError("not now")

    monkeypatch.setattr(passes, "run_memory", lambda *taken, **_more: refused("memory", *taken))
    monkeypatch.setattr(passes, "run_vcpu", lambda *taken, **_more: refused("vcpu", *taken))
    path = tmp_path / "policy.json"
    path.write_text(json.dumps({"daemon": {"mode": mode}}))
    gives = mode == "grow-only"
    for command in (["once", "memory"], ["once", "vcpu"], ["once", "memory", "--dry-run"]):
        assert run(*command, "--policy", str(path), "--uri", "test:///default")[0] == 1
    assert asked == [("memory", gives, not gives), ("vcpu", False, not gives), ("memory", gives, not gives)]
    asked.clear()
    assert run("release", "--policy", str(path), "--uri", "test:///default")[0] == 1
    assert asked[0] == ("vcpu", False, True) and all(not gives for _what, gives, _pins in asked)


def test_a_dry_run_of_a_policy_that_only_gives_plans_no_pins_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits by `--exit-code` until nothing is to be done must not wait for what is never done."""
    pile = FakeHost(topology(2), [Guest(name, [0.9], [cpus("0")]) for name in ("a", "b")])
    plan, learnt = vcpu.decide(pile.window(), VcpuPolicy())
    assert plan.moves
    result = passes.Result(pile.window()[-1], plan, learnt, Outcome(), {})
    monkeypatch.setattr(passes, "run_vcpu", lambda *_taken: result)
    path = tmp_path / "policy.json"
    path.write_text(json.dumps({"daemon": {"mode": "grow-only"}}))
    once = ("once", "vcpu", "--policy", str(path), "--uri", "test:///default")
    for more in ([], ["--dry-run", "--exit-code"]):
        code, out, _err = run(*once, *more)
        assert code == 0 and "pins are planned and not set" in out, out
        assert json.loads(run(*once, *more, "--json")[1])["changed"] is False


# ---------------------------------------------------------------- help and documentation


@pytest.mark.parametrize("name", ["", *commands()])
def test_help_teaches_and_goes_to_standard_output(name: str) -> None:
    code, out, err = run(*filter(None, [name, "--help"]))
    assert (code, err) == (0, "")
    assert "kvmsched" in out and all(len(line) <= 100 for line in out.splitlines())


def test_the_version_is_told() -> None:
    assert run("--version") == (0, f"kvmsched {__version__}\n", "")


@pytest.mark.parametrize("words", [("explain", ""), ("release", " "), ("release", "db1", "")])
def test_a_blank_name_is_refused_as_an_unset_variable_makes_one(words: tuple[str, ...]) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "") and "allowed: a guest's name or UUID" in err


@pytest.mark.parametrize(
    "words",
    [
        ("check", ""),
        ("check", "--defaults", " "),
        ("check", "--uri", ""),
        ("once", "--policy", ""),
        ("run", "--policy="),
        ("plan", ""),
        ("plan", "bundle.json", "--policy", ""),
        ("replay", ""),
        ("replay", "r", "--policy="),
        ("replay", "r", "--html", ""),
        ("replay", "r", "--png="),
        ("record", ""),
        ("record", "r", "--from", ""),
        ("snapshot", "-o", ""),
        ("explain", "db1", "--at", "03:41", "--record", ""),
    ],
)
def test_a_blank_file_is_refused_and_means_no_other(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "policy.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(config.INSTALLED_VARIABLE, str(tmp_path / "policy.json"))
    code, out, err = run(*words)
    assert (code, out, err.count("\n")) == (2, "", 1) and ": got '" in err and f"kvmsched {words[0]} --help" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("check", "--defaults", "p.json"), "check: got --defaults beside p.json, allowed: one of them"),
        (("replay", "d", "--fleet", "--policy", "p"), "replay: got --fleet beside --policy, allowed: one of them"),
        (("replay", "d", "--fleet", "--json", "--step", "9"), "--fleet beside --step, --json, allowed"),
        (("replay", "d", "--fleet", "--html", "f", "--untouched"), "--fleet beside --untouched, --html, allowed"),
        (("replay", "r.kvmrec.gz", "--pcpus", "4"), "got --pcpus, allowed: for a trace, and r.kvmrec.gz is none"),
        (("replay", "r.kvmrec.gz", "--pcpus", "4", "--memory", "1G"), "got --pcpus, --memory, allowed: for a trace"),
        (("record", "f", "--for", "1h", "--from", "r"), "record: got --from beside --for, allowed: one of them"),
        (("record", "f", "--policy", "p", "--from", "r"), "record: got --from beside --policy, allowed: one of them"),
        (("explain", "db1", "--record", "r"), "explain: got --record, allowed: beside --at"),
        (("explain", "db1", "--at", "03:41", "--record", "r", "--policy", "p"), "--record beside --policy, allowed"),
        (("top", "--once", "-n", "3"), "top: got --once beside --iterations, allowed: one of them"),
    ],
)
def test_no_option_is_dropped_without_a_word(
    words: tuple[str, ...], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*words)
    assert (code, out, err.count("\n")) == (2, "", 1) and told in err


@pytest.mark.parametrize(
    ("words", "came"),
    [
        (("room", "-1G"), "'-1G'"),
        (("room", "1G", "--cells", "-1x"), "'-1x'"),
        (("pause", "-5m"), "'-5m'"),
        (("record", "f", "--for", "-1d"), "'-1d'"),
        (("replay", "r", "--memory", "-16G"), "'-16G'"),
        (("top", "-d", "-.5s"), "'-.5s'"),
    ],
)
def test_what_is_less_than_nothing_is_refused_by_name(
    words: tuple[str, ...], came: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*words)
    assert (code, out, err.count("\n")) == (2, "", 1) and f"got {came}, allowed: " in err


def test_the_man_page_names_every_command_option_and_exit_status() -> None:
    page = MAN.read_text(encoding="utf-8").replace("\\-", "-")
    for name, texts in every():
        section = re.search(rf'^\.SS "?{name}\b.*?(?=^\.S[SH])', page, re.DOTALL | re.MULTILINE)
        assert section, f"{name} has no section"
        for option in texts:
            if option not in ("-h", "--help"):
                assert re.search(rf"(?<![\w-]){option}(?![\w-])", section[0]), f"{name} {option}"
    for code in (cli.DONE, cli.FAILED, cli.REFUSED, cli.NO_DAEMON, cli.INTERRUPTED, cli.READER_GONE):
        assert re.search(rf"^\.B {code}$", page, re.MULTILINE), code


@pytest.mark.parametrize("path", completions.PUBLISHED, ids=lambda path: path.name)
def test_the_completions_of_other_shells_are_the_parser_s(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == completions.PUBLISHED[path](), "python tests/completions.py writes them"


def test_zsh_is_told_once_of_each_place() -> None:
    """It completes nothing for a command whose arguments name a place twice."""
    script = next(made() for path, made in completions.PUBLISHED.items() if path.name == "_kvmsched")
    for branch in script.split(";;"):
        places = re.findall(r"^\s*'([0-9*]): :", branch, re.MULTILINE)
        assert len(places) == len(set(places)), branch
        assert not places or places in (["1"], ["1", "2"], ["*"]), branch


@pytest.mark.parametrize("command", ["replay", "record", "plan", "check"])
def test_files_are_offered_where_a_file_is_asked_for(command: str) -> None:
    for made in (completions.zsh(), completions.fish()):
        branch = re.search(rf"^ +{command}\).*?;;", made, re.DOTALL | re.MULTILINE)
        offered = ": :_files'" in branch[0] if branch else f"__fish_seen_subcommand_from {command}' -F\n" in made
        assert offered, made


def test_the_completion_knows_every_command_and_option() -> None:
    script = COMPLETION.read_text(encoding="utf-8")
    known = dict(re.findall(r'^\s+(\w+)\) options="(.*)" ;;$', script, re.MULTILINE))
    assert {name: set(texts) for name, texts in every()} == {name: set(text.split()) for name, text in known.items()}
    listed = re.search(r'commands="(.*)"', script)
    assert listed and listed[1].split() == list(commands())


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["s"], ["status", "snapshot"]),
        (["once", "--d"], ["--dry-run", "--diff"]),
        (["once", "-n", "v"], ["vcpu"]),
        (["top", "--sort", "m"], ["memory"]),
        (["top", "--delay", ""], []),
        (["dance", "-"], []),
    ],
)
def test_completion_in_a_shell(words: list[str], offered: list[str]) -> None:
    assert completed(*words) == offered


def completed(*words: str, **more: Any) -> list[str]:
    """What bash offers for the last of *words*."""
    script = (
        f'source {COMPLETION}; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _kvmsched; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    asked = ["bash", "-c", script, "bash", "kvmsched", *words]
    done = subprocess.run(asked, capture_output=True, text=True, check=True, **more)
    assert not done.stderr
    return done.stdout.splitlines() if done.stdout != "\n" else []


@pytest.mark.parametrize(
    ("begun", "offered"),
    [
        ("$", [r"\$\(touch\$\{IFS\}PWNED\)"]),
        ("my", [r"my\ guest"]),
        (r"my\ g", [r"my\ guest"]),
        ("w", [r"web\*"]),
        ("", [r"\$\(touch\$\{IFS\}PWNED\)", r"my\ guest", r"web\*"]),
        ("guest", []),
    ],
)
def test_no_guest_s_name_is_run_or_taken_apart_by_completion(begun: str, offered: list[str], tmp_path: Path) -> None:
    virsh = tmp_path / "bin/virsh"
    virsh.parent.mkdir()
    virsh.write_text("#!/bin/sh\ncat <<'END'\n$(touch${IFS}PWNED)\nmy guest\nweb*\n\nEND\n")
    virsh.chmod(0o755)
    (tmp_path / "webs").touch()
    path = f"{virsh.parent}:{os.environ['PATH']}"
    for command in ("explain", "release", "repay"):
        assert completed(command, begun, cwd=tmp_path, env={"PATH": path}) == offered
    assert sorted(os.listdir(tmp_path)) == ["bin", "webs"]


@pytest.mark.parametrize("words", [("replay",), ("plan",), ("check", "--policy"), ("snapshot", "-o")])
def test_completion_offers_a_file_as_it_is_named(words: tuple[str, ...], tmp_path: Path) -> None:
    for name in ("a b", "a*", "a$(touch${IFS}PWNED)"):
        (tmp_path / name).touch()
    assert sorted(completed(*words, "a", cwd=tmp_path)) == sorted(os.listdir(tmp_path))
    assert len(os.listdir(tmp_path)) == 3


def test_the_documentation_names_every_command() -> None:
    text = (REPOSITORY / "docs/cli.md").read_text(encoding="utf-8")
    assert [name for name in commands() if f"| `kvmsched {name}" not in text] == []


def leaves(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for key, part in schema["properties"].items():
        if part.get("type") == "object":
            yield from leaves(part, key)
        elif key != "rules":
            yield f"{path}.{key}".lstrip("."), part


def test_the_policy_s_documentation_has_every_key_with_its_default() -> None:
    """A section for each part, a row for each key: its default as JSON, or in words where the schema names none."""
    text = (REPOSITORY / "docs/policy.md").read_text(encoding="utf-8")
    rows: dict[str, str] = {}
    part = ""
    for line in text.splitlines():
        heading = re.fullmatch(r"## (.*)", line)
        if heading:
            part = heading[1].strip("`") + "." if heading[1].startswith("`") else ""
        row = re.fullmatch(r"\| `(\w+)` \| (.*?) \| .+ \|", line)
        if row:
            rows[part + row[1]] = row[2]
    schemas = dict(leaves(config.SCHEMA))
    assert set(rows) == set(schemas)
    for key, schema in schemas.items():
        if "default" in schema:
            assert rows[key].startswith(f"`{json.dumps(schema['default'])}`"), key
        else:
            assert not rows[key].startswith(("`0", "`1", '`"')), f"{key} has no default in the schema"
        for word in schema.get("enum", []):
            assert f"`{word}`" in text, f"{key}: {word}"


# ---------------------------------------------------------------- check


def test_the_defaults_are_a_policy_that_means_nothing_else(tmp_path: Path) -> None:
    code, out, _err = run("check", "--defaults")
    document = json.loads(out)
    assert code == 0 and config.load(document) == config.Policy()
    assert set(dict(leaves(config.SCHEMA))) >= {"memory.waste", "daemon.mode"} and document["memory"]["waste"] == "300M"
    (tmp_path / "policy.json").write_text(out)
    assert run("check", str(tmp_path / "policy.json"))[0] == 0


def test_every_mistake_is_told_at_once_with_file_and_key(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    document = {
        "memory": {"waste": 5, "floor": "1MB"},
        "vcpu": {"threshold": -1, "pcpus": "3-1"},
        "spare": 1,
        "rules": [
            {"match": "a", "memory": {"floor": "x"}},
            {"memory": {"weight": "y"}},
            7,
            {"match": "b", "cpu": {}},
            {"match": "c", "memory": {"starvation": "5G", "waste": "4G", "floor": "3G", "ceiling": "2G"}},
        ],
    }
    path.write_text(json.dumps(document))
    code, out, err = run("check", str(path))
    assert (code, out) == (2, "")
    keys = {line.removeprefix(f"kvmsched: {path}: ").split(":")[0] for line in err.splitlines()}
    assert keys == {
        "memory.waste",
        "memory.floor",
        "vcpu.threshold",
        "vcpu.pcpus",
        "spare",
        "rules[0].memory.floor",
        "rules[1].match",
        "rules[1].memory.weight",
        "rules[2]",
        "rules[3].cpu",
        "rules[4].memory.waste",
        "rules[4].memory.floor",
    }


@pytest.mark.parametrize("name", ["policy.json", "policy.yaml"])
def test_a_number_where_a_text_is_meant_is_answered_with_what_is_accepted(name: str, tmp_path: Path) -> None:
    """JSON is YAML, too; and what is proposed is taken."""
    path = tmp_path / name
    document: dict[str, Any] = {"memory": {"starvation": 120}, "daemon": {"record_size": 512}, "domains": [100]}
    path.write_text(json.dumps(document))
    code, out, err = run("check", str(path))
    assert (code, out) == (2, "") and len(err.splitlines()) == 3
    daemon, domains, memory = sorted(err.splitlines())
    assert domains.endswith('needs quotes: "100"') and "YAML" not in err
    assert daemon.endswith("did you mean 512M?") and memory.endswith("did you mean 120M?")
    path.write_text('{"memory": {"starvation": "120M"}, "daemon": {"record_size": "512M"}, "domains": ["100"]}')
    assert run("check", str(path))[0] == 0


def test_thresholds_are_held_against_each_other_whatever_else_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    memory = {"starvation": "400M", "waste": "300M", "floor": "4G", "ceiling": "2G"}
    path.write_text(json.dumps({"memory": memory, "daemon": {"perod": 5}}))
    told = [line.removeprefix(f"kvmsched: {path}: ").split(":")[0] for line in run("check", str(path))[2].splitlines()]
    assert sorted(told) == ["daemon.perod", "memory.floor", "memory.waste"]


def test_sizes_and_percentages_are_compared_where_the_maximum_is_known(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps({"memory": {"floor": "10%", "ceiling": "6G"}}))
    assert run("check", str(path))[0] == 0
    settings = config.load_file(str(path)).memory
    for maximum_kib, fits in ((32 * 1024**2, True), (64 * 1024**2, False)):
        guest = Domain("u", "d", 1, balloon=Balloon(maximum_kib, maximum_kib))
        with contextlib.nullcontext() if fits else pytest.raises(ValueError, match="floor: got 10%"):
            settings.settings_for(guest)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.json", b"", "not valid JSON"),
        ("p.json", b'{"memory": {}, "memory": {}}', "'memory' stands there twice"),
        ("p.json", b'{"deadline": NaN}', "NaN"),
        ("p.json", b"\xff\xfe{", "p.json"),
        ("p.json", b"[" * 100_000, "nested too deeply"),
        ("p.json", b"[]", "a mapping"),
        ("p.yaml", b"memory: [", "not valid YAML"),
        ("p.yaml", b"- 1", "a mapping"),
        ("p.yaml", b"memory: {waste: 4G}\nmemory: {floor: 1G}", "the key memory stands there twice"),
        ("p.yaml", b"memory: &a {memory: *a}", "nested without end"),
        ("p.yaml", b"daemon:\n  metrics_listen: |\n    none\n", "daemon.metrics_listen: got 'none\\n'"),
        ("p.yaml", b"!!python/object/apply:os.system [true]", "not valid YAML"),
    ],
)
def test_what_is_no_policy_is_one_line(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    code, out, err = run("check", str(path))
    assert (code, out) == (2, "") and err.count("\n") == 1 and words in err, err


def test_yaml_may_merge_what_it_merged(tmp_path: Path) -> None:
    path = tmp_path / "policy.yml"
    path.write_text(
        "rules:\n- {match: x, memory: {<<: &b {weight: 1}, weight: 2}}\n"
        "- {match: y, memory: &m {<<: *b, weight: 3}}\nmemory: {<<: *m}\n"
    )
    policy = config.load_file(str(path))
    assert policy.memory.settings.weight == 3 and [rule.memory["weight"] for rule in policy.memory.rules] == [2, 3]


def test_yaml_and_json_mean_the_same(tmp_path: Path) -> None:
    path = tmp_path / "policy.yml"
    path.write_text("rules:\n- {match: db*, memory: {floor: 4G}}\n")
    assert config.load_file(str(path)) == config.load({"rules": [{"match": "db*", "memory": {"floor": "4G"}}]})


def test_the_host_s_own_policy_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(config.INSTALLED_VARIABLE, raising=False)
    monkeypatch.setattr(config, "INSTALLED", str(tmp_path / "policy.json"))
    assert config.installed() is None
    assert run("check")[0] == 2
    (tmp_path / "policy.json").write_text("{}")
    assert config.installed() == str(tmp_path / "policy.json")
    assert run("check")[0] == 0
    monkeypatch.setenv(config.INSTALLED_VARIABLE, "/nowhere.json")
    code, _out, err = run("check")
    assert code == 2 and "/nowhere.json" in err, "what is named must be there"


def test_a_policy_that_cannot_be_reached_is_not_taken_for_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the daemon's user may not enter its directory, which would stop no root that runs this."""
    monkeypatch.delenv(config.INSTALLED_VARIABLE, raising=False)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone.json").symlink_to("nowhere")
    for path in (tmp_path / "loop/policy.json", tmp_path / "gone.json"):
        monkeypatch.setattr(config, "INSTALLED", str(path))
        code, _out, err = run("check")
        assert code == 2 and f"{path}: can't be read: " in err and err.count("\n") == 1, err
        with pytest.raises(config.ConfigError, match="can't be read"):
            daemon._Source(None).read()


def test_check_names_from_whom_nothing_is_taken_for_slow_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "policy.json"
    why = "slow-stats: unused 2000M stays: its statistics come every 30 s"
    slow = domain(1, memory_skip=why, memory_code="slow-stats")
    told = Status("1", 7, 0.0, 0.0, "test:///default", "act", "act", domains=(slow, domain(2)))
    monkeypatch.setattr(cli.lock, "daemon", lambda _uri: ("act", 7))
    monkeypatch.setattr(cli.status, "read", lambda _uri: told)

    def lines(**memory: Any) -> list[str]:
        path.write_text(json.dumps({"memory": memory}))
        code, out, _err = run("check", str(path))
        assert code == 0
        return out.splitlines()[1:]

    assert lines() == [f"  nothing is taken from guest-1: {why}"]
    assert lines(reclaim="eager", stats_period=30) == []
    assert lines(stats_period=11)[0].startswith("  memory.stats_period: 11 s is more than 10 s: with reclaim auto")


# ---------------------------------------------------------------- how a host is shown


def domain(number: int, **more: Any) -> DomainStatus:
    values: dict[str, Any] = {
        "name": f"guest-{number}",
        "uuid": f"u{number}",
        "state": "running",
        "maximum_kib": 1024 * MIB,
        "actual_kib": 512 * MIB,
        "target_kib": 512 * MIB,
        "usable_kib": 200 * MIB,
        "unused_kib": 100 * MIB,
        "starvation_kib": 150 * MIB,
        "waste_kib": 300 * MIB,
        "floor_kib": 128 * MIB,
        "vcpus": (VcpuStatus(0, frozenset({number % 4}), 10.0 * number, 5.0),),
        **more,
    }
    return DomainStatus(**values)


def host(domains: list[DomainStatus], pcpus: int = 4, **more: Any) -> Status:
    return Status(
        version="1",
        pid=7,
        started_s=1000.0,
        written_s=2000.0,
        uri="qemu:///system",
        mode="act",
        effective_mode="act",
        host="kvm1.example.org",
        memory=MemoryFigures(100, 100, 100, 1, 1, 10**9, 10**8, 10**6),
        memory_total_kib=10**9,
        vcpu=VcpuFigures(pcpus, 50.0, 100.0, 33.3, 40.0),
        domains=tuple(domains),
        pcpus=tuple(PcpuStatus(number, 50.0, 3.0) for number in range(pcpus)),
        **more,
    )


@pytest.mark.parametrize("pcpus", [0, 1, 4, 16, 17, 64, 500])
@pytest.mark.parametrize("height", [None, 5, 24, 50])
def test_a_table_fits_into_80_columns_and_the_screen(pcpus: int, height: int | None) -> None:
    domains = [domain(n, name="a-very-long-name-of-a-guest-" * (1 + n % 3)) for n in range(100)]
    domains += [DomainStatus("bare", "u", "paused"), domain(1, maximum_kib=2**50, actual_kib=2**50, usable_kib=2**49)]
    lines = status_text.table(host(domains, pcpus), "cpu", 80, height)
    assert all(len(line) <= 80 and line == line.rstrip() for line in lines)
    assert sum(line.startswith("GUEST") for line in lines) == 1
    if height is not None and height >= 24:
        assert len(lines) <= height
    if height is None:
        assert sum(line.startswith("a-very-lo") for line in lines) == 100


LONG = [f"customer-7-production-{role}-{number}" for role in ("db", "web") for number in range(12)]


def test_a_table_is_as_wide_as_its_names_need_where_nobody_says_how_wide() -> None:
    lines = status_text.table(host([domain(1, name="x" * 60)]))
    assert any(line.startswith("x" * 60 + " ") for line in lines)
    assert max(len(line) for line in status_text.table(host([domain(1)])) if "guest-1" in line) <= 80


@settings(derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.text("ab-1", min_size=1, max_size=40), max_size=40, unique=True), st.integers(4, 30))
def test_no_two_guests_have_one_text(names: list[str], width: int) -> None:
    texts = status_text.told_apart([*names, *LONG], width)
    assert len(set(texts.values())) == len(texts) and all(len(text) <= width for text in texts.values())
    assert all(texts[name] == name for name in names if len(name) <= width)


def test_the_table_scrolls_filters_and_says_why() -> None:
    status = host([domain(number, name=name, uuid=str(number)) for number, name in enumerate(LONG)])
    choice = status_text.Choice("name", wanted="WEB")
    shown = status_text.guests(status, choice)
    assert [one.name for one in shown] == sorted(name for name in LONG if "-web-" in name)
    choice = status_text.scrolled(shown, choice, 5)
    assert (choice.selected, choice.first) == (shown[0].uuid, 0)
    choice = status_text.scrolled(shown, status_text.moved(shown, choice, 7), 5)
    assert (choice.selected, choice.first) == (shown[7].uuid, 3)
    choice = status_text.scrolled(shown, status_text.moved(shown, choice, -1), 5)
    assert choice.first == 3, "who is still seen does not make it scroll"
    choice = status_text.scrolled(shown, status_text.moved(shown, choice, -100), 5)
    assert (choice.selected, choice.first) == (shown[0].uuid, 0)
    gone = status_text.scrolled(shown[:2], status_text.Choice("name", selected="nobody", first=9), 5)
    assert (gone.selected, gone.first) == (shown[0].uuid, 0)
    assert status_text.scrolled([], choice, 5).first == 0 and status_text.moved([], choice, 1) == choice


def test_the_titles_tell_that_there_are_more_guests_than_one_sees() -> None:
    shown = [domain(number, name=f"guest-{number}") for number in range(135)]
    columns = status_text.Columns.of(shown, 80)
    assert status_text.seen(shown[:5], status_text.Choice(), 5) == ""
    for first, told in ((0, "GUEST 1-13/135 "), (122, "GUEST 123-135/135 ")):
        seen = status_text.seen(shown, status_text.Choice(first=first), 13)
        assert columns.titles(seen).startswith(told) and len(columns.titles(seen)) == len(columns.titles())
    assert columns.titles("100001-100002/100003").split() == columns.titles().split(), "no room for that"


MOVES = [("memory", ": 400M -> 512M"), ("vcpu", " vCPU 0: 0 -> 3")]


def test_it_is_said_of_the_selected_guest_why_it_has_what_it_has() -> None:
    lacks = domain(1, unmet_kib=98 * MIB, unmet="usable 96M, starvation 150M, the host has 0M to give")
    assert status_text.why(lacks).startswith("guest-1: lacks 98M: usable 96M")
    assert status_text.why(domain(1, memory_skip="stale: its statistics are 60 s old")).endswith(
        "memory: stale: its statistics are 60 s old"
    )
    assert "kvmsched explain guest-1" in status_text.why(domain(1))
    moves = [DomainMove(9.0, what, f"guest-1{told}", "usable 9M < 150M") for what, told in MOVES]
    assert [status_text.why(domain(1, moves=(move,))) for move in moves] == [
        "guest-1: last: 400M -> 512M: usable 9M < 150M",
        "guest-1: last: vCPU 0: 0 -> 3: usable 9M < 150M",
    ]
    would = replace(moves[0], made=False)
    assert status_text.cause(domain(1, moves=(would,))) == "would make: 400M -> 512M: usable 9M < 150M"


def test_the_last_line_shows_order_and_filter_first() -> None:
    """80 columns cut what comes last: a filter that nobody sees looks as if guests were gone."""
    for sort in status_text.SORTS:
        assert len(status_text.foot(status_text.Choice(sort))) <= 80
    assert status_text.foot(status_text.Choice("wait", "web")).startswith("by wait /web (Escape ends it)  q quit")
    assert status_text.foot(status_text.Choice("wait", "we"), typing=True).startswith("/we_ ")


def test_guests_are_told_apart_on_a_narrow_terminal_too() -> None:
    lines = status_text.table(host([domain(n, name=name) for n, name in enumerate(LONG)]), "name", 60)
    rows = {line.split()[0] for line in lines if line.startswith("cus")}
    assert len(rows) == len(LONG) and all(len(line) <= 60 for line in lines)


def test_rows_are_sorted_as_asked() -> None:
    domains = [
        domain(1, usable_kib=9 * MIB, actual_kib=100 * MIB),
        domain(2, usable_kib=None, actual_kib=300 * MIB),
        domain(3, actual_kib=200 * MIB, usable_kib=50 * MIB, vcpus=(VcpuStatus(0, frozenset({1}), 0.0, 90.0),)),
    ]
    orders = {"cpu": "213", "wait": "312", "memory": "231", "usable": "132", "name": "123"}
    assert set(orders) == set(status_text.SORTS)
    for sort, order in orders.items():
        rows = [line for line in status_text.table(host(domains), sort) if line.startswith("guest-")]
        assert "".join(row[len("guest-")] for row in rows) == order, sort


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({}, "ok"),
        ({"usable_kib": 149 * MIB}, "starved"),
        ({"unused_kib": 301 * MIB, "usable_kib": 400 * MIB}, "wasteful"),
        ({"usable_kib": None}, "unknown"),
        ({"memory_skip": "stale: its statistics are 60 s old", "memory_code": "stale"}, "unknown"),
        ({"memory_skip": "settling: not known to be at rest", "memory_code": "settling"}, "ok"),
        ({"state": "paused"}, "paused"),
    ],
)
def test_a_guest_s_memory_in_one_word(more: dict[str, Any], word: str) -> None:
    assert domain(1, **more).verdict == word


def test_a_guest_s_story() -> None:
    moves = (
        DomainMove(1990.0, "memory", "guest-1: 400M -> 512M", "usable 60M < 150M"),
        DomainMove(1995.0, "memory", "guest-1: 512M -> 600M", "usable 90M < 150M", made=False),
    )
    told = domain(1, usable_kib=90 * MIB, target_kib=600 * MIB, unmet_kib=20 * MIB, unmet="host short", moves=moves)
    text = "\n".join(status_text.story(told, host([told])))
    for words in (
        "has       512M of at most 1024M",
        "uses      422M",
        "wants     at least 572M",
        "starved: usable 90M < 150M",
        "plan      512M -> 600M",
        "lacks     20M: host short",
        "wants 15 %, gets 10 % of a pCPU, on pCPU 1, which is 50 % busy",
        "guest-1: 400M -> 512M: usable 60M < 150M",
        "would make guest-1: 512M -> 600M",
    ):
        assert words in text, text
    bare = DomainStatus("bare", "u", "paused", memory_skip="not-running: it is paused")
    assert "it is paused" in "\n".join(status_text.story(bare, host([bare])))


def test_the_daemon_s_state() -> None:
    about = {"policy_path": "/etc/p.json", "policy_hash": "ab" * 32, "policy_error": "waste: wrong", "trouble": "gone"}
    text = "\n".join(status_text.summary(host([], **about), 8200.0))
    for words in ("pid 7, up 2 h", "mode    act", "/etc/p.json (abababababab)", "waste: wrong", "gone", "no pass yet"):
        assert words in text, text


def test_names_reach_no_terminal_unchecked() -> None:
    out = io.StringIO()
    cli.Terminal(out, out).say("\x1b[2Jguest\r\n\u202e")
    assert out.getvalue() == "?[2Jguest???\n"


# ---------------------------------------------------------------- scripts and slips


def test_a_policy_is_checked_for_scripts(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text('{"memory": {"wast": "5%"}, "rules": [{"match": 5}]}')
    code, out, err = run("check", "--json", str(path))
    told = json.loads(out)
    assert (code, err, told["good"]) == (2, "", False) and len(told["mistakes"]) == 2
    path.write_text("{")
    assert run("check", "--json", str(path))[0] == 2
    path.write_text('{"rules": [{"match": "db*"}]}')
    code, out, _err = run("check", "--json", str(path))
    assert (code, json.loads(out)) == (0, {"good": True, "mistakes": [], "rules": 1, "doubts": []})
    assert run("check", str(path))[1].endswith("good, 1 rule\n")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["onse"], "did you mean once? (see kvmsched --help)"),
        (["tpo"], "did you mean top? (see kvmsched --help)"),
        (["once", "--jsn"], "unknown: --jsn; did you mean --json? (see kvmsched once --help)"),
        (["once", "--polcy=x"], "unknown: --polcy=x; did you mean --policy? (see kvmsched once --help)"),
        (["top", "--sort", "memroy"], "did you mean memory? (see kvmsched top --help)"),
        (["waltz"], "plan, check (see kvmsched --help)"),
        (["resume", "now"], "unknown: now (see kvmsched resume --help)"),
        (["once", "--exit-code"], "allowed: beside --dry-run"),
    ],
)
def test_a_slip_is_answered_with_what_was_meant(words: list[str], told: str) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "") and told in err and err.count("\n") == 1
