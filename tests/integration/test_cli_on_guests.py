# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command on real guests."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from face import GUESTS, kvmsched, ok, ok_json, run_ok
from lab import Guest, Lab, RunningGuest

HOG, HOARDER, BUSY = (f"kvmsched-test-{name}" for name in ("hog", "hoarder", "busy"))
POLICY = {
    "domains": [GUESTS],
    "memory": {"starvation": "60M", "waste": "120M", "reclaim": "eager"},
    "vcpu": {"pcpus": "0-1"},
}


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
    guest.wait_until(lambda: enough(guest.domain.memoryStats().get("usable", 0) / 1024), "to be seen by libvirt")


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


@pytest.mark.quiet
def test_one_pass_after_a_look_from_all_sides(guests: dict[str, RunningGuest], policy: str) -> None:
    before = state(guests)
    foreseen = ok_json("once", "--dry-run", "--policy", policy)
    options = {"starvation": "60M", "waste": "120M", "reclaim": "eager"}
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
    rows = {line.split()[0]: line.split() for line in table.splitlines() if line.startswith("kvmsched-test-")}
    # What is written to a file or a pipe is as wide as its names need.
    assert {name: row[-1] for name, row in rows.items()} == {HOG: "starved", HOARDER: "wasteful", BUSY: "ok"}
    assert all(row[1] == "1" and row[4] == "0" for row in rows.values()), table
    assert 40 < float(rows[BUSY][2]) + float(rows[BUSY][3]) < 80, "it wants 60 % of a pCPU"
    assert state(guests) == before, "looking changed something"
    assert not any("kvmsched:state" in guest.domain.XMLDesc(0) for guest in guests.values())


@pytest.mark.quiet
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


@pytest.mark.quiet
def test_a_pass_and_back(guests: dict[str, RunningGuest], policy: str) -> None:
    before = state(guests)
    done = ok("once", "--policy", policy)
    assert f"{HOG}:" in done and "vCPUs: made" in done
    assert len({guest.affinity(0) for guest in guests.values()}) == 2
    assert guests[HOG].balloon_kib() > before[HOG][1]
    for _again in range(30):
        values = ok_json("once", "--policy", policy)
        if not values["changed"] and not values["memory"]["skip_counts"].get("settling"):
            break
    assert not values["changed"], values

    refused = kvmsched("release", "--policy", policy, HOG)
    assert refused.returncode == 1 and HOG in refused.stderr, "what it had before would kill it now"
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
