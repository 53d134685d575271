# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""kvmsched.service where it belongs: under systemd, hardened, as its own user, on real guests."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from four import BUSY, HOG, LAZY, four, nothing_due
from lab import Fleet, Guest, Host, HostError, Lab, RunningGuest, TinyGuest
from systemd_unit import MEMORY_MOVE, REPOSITORY, Unit

# The daemon sets its watchdog to 30 s and six deadlines: where it is waited for, to little more than the least.
DEADLINE_S, SHORT_DEADLINE_S = 10, 2


def policy(deadline: float = DEADLINE_S, **daemon: Any) -> dict[str, Any]:
    return {
        "deadline": deadline,
        "memory": {"reclaim": "eager", "starvation": "60M", "waste": "120M"},
        "vcpu": {"hold": 1, "cooldown": 0},
        "daemon": {"period": 1, **daemon},
    }


# ---------------------------------------------------------------- hosts with kvmsched, and guests on them


@pytest.fixture(scope="module")
def units(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Unit]:
    """The role's unit on three hosts."""
    play = tmp_path_factory.mktemp("play") / "play.yml"
    roles = [{"role": "kvmsched.kvm.kvmsched", "kvmsched_policy": policy()}]
    play.write_text(json.dumps([{"hosts": "hypervisors:!kvmsched-bare", "gather_facts": False, "roles": roles}]))
    command = ["ansible-playbook", "--inventory", str(fleet.inventory), str(play)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return {host.name: Unit(host) for host in fleet if host.name != "kvmsched-bare"}


@pytest.fixture(scope="module")
def host(fleet: Fleet) -> Host:
    return fleet["kvmsched-h1"]


@pytest.fixture(scope="module")
def lab(host: Host, units: dict[str, Unit]) -> Iterator[Lab]:
    units[host.name].tell("stop")
    with Lab(own=host) as lab:
        lab.start(*four())
        yield lab


@pytest.fixture
def unit(units: dict[str, Unit], lab: Lab, host: Host) -> Iterator[Unit]:
    """It runs, on guests that load pCPU 0 and have memory at odds, at first."""
    unit = units[host.name]
    unit.write_policy(policy())
    unit.mark()
    if not unit.active:
        # Whose demand turned in an earlier test would be left its memory for a while.
        host.path("/var/lib/kvmsched/state.json").unlink(missing_ok=True)
        unit.tell("start")
    yield unit
    assert not unit.said("Traceback")


@pytest.fixture(scope="module")
def hung(fleet: Fleet, units: dict[str, Unit]) -> Iterator[Unit]:
    """A daemon that hangs from now on, with something to remember. What becomes of it the last test sees."""
    host = fleet["kvmsched-h3"]
    unit = units[host.name]
    unit.write_policy(policy(SHORT_DEADLINE_S))
    unit.tell("reload")
    with Lab(own=host) as lab:
        lab.start(*(TinyGuest(f"kvmsched-test-tiny{number}", cpu=[0.3], pin={0: "0"}) for number in range(2)))
        unit.wait(lambda: unit.journal("KVMSCHED_EVENT=move"), "to move one of two")
        host.run(f"kill -STOP {unit.pid}")
        yield unit


pytestmark = pytest.mark.usefixtures("hung")


# ---------------------------------------------------------------- its work


def test_it_is_started_when_it_is_ready_and_says_what_it_does(unit: Unit, host: Host) -> None:
    unit.tell("restart")
    status = unit.status()
    assert unit.active and status["pid"] == unit.pid and status["memory_pass"]["when_s"], "started, so it made a pass"
    assert unit.show("WatchdogUSec") == "1min 30s" and 30 + 6 * DEADLINE_S == 90
    assert unit.show("StatusText").startswith("mode act, 4 domains, ")
    assert f'Status: "{unit.show("StatusText")[:20]}' in host.run("systemctl status kvmsched")


def test_hardened_it_sees_all_and_acts(unit: Unit, lab: Lab, host: Host) -> None:
    unit.wait(lambda: lab[LAZY].balloon_kib() < 400 * 1024, "to take memory")
    unit.wait(lambda: lab[HOG].balloon_kib() > 300 * 1024, "to give memory")
    unit.wait(
        lambda: {guest.affinity(0) for guest in lab.guests.values()} == {frozenset({0}), frozenset({1})}, "to pin"
    )
    for name, domain in unit.domains().items():
        (vcpu,) = domain["vcpus"]
        assert vcpu["run_pct"] is not None and vcpu["wait_pct"] is not None, f"{name}'s threads are not seen"
    assert unit.status()["memory_total_kib"] == int(re.findall(r"MemTotal: +(\d+)", host.read("/proc/meminfo"))[0])
    process = dict(line.split(":\t", 1) for line in host.read(f"/proc/{unit.pid}/status").splitlines())
    assert int(process["CapEff"], 16) == int(process["CapBnd"], 16) == 0
    assert process["NoNewPrivs"] == "1" and process["Seccomp"] == "2"
    assert host.run(f"ps --no-headers --format user:20,group:20 {unit.pid}").split() == ["kvmsched", "libvirt"]
    assert not unit.said("can't be") and not unit.said("may only observe")


def test_each_move_is_a_journal_entry_with_fields(unit: Unit, lab: Lab) -> None:
    stir(lab[HOG])
    unit.wait(lambda: unit.journal(f"{MEMORY_MOVE} KVMSCHED_DOMAIN={HOG}"), "to move memory")
    entry = unit.journal(f"{MEMORY_MOVE} KVMSCHED_DOMAIN={HOG}")[0]
    told = {key[9:].lower(): value for key, value in entry.items() if key.startswith("KVMSCHED_")}
    assert told.pop("domain_uuid") == lab[HOG].domain.UUIDString()
    assert (told["resource"], told["kind"], entry["SYSLOG_IDENTIFIER"]) == ("memory", "balloon", "kvmsched")
    assert entry["MESSAGE"] == "{domain}: {before} -> {after}: {reason}".format(**told)
    assert entry["PRIORITY"] == "6" and entry["_SYSTEMD_UNIT"] == "kvmsched.service"


def test_it_has_no_more_rights_than_it_needs(unit: Unit, host: Host) -> None:
    for name in ("kvmsched.service", "kvmsched-rescue.service"):
        exposure = float(re.findall(r"level for .*: ([\d.]+)", host.run(f"systemd-analyze security {name}"))[0])
        print(f"\n{name}: exposure {exposure}")
        assert exposure <= 2.0
        host.run(f"systemd-analyze verify --man=no {name}")
    unit.wait(lambda: host.path("/var/lib/kvmsched/state.json").exists(), "to keep what it learnt")
    modes = host.run("stat --format='%n %a %U:%G' /run/kvmsched /run/kvmsched/* /var/lib/kvmsched /var/lib/kvmsched/*")
    assert modes.splitlines() == [
        "/run/kvmsched 770 kvmsched:libvirt",
        "/run/kvmsched/daemon 660 kvmsched:libvirt",
        "/run/kvmsched/lock 660 kvmsched:libvirt",
        "/run/kvmsched/status.json 640 kvmsched:libvirt",
        "/var/lib/kvmsched 700 kvmsched:libvirt",
        "/var/lib/kvmsched/state.json 600 kvmsched:libvirt",
    ]


# ---------------------------------------------------------------- what happens to it


def test_a_bad_policy_is_refused_with_its_key_and_a_good_one_taken(unit: Unit) -> None:
    before = unit.status()["policy_hash"]
    unit.write_policy(policy(perod=5))
    with pytest.raises(HostError, match=r"Job for kvmsched\.service failed"):
        unit.tell("reload")
    unit.wait(lambda: unit.said("policy refused, the old one stays: daemon.perod: unknown key"), "to refuse")
    unit.wait(lambda: "perod" in (unit.status()["policy_error"] or ""), "to tell of its policy")
    assert unit.active and unit.status()["policy_hash"] == before
    unit.write_policy(policy(mode="observe"))
    unit.tell("reload")
    unit.wait(lambda: unit.said("read again, mode observe"), "to read its policy")
    unit.wait(lambda: unit.show("StatusText").startswith("mode observe"), "to observe")
    unit.wait(lambda: not unit.status()["policy_error"], "to forget the bad one")
    assert len(unit.said("policy refused")) == 1
    unit.write_policy(policy())
    unit.tell("reload")
    unit.wait(lambda: unit.show("StatusText").startswith("mode act"), "to act again")


def test_killed_it_comes_back_and_goes_on(unit: Unit, host: Host) -> None:
    unit.wait_passes()
    unit.wait(lambda: nothing_due(unit.domains()), "to have nothing to move")
    unit.wait_quiet(6)
    pid = unit.pid
    rescue = Unit(host, "kvmsched-rescue")
    for one in (unit, rescue):
        one.mark()
    host.run(f"kill -KILL {pid}")
    unit.wait(lambda: unit.active and unit.pid not in (0, pid), "to come back")
    unit.wait(lambda: unit.said("goes on with what an earlier daemon remembered of 4 domains"), "to go on")
    unit.wait_passes(3)
    assert not unit.journal(MEMORY_MOVE), "a restart is no reason to move anything"
    assert not rescue.said(""), "who is back in a moment needs no rescue"


def test_it_ends_soon_also_with_a_guest_that_hangs(unit: Unit, lab: Lab) -> None:
    lab[BUSY].signal_qemu(signal.SIGSTOP)
    try:
        unit.wait(lambda: unit.said(f"{BUSY}: memory skipped"), "to miss a guest")
        took_s = unit.tell("stop")
    finally:
        lab[BUSY].signal_qemu(signal.SIGCONT)
    print(f"\nended in {took_s:.2f} s")
    unit.wait(lambda: unit.said("ended"), "to say that it ended")
    assert unit.show("Result") == "success", "systemd did not have to kill it"


def test_on_stop_release_gives_all_back_within_the_units_stop_time(unit: Unit, lab: Lab) -> None:
    lab[HOG].hold(20)
    lab[HOG].wait_held()
    unit.write_policy(policy(on_stop="release"))
    unit.tell("restart")
    unit.wait(lambda: lab[LAZY].balloon_kib() < 400 * 1024, "to take memory")
    unit.wait_passes()
    unit.wait_quiet(6)
    unit.mark()
    print(f"\nreleased and ended in {unit.tell('stop'):.1f} s")
    unit.wait(lambda: unit.said("ended"), "to say that it ended")
    assert unit.show("Result") == "success", "systemd did not have to kill it"
    print(*unit.said(""), sep="\n")
    for made in four():
        guest = lab[made.name]
        assert guest.affinity(0) == {0} and "kvmsched:state" not in guest.domain.XMLDesc()
        assert guest.balloon_kib() == (made.current_mib or made.memory_mib) * 1024


def test_where_it_fails_for_good_memory_is_given_back(unit: Unit, units: dict[str, Unit], lab: Lab, host: Host) -> None:
    unit.wait(lambda: lab[LAZY].balloon_kib() < 400 * 1024, "to take memory")
    unit.wait_passes()
    unit.wait_quiet(6)
    rescue = Unit(host, "kvmsched-rescue")
    rescue.mark()
    lab[LAZY].signal_qemu(signal.SIGSTOP)
    try:
        unit.write_policy("{")
        host.run(f"kill -KILL {unit.pid}")
        unit.wait(lambda: unit.failed, "to fail for its policy")
        rescue.wait(lambda: rescue.said(f"not all were looked after, run it again: {LAZY}"), "to miss a guest")
    finally:
        lab[LAZY].signal_qemu(signal.SIGCONT)
    rescue.wait(lambda: rescue.said("Finished") and rescue.said(f"{LAZY}: "), "to come back for it")
    assert lab[LAZY].balloon_kib() == 512 * 1024 and not unit.active
    print("", *rescue.said(""), sep="\n")
    host.run("systemctl reset-failed kvmsched")


def test_killed_again_and_again_it_is_rescued_where_its_restarts_end(unit: Unit, lab: Lab, host: Host) -> None:
    """With a smaller limit than its own, within an hour: else a slow host would never reach it."""
    unit.wait(lambda: lab[LAZY].balloon_kib() < 400 * 1024, "to take memory")
    unit.wait_passes()
    unit.wait_quiet(6)
    rescue, limit = Unit(host, "kvmsched-rescue"), "/run/systemd/system/kvmsched.service.d/limit.conf"
    rescue.mark()
    host.write(limit, "[Unit]\nStartLimitIntervalSec=1h\nStartLimitBurst=3\n")
    try:
        host.run("systemctl daemon-reload && systemctl reset-failed kvmsched")
        while not unit.failed:
            assert not rescue.said(""), "it is restarted yet"
            pid = unit.pid
            host.run(f"kill -KILL {pid}")
            unit.wait(
                lambda pid=pid: unit.failed or (unit.active and unit.pid not in (0, pid)), "to come back, or fail"
            )
        rescue.wait(lambda: rescue.said("Finished"), "to give memory back")
    finally:
        host.run(f"rm {limit} && systemctl daemon-reload && systemctl reset-failed kvmsched")
    assert lab[LAZY].balloon_kib() == 512 * 1024 and len(rescue.said("Starting")) == 1


@pytest.fixture
def other(units: dict[str, Unit]) -> Unit:
    """A second host, whose libvirt and whose life may end."""
    units["kvmsched-h2"].mark()
    return units["kvmsched-h2"]


def test_it_waits_for_libvirt_and_says_so_once(other: Unit) -> None:
    pid, sockets = other.pid, "libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket"
    # Masked, so that no client's attempt starts it again.
    other.host.run(f"systemctl mask --runtime --now libvirtd.service {sockets}")
    other.wait(lambda: other.said("no pass: "), "to miss libvirt")
    other.wait(lambda: other.show("StatusText").startswith("waits: "), "to say so to systemd")
    time.sleep(5)
    other.host.run(f"systemctl unmask --runtime libvirtd.service {sockets} && systemctl start {sockets}")
    other.wait(lambda: other.said("passes go on"), "to find libvirt again")
    assert len(other.said("no pass: ")) <= 2, "once for each thing that is wrong (it went away, it is away)"
    other.wait_passes()
    assert other.pid == pid and other.show("StatusText").startswith("mode act, 0 domains")


def test_when_its_host_goes_down_it_releases_nothing_and_then_is_back(other: Unit) -> None:
    host = other.host
    other.tell("stop")
    other.write_policy(policy(on_stop="release"))
    with Lab(own=host) as lab:
        lab.start(Guest(LAZY, memory_mib=512))
        other.tell("start")
        other.wait(lambda: lab[LAZY].balloon_kib() < 400 * 1024, "to take memory")
        host.reboot()
    before = other.said("", boot="-1")[-8:]
    assert "the host goes down: its domains are not released" in before, before
    assert "ended" in before and not any("back to its original" in line for line in before), before
    other.wait(lambda: other.active and other.status()["effective_mode"] == "act", "to act again")


def test_a_daemon_that_hangs_is_killed_by_its_watchdog(hung: Unit) -> None:
    hung.wait(lambda: hung.said(f"Watchdog timeout (limit {30 + 6 * SHORT_DEADLINE_S}s)"), "to be missed")
    hung.wait(lambda: hung.said("goes on with what an earlier daemon remembered of 2 domains"), "to go on")
    hung.wait(lambda: hung.active, "to be ready")
    assert hung.show("NRestarts") == "1"
    assert not Unit(hung.host, "kvmsched-rescue").said(""), "who is back in a moment needs no rescue"
    hung.wait_passes()
    print("", *hung.said(""), sep="\n")


def stir(guest: RunningGuest) -> None:
    """Let a guest of 512 MiB hoard or starve, whichever it does not yet: a pass has something to do then."""
    mib = guest.balloon_kib() >> 10
    guest.hold(20 if mib >= 400 else mib - 110)
    guest.wait_held()
