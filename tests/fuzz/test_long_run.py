# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A daemon that runs for days beside guests that come, go, shout and change: what it holds stays what it was."""

from __future__ import annotations

import gc
import io
import os
import random
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import URI, Host
from fake_libvirt import MIB, Guest, World
from kvmsched import config
from kvmsched.app import daemon_connection, journal, schedule
from kvmsched.app.daemon import _Daemon, _Loaded
from kvmsched.app.journal import Journal
from nightly import nightly

# So many passes, and after so many of them it holds what it needs.
SHORT, LONG, SETTLED = 400, 20_000, 200
POLICY = {"daemon": {"metrics_listen": "none"}, "vcpu": {"hold": 1, "cooldown": 0}}
WORDS = ["balloon", "started", "stopped", "reboot", "policy", "device", "pin", "resumed"]


class Signals:
    stopping = False


class Sink(io.StringIO):
    """Counts lines, and keeps none."""

    lines = 0

    def write(self, text: str) -> int:
        self.lines += text.count("\n")
        return len(text)


class Churn:
    """Changes a world a little before each pass."""

    def __init__(self, world: World) -> None:
        self.world, self.chance, self.number = world, random.Random(1), 100

    def step(self, daemon: Any) -> None:
        chance, guests = self.chance, self.world.guests
        if chance.random() < 0.2:
            guests.remove(chance.choice(guests))
        while len(guests) < 8:
            self.number += 1
            guests.append(Guest(f"g{self.number}", 4096 * MIB, 2048 * MIB, 512 * MIB, self.number, vcpus=2))
        guest = chance.choice(guests)
        guest.used_kib = chance.randrange(256 * MIB, 2048 * MIB)
        guest.metadata = f"<x:y xmlns:x='urn:x'>{'z' * chance.randrange(50000)}{chance.random()}</x:y>"
        guest.says = {"balloon.usable": chance.choice([None, 0, 2**64 - 1, chance.randrange(2**32)])}
        if chance.random() < 0.05:
            guest.xml = chance.choice([None, None, "no XML", f"<domain>{chance.random()}</domain>"])
        daemon._heed(chance.choice(WORDS), guest.uuid)
        self.world.clock.ahead_s += 5


def held() -> tuple[int, int, int, int]:
    """Blocks of memory, KiB resident, threads, descriptors."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return sys.getallocatedblocks(), pages * 4, threading.active_count(), len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("number", [SHORT, *nightly(LONG)])
def test_what_it_holds_stays_what_it_was(
    host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    (tmp_path / "kvmsched").mkdir()
    world = host(*(Guest(f"g{n}", 4096 * MIB, 2048 * MIB, 512 * MIB, vcpus=2) for n in range(8)), total_kib=2**24)
    for module in (daemon_connection, journal, schedule):
        monkeypatch.setattr(module, "time", world.clock)
    out, signals = Sink(), Signals()
    loaded = _Loaded(config.load_daemon(POLICY), "", "")
    daemon = _Daemon(URI, loaded, Journal(out), signals, lambda _mode: None)  # type: ignore[arg-type]
    churn = Churn(world)
    calls_made, before = 0, held()
    for made in range(number):
        churn.step(daemon)
        world.calls, world.sent = 0, []
        daemon._turn(("memory", "vcpu"))
        calls_made = max(calls_made, world.calls)
        if made == SETTLED:
            before = held()
    blocks, rss_kib, threads, descriptors = held()
    daemon.host.close()
    assert threads <= before[2] and descriptors <= before[3]
    assert blocks <= before[0] * 1.05 and rss_kib <= before[1] + 16 * MIB
    assert calls_made <= 30 * 9, "a pass asks so much and no more"
    assert out.lines <= 12 * number, "nor does it say more"
