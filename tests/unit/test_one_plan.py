# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The same frozen world gives one plan, in check mode and in a real run, through the modules.

A fake stands for the hypervisor: no real guest holds still. It hands out recorded snapshots, and keeps what is written.
So what is taken never arrives, and what it was to pay for is given less, or not at all: less than planned, never other.
"""

from __future__ import annotations

import importlib
import itertools
import json
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from examples import seeds
from kvmsched.model import Snapshot, to_json
from memory_worlds import NOW_S, domain, pair, snapshot
from vcpu_worlds import FakeHost, Guest, cpus, topology

REPOSITORY = Path(__file__).parents[2]
COLLECTION = "ansible_collections.kvmsched.kvm.plugins"


def memory_world(seed: int) -> list[Snapshot]:
    """At least one starved, some wasteful, some with a cache, on a host with little or much to give."""
    rng = random.Random(seed)
    kinds = [{"unused": 10, "usable": 40}, {"unused": 900, "usable": 1000}, {"unused": 100, "usable": 900}]
    chosen = [kinds[0], *(rng.choice(kinds) for _guest in range(5))]
    domains = [domain(f"d{i}", 1536, rng.choice([2048, 4096]), **kind) for i, kind in enumerate(chosen)]
    return pair(snapshot(domains, available=rng.choice([1800, 2200, 8000])))


def vcpu_world(seed: int) -> list[Snapshot]:
    """Guests of one and two vCPUs with different loads, most of them on two of four pCPUs."""
    rng = random.Random(seed)
    pins = [cpus("0"), cpus("0"), cpus("1"), cpus("0-3")]
    guests = []
    for i in range(8):
        wants = [rng.uniform(0.05, 0.5) for _vcpu in range(rng.choice([1, 2]))]
        guests.append(Guest(f"g{i}", wants, [rng.choice(pins) for _want in wants]))
    return FakeHost(topology(4), guests).window()


class Frozen:
    """Hypervisor, where time stands still: the first look gets the older snapshot, all others the newer."""

    def __init__(self, samples: list[Any], outcome: Any) -> None:
        self.samples, self.outcome = samples, outcome
        self.looks = 0
        self.written: list[Any] = []

    def __call__(self, _uri: str, read_only: bool, **_more: Any) -> Frozen:
        self.looks, self.read_only = 0, read_only
        return self

    def observe(self, full: bool = True) -> Any:
        self.looks += 1
        return self.samples[min(self.looks, len(self.samples)) - 1]

    def apply(self, changes: Any) -> Any:
        assert not self.read_only
        moves = tuple(move for change in changes for move in change.moves)
        self.written += moves
        return self.outcome(moves)

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def collection() -> Iterator[Callable[[str], Any]]:
    """Import what is in the collection by its name there, as modules do: a second time in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPOSITORY / ".ansible" / "collections"))
        yield lambda name: importlib.import_module(f"{COLLECTION}.{name}")
    for loaded in [name for name in sys.modules if name.startswith(COLLECTION)]:
        del sys.modules[loaded]


@pytest.fixture
def run(
    collection: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Any]:
    """Runs a module over snapshots: ``run(name, samples, check)`` returns its answer and what it wrote."""
    passes = collection("module_utils.kvmsched.passes")
    model = collection("module_utils.kvmsched.model")
    face = collection("module_utils.ansible_face")
    clock = itertools.count(NOW_S, 0.5)
    monkeypatch.setattr(passes.time, "sleep", lambda _seconds: None)
    monkeypatch.setattr(passes.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(passes.lock, "acquire", lambda *_lock: nullcontext())
    monkeypatch.setattr(passes.lock, "acting_daemon", lambda _uri: None)
    monkeypatch.setattr(face, "require_libvirt", lambda _module: None)

    def run_module(name: str, samples: list[Snapshot], check: bool) -> tuple[dict[str, Any], list[Any]]:
        host = Frozen([model.from_json(model.Snapshot, to_json(each)) for each in samples], model.Outcome)
        monkeypatch.setattr(passes, "Hypervisor", host)
        module = collection(f"modules.{name}")
        with patch_module_args({"_ansible_check_mode": check}), pytest.raises(SystemExit):
            module.main()
        return json.loads(capsys.readouterr().out.splitlines()[-1]), host.written

    return run_module


@pytest.mark.parametrize("seed", seeds(3))
@pytest.mark.parametrize(("name", "world"), [("kvm_mem_balance", memory_world), ("kvm_vcpu_pin", vcpu_world)])
def test_check_mode_and_a_real_run_plan_the_same(run: Any, name: str, world: Any, seed: int) -> None:
    samples = world(seed)
    foreseen, nothing = run(name, samples, check=True)
    done, written = run(name, samples, check=False)
    assert foreseen["moves"] and not nothing and len(written) == len(done["moves"])
    for key in ("before", "after", "skips", "unmatched", "not_restored", "unmet", "moves_bound", "target_pct", "note"):
        assert foreseen.get(key) == done.get(key), key
    planned = {(move["domain"], move.get("id")): move for move in foreseen["moves"]}
    for move in done["moves"]:
        expected = planned.pop((move["domain"], move.get("id")))
        if move != expected:
            assert (
                move["before_kib"] < move["after_kib"] < expected["after_kib"] and "the host has only" in move["reason"]
            ), move
    assert all(move["before_kib"] < move["after_kib"] for move in planned.values()), (
        "only what is given may be left out"
    )
