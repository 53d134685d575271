# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Room for a guest that is to start, made by real guests, and what is owed to them afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from face import GUESTS, kvmsched, ok, ok_json
from lab import Guest, Lab, truth

MIB = 1024
IDLE, CALM, NEW = (f"kvmsched-test-{name}" for name in ("idle", "calm", "new"))
ROOM_MIB = 256
MEMORY = {"starvation": "60M", "waste": "120M", "stats_period": 1}


@pytest.fixture
def lab() -> Iterator[Lab]:
    """One guest uses next to nothing of its memory, one nearly all of it."""
    with Lab() as lab:
        lab.start(Guest(IDLE, memory_mib=1024), Guest(CALM, memory_mib=512, hold_mib=360))
        yield lab
        kvmsched("room", "0")


def policy(path: Path, lab: Lab, room_there_mib: int) -> str:
    """A policy by which the host has so much to give, beyond its reserve and all that guests were promised."""
    promised_kib = sum(guest.untouched_kib() for guest in lab.guests.values())
    reserve_kib = max(0, truth.memory_kib()["MemAvailable"] - promised_kib - room_there_mib * MIB)
    document = {"domains": [GUESTS], "memory": {**MEMORY, "host_reserve": f"{reserve_kib}K"}}
    path.write_text(json.dumps(document))
    return str(path)


@pytest.mark.quiet  # what this machine has to give is what others leave
def test_room_is_made_held_used_and_paid_back(lab: Lab, tmp_path: Path) -> None:
    before = {name: guest.balloon_kib() for name, guest in lab.guests.items()}
    asked = policy(tmp_path / "asked.json", lab, room_there_mib=64)
    done = kvmsched("room", f"{ROOM_MIB}M", "--wait", "--json", "--policy", asked)
    room = json.loads(done.stdout)["room"]
    assert room["kib"] == ROOM_MIB * MIB
    assert lab[IDLE].balloon_kib() < before[IDLE] - 32 * MIB, "what serves nothing is taken"
    assert lab[CALM].balloon_kib() == before[CALM], "nobody who uses his memory pays"
    assert (done.returncode == 0) == (room["lacks_kib"] == 0), done.stdout
    assert all(guest.alive and guest.hog_kills == 0 for guest in lab.guests.values())

    held = ok_json("once", "memory", "--policy", asked)["memory"]["room"]
    assert held["kib"] == ROOM_MIB * MIB, "each further pass keeps it"
    lab.start(Guest(NEW, memory_mib=ROOM_MIB))
    assert ok_json("once", "memory", "--policy", asked)["memory"]["room"]["kib"] == 0, "it came: the room is used"
    lab.stop([NEW])
    ok("room", "0")

    taken_kib = lab[IDLE].balloon_kib()
    generous = policy(tmp_path / "generous.json", lab, room_there_mib=2048)
    story = ok("explain", IDLE, "--policy", generous)
    assert "is owed" in story, story
    ok("repay", "--policy", generous, IDLE)
    for _pass in range(30):
        # Less than a command moves stays owed.
        if lab[IDLE].balloon_kib() >= before[IDLE] - 24 * MIB:
            break
        repaid = ok_json("repay", "--policy", generous)
    assert before[IDLE] - 24 * MIB <= lab[IDLE].balloon_kib() > taken_kib, repaid
    assert lab[CALM].balloon_kib() == before[CALM]
