# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role on distributions: those that are not known, or too old, are refused before anything else is looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from face import REPOSITORY

# Facts as `setup` would have found them; with them the role gathers none.
PLAY = """\
- hosts: localhost
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


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("play") / "play.yml"
    path.write_text(PLAY, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("family", "name", "release", "supported"),
    [
        ("Debian", "Debian", "11", False),
        ("RedHat", "AlmaLinux", "10.0", True),
        ("RedHat", "Fedora", "40", False),
        ("RedHat", "Fedora", "43", True),
        ("Suse", "openSUSE Leap", "15.6", False),
    ],
)
def test_a_distribution_is_known_or_refused(play: Path, family: str, name: str, release: str, supported: bool) -> None:
    told = {"told_family": family, "told_name": name, "told_release": release}
    told["ansible_python_interpreter"] = sys.executable
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "--inventory", "localhost,", str(play)]
    done = subprocess.run(
        [*command, "--check", "--tags", "kvmsched_preflight", "--extra-vars", json.dumps(told)],
        cwd=REPOSITORY,
        env={**os.environ, "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    refusal = f"{name} {release} is not supported, the oldest are: AlmaLinux 9"
    assert (refusal in done.stdout) is not supported, done.stdout
    # A supported one may still lack libvirt, which is the next thing that is looked at.
    assert "Look for libvirt's group" in done.stdout or not supported, done.stdout
