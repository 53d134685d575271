# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Playbooks and the role on the lab's hosts and machines, as an operator runs them, and what each holds of kvmsched."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

from lab import Fleet, Host, Machine

REPOSITORY = Path(__file__).resolve().parents[1]
ANSIBLE_PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")
POLL_S = 0.2
AnyHost = Union[Host, Machine]
Reached = Union[Fleet, Sequence[Machine]]

# Small guests: thresholds that fit them.
POLICY = {
    "memory": {"reclaim": "eager", "starvation": "60M", "waste": "120M", "floor": "100M"},
    "daemon": {"period": 2},
}
OLD = "0.0.9"
ROLLOUT, RELEASE = "kvmsched.kvm.rollout", "kvmsched.kvm.release"
ROLE = "- hosts: all\n  gather_facts: false\n  roles:\n    - kvmsched.kvm.kvmsched\n"


def ansible_playbook(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it here, with these arguments and this checkout; all that it says is in ``stdout``."""
    return subprocess.run(
        [str(ANSIBLE_PLAYBOOK), *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )


@dataclass(frozen=True)
class Played:
    """What a run said; ``recap`` holds the last line's numbers for each host."""

    status: int
    text: str
    recap: dict[str, dict[str, int]]

    def well(self) -> Played:
        """The same, where no host failed and none was lost."""
        assert self.status == 0, self.text
        return self

    def changed(self) -> int:
        return sum(counts["changed"] for counts in self.recap.values())


class Play:
    """A playbook under way: ``Play(fleet, "kvmsched.kvm.rollout", kvmsched_serial=2).wait()``.

    Machines are given as a sequence. A name that ends in .yml is a file; *tree* is another place of collections than
    this checkout, *options* go to ansible-playbook, the rest are variables.
    """

    def __init__(
        self,
        fleet: Reached,
        name: str,
        *options: str,
        tree: Path | None = None,
        cwd: Path = REPOSITORY,
        **variables: Any,
    ) -> None:
        inventories = [fleet] if isinstance(fleet, Fleet) else fleet
        reach = [part for one in inventories for part in ("--inventory", str(one.inventory))]
        command = [str(ANSIBLE_PLAYBOOK), *reach, name, *options]
        command += ["--extra-vars", json.dumps({"kvmsched_policy": POLICY, **variables})]
        environment = {"ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", "PWD": str(cwd)}
        # What an operator prefers elsewhere must not be the end of a roll-out's stop rule.
        environment["ANSIBLE_STRATEGY"] = "free"
        if tree:
            environment["ANSIBLE_COLLECTIONS_PATH"] = str(tree)
        self._process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def when(self, happens: Callable[[], bool], do: Callable[[], None]) -> Play:
        """Do something in the middle of the run."""
        while not happens():
            assert self._process.poll() is None, f"the run ended before that: {self._process.communicate()[0]}"
            time.sleep(POLL_S / 10)
        do()
        return self

    def wait(self) -> Played:
        text = self._process.communicate()[0]
        recap = {
            host: {key: int(count) for key, count in re.findall(r"(\w+)=(\d+)", counts)}
            for host, counts in re.findall(r"^(\S+)\s+: (ok=.*)$", text, re.MULTILINE)
            if host != "localhost"  # where the playbooks see whether there is a host
        }
        return Played(self._process.returncode, text, recap)


def play(fleet: Reached, name: str, *options: str, **more: Any) -> Played:
    """Run a playbook to its end."""
    return Play(fleet, name, *options, **more).wait()


def role_play(directory: Path) -> str:
    """Write the playbook ROLE into *directory*; return its path."""
    path = directory / "role.yml"
    path.write_text(ROLE, encoding="utf-8")
    return str(path)


def older(tree: Path) -> Path:
    """Make collections of which this one is of the version OLD; return *tree*, which holds them."""
    subprocess.run([str(REPOSITORY / "tests/tree.sh"), str(tree)], check=True, stdout=subprocess.DEVNULL)
    package = tree / "ansible_collections/kvmsched/kvm/plugins/module_utils/kvmsched/__init__.py"
    text = package.read_text(encoding="utf-8")
    package.write_text(text.replace('__version__ = "', f'__version__ = "{OLD}" or "'), encoding="utf-8")
    return tree


# ---------------------------------------------------------------- what a host holds


def is_installed(host: Host) -> bool:
    return host.path("/usr/local/lib/kvmsched").exists()


def runs_at_boot(host: AnyHost) -> bool:
    """Whether the daemon runs, and will after a boot."""
    told = host.run("systemctl is-active kvmsched; systemctl is-enabled kvmsched", check=False)
    return told.split() == ["active", "enabled"]


def status(host: AnyHost) -> dict[str, Any]:
    """What the daemon tells; {"running": False, ...} if none runs."""
    return dict(json.loads(host.run("/usr/local/bin/kvmsched status --json", check=False) or "{}"))


def policy(host: AnyHost) -> dict[str, Any]:
    return dict(json.loads(host.read("/etc/kvmsched/policy.json")))


def main_pid(host: AnyHost) -> int:
    return int(host.run("systemctl show --property MainPID --value kvmsched"))


def traces(host: AnyHost) -> set[str]:
    """All paths of the host but those of logs, caches, guests and Ansible itself; its units, users and records."""
    volatile = ("/var/log", "/var/cache", "/var/lib/libvirt", "/var/lib/systemd", "/root/.ansible", "/tmp", "/var/tmp")
    prune = " -o ".join(f"-path {path}" for path in volatile)
    found = set(
        host.run(f"find / -xdev \\( {prune} \\) -prune -o -print; find /run -maxdepth 1 -name 'kvmsched*'").splitlines()
    )
    found |= set(host.run("systemctl list-units --all --plain --no-legend 'kvmsched*'; getent passwd").splitlines())
    found |= set(
        host.run("for g in $(virsh list --name); do virsh dumpxml $g | grep -o urn:kvmsched:state; done; true").split()
    )
    return found


def balloon_kib(host: AnyHost, guest: str) -> int:
    """What libvirt says of a guest's balloon."""
    return int(host.run(f"virsh dominfo {guest} | sed -n 's/^Used memory: *\\([0-9]*\\).*/\\1/p'"))


def eventually(true: Callable[[], object], what: str, timeout_s: float = 300) -> None:
    end_s = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end_s, f"{what}: not within {timeout_s:g} s"
        time.sleep(POLL_S)
