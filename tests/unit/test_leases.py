# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Leases: who asks for what, for how long, and what a damaged or foreign file is worth."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from kvmsched import leases, lock
from kvmsched.model import RoomRequest

URI = "test:///default"


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return Path(lock.directory_for(URI))


def test_it_holds_for_its_time_and_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = leases.boottime_s()
    request = RoomRequest(64 << 20, frozenset({0, 1}), 5.0)
    asked = leases.write(URI, "room", 600, request)
    assert leases.read(URI, "room") == asked and asked.room == request and leases.read(URI, "pause") is None
    monkeypatch.setattr(leases, "boottime_s", lambda: now_s + 599)
    assert leases.read(URI, "room") == asked
    monkeypatch.setattr(leases, "boottime_s", lambda: now_s + 601)
    assert leases.read(URI, "room") is None


def test_the_last_one_counts_and_it_can_be_ended() -> None:
    leases.write(URI, "pause", 10)
    leases.write(URI, "pause", 3600)
    held = leases.read(URI, "pause")
    assert held is not None and held.left_s > 3000
    assert leases.end(URI, "pause") and not leases.end(URI, "pause")
    assert leases.read(URI, "pause") is None


def test_after_a_boot_it_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    leases.write(URI, "pause", 3600)
    monkeypatch.setattr(leases, "boot_id", lambda: "another")
    assert leases.read(URI, "pause") is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"boot_id": 5}', '{"boot_id": "x", "until_s": NaN}', "\x00" * 100, "x" * 9999]
)
def test_a_damaged_one_is_none(directory: Path, text: str) -> None:
    leases.write(URI, "room", 600)
    (directory / "room").write_text(text)
    assert leases.read(URI, "room") is None


def test_a_link_or_a_fifo_in_its_place_is_none_and_holds_up_nobody(directory: Path, tmp_path: Path) -> None:
    leases.write(URI, "room", 600)
    (directory / "room").rename(tmp_path / "real")
    (directory / "room").symlink_to(tmp_path / "real")
    assert leases.read(URI, "room") is None
    (directory / "room").unlink()
    os.mkfifo(directory / "room")
    assert leases.read(URI, "room") is None


def test_others_than_the_group_can_not_read_it(directory: Path) -> None:
    leases.write(URI, "room", 600)
    assert (directory / "room").stat().st_mode & 0o777 == 0o640
    assert json.loads((directory / "room").read_text())["room"] is None
    assert [path.name for path in directory.iterdir()] == ["room"], "no half-written file is left"
