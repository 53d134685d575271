# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role on a host where nothing was: looked at, installed in an older version, upgraded, changed, rebooted, removed.

Each test goes on where the one before it ended.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Fleet, HostError
from lab.hosts import Host
from plays import (
    OLD,
    POLICY,
    Played,
    is_installed,
    main_pid,
    older,
    play,
    policy,
    role_play,
    runs_at_boot,
    status,
    traces,
)

HOST = "kvmsched-bare"


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet(bare=[HOST]) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def host(fleet: Fleet) -> Host:
    return fleet[HOST]


@pytest.fixture(scope="module")
def role(tmp_path_factory: pytest.TempPathFactory) -> str:
    return role_play(tmp_path_factory.mktemp("play"))


@pytest.fixture(scope="module")
def old_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Collections of which this one is of an older version."""
    return older(tmp_path_factory.mktemp("old"))


@pytest.fixture(scope="module")
def before(host: Host) -> set[str]:
    return traces(host)


def test_check_mode_on_a_bare_host_says_all_and_does_nothing(
    fleet: Fleet, host: Host, role: str, before: set[str]
) -> None:
    done = play(fleet, role, "--check", "--diff").well()
    assert done.recap[HOST]["changed"] >= 2 and '+    "starvation": "60M",' in done.text, done.text
    assert traces(host) == before


def test_where_nothing_is_nothing_need_be_there_to_be_removed(
    fleet: Fleet, host: Host, role: str, before: set[str]
) -> None:
    """Not even libvirt's Python binding."""
    assert play(fleet, role, kvmsched_state="absent").well().changed() == 0
    assert traces(host) == before


def test_a_tag_brings_its_part_alone(fleet: Fleet, host: Host, role: str, before: set[str]) -> None:
    refused = play(fleet, role, kvmsched_manage_packages="false")
    assert refused.status != 0 and f"{HOST} lacks some of python3-libvirt" in refused.text, refused.text
    assert traces(host) == before
    assert play(fleet, role, "--tags=kvmsched_packages").well().changed() == 1
    assert not is_installed(host) and host.run("/usr/bin/python3 -c 'import libvirt, jsonschema, systemd'") == ""


def test_an_older_version_is_installed_and_runs(fleet: Fleet, host: Host, role: str, old_tree: Path) -> None:
    play(fleet, role, tree=old_tree).well()
    told = status(host)
    assert told["version"] == OLD and told["effective_mode"] == "act"
    assert policy(host) == {**POLICY, "daemon": {**POLICY["daemon"], "mode": "act"}}
    assert host.run("systemctl is-enabled kvmsched").strip() == "enabled"
    assert host.run("stat -c '%U %a' /proc/$(systemctl show -P MainPID kvmsched)").split()[0] == "kvmsched"


def test_an_upgrade_is_foreseen_and_restarts_the_daemon(fleet: Fleet, host: Host, role: str) -> None:
    pid, old = main_pid(host), status(host)["package"]
    foreseen = play(fleet, role, "--check", "--diff").well()
    assert foreseen.recap[HOST]["changed"] == 1 and f"-{Path(old).name}" in foreseen.text
    assert main_pid(host) == pid and status(host)["version"] == OLD
    play(fleet, role).well()
    told = status(host)
    assert told["version"] != OLD and told["package"] != old and main_pid(host) != pid
    assert {path.name for path in host.path("/usr/local/lib/kvmsched").iterdir()} == {
        "current",
        Path(told["package"]).name,
    }


def test_the_second_run_changes_nothing(fleet: Fleet, host: Host, role: str) -> None:
    pid = main_pid(host)
    assert play(fleet, role).well().changed() == 0
    assert play(fleet, role, "--tags=kvmsched_daemon").well().changed() == 0
    # What removes has no tag.
    assert play(fleet, role, "--tags=kvmsched_daemon", kvmsched_state="absent").well().changed() == 0
    assert main_pid(host) == pid


def test_a_policy_is_reloaded_not_restarted(fleet: Fleet, host: Host, role: str) -> None:
    pid, was = main_pid(host), status(host)["policy_hash"]
    play(fleet, role, kvmsched_policy_override={"memory": {"floor": "90M"}}).well()
    assert policy(host)["memory"] == {**POLICY["memory"], "floor": "90M"}
    assert main_pid(host) == pid and status(host)["policy_hash"] != was


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"kvmsched_policy": {"memory": {"starvation": "60"}}}, "memory.starvation: got '60'"),
        ({"kvmsched_policy": {"memory": {"starvatoin": "60M"}}}, "kvmsched_policy.memory.starvatoin"),
        ({"kvmsched_policy_override": {"memory": {"waste": "5M"}}}, "memory.waste"),
        ({"kvmsched_metrics_allow": ["prometheus.example.com"]}, "kvmsched_metrics_allow: got prometheus.example.com"),
    ],
)
def test_a_bad_policy_never_replaces_a_good_one(
    variables: dict[str, object], words: str, fleet: Fleet, host: Host, role: str
) -> None:
    pid, was = main_pid(host), host.read("/etc/kvmsched/policy.json")
    done = play(fleet, role, **variables)
    assert done.status != 0 and words in done.text and "Traceback" not in done.text
    assert host.read("/etc/kvmsched/policy.json") == was and main_pid(host) == pid


def test_it_is_back_after_a_reboot(host: Host) -> None:
    host.reboot()
    assert host.run("systemctl is-active kvmsched").strip() == "active"
    assert status(host)["effective_mode"] == "act"


def test_what_an_interrupted_run_left_is_mended(fleet: Fleet, host: Host, role: str) -> None:
    """What runs is neither what lies there nor what is to be, and no unit lets in those who scrape."""
    package = status(host)["package"]
    host.run(f"cp -r {package} {package}-other && ln -sfn {package}-other /usr/local/lib/kvmsched/current")
    host.run(f"systemctl restart kvmsched && ln -sfn {package} /usr/local/lib/kvmsched/current")
    host.run(f"rm -r {package}-other")
    assert status(host)["package"] != package
    listen = {"daemon": {"metrics_listen": "0.0.0.0:9757"}}
    # As -e kvmsched_metrics_allow=10.77.0.1 has it.
    play(fleet, role, kvmsched_policy_override=listen, kvmsched_metrics_allow="10.77.0.1").well()
    assert status(host)["package"] == package and policy(host)["daemon"]["metrics_listen"] == "0.0.0.0:9757"
    allowed = host.run("systemctl show --property IPAddressAllow --value kvmsched").split()
    assert "10.77.0.1/32" in allowed and "127.0.0.0/8" in allowed


def away(host: Host, gone: bool) -> None:
    units = "libvirtd.service libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket"
    if gone:
        host.run(f"systemctl mask --runtime --now {units}")
    else:
        host.run(f"systemctl unmask --runtime {units} && systemctl start libvirtd.socket libvirtd")


def test_nothing_is_removed_while_libvirt_is_away(fleet: Fleet, host: Host, role: str) -> None:
    away(host, True)
    # As -e kvmsched_force_absent=false has it.
    done: Played = play(fleet, role, kvmsched_state="absent", kvmsched_force_absent="false")
    away(host, False)
    assert done.status != 0 and "Nothing was removed" in done.text, done.text
    assert is_installed(host) and runs_at_boot(host)


def test_a_removal_is_foreseen_while_the_daemon_acts(fleet: Fleet, host: Host, role: str) -> None:
    play(fleet, role).well()
    pid = main_pid(host)
    assert play(fleet, role, "--check", kvmsched_state="absent").well().changed() >= 3
    assert pid and main_pid(host) == pid and is_installed(host)


def test_absent_leaves_nothing_behind(fleet: Fleet, host: Host, role: str, before: set[str]) -> None:
    """Though the daemon was killed with its metrics written, and somebody broke its policy since."""
    host.run("systemctl kill --signal=KILL kvmsched && touch /srv/kvmsched.prom")
    broken = {"nokey": 1, "daemon": {"metrics_textfile": "/srv/kvmsched.prom"}}
    host.path("/etc/kvmsched/policy.json").write_text(json.dumps(broken), encoding="utf-8")
    play(fleet, role, kvmsched_state="absent").well()
    left = {path for path in traces(host) - before if "kvmsched" in path}
    assert not left
    with pytest.raises(HostError):
        host.run("id kvmsched")
    assert play(fleet, role, kvmsched_state="absent").well().changed() == 0
