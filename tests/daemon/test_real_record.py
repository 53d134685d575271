# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records of real guests: the same decisions come out again, and the model's error is known."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from face import COMMAND, bare_environment, ok
from four import BUSY, CALM, HOG, LAZY, four
from kvmsched.app import record, replay
from kvmsched.app.replay import RECORDED, UNTOUCHED, Job, Source, play
from lab import Lab, RunningGuest
from running import PATIENCE_S, Daemon, policy, running

# Minutes of changing load on real guests: too long for each change.
pytestmark = pytest.mark.nightly

MEMORY = {"starvation": "60M", "waste": "120M", "reclaim": "eager"}
# What the model may be wrong by on these guests, emulated on two busy pCPUs: see docs/replay.md.
RUN_POINTS, WAIT_POINTS, USABLE_MIB = 25, 30, 60
# Each scene: what each guest holds (MiB), and the share of a pCPU that it wants.
SCENES = [
    {HOG: (180, 0.1), LAZY: (0, 0.1), BUSY: (60, 0.8), CALM: (60, 0.7)},
    {HOG: (320, 0.1), LAZY: (20, 0.9), BUSY: (100, 0.1), CALM: (60, 0.8)},
    {HOG: (100, 0.8), LAZY: (250, 0.1), BUSY: (40, 0.1), CALM: (120, 0.8)},
]
SCENE_S = 25


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        lab.start(*four())
        yield lab


def document(directory: Path, **vcpu: object) -> dict[str, object]:
    daemon = {"period": 2, "record": str(directory / "record")}
    return policy(daemon, memory=MEMORY, vcpu={"hold": 1, "half_life": 4, "cooldown": 5, **vcpu})


def play_scenes(lab: Lab, daemon: Daemon, directory: Path) -> None:
    """Change the load, and once in a while the policy."""
    for turn, scene in enumerate(SCENES):
        for name, (mib, share) in scene.items():
            lab[name].cpu(share)
            lab[name].hold(mib, 10)
        time.sleep(SCENE_S)
        if turn == 1:
            daemon.reload(document(directory, threshold=6))


def test_a_real_run_replayed_gives_the_same_decisions_move_by_move(lab: Lab, tmp_path: Path) -> None:
    """Memory and vCPUs, over a reload of the policy, a kill and a restart; and the model is right within its error."""
    with running(document(tmp_path), directory=tmp_path) as daemon:
        play_scenes(lab, daemon, tmp_path)
        moves = len(daemon.moves)
        # What is flushed is on the disk whatever happens; a kill loses the last half minute.
        daemon.end(signal.SIGKILL)
    with running(document(tmp_path), directory=tmp_path) as daemon:
        assert daemon.said("goes on with what an earlier daemon remembered")
        play_scenes(lab, daemon, tmp_path)
        moves += len(daemon.moves)
    assert (tmp_path / "record").stat().st_mode & 0o777 == 0o700
    source = Source((str(tmp_path / "record"),))
    result, untouched = play(source, Job(RECORDED)), play(source, Job(UNTOUCHED))
    checked, errors, figures = result.verified, result.errors, result.figures
    print(f"\n{checked}\n{errors}\n{figures}\nuntouched: {untouched.figures}")
    print("\n".join(replay.table([result, untouched])))
    assert checked.passes > 60 and checked.same == checked.passes, checked
    assert figures.pin_moves and figures.memory_moves, "it says something of both"
    assert 0.5 * moves < figures.pin_moves + figures.memory_moves <= moves
    assert errors.run_points is not None and errors.run_points < RUN_POINTS, errors
    assert errors.wait_points is not None and errors.wait_points < WAIT_POINTS, errors
    assert errors.usable_mib is not None and errors.usable_mib < USABLE_MIB, errors
    looks = list(record.read([str(tmp_path / "record")]))
    made = [(look, move) for look in looks for one in look.decided.values() for move in one.changes]
    at = time.strftime("%F %T", time.localtime(made[-1][0].snapshot.wall_s + 1))
    told = ok("explain", made[-1][1].domain, "--at", at, "--record", str(tmp_path / "record"))
    assert str(made[-1][1]) in told


def command(*arguments: str) -> subprocess.Popen[str]:
    words = [*COMMAND, "record", *arguments]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=bare_environment())


def test_a_record_that_is_killed_loses_its_tail_only(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text('{"daemon": {"period": 1}}', encoding="utf-8")
    path = tmp_path / "r.kvmrec.gz"
    process = command("--policy", str(tmp_path / "policy.json"), str(path))
    began_s = 0.0
    for _flush in range(2):
        size = path.stat().st_size if path.exists() else 0
        while not path.exists() or path.stat().st_size == size:
            assert process.poll() is None
            time.sleep(0.2)
        began_s = began_s or time.monotonic()
    process.kill()
    process.wait()
    spent_s = time.monotonic() - began_s
    looks = [look.snapshot for look in record.read([str(path)])]
    kept_s = looks[-1].monotonic_s - looks[0].monotonic_s
    print(f"\n{len(looks)} looks, {kept_s:.0f} of {spent_s:.0f} s are kept")
    assert kept_s > 0 and spent_s - kept_s < 60 and {d.name for d in looks[-1].domains} >= {HOG, LAZY, BUSY, CALM}


def test_it_ends_as_told_and_without_names_if_asked_to(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "r.kvmrec.gz"
    process = command("--anonymise", str(path))
    time.sleep(15)
    process.send_signal(signal.SIGTERM)
    said, _none = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0 and "looks in" in said, said
    assert os.listdir(tmp_path) == [path.name], "nothing with names is left"
    looks = [look.snapshot for look in record.read([str(path)])]
    assert len(looks) >= 2 and not [d.name for d in looks[-1].domains if "kvmsched" in d.name]


def test_the_guests_are_well(lab: Lab) -> None:
    """Last: none of what was recorded hurt anybody."""
    guests: list[RunningGuest] = [lab[name] for name in (HOG, LAZY, BUSY, CALM)]
    assert all(guest.alive and guest.hog_kills == 0 for guest in guests)
