# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Replays: the same decisions come out of a record, a twin that makes no move is the host, and moves have effects."""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kvmsched import config, model
from kvmsched.app import cli, plot, record, recorder, replay, traces
from kvmsched.app.bundle import Decided
from kvmsched.app.record import Context, Entry, Past
from kvmsched.app.replay import RECORDED, UNTOUCHED, Job, Passes, Result, Source, play
from kvmsched.config import load_daemon
from kvmsched.model import Balloon, Snapshot
from kvmsched.policy.memory import MemoryHistory
from kvmsched.policy.vcpu import VcpuHistory
from kvmsched.twin import cpu
from kvmsched.twin.errors import Errors
from kvmsched.twin.host import Twin
from kvmsched.twin.memory import Squeezed, resized
from memory_worlds import BESIDE_WASTE, MIB, Machine, World, balloon, read_anew, uuid_of
from vcpu_worlds import FakeHost, Guest, topology

REPOSITORY = Path(__file__).resolve().parents[2]
PERIOD_S = 5.0
PLACE = {"vcpu": {"floating": "place", "hold": 1, "half_life": 0}}
EAGER = {"memory": {"reclaim": "eager"}}
DOMAINS = ["g0", "g1"]


def rounded(now: Snapshot) -> Snapshot:
    """As the edge rounds counters of time."""
    domains = []
    for domain in now.domains:
        vcpus = tuple(
            replace(v, time_ns=(v.time_ns or 0) // 1000 * 1000, delay_ns=(v.delay_ns or 0) // 1000 * 1000)
            for v in domain.vcpus
        )
        domains.append(replace(domain, vcpus=vcpus))
    busy_ns = {pcpu: ns // 1000 * 1000 for pcpu, ns in now.host.busy_ns.items()}
    stamps = {"monotonic_s": round(now.monotonic_s, 6), "wall_s": round(now.wall_s, 6)}
    return replace(now, domains=tuple(domains), host=replace(now.host, busy_ns=busy_ns), **stamps)


class Daemon:
    """Makes passes over a made-up host, and records them as the daemon does: see daemon.py."""

    def __init__(self, directory: Path, document: dict[str, Any], acts: bool = True) -> None:
        self._directory, self._acts = directory, acts
        self._document = document
        self._passes = Passes(load_daemon(document))
        self._file: Optional[recorder.File] = None
        self.start()

    def start(self) -> None:
        """Another process: what is remembered went through JSON, and nobody knows of the look before."""
        self.end()
        histories = (MemoryHistory, self._passes.memory[0]), (VcpuHistory, self._passes.vcpu[0])
        memory, vcpu = (model.from_json(cls, json.loads(json.dumps(model.to_json(h)))) for cls, h in histories)
        self._passes.memory, self._passes.vcpu = (memory, None), (vcpu, None)
        number = len(list(self._directory.iterdir()))
        self._file = recorder.File(str(self._directory / f"{number}{record.SUFFIX}"))

    def end(self) -> None:
        if self._file is not None:
            self._file.close()

    def reload(self, document: dict[str, Any]) -> None:
        self._document, self._passes.policy = document, load_daemon(document)

    def hear(self, uuid: str, when_s: float) -> None:
        """A reboot that libvirt tells of changes what is remembered, between two passes."""
        history, before = self._passes.memory
        self._passes.memory = history.rebooted(uuid, when_s), before

    def tick(self, now: Snapshot, memory: Callable[[Any, Any], Any], vcpu: Callable[[Any], None]) -> None:
        """Make both passes; *memory* returns the moves that it made."""
        now = rounded(now)
        pasts = {"memory": Past(*self._passes.memory), "vcpu": Past(*self._passes.vcpu)}
        plan, history = self._passes.decide_memory(now, None)
        pins = self._passes.decide_vcpu(now)
        given: Any = ()
        if self._acts:
            given = tuple(memory(plan, history))
            vcpu(pins)
        self._passes.made_memory(given)
        decided = {"memory": Decided(plan.moves, given), "vcpu": Decided(pins.moves, None if self._acts else ())}
        assert self._file
        context = Context(self._document, mode="act" if self._acts else "observe", acted=self._acts)
        learnt = {"memory": self._passes.memory[0], "vcpu": self._passes.vcpu[0]}
        self._file.add(Entry(now, context, pasts, decided, learnt))


def hogs() -> FakeHost:
    """Three that want all of a pCPU, and are pinned to the same of four."""
    guests = [Guest(f"g{n}", [0.9], [frozenset({0})], backlog=True) for n in range(3)]
    return FakeHost(topology(4), [*guests, Guest("idle", [0.05], [frozenset({2})])])


def day_of_vcpus(
    directory: Path, policy: Optional[dict[str, Any]] = None, acts: bool = True, passes: int = 30
) -> FakeHost:
    document = policy or PLACE
    directory.mkdir(exist_ok=True)
    host, daemon = hogs(), Daemon(directory, document, acts)
    for number in range(passes):
        host.run(PERIOD_S)
        daemon.tick(host.snapshot(), lambda _plan, _history: (), host.apply)
        if number == 8:
            daemon.start()
        if number == 16:
            host.guests[3].wants[0], host.guests[0].wants[0] = 0.9, 0.1
            daemon.reload({**document, "exclude": ["nobody"]})
    daemon.end()
    return host


def day_of_memory(directory: Path, document: dict[str, Any], acts: bool = True, passes: int = 40) -> World:
    """One guest that comes to need more than it has, beside one that has far too much."""
    directory.mkdir(exist_ok=True)
    needy = Machine("needy", 4096 * MIB, 1024 * MIB, used=lambda s: (500 if s < 60 else 1500) * MIB)
    rich = Machine("rich", 8192 * MIB, 8192 * MIB, used=lambda _s: 1000 * MIB)
    world = World([needy, rich], total=14 * 1024 * MIB)
    needy.used = lambda s: min(needy.actual - 50 * MIB, (500 if s < 60 else 1500) * MIB)
    daemon = Daemon(directory, document, acts)

    def carry_out(plan: Any, history: Any) -> list[Any]:
        from kvmsched.policy import memory

        seen = world.observe()
        taken = [m for m in plan.moves if not m.gives]
        world._ask(taken)
        policy = load_daemon(document).memory
        given = list(memory.fund(plan, policy, seen, world.observe(), history))
        world._ask(given)
        return [*taken, *given]

    for number in range(passes):
        world.run(PERIOD_S)
        if number in (10, 12):
            daemon.hear(uuid_of("needy"), world.now_s - 1.25)
        daemon.tick(world.observe(), carry_out, lambda _plan: None)
        if number == 20:
            daemon.start()
    daemon.end()
    return world


def played(directory: Path, *jobs: Job, **more: Any) -> list[Result]:
    return [play(Source((str(directory),), **more), job) for job in jobs]


class Days:
    """Records of made-up days, and what came of replaying them. Each is made once: nobody writes into them."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._results: dict[str, Result] = {}

    def vcpus(self, **how: Any) -> Path:
        return self._once(day_of_vcpus, how)

    def memory(self, **how: Any) -> Path:
        return self._once(day_of_memory, {"document": EAGER, **how})

    def _once(self, make: Callable[..., Any], how: dict[str, Any]) -> Path:
        path = self._root / "-".join([make.__name__, *(f"{name}={value}" for name, value in sorted(how.items()))])
        if not path.exists():
            make(path, **how)
        return path

    def played(self, directory: Path, *jobs: Job) -> list[Result]:
        return [self._played(directory, job) for job in jobs]

    def _played(self, directory: Path, job: Job) -> Result:
        key = f"{directory} {job}"
        if key not in self._results:
            (self._results[key],) = played(directory, job)
        return self._results[key]


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> Days:
    return Days(tmp_path_factory.mktemp("days"))


# ---------------------------------------------------------------- the same decisions


def test_decisions_about_vcpus_come_out_again_over_a_restart_and_a_reload(days: Days) -> None:
    (result,) = days.played(days.vcpus(), Job(RECORDED))
    checked = result.verified
    assert checked.passes == checked.same == 60 and checked.moves >= 2 and not checked.first
    assert result.figures.pin_moves == checked.moves and result.acted


def test_decisions_about_memory_come_out_again_over_a_restart(days: Days) -> None:
    (result,) = days.played(days.memory(), Job(RECORDED))
    checked = result.verified
    assert checked.passes == checked.same == 80 and result.figures.memory_moves > 1
    looks = list(record.read([str(days.memory())]))
    assert [number for number, look in enumerate(looks) if look.rebooted] == [10, 12], "told without a new frame"
    assert [number for number, look in enumerate(looks) if look.begins] == [0, 21]


def test_decisions_of_a_daemon_that_made_nothing_come_out_again(tmp_path: Path) -> None:
    """It remembers nothing of what it only planned; nor does the replay, or what is asked of an instant."""
    now, daemon = BESIDE_WASTE, Daemon(tmp_path, {}, acts=False)
    for _pass in range(12):
        daemon.tick(now, lambda _plan, _history: (), lambda _plan: None)
        now = read_anew(now)
    daemon.end()
    (result,) = played(tmp_path, Job(RECORDED))
    assert result.verified.same == result.verified.passes == 24 and result.verified.moves >= 20, result.verified
    seen = replay.instant([str(tmp_path)], now.wall_s)
    (db,) = [one for one in seen.domains if one.name == "db"] if seen else []
    assert db.target_kib is not None and db.actual_kib is not None and db.target_kib > db.actual_kib


def test_no_move_is_lost_where_looks_are_passed_over(days: Days) -> None:
    for path in (days.memory(), days.vcpus()):
        (whole,), (stepped,) = days.played(path, Job(RECORDED)), played(path, Job(RECORDED), step_s=60.0)
        assert stepped.figures.looks < whole.figures.looks / 4
        for kind in ("pin_moves", "memory_moves", "seconds"):
            assert getattr(stepped.figures, kind) == getattr(whole.figures, kind)
    told = [look.rebooted for look in replay._thinned(record.read([str(days.memory())]), 60.0)]
    assert len(told) < 10


def test_what_is_shorter_than_a_minute_has_a_worst_one_too(days: Days) -> None:
    (figures,) = (one.figures for one in played(days.vcpus(acts=False, passes=4), Job(RECORDED)))
    assert figures.seconds < 60 and figures.worst_minute_pct == pytest.approx(figures.unserved_pct, abs=0.01)


def test_a_process_that_is_killed_fails_its_replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel does where memory lacks: nobody waits for its answer for ever."""
    monkeypatch.setattr(replay, "play", lambda *_arguments: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(replay.ReplayError, match="was killed"):
        replay.play_all(Source((str(tmp_path),)), [Job(RECORDED), Job(UNTOUCHED), Job("a", {})])


def test_a_decision_that_differs_is_told_with_both_sides(days: Days, tmp_path: Path) -> None:
    path = tmp_path / f"0{record.SUFFIX}"
    looks = list(record.read([str(days.vcpus() / path.name)]))
    changed = [replace(look, decided={"vcpu": Decided()}) if look.decided["vcpu"].moves else look for look in looks]
    recorder.write_lines(str(path), record.lines_of(changed))
    (result,) = played(path, Job(RECORDED))
    assert result.verified.same < result.verified.passes
    assert "nothing was recorded, g" in result.verified.first and "comes out" in result.verified.first
    assert any("The first that does not: vcpu at" in line for line in replay.notes([result]))


def test_a_pass_that_failed_and_forgot_is_followed(tmp_path: Path) -> None:
    """The daemon begins anew then; so does the replay."""
    host = hogs()
    policy = load_daemon(PLACE)
    passes = Passes(policy)
    file = recorder.File(str(tmp_path / "r"))
    for number in range(6):
        host.run(PERIOD_S)
        now = rounded(host.snapshot())
        past = Past(*passes.vcpu)
        if number == 3:
            passes.forget("vcpu")
            decided = Decided(failed="a mistake", forgot=True)
        else:
            decided = Decided(passes.decide_vcpu(now).moves, ())
        file.add(Entry(now, Context(PLACE), {"vcpu": past}, {"vcpu": decided}))
    file.close()
    (result,) = played(tmp_path / "r", Job(RECORDED))
    assert result.verified.passes == result.verified.same == 5


# ---------------------------------------------------------------- the twin


def test_a_twin_that_makes_no_move_is_the_host(days: Days) -> None:
    """Exactly, so a policy that does nothing has the figures of what was recorded."""
    path = days.vcpus(acts=False)
    twin = Twin()
    looks = [look.snapshot for look in record.read([str(path)])]
    assert [twin.look(snapshot).snapshot for snapshot in looks] == looks
    leave = {"vcpu": {"floating": "leave", "max_moves": 0}}
    recorded, untouched, idle = days.played(path, Job(RECORDED), Job(UNTOUCHED), Job("idle", leave))
    assert recorded.figures == untouched.figures == idle.figures and not recorded.acted


def test_what_a_policy_would_do_serves_more(days: Days) -> None:
    untouched, place = days.played(days.vcpus(acts=False), Job(UNTOUCHED), Job("place", PLACE))
    assert untouched.figures.unserved_pct > 40
    assert place.figures.unserved_pct < 10 and 2 <= place.figures.pin_moves <= 8


def test_the_twin_foretells_about_what_the_policy_really_did(days: Days) -> None:
    """Recorded while a daemon looked on, and once more while it acted: the foretold and the real run agree."""
    (told,) = played(days.vcpus(acts=False, passes=16), Job("place", PLACE))
    (real,) = played(days.vcpus(passes=16), Job(RECORDED))
    assert told.figures.pin_moves == real.figures.pin_moves
    assert abs(told.figures.unserved_pct - real.figures.unserved_pct) < 5


def test_untouched_has_the_pins_and_sizes_of_before_any_kvmsched(tmp_path: Path) -> None:
    host = day_of_vcpus(tmp_path / "r", passes=10)
    daemon = Daemon(tmp_path / "r", PLACE)
    for _pass in range(10):
        host.run(PERIOD_S)
        daemon.tick(host.snapshot(), lambda _plan, _history: (), host.apply)
    daemon.end()
    recorded, untouched = played(tmp_path / "r" / f"2{record.SUFFIX}", Job(RECORDED), Job(UNTOUCHED))
    assert recorded.figures.unserved_pct < 5 and untouched.figures.unserved_pct > 40
    (line,) = [line for line in replay.notes([recorded]) if "A daemon acted" in line]
    assert "estimated" in line and "% of the CPU demand" in line


def test_a_pin_that_a_person_sets_is_followed_and_the_daemon_s_are_not(tmp_path: Path) -> None:
    host = hogs()
    twin = Twin()
    twin.look(host.snapshot())
    host.guests[3].pins[0] = frozenset({3})
    host.run(PERIOD_S)
    seen = twin.look(host.snapshot()).snapshot
    assert seen.domains[3].vcpus[0].pin == {3}
    passes = Passes(load_daemon(PLACE))
    for _pass in range(3):
        host.run(PERIOD_S)
        host.apply(passes.decide_vcpu(host.snapshot()))
    seen = twin.look(host.snapshot()).snapshot
    assert [domain.vcpus[0].pin for domain in seen.domains[:3]] == [frozenset({0})] * 3
    assert [domain.vcpus[0].pin for domain in host.snapshot().domains[:3]] != [frozenset({0})] * 3


def test_memory_that_a_policy_would_give_ends_the_starving(days: Days) -> None:
    untouched, eager = played(days.memory(acts=False), Job(UNTOUCHED), Job("eager", EAGER))
    assert untouched.figures.starved_s > 100 and eager.figures.starved_s < untouched.figures.starved_s / 2
    assert eager.figures.memory_moves >= 2 and eager.figures.returned_gib > 1
    # It wants 1000M more from one look to the next, and was squeezed before: by eager alone.
    assert (untouched.figures.killed, eager.figures.killed) == (0, 1)


def test_what_is_taken_too_far_kills_once_or_is_swapped() -> None:
    """The model of what goes wrong, with a take that no policy would make."""
    world = World([Machine("g0", 4096 * MIB, 4096 * MIB, used=lambda _s: 3000 * MIB, cache=500 * MIB)])
    for swaps in (False, True):
        twin, costs = Twin(), []
        for _look in range(8):
            world.run(PERIOD_S)
            seen = twin.look(_swapping(world.observe()) if swaps else world.observe())
            costs.append(seen.costs)
            (run,) = twin._runs.values()
            run.target_kib = 2000 * MIB
        assert sum(len(cost.killed) for cost in costs) == (0 if swaps else 1)
        read_kib = sum(cost.read_kib for cost in costs)
        assert read_kib == pytest.approx((500 + (1000 if swaps else 0)) * MIB, rel=0.05)
        (domain,) = seen.snapshot.domains
        assert domain.balloon and domain.balloon.usable_kib == 0


def _swapping(now: Snapshot) -> Snapshot:
    (domain,) = now.domains
    assert domain.balloon
    told = replace(domain.balloon, swap_out_kib=4, swap_in_kib=0, disk_caches_kib=500 * MIB)
    return replace(now, domains=(replace(domain, balloon=told),))


SIZES = st.integers(0, 4096)


@given(unused=SIZES, cache=SIZES, used=SIZES, less=SIZES)
def test_what_a_smaller_size_costs(unused: int, cache: int, used: int, less: int) -> None:
    """Unused memory first, then cache, then what is used; and nothing is made of nothing."""
    size = unused + cache + used
    told = balloon(size, unused=unused, usable=unused + cache, disk_caches_kib=cache * MIB)
    less = min(less, size)
    smaller, squeezed = resized(told, (size - less) * MIB)
    assert smaller.usable_kib == max(0, unused + cache - less) * MIB
    assert smaller.unused_kib is not None and min(unused, 10) * MIB <= smaller.unused_kib <= unused * MIB
    assert squeezed.cache_kib <= cache * MIB and squeezed.short_kib <= less * MIB
    gone_kib = unused * MIB - smaller.unused_kib
    assert gone_kib + squeezed.cache_kib + squeezed.short_kib == less * MIB
    larger, nothing = resized(told, (size + less) * MIB)
    assert nothing == Squeezed() and larger.usable_kib == (unused + cache + less) * MIB


def test_a_size_of_which_nothing_is_known_tells_nothing() -> None:
    told = Balloon(1000, 2000)
    assert resized(told, 500) == (Balloon(500, 2000), Squeezed())


ALONE = frozenset({0})


def waits_of(wants: list[float], place: frozenset[int] = ALONE, weights: Optional[list[float]] = None) -> list[float]:
    """What the model says that vCPUs of these wants wait, all in *place*."""
    keys = [(f"g{n}", 0) for n in range(len(wants))]
    weighed = dict(zip(keys, weights or [1.0] * len(keys)))
    foreign = dict.fromkeys(place, 0.0)
    nothing = cpu.Shares(dict.fromkeys(keys, 0.0), dict.fromkeys(keys, 0.0), foreign)
    window = cpu.Window(1.0, dict(zip(keys, wants)), weighed, dict.fromkeys(keys, place), foreign, nothing)
    return list(window.model(window.places).waits.values())


def test_who_wants_little_waits_little_beside_one_that_is_always_there() -> None:
    """A queue of random arrivals would have it wait nine times what it runs."""
    assert waits_of([1.0, 1.0]) == pytest.approx([0.5, 0.5], abs=0.01)
    assert waits_of([1.0, 1.0, 1.0]) == pytest.approx([2 / 3] * 3, abs=0.01)
    light, hog = waits_of([0.1, 0.9])
    assert 0 < light <= 0.1 and hog <= 0.1
    assert waits_of([0.3]) == [0.0] and waits_of([0.0, 0.5])[0] == 0
    assert waits_of([0.2, 0.2], frozenset({0, 1, 2, 3})) == pytest.approx([0, 0], abs=0.001)


@given(wants=st.lists(st.floats(0, 1), min_size=1, max_size=6), heavy=st.floats(0.01, 100))
def test_nobody_waits_longer_than_the_time_is(wants: list[float], heavy: float) -> None:
    weights = [heavy, *([1.0] * (len(wants) - 1))]
    assert all(0 <= wait <= 1 for wait in waits_of(wants, weights=weights))


# ---------------------------------------------------------------- its own error


def test_the_model_s_error_is_told_for_pins_and_for_balloons(days: Days) -> None:
    pins, memory = (days.played(path, Job(RECORDED))[0] for path in (days.vcpus(), days.memory()))
    assert pins.errors.cpu_cases > 2 and pins.errors.run_points is not None
    assert pins.errors.run_points < 15 < (pins.errors.run_points_before or 0), pins.errors
    assert memory.errors.memory_cases > 1 and memory.errors.usable_mib is not None
    assert memory.errors.usable_mib < (memory.errors.usable_mib_before or 0), memory.errors
    assert any("points of run" in line for line in replay.notes([pins]))
    assert any("MiB of usable memory" in line for line in replay.notes([memory]))


def test_a_model_that_knows_less_than_nobody_says_so() -> None:
    bad = Errors(3, 2.0, 9.0, 16.0, 12.0, 4, 33.0, 39.0)
    assert bad.worse == ("waiting",) and Errors().worse == ()
    told = replay._errors(bad)
    assert told[-1].startswith("Of waiting it foretells less than who says that nothing changes")
    assert len(replay._errors(replace(bad, wait_points=12.0))) == 2


def test_without_a_recorded_move_nobody_claims_to_know_the_error(days: Days) -> None:
    assert "is not known" in replay.notes(days.played(days.vcpus(acts=False), Job(RECORDED)))[-1]


# ---------------------------------------------------------------- traces


def test_a_folder_of_planetlab_s_is_a_host_to_be(tmp_path: Path) -> None:
    folder = tmp_path / "20110303"
    folder.mkdir()
    for number in range(6):
        (folder / f"vm{number}").write_text("\n".join(str((number * 17 + line) % 100) for line in range(12)) + "\n")
    few, many = (play(Source((str(folder),), pcpus=pcpus), Job(UNTOUCHED)).figures for pcpus in (1, 6))
    assert few.seconds == many.seconds == 11 * 300 and few.guests == 6
    assert few.unserved_pct > 30 and many.unserved_pct < 1


def test_a_directory_that_is_none_of_both_is_refused_by_its_name(tmp_path: Path) -> None:
    """A slip is told as what it may have been: a directory of records, or a trace."""
    (tmp_path / "empty/within").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("1\n2\n")
    code, out, err = run("replay", str(tmp_path / "notes"))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{tmp_path / 'notes'}: got no record (*.kvmrec.gz)" in err and "as a trace" in err and "--pcpus" in err
    code, out, err = run("replay", str(tmp_path / "empty"))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{tmp_path / 'empty'}: got a directory without records" in err


CSV = "time,guest,cpu,memory_used,cache,memory\n" + "".join(
    f"{60 * n},db,{150 if n < 20 else 20},{3000 + 50 * n},500,4096\n{60 * n},web,10,500,100,4096\n" for n in range(40)
)


def test_a_csv_has_memory_too(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(CSV)
    source = Source((str(tmp_path / "t.csv"),), pcpus=2, memory_kib=16 * 1024 * MIB)
    untouched, eager = (play(source, job) for job in (Job(UNTOUCHED), Job("eager", EAGER)))
    assert untouched.figures.starved_s > 600
    assert eager.figures.returned_gib > 1
    spreadsheet = "\ufeff" + CSV.replace("time,guest,cpu", "Time, Guest,CPU ").replace("\n", "\r\n")
    (tmp_path / "T.CSV").write_bytes(spreadsheet.encode())
    said = [run("replay", str(tmp_path / name), "--pcpus", "2", "--untouched") for name in ("t.csv", "T.CSV")]
    assert said[0][0] == 0 and said[0] == said[1]
    (first, *_rest) = traces.Trace(str(tmp_path / "t.csv"), 2, None).looks()
    assert [len(domain.vcpus) for domain in first.snapshot.domains] == [2, 1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "missing the column time"),
        ("time,guest\n", "missing the column cpu"),
        ("time,guest,cpu\n", "got no guest"),
        ("time,guest,cpu\n1,a,1\n", "one instant"),
        ("time,guest,cpu\n1,a,x\n", "line 2: cpu: got 'x'"),
        ("time,guest,cpu\n1,a,nan\n", "line 2: cpu: got 'nan'"),
        ("time,guest,cpu\n1,a,-1\n", "line 2: cpu: got '-1'"),
        ("time,guest,cpu\n1,,1\n", "line 2: got no guest"),
        ("time,guest,cpu\n,a,1\n", "line 2: time: got ''"),
        ("time,guest,cpu,cache\n1,a,1,\n2,a,1,y\n", "line 3: cache: got 'y'"),
        ("time,guest,cpu\n1\n", "line 2: got 1 field, expected 3"),
        ("time,guest,cpu\n1,a,1,5\n", "line 2: got 4 fields, expected 3"),
        ("time,guest,cpu\n1,a,0,5\n", "line 2: got 4 fields, expected 3"),
        ("time;guest;cpu\n1;a;1\n", "missing the column time: got time;guest;cpu, expected"),
        ("time,guest,cpu,CPU\n1,a,1,1\n", "got the column cpu twice"),
        ("time,guest,cpu\n1,a,1e11\n2,a,1\n", "a guest of 1000000000 vCPUs"),
        (f"time,guest,cpu\n1,{'a' * 200_000},1\n", "line 2: field larger than"),
        (f"{'a' * 200_000},guest,cpu\n", "line 1: field larger than"),
    ],
)
def test_what_is_no_trace_is_refused_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(record.RecordError, match=words) as caught:
        traces.Trace(str(tmp_path / "t.csv"), 1, None)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- the command


def run(*arguments: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    return cli.main(list(arguments), out, err), out.getvalue(), err.getvalue()


def test_the_command_shows_all_columns_in_one_table(days: Days, tmp_path: Path) -> None:
    path = str(days.vcpus(acts=False))
    for name, document in (("a.json", PLACE), ("b.json", {"vcpu": {"floating": "leave"}})):
        (tmp_path / name).write_text(json.dumps(document))
    policies = [word for name in ("a.json", "b.json") for word in ("--policy", str(tmp_path / name))]
    code, out, err = run("replay", path, "--untouched", *policies)
    assert (code, err) == (0, "")
    head, unserved, *_rest = out.splitlines()
    assert head.split() == ["as", "recorded", "untouched", "a.json", "b.json"]
    assert unserved.startswith("CPU demand unserved") and len(unserved.split("%")) == 5
    assert "Decided anew from the record: 60 of 60 passes come to the same" in out
    code, out, err = run("replay", path, "--json", "--step", "60")
    told = json.loads(out)
    assert (code, err) == (0, "") and list(told) == [RECORDED, "its own policy"]
    assert told[RECORDED]["figures"]["looks"] < 10 and told[RECORDED]["decided_anew"]["passes"] == 0


def test_each_policy_has_a_column_of_its_own_whatever_its_file_is_called(
    days: Days, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(days.vcpus(acts=False, passes=4))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old").mkdir()
    leave, place = {"vcpu": {"max_moves": 0}}, PLACE
    for name, document in (("p", leave), ("old/p", place), (RECORDED, place), (UNTOUCHED, place)):
        (tmp_path / name).write_text(json.dumps(document))
    policies = [word for name in ("p", "old/p", RECORDED, UNTOUCHED) for word in ("--policy", name)]
    code, out, err = run("replay", path, "--untouched", "--json", *policies)
    told = json.loads(out)
    assert (code, err) == (0, "")
    assert list(told) == [RECORDED, UNTOUCHED, "./p", "old/p", f"./{RECORDED}", f"./{UNTOUCHED}"]
    assert told[RECORDED]["decided_anew"]["passes"] and not told[f"./{RECORDED}"]["decided_anew"]["passes"]
    moved = {name: told[name]["figures"]["pin_moves"] for name in told}
    assert moved["./p"] == moved[UNTOUCHED] == 0 < moved["old/p"] == moved[f"./{RECORDED}"] == moved[f"./{UNTOUCHED}"]
    for words in (["p", "p"], ["p", "./p"]):
        code, out, err = run("replay", path, "--policy", words[0], "--policy", words[1])
        assert (code, out) == (2, "") and "--policy ./p twice" in err and err.count("\n") == 1


def test_records_of_one_replay_are_of_one_host_and_follow_each_other(days: Days, tmp_path: Path) -> None:
    (whole,) = days.vcpus(acts=False, passes=8).iterdir()
    looks = list(record.read([str(whole)]))
    moved = [replace(look, snapshot=replace(look.snapshot, wall_s=look.snapshot.wall_s + 1e6)) for look in looks]
    frames = {"early": looks, "late": moved, "other": [_of_another_host(look) for look in moved]}
    for name, found in frames.items():
        frame = replace(found[0].frame, snapshots=(found[0].snapshot,))
        recorder.write_lines(str(tmp_path / name), record.lines_of([replace(look, frame=frame) for look in found]))
    (tmp_path / "link").symlink_to(tmp_path / "early")
    early, late, other, link = (str(tmp_path / name) for name in ("early", "late", "other", "link"))
    assert run("replay", early, late)[0] == 0
    for paths, words in (
        ((early, link), f"got {link} twice"),
        ((late, early), f"got {early} after {late}, which ends after it begins"),
        ((early, other), "got looks at two hosts"),
        ((early, str(tmp_path / "nowhere")), "nowhere: No such file"),
    ):
        code, out, err = run("replay", *paths)
        assert (code, out, err.count("\n")) == (2, "", 1) and words in err, (paths, err)
    asked = ["explain", "g1", "--at", "03:41", "--record", late, "--record", early]
    code, out, err = run(*asked)
    assert (code, out, err.count("\n")) == (2, "", 1) and "which ends after it begins" in err


def _of_another_host(look: record.Look) -> record.Look:
    host = replace(look.snapshot.host, uuid="5" * 36, name="another")
    return replace(look, snapshot=replace(look.snapshot, host=host))


def test_a_picture_needs_matplotlib_and_says_so_at_once(
    days: Days, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(days.vcpus(acts=False, passes=4))
    monkeypatch.setattr(plot.importlib.util, "find_spec", lambda _name: None)
    code, out, err = run("replay", path, "--png", str(tmp_path / "p.png"))
    assert (code, out) == (2, "") and "python3-matplotlib" in err and err.count("\n") == 1


@pytest.mark.parametrize("option", ["--html", "--png"])
def test_what_can_t_be_written_is_told_before_a_long_replay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    day_of_vcpus(tmp_path / "r", acts=False, passes=4)
    monkeypatch.setattr(replay, "play_all", lambda *_all, **_more: pytest.fail("it replays first"))
    for place in ("no/p", f"r/0{record.SUFFIX}/p"):
        code, out, err = run("replay", str(tmp_path / "r"), option, str(tmp_path / place))
        assert (code, out) == (1, "") and "may be written to" in err and err.count("\n") == 1


def test_the_command_refuses_what_it_can_t_read(tmp_path: Path) -> None:
    (tmp_path / "bad").write_text('{"snapshots":[],"format":9}\n')
    for words in (["bad"], ["nowhere"], ["bad", "--policy", "nowhere"]):
        code, out, err = run("replay", *(str(tmp_path / word) if word[0] != "-" else word for word in words))
        assert code == 2 and out == "" and err.count("\n") == 1, (words, err)


def test_a_bundle_can_be_replayed_too(tmp_path: Path) -> None:
    host = hogs()
    snapshots = [model.to_json(snapshot) for snapshot in host.window(PERIOD_S)]
    (tmp_path / "bundle.json").write_text(json.dumps({"snapshots": snapshots, "policy": PLACE}, indent=1))
    code, out, _err = run("replay", str(tmp_path / "bundle.json"), "--untouched")
    assert code == 0 and "untouched" in out


def test_one_look_gives_the_same_plan_in_each_form_that_it_has(tmp_path: Path) -> None:
    """As a bundle, as a line of a record, compressed, and from standard input."""
    bundle = Path(__file__).with_name("bundle_1.json")
    assert run("record", str(tmp_path / "r.kvmrec.gz"), "--from", str(bundle)) == (0, "", "")
    (tmp_path / "line").write_bytes(gzip.decompress((tmp_path / "r.kvmrec.gz").read_bytes()))
    code, out, err = run("plan", str(bundle), "--json")
    plans = json.loads(out)
    assert (code, err) == (0, "") and len(plans["memory"]["moves"]) == 2 and len(plans["vcpu"]["moves"]) == 1
    for path in (tmp_path / "r.kvmrec.gz", tmp_path / "line"):
        assert run("plan", str(path), "--json") == (0, out, ""), path
        assert run("replay", str(path), "--json") == run("replay", str(bundle), "--json")
        assert piped(path.read_bytes(), "plan", "-", "--json") == (0, out)
    code, out, _err = run("explain", "apple-807", "--at", "2030-01-01 00:00", "--record", str(bundle))
    assert code == 0 and "2535M" in out


def test_a_whole_record_may_come_by_standard_input(days: Days) -> None:
    (path,) = days.vcpus(acts=False, passes=8).iterdir()
    code, out = piped(path.read_bytes(), "plan", "-", "vcpu", "--json")
    assert (code, out) == run("plan", str(path), "vcpu", "--json")[:2] and json.loads(out)["vcpu"]["moves"]
    assert piped(b"[]", "plan", "-")[0] == 2


def piped(given: bytes, *words: str) -> tuple[int, str]:
    """Run the command with that as its standard input."""
    main = "from kvmsched.app.cli import main; raise SystemExit(main())"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "plugins/module_utils")}
    done = subprocess.run(
        [sys.executable, "-c", main, *words], input=given, stdout=subprocess.PIPE, env=environment, check=False
    )
    return done.returncode, done.stdout.decode()


def test_a_plan_is_made_at_the_last_look_of_a_record(days: Days, tmp_path: Path) -> None:
    """The same one as was made then; and another one by another policy."""
    path = days.vcpus(acts=False, passes=8)
    last = list(record.read([str(path)]))[-1]
    code, out, err = run("plan", str(path / f"0{record.SUFFIX}"), "vcpu", "--json")
    told = json.loads(out)["vcpu"]["moves"]
    assert (code, err) == (0, "") and len(told) == len(last.decided["vcpu"].moves) > 0
    (tmp_path / "leave.json").write_text('{"vcpu": {"max_moves": 0}}')
    code, out, _err = run("plan", str(path), "--policy", str(tmp_path / "leave.json"), "--json")
    assert code == 0 and json.loads(out)["vcpu"]["moves"] == []


def test_records_are_copied_and_anonymised_by_the_command(days: Days, tmp_path: Path) -> None:
    code, out, err = run("record", "--from", str(days.vcpus()), "--anonymise", str(tmp_path / "all.kvmrec.gz"))
    assert (code, out, err) == (0, "", "")
    (result,) = played(tmp_path / "all.kvmrec.gz", Job(RECORDED))
    assert result.verified.passes == result.verified.same == 60, "the same decisions, by other names"
    assert {story.name for story in result.guests} == {"vm1", "vm2", "vm3", "vm4"}
    assert oct((tmp_path / "all.kvmrec.gz").stat().st_mode)[-3:] == "600"


# ---------------------------------------------------------------- explained in time


@pytest.fixture
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_a_guest_is_explained_at_a_time_that_is_over(days: Days, utc: None) -> None:
    path = str(days.vcpus())
    looks = list(record.read([path]))
    move = next((look.snapshot.wall_s, m) for look in looks for m in look.decided["vcpu"].moves if m.domain == "g1")
    after_s = move[0] + 2 * PERIOD_S
    for form in ("%H:%M:%S", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S"):
        at = time.strftime(form, time.gmtime(after_s))
        code, out, err = run("explain", "g1", "--at", at, "--record", path)
        assert (code, err) == (0, ""), err
        assert str(move[1]) in out and f"as it was at {time.strftime('%F', time.gmtime(after_s))}" in out
        assert "the record ends" not in out
    begin, end = (time.strftime("%F %T", time.gmtime(look.snapshot.wall_s)) for look in (looks[0], looks[-1]))
    for later_s, told in ((2 * PERIOD_S, False), (1000 * PERIOD_S, True)):
        late = time.strftime("%F %T", time.gmtime(looks[-1].snapshot.wall_s + later_s))
        code, out, _err = run("explain", "g1", "--at", late, "--record", path)
        assert code == 0 and (f"as it was at {end} (the record ends at {end})" in out) == told, out
    early = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(looks[0].snapshot.wall_s - 100))
    code, _out, err = run("explain", "g1", "--at", early, "--record", path)
    assert code == 1 and f"{path}: the record begins at {begin}\n" in err
    assert run("explain", "nobody", "--at", at, "--record", path)[0] == 1
    assert run("explain", "g1", "--at", "25:00", "--record", path)[0] == 2


def test_a_time_of_the_day_before_is_that_by_the_clock_of_that_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, utc: None
) -> None:
    """Between them the clocks were set back by an hour."""
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    document = json.loads(Path(__file__).with_name("bundle_1.json").read_text())
    asked = ["explain", "apple-807", "--at", "13:00"]
    for number, when in enumerate(("2026-10-24 12:59:00", "2026-10-24 13:30:00", "2026-10-25 12:00:00")):
        wall_s = time.mktime(time.strptime(when, "%Y-%m-%d %H:%M:%S"))
        late_s = wall_s - document["snapshots"][-1]["wall_s"]
        for snapshot in document["snapshots"]:
            snapshot["wall_s"] += late_s
        (tmp_path / str(number)).write_text(json.dumps(document))
        asked += ["--record", str(tmp_path / str(number))]
    code, out, err = run(*asked)
    assert (code, err) == (0, "") and "as it was at 2026-10-24 12:59:00" in out


def test_explain_in_time_needs_a_record(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text("{}")
    code, _out, err = run("explain", "g1", "--at", "03:41", "--policy", str(tmp_path / "p.json"))
    assert code == 2 and "daemon.record" in err


def test_a_record_s_size_and_place_are_checked() -> None:
    good = config.load({"daemon": {"record": "/var/lib/kvmsched/record", "record_size": "512M"}}).daemon
    assert (good.record, good.record_size_kib) == ("/var/lib/kvmsched/record", 512 * 1024)
    for part in (
        {"record": "relative"},
        {"record": "/"},
        {"record": "/a\n"},
        {"record_size": "1K"},
        {"record_size": "5"},
    ):
        with pytest.raises(config.ConfigError, match=r"daemon\.record"):
            config.load({"daemon": part})
