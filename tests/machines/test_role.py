# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role on Debian 12 and 13 as they boot: rolled out, killed, upgraded, changed, rescued, and released.

Each test goes on where the one before it ended. What containers do not enforce of the unit is enforced here.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import on_machine
import pytest
from lab import Guest, Lab, Machine, RunningGuest
from plays import OLD, RELEASE, ROLLOUT, Play, Played, older, policy, role_play, status, traces
from systemd_unit import Unit

pytestmark = pytest.mark.nightly

NAME = "kvmsched-test-hoarder"
SIZE_KIB = 384 * 1024
PLACE = frozenset({2, 3})
PORT = 9757
SLOW = 5000
# A pass takes such a machine some seconds of CPU. The deadline is part of what the watchdog waits for.
POLICY = {**on_machine.POLICY, "deadline": 30, "daemon": {"period": 20, "metrics_listen": f"0.0.0.0:{PORT}"}}
COMMAND, ASIDE = "/usr/local/bin/kvmsched", "/root/command"
# Where it outlives a boot, and the role has nothing.
OVERRIDES = "/usr/local/lib/systemd"
OVERRIDE = f"{OVERRIDES}/system/kvmsched.service.d/test.conf"
# A machine that others keep from running is no failure.
PATIENT = "[Service]\nTimeoutStartSec=infinity\n"
# It can't start any more; and a slow machine reaches the limit, too.
BROKEN = f"{PATIENT}ExecStart=\nExecStart=/bin/false\n[Unit]\nStartLimitIntervalSec=1h\nStartLimitBurst=3\n"
# Somebody who is let in has all the time that it takes.
REFUSED_S, ANSWERED_S = 20, 600


@pytest.fixture(scope="module")
def machines(machine: Machine, target: Machine) -> Iterator[list[Machine]]:
    """Both, where nothing of kvmsched is: the command of other tests is elsewhere meanwhile.

    Their journals outlive a boot, and a slow start is no failure there.
    """
    both = [machine, target]
    for one in both:
        one.run(f"mv {COMMAND} {ASIDE}; rm -rf /etc/kvmsched /var/lib/kvmsched /run/kvmsched")
        one.run("mkdir --parents /var/log/journal && journalctl --flush")
        override(one, PATIENT)
    yield both
    for one in both:
        one.run(f"mv {ASIDE} {COMMAND}; rm -r {OVERRIDES} && systemctl daemon-reload")


@pytest.fixture(scope="module")
def role(tmp_path_factory: pytest.TempPathFactory) -> str:
    return role_play(tmp_path_factory.mktemp("play"))


@pytest.fixture(scope="module")
def old_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return older(tmp_path_factory.mktemp("old"))


@pytest.fixture(scope="module")
def guests(machines: list[Machine]) -> Iterator[list[RunningGuest]]:
    """On each one that wastes memory, and starts with its host."""
    hoarder = Guest(NAME, memory_mib=SIZE_KIB // 1024, cputune="<vcpupin vcpu='0' cpuset='2-3'/>")
    with contextlib.ExitStack() as labs:
        running = [labs.enter_context(Lab(own=one, say=print)).start(hoarder)[0] for one in machines]
        for guest in running:
            guest.domain.setAutostart(1)
        yield running


@pytest.fixture(scope="module")
def before(machines: list[Machine], guests: list[RunningGuest]) -> dict[str, set[str]]:
    """What each held before kvmsched came."""
    return {one.name: traces(one) for one in machines}


@pytest.fixture(scope="module")
def services(machines: list[Machine]) -> list[tuple[Unit, Unit]]:
    """Of each the daemon's unit, and that of its rescue."""
    return [(Unit(one), Unit(one, "kvmsched-rescue")) for one in machines]


def begin(machines: list[Machine], name: str, *options: str, **more: Any) -> Play:
    """Begin a playbook."""
    # They have the distribution's packages, and no way to get others.
    return Play(machines, name, *options, **{"kvmsched_policy": POLICY, "kvmsched_manage_packages": False, **more})


def play(machines: list[Machine], name: str, *options: str, **more: Any) -> Played:
    """Run a playbook to its end, on both at once."""
    return begin(machines, name, *options, kvmsched_serial="100%", **more).wait().well()


def let_go(machines: list[Machine]) -> None:
    """Release both. Where a guest does not answer in time nothing is removed, and it is run again, as the role says."""
    for _turn in range(on_machine.MANY_PASSES):
        done = begin(machines, RELEASE, kvmsched_serial="100%").wait()
        if done.status == 0:
            return
        assert "did not answer in time" in done.text, done.text
    raise AssertionError(done.text)


def compile_package(machine: Machine) -> None:
    """Have what is installed there compiled: else each start of the command takes a slow machine a minute."""
    machine.run("python3 -m compileall -q /usr/local/lib/kvmsched")


def override(machine: Machine, text: str) -> None:
    """Have that in the daemon's unit, in the place of what was given before."""
    machine.write(OVERRIDE, text)
    machine.run("systemctl daemon-reload")


def is_as_defined(guest: RunningGuest) -> bool:
    found = guest.balloon_kib(), guest.affinity(), on_machine.records(guest)
    print(found)
    return found == (SIZE_KIB, PLACE, [])


def wait_taken(unit: Unit, guest: RunningGuest) -> None:
    unit.wait(lambda: guest.balloon_kib() < SIZE_KIB and on_machine.records(guest), "to take memory")


def scrape(machine: Machine, address: str, patience_s: int = ANSWERED_S) -> str:
    """What a machine gets from a metrics port, or what its Python says of that."""
    get = f"urlopen('http://{address}:{PORT}/metrics', timeout={patience_s}).read().decode()"
    ask = f"from urllib.request import urlopen; print({get})"
    return machine.run(f"python3 -c {shlex.quote(ask)} 2>&1", check=False)


def answers(machine: Machine, address: str) -> bool:
    return "kvmsched_ready 1.0" in scrape(machine, address)


def is_denied(machine: Machine, address: str) -> bool:
    """Whether nothing comes back, not even a refusal."""
    return "timed out" in scrape(machine, address, REFUSED_S).splitlines()[-1]


# What root may do, but not in the place of the daemon; and what it may do there, too.
PLACES = ("/etc", "/etc/kvmsched", "/usr/local/lib/kvmsched", "/var/lib", "/sys/fs/cgroup")
PROBES = f"for place in {' '.join(PLACES)}; do touch $place/probe; done; ls -d /dev/kvm /root/.ssh"
ITS_OWN = "touch /var/lib/kvmsched/probe && rm /var/lib/kvmsched/probe && echo its own"


def assert_confined(unit: Unit) -> None:
    """See that its process's place is its own, and that the kernel gives it no right."""
    said = unit.host.run(f"nsenter --target {unit.pid} --mount sh -c '{PROBES}; {ITS_OWN}' 2>&1")
    print(said)
    assert said.count("Read-only file system") == len(PLACES) and "its own" in said
    assert said.count("No such file or directory") == 2
    rights = dict(line.split(":\t", 1) for line in unit.host.read(f"/proc/{unit.pid}/status").splitlines())
    assert int(rights["CapEff"], 16) == int(rights["CapBnd"], 16) == 0
    assert rights["NoNewPrivs"] == "1" and rights["Seccomp"] == "2"


def is_to_start_at_boot(machine: Machine) -> bool:
    """Whether the role has done its last step there, where only a look at the daemon follows; ask slowly."""
    return machine.run("sleep 2; systemctl is-enabled kvmsched", check=False).strip() == "enabled"


def die(machine: Machine) -> None:
    """Lose power, with all on the disk that was written."""
    machine.run("sync")
    machine.cut_power()


def test_a_roll_out_ends_at_a_host_that_dies_under_it(
    machines: list[Machine],
    guests: list[RunningGuest],
    services: list[tuple[Unit, Unit]],
    before: dict[str, set[str]],
    old_tree: Path,
) -> None:
    """That one observes when it is up again, and the next one was not begun. The next test goes on with both."""
    first, second = machines
    rollout = begin(machines, ROLLOUT, tree=old_tree, kvmsched_serial=1)
    done = rollout.when(lambda: is_to_start_at_boot(first), lambda: die(first)).wait()
    print(done.text)
    assert done.status != 0
    assert {name: counts["unreachable"] for name, counts in done.recap.items()} == {first.name: 1, second.name: 0}
    assert done.recap[second.name]["changed"] == 0 and traces(second) == before[second.name]
    first.boot()
    on_machine.find_again(first, guests[0])
    unit, rescue = services[0]
    unit.wait(lambda: unit.active and status(first).get("effective_mode") == "observe", "to observe")
    assert policy(first)["daemon"]["mode"] == "observe" and not rescue.said("")
    assert all(is_as_defined(guest) for guest in guests)
    compile_package(first)


def test_killed_it_is_back_and_keeps_what_it_took(
    machines: list[Machine], guests: list[RunningGuest], services: list[tuple[Unit, Unit]], old_tree: Path
) -> None:
    """A restart is no reason for a rescue: from systemd 254 on that has to be said."""
    play(machines, ROLLOUT, tree=old_tree)
    for one, guest, (unit, rescue) in zip(machines, guests, services):
        compile_package(one)
        told = status(one)
        assert (told["version"], told["effective_mode"]) == (OLD, "act")
        wait_taken(unit, guest)
        # The watchdog ends who stands still, after minutes: on the newer one, where systemd calls that a failure.
        for how in ("KILL", "STOP") if one is machines[1] else ("KILL",):
            pid = unit.pid
            one.run(f"kill -{how} {pid}")
            unit.wait(lambda unit=unit, pid=pid: unit.active and unit.pid not in (0, pid), "to come back", 900)
            print(*unit.said("")[-12:], sep="\n")
            assert not rescue.said("") and guest.balloon_kib() < SIZE_KIB and on_machine.records(guest)


def test_its_host_boots_again_and_so_does_it(
    machines: list[Machine], guests: list[RunningGuest], services: list[tuple[Unit, Unit]]
) -> None:
    """Its guest starts as it is defined, and what is taken then has a record of its own."""
    host, guest, (unit, rescue) = machines[1], guests[1], services[1]
    host.reboot()
    on_machine.find_again(host, guest)
    unit.wait(lambda: unit.active and status(host).get("effective_mode") == "act", "to act again")
    wait_taken(unit, guest)
    assert policy(host)["daemon"]["mode"] == "act" and not rescue.said("")


def test_what_the_unit_denies_is_denied_and_an_upgrade_lets_in_who_is_named(
    machines: list[Machine], guests: list[RunningGuest], services: list[tuple[Unit, Unit]], role: str
) -> None:
    """An upgrade restarts it and takes no memory back; a change of its policy is reloaded."""
    first, second = machines
    for one, (unit, _rescue) in zip(machines, services):
        assert_confined(unit)
        assert answers(one, "127.0.0.1")
    assert is_denied(first, second.wire_address) and is_denied(second, first.wire_address)
    named = {"kvmsched_metrics_allow": [first.wire_address]}
    pids = [unit.pid for unit, _rescue in services]
    play(machines, role, **named)
    assert answers(first, second.wire_address) and is_denied(second, first.wire_address)
    upgraded = [unit.pid for unit, _rescue in services]
    assert not set(zip(machines, pids)) & set(zip(machines, upgraded))
    for one in machines:
        compile_package(one)
    hashes = [status(one)["policy_hash"] for one in machines]
    changed = {"memory": {"waste": "140M"}}
    play(machines, role, "--tags=kvmsched_daemon", kvmsched_policy_override=changed, **named)
    told = [status(one) for one in machines]
    assert all(now["version"] != OLD and now["policy_hash"] not in hashes for now in told)
    assert [unit.pid for unit, _rescue in services] == upgraded
    assert all(guest.balloon_kib() < SIZE_KIB for guest in guests)
    assert not any(rescue.said("") for _unit, rescue in services)


def test_where_it_fails_for_good_memory_is_given_back(
    machines: list[Machine], guests: list[RunningGuest], services: list[tuple[Unit, Unit]]
) -> None:
    for one, guest, (unit, _rescue) in zip(machines, guests, services):
        wait_taken(unit, guest)
        override(one, BROKEN)
        one.run(f"systemctl reset-failed kvmsched; kill -KILL {unit.pid}")
    for guest, (unit, rescue) in zip(guests, services):
        unit.wait(lambda unit=unit: unit.failed, "to fail")
        rescue.wait(lambda rescue=rescue: rescue.said("Finished"), "to give memory back")
        print(*rescue.said(""), sep="\n")
        # What was still on its way out is called back, and a slow guest takes its time for both.
        unit.wait(lambda guest=guest: guest.balloon_kib() == SIZE_KIB, "to have its memory")


def test_release_leaves_no_trace(
    machines: list[Machine], before: dict[str, set[str]], guests: list[RunningGuest]
) -> None:
    """Not even of a daemon that failed."""
    for one, guest in zip(machines, guests):
        override(one, PATIENT)
        # It has all of its memory again: how fast it is says nothing any more, and others wait for the machine.
        guest.domain.setSchedulerParameters({"vcpu_quota": SLOW})
    let_go(machines)
    for one, guest in zip(machines, guests):
        left = traces(one) ^ before[one.name]
        assert is_as_defined(guest) and not left, left
