# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page of a replay: findings in words, nothing from elsewhere, and no guest's name is more than text."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

from kvmsched.app import cli, page
from kvmsched.app.replay import RECORDED, UNTOUCHED, Job, Result, Source, play
from kvmsched.twin.score import GuestStory, PastMove
from test_replay import EAGER, PLACE, day_of_memory, day_of_vcpus

GIB = 1024 * 1024


def results(directory: Path) -> list[Result]:
    day_of_memory(directory / "r", EAGER)
    source = Source((str(directory / "r"),))
    return [play(source, job, picture=True) for job in (Job(RECORDED), Job(UNTOUCHED), Job("eager", EAGER))]


def data_of(text: str) -> dict[str, object]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    return dict(json.loads(found[1]))


class Words(HTMLParser):
    """What stands on the page, and what it would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.fetched, self.tags = "", [], []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value for key, value in attrs if key in ("src", "href") and value != "data:,"]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_says_it_in_words_and_needs_nothing_else(tmp_path: Path) -> None:
    whole = results(tmp_path)
    text = page.html(whole)
    words = Words(text)
    assert not words.fetched and "http" not in re.sub(r"http://www.w3.org/2000/svg|http-equiv", "", text)
    assert re.search(r"needy starved (once|\d+ times), \d+ (s|min) in all; ", words.text)
    assert "untouched: " in words.text and "CPU demand unserved" in words.text
    told = data_of(text)["results"]
    assert isinstance(told, list) and [one["name"] for one in told] == [RECORDED, UNTOUCHED, "eager"]
    assert len(told[0]["moves"]) == whole[0].figures.memory_moves and all(move[6] for move in told[0]["moves"])
    assert {guest["name"] for guest in told[0]["guests"]} == {"needy", "rich"}


def test_a_name_is_text_wherever_it_stands(tmp_path: Path) -> None:
    evil = '</script><img src=x onerror="alert(1)">&'
    (first, *_rest) = results(tmp_path)
    story = replace_story(first.guests[0], name=evil, starved_s=60.0, starved_times=2, unmet=evil, unmet_s=5.0)
    move = PastMove(first.begin_s, evil, "pin", evil, "0", "1", evil)
    text = page.html([replace(first, name=evil, host=evil, guests=(story,), moves=(move,), skips={evil: 1})])
    words = Words(text)
    assert "img" not in words.tags and words.tags.count("script") == 2 and not words.fetched
    told = data_of(text)["results"]
    assert isinstance(told, list) and told[0]["guests"][0]["name"] == evil and told[0]["moves"][0][6] == evil


def replace_story(story: GuestStory, **more: object) -> GuestStory:
    return GuestStory(**{**vars(story), **more})  # type: ignore[arg-type]


def test_the_limit_of_who_starved_is_named() -> None:
    base = GuestStory("db1", 4 * GIB, starvation_kib=GIB, starved_s=7800.0, starved_times=14)
    full = replace_story(base, actual_kib=[4 * GIB, 4 * GIB], usable_kib=[GIB // 2, None])
    assert page._starved(full) == "db1 starved 14 times, 2 h 10 min in all; its maximum is the limit."
    short = replace_story(base, actual_kib=[2 * GIB], usable_kib=[0], unmet="the host has nothing left")
    assert page._starved(short).endswith("; it lacked for the host has nothing left.")
    free = replace_story(base, actual_kib=[2 * GIB], usable_kib=[0], starved_times=1)
    assert page._starved(free) == "db1 starved once, 2 h 10 min in all; it could have had more."


def test_a_day_of_many_guests_stays_small(tmp_path: Path) -> None:
    day_of_vcpus(tmp_path / "r")
    (first,) = [play(Source((str(tmp_path / "r"),)), Job(RECORDED), picture=True)]
    row = [99999 for _column in range(480)]
    stories = tuple(
        GuestStory(f"g{n}", 9 * GIB, 0, 0, 0, 0.0, 0, False, 0, 0.0, "", row, row, row, row) for n in range(300)
    )
    move = PastMove(first.begin_s, "g1", "pin", "g1 vCPU 0", "0", "1", "why " * 30)
    big = replace(first, guests=stories, moves=(move,) * 3000)
    assert len(page.html([big, replace(big, name="other"), replace(big, name=UNTOUCHED)])) < 5 * 1024 * 1024


def test_a_host_on_which_nothing_happened_is_told_so(tmp_path: Path) -> None:
    day_of_vcpus(tmp_path / "r", PLACE, passes=2)
    (first,) = [play(Source((str(tmp_path / "r"),), step_s=0), Job(UNTOUCHED), picture=True)]
    quiet = replace(first, guests=(), figures=replace(first.figures, unserved_pct=0.0))
    assert page.findings([quiet]) == ["No guest starved, and all CPU demand was served."]


# ---------------------------------------------------------------- many hosts


def test_a_fleet_has_a_row_a_host_the_worst_first(tmp_path: Path) -> None:
    fleet = tmp_path / "fleet"
    for host in ("calm", "a&b", "hungry", "empty", "broken"):
        (fleet / host).mkdir(parents=True)
    day_of_vcpus(tmp_path / "calm")
    day_of_memory(tmp_path / "hungry", EAGER, acts=False)
    for number, path in enumerate(sorted((tmp_path / "calm").iterdir())):
        (fleet / "calm" / path.name).write_bytes(path.read_bytes())
        (fleet / "a&b" / f"{number}{path.name}").write_bytes(path.read_bytes())
    for path in (tmp_path / "hungry").iterdir():
        (fleet / "hungry" / path.name).write_bytes(path.read_bytes())
    (fleet / "broken" / "r").write_text("{")
    (fleet / "away").mkdir()
    (fleet / "away" / "why.txt").write_text("unreachable: no route\n to \x1b[31m<b>it" + "!" * 9000)
    out, err = io.StringIO(), io.StringIO()
    assert cli.main(["replay", "--fleet", str(fleet)], out, err) == 1, "three hosts could not be read"
    assert "empty: nothing was fetched from it" in out.getvalue() and "broken: " in out.getvalue()
    words = Words((fleet / "index.html").read_text())
    assert words.fetched == ["host-hungry.html", "host-a%2526b.html", "host-calm.html"]
    assert words.text.index("away") < words.text.index("broken") < words.text.index("hungry") < words.text.index("calm")
    told = json.loads((fleet / "index.json").read_text())
    assert told["away"]["failed"].startswith("unreachable: no route to ?[31m<b>it!") and len(out.getvalue()) < 2000
    assert set(told) == {"calm", "a&b", "hungry", "empty", "broken", "away"} and told["empty"] == {
        "failed": "nothing was fetched from it"
    }
    assert set(told["hungry"]) == {RECORDED, UNTOUCHED, "its own policy"} and set(told["calm"]) == {RECORDED, UNTOUCHED}
    assert (fleet / "host-a%26b.html").exists()


def test_a_fleet_of_nobody_is_refused(tmp_path: Path) -> None:
    out, err = io.StringIO(), io.StringIO()
    assert cli.main(["replay", "--fleet", str(tmp_path)], out, err) == 2 and "one for each host" in err.getvalue()
