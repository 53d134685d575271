# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts of the daemon that need no guest: what it keeps, when it looks, what it says, and its port."""

from __future__ import annotations

import contextlib
import errno
import gc
import gzip
import io
import json
import re
import socket
import subprocess
import threading
import time
import types
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import libvirt as binding
import memory_worlds
import pytest
from kvmsched import config, leases, lock, passes, units
from kvmsched.app import daemon, daemon_connection, journal, metrics, publish, saved_state, status, status_text
from kvmsched.app import schedule as schedules
from kvmsched.app.journal import Fact, Journal
from kvmsched.app.schedule import Schedule
from kvmsched.baseline import OWNER_URI
from kvmsched.hypervisor import THREAD, Unavailable, events
from kvmsched.model import Failure, Outcome, Skip, Snapshot, Unmet
from kvmsched.passes import Result, Tick
from kvmsched.policy import memory, vcpu
from kvmsched.policy.memory.history import DomainHistory, MemoryHistory
from kvmsched.policy.vcpu.history import PlannedPin, Smoothed, VcpuHistory
from vcpu_worlds import FakeHost, Guest, cpus, topology

# A bound on waiting: no answer takes that long.
PATIENCE_S = 120

MEMORY = MemoryHistory("soft", {"u1": DomainHistory(5, 1024, used_kib=7, moved_s=3.5, direction=-1, grew_kib=-9)})
PAST = PlannedPin(frozenset({0}), frozenset({1, 2}), 4.5, 3)
VCPU = VcpuHistory(4, 5.0, 0.5, 1, {"u1/1/0": Smoothed(0.25, 0.1)}, {3: Smoothed(0.5)}, {"u1/1/0": PAST}, {"u1": 2}, {})

# ---------------------------------------------------------------- what is kept over a restart


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    saved_state.save(MEMORY, VCPU)
    return tmp_path / "state/state.json"


def test_what_was_learnt_comes_back(kept: Path) -> None:
    back = saved_state.load()
    assert back is not None and (back.memory, back.vcpu) == (MEMORY, VCPU)
    assert kept.stat().st_mode & 0o777 == 0o600 and kept.parent.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in kept.parent.iterdir()] == ["state.json"], "no half-written file is left"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"boot_id": "another"}, "booted since"),
        ({"saved_s": 1e9 - 601}, "old, more than 600 s"),
        ({"saved_s": 1e12}, "booted since"),
        ({"format": 2}, "another format"),
        ({"memory": {"level": 5}}, "level"),
        ({"more": 1}, "more"),
        ({"memory": {"domains": {"u1": {"last_update_s": 10**30, "actual_kib": 1}}}}, "counted"),
        ({"memory": {"domains": {"u1": {"last_update_s": 1, "actual_kib": -1}}}}, "actual_kib: got -1"),
        ({"vcpu": {"loads": {"u1/1/0": {"mean": 0.5, "variance": -1e-9}}}}, "variance: got -1e-09"),
        ({"vcpu": {"foreign": {"1" * 5000: {"mean": 0.5}}}}, "a key"),
    ],
)
def test_what_is_of_no_use_is_dropped_with_a_reason(
    kept: Path, change: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whether this host was booted just now must not matter.
    monkeypatch.setattr(saved_state, "boottime_s", lambda: 1e9)
    kept.write_text(json.dumps({**json.loads(kept.read_text()), **change}))
    with pytest.raises(ValueError, match=why) as caught:
        saved_state.load()
    assert len(str(caught.value)) < 400


DEEP = '{"format": 1, "boot_id": ' + "[" * 10**5


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"format": NaN}', "\x00" * 100, DEEP, '{"format": 1, "saved_s": 1e999}']
)
def test_a_damaged_state_is_dropped(kept: Path, text: str) -> None:
    kept.write_text(text)
    with pytest.raises(ValueError, match=r"."):
        saved_state.load()


def test_no_state_is_no_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    assert saved_state.load() is None


# ---------------------------------------------------------------- when


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr(schedules.time, "monotonic", lambda: self.now_s)

    def next(self, schedule: Schedule) -> tuple[float, tuple[str, ...]]:
        """Go to when somebody is due; who it is, and how long that took."""
        waited_s = max(0.0, schedule.wait_s())
        self.now_s += waited_s + 0.001
        return round(waited_s, 1), schedule.turns()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def schedule(**settings: float) -> Schedule:
    return Schedule(config.load({"daemon": settings}))


BOTH = ("memory", "vcpu")


def test_one_look_serves_both_where_their_periods_coincide(clock: Clock) -> None:
    whole = schedule(period=5)
    assert [clock.next(whole) for _turn in range(3)] == [(0.0, BOTH), (5.0, BOTH), (5.0, BOTH)]


def test_each_has_its_own_period(clock: Clock) -> None:
    whole = schedule(memory_period=2, vcpu_period=6)
    turns = [clock.next(whole)[1] for _turn in range(7)]
    assert turns == [BOTH, ("memory",), ("memory",), BOTH, ("memory",), ("memory",), BOTH]


def test_no_window_of_load_is_shorter_than_the_interval(clock: Clock) -> None:
    whole = schedule(period=1)
    assert [clock.next(whole) for _turn in range(4)] == [
        (0.0, BOTH),
        (1.0, ("memory",)),
        (1.0, BOTH),
        (1.0, ("memory",)),
    ]


def test_an_event_brings_a_pass_forward_but_not_too_close_to_the_last(clock: Clock) -> None:
    whole = schedule(period=60)
    clock.next(whole)
    clock.now_s += 10
    for _event in range(50):
        whole.hurry(BOTH, "u1")
    assert clock.next(whole) == (0.5, BOTH), "a storm of events is one look"
    whole.hurry(BOTH, "u1")
    assert clock.next(whole) == (1.0, ("memory",)), "what changes fast must not be looked at all the time"
    assert clock.next(whole) == (1.0, ("vcpu",)), "load over less than the interval says little"
    assert clock.next(whole)[0] > 50, "back to the period"


def test_a_domain_that_shouts_all_the_time_brings_few_passes_forward(clock: Clock) -> None:
    """Its root can write the balloon's register once a second; others are heard as before."""
    whole, passes_made = schedule(period=5), 0
    clock.next(whole)
    for _tenth in range(6000):
        clock.now_s += 0.1
        whole.hurry(("memory",), "shouting")
        passes_made += "memory" in whole.turns()
    # 600 s: 120 by the clock, 6 at once and one in 20 s more.
    assert 120 <= passes_made <= 120 + 6 + 30
    clock.now_s = clock.now_s + whole.wait_s() + 0.001
    whole.turns()
    clock.now_s += 2
    whole.hurry(BOTH, "another")
    assert clock.next(whole)[0] == 0.5


def test_who_was_silent_for_long_is_forgotten(clock: Clock) -> None:
    whole = schedule(period=5)
    for number in range(1000):
        clock.now_s += 10
        whole.turns()
        whole.hurry(BOTH, f"u{number}")
    assert len(whole._left) < 20


def test_after_a_failure_nobody_comes_early(clock: Clock) -> None:
    whole = schedule(period=5)
    clock.next(whole)
    whole.put_off(30)
    assert clock.next(whole) == (30.0, BOTH)


def test_a_shorter_period_holds_at_once(clock: Clock) -> None:
    whole = schedule(period=3600)
    clock.next(whole)
    whole.adopt(config.load({"daemon": {"period": 5}}))
    assert clock.next(whole) == (5.0, BOTH)


def test_the_daemon_is_calmer_than_a_single_pass_unless_told_otherwise() -> None:
    assert config.load_daemon({}).vcpu.hold > config.load({}).vcpu.hold
    told = config.load_daemon({"vcpu": {"hold": 1, "half_life": 0}}).vcpu
    assert (told.hold, told.half_life_s, told.cooldown_s) == (1, 0, config.DAEMON_VCPU["cooldown"])


# ---------------------------------------------------------------- what is said


def test_what_stays_true_is_said_when_it_begins_and_when_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    log = Journal(out)
    now_s = [0.0]
    monkeypatch.setattr(journal.time, "monotonic", lambda: now_s[0])
    for age_s, code, said in [(0, "busy", 1), (5, "busy", 1), (10, "stale", 2), (15, "busy", 3)]:
        now_s[0] = age_s
        log.facts({"skip u1": Fact(code, f"it is {code} for {age_s} s")})
        assert len(out.getvalue().splitlines()) == said
    now_s[0] = 1000
    log.facts({})
    log.facts({"skip u1": Fact("busy", "again, long after")})
    assert len(out.getvalue().splitlines()) == 4


def test_a_line_that_nobody_can_read_any_more_costs_nothing() -> None:
    """Its terminal is gone, or the disk behind it is full."""

    class Gone(io.StringIO):
        def flush(self) -> None:
            raise OSError(errno.EIO, "Input/output error")

    Journal(Gone()).say("a pass was made")


def test_what_one_guest_makes_true_is_said_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    log = Journal(out)
    now_s = [0.0]
    monkeypatch.setattr(journal.time, "monotonic", lambda: now_s[0])
    for second in range(600):
        now_s[0] = second
        log.facts({"skip u1": Fact(f"code {second % 3}", f"{second}"), "skip u2": Fact("busy", "u2")}, journal.PAUSE_S)
    lines = out.getvalue().splitlines()
    assert lines.count("u2") == 1 and len(lines) - 1 == 600 / journal.PAUSE_S
    log.facts({"skip u1": Fact("last", "last")}, journal.PAUSE_S)
    assert "last" not in out.getvalue()
    now_s[0] += journal.PAUSE_S
    log.facts({"skip u1": Fact("last", "last")}, journal.PAUSE_S)
    assert out.getvalue().endswith("last\n"), "what stays true is said at last"


def test_of_a_thousand_odd_guests_a_pass_says_fifty_lines() -> None:
    out = io.StringIO()
    log = Journal(out)
    odd = {f"skip memory {n}": Fact("stale", f"vm{n} is stale") for n in range(1000)}
    log.facts({**odd, "failure": Fact("denied", "vm7 failed", journal.WARNING)}, journal.PAUSE_S)
    lines = out.getvalue().splitlines()
    assert len(lines) == 51 and lines[0] == "vm7 failed" and lines[-1].startswith("and 951 more ")
    log.facts(odd, journal.PAUSE_S)
    assert len(out.getvalue().splitlines()) == 51
    log.facts(journal.of_warnings("vcpu", [f"vm{chr(97 + n)}x: odd" for n in range(26)] * 9), journal.PAUSE_S)
    log.facts(journal.of_warnings("vcpu", ["vmbx: odd", "vm1: odd", "vm2: odd"]), journal.PAUSE_S)
    assert len(out.getvalue().splitlines()) == 51 + 26 + 1


NASTY = "\x00\x1b[2J\x7f\x85\x9b\u2028\u202e"


@pytest.mark.parametrize("structured", [False, True])
def test_the_journal_is_told_nothing_that_does_more_than_stand_there(
    monkeypatch: pytest.MonkeyPatch, structured: bool
) -> None:
    sent: list[str] = []
    fake = types.SimpleNamespace(send=lambda message, **fields: sent.extend([message, *map(str, fields.values())]))
    monkeypatch.setattr(journal, "journal", fake)
    monkeypatch.setattr(journal, "_is_journal", lambda _out: structured)
    out = io.StringIO()
    Journal(out).say(f"vm{NASTY}: {'x' * 10**6}", domain=f"vm{NASTY}", reason="x" * 10**6)
    lines = sent if structured else out.getvalue().splitlines()
    assert lines and all(line.isprintable() and len(line) <= units.LONGEST_LINE for line in lines)


def test_no_name_does_more_than_stand_there_in_metrics(told: tuple[publish.Publisher, Path]) -> None:
    """Two names that differ there stay two series."""
    teller, _directory = told
    domains = [memory_worlds.domain(f"vm{char}", 1024, 4096) for char in NASTY]
    now = memory_worlds.snapshot(domains)
    plan, learnt = memory.decide((now,), config.MemoryPolicy())
    tell(teller, Tick(now, Result(now, plan, learnt, Outcome(), {})))
    text = teller.metrics.render().decode()
    assert all(line.isprintable() for line in text.split("\n"))
    assert len([line for line in text.splitlines() if line.startswith("kvmsched_domain_vcpus{")]) in (0, len(NASTY))
    assert text.count("kvmsched_domain_memory_actual_bytes{") == len(NASTY)


def test_the_same_trouble_with_other_numbers_is_no_news() -> None:
    out = io.StringIO()
    log = Journal(out)
    for seconds in (1, 2.5, 30):
        log.once("host", f"no answer within {seconds} s")
    log.once("host", "it is gone")
    assert out.getvalue().splitlines() == ["no answer within 1 s", "it is gone"]
    assert log.over("host") and not log.over("host")


def test_the_journal_gets_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    """journald is a fake here: there is none without systemd."""
    sent: list[tuple[str, dict[str, Any]]] = []
    fake = types.SimpleNamespace(send=lambda message, **fields: sent.append((message, fields)))
    monkeypatch.setattr(journal, "journal", fake)
    monkeypatch.setattr(journal, "_is_journal", lambda _out: True)
    log = Journal(io.StringIO())
    (move,) = a_memory_result().plan.moves
    fact = journal.of_move("memory", move, made=True)
    log.say(fact.message, fact.priority, **fact.fields)
    message, fields = sent[0]
    assert message == "hog: 1024M -> " + fields["KVMSCHED_AFTER"] + ": " + move.reason
    assert fields["KVMSCHED_DOMAIN"] == "hog" and fields["KVMSCHED_DOMAIN_UUID"] == move.uuid
    assert (fields["KVMSCHED_EVENT"], fields["KVMSCHED_KIND"], fields["PRIORITY"]) == ("move", "balloon", 6)
    assert all(isinstance(value, (str, int)) for value in fields.values())


def test_a_move_that_is_only_planned_is_said_once_for_each_sense() -> None:
    (move,) = a_memory_result().plan.moves
    first, later = (journal.of_move("memory", m, False) for m in (move, replace(move, after_kib=move.after_kib + 4096)))
    assert first.message.startswith("would move hog: ") and first.code == later.code
    assert journal.of_move("memory", replace(move, after_kib=1024), False).code != first.code


def test_states_that_end_by_themselves_are_not_said() -> None:
    result = replace(a_memory_result(), snapshot=with_skips("settling", "booting", "busy"))
    assert [fact.code for fact in journal.of_result("memory", result).values()] == ["busy"]


# ---------------------------------------------------------------- metrics


def a_memory_result() -> Any:
    """A pass that gave one starving guest memory."""
    now = memory_worlds.snapshot([memory_worlds.domain("hog", 1024, 4096, usable=50, unused=40)])
    plan, learnt = memory.decide(memory_worlds.pair(now), config.MemoryPolicy())
    timings_s = {"observe": 0.25, "decide": 0.5, "apply": 1.0}
    return Result(now, plan, learnt, Outcome(plan.moves), timings_s)


def with_skips(*codes: str) -> Snapshot:
    now: Snapshot = a_memory_result().snapshot
    return replace(now, skips=tuple(Skip(f"d{i}", f"u{i}", code, "why") for i, code in enumerate(codes)))


def a_vcpu_result() -> Any:
    samples = FakeHost(topology(2), [Guest("web", [0.5, 0.25], [cpus("0"), cpus("0-1")])]).window()
    plan, learnt = vcpu.decide(samples, config.VcpuPolicy())
    return Result(samples[-1], plan, learnt, Outcome(plan.moves), {"observe": 0.25})


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[publish.Publisher, Path]]:
    monkeypatch.setattr(lock, "SYSTEM_DIRECTORY", str(tmp_path))
    teller = publish.Publisher("qemu:///system", Journal(io.StringIO()))
    yield teller, tmp_path
    teller.close()


def tell(teller: publish.Publisher, *ticks: Tick, **about: Any) -> status.Status:
    for tick in ticks:
        teller.take(tick, None, mode="act")
    teller.tell(config.Policy(), **{"mode": "act", "effective_mode": "act", **about})
    found = status.read("qemu:///system")
    assert found is not None
    return found


def samples_of(text: str) -> dict[str, float]:
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _sep, value in lines}


def test_status_and_metrics_tell_what_a_tick_brought(told: tuple[publish.Publisher, Path]) -> None:
    teller, _directory = told
    result = a_memory_result()
    failed = replace(
        result, outcome=Outcome((), (Failure("hog", "u", "hung", "no answer"),)), failed="every change failed"
    )
    found = tell(
        teller,
        Tick(result.snapshot, result),
        Tick(result.snapshot, failed, failed={"vcpu": passes.Trouble("no such pCPU")}),
    )
    (hog,) = found.domains
    assert (hog.name, hog.usable_kib, hog.starvation_kib) == ("hog", 50 * 1024, 150 * 1024)
    assert hog.target_kib == result.plan.moves[0].after_kib and hog.moves[0].what.startswith("hog: 1024M -> ")
    assert found.memory_pass.when_s == result.snapshot.wall_s and found.memory_pass.failed == "every change failed"
    assert found.vcpu_pass.failed == "no such pCPU" and found.memory is not None and found.memory.starved == 1
    samples = samples_of(teller.metrics.render().decode())
    assert samples['kvmsched_moves_total{kind="give",resource="memory"}'] == 1
    assert samples['kvmsched_failures_total{reason="hung",resource="memory"}'] == 1
    assert samples['kvmsched_failures_total{reason="busy",resource="memory"}'] == 0, "also what never happened"
    assert samples['kvmsched_passes_total{resource="memory",result="ok"}'] == 1
    assert samples['kvmsched_passes_total{resource="memory",result="failed"}'] == 1
    assert samples['kvmsched_passes_total{resource="vcpu",result="failed"}'] == 1
    assert samples['kvmsched_pass_duration_seconds_sum{phase="apply",resource="memory"}'] == 2
    assert samples['kvmsched_domain_memory_usable_bytes{domain="hog"}'] == 50 * 2**20
    assert samples['kvmsched_domain_starved{domain="hog"}'] == samples["kvmsched_domains_starved"] == 1
    assert samples['kvmsched_last_success_timestamp_seconds{resource="memory"}'] == result.snapshot.wall_s
    assert samples['kvmsched_mode_effective{mode="act"}'] == 1


def test_a_guest_that_could_not_be_seen_is_told_with_the_reason(told: tuple[publish.Publisher, Path]) -> None:
    teller, _directory = told
    found = tell(teller, Tick(with_skips("hung", "gone")))
    hung, _hog = found.domains
    assert (hung.name, hung.state, hung.verdict, hung.memory_skip) == ("d0", "hung", "hung", "hung: why")
    text = "\n".join(status_text.story(hung, found))
    assert "d0 (u0): hung" in text and text.count("hung: why") == 2
    samples = samples_of(teller.metrics.render().decode())
    assert samples["kvmsched_domains"] == 2 and not [name for name in samples if '"d0"' in name]


def test_what_a_qemu_that_does_not_answer_has_is_not_known(told: tuple[publish.Publisher, Path]) -> None:
    """A pass charges it at its maximum; people and Prometheus are not told that it has that."""
    teller, _directory = told
    domain = memory_worlds.domain("hog", 4096, 4096)
    silent = replace(domain.balloon, last_update_s=0, usable_kib=None, unused_kib=None, rss_kib=None)
    now = memory_worlds.snapshot([replace(domain, busy="QEMU does not answer: it is stopped", balloon=silent)])
    plan, learnt = memory.decide((now,), config.MemoryPolicy())
    found = tell(teller, Tick(now, Result(now, plan, learnt, Outcome(), {})))
    assert "memory\n  busy: QEMU" in re.sub(" +busy", "  busy", "\n".join(status_text.story(found.domains[0], found)))
    assert found.domains[0].verdict == "unknown"
    assert b'kvmsched_domain_memory_actual_bytes{domain="hog"}' not in teller.metrics.render()


def test_no_load_is_told_before_it_was_measured(told: tuple[publish.Publisher, Path]) -> None:
    """A daemon's first look sees counters only: an imbalance of 0 would be a lie."""
    teller, _directory = told
    host = FakeHost(topology(2), [Guest("web", [0.5], [cpus("0")])])
    for window, known in ((host.window()[-1:], False), (host.window(), True)):
        plan, learnt = vcpu.decide(window, config.VcpuPolicy())
        found = tell(teller, Tick(window[-1], None, Result(window[-1], plan, learnt, Outcome(), {})))
        assert (found.vcpu is not None) == known and ("imbalance" in found.vcpu_pass.headline) == known
        for name in (b"imbalance_ratio", b"pcpu_load_max_ratio", b"pcpu_load_max_all_ratio"):
            assert (b"\nkvmsched_" + name + b" " in teller.metrics.render()) == known


def test_who_is_skipped_is_told_why_and_raises_no_alert(told: tuple[publish.Publisher, Path]) -> None:
    teller, _directory = told
    result = a_memory_result()
    teller.take(Tick(result.snapshot, result), None, mode="act")
    teller.tell(config.load({"exclude": ["h*"]}), mode="act", effective_mode="act")
    found = status.read("qemu:///system")
    assert found is not None and found.domains[0].verdict == "starved"
    assert "excluded: the policy's domains and exclude leave it out" in "\n".join(
        status_text.story(found.domains[0], found)
    )
    assert b"kvmsched_domain_starved{" not in teller.metrics.render()


def test_the_effective_mode_is_a_metric_of_its_own(told: tuple[publish.Publisher, Path]) -> None:
    teller, _directory = told
    tell(teller, effective_mode="observe", mode_reason="may only read", policy_error="a mistake")
    samples = samples_of(teller.metrics.render().decode())
    assert samples['kvmsched_mode_configured{mode="act"}'] == samples['kvmsched_mode_effective{mode="observe"}'] == 1
    assert samples['kvmsched_mode_effective{mode="act"}'] == samples["kvmsched_policy_reload_ok"] == 0


def test_prometheus_finds_nothing_to_say_against_the_metrics(told: tuple[publish.Publisher, Path]) -> None:
    teller, directory = told
    pins = a_vcpu_result()
    result = a_memory_result()
    plan = replace(result.plan, unmet=(Unmet("hog", result.snapshot.domains[0].uuid, 4096, "no more"),))
    skipped = replace(result, plan=plan, snapshot=with_skips("busy", "hung"))
    tell(teller, Tick(result.snapshot, skipped, pins))
    text = teller.metrics.render()
    promtool = Path(__file__).parents[2] / ".build/prometheus/usr/bin/promtool"
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
    assert samples_of(text.decode())['kvmsched_domain_memory_unmet_bytes{domain="hog"}'] == 4096 * 1024
    teller.open(config.DaemonPolicy(metrics_listen="none", metrics_textfile=str(directory / "kvmsched.prom")))
    tell(teller)
    assert b"kvmsched_domain_starved" in (directory / "kvmsched.prom").read_bytes()


def test_the_number_of_series_is_bounded(told: tuple[publish.Publisher, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    teller, _directory = told
    assert metrics.MOST_DOMAINS <= 2000
    monkeypatch.setattr(metrics, "MOST_DOMAINS", 100)
    few, many = (samples_of(rendered(teller, count)) for count in (10, 150))
    assert (len(many) - len(few)) / (100 - 10) <= 11
    assert many["kvmsched_domains_untold"] == 50


def rendered(teller: publish.Publisher, domains: int) -> str:
    now = memory_worlds.snapshot([memory_worlds.domain(f"d{number}", 1024) for number in range(domains)])
    tell(teller, Tick(now))
    return teller.metrics.render().decode()


def test_names_can_not_break_the_format(told: tuple[publish.Publisher, Path]) -> None:
    teller, _directory = told
    name = 'a"b\\c\nd{e="f"} 1'
    tell(teller, Tick(memory_worlds.snapshot([memory_worlds.domain(name, 1024)])))
    text = teller.metrics.render().decode()
    assert 'kvmsched_domain_memory_actual_bytes{domain="a\\"b\\\\c\\nd{e=\\"f\\"} 1"} ' in text


def test_nothing_is_told_of_a_daemon_that_ended(told: tuple[publish.Publisher, Path]) -> None:
    teller, directory = told
    tell(teller)
    assert (directory / "status.json").stat().st_mode & 0o777 == 0o640
    teller.close()
    assert not list(directory.iterdir()) and status.read("qemu:///system") is None


# ---------------------------------------------------------------- the port


@pytest.fixture
def port(told: tuple[publish.Publisher, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(metrics, "_LONGEST_S", 1.0)
    teller, _directory = told
    tell(teller, Tick(a_memory_result().snapshot, a_memory_result()))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number: int = free.getsockname()[1]
    teller.open(config.DaemonPolicy(metrics_listen=f"127.0.0.1:{number}"))
    yield number


def request(port: int, method: str = "GET", path: str = "/metrics") -> tuple[int, bytes]:
    asked = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    try:
        with urllib.request.urlopen(asked, timeout=PATIENCE_S) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def raw(port: int, sent: bytes) -> bytes:
    answer = b""
    # It may have hung up before all was sent.
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as client, contextlib.suppress(OSError):
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        while part := client.recv(65536):
            answer += part
    return answer


def test_the_port_answers_get_and_head_only(port: int) -> None:
    code, body = request(port)
    assert code == 200 and b"kvmsched_domains " in body
    assert request(port, "HEAD") == (200, b"")
    assert request(port, path="/etc/passwd")[0] == 404
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "get"):
        assert request(port, method)[0] >= 400, method
    # It may hang up before all of it was sent.
    assert b" 200 " not in raw(port, b"X" * 5000 + b" /metrics HTTP/1.1\r\n\r\n")


def test_it_is_packed_for_who_asks(port: int) -> None:
    for accept, packed in ((b"gzip", True), (b"deflate, gzip;q=0.5", True), (b"gzip;q=0", False), (b"br", False)):
        answer = raw(port, b"GET /metrics HTTP/1.1\r\nAccept-Encoding: " + accept + b"\r\n\r\n")
        head, _blank, body = answer.partition(b"\r\n\r\n")
        assert (b"Content-Encoding: gzip" in head) == packed, accept
        assert b"kvmsched_" in (gzip.decompress(body) if packed else body)


GARBAGE = [
    b"",
    b"\n",
    b"\x00" * 70000,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET /metrics\r\n\r\n",
    b"GET " + b"/" * 100000 + b" HTTP/1.1\r\n\r\n",
    b"GET /metrics HTTP/9.9\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\n" + b"a: b\r\n" * 5000 + b"\r\n",
    b"GET /metrics HTTP/1.1\r\nAccept: " + b"\xff\xfe" * 500 + b"\r\n\r\n",
    b"GET /..%2f..%2fetc/passwd HTTP/1.1\r\n\r\n",
    b"POST /metrics HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\nx",
]


def test_garbage_costs_nothing(port: int) -> None:
    for sent in GARBAGE:
        assert b"root:" not in raw(port, sent)
    assert request(port)[0] == 200


@pytest.mark.parametrize("line", [b"a: " + b"b" * 60000 + b"\r\n", b"a: b\r\n"])
def test_a_request_without_end_is_not_read_to_its_end(port: int, line: bytes) -> None:
    sent = b"GET /metrics HTTP/1.1\r\n" + line * (metrics._LONGEST_REQUEST // len(line) + 1)
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as client:
        with contextlib.suppress(OSError):  # it may have hung up before all was sent
            client.sendall(sent)
        assert client.recv(100).startswith(b"HTTP/1.0 431 ")


def test_who_is_slow_or_many_is_cut_off(port: int) -> None:
    threads = threading.active_count()
    slow = [socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) for _client in range(60)]
    assert request(port)[0] == 200
    assert threading.active_count() <= threads + 2 * metrics._MOST_CLIENTS
    for client in slow:
        client.close()


def test_beside_slow_clients_that_come_again_every_scrape_is_answered(port: int) -> None:
    """Sixteen local users send a byte now and then, and connect anew as soon as they are cut off."""
    over = threading.Event()

    def slow() -> None:
        while not over.is_set():
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as client,
            ):
                while not over.wait(0.02):
                    client.send(b"G")

    users = [threading.Thread(target=slow, daemon=True) for _user in range(16)]
    before = threading.active_count()
    for user in users:
        user.start()
    codes = [request(port)[0] for _scrape in range(50)]
    assert codes == [200] * 50
    assert threading.active_count() <= before + 16 + 2 * metrics._MOST_CLIENTS
    over.set()
    for user in users:
        user.join()


def test_one_rendering_serves_all_who_ask_between_two_passes(told: tuple[publish.Publisher, Path], port: int) -> None:
    teller, _directory = told
    bodies = {re.sub(rb".*_process_.*\n", b"", request(port)[1]) for _scrape in range(5)}
    assert len(bodies) == 1
    assert teller.metrics.render() is teller.metrics.render()


def test_a_port_that_is_taken_is_said_and_survived(port: int, tmp_path: Path) -> None:
    out = io.StringIO()
    other = publish.Publisher("qemu:///system", Journal(out))
    other.open(config.DaemonPolicy(metrics_listen=f"127.0.0.1:{port}"))
    assert f"no metrics at 127.0.0.1:{port}: Address already in use" in out.getvalue()


def test_a_textfile_of_another_name_leaves_none_behind(told: tuple[publish.Publisher, Path], tmp_path: Path) -> None:
    teller, _directory = told
    one, two = tmp_path / "one.prom", tmp_path / "two.prom"
    for file in (one, two, None):
        teller.open(config.DaemonPolicy(metrics_listen="none", metrics_textfile=str(file) if file else None))
        tell(teller)
        assert [path for path in (one, two) if path.exists()] == ([file] if file else [])


def test_who_hangs_is_told_also_while_nobody_does(told: tuple[publish.Publisher, Path], tmp_path: Path) -> None:
    """Else an alert could not see that it ended."""
    samples = samples_of(rendered(told[0], 1))
    for resource in ("memory", "vcpu"):
        for reason in ("busy", "hung"):
            assert samples[f'kvmsched_skipped_domains{{reason="{reason}",resource="{resource}"}}'] == 0


def test_a_port_that_is_free_again_is_taken(port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "path_for", lambda _uri: str(tmp_path / "other.json"))
    out = io.StringIO()
    late = publish.Publisher("qemu:///system", Journal(out))
    with socket.create_server(("127.0.0.1", 0)) as other:
        listen = f"127.0.0.1:{other.getsockname()[1]}"
        late.open(config.DaemonPolicy(metrics_listen=listen))
        for _tick in range(2):
            late.tell(config.Policy(), mode="act", effective_mode="act")
    late.tell(config.Policy(), mode="act", effective_mode="act")
    assert [line for line in out.getvalue().splitlines() if "metrics" in line] == [
        f"no metrics at {listen}: Address already in use",
        f"metrics at {listen}",
    ]
    assert request(int(listen.rpartition(":")[2]))[0] == 200
    late.close()


# ---------------------------------------------------------------- ticks, on libvirt's test driver


@pytest.fixture
def fresh_driver() -> Iterator[None]:
    """libvirt's test driver forgets what was done to it with its last connection, which a thread closes by and by.

    A failed pass is told by its exception, which keeps the connection alive in its frames, and these in a cycle.
    """
    yield
    gc.collect()
    for thread in threading.enumerate():
        if thread.name == THREAD:
            thread.join(120)


@pytest.fixture
def standing(fresh_driver: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[passes.Standing]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    standing = passes.Standing(passes.Conduct("test:///default", holder="a test"))
    yield standing
    close(standing)


def close(standing: passes.Standing) -> None:
    """The test driver's host lasts until its last connection is closed, which nobody waits for but a test."""
    standing.close()
    for thread in threading.enumerate():
        if thread.name == THREAD:
            thread.join(120)


def turns(**vcpu_settings: Any) -> tuple[Any, Any]:
    policy = config.load_daemon({"vcpu": vcpu_settings})
    return passes.Turn(policy.memory, MemoryHistory()), passes.Turn(policy.vcpu, VcpuHistory())


def test_one_look_serves_both_resources(standing: passes.Standing) -> None:
    tick = standing.tick(*turns())
    assert tick.memory is not None and tick.vcpu is not None and not tick.failed
    assert tick.memory.snapshot is tick.vcpu.snapshot is tick.snapshot
    assert tick.memory.timings_s["observe"] == tick.vcpu.timings_s["observe"]
    memory_turn, _vcpu_turn = turns()
    again = standing.tick(memory_turn, None)
    assert again.vcpu is None and not again.failed


def test_one_resource_that_fails_leaves_the_other_its_turn(standing: passes.Standing) -> None:
    tick = standing.tick(*turns(pcpus="99"))
    assert tick.memory is not None and tick.vcpu is None and "99" in tick.failed["vcpu"].reason


OPT_OUT = '<policy memory="off" vcpu="off"/>'


@pytest.fixture
def domain() -> Iterator[Any]:
    """The test driver's one domain, as another client sees it."""
    connection = binding.open("test:///default")
    domain = connection.lookupByName("test")
    yield domain
    connection.close()


def own(domain: Any, metadata: Optional[str]) -> None:
    """Write what the owner of a domain may write into it."""
    kind, key = binding.VIR_DOMAIN_METADATA_ELEMENT, "kvmsched" if metadata else None
    domain.setMetadata(kind, metadata, key, OWNER_URI, binding.VIR_DOMAIN_AFFECT_LIVE)


def owned(tick: Tick) -> bool:
    return bool(tick.snapshot.domains[0].owner.settings)


def test_while_it_is_quiet_domains_are_as_they_were(standing: passes.Standing, domain: Any) -> None:
    own(domain, OPT_OUT)
    assert owned(standing.tick(*turns(), changed=())), "the first time all is read"
    own(domain, None)
    assert owned(standing.tick(*turns(), changed=())), "nobody said that something happened"
    assert not owned(standing.tick(*turns()))


def test_it_is_not_quiet_for_ever(standing: passes.Standing, domain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "_ANEW_S", 0.0)
    own(domain, OPT_OUT)
    standing.tick(*turns())
    own(domain, None)
    assert not owned(standing.tick(*turns(), changed=()))


def test_nothing_is_changed_for_what_it_was(standing: passes.Standing, domain: Any) -> None:
    """A domain that its owner withdrew meanwhile, of which nobody told, is read anew before it would be changed."""
    none_yet = config.load_daemon({"memory": {"stats_period": 0}}).memory
    assert not standing.tick(passes.Turn(none_yet, MemoryHistory()), None).failed
    own(domain, OPT_OUT)
    tick = standing.tick(turns()[0], None, changed=())
    assert owned(tick) and tick.memory is not None
    assert not tick.memory.plan.moves and not tick.memory.outcome.moves and not tick.memory.outcome.failures
    own(domain, None)
    tick = standing.tick(turns()[0], None, changed=())
    assert owned(tick), "what is skipped need not be read"
    tick = standing.tick(turns()[0], None)
    assert tick.memory is not None and [move.kind for move in tick.memory.outcome.moves] == ["stats_period"]
    assert standing.tick(turns()[0], None, changed=()).snapshot.domains[0].record is not None, "what it wrote, it knows"


def test_a_pin_by_others_is_seen_though_nobody_told(standing: passes.Standing, domain: Any) -> None:
    standing.tick(None, None)
    domain.pinVcpu(0, (False, False, True))
    (seen,) = standing.tick(None, None, changed=()).snapshot.domains
    assert seen.vcpus[0].pin == seen.vcpus[0].affinity == {2}


def test_observing_may_switch_statistics_on_and_no_more(
    fresh_driver: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    for sets_periods, made in ((False, 0), (True, 1)):
        how = passes.Conduct("test:///default", check=True, sets_periods=sets_periods)
        standing = passes.Standing(how)
        tick = standing.tick(*turns())
        close(standing)
        assert tick.memory is not None
        assert [move.kind for move in tick.memory.outcome.moves] == ["stats_period"] * made


def test_changes_are_refused_where_this_host_is_not_libvirts() -> None:
    with pytest.raises(passes.PassError, match="qemu:///system or qemu:///session of the host itself"):
        passes.Standing(passes.Conduct("qemu+ssh://elsewhere/system"))


# ---------------------------------------------------------------- what it may do


class Libvirt:
    """Stands for a host whose libvirt can be told what to refuse: here there is no polkit to do so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.up = self.writable = True
        self.denies = False
        self.opened: list[str] = []
        self.modes: list[str] = []
        self.out = io.StringIO()
        libvirt = self

        class Standing:
            def __init__(self, how: passes.Conduct) -> None:
                self.how = how
                libvirt.opened.append("ro" if how.read_only else "rw")

            def close(self) -> None:
                pass

            def tick(self, memory_turn: Any, vcpu_turn: Any, changed: Any) -> Tick:
                if not libvirt.up or not (self.how.read_only or libvirt.writable):
                    raise passes.PassError("not for you" if libvirt.up else "it is away") from Unavailable("no")
                return libvirt.tick()

        monkeypatch.setattr(daemon_connection, "Standing", Standing)
        self.access = daemon_connection.DaemonConnection("qemu:///system", Journal(self.out), self.modes.append)

    def tick(self) -> Tick:
        result = a_memory_result()
        if self.denies:
            result = replace(
                result, outcome=Outcome((), (Failure("hog", "u", "denied", "libvirt refuses the change"),))
            )
        return Tick(result.snapshot, result)

    def look(self, mode: str = "act") -> str:
        self.access.tick(config.load({"daemon": {"mode": mode}}), None, None)
        return self.access.mode

    @property
    def said(self) -> list[str]:
        return self.out.getvalue().splitlines()


@pytest.fixture
def libvirt(monkeypatch: pytest.MonkeyPatch) -> Libvirt:
    return Libvirt(monkeypatch)


def test_where_only_reading_is_allowed_it_observes_and_tries_again(libvirt: Libvirt, clock: Clock) -> None:
    libvirt.writable = False
    assert [libvirt.look() for _turn in range(3)] == ["observe"] * 3
    assert libvirt.opened == ["rw", "ro"] and libvirt.modes == ["observe"], "not tried each time"
    assert libvirt.said == ["may only observe: not for you"] and libvirt.access.reason == "not for you"
    clock.now_s += 60
    assert libvirt.look() == "observe" and len(libvirt.said) == 1
    libvirt.writable = True
    clock.now_s += 600
    assert libvirt.look() == "act" and libvirt.modes == ["observe", "act"] and libvirt.said[1:] == ["may act again"]


def test_where_every_change_is_refused_it_observes(libvirt: Libvirt, clock: Clock) -> None:
    libvirt.denies = True
    assert libvirt.look() == "observe" and libvirt.said == ["may only observe: libvirt refuses the change"]
    libvirt.denies = False
    assert libvirt.look() == "observe" and libvirt.opened == ["rw", "ro"]
    libvirt.access.forgive()  # a reload
    assert libvirt.look() == "act"


def test_a_libvirt_that_is_away_is_no_reason_to_observe(libvirt: Libvirt) -> None:
    libvirt.up = False
    with pytest.raises(passes.PassError, match="it is away"):
        libvirt.look()
    assert libvirt.modes == []
    libvirt.up = True
    assert libvirt.look() == "act" and libvirt.said == []


def test_before_its_first_pass_it_observes_and_says_why(libvirt: Libvirt) -> None:
    assert (libvirt.access.mode, libvirt.access.reason) == ("observe", "no pass was made yet")
    assert libvirt.look("grow-only") == "grow-only" and libvirt.modes == ["grow-only"]


def test_the_policy_decides_first(libvirt: Libvirt) -> None:
    assert [libvirt.look(mode) for mode in ("observe", "act", "observe")] == ["observe", "act", "observe"]
    assert libvirt.opened == ["ro", "rw", "ro"] and libvirt.modes == ["observe", "act", "observe"] and not libvirt.said


def test_a_pause_is_kept_to_and_ends_by_itself(libvirt: Libvirt, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[leases.Lease] = []
    monkeypatch.setattr(leases, "read", lambda _uri, name: held[-1] if held and name == "pause" else None)
    assert libvirt.look() == "act" and libvirt.access.paused_until_s == 0
    held.append(leases.Lease("", leases.boottime_s() + 3600))
    assert [libvirt.look() for _turn in range(3)] == ["observe"] * 3 and libvirt.opened == ["rw", "ro"]
    assert libvirt.access.paused_until_s == pytest.approx(time.time() + 3600, abs=60)
    (line,) = libvirt.said
    assert line.startswith("may only observe: paused until ") and "kvmsched resume" in line
    held.clear()
    assert libvirt.look() == "act" and libvirt.said[1:] == ["may act again"] and libvirt.access.paused_until_s == 0


def test_grow_only_acts_for_who_asks_and_writes_no_pins(libvirt: Libvirt) -> None:
    assert libvirt.look("grow-only") == "grow-only" and libvirt.opened == ["rw"] and libvirt.modes == ["grow-only"]
    assert not libvirt.access.conduct(config.load({"daemon": {"mode": "grow-only"}})).pins
    assert libvirt.access.conduct(config.load({"daemon": {"mode": "act"}})).pins


@pytest.mark.parametrize("pins", [True, False])
def test_in_grow_only_pins_are_planned_and_not_set(pins: bool) -> None:
    samples = FakeHost(topology(2), [Guest("a", [0.9], [cpus("0")]), Guest("b", [0.9], [cpus("0")])]).window()
    asked: list[Any] = []
    host: Any = types.SimpleNamespace(apply=lambda changes: asked.extend(changes) or Outcome((), ()))
    work = passes._Work(host, samples[-1], passes.Conduct(pins=pins))
    result = passes._vcpu_pass(work, samples, config.VcpuPolicy(), None, False, passes._Watch())
    assert result.plan.moves and bool(asked) == pins


@pytest.mark.parametrize(
    ("told", "down"),
    [("running", False), ("degraded", False), ("offline", False), ("stopping", True), ("unknown", True), ("", True)],
)
def test_a_host_goes_down_where_systemd_says_so_or_says_nothing(
    told: str, down: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = tmp_path / "systemctl"
    command.write_text(f"#!/bin/sh\necho {told}\n", encoding="utf-8")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert daemon._host_goes_down() is down


def test_a_question_that_ended_with_the_unit_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd sends SIGTERM to all of a unit's processes, in turns: it may meet the one that the daemon just began."""
    command = tmp_path / "systemctl"
    command.write_text(f"#!/bin/sh\nmkdir {tmp_path}/asked 2>/dev/null && kill $$\necho running\n", encoding="utf-8")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert daemon._host_goes_down() is False


# ---------------------------------------------------------------- what libvirt tells reaches the policy


def test_a_reboot_that_libvirt_tells_of_is_in_the_history_of_the_next_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """From libvirt's callback through the inbox into what decide() is handed."""
    callbacks: dict[int, Any] = {}
    register = types.SimpleNamespace(
        domainEventRegisterAny=lambda _domain, number, callback, word: callbacks.update({number: (callback, word)})
    )
    signals: Any = types.SimpleNamespace(inbox=[])
    events._subscribe(register, lambda word, uuid: signals.inbox.append((word, uuid)))
    callback, word = callbacks[binding.VIR_DOMAIN_EVENT_ID_REBOOT]
    callback(register, types.SimpleNamespace(UUIDString=lambda: "u1"), word)
    loaded = daemon._Loaded(config.load_daemon({}), "", "")
    one = daemon._Daemon("test:///default", loaded, Journal(io.StringIO()), signals, lambda _mode: None)
    one.memory = replace(one.memory, history=MEMORY)
    monkeypatch.setattr(daemon.time, "time", lambda: 1000.0)
    for heard in signals.inbox:
        one._heed(*heard)
    assert one.memory.history.domains["u1"] == replace(MEMORY.domains["u1"], booted_s=1000.0)
