# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Root in a real guest writes its balloon's register: the host's other guests are fed all the same."""

from __future__ import annotations

import pytest
from face import run_ok
from lab import Guest, Lab
from nightly import nightly

HOG, LIAR = "kvmsched-test-hog", "kvmsched-test-liar"
OPTIONS = {"starvation": "60M", "waste": "120M"}
PASSES = 5


@pytest.mark.parametrize("pages", ["0xffffffff", *nightly("0x80000000", "0x00ffffff")])
def test_what_a_guest_writes_of_its_balloon_starves_nobody(pages: str) -> None:
    with Lab() as lab:
        hog, liar = lab.start(
            Guest(HOG, memory_mib=512, current_mib=256, hold_mib=180),
            Guest(LIAR, memory_mib=512, current_mib=384, hold_mib=40),
        )
        liar.tell(f"lie {pages}")
        liar.wait_until(lambda: not 0 <= liar.balloon_kib() <= 512 * 1024, "to be believed by libvirt")
        before_kib = hog.balloon_kib()
        for _pass in range(PASSES):
            answer = run_ok("kvm_mem_balance", domains=[HOG, LIAR], **OPTIONS)
            moves = {move["domain"]: move["after_kib"] for move in answer.moves}
            assert moves.get(LIAR, 0) <= 512 * 1024, answer.text
            if HOG in moves:
                break  # on a busy machine its statistics may be old at first
        assert moves.get(HOG, 0) > before_kib, answer.text
        assert liar.alive and hog.alive
        released = run_ok("kvm_mem_balance", state="released", domains=[LIAR], **OPTIONS)
        assert LIAR not in "".join(released.values["not_restored"]), released.text
