# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet's report: records are fetched from each host, and become one page. The hosts are this one, many times."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from face import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "tests/unit"))
from test_replay import EAGER, day_of_memory, day_of_vcpus


@pytest.mark.parametrize("hosts", [2, pytest.param(50, marks=pytest.mark.nightly)])
def test_each_host_is_a_row_and_one_that_is_away_too(tmp_path: Path, hosts: int) -> None:
    names = [f"host{number}" for number in range(hosts)]
    for number, name in enumerate(names):
        directory = tmp_path / "records" / name
        directory.parent.mkdir(exist_ok=True)
        if number % 2:
            day_of_vcpus(directory, passes=12)
        else:
            day_of_memory(directory, EAGER, passes=12)
    inventory = tmp_path / "inventory"
    away = "away ansible_connection=ssh ansible_host=127.0.0.1 ansible_port=1\n"
    lines = (f"{name} ansible_connection=local ansible_python_interpreter=/usr/bin/python3\n" for name in names)
    inventory.write_text(f"[hypervisors]\n{''.join(lines)}{away}")
    policy = {"daemon": {"record": f"{tmp_path}/records/{{{{ inventory_hostname }}}}"}}
    more = {"kvmsched_policy": policy, "kvmsched_report_directory": str(tmp_path / "report"), "ansible_become": False}
    for _turn in range(2):  # a second report replaces the first
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("ansible-playbook")),
                "-i",
                str(inventory),
                str(REPOSITORY / "playbooks/report.yml"),
                "-e",
                json.dumps(more),
            ],
            cwd=REPOSITORY,
            env={**os.environ, "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "index.html" in done.stdout, done.stdout + done.stderr
    told = json.loads((tmp_path / "report/index.json").read_text())
    assert set(told) == {*names, "away"} and "failed" in told["away"]
    assert all("as recorded" in told[name] for name in names), told
    assert len(list((tmp_path / "report").glob("host-*.html"))) == hosts
