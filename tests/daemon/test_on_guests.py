# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The daemon on real guests: what it makes of them, and what it survives."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import libvirt
import pytest
from face import COMMAND, ok
from four import BUSY, CALM, HOG, LAZY, four, nothing_due
from lab import Guest, Lab, OwnLibvirtd, RunningGuest, TinyGuest, machine
from running import PATIENCE_S, REPOSITORY, Daemon, policy, running

STARVATION_MIB, WASTE_MIB = 60, 120
MEMORY = {"starvation": f"{STARVATION_MIB}M", "waste": f"{WASTE_MIB}M", "reclaim": "eager"}
# The kernel's own counters jitter by a few MiB from one second to the next.
NOISE_KIB = 8 * 1024
NAMES = (HOG, LAZY, BUSY, CALM)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        lab.start(*four())
        yield lab


@pytest.fixture
def guests(lab: Lab) -> list[RunningGuest]:
    """The four as they began: load, pins, size, no record, and nobody whom a failed test left."""
    lab.stop([name for name in lab.guests if name not in NAMES])
    guests = [lab[name] for name in NAMES]
    for guest, made in zip(guests, four()):
        guest.cpu(*made.cpu)
        guest.hold(made.hold_mib)
        guest.wait_held()
        lab.apply_pins(guest)
        guest.domain.setMemory((made.current_mib or made.memory_mib) * 1024)
        guest.wait_statistics(time.time(), PATIENCE_S)
        guest.domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, None, None, "urn:kvmsched:state/1")
    return guests


def stir(guest: RunningGuest) -> None:
    """Let a guest of 512 MiB hoard or starve, whichever it does not yet: a pass has something to do then."""
    mib = guest.balloon_kib() >> 10
    guest.hold(20 if mib >= 400 else mib - 110)
    guest.wait_held()


def assert_fed(guests: Sequence[RunningGuest]) -> None:
    for guest in guests:
        report = guest.report()
        assert guest.alive and guest.hog_kills == 0, f"{guest.name} starved to death"
        assert report.available_kib >= STARVATION_MIB * 1024 - NOISE_KIB, (guest.name, report)


def wait_fed(daemon: Daemon, guests: Sequence[RunningGuest]) -> None:
    """Wait until nobody starves; nobody may have died for it."""
    least_kib = STARVATION_MIB * 1024 - NOISE_KIB
    daemon.wait(lambda: all(guest.report().available_kib >= least_kib for guest in guests), "to feed all")
    assert_fed(guests)


def everything(guests: Sequence[RunningGuest]) -> list[tuple[int, frozenset[int], str]]:
    """All that a daemon could change."""
    return [(guest.balloon_kib(), guest.affinity(0), guest.domain.XMLDesc()) for guest in guests]


# ---------------------------------------------------------------- its work


# Each scene: what each guest holds (MiB), and the share of a pCPU that it wants.
SCENES = [
    {HOG: (180, 0.1), LAZY: (0, 0.1), BUSY: (60, 0.5), CALM: (60, 0.4)},
    {HOG: (320, 0.1), LAZY: (20, 0.7), BUSY: (100, 0.1), CALM: (60, 0.6)},
    {HOG: (100, 0.6), LAZY: (250, 0.1), BUSY: (40, 0.1), CALM: (120, 0.6)},
]
STEADY_S, SETTLED_S = 60, 25
COST_S = 40


def balanced(load: dict[str, Any]) -> bool:
    """Whether no pCPU is alone overloaded, in a pass's window: what else runs here may fill one for a moment."""
    return bool(load["max_pct"] <= load["bound_pct"] + 25)


@pytest.mark.quiet
def test_a_changing_load_stays_balanced_and_fed(
    lab: Lab, guests: list[RunningGuest], pytestconfig: pytest.Config
) -> None:
    """Each scene lasts a minute: in its last part the daemon rests, nobody starves, and no pCPU is alone overloaded."""
    with running(policy(memory=MEMORY)) as daemon:
        began_s, cpu_s = time.monotonic(), daemon.cpu_s()
        first_kib = 0
        for turn in range(max(1, round(pytestconfig.getoption("--minutes") * 60 / STEADY_S))):
            end_s = time.monotonic() + STEADY_S
            for name, (mib, share) in SCENES[turn % len(SCENES)].items():
                lab[name].cpu(share)
                lab[name].hold(mib, 10)
            daemon.wait_quiet(SETTLED_S, pins=True)
            time.sleep(max(0.0, end_s - time.monotonic()))
            wait_fed(daemon, guests)
            daemon.wait(lambda: balanced(daemon.status()["vcpu"]), "to balance the pCPUs")
            first_kib = first_kib or daemon.rss_kib()
        spent_s = time.monotonic() - began_s
        share_pct = 100 * (daemon.cpu_s() - cpu_s) / spent_s
        print(
            f"\n{spent_s:.0f} s, {len(daemon.moves)} moves; CPU {share_pct:.2f} % of a pCPU with {len(guests)} guests,"
            f" RSS {first_kib >> 10} -> {daemon.rss_kib() >> 10} MiB, {daemon.anonymous_kib() >> 10} of its own"
        )
        assert daemon.rss_kib() <= first_kib * 1.2, "it grows"
        assert not daemon.said("Traceback") and not daemon.said("failed")


@pytest.mark.quiet
def test_one_record_holds_what_both_passes_changed(guests: list[RunningGuest]) -> None:
    with running(policy({"period": 2}, memory=MEMORY, vcpu={"hold": 1})) as daemon:
        daemon.wait(lambda: len({line.split(":")[0] for line in daemon.moves if "vCPU" in line}), "to pin")
        daemon.wait_quiet(8, pins=True)
        both = [line.split()[0] for line in daemon.moves if "vCPU" in line]
        (guest,) = [guest for guest in guests if guest.name == both[0]]
        changed = {line.split(":")[0] for line in daemon.moves}
        xml = guest.domain.XMLDesc()
        assert ("kvmsched:pin" in xml) and (("kvmsched:memory" in xml) == (guest.name in changed)), xml


def test_observing_writes_nothing_and_says_what_it_would_do(lab: Lab, guests: list[RunningGuest]) -> None:
    quiet = lab.start(Guest("kvmsched-test-quiet", stats_period_s=0))
    stir(guests[0])
    before = everything([*guests, *quiet])
    with running(policy({"mode": "observe", "period": 1}, memory=MEMORY, vcpu={"hold": 1})) as daemon:
        daemon.wait(lambda: daemon.said(f"would move {HOG}: "), "to see who starves")
        daemon.wait_passes(4)
        assert not daemon.moves and daemon.status()["effective_mode"] == "observe"
        assert everything([*guests, *quiet]) == before
        assert len(daemon.said(f"would move {HOG}: ")) == 1, "said once"
        assert daemon.metric('kvmsched_planned_moves{resource="memory"}') > 0
        assert daemon.metric('kvmsched_passes_total{resource="memory",result="ok"}') >= 4
        daemon.reload(policy({"mode": "observe", "observe_sets_stats_period": True}, memory=MEMORY))
        daemon.wait(lambda: daemon.said("stats_period: 0 -> 5"), "to switch statistics on")
    assert everything(guests) == before[:-1]
    lab.stop([quiet[0].name])


def test_grow_only_gives_memory_takes_none_and_sets_no_pins(guests: list[RunningGuest]) -> None:
    hog = guests[0]
    sizes, pins = {g.name: g.balloon_kib() for g in guests}, [g.affinity(0) for g in guests]
    document = policy({"mode": "grow-only", "period": 1}, memory={**MEMORY, "reclaim": "eager"}, vcpu={"hold": 1})
    with running(document) as daemon:
        daemon.wait(lambda: hog.balloon_kib() > sizes[HOG], "to give memory")
        daemon.wait_said("would move", "to say what it would do besides")
        daemon.wait_passes(4)
        assert daemon.status()["effective_mode"] == "grow-only"
        assert daemon.metric('kvmsched_mode_effective{mode="grow-only"}') == 1
        assert all(guest.balloon_kib() >= sizes[guest.name] for guest in guests), daemon.moves
        assert [guest.affinity(0) for guest in guests] == pins
        wait_fed(daemon, guests)


def test_a_pause_is_kept_to_over_a_restart_and_room_is_made_after_it(guests: list[RunningGuest]) -> None:
    stir(guests[0])
    before = everything(guests)
    document = policy({"period": 1}, memory={**MEMORY, "reclaim": "eager"}, vcpu={"hold": 1})
    ok("pause", "1h")
    try:
        for _start in range(2):
            with running(document) as daemon:
                daemon.wait_passes(3)
                assert daemon.status()["effective_mode"] == "observe" and not daemon.moves
                assert daemon.metric("kvmsched_paused_until_seconds") > 0
                assert everything(guests) == before
        with running(document) as daemon:
            ok("resume")
            daemon.wait(lambda: daemon.moves, "to act again")
            daemon.wait_quiet(8)
            assert "asked for, kept until" in ok("room", "1T")
            daemon.wait(lambda: daemon.status()["room"], "to hear of the room")
            assert daemon.status()["room"]["kib"] == 1 << 30 and daemon.status()["room"]["lacks_kib"] > 0
            daemon.wait_passes(3)
            wait_fed(daemon, guests)
    finally:
        ok("resume")
        ok("room", "0")


# ---------------------------------------------------------------- its life


def test_a_bad_policy_is_refused_and_a_good_one_taken(guests: list[RunningGuest]) -> None:
    with running(policy({"mode": "observe"}, memory=MEMORY)) as daemon:
        before = daemon.status()["policy_hash"]
        for bad, line in [
            ("{", "policy.json: not valid JSON"),
            (policy(memory={"starvation": "5MB"}), "memory.starvation: got '5MB', allowed: "),
            (policy({"perod": 5}), "daemon.perod: unknown key"),
        ]:
            daemon.reload(bad)
            daemon.wait(
                lambda line=line: [said for said in daemon.said("the old one stays") if line in said], "to refuse"
            )
            daemon.wait(lambda line=line: line in (daemon.status()["policy_error"] or ""), "to tell of its policy")
            assert daemon.status()["policy_hash"] == before
            assert daemon.metric("kvmsched_policy_reload_ok") == 0
        stir(guests[0])
        daemon.reload(policy({"mode": "act", "period": 2}, memory=MEMORY))
        daemon.wait_said("read again, mode act", "to read its policy")
        assert daemon.metric("kvmsched_policy_reload_ok") == 1
        daemon.wait(lambda: daemon.moves, "to act")
        assert daemon.status()["policy_hash"] != before and daemon.count("RELOADING=1") == 4


def test_a_bad_policy_at_the_start_is_an_end(tmp_path: Path) -> None:
    with Daemon(policy(memory={"waste": "1MB"}), tmp_path) as daemon:
        assert daemon.process.wait(PATIENCE_S) == 2
        assert "READY=1" not in daemon.told
    assert daemon.said("policy refused: memory.waste: got '1MB', allowed: ")


def test_a_second_daemon_is_sent_away(guests: list[RunningGuest]) -> None:
    with running(policy({"mode": "observe"})), Daemon(policy({"mode": "observe"})) as second:
        assert second.process.wait(PATIENCE_S) == 1
    assert second.said("manages this host already")


def test_a_killed_daemon_goes_on_where_it_was(guests: list[RunningGuest], tmp_path: Path) -> None:
    stir(guests[0])
    document = policy({"period": 2}, memory=MEMORY)
    with running(document, directory=tmp_path) as daemon:
        daemon.wait(lambda: daemon.moves, "to act")
        daemon.wait(lambda: nothing_due(daemon.domains()), "to have nothing to move")
        daemon.wait_quiet(10)
        daemon.end(signal.SIGKILL)
    with running(document, directory=tmp_path) as daemon:
        daemon.wait_said("goes on with what an earlier daemon remembered of 4 domains", "to go on")
        daemon.wait_passes(3)
        assert not daemon.memory_moves, "a restart is no reason to move anything"
        wait_fed(daemon, guests)


def test_it_ends_soon_whatever_hangs(lab: Lab, guests: list[RunningGuest]) -> None:
    took_s = {}
    with running(policy()) as daemon:
        took_s["idle"] = daemon.end()
        assert daemon.process.returncode == 0 and daemon.lines[-1] == "ended" and daemon.count("STOPPING=1")
    with running(policy({"period": 1})) as daemon:
        guests[0].signal_qemu(signal.SIGSTOP)
        try:
            daemon.wait(lambda: daemon.said(f"{HOG}: memory skipped"), "to miss a guest")
            daemon.wait_passes()
            took_s["a hung guest"] = daemon.end()
        finally:
            guests[0].signal_qemu(signal.SIGCONT)
        assert daemon.process.returncode == 0 and daemon.lines[-1] == "ended"
    print("\n" + ", ".join(f"{name}: ended in {seconds:.2f} s" for name, seconds in took_s.items()))


def test_release_on_stop_leaves_nothing(lab: Lab, guests: list[RunningGuest]) -> None:
    for guest in guests:
        guest.hold(20)
        guest.wait_held()
    with running(policy({"on_stop": "release", "period": 2}, memory=MEMORY, vcpu={"hold": 1})) as daemon:
        daemon.wait(lambda: daemon.moves, "to act")
        daemon.wait_quiet(10)
        assert any("kvmsched:state" in guest.domain.XMLDesc() for guest in guests)
        # Whom the last policy skips was changed under the one before.
        daemon.reload(policy({"on_stop": "release", "period": 2}, memory=MEMORY, exclude=[guests[0].guest.name]))
        took_s = daemon.end()
        print(f"\nreleased in {took_s:.1f} s")
    assert daemon.process.returncode == 0
    for guest, made in zip(guests, four()):
        assert guest.affinity(0) == {0} and "kvmsched:state" not in guest.domain.XMLDesc(), daemon.lines
        assert guest.balloon_kib() == (made.current_mib or made.memory_mib) * 1024


@pytest.mark.nightly
def test_where_it_fails_the_rescue_gives_memory_back_and_takes_none(guests: list[RunningGuest]) -> None:
    with running(policy({"period": 2}, memory=MEMORY)) as daemon:
        daemon.wait(lambda: guests[1].balloon_kib() < 512 * 1024, "to take memory")
        daemon.wait_quiet(10)
        daemon.end(signal.SIGKILL)
    before = {guest.name: guest.balloon_kib() for guest in guests}
    pins = [guest.affinity(0) for guest in guests]
    assert before[LAZY] < 512 * 1024, daemon.lines
    command = [*COMMAND, "release", "--give-only", "--policy", "/dev/null"]
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY / "plugins/module_utils")}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    after = {guest.name: guest.balloon_kib() for guest in guests}
    assert after[LAZY] == 512 * 1024 and all(after[name] >= before[name] for name in before), done.stdout
    assert [guest.affinity(0) for guest in guests] == pins


# ---------------------------------------------------------------- its host


# Members of group libvirt may act, all others only look, as distributions have it; but without polkit.
SETTINGS = """
unix_sock_group = "libvirt"
unix_sock_rw_perms = "0770"
auth_unix_rw = "none"
auth_unix_ro = "none"
"""


@pytest.fixture(scope="module")
def own() -> Iterator[tuple[OwnLibvirtd, Lab]]:
    with OwnLibvirtd() as own:
        (own.directory / "etc/libvirtd.conf").write_text(SETTINGS, encoding="utf-8")
        own.restart()
        with Lab(own=own) as lab:
            lab.start(*(TinyGuest(f"kvmsched-test-own{n}", cpu=[0.2], pin={0: "0"}, persistent=True) for n in range(3)))
            yield own, lab


# In the namespace of that libvirtd no address is up.
APART = {"metrics_listen": "none", "period": 1}


@pytest.mark.nightly
def test_it_survives_libvirt_and_says_so_once(own: tuple[OwnLibvirtd, Lab]) -> None:
    libvirtd, lab = own
    with running(policy(APART), around=libvirtd.inside) as daemon:
        daemon.wait(lambda: len(daemon.domains()) == 3, "to see its guests")
        libvirtd.signal(signal.SIGKILL)
        daemon.wait(lambda: daemon.status()["trouble"], "to miss libvirt")
        time.sleep(5)
        libvirtd.restart()
        daemon.wait(lambda: daemon.said("passes go on"), "to find libvirt again")
        trouble = daemon.said("no pass: ")
        assert len(trouble) <= 2, "said once for each thing that is wrong (it went away, it is away)"
        daemon.wait_passes()
        assert daemon.count("WATCHDOG=1") > 5
        # Events come over a connection of its own, which is back too.
        daemon.reload(policy({**APART, "period": 3600}))
        lab.connection = machine.connect(lab.uri)
        wait_for_events(daemon, lab)
        lab.start(TinyGuest("kvmsched-test-late", cpu=[0.1]))
        daemon.wait(lambda: "kvmsched-test-late" in daemon.domains(), "to hear of a new guest")
        lab.stop(["kvmsched-test-late"])
        daemon.wait(lambda: "kvmsched-test-late" not in daemon.domains(), "to hear that it ended")


def wait_for_events(daemon: Daemon, lab: Lab) -> None:
    """Wait until an event brings a pass forward: the connection for events opens again by itself, some time later."""
    domain = lab.connection.lookupByName("kvmsched-test-own0")
    before_s = daemon.status()["memory_pass"]["when_s"]

    def heard() -> bool:
        domain.suspend()
        domain.resume()
        # The last pass of the period before may still come.
        return bool(daemon.status()["memory_pass"]["when_s"] > before_s + 5)

    daemon.wait(heard, "to hear of events again")


def test_it_ends_soon_while_libvirt_hangs(own: tuple[OwnLibvirtd, Lab]) -> None:
    libvirtd, _lab = own
    with running(policy(APART), around=libvirtd.inside) as daemon:
        libvirtd.signal(signal.SIGSTOP)
        try:
            time.sleep(3)
            took_s = daemon.end()
        finally:
            libvirtd.signal(signal.SIGCONT)
        print(f"\nlibvirt hangs: ended in {took_s:.2f} s")
        assert daemon.process.returncode == 0 and daemon.lines[-1] == "ended"


@contextlib.contextmanager
def unprivileged(libvirtd: OwnLibvirtd, group: str) -> Iterator[Daemon]:
    """The daemon as user nobody in *group*, without a capability, with directories as systemd makes them."""
    with tempfile.TemporaryDirectory(prefix="kvmsched-test-") as name:
        whole = Path(name)
        whole.chmod(0o755)
        for part in ("run", "state"):
            (whole / part).mkdir(mode=0o770)
            shutil.chown(whole / part, "nobody", group)
        user = (
            f"setpriv --reuid=nobody --regid={group} --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all"
        )
        script = f'mount --bind {whole}/run /run/kvmsched && exec {user} "$@"'

        def around(command: Sequence[str]) -> Sequence[str]:
            return libvirtd.inside(["unshare", "--mount", "sh", "-c", script, "sh", *command])

        Path("/run/kvmsched").mkdir(exist_ok=True)
        document = policy(APART, vcpu={"hold": 1, "cooldown": 0})
        with running(document, directory=whole, around=around, runtime=whole / "run") as daemon:
            yield daemon


@pytest.mark.quiet
def test_a_user_in_the_group_of_libvirt_is_enough_to_act(own: tuple[OwnLibvirtd, Lab]) -> None:
    libvirtd, lab = own
    crowd = [f"kvmsched-test-crowd{number}" for number in range(2)]
    lab.start(*(TinyGuest(name, cpu=[0.35], pin={0: "0"}) for name in crowd))
    with unprivileged(libvirtd, "libvirt") as daemon:
        daemon.wait(lambda: daemon.moves, "to act")
        assert daemon.status()["effective_mode"] == "act"
        assert all(d["vcpus"][0]["run_pct"] is not None for d in daemon.domains().values()), "it sees their threads"
        assert (daemon.directory / "state/state.json").exists()
        assert daemon.status()["memory_total_kib"] is not None
    assert {pcpu for guest in lab.guests.values() for pcpu in guest.affinity(0)} == {0, 1}
    lab.stop(crowd)


def test_without_the_right_to_write_it_observes(own: tuple[OwnLibvirtd, Lab]) -> None:
    libvirtd, lab = own
    before = [guest.affinity(0) for guest in lab.guests.values()]
    with unprivileged(libvirtd, "nogroup") as daemon:
        daemon.wait_passes(3)
        assert len(daemon.said("may only observe: ")) == 1, daemon.lines
        found = daemon.status()
        assert (found["mode"], found["effective_mode"]) == ("act", "observe") and "can't be reached" in found[
            "mode_reason"
        ]
        assert len(daemon.domains()) == 3 and not daemon.moves
    assert [guest.affinity(0) for guest in lab.guests.values()] == before


@pytest.mark.nightly
def test_what_twenty_guests_cost(lab: Lab, guests: list[RunningGuest]) -> None:
    names = [f"kvmsched-test-more{number}" for number in range(16)]
    lab.start(*(TinyGuest(name, cpu=[0.02]) for name in names))
    with running(policy(memory=MEMORY)) as daemon:
        daemon.wait_quiet(15)
        cpu_s, began_s = daemon.cpu_s(), time.monotonic()
        time.sleep(COST_S)
        share_pct = 100 * (daemon.cpu_s() - cpu_s) / (time.monotonic() - began_s)
        assert len(daemon.domains()) == 20
        print(
            f"\n20 guests at rest: CPU {share_pct:.2f} % of a pCPU at a period of 5 s,"
            f" RSS {daemon.rss_kib() >> 10} MiB, {daemon.anonymous_kib() >> 10} of its own"
        )
    lab.stop(names)


@pytest.mark.nightly
def test_a_storm_of_guests_is_no_storm_of_passes(lab: Lab, guests: list[RunningGuest]) -> None:
    with running(policy(memory=MEMORY)) as daemon:
        daemon.wait_quiet(10)
        before_kib, passes = daemon.rss_kib(), daemon.metric('kvmsched_passes_total{resource="memory",result="ok"}')
        cpu_s, began_s = daemon.cpu_s(), time.monotonic()
        for number in range(20):
            lab.start(TinyGuest(f"kvmsched-test-storm{number}", cpu=[0.05]))
            if number >= 3:
                lab.stop([f"kvmsched-test-storm{number - 3}"])
        lab.stop([f"kvmsched-test-storm{number}" for number in range(17, 20)])
        spent_s = time.monotonic() - began_s
        daemon.wait(lambda: not any("storm" in name for name in daemon.domains()), "to forget them")
        made = daemon.metric('kvmsched_passes_total{resource="memory",result="ok"}') - passes
        share_pct = 100 * (daemon.cpu_s() - cpu_s) / spent_s
        print(
            f"\n40 starts and stops in {spent_s:.0f} s: {made:.0f} passes, CPU {share_pct:.1f} % of a pCPU,"
            f" RSS {before_kib >> 10} -> {daemon.rss_kib() >> 10} MiB"
        )
        assert made <= spent_s * 1.1 + 5 and daemon.rss_kib() <= before_kib * 1.2
        assert daemon.metric('kvmsched_passes_total{resource="memory",result="failed"}') == 0
        assert not daemon.said("Traceback") and 'domain="kvmsched-test-storm' not in daemon.metrics()
    assert_fed(guests)
