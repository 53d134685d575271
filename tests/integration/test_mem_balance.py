# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""kvm_mem_balance on real guests: the truth is what each guest says of itself on its console."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from face import Answer, run, run_ok
from lab import Guest, Lab, RunningGuest

HOG, HOARDER = "kvmsched-test-hog", "kvmsched-test-hoarder"
STARVATION_MIB, WASTE_MIB = 60, 120
OPTIONS = {"starvation": f"{STARVATION_MIB}M", "waste": f"{WASTE_MIB}M", "reclaim": "eager"}
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


def at_rest(answer: Answer) -> bool:
    """Whether it changed nothing, and nobody's last change is still under way."""
    return not answer.changed and not answer.values["skip_counts"].get("settling")


def until_unchanged(**options: object) -> list[Answer]:
    answers = [run_ok("kvm_mem_balance", **OPTIONS, **options)]
    while not at_rest(answers[-1]):
        assert len(answers) < 30, [answer.msg for answer in answers]
        answers.append(run_ok("kvm_mem_balance", **OPTIONS, **options))
    return answers


def relax(guest: RunningGuest) -> None:
    """Let it use so little that its original size is safe again."""
    guest.hold(40)
    guest.wait_held()
    guest.wait_seen()


def set_by_a_person(guest: RunningGuest, kib: int) -> None:
    guest.domain.setMemory(kib)
    guest.wait_until(lambda: guest.balloon_kib() == kib, f"to have {kib} KiB")


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
    assert refused.failed and HOG in refused.values["not_restored"][0], "what it had before would kill it now"
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


SAVED = Path("/var/lib/libvirt/qemu/save")


def saved_while_it_grew(guest: RunningGuest, told_kib: int) -> None:
    """Save it and start it again, and let libvirt know the size that it had before it grew.

    QEMU tells of a change at most once a second. What it still had to tell when it was saved is lost, and libvirt keeps
    the older size in the saved definition. Whether a save comes in that second is luck, so the test writes that
    definition itself; libvirt would refuse to.
    """
    known_kib = guest.balloon_kib()
    guest.domain.managedSave()
    saved = SAVED / f"{guest.name}.save"
    definition = b"<currentMemory unit='KiB'>%d<"
    assert len(definition % known_kib) == len(definition % told_kib), "the definition must keep its length"
    with saved.open("r+b") as file:
        head = file.read(1 << 20)
        assert head.count(definition % known_kib) == 1, head[:4096]
        file.seek(head.index(definition % known_kib))
        file.write(definition % told_kib)
    guest.domain.create()
    guest.refresh()
    assert guest.balloon_kib() == known_kib and guest.domain.info()[2] == told_kib


def test_a_guest_that_was_saved_while_its_balloon_moved_is_judged_by_its_qemu() -> None:
    """By what libvirt says of its size it uses next to nothing, and would be killed by what is taken."""
    with Lab() as lab:
        (guest,) = lab.start(Guest(HOARDER, memory_mib=512, hold_mib=170, persistent=True))
        saved_while_it_grew(guest, 256 * 1024)
        (seen,) = run_ok("kvm_sched_info").values["snapshot"]["domains"]
        assert seen["balloon"]["actual_kib"] == 512 * 1024
        assert until_unchanged()[0].changed
        assert guest.hog_kills == 0 and guest.alive and inside_the_thresholds(guest)
        run_ok("kvm_mem_balance", state="released", **OPTIONS)
        assert guest.balloon_kib() == 512 * 1024 and "kvmsched:state" not in guest.domain.XMLDesc()
