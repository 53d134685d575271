# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report on hosts reached by ssh: one whose daemon keeps a record, one without any, and one that is away."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lab import Fleet
from plays import POLICY, ROLE, eventually, play

RECORDS, BARE, AWAY = HOSTS = ("kvmsched-h1", "kvmsched-h2", "kvmsched-h3")
RECORD = "/var/lib/kvmsched/record"

pytestmark = pytest.mark.nightly


def test_records_come_by_ssh_who_has_none_is_looked_at_and_who_is_away_is_a_row(tmp_path: Path) -> None:
    policy = {**POLICY, "daemon": {"period": 1, "record": RECORD}}
    (tmp_path / "role.yml").write_text(ROLE, encoding="utf-8")
    with Fleet(*HOSTS) as fleet:
        only = ("--limit", RECORDS)
        play(fleet, str(tmp_path / "role.yml"), *only, kvmsched_policy=policy, kvmsched_mode="observe").well()
        kept = fleet[RECORDS].path(RECORD)
        eventually(lambda: [file for file in kept.glob("*.kvmrec.gz") if file.stat().st_size], "it records")
        assert kept.stat().st_mode & 0o777 == 0o700
        # What was flushed is fetched: the first look at once, those after it within half a minute.
        (file,) = kept.glob("*.kvmrec.gz")
        size = file.stat().st_size
        eventually(lambda: file.stat().st_size > size, "it goes on")
        fleet[AWAY].lose()
        done = play(
            fleet, "kvmsched.kvm.report", kvmsched_policy=policy, kvmsched_report_directory=str(tmp_path / "report")
        )
        fleet[AWAY].find()
        gone = play(fleet, str(tmp_path / "role.yml"), *only, kvmsched_policy=policy, kvmsched_state="absent").well()
        assert gone.changed() and not kept.exists(), "the record goes with the daemon"
    told = json.loads((tmp_path / "report/index.json").read_text(encoding="utf-8"))
    assert set(told) == set(HOSTS) and "failed" in told[AWAY], done.text
    # Looks are a minute apart here; what lies between the first and the last is that of a record.
    assert told[RECORDS]["as recorded"]["figures"]["seconds"] > 10, told[RECORDS]
    assert told[BARE]["as recorded"]["figures"]["looks"] == 2, told[BARE]
    assert (tmp_path / "report/index.html").exists(), done.text
    assert {page.name for page in (tmp_path / "report").glob("host-*.html")} == {
        f"host-{name}.html" for name in (RECORDS, BARE)
    }
