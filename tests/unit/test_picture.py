# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo's picture: well-formed, for light and dark, and of nothing but what was written to the terminal."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from lab import picture

PICTURES = Path(__file__).resolve().parents[2] / "docs/pictures"
SVG = "{http://www.w3.org/2000/svg}"


def test_the_text_of_a_line_is_kept_with_its_colours_and_places() -> None:
    lines = ["  \033[31m█\033[0m\033[31m█\033[0m a < b", "", "\033[1mtitle\033[0m"]
    svg = picture.drawn(lines, "a & b")
    texts = [(text.get("class"), text.text) for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    assert texts == [("red", "██"), ("ink", " a < b"), ("bold", "title")]
    assert "prefers-color-scheme: dark" in svg


def test_the_pictures_of_the_documentation_follow_light_and_dark() -> None:
    for path in PICTURES.glob("*.svg"):
        text = path.read_text(encoding="utf-8")
        assert ElementTree.fromstring(text).find(f"{SVG}title") is not None, path.name
        assert "prefers-color-scheme: dark" in text, path.name
