# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""kvm_mem_balance, run again and again, on real guests that hog: nobody dies, and the host keeps its reserve."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from face import Answer, run_ok
from lab import Guest, Lab, RunningGuest, truth

MIB = 1024
NAMES = [f"kvmsched-test-{name}" for name in ("one", "two", "three", "four")]
MAXIMUM_MIB, START_MIB, FLOOR_MIB = 1024, 384, 128
# One hog is at its maximum in a few passes.
HOGS_MIB = 704
STARVATION_MIB, WASTE_MIB = 150, 300
# What a hog leaves itself at its maximum: less than its starvation line, so that it wants all, and no danger.
LEFT_MIB = 125
# Below this a guest is close to its death; it may be there only while a pass is on its way to it.
USABLE_MIB = 100
# What a hog takes between two passes: it starves then, and is in no danger, however long a pass takes.
STEP_MIB = 28
# A donor keeps its starvation line and a quarter of its band; what is left above that is too little for a command.
KEPT_MIB = 150 + 150 / 4 + 21 + 8
# The kernel's own counters jitter by a few MiB from one second to the next.
NOISE_MIB = 8
# What a host's own processes and page tables take and give back from one moment to the next.
HOST_NOISE_MIB = 32


class HostWatch(threading.Thread):
    """Watches this host's memory past libvirt, ten times a second: /proc/meminfo, and what the guests' QEMUs hold.

    ``least_kib`` is the least that was available, less what others on this machine took meanwhile: that
    is not the guests' doing.
    """

    def __init__(self, guests: list[RunningGuest]) -> None:
        super().__init__(daemon=True)
        self.guests = guests
        self.available_kib, others_kib = self._look()
        self._others_kib, self.least_kib = others_kib, self.available_kib
        self._ended = threading.Event()

    def __enter__(self) -> HostWatch:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        while not self._ended.wait(0.1):
            self.available_kib, others_kib = self._look()
            self._others_kib = min(self._others_kib, others_kib)
            self.least_kib = min(self.least_kib, self.available_kib + others_kib - self._others_kib)

    def _look(self) -> tuple[int, int]:
        """What is available, and what others than the guests use, in KiB."""
        kib = truth.memory_kib()
        available_kib = kib["MemAvailable"]
        return available_kib, kib["MemTotal"] - available_kib - sum(guest.resident_kib() for guest in self.guests)


def passes_until(done: Callable[[Answer], bool], at_most: int, **options: object) -> list[Answer]:
    """Balance until *done* says so of an answer."""
    options = {"reclaim": "eager", **options}
    answers = [run_ok("kvm_mem_balance", **options)]
    while not done(answers[-1]):
        assert len(answers) < at_most, "\n".join(answer.msg for answer in answers)
        answers.append(run_ok("kvm_mem_balance", **options))
    return answers


def at_rest(answer: Answer) -> bool:
    """Whether it changed nothing, and nobody's last change is still under way."""
    return not answer.changed and not answer.values["skip_counts"].get("settling")


def usable_mib(guest: RunningGuest) -> int:
    return guest.report().available_kib // MIB


def nothing_to_give_mib(guests: list[RunningGuest]) -> int:
    """The reserve beside which the host has just what its guests, and their QEMUs, were promised."""
    promised_kib = sum(guest.untouched_kib() for guest in guests)
    return (truth.memory_kib()["MemAvailable"] - promised_kib) // MIB


def at_its_maximum_mib(guest: RunningGuest) -> int:
    """How much it has to hold to have LEFT_MIB left at its maximum, by its own kernel's word of the rest."""
    report = guest.report()
    return (report.held_kib + report.available_kib - guest.balloon_kib()) // MIB + guest.guest.memory_mib - LEFT_MIB


def in_its_band(guest: RunningGuest) -> bool:
    report = guest.report()
    usable, unused = report.available_kib / MIB, report.free_kib / MIB
    return usable >= STARVATION_MIB - NOISE_MIB and unused <= WASTE_MIB + NOISE_MIB


def alive_and_well(guests: list[RunningGuest]) -> None:
    for guest in guests:
        assert guest.alive and not guest.panicked and guest.hog_kills == 0, guest.guest.name
        assert guest.balloon_kib() >= FLOOR_MIB * MIB, guest.guest.name


def taken_kib(answers: list[Answer], name: str) -> list[int]:
    moves = [move for answer in answers for move in answer.moves if move["domain"] == name]
    return [m["before_kib"] - m["after_kib"] for m in moves if m.get("after_kib", 0) < m.get("before_kib", 0)]


@pytest.fixture
def four() -> Iterator[list[RunningGuest]]:
    with Lab() as lab:
        yield lab.start(*(Guest(name, memory_mib=HOGS_MIB, current_mib=START_MIB, hold_mib=40) for name in NAMES))


@pytest.fixture
def four_that_swap() -> Iterator[list[RunningGuest]]:
    """What they want and don't get is in their own swap, else their kernels would have to kill."""
    with Lab() as lab:
        yield lab.start(
            *(
                Guest(name, memory_mib=MAXIMUM_MIB, current_mib=START_MIB, hold_mib=40, swap_mib=MAXIMUM_MIB)
                for name in NAMES
            )
        )


def test_a_hog_grows_to_its_maximum_while_three_idle_and_gives_all_back(four: list[RunningGuest]) -> None:
    hog, *idle = four
    passes_until(at_rest, 20)
    assert all(in_its_band(guest) for guest in four)
    sizes = [guest.balloon_kib() for guest in idle]

    rising: list[Answer] = []
    while hog.balloon_kib() < HOGS_MIB * MIB:
        held_mib = hog.report().held_kib // MIB
        hog.hold(min(at_its_maximum_mib(hog), held_mib + max(0, usable_mib(hog) - STARVATION_MIB + STEP_MIB)))
        hog.wait_held()
        hog.wait_seen()
        rising += passes_until(lambda _answer: True, 1)
        assert len(rising) < 60, rising[-1].text
        assert usable_mib(hog) >= USABLE_MIB or hog.balloon_kib() == HOGS_MIB * MIB, rising[-1].text
    most_mib = at_its_maximum_mib(hog)
    hog.hold(most_mib)
    held = hog.wait_held()
    assert held.held_kib >= most_mib * MIB and held.available_kib >= USABLE_MIB * MIB
    alive_and_well(four)
    least_mib = min(report.available_kib for report in hog.reports() if report.held_kib > 40 * MIB) // MIB
    print(
        f"one hog: {len(rising)} passes to its maximum, least usable {least_mib} MiB, {usable_mib(hog)} MiB in the end"
    )
    assert [guest.balloon_kib() for guest in idle] == sizes, "the host had enough: nobody had to pay"

    hog.hold(40)
    hog.wait_held()
    unused_mib = hog.report().free_kib // MIB
    falling = passes_until(at_rest, 20)
    takes = taken_kib(falling, NAMES[0])
    print(f"one hog: freed, it gave back {', '.join(str(kib // MIB) for kib in takes)} MiB")
    assert len(takes) >= 2 and takes[0] <= unused_mib * MIB / 2 + NOISE_MIB * MIB, "it goes back gradually"
    assert all(in_its_band(guest) for guest in four)
    alive_and_well(four)


@pytest.mark.nightly
def test_four_hogs_share_what_a_host_has_that_cannot_hold_them(four_that_swap: list[RunningGuest]) -> None:
    guests = four_that_swap
    passes_until(at_rest, 20)
    with HostWatch(guests) as host:
        # Part of what is there beyond the reserve is promised to them already; the rest holds less than they will want.
        reserve_mib = host.available_kib // MIB - 1300
        options = {"host_reserve": f"{reserve_mib}M", "reclaim": "eager"}
        for guest in guests:
            guest.hold(600, 40)
        short = [run_ok("kvm_mem_balance", **options) for _pass in range(6)]
        alive_and_well(guests)
        assert short[-1].values["unmet"], short[-1].text
        grown_mib = [guest.balloon_kib() / MIB for guest in guests]
        print(
            f"four hogs: each wants 600 MiB beside its kernel, they got {', '.join(f'{mib:.0f}' for mib in grown_mib)}"
        )
        assert max(grown_mib) - min(grown_mib) < 0.35 * max(grown_mib), grown_mib

        for guest in guests[:2]:
            guest.hold(40)
            guest.wait_held()
        last = passes_until(at_rest, 30, **options)[-1]
        still_short = [missing["domain"] for missing in last.values["unmet"]]
        print(f"four hogs: two freed theirs, the others have {[guest.balloon_kib() // MIB for guest in guests[2:]]}")
        assert all(guest.balloon_kib() / MIB >= before for guest, before in zip(guests[2:], grown_mib[2:]))
        assert not still_short or max(map(usable_mib, guests[:2])) < KEPT_MIB, "they give all that they can do without"

        for guest in guests[2:]:
            guest.hold(40)
            guest.wait_held()
        passes_until(at_rest, 30, **options)
    assert all(in_its_band(guest) for guest in guests)
    alive_and_well(guests)
    print(f"four hogs: the host at its least {host.least_kib // MIB - reserve_mib:+} MiB from its reserve")
    assert host.least_kib // MIB >= reserve_mib - HOST_NOISE_MIB, "the host fell below its reserve"


@pytest.mark.nightly
def test_the_warm_cache_of_a_database_stays_beside_a_neighbours_need_unless_it_is_shared() -> None:
    with Lab() as lab:
        database, needy = lab.start(
            Guest(NAMES[0], memory_mib=MAXIMUM_MIB, current_mib=896, hold_mib=150, cache_mib=500),
            Guest(NAMES[1], memory_mib=MAXIMUM_MIB, current_mib=640, hold_mib=40),
        )
        size_kib, warm = database.balloon_kib(), database.report()
        assert warm.cached_kib > 480 * MIB and warm.available_kib > (WASTE_MIB + 200) * MIB
        calm = passes_until(at_rest, 20)
        assert not taken_kib(calm, NAMES[0]) and taken_kib(calm, NAMES[1]), "idle memory is waste, cache is not"
        assert database.balloon_kib() == size_kib
        print(f"cache: {warm.cached_kib // MIB} MiB before, {database.report().cached_kib // MIB} after calm passes")
        assert database.report().cached_kib >= warm.cached_kib - NOISE_MIB * MIB

        reserve = f"{HostWatch([database, needy]).available_kib // MIB + 200}M"
        kept = passes_until(at_rest, 20, host_reserve=reserve, cache="keep")
        assert not taken_kib(kept, NAMES[0]), "to be below its reserve is no danger"
        needy.hold(needy.report().held_kib // MIB + usable_mib(needy) - STARVATION_MIB + STEP_MIB)
        needy.wait_held()
        needy.wait_seen()
        kept = passes_until(lambda _answer: True, 1, host_reserve=reserve, cache="keep")
        assert not taken_kib(kept, NAMES[0]), kept[0].text
        assert usable_mib(needy) < STARVATION_MIB and kept[0].values["unmet"], kept[0].text

        # What the host lacks comes before any need: here it lacks nothing, and has nothing to give.
        exact = f"{nothing_to_give_mib([database, needy])}M"
        shared = passes_until(at_rest, 30, host_reserve=exact, cache="share")
        paid_mib = sum(taken_kib(shared, NAMES[0])) // MIB
        print(f"cache: shared, it paid {paid_mib} MiB, and the needy one has {usable_mib(needy)} MiB usable")
        assert paid_mib > 0 and usable_mib(needy) >= STARVATION_MIB - NOISE_MIB, shared[-1].text
        assert usable_mib(database) >= STARVATION_MIB - NOISE_MIB, "what it uses stays, and its band"
        alive_and_well([database, needy])
