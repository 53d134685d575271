# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What breaks on real guests, at which instant of a pass, and what is then still true.

After each fault: the pass ended by itself, while the fault still stood; nobody died whom the test did
not kill; no balloon is under its floor and no pin outside its set; the healthy domains were served;
and ``released`` brings everyone back to where it was (the fixture ``herd`` sees to that).
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import faulty
import libvirt
import pytest
from faulty import INSTANTS, breaking
from herd import HOME, MEMORY_KIB, Herd, pinned_guest
from kvmsched import lock, passes
from kvmsched.model import BalloonMove
from lab import RunningGuest
from nightly import nightly

MACHINE = pytest.mark.machine

# ---------------------------------------------------------------- QEMUs that do not answer


@pytest.mark.parametrize(
    ("count", "instant"),
    [
        (1, "observe"),
        pytest.param(3, "statistics", marks=MACHINE),
        (3, "apply"),
        pytest.param(6, "change", marks=MACHINE),
        *nightly((1, "statistics"), (1, "apply"), (1, "change"), (3, "observe"), (3, "change")),
        *nightly((6, "observe"), (6, "statistics"), (6, "apply")),
    ],
)
def test_stopped_qemus_cost_only_their_own_turn(herd: Herd, instant: str, count: int) -> None:
    sick = herd.guests[:count]

    def stop() -> None:
        for guest in sick:
            guest.signal_qemu(signal.SIGSTOP)

    result = herd.run(faults={instant: stop})
    assert all(guest.qemu_state == "T" for guest in sick), "the pass ended while they were stopped"
    herd.assert_unharmed()
    herd.assert_served(result, sick)
    outcome = result.outcome
    told = {one.domain for one in (*outcome.moves, *outcome.failures, *result.skips)}
    assert told >= {guest.name for guest in sick} or herd.resource == "vcpu", "each sick one has its reason"


@pytest.mark.parametrize("instant", [pytest.param("observe", marks=MACHINE), *nightly("statistics", "apply", "change")])
def test_a_release_forgets_nobody_who_does_not_answer(herd: Herd, instant: str) -> None:
    """What a stopped QEMU has is not known, so it can't be known to be back."""
    sick = herd.change()[:3]

    def stop() -> None:
        for guest in sick:
            guest.signal_qemu(signal.SIGSTOP)

    result = herd.run(release=True, faults={instant: stop})
    left = {line.partition(": ")[0] for line in map(str, result.not_restored)}
    assert left >= {guest.name for guest in sick}, result.not_restored
    assert result.failed
    assert all("kvmsched:state" in guest.domain.XMLDesc() for guest in sick)
    herd.assert_unharmed()


# ---------------------------------------------------------------- domains that end or change in a pass


def killed(guest: RunningGuest) -> None:
    guest.signal_qemu(signal.SIGKILL)


def destroyed(guest: RunningGuest) -> None:
    guest.domain.destroy()


def undefined(guest: RunningGuest) -> None:
    guest.domain.undefine()
    guest.domain.destroy()


@pytest.fixture
def unhurried(herd: Herd) -> Iterator[None]:
    """For faults that take some time themselves, and don't let anything hang."""
    before, herd.patience = herd.patience, faulty.PATIENT
    yield
    herd.patience = before


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("end", [pytest.param(killed, marks=MACHINE), *nightly(destroyed, undefined)])
def test_domains_that_end_in_a_pass_cost_only_their_own_turn(herd: Herd, end: Callable[[RunningGuest], None]) -> None:
    victims = herd.guests[: len(INSTANTS)]
    try:
        result = herd.run(faults={instant: partial(end, victim) for instant, victim in zip(INSTANTS, victims)})
        assert {failure.code for failure in result.outcome.failures} <= {"gone"}, result.outcome.failures
        herd.assert_unharmed(but=victims)
        herd.assert_served(result, victims)
    finally:
        herd.again(victims)


def rebooted(guest: RunningGuest) -> None:
    guest.domain.reset()


def saved_and_restored(guest: RunningGuest) -> None:
    file = f"{guest.files.disk}.saved"
    guest.domain.save(file)
    guest.domain.connect().restore(file)
    Path(file).unlink(missing_ok=True)  # a machine's goes with the machine


def managed_saved(guest: RunningGuest) -> None:
    guest.domain.managedSave()
    guest.domain.create()


def reverted(guest: RunningGuest) -> None:
    guest.domain.revertToSnapshot(guest.domain.snapshotLookupByName("before"))


SLOW_READER = (
    "rm -f {pipe} && mkfifo {pipe} && echo ready && exec 3<{pipe} && read -r _ && cat <&3 >/dev/null; rm {pipe}"
)


@contextlib.contextmanager
def dumping(herd: Herd, guest: RunningGuest) -> Iterator[None]:
    """A dump that does not end while its reader is slow holds the job lock, as a migration or a backup does."""
    pipe = f"{guest.files.disk}.dump"
    reader = herd.shell(SLOW_READER.format(pipe=pipe))
    assert reader.stdout and reader.stdout.readline() == b"ready\n"
    # libvirtd serves few requests of one connection at a time.
    connection = libvirt.open(herd.lab.uri)
    domain = connection.lookupByName(guest.name)
    dump = threading.Thread(target=domain.coreDump, args=(pipe, libvirt.VIR_DUMP_LIVE), daemon=True)
    dump.start()
    while guest.domain.jobInfo()[0] == libvirt.VIR_DOMAIN_JOB_NONE:
        assert dump.is_alive(), "no dump has begun"
        time.sleep(0.05)
    try:
        yield
    finally:
        reader.communicate(b"\n")
        dump.join(faulty.HANG_S)
        connection.close()


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize(
    "change", [pytest.param(reverted, marks=MACHINE), *nightly(rebooted, saved_and_restored, managed_saved)]
)
def test_domains_that_change_in_a_pass_can_still_be_released(
    herd: Herd, change: Callable[[RunningGuest], None]
) -> None:
    victims = herd.guests[: len(INSTANTS)]
    for victim in victims if change is reverted else ():
        victim.domain.snapshotCreateXML("<domainsnapshot><name>before</name></domainsnapshot>")
    result = herd.run(faults={instant: partial(change, victim) for instant, victim in zip(INSTANTS, victims)})
    for victim in victims:
        victim.refresh()
        if change is rebooted:
            victim.wait_booted(faulty.HANG_S)
        elif herd.resource == "memory":
            victim.report()
    assert {failure.code for failure in result.outcome.failures} <= {"gone"}, result.outcome.failures
    herd.assert_unharmed()
    herd.assert_served(result, victims)


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("herd", ["memory"], indirect=True)
def test_a_guest_that_reboots_as_it_gets_its_memory_back_is_asked_until_it_says_so(herd: Herd) -> None:
    """Its driver has nothing to do when it starts, and says nothing: QEMU goes on with the size from before."""
    herd.run()
    victims = [guest for guest in herd.guests if guest.balloon_kib() < MEMORY_KIB][:2]
    herd.run(release=True, faults={"change": lambda: [victim.domain.reset() for victim in victims]})
    for victim in victims:
        victim.wait_booted(faulty.HANG_S)
        assert victim.balloon_kib() < MEMORY_KIB - victim.report().total_kib // 4, "QEMU knows: there is nothing to see"
    herd.release()
    assert [victim.balloon_kib() for victim in victims] == [MEMORY_KIB, MEMORY_KIB]


@MACHINE
def test_a_domain_whose_job_is_held_is_skipped(herd: Herd) -> None:
    victims: list[RunningGuest] = []
    with contextlib.ExitStack() as dumps:

        def hold(victim: RunningGuest) -> None:
            dumps.enter_context(dumping(herd, victim))
            victims.append(victim)

        result = herd.run(faults={i: partial(hold, victim) for i, victim in zip(INSTANTS, herd.guests)})
        assert all(victim.domain.jobInfo()[0] for victim in victims), "the pass ended while the dumps went on"
        # With most pins held there may be none to change.
        assert len(victims) == len(INSTANTS) or (herd.resource == "vcpu" and not result.outcome.moves)
    assert {failure.code for failure in result.outcome.failures} <= {"busy", "hung"}, result.outcome.failures
    herd.assert_unharmed()
    herd.assert_served(result, victims)


# ---------------------------------------------------------------- passes that die


@pytest.mark.parametrize(
    "instant",
    [
        *nightly("observe", "statistics"),
        pytest.param("apply", marks=[MACHINE, pytest.mark.nightly]),
        pytest.param("change", marks=MACHINE),
    ],
)
def test_a_pass_that_is_killed_leaves_what_released_restores(herd: Herd, instant: str) -> None:
    status, _output = herd.child(instant=instant, number=signal.SIGKILL).end()
    assert status == -signal.SIGKILL
    herd.assert_unharmed()


@pytest.mark.parametrize("herd", ["memory"], indirect=True)
def test_memory_that_was_taken_when_a_pass_died_is_found_free_by_the_next(herd: Herd) -> None:
    hog = herd.guests[0]
    hog.hold(115)
    hog.wait_held()
    herd.child(instant="change", number=signal.SIGKILL).end()
    for _turn in range(30):
        result = herd.run()
        if not result.outcome.moves and not any(skip.code == "settling" for skip in result.skips):
            break
    assert result.plan.before.starved == 0
    assert not [move for move in result.plan.moves if isinstance(move, BalloonMove) and move.gives]
    hog.hold(0)
    hog.wait_held()


# ---------------------------------------------------------------- refusals, and a host that is odd


def test_libvirt_itself_refuses_a_write_over_a_read_only_connection(
    herd: Herd, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(passes.Conduct, "read_only", True)
        result = herd.run()
    assert result.plan.moves and not result.outcome.moves
    assert {failure.code for failure in result.outcome.failures} == {"denied"}
    assert result.failed and "libvirt refuses the change" in result.failed
    herd.assert_unharmed()


@pytest.mark.parametrize("step_s", [-3600, *nightly(3600)])
def test_a_step_of_the_clock_is_survived(herd: Herd, monkeypatch: pytest.MonkeyPatch, step_s: float) -> None:
    """The clock steps for us alone: setting the machine's own would harm others."""
    clock, step = time.time, {"s": 0.0}
    with monkeypatch.context() as patched, breaking({"statistics": lambda: step.update(s=step_s)}):
        patched.setattr(time, "time", lambda: clock() + step["s"])
        result = herd.run()
    assert result.failed is None, result.failed
    herd.assert_unharmed()


@pytest.mark.nightly
@pytest.mark.parametrize("herd", ["vcpu"], indirect=True)
def test_a_vcpu_that_is_plugged_between_observe_and_apply_waits_for_the_next_pass(herd: Herd) -> None:
    guest = pinned_guest("plug", max_vcpus=2)
    (plugged,) = herd.lab.start(guest)
    try:
        result = herd.run(faults={"apply": lambda: plugged.domain.setVcpus(2)})
        assert result.failed is None and not result.outcome.failures, result.outcome
        herd.assert_served(result)
        assert set(plugged.threads()) == {0, 1}
        assert {vcpu.id for d in herd.run().snapshot.domains if d.name == guest.name for vcpu in d.vcpus} == {0, 1}
        assert herd.run(release=True).failed is None
        assert plugged.affinity(0) == HOME
    finally:
        herd.lab.stop([guest.name])


FULL = (
    "mkdir -p {where}; mount -t tmpfs -o size=4k,{more} tmpfs {where};"
    " head -c 1M /dev/zero > {where}/fill 2> /dev/null; "
)


@pytest.mark.nightly
@pytest.mark.parametrize(("more", "served"), [("nr_inodes=9", True), ("nr_inodes=2", False)])
def test_with_run_full_the_lock_holds_or_nothing_is_done(herd: Herd, more: str, served: bool) -> None:
    """Full for what we write; without room for the lock's text, or for the lock itself."""
    script = FULL.format(more=more, where=lock.SYSTEM_DIRECTORY) + 'exec "$@"'
    child = herd.child(inside=lambda command: ["unshare", "--mount", "sh", "-c", script, "sh", *command])
    status, output = child.end()
    assert (status == 0 and "moved" in output) == served, output
    if not served:
        assert "failed: the host's lock /run/kvmsched/lock can't be opened (No space left on device)" in output
    herd.assert_unharmed()
