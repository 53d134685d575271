# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""kvm_mem_balance on real guests: the truth is what each guest says of itself on its console."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from face import Answer, run, run_ok
from lab import Guest, Lab, RunningGuest

HOG, HOARDER = "kvmsched-test-hog", "kvmsched-test-hoarder"
STARVATION_MIB, WASTE_MIB = 60, 120
OPTIONS = {"starvation": f"{STARVATION_MIB}M", "waste": f"{WASTE_MIB}M"}
# The kernel's own counters jitter by a few MiB from one second to the next.
NOISE_KIB = 8 * 1024


@pytest.fixture
def pair() -> Iterator[tuple[RunningGuest, RunningGuest]]:
    """A guest that has nearly nothing left, and one that uses nearly nothing of its 512 MiB."""
    with Lab() as lab:
        hog, hoarder = lab.start(
            Guest(HOG, memory_mib=512, current_mib=256, hold_mib=180),
            Guest(HOARDER, memory_mib=512, persistent=True),
        )
        yield hog, hoarder


def until_unchanged(**options: object) -> list[Answer]:
    answers = [run_ok("kvm_mem_balance", **OPTIONS, **options)]
    while answers[-1].changed:
        assert len(answers) < 10, [answer.msg for answer in answers]
        answers.append(run_ok("kvm_mem_balance", **OPTIONS, **options))
    return answers


def relax(guest: RunningGuest) -> None:
    """Let it use so little that its original size is safe again."""
    guest.hold(40)
    guest.wait_held()
    guest.report()


def set_by_a_person(guest: RunningGuest, kib: int) -> None:
    guest.domain.setMemory(kib)
    while guest.balloon_kib() != kib:
        time.sleep(0.1)


def inside_the_thresholds(guest: RunningGuest) -> bool:
    report = guest.report()
    return report.available_kib >= STARVATION_MIB * 1024 - NOISE_KIB and report.free_kib <= WASTE_MIB * 1024 + NOISE_KIB


def test_pairwise_moves_half_of_the_unused_memory_from_one_to_the_other(
    pair: tuple[RunningGuest, RunningGuest],
) -> None:
    hog, hoarder = pair
    before = hog.report(), hoarder.report()
    sizes = hog.balloon_kib(), hoarder.balloon_kib()
    assert before[0].available_kib < STARVATION_MIB * 1024 and before[1].free_kib > WASTE_MIB * 1024

    foreseen = run_ok("kvm_mem_balance", check=True, strategy="pairwise", **OPTIONS)
    assert foreseen.changed and len(foreseen.moves) == 2, foreseen.text
    assert (hog.balloon_kib(), hoarder.balloon_kib()) == sizes, "check mode changed something"

    answer = run_ok("kvm_mem_balance", strategy="pairwise", **OPTIONS)
    moves = {move["domain"]: move["after_kib"] - move["before_kib"] for move in answer.moves}
    assert moves[HOG] == -moves[HOARDER] > 0, answer.text
    after = hog.report(), hoarder.report()
    assert after[0].available_kib - before[0].available_kib == pytest.approx(moves[HOG], abs=NOISE_KIB)
    assert before[1].available_kib - after[1].available_kib == pytest.approx(moves[HOG], abs=NOISE_KIB)
    assert moves[HOG] == pytest.approx(min(before[1].free_kib / 2, 256 * 1024), abs=NOISE_KIB)

    until_unchanged(strategy="pairwise")
    assert inside_the_thresholds(hog) and inside_the_thresholds(hoarder)

    refused = run("kvm_mem_balance", state="released", **OPTIONS)
    assert refused.failed and HOG in refused.values["not_restored"][0], "what it had before would kill it by now"
    relax(hog)
    released = run_ok("kvm_mem_balance", state="released", **OPTIONS)
    assert released.changed
    assert (hog.balloon_kib(), hoarder.balloon_kib()) == sizes
    assert hog.report().total_kib == pytest.approx(before[0].total_kib, abs=NOISE_KIB)
    assert not any("kvmsched:state" in guest.domain.XMLDesc(0) for guest in pair)
    assert hog.hog_kills == hoarder.hog_kills == 0 and hog.alive and hoarder.alive


def test_fair_brings_everyone_inside_the_thresholds_and_then_rests(pair: tuple[RunningGuest, RunningGuest]) -> None:
    hog, hoarder = pair
    sizes = hog.balloon_kib(), hoarder.balloon_kib()
    answers = until_unchanged()
    assert answers[0].changed and answers[-1].values["before"]["starved"] == 0, answers[-1].text
    assert inside_the_thresholds(hog) and inside_the_thresholds(hoarder)
    assert not run_ok("kvm_mem_balance", **OPTIONS).changed
    relax(hog)
    run_ok("kvm_mem_balance", state="released", **OPTIONS)
    assert (hog.balloon_kib(), hoarder.balloon_kib()) == sizes

    assert until_unchanged()[0].changed
    set_by_a_person(hoarder, 400 * 1024)
    run_ok("kvm_mem_balance", state="released", **OPTIONS)
    assert (hog.balloon_kib(), hoarder.balloon_kib()) == (sizes[0], 400 * 1024)
    assert not any("kvmsched:state" in guest.domain.XMLDesc() for guest in pair)
    assert hog.hog_kills == 0 and hog.alive and hoarder.alive


def saved_while_it_grows(guest: RunningGuest, least_kib: int, most_kib: int) -> None:
    """Until libvirt missed how that went on: then it has the size of the save, and keeps it."""
    for pause_s in (0.1, 0.08, 0.12, 0.06, 0.14, 0.1, 0.05, 0.16):
        set_by_a_person(guest, least_kib)
        guest.domain.setMemory(most_kib)
        time.sleep(pause_s)
        guest.domain.managedSave()
        guest.domain.create()
        guest.refresh()
        while guest.balloon_kib() != most_kib:
            time.sleep(0.1)
        time.sleep(2)
        if guest.domain.info()[2] < (least_kib + most_kib) / 2:
            return
    raise AssertionError("libvirt missed nothing")


def test_a_guest_that_was_saved_while_its_balloon_moved_is_judged_by_its_qemu() -> None:
    """By what libvirt says of its size it uses next to nothing, and would be killed by what is taken."""
    with Lab() as lab:
        (guest,) = lab.start(Guest(HOARDER, memory_mib=512, current_mib=256, hold_mib=170, persistent=True))
        saved_while_it_grows(guest, 256 * 1024, 512 * 1024)
        (seen,) = run_ok("kvm_sched_info").values["snapshot"]["domains"]
        assert seen["balloon"]["actual_kib"] == 512 * 1024
        assert until_unchanged()[0].changed
        assert guest.hog_kills == 0 and guest.alive and inside_the_thresholds(guest)
        run_ok("kvm_mem_balance", state="released", **OPTIONS)
        assert guest.balloon_kib() == 512 * 1024 and "kvmsched:state" not in guest.domain.XMLDesc()
