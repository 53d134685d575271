# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The hosts are what they should be: without that, no test on them says anything."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from lab import Fleet, Guest, HostError, Lab, hosts, machine

REPOSITORY = Path(__file__).resolve().parents[2]


def ansible(fleet: Fleet, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["ansible", "--inventory", str(fleet.inventory), "--one-line", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def test_each_is_a_host_of_its_own(fleet: Fleet) -> None:
    for one in ("cat /etc/machine-id", "hostname", "cat /proc/sys/kernel/random/boot_id"):
        assert len({host.run(one) for host in fleet}) == 4, one
    for host in fleet:
        assert host.run("systemctl is-active libvirtd ssh").split() == ["active"] * 2
    with pytest.raises(HostError, match="No such file"):
        fleet["kvmsched-h1"].run("ls /nowhere")


def test_ansible_reaches_them_all(fleet: Fleet) -> None:
    done = ansible(fleet, "hypervisors", "-m", "ansible.builtin.command", "-a", "hostname")
    assert done.returncode == 0 and done.stdout.count("| CHANGED |") == 4, done.stdout + done.stderr


def test_a_bare_host_installs_packages_from_its_own_files(fleet: Fleet) -> None:
    missing = 'python3 -c "import libvirt"'
    fleet["kvmsched-h1"].run(missing)
    with pytest.raises(HostError, match="ModuleNotFoundError"):
        fleet["kvmsched-bare"].run(missing)
    options = "name=python3-libvirt update_cache=true"
    done = ansible(fleet, "kvmsched-bare", "-m", "ansible.builtin.apt", "-a", options)
    assert done.returncode == 0, done.stdout + done.stderr
    fleet["kvmsched-bare"].run(missing)


def test_guests_run_on_it_and_nowhere_else(fleet: Fleet) -> None:
    first, second, *_others = fleet
    with Lab(own=first) as lab:
        (guest,) = lab.start(Guest("kvmsched-test-on-host", cpu=[0.3], pin={0: "1"}, current_mib=200, hold_mib=50))
        assert "kvmsched-test-on-host" in first.run("virsh list --name")
        assert second.run("virsh list --name").split() == []
        assert guest.affinity() == {1} and guest.balloon_kib() == 200 * 1024
        assert guest.report().held_kib == 50 * 1024
        seen = lab.measure(3)[guest.name][0]
        assert seen.run > 0 and seen.run + seen.wait > 0.1, "it wants 0.3, and gets what this machine has left"
    assert first.run("virsh list --all --name").split() == []


@pytest.mark.nightly
def test_a_lost_host_is_unreachable_until_found(fleet: Fleet) -> None:
    host = fleet["kvmsched-h2"]
    host.lose()
    try:
        done = ansible(fleet, "kvmsched-h2", "-m", "ansible.builtin.ping")
        assert "UNREACHABLE" in done.stdout
    finally:
        host.find()
    assert ansible(fleet, "kvmsched-h2", "-m", "ansible.builtin.ping").returncode == 0


def test_it_keeps_its_files_when_it_boots_again(fleet: Fleet) -> None:
    host = fleet["kvmsched-h3"]
    host.write("/etc/kept", "here")
    host.write("/run/lost", "here")
    before = host.run("cat /proc/sys/kernel/random/boot_id")
    host.reboot()
    assert host.read("/etc/kept") == "here" and not host.path("/run/lost").exists()
    assert host.run("cat /proc/sys/kernel/random/boot_id") != before
    host.poweroff()
    with pytest.raises(HostError, match="is down"):
        host.run("true")
    host.start()
    host.wait()
    assert host.read("/etc/kept") == "here"


KILLED = """
import os, sys, time
from lab import Fleet
with Fleet("kvmsched-h1"):
    print("up", flush=True)
    time.sleep(3600)  # until it is killed
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_however_it_ends(number: signal.Signals) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED], cwd=REPOSITORY / "tests", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    mark = f"fleet-{child.pid}-{machine.process_start(child.pid)}"
    assert child.stdout and child.stdout.readline() == b"up\n"
    assert mark in traces()
    child.send_signal(number)
    child.wait()
    if number == signal.SIGKILL:
        assert mark in traces()
        clean = [sys.executable, "-m", "lab", "clean"]
        assert (
            mark
            in subprocess.run(clean, cwd=REPOSITORY / "tests", stdout=subprocess.PIPE, text=True, check=True).stdout
        )
    assert mark not in traces()


def traces() -> str:
    """All that could be left of fleets."""
    places = [*machine.DIRECTORY.glob("*"), *(path for root in hosts.CGROUPS for path in root.glob("*"))]
    commands = subprocess.run(["ps", "-ww", "-eo", "args"], stdout=subprocess.PIPE, text=True, check=True).stdout
    return "\n".join([*map(str, places), commands, Path("/proc/self/mountinfo").read_text(encoding="utf-8")])
