# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which layer of the package may import what: the picture in CONTRIBUTING, held against the code."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "plugins/module_utils/kvmsched"
FILES = sorted(PACKAGE.rglob("*.py"))
# What reads or changes the world, or takes time. Pure code does none of that.
IMPURE = {"libvirt", "os", "time", "socket", "subprocess", "threading", "pathlib", "random", "logging"}


@functools.cache
def imports(path: Path) -> frozenset[str]:
    """Return each module that a file imports; one of the package as ``.layer.file``, from the package's root."""
    return frozenset(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    here = path.relative_to(PACKAGE).parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or ""
        elif isinstance(node, ast.ImportFrom):
            base = [*here[: len(here) - node.level], *(node.module or "").split(".")]
            layer = ".".join(part for part in base if part)
            yield from ([f".{layer}"] if layer else [f".{name.name}" for name in node.names])


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def within(layer: str) -> list[Path]:
    return [path for path in FILES if layer_of(path) == layer]


def test_only_the_hypervisor_imports_libvirt() -> None:
    importing = {path.relative_to(PACKAGE) for path in FILES if {"libvirt", "libvirt_qemu"} & imports(path)}
    assert importing == {Path("hypervisor/binding.py")}


@pytest.mark.parametrize("layer", ["policy", "twin", "model", "units"])
def test_what_is_pure_imports_nothing_that_acts(layer: str) -> None:
    assert within(layer)
    for path in within(layer):
        found = {name.split(".")[0] for name in imports(path) if not name.startswith(".")}
        assert not found & IMPURE, path


ALLOWED = {
    "units": set(),
    "model": {"units"},
    "policy": {"policy", "model", "units", "baseline", "config"},
    "hypervisor": {
        "hypervisor",
        "model",
        "units",
        "baseline",
        "policy",
        "balloon_stats",
        "cgroups",
        "hostwork",
        "libvirt_xml",
        "procfs",
    },
    "baseline": {"model", "units"},
}


@pytest.mark.parametrize("layer", ALLOWED)
def test_arrows_between_rooms_point_one_way(layer: str) -> None:
    for path in within(layer):
        layers = {name.split(".")[1] for name in imports(path) if name.startswith(".")}
        assert layers <= ALLOWED[layer], path


def test_nothing_but_faces_imports_a_face() -> None:
    for path in FILES:
        if layer_of(path) != "app":
            assert not any(name == ".app" or name.startswith(".app.") for name in imports(path)), path
