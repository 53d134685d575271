# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role on distributions: those that are not known, or too old, are refused before anything else is looked at."""

from __future__ import annotations

import json
import re
import sys

import pytest
from plays import ansible_playbook

# Facts as `setup` would have found them; with them the role gathers none.
CASES = [
    ("Debian", "Debian", "11", False),
    ("RedHat", "AlmaLinux", "10.0", True),
    ("RedHat", "Fedora", "40", False),
    ("RedHat", "Fedora", "43", True),
    ("Suse", "openSUSE Leap", "15.6", False),
]
PLAY = """\
- hosts: all
  connection: local
  gather_facts: false
  tasks:
    - ansible.builtin.set_fact:
        os_family: "{{ told_family }}"
        distribution: "{{ told_name }}"
        distribution_version: "{{ told_release }}"
        cacheable: true
      tags: always
    - ansible.builtin.import_role:
        name: kvmsched.kvm.kvmsched
"""


def host(name: str, release: str) -> str:
    return f"{name}-{release}".replace(" ", "-").lower()


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What one play says of each host."""
    place = tmp_path_factory.mktemp("play")
    (place / "play.yml").write_text(PLAY, encoding="utf-8")
    hosts = {
        host(name, release): {"told_family": family, "told_name": name, "told_release": release}
        for family, name, release, _supported in CASES
    }
    (place / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts}}))
    python = json.dumps({"ansible_python_interpreter": sys.executable})
    options = ("--check", "--tags", "kvmsched_preflight", "--extra-vars", python)
    done = ansible_playbook("--inventory", str(place / "hosts.json"), str(place / "play.yml"), *options)
    told: dict[str, list[str]] = {name: [] for name in hosts}
    task, now = "", ""
    for line in done.stdout.splitlines():
        if line.startswith(("TASK ", "PLAY ")):
            task, now = line, ""
        elif found := re.match(r"\w+: \[([^]]*)\]", line):
            now = found[1]
            told[now] += [task, line]
        elif now:
            told[now].append(line)
    return {name: "\n".join(those) for name, those in told.items()}


@pytest.mark.parametrize(("family", "name", "release", "supported"), CASES)
def test_a_distribution_is_known_or_refused(
    lines: dict[str, str], family: str, name: str, release: str, supported: bool
) -> None:
    said = lines[host(name, release)]
    refusal = f"{name} {release} is not supported, the oldest are: AlmaLinux 9"
    assert (refusal in said) is not supported, said
    # A supported one may still lack libvirt, which is the next thing that is looked at.
    assert "Look for libvirt's group" in said or not supported, said
