# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Domains that can't be served each get a reason of their own, and cost the others nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from face import run_ok
from lab import Guest, Lab, TinyGuest

PREFIX = "kvmsched-test-odd-"
OPTIONS = {"starvation": "60M", "waste": "120M", "reclaim": "eager"}
PASSES = 10


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        lab.start(
            Guest(f"{PREFIX}healthy", memory_mib=384),
            TinyGuest(f"{PREFIX}nodevice"),
            TinyGuest(f"{PREFIX}nodriver", balloon="virtio", driver=False),
            Guest(f"{PREFIX}noperiod", memory_mib=384, stats_period_s=0),
            Guest(
                f"{PREFIX}optout",
                memory_mib=384,
                metadata="<k:policy xmlns:k='urn:kvmsched:policy/1' memory='ignore' vcpu='ignore'/>",
            ),
            Guest(f"{PREFIX}slip", memory_mib=384, metadata="<k:policy xmlns:k='urn:kvmsched:policy/1' floor='1MB'/>"),
            Guest(f"{PREFIX}paused", memory_mib=384),
        )
        lab[f"{PREFIX}paused"].domain.suspend()
        yield lab


def test_each_has_its_reason_and_the_healthy_one_is_served(lab: Lab) -> None:
    sizes = {name: guest.balloon_kib() for name, guest in lab.guests.items() if "nodevice" not in name}
    first = run_ok("kvm_mem_balance", **OPTIONS)
    moved = {move["domain"]: move["kind"] for move in first.moves}
    assert moved == {f"{PREFIX}healthy": "balloon", f"{PREFIX}noperiod": "stats_period"}, first.text
    reasons = {skip["domain"].replace(PREFIX, ""): skip["reason"] for skip in first.values["skips"]}
    for name, word in {
        "nodevice": "balloon",
        "nodriver": "driver",
        "optout": "ignore",
        "slip": "floor",
        "paused": "paused",
    }.items():
        assert word in reasons[name], reasons
        if name != "nodevice":
            assert lab[f"{PREFIX}{name}"].balloon_kib() == sizes[f"{PREFIX}{name}"]

    lab[f"{PREFIX}noperiod"].wait_seen()
    for _pass in range(PASSES):
        later = run_ok("kvm_mem_balance", **OPTIONS)
        if f"{PREFIX}noperiod" in {move["domain"] for move in later.moves}:
            break  # it may have told only once when it was first looked at
    assert f"{PREFIX}noperiod" in {move["domain"] for move in later.moves}, later.text

    run_ok("kvm_mem_balance", state="released", **OPTIONS)
    for name in ("healthy", "noperiod"):
        guest = lab[f"{PREFIX}{name}"]
        assert guest.balloon_kib() == sizes[f"{PREFIX}{name}"]
        assert "kvmsched:state" not in guest.domain.XMLDesc(0)
    assert "<stats period='5'/>" not in lab[f"{PREFIX}noperiod"].domain.XMLDesc(0)


def test_the_vcpu_module_skips_who_opted_out(lab: Lab) -> None:
    answer = run_ok("kvm_vcpu_pin")
    assert "ignore" in answer.skip(f"{PREFIX}optout")["reason"]
    assert "paused" in answer.skip(f"{PREFIX}paused")["reason"]
