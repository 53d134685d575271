# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Policies, bundles, state files and the kernel's own texts, damaged in any way: understood, or refused in one line."""

from __future__ import annotations

import copy
import io
import json
import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kvmsched import config, hostwork, procfs
from kvmsched.app import bundle, cli, page, record, replay, saved_state, status
from kvmsched.model import from_json, parse_json, to_json
from kvmsched.policy.memory.history import DomainHistory, MemoryHistory
from kvmsched.policy.vcpu.history import PlannedPin, Smoothed, VcpuHistory

SEEDS = st.integers(0, 2**32)
# What is put in place of a value, anywhere in a document.
ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    1.5,
    1e308,
    -1e-308,
    2**63,
    2**64,
    10**30,
    "",
    "x",
    "0-3",
    "9" * 400,
    "\u202e\x1b[2J\ud800",
    "nan",
    [],
    {},
    [[]],
    {"": None},
    [None] * 50,
    {"x": {"y": {}}},
    "x" * 100000,
]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Each container in *value*, and each key or position in it."""
    items = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    return [(value, key) for key, _item in items] + [place for _key, item in items for place in places(item)]


def damaged(document: Any, chance: random.Random) -> Any:
    """*document* with up to three values replaced, dropped or doubled."""
    document = json.loads(json.dumps(document))
    for _change in range(chance.randint(1, 3)):
        found = places(document)
        if not found:
            return document
        where, key = chance.choice(found)
        how = chance.random()
        if how < 0.7:
            where[key] = copy.deepcopy(chance.choice(ODD))  # a next change may be to that
        elif how < 0.85:
            del where[key]
        elif isinstance(where, dict):
            where[chance.choice(["x", "", key.upper(), key + " "])] = where[key]
        else:
            where.append(where[key])
    return document


def cut(text: bytes, chance: random.Random) -> bytes:
    """*text* with some bytes lost, turned or doubled."""
    data = bytearray(text)
    for _change in range(chance.randint(1, 4)):
        if not data:
            break
        first = chance.randrange(len(data))
        how = chance.randrange(3)
        if how == 0:
            del data[first : first + chance.randint(1, 40)]
        elif how == 1:
            data[first] = chance.randrange(256)
        else:
            data[first:first] = data[first : first + chance.randint(1, 40)]
    return bytes(data)


def one_short_line(error: Exception) -> None:
    line = cli.printable(str(error))
    assert line and "\n" not in str(error) and len(str(error)) < 4000, repr(str(error))[:500]


# ---------------------------------------------------------------- policies

WHOLE: dict[str, Any] = {
    **config.defaults(),
    "domains": ["db*", "3b1f9b7e-0000-4000-8000-000000000000"],
    "exclude": ["x"],
    "rules": [
        {"match": "db*", "memory": {"floor": "1G", "ceiling": "50%", "weight": 2.5, "mode": "grow-only"}},
        {"match": "db1", "vcpu": {"mode": "dedicated"}},
    ],
}


@given(SEEDS)
def test_a_damaged_policy_is_good_or_refused_in_short_lines(seed: int) -> None:
    document = damaged(WHOLE, random.Random(seed))
    try:
        config.load(document)
        config.load_daemon(document)
    except config.ConfigError as error:
        assert error.mistakes and all("\n" not in line and len(line) < 1000 for line in error.mistakes)


@pytest.mark.parametrize("name", ["policy.json", "policy.yaml"])
@given(SEEDS)
def test_a_damaged_text_is_good_or_refused_in_short_lines(name: str, seed: int) -> None:
    yaml = pytest.importorskip("yaml")
    text = json.dumps(WHOLE, indent=1) if name.endswith("json") else yaml.safe_dump(WHOLE)
    try:
        config.load(config.parsed(cut(text.encode(), random.Random(seed)), name))
    except config.ConfigError as error:
        assert error.mistakes and all("\n" not in line and len(line) < 1500 for line in error.mistakes)


@pytest.mark.parametrize("name", ["policy.json", "policy.yaml"])
@given(
    st.one_of(st.binary(max_size=300), st.text("[]{}&*!<>|:-,'\"%@0123456789abc \n\t#?", max_size=120).map(str.encode))
)
def test_any_bytes_are_a_policy_or_refused(name: str, text: bytes) -> None:
    try:
        config.load(config.parsed(text, name))
    except config.ConfigError as error:
        assert error.mistakes and all("\n" not in line and len(line) < 1500 for line in error.mistakes)


# ---------------------------------------------------------------- bundles

BUNDLE = {
    "format": 1,
    "policy": {"memory": {"waste": "400M"}, "rules": [{"match": "db*", "vcpu": {"mode": "ignore"}}]},
    "history": {
        "memory": to_json(MemoryHistory("soft", {"u1": DomainHistory(5, 1024, used_kib=7)})),
        "vcpu": to_json(VcpuHistory(4, 5.0, 0.5, 1, {"u1/1/0": Smoothed(0.25, 0.1)}, {0: Smoothed(0.5)})),
    },
    "snapshots": [
        {
            "host": {
                "topology": {"pcpus": [{"id": n, "core": n, "siblings": str(n), "llc": "0-1"} for n in range(2)]},
                "busy_ns": {"0": number * 10**9, "1": 0},
                "memory": {"total_kib": 8 * 2**20, "available_kib": 2**20},
            },
            "domains": [
                {
                    "name": name,
                    "vcpus": [{"id": 0, "pin": "0", "time_ns": number * 10**9, "delay_ns": 5}, {"id": 1}],
                    "balloon": {"actual_kib": 2**20, "maximum_kib": 2**21, "usable_kib": 2**14, "unused_kib": 2**14},
                    "record": {
                        "host_uuid": "h",
                        "domain_id": 1,
                        "memory": {"original_kib": 2**20, "previous_kib": 2**20, "intended_kib": 2**19, "when_s": 7},
                        "pins": [
                            {
                                "thread": "vcpu",
                                "id": 0,
                                "original": "0-1",
                                "previous": "0",
                                "intended": "1",
                                "when_s": 7,
                            }
                        ],
                    },
                }
                for name in ("db1", "web")
            ],
        }
        for number in range(2)
    ],
}


def plan(text: bytes, tmp_path: Path) -> None:
    """`kvmsched plan` makes a plan of it, or refuses it in one line each."""
    path = tmp_path / "bundle.json"
    path.write_bytes(text)
    out, err = io.StringIO(), io.StringIO()
    code = cli.main(["plan", str(path), "--json"], out, err)
    said = err.getvalue()
    assert "a mistake of kvmsched" not in said, said
    assert code in (cli.DONE, cli.FAILED, cli.REFUSED)
    for line in said.splitlines():
        assert line.startswith("kvmsched: ") and line.isprintable() and len(line) <= 4100
    assert all(line.isprintable() for line in out.getvalue().split("\n"))
    if code == cli.REFUSED:
        assert said and not out.getvalue()


def test_the_bundle_that_is_damaged_here_is_a_good_one(tmp_path: Path) -> None:
    whole = bundle.read(json.dumps(BUNDLE))
    assert len(whole.snapshots) == 2 and whole.history.vcpu is not None
    assert bundle.read(bundle.write(whole)) == whole
    plan(json.dumps(BUNDLE).encode(), tmp_path)


@given(SEEDS)
def test_a_damaged_bundle_is_planned_or_refused(tmp_path: Path, seed: int) -> None:
    plan(json.dumps(damaged(BUNDLE, random.Random(seed))).encode(), tmp_path)


@given(SEEDS)
def test_the_text_of_a_damaged_bundle_is_planned_or_refused(tmp_path: Path, seed: int) -> None:
    plan(cut(json.dumps(BUNDLE).encode(), random.Random(seed)), tmp_path)


# ---------------------------------------------------------------- what the daemon keeps

MEMORY = MemoryHistory("soft", {"u1": DomainHistory(5, 1024, used_kib=7, moved_s=3.5, direction=-1)})
PAST = PlannedPin(frozenset({0}), frozenset({1, 2}), 4.5, 3)
VCPU = VcpuHistory(4, 5.0, 0.5, 1, {"u1/1/0": Smoothed(0.25, 0.1)}, {3: Smoothed(0.5)}, {"u1/1/0": PAST}, {"u1": 2}, {})


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    saved_state.save(MEMORY, VCPU)
    return tmp_path / "state.json"


@given(SEEDS, st.booleans())
def test_a_damaged_state_is_read_or_refused_as_a_whole(kept: Path, seed: int, text: bool) -> None:
    saved_state.save(MEMORY, VCPU)
    whole, chance = kept.read_bytes(), random.Random(seed)
    kept.write_bytes(cut(whole, chance) if text else json.dumps(damaged(json.loads(whole), chance)).encode())
    try:
        back: Optional[saved_state.SavedState] = saved_state.load()
    except ValueError as error:
        one_short_line(error)
    else:
        assert back is not None
        for smoothed in (*back.vcpu.loads.values(), *back.vcpu.foreign.values()):
            assert smoothed.variance >= 0 and smoothed.high <= 1


@given(SEEDS)
def test_a_damaged_status_is_shown_or_refused(tmp_path: Path, seed: int) -> None:
    domain = status.DomainStatus("db1", "u1", "running", 5, 4, vcpus=(status.VcpuStatus(0, frozenset({1}), 5.0),))
    whole = status.Status("1", 1, 5.0, 6.0, "qemu:///system", "act", "act", domains=(domain,))
    try:
        from_json(status.Status, parse_json(json.dumps(damaged(to_json(whole), random.Random(seed)))))
    except (ValueError, OverflowError) as error:
        one_short_line(error)


# ---------------------------------------------------------------- what the kernel says

# Where a local user, or who names units, has a word in the kernel's texts.
KERNEL = {
    "/proc/meminfo": "MemTotal:       16384 kB\nMemFree: 5 kB\nMemAvailable:   8192 kB\n",
    "/proc/pressure/memory": "some avg10=0.00 avg60=0.00 total=5\nfull avg10=1.50 avg60=0.00 total=5\n",
    "/sys/devices/system/cpu/isolated": "1-2\n",
    "/sys/devices/system/cpu/nohz_full": "(null)\n",
    "/etc/machine-id": "0123456789abcdef0123456789abcdef\n",
    "/run/libvirt/qemu/db1.pid": "4711\n",
    "/proc/4711/stat": "4711 (NAME) S " + " ".join(str(number) for number in range(4, 53)) + "\n",
    "/proc/4711/statm": "5 4 3 2 1 0 0\n",
    "/proc/4711/status": "Name:\tNAME\nVmLck:\t       5 kB\nVmSwap:\t       0 kB\n",
    "/proc/4711/cmdline": "qemu\0-name\0NAME\0",
    "/proc/4711/cgroup": "0::/machine.slice/NAME/libvirt/emulator\n1:cpuset,memory:/a/NAME\n",
}


@given(st.text(max_size=40).filter(lambda name: "\n" not in name), st.sets(st.sampled_from(sorted(KERNEL)), max_size=4))
def test_a_process_may_have_any_name_and_end_at_any_time(
    monkeypatch: pytest.MonkeyPatch, name: str, gone: set[str]
) -> None:
    texts = {path: text.replace("NAME", name) for path, text in KERNEL.items() if path not in gone}
    monkeypatch.setattr(procfs, "_read", texts.get)
    procfs.memory()
    procfs.isolated()
    procfs.machine_id()
    process = procfs.qemu_process("db1", session=False)
    if process is not None:
        assert process.pid == 4711 and process.started_ticks == 22, "counted from the end of the name"
        for told in (process.memory, process.resumed, process.again()):
            assert told is None or told is not NotImplemented


STAT = "cpu  5 0 5 0 0 0 0 0 0 0\ncpu0 5 0 5 0 0 0 0 0 0 0\ncpu1 1 2 3 4 5 6 7 8 9 10\nintr 5\n"
NAMES = st.binary(max_size=15).filter(lambda name: b"\0" not in name)


@given(st.lists(NAMES, min_size=3, max_size=3), st.sets(st.integers(0, 2)))
def test_what_processes_do_is_counted_whatever_their_names(names: list[bytes], gone: set[int]) -> None:
    """A name is any 15 bytes, a parenthesis or a line feed, too."""
    with tempfile.TemporaryDirectory() as directory:
        proc = Path(directory)
        (proc / "stat").write_text(STAT)
        work = hostwork.HostWork(str(proc), str(proc), affinity_of=lambda _tid: {0})
        for ticks in (0, 50, 100):
            for number, name in enumerate(names):
                pid = proc / str(4711 + number)
                (pid / "task").mkdir(parents=True, exist_ok=True)
                fields = ["S", *map(str, range(4, 14)), str(ticks), *map(str, range(15, 53))]
                (pid / "stat").write_bytes(b"%d (%s) %s\n" % (4711, name, " ".join(fields).encode()))
            times = work.look()
        for number in gone:
            (proc / str(4711 + number) / "stat").unlink()
        assert set(times.busy_ns) == set(work.look().busy_ns) == {0, 1}


# ---------------------------------------------------------------- records


def looks() -> list[Any]:
    """The lines of a short record, taken apart."""
    first = bundle.read(json.dumps(BUNDLE)).snapshots[0]
    encoder, lines = record.Encoder(), []
    for number in range(4):
        domains = tuple(
            replace(d, vcpus=tuple(replace(v, time_ns=(v.time_ns or 0) + number * 10**9) for v in d.vcpus))
            for d in first.domains
        )
        stamps = {"monotonic_s": first.monotonic_s + 5 * number, "wall_s": first.wall_s + 5 * number}
        pasts = {"memory": record.Past(MemoryHistory()), "vcpu": record.Past(VcpuHistory())}
        decided = {"memory": bundle.Decided(), "vcpu": bundle.Decided()}
        now = replace(first, domains=domains, **stamps)
        lines.append(json.loads(encoder.line(record.Entry(now, record.Context(BUNDLE["policy"]), pasts, decided))))
    return lines


def replayed(lines: list[Any], tmp_path: Path) -> int:
    """Each job plays it, and a page is made of that, or refuses it in one line; return how many played it."""
    path, count = tmp_path / "r", 0
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    for job in (replay.Job(replay.RECORDED), replay.Job(replay.UNTOUCHED), replay.Job("defaults", {})):
        try:
            result = replay.play(replay.Source((str(path),)), job, picture=True)
        except (record.RecordError, config.ConfigError) as error:
            assert "\n" not in str(error) and len(str(error)) < 5000
        else:
            page.html([result])
            count += 1
    asked_of(str(path))
    return count


def asked_of(path: str) -> None:
    """What else reads a record does so, or refuses it in one line."""
    for ask in (
        lambda: replay.instant([path], replay.instant_s(time.strptime("03:41", "%H:%M"), record.span([path]))),
        lambda: replay.last_plans(lambda: record.read([path]), None),
        lambda: list(record.anonymised(lambda: record.read([path]))),
        lambda: record.span([path]),
    ):
        try:
            ask()
        except (record.RecordError, config.ConfigError) as error:
            assert "\n" not in str(error) and len(str(error)) < 5000


def test_the_record_that_is_damaged_here_is_a_good_one(tmp_path: Path) -> None:
    assert replayed(looks(), tmp_path) == 3


@given(SEEDS)
def test_a_damaged_record_is_replayed_or_refused_in_one_line(tmp_path: Path, seed: int) -> None:
    replayed(damaged(looks(), random.Random(seed)), tmp_path)
