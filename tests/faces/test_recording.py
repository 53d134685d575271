# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Recording and replaying, each as a process, on libvirt's test driver."""

from __future__ import annotations

import gzip
import json
import os
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest
from face import COMMAND, bare_environment
from forked import kvmsched, ok

TEST = ["--uri", "test:///default"]
PATIENCE_S = 300


def test_a_host_is_recorded_and_replayed(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('{"daemon": {"period": 1}}')
    path = tmp_path / "r.kvmrec.gz"
    said = ok("record", "--for", "8s", "--policy", str(tmp_path / "p.json"), *TEST, str(path))
    assert said.endswith(f"looks in {path}\n") and stat.S_IMODE(path.stat().st_mode) == 0o600
    told = json.loads(ok("replay", str(path), "--untouched", "--json"))
    assert told["as recorded"]["figures"]["looks"] >= 2 and set(told) == {"as recorded", "untouched", "its own policy"}
    ok("replay", str(path), "--html", str(tmp_path / "p.html"))
    assert "What stands out" in (tmp_path / "p.html").read_text()
    assert "test" in ok("explain", "test", "--at", time.strftime("%F %T"), "--record", str(path))
    copy = tmp_path / "copy.kvmrec.gz"
    ok("record", "--from", str(path), "--anonymise", str(copy))
    assert {"memory", "vcpu"} <= set(json.loads(ok("plan", str(copy), "--json")))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_as_told(tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "r"
    words = [*COMMAND, "record", *TEST, "--anonymise", str(path)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=bare_environment())
    part = tmp_path / "r.part"
    # Its first look is on the disk at once.
    while not (part.exists() and part.stat().st_size) and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(number)
    said, _none = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, said
    assert os.listdir(tmp_path) == ["r"]


def test_what_can_t_be_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for words, code in (
        (["record", *TEST, str(tmp_path / "no/r")], 1),
        (["record", *TEST, "--for", "1x", str(tmp_path / "r")], 2),
        (["record", "--uri", "test:///nowhere", "--for", "2s", str(tmp_path / "r")], 1),
        (["record", "--from", str(tmp_path / "file"), str(tmp_path / "r")], 2),
        (["record", "--from", str(tmp_path / "file"), str(tmp_path / "file")], 2),
        (["replay", str(tmp_path)], 2),
        (["replay", str(tmp_path / "file"), "--step", "x"], 2),
    ):
        done = kvmsched(*words)
        assert done.returncode == code and done.stderr.count("kvmsched: ") == 1, (words, done)
    assert os.listdir(tmp_path) == ["file"], "no record that was never begun"


def test_a_record_that_can_t_be_made_leaves_the_one_that_was_there(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_text("of monday")
    broken = tmp_path / "broken"
    broken.write_bytes(gzip.compress(b"{}\n"))
    for words in (
        ["record", "--uri", "test:///nowhere", "--for", "2s", str(there)],
        ["record", "--uri", "test:///nowhere", "--for", "2s", "--anonymise", str(there)],
        ["record", "--from", str(tmp_path / "typo"), str(there)],
        ["record", "--from", str(tmp_path / "typo"), "--anonymise", str(there)],
        ["record", "--from", str(broken), str(there)],
    ):
        done = kvmsched(*words)
        assert done.returncode in (1, 2) and done.stderr.count("kvmsched: ") == 1, (words, done)
        assert there.read_text() == "of monday", words
    assert sorted(os.listdir(tmp_path)) == ["broken", "there"]


def test_the_daemon_keeps_a_record_where_its_policy_says(tmp_path: Path) -> None:
    document = {"daemon": {"mode": "observe", "period": 1, "metrics_listen": "none", "record": str(tmp_path / "kept")}}
    (tmp_path / "p.json").write_text(json.dumps(document))
    words = [*COMMAND, "run", "--policy", str(tmp_path / "p.json"), *TEST]
    variables = {**bare_environment(), "STATE_DIRECTORY": str(tmp_path / "state")}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=variables)
    passes: set[float] = set()
    while len(passes) < 4 and process.poll() is None:
        # Before it runs, and until it has told something, the answer is not a status.
        if (asked := kvmsched("status", "--json", *TEST)).returncode == 0:
            passes |= {json.loads(asked.stdout)["memory_pass"]["when_s"]} - {0.0}
    process.send_signal(signal.SIGTERM)
    said, _none = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, said
    told = json.loads(ok("replay", str(tmp_path / "kept"), "--json"))["as recorded"]["decided_anew"]
    assert told["passes"] >= 4 and told["same"] == told["passes"] and not told["first"]
    (kept,) = tmp_path.glob("kept/*.kvmrec.gz")
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600 and stat.S_IMODE((tmp_path / "kept").stat().st_mode) == 0o700
