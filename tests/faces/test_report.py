# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet's report: records are fetched from each host, and become one page. The hosts are this one, many times."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
from face import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "tests/unit"))
from test_replay import EAGER, day_of_memory, day_of_vcpus

AWAY = "ansible_connection=ssh ansible_host=127.0.0.1 ansible_port=1"
LOCAL = "ansible_connection=local ansible_python_interpreter"
# Who can't be reported on: how it is reached, and what its row says.
TROUBLED = {
    "away": (AWAY, "unreachable: "),
    "broken": (f"{LOCAL}=/usr/bin/python3", "r.kvmrec.gz: "),
    "no-python": (f"{LOCAL}=/nowhere/python3", "/nowhere/python3"),
}


@pytest.mark.parametrize(("hosts", "turns"), [(2, 2), pytest.param(44, 1, marks=pytest.mark.nightly, id="fifty")])
def test_each_host_is_a_row_and_who_is_in_trouble_too(tmp_path: Path, hosts: int, turns: int) -> None:
    """A second report replaces the first."""
    names = [f"host{number}" for number in range(hosts)]
    kinds = [made_record(tmp_path / "kinds" / str(number), number) for number in range(2)]
    for number, name in enumerate(names):
        (tmp_path / "records" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "records" / name).symlink_to(kinds[number % 2])
    troubled = {f"{name}{turn}": TROUBLED[name] for turn in range(max(1, hosts // 20)) for name in TROUBLED}
    for name in troubled:
        (tmp_path / "records" / name).mkdir()
        (tmp_path / "records" / name / "r.kvmrec.gz").write_text("hello")
    inventory = tmp_path / "inventory"
    # Who is away is the first of the play, whose host makes the pages for all.
    lines = [f"{name} {how}" for name, (how, _row) in troubled.items()]
    lines += [f"{name} {LOCAL}=/usr/bin/python3" for name in names]
    inventory.write_text("\n".join(("[hypervisors]", *lines, "")))
    report = tmp_path / "report"
    policy = {"daemon": {"record": f"{tmp_path}/records/{{{{ inventory_hostname }}}}"}}
    more = {"kvmsched_policy": policy, "kvmsched_report_directory": str(report), "ansible_become": False}
    for _turn in range(turns):
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
        assert done.returncode == 0 and "index.html" in done.stdout, done.stdout + done.stderr
    told = json.loads((report / "index.json").read_text())
    assert set(told) == {*names, *troubled}
    assert all("as recorded" in told[name] for name in names), told
    for name, (_how, row) in troubled.items():
        assert row in told[name]["failed"], told[name]
    index = (report / "index.html").read_text()
    rows = re.findall(r'<th scope="row">(?:<a href="([^"]+)">)?([^<]+)', index)
    assert {name for _page, name in rows[: len(troubled)]} == set(troubled), "who could not be read comes first"
    worst = [told[name]["as recorded"]["figures"] for _page, name in rows[len(troubled) :]]
    order = [(-figures["starved_s"] / figures["seconds"], -figures["unserved_pct"]) for figures in worst]
    assert len(order) == hosts and order == sorted(order) and order[0] < order[-1], "the worst first"
    pages = [unquote(page) for page, _name in rows if page]
    assert sorted(pages) == sorted(page.name for page in report.glob("host-*.html")) and len(pages) == hosts
    assert all(0 < (report / page).stat().st_size < 5 * 2**20 for page in pages)
    assert not any(path.stat().st_mode & 0o077 for path in report.iterdir()), "nobody else reads what happened"


def made_record(directory: Path, number: int) -> Path:
    """Return *directory*, with the record of a host whose memory or whose vCPUs are moved."""
    directory.parent.mkdir(exist_ok=True)
    if number % 2:
        day_of_vcpus(directory, passes=12)
    else:
        day_of_memory(directory, EAGER, passes=12)
    return directory
