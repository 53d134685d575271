# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A fleet of three hosts with real guests: looked at, half rolled out, rolled out, and released.

Each test goes on where the one before it ended, as an operator's day does.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from face import ANSIBLE
from lab import Fleet, Guest, Lab
from lab.hosts import Host
from lab.lab import RunningGuest
from plays import (
    POLICY,
    RELEASE,
    ROLLOUT,
    Play,
    balloon_kib,
    eventually,
    is_installed,
    main_pid,
    play,
    policy,
    runs_at_boot,
    status,
    traces,
)
from readme import said

H1, H2, H3 = HOSTS = ("kvmsched-h1", "kvmsched-h2", "kvmsched-h3")
HOG, HOARDER = GUESTS = ("kvmsched-test-hog", "kvmsched-test-hoarder")
LIBVIRT = "libvirtd.service libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket"
STATE = "urn:kvmsched:state/1"


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet(*HOSTS) as fleet:
        yield fleet


@pytest.fixture(scope="module", autouse=True)
def guests(fleet: Fleet) -> Iterator[dict[str, list[RunningGuest]]]:
    """On each host one that starves and one that hoards, both on the same pCPU.

    What they tell is fresh for twice their period and 2 s: other tests run beside these, and keep the machine busy.
    """
    with contextlib.ExitStack() as labs:
        yield {
            host.name: labs.enter_context(Lab(own=host)).start(
                Guest(HOG, memory_mib=512, current_mib=256, hold_mib=140, cpu=[0.15], pin={0: "0"}, stats_period_s=3),
                Guest(HOARDER, memory_mib=512, cpu=[0.15], pin={0: "0"}, stats_period_s=3),
            )
            for host in fleet
        }


@pytest.fixture(scope="module")
def before(fleet: Fleet, guests: Any) -> dict[str, set[str]]:
    """What each host held before kvmsched came."""
    return {host.name: traces(host) for host in fleet}


def originals(host: Host, running: list[RunningGuest]) -> dict[str, tuple[frozenset[int], int]]:
    return {guest.name: (guest.affinity(0), balloon_kib(host, guest.name)) for guest in running}


ORIGINAL = {HOG: (frozenset({0}), 256 * 1024), HOARDER: (frozenset({0}), 512 * 1024)}


def acts(host: Host) -> bool:
    return is_installed(host) and status(host).get("effective_mode") == "act"


def test_a_dry_run_reports_all_hosts_and_leaves_no_trace(
    fleet: Fleet, before: dict[str, set[str]], guests: dict[str, list[RunningGuest]], tmp_path: Path
) -> None:
    fleet[H3].lose()
    try:
        done = play(fleet, "kvmsched.kvm.dry_run", kvmsched_report=str(tmp_path / "report.json")).well()
    finally:
        fleet[H3].find()
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    hosts = {host["host"]: host for host in report["hosts"]}
    assert {name: host["state"] for name, host in hosts.items()} == {H1: "ok", H2: "ok", H3: "unreachable"}
    for name in (H1, H2):
        assert (hosts[name]["starved"], hosts[name]["wasteful"]) == (1, 1)
        assert {move["domain"] for move in hosts[name]["moves"] if move["kind"] == "balloon"} == set(GUESTS)
        assert f"{HOG} 256M -> " in done.text and "unreachable: " in done.text
    for host in fleet:
        assert traces(host) == before[host.name] and originals(host, guests[host.name]) == ORIGINAL


def test_a_dry_run_refuses_what_the_roll_out_would_refuse(fleet: Fleet) -> None:
    done = play(fleet, "kvmsched.kvm.dry_run", kvmsched_policy_override={"exclud": ["infra-*"]})
    assert done.status != 0 and "kvmsched_policy.exclud. Supported parameters include: " in done.text, done.text
    assert "argument_spec_data" not in done.text


def test_a_host_lost_in_the_middle_fails_alone_and_ends_the_roll_out(fleet: Fleet) -> None:
    lost = fleet[H2]
    done = Play(fleet, ROLLOUT, kvmsched_serial=2).when(lambda: is_installed(lost), lost.lose).wait()
    lost.find()
    assert done.status != 0 and f"lost or not well: {H2}" in done.text, done.text
    assert {name: counts["unreachable"] for name, counts in done.recap.items()} == {H1: 0, H2: 1, H3: 0}
    assert acts(fleet[H1]) and not is_installed(fleet[H3])


def test_a_broken_host_ends_the_roll_out(fleet: Fleet) -> None:
    fleet[H2].run(f"systemctl mask --runtime --now {LIBVIRT}")
    pid = main_pid(fleet[H1])
    done = play(fleet, ROLLOUT, kvmsched_serial=1)
    fleet[H2].run(f"systemctl unmask --runtime {LIBVIRT} && systemctl start libvirtd.socket libvirtd")
    assert done.status != 0 and f"kvmsched on {H2} is not well" in done.text, done.text
    assert done.recap[H1] == {**done.recap[H1], "failed": 0, "changed": 0} and done.recap[H2]["failed"] == 1
    assert acts(fleet[H1]) and main_pid(fleet[H1]) == pid
    assert policy(fleet[H2])["daemon"]["mode"] == "observe"
    assert not is_installed(fleet[H3])


def test_a_roll_out_has_all_guests_fed_and_balanced(fleet: Fleet, guests: dict[str, list[RunningGuest]]) -> None:
    play(fleet, ROLLOUT, kvmsched_serial="100%", kvmsched_hosts=",".join(HOSTS)).well()
    for host in fleet:
        assert acts(host) and policy(host) == {**POLICY, "daemon": {**POLICY["daemon"], "mode": "act"}}
        hog, hoarder = guests[host.name]
        eventually(lambda host=host: balloon_kib(host, HOG) > 256 * 1024, f"{HOG} is fed on {host.name}")
        eventually(lambda host=host: balloon_kib(host, HOARDER) < 300 * 1024, f"{HOARDER} gives on {host.name}")
        eventually(
            lambda hog=hog, hoarder=hoarder: hog.affinity(0) != hoarder.affinity(0), f"pCPUs differ on {host.name}"
        )
        assert hog.alive and not hog.hog_kills


def test_all_hosts_are_paused_at_once(fleet: Fleet) -> None:
    """By the lines of docs/reliability.md for a bad night."""
    for command, mode in (("pause 8h", "observe"), ("resume", "act")):
        line = f"/usr/local/bin/kvmsched {command}"
        said([str(ANSIBLE), "hypervisors", "--inventory", str(fleet.inventory), "-b", "-a", line])
        for host in fleet:
            eventually(lambda host=host, mode=mode: status(host)["effective_mode"] == mode, f"{command} on {host.name}")
        if mode == "observe":
            assert play(fleet, ROLLOUT, kvmsched_serial="100%").well().changed() == 0


def test_a_second_roll_out_changes_nothing_and_sets_the_dead_aside(fleet: Fleet) -> None:
    pids = [main_pid(host) for host in fleet]
    fleet[H3].lose()
    done = play(fleet, ROLLOUT, kvmsched_serial="100%")
    fleet[H3].find()
    assert done.status == 4 and done.changed() == 0, done.text
    assert {name: counts["unreachable"] for name, counts in done.recap.items()} == {H1: 0, H2: 0, H3: 1}
    assert [main_pid(host) for host in fleet] == pids


def test_a_guest_that_needs_what_it_got_keeps_its_host(
    fleet: Fleet, before: dict[str, set[str]], guests: dict[str, list[RunningGuest]]
) -> None:
    for name in (H2, H3):
        guests[name][0].hold(20)
    done = play(fleet, RELEASE)
    assert {name: counts["failed"] for name, counts in done.recap.items()} == {H1: 1, H2: 0, H3: 0}, done.text
    assert "Nothing was removed" in done.text and f"{HOG}: not shrunk to its 256M" in done.text
    assert is_installed(fleet[H1]) and runs_at_boot(fleet[H1])
    assert not is_installed(fleet[H2]) and not is_installed(fleet[H3])


def test_release_leaves_guests_as_they_were_and_nothing_behind(
    fleet: Fleet, before: dict[str, set[str]], guests: dict[str, list[RunningGuest]]
) -> None:
    """Run again, it goes on. Records that nobody can read, or follow, keep their own guest's, and are named."""
    guests[H1][0].hold(20)
    # Its daemon goes on, and would have taken from a guest whose record is to be damaged.
    fleet[H1].run(f"systemctl stop kvmsched && /usr/local/bin/kvmsched release {HOARDER}")
    fleet[H1].run(f"virsh metadata {HOARDER} {STATE} kvmsched --set '<state version=\"9\"/>' --live")
    host_uuid = UUID(fleet[H2].read("/etc/machine-id").strip())
    pin = '<pin thread="vcpu" id="0" when_s="1" original="0,77" previous="0" intended="0"/>'
    forged = f'<state version="1" host="{host_uuid}" domain="1">{pin}</state>'
    fleet[H2].run(f"virsh metadata {HOARDER} {STATE} kvmsched --set '{forged}' --live")
    done = play(fleet, RELEASE).well()
    for host, why in ((H1, "its record has version 9"), (H2, "vCPU 0: its original 0,77 has pCPU 77 offline")):
        command = re.findall(rf"{HOARDER}: {why}[^`]*`(virsh metadata [^`]*)`", done.text)[-1]
        assert "urn:kvmsched:state" in traces(fleet[host])
        fleet[host].run(command)
    assert done.recap[H2]["changed"] == done.recap[H3]["changed"] == 0
    for host in fleet:
        assert {path for path in traces(host) - before[host.name] if "kvmsched" in path} == set()
        assert originals(host, guests[host.name]) == ORIGINAL
