# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The memory benchmark's simulator is honest: small worlds of each kind, and what must hold in all of them."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

from memory import aims, figures, rivals, worlds
from memory.daemon import Kvmsched, OnePass
from memory.figures import Row, Traced, Untouched, run, tabulate
from memory.host import GIB, Host, Spec, World

SECONDS = 240
SHORT = [name for name, kind in worlds.KINDS.items() if kind.most > 6]


def flat(mib: float, seconds: int = SECONDS) -> list[float]:
    return [mib] * seconds


def step(low: float, high: float, at_s: int, seconds: int = SECONDS) -> list[float]:
    return [low if second < at_s else high for second in range(seconds)]


def host_of(*guests: Spec, total: float = 32 * GIB, **more: Any) -> World:
    return World("small", 0, SECONDS, guests, total, **more)


def lived(world: World, seconds: int = SECONDS) -> Host:
    host = Host(world)
    for now_s in range(1, seconds):
        host.step(now_s)
    return host


class Checked(Untouched):
    """Looks at every guest of every second."""

    def __init__(self, tool: Any) -> None:
        self.tool, self.name = tool, tool.name

    def on(self, host: Host) -> Any:
        return self.tool.on(host)

    def tick(self, host: Host) -> None:
        self.tool.tick(host)
        for guest in host.guests:
            size = guest.spec.maximum if host.now_s < guest.boot_s else guest.actual
            held = guest.alloc - guest.swapped + guest.cache + guest.unused
            assert held + 60 == pytest.approx(size), "each MiB is programs', cache or unused, and the kernel's"
            assert -1e-6 <= guest.swapped <= guest.spec.swap
            assert 60 <= guest.actual <= guest.spec.maximum + 1e-6
            assert guest.unused >= -1e-6 and guest.cache >= -1e-6
            assert guest.spec.keeps or guest.touched <= size + 1e-6


@pytest.mark.parametrize("name", SHORT)
def test_in_every_kind_of_world_memory_is_conserved(name: str) -> None:
    world = worlds.draw(name, 1)
    world = replace(world, seconds=min(world.seconds, SECONDS))
    run(world, Checked(Kvmsched("eager", reclaim="eager")))


@pytest.mark.parametrize("tool", rivals.RIVALS)
def test_every_rival_runs_where_guests_are_silent_mute_or_new(tool: Any) -> None:
    for name in ("promise", "mute", "new_guest"):
        run(replace(worlds.draw(name, 1), seconds=SECONDS), Checked(tool()))


def test_the_same_world_gives_every_tool_the_same() -> None:
    one, other = worlds.draw("fleet", 3), worlds.draw("fleet", 3)
    assert one == other
    assert worlds.draw("fleet", 4) != one
    one, other = (replace(world, seconds=SECONDS) for world in (one, other))
    assert run(one, Untouched()) == run(other, Untouched())
    assert run(one, Kvmsched("eager", reclaim="eager")) == run(other, Kvmsched("eager", reclaim="eager"))


def test_an_untouched_host_makes_no_moves_and_harms_nobody() -> None:
    runs = [run(replace(worlds.draw("fleet", seed), seconds=SECONDS), Untouched()) for seed in (1, 2)]
    row = tabulate(runs, runs)
    assert (row.moves, row.harmed, row.saved) == (0, 0, 0)


def test_eager_kills_a_guest_that_bursts_and_untouched_does_not() -> None:
    world = worlds.draw("burst", 5)
    alone, eager = run(world, Untouched()), run(world, Kvmsched("eager", reclaim="eager"))
    assert not alone.fates[0].kills
    assert eager.fates[0].kills
    assert figures.judge(eager, alone).harmed == ["burst"]


def test_a_guest_without_swap_is_killed_and_wants_the_same_again() -> None:
    guest = Spec("g", step(500, 2000, 20), 4 * GIB, 1 * GIB)
    host = lived(host_of(guest))
    assert host.guests[0].kills > 2
    swapped = lived(host_of(replace(guest, swap=2 * GIB))).guests[0]
    assert not swapped.kills and swapped.starved and swapped.swapped > 900


def test_autodeflate_takes_back_what_its_programs_want_and_no_more() -> None:
    guest = lived(host_of(Spec("g", step(500, 2000, 20), 4 * GIB, 1 * GIB, autodeflate=True))).guests[0]
    assert not guest.kills
    assert guest.actual == pytest.approx(2000 + 70, abs=3)


def test_cache_that_is_taken_is_read_again() -> None:
    spec = Spec("g", flat(500), 8 * GIB, 4 * GIB, files=2 * GIB, reads=100)
    assert lived(host_of(spec)).guests[0].reads == 0
    host = Host(host_of(spec))
    host.step(1)
    host.set_target(host.guests[0], 1.5 * GIB)
    for now_s in range(2, SECONDS):
        host.step(now_s)
    assert host.guests[0].reads > 100 * 100


def test_a_balloon_never_kills_and_stops_where_nothing_is_left() -> None:
    host = Host(host_of(Spec("g", flat(1000), 4 * GIB, 4 * GIB)))
    host.step(1)
    host.set_target(host.guests[0], 500)
    for now_s in range(2, SECONDS):
        host.step(now_s)
    assert host.guests[0].kills == 0
    assert host.guests[0].actual > 1060


def test_libvirt_tells_of_a_balloon_a_second_late_and_hurries_the_pass() -> None:
    host = Host(host_of(Spec("g", flat(500), 8 * GIB, 4 * GIB)))
    host.step(1)
    host.set_target(host.guests[0], 5 * GIB)
    host.step(2)
    assert (host.guests[0].actual, host.guests[0].told, host.events) == (5 * GIB, 4 * GIB, [])
    host.step(3)
    assert (host.guests[0].told, host.events) == (5 * GIB, ["g"])


def test_events_bring_passes_forward() -> None:
    tool = Kvmsched("eager", reclaim="eager")
    run(host_of(Spec("g", flat(500), 8 * GIB, 8 * GIB)), tool)
    assert tool.passes > SECONDS / 5 + 3
    calm = Kvmsched("lazy", reclaim="lazy")
    run(host_of(Spec("g", flat(500), 8 * GIB, 8 * GIB)), calm)
    assert calm.passes == pytest.approx(SECONDS / 5, abs=2)


def test_a_dead_daemon_makes_no_passes() -> None:
    tool = Kvmsched("lazy", reclaim="lazy")
    run(host_of(Spec("g", flat(500), 8 * GIB, 8 * GIB), daemon_away_s=(50, 150)), tool)
    assert tool.passes == pytest.approx((SECONDS - 100) / 5, abs=2)


def test_a_single_pass_moves_once() -> None:
    world = host_of(Spec("g", step(500, 2000, 60), 8 * GIB, 1.5 * GIB, swap=4 * GIB))
    alone, once = run(world, Untouched()), run(world, OnePass("one pass"))
    assert once.fates[0].moves == 1
    assert once.fates[0].starved_s < alone.fates[0].starved_s


def test_statistics_come_late_or_never_as_their_world_says() -> None:
    host = lived(host_of(Spec("g", flat(500), 8 * GIB, 4 * GIB, stats_s=10, phase_s=3, delays_s=(0, None, 2))), 60)
    reading = host.guests[0].reading
    assert reading is not None and reading.when_s == 58
    silent = lived(host_of(Spec("g", flat(500), 8 * GIB, 4 * GIB, silent_s=(20, 1000)))).guests[0].reading
    assert silent is not None and silent.when_s < 20
    assert lived(host_of(Spec("g", flat(500), 8 * GIB, 4 * GIB, driver=False))).guests[0].reading is None


def test_a_host_that_is_promised_too_much_swaps_or_kills() -> None:
    guests = [Spec(f"g{i}", step(1000, 7000, 50), 8 * GIB, 8 * GIB, rate=100, touched=0.2) for i in range(3)]
    swapping = lived(host_of(*guests, total=20 * GIB, swap=16 * GIB))
    assert swapping.overrun_s and swapping.psi_pct > 10 and not any(guest.kills for guest in swapping.guests)
    assert any(guest.kills for guest in lived(host_of(*guests, total=20 * GIB)).guests)


def test_an_arc_gives_way_slowly_and_takes_what_is_free() -> None:
    host = lived(host_of(Spec("g", step(1000, 7000, 100), 8 * GIB, 8 * GIB, rate=100, touched=0.2), arc=(4 * GIB, 200)))
    assert host.arc < 32 * GIB - 2 * GIB - 7000
    assert host.available < 2 * GIB < host.truly_available


def test_harm_and_rescue_are_told_by_the_gravest_difference() -> None:
    world = host_of(Spec("g", flat(500), 8 * GIB, 8 * GIB))
    fate = run(world, Untouched()).fates[0]
    assert figures.worse(replace(fate, kills=1, reads=0), replace(fate, reads=9999)) == 1
    assert figures.worse(replace(fate, starved_s=30), replace(fate, kills=1)) == -1
    assert figures.worse(replace(fate, starved_s=3), fate) == 0
    assert figures.worse(replace(fate, reads=1100), replace(fate, reads=1000)) == 0
    assert figures.worse(replace(fate, reads=2000), replace(fate, reads=1000)) == 1


# ---------------------------------------------------------------- what is made of the figures


def row(world: str, tool: str, **more: Any) -> Row:
    return Row(world, tool, seeds=1, guests=1, **more)


def test_an_aim_that_is_missed_names_its_world_and_figure() -> None:
    rows = [row("burst", "untouched", fits=True), row("burst", "auto", fits=True, harmed=2, kills=3, killed_more=3)]
    judged = {aim.text: aim for aim in aims.judge(rows, [])}
    harm = judged["auto: harmed guests where all fits"]
    assert not harm.met and harm.guards and harm.figure == "2 (burst 2)"
    assert not judged["auto: kills beyond untouched"].met


def test_harm_may_be_a_fifth_of_what_was_saved_where_not_all_fits() -> None:
    rows = [row("fleet", "untouched"), row("fleet", "auto", harmed=2, saved=10)]
    assert all(aim.met for aim in aims.judge(rows, []))
    assert not all(aim.met for aim in aims.judge([rows[0], replace(rows[1], saved=9)], []))


def test_a_rule_that_is_switched_off_turns_its_world_red_by_more_than_chance() -> None:
    before = row("burst", "auto", starved_s=10)
    assert aims.redder(replace(before, starved_s=25), before) == []
    assert [red["figure"] for red in aims.redder(replace(before, starved_s=300, harmed=1), before)] == [
        "harmed",
        "starved_s",
    ]


def test_a_trace_tells_of_moves_and_kills(capsys: pytest.CaptureFixture[str]) -> None:
    guest = Spec("g", step(500, 3000, 100), 4 * GIB, 4 * GIB)
    run(host_of(guest), Traced(Kvmsched("eager", reclaim="eager")))
    told = capsys.readouterr().out
    assert "g: 4096M -> " in told and "g KILLED" in told
