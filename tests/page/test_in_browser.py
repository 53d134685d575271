# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page of a replay in a real Chromium: it draws, it fits, it complains of nothing, and keys reach every reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browser import Browser
from kvmsched.app import fleet, page
from kvmsched.app.replay import RECORDED, UNTOUCHED, Job, Result, Source, play
from kvmsched.twin.score import GuestStory, PastMove
from test_replay import EAGER, PLACE, day_of_memory, day_of_vcpus

GIB = 1024 * 1024
BUNDLE = Path(__file__).resolve().parents[1] / "unit/bundle_1.json"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as one:
        yield one


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    """A host's memory and another one's vCPUs, as if they were one."""
    directory = tmp_path_factory.mktemp("page")
    day_of_memory(directory / "m", EAGER)
    day_of_vcpus(directory / "c")
    found = []
    for name, document in ((RECORDED, None), (UNTOUCHED, None), ("place", {**PLACE, **EAGER})):
        memory, cpu = (play(Source((str(directory / part),)), Job(name, document), picture=True) for part in "mc")
        moves = (*memory.moves, *(replace(m, when_s=memory.begin_s + m.when_s - cpu.begin_s) for m in cpu.moves))
        guests = (*memory.guests, *cpu.guests)
        moves = tuple(sorted(moves, key=lambda move: move.when_s))
        figures = replace(
            memory.figures,
            unserved_pct=cpu.figures.unserved_pct,
            worst_minute_pct=cpu.figures.worst_minute_pct,
            pin_moves=cpu.figures.pin_moves,
        )
        found.append(replace(memory, figures=figures, guests=guests, moves=moves, busy_pct=cpu.busy_pct))
    return found


@pytest.fixture
def shown(results: list[Result], tmp_path: Path) -> Path:
    (tmp_path / "page.html").write_text(page.html(results), encoding="utf-8")
    return tmp_path / "page.html"


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 400])
def test_it_is_drawn_and_nothing_complains(browser: Browser, shown: Path, width: int, dark: bool) -> None:
    browser.open(shown, width, dark=dark)
    assert not browser.trouble
    assert [url for url in browser.requests if not url.startswith(("file:", "data:", "about:"))] == []
    assert browser.run("document.documentElement.scrollWidth") <= width, "it scrolls sideways"
    browser.run(
        "(async () => { for (const c of document.querySelectorAll('canvas')) { c.scrollIntoView();"
        " await new Promise(r => setTimeout(r, 100)); } })()"
    )
    blank = (
        "[...document.querySelectorAll('canvas')].filter(c => !c.getContext('2d').getImageData(0, 0, c.width, c.height)"
        ".data.some(v => v)).length"
    )
    assert browser.run("document.querySelectorAll('canvas').length") >= 8 and browser.run(blank) == 0


def test_every_move_is_there_and_keys_reach_its_reason(browser: Browser, shown: Path, results: list[Result]) -> None:
    browser.open(shown)
    moves = results[0].moves
    assert browser.run("document.querySelectorAll('svg .mark').length") == len(moves) > 5
    browser.run("document.querySelector('#moves select').focus()")
    browser.press("Tab")
    told = "document.querySelector('.told').textContent"
    for move in moves:
        assert move.reason in browser.run(told) and move.after in browser.run(told)
        browser.press("ArrowRight")
    browser.press("Tab")
    assert browser.run("document.activeElement.tagName") == "SUMMARY", "the keyboard gets out again"
    browser.run("document.querySelector('details').open = true")
    browser.rest()
    assert browser.run("document.querySelectorAll('details tr').length") == len(moves)


def test_hovering_tells_a_reason_and_a_load(browser: Browser, shown: Path, results: list[Result]) -> None:
    browser.open(shown)
    for part, words in (("svg .mark", results[0].moves[0].reason), ("#loads canvas", "% busy")):
        place = (
            "(e => { e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect(); return [b.x, b.y]; })"
        )
        x, y = browser.run(f"{place}(document.querySelector('{part}'))")
        browser.hover(x + 5, y + 5)
        browser.rest()
        assert words in browser.run("document.getElementById('tip').textContent")


def test_guests_are_found_by_name_and_another_column_is_shown(browser: Browser, shown: Path) -> None:
    browser.open(shown)
    visible = "[...document.querySelectorAll('.guest')].filter(g => !g.hidden).length"
    assert browser.run(visible) == 6
    browser.run("(i => { i.value = 'RICH'; i.dispatchEvent(new Event('input')); })(document.querySelector('input'))")
    assert browser.run(visible) == 1
    browser.run(
        "(s => { s.value = 1; s.dispatchEvent(new Event('change')); })(document.querySelector('#moves select'))"
    )
    assert browser.run("document.querySelectorAll('svg .mark').length") == 0, "untouched has no move"
    assert not browser.trouble


def test_a_day_of_a_hundred_guests_opens_and_scrolls(browser: Browser, results: list[Result], tmp_path: Path) -> None:
    row = [(n * 37) % 1000 * 1024 for n in range(480)]
    share = [(n * 13) % 100 for n in range(480)]
    stories = tuple(
        GuestStory(
            f"guest-{n}", 2 * GIB, GIB // 8, actual_kib=[GIB] * 480, usable_kib=row, ran_pct=share, waited_pct=share
        )
        for n in range(100)
    )
    first = results[0]
    moves = tuple(
        PastMove(first.begin_s + n / 20, f"guest-{n % 100}", "pin", "x", "0", "1", f"why {n}") for n in range(2000)
    )
    day = replace(first, guests=stories, moves=moves, busy_pct=dict.fromkeys(range(64), share))
    path = tmp_path / "day.html"
    path.write_text(page.html([day, replace(day, name="auto"), replace(day, name=UNTOUCHED)]), encoding="utf-8")
    assert path.stat().st_size < 5 * 1024 * 1024
    browser.open(path)
    assert browser.run("document.querySelectorAll('.guest').length") == 100
    browser.run("window.scrollTo(0, document.documentElement.scrollHeight)")
    browser.rest()
    drawn = "(c => c[c.length - 1].width)(document.querySelectorAll('canvas'))"
    assert browser.run(drawn) > 300 and not browser.trouble


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifty hosts, five of them in trouble."""
    directory = tmp_path_factory.mktemp("fleet")
    for number in range(50):
        host = directory / f"hypervisor-{number:02}.example.org"
        if number == 7:
            day_of_memory(host, EAGER)
            continue
        host.mkdir()
        if number % 10 == 3:
            (host / "why.txt").write_text("unreachable: Failed to connect to the host via ssh: No route to host\n" * 3)
        else:
            (host / "bundle.json").write_bytes(BUNDLE.read_bytes())
    assert fleet.report(str(directory), lambda _line: None) == 5
    return directory / "index.html"


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 400])
def test_the_index_of_fifty_hosts_fits_and_leads_to_each(browser: Browser, index: Path, width: int, dark: bool) -> None:
    browser.open(index, width, dark=dark)
    assert not browser.trouble and browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("document.querySelectorAll('tbody tr').length") == 50
    rows = browser.run("[...document.querySelectorAll('tbody tr')].map(row => row.textContent)")
    assert all(("unreachable: " in row) == (place < 5) for place, row in enumerate(rows)), "in trouble comes first"
    pages = [Path(unquote(urlsplit(url).path)) for url in browser.run("[...document.links].map(link => link.href)")]
    assert len(pages) == 45 and all(page.exists() for page in pages)
    browser.open(pages[0], width, dark=dark)
    assert browser.run("document.querySelectorAll('canvas').length") and not browser.trouble
