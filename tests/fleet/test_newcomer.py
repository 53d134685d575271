# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From a system with nothing but python3, pip and ssh to a dry run of a hypervisor, by README's lines as they stand.

What a reader has beside README: the release's tarball, a key for the hypervisor, and its address.
"""

from __future__ import annotations

import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Fleet, Guest, Lab
from readme import commands, said
from release import build, epoch

HOST = "kvmsched-h1"
PACKAGES = "python3,python3-venv,python3-pip,openssh-client"
SSH = "Host *\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n"


@pytest.fixture
def newcomer() -> Iterator[Path]:
    """The root of that system, in whose home the tarball is; what pip is to install lies in /wheels."""
    with tempfile.TemporaryDirectory(prefix="kvmsched-test-newcomer-") as directory:
        root = Path(directory) / "root"
        suite = platform.freedesktop_os_release()["VERSION_CODENAME"]
        said(["mmdebstrap", "--quiet", "--variant=apt", f"--include={PACKAGES}", suite, str(root)])
        # The way out of this machine is the test's, not the reader's.
        wheels = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(root / "wheels"), "ansible-core"]
        said(wheels)
        shutil.copy(build(Path(directory), epoch()), root / "root")
        yield root


@pytest.mark.nightly
def test_readme_leads_from_nothing_to_a_dry_run(newcomer: Path) -> None:
    with Fleet(HOST) as fleet, Lab(own=fleet[HOST]) as lab:
        lab.start(Guest("kvmsched-test-hog", memory_mib=512, current_mib=256, hold_mib=180, stats_period_s=1))
        home = newcomer / "root"
        (home / ".ssh").mkdir(mode=0o700)
        shutil.copy(fleet.key, home / ".ssh/id_ed25519")
        (home / ".ssh/config").write_text(SSH)
        lines = [
            *commands("Install it", "no Ansible yet"),
            *commands("Install it", "tarball"),
            *(line.replace("kvm1.example.org", fleet[HOST].address) for line in commands("Install it", "hypervisors")),
            *(line for line in commands() if line == "ansible-playbook kvmsched.kvm.dry_run"),
        ]
        assert len(lines) == 5, lines
        environment = ["HOME=/root", "PATH=/usr/bin:/bin", "LC_ALL=C.UTF-8", "PIP_NO_INDEX=1", "PIP_FIND_LINKS=/wheels"]
        shell = ["env", "-i", *environment, "bash", "-euc", "cd; " + "\n".join(lines)]
        answer = said(fleet.inside(["chroot", str(newcomer), *shell]))
        print(answer)
        assert "kvmsched-test-hog" in answer and "1 host (1 ok): 1 guest starved" in answer
