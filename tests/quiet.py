# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests marked ``quiet`` judge how this machine is shared: while others use its CPUs or memory, they say nothing.

A conftest.py that has the hooks below as its own applies them. In CI nothing is skipped: such a test is made twice
more, each time in a calm moment where one comes, and the last time has the last word.
"""

from __future__ import annotations

import os
import resource
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import truth

# A fifth of a pCPU: what an idle machine does beside its tests.
OTHERS = 0.2
# How long a run waits for calm moments, all in all, and how long one has to last.
PATIENCE_S = 900
CALM_S = 3
# The processes that work for a test, beside its own children.
OURS = ("libvirtd", "virtlogd", "qemu-system-x86")


_waited_s = 0.0


class Disturbed(Exception):
    """A judgement of a test in CI while others used the machine."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "CI" in os.environ and item.get_closest_marker("quiet"):
            item.add_marker(pytest.mark.flaky(reruns=2, only_rerun=[Disturbed.__name__]))


def _cpu_s(process: Path) -> float:
    name, _parenthesis, rest = (process / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")
    user, system = rest.split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK") if name.partition("(")[2] in OURS else 0.0


def ours_s() -> float:
    """The CPU time of these tests, and of all that works for them."""
    used_s = sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, (resource.RUSAGE_SELF, -1)))
    for process in Path("/proc").glob("[0-9]*"):
        try:
            used_s += _cpu_s(process)
        except OSError:
            continue  # it has ended
    return used_s


def others_s() -> float:
    return sum(truth.pcpu_busy_ns().values()) / 1e9 - ours_s()


def _wait_calm() -> None:
    """Wait until others leave the CPUs alone, or until there is no patience left."""
    global _waited_s
    calm = False
    while not calm and _waited_s < PATIENCE_S:
        before_s = others_s()
        time.sleep(CALM_S)
        calm = (others_s() - before_s) / CALM_S <= OTHERS
        _waited_s += CALM_S


def _judged(error: Exception, item: pytest.Item) -> bool:
    """Whether the test itself found something wrong, or waited in vain; not what it calls: a pass that fails, say."""
    here = traceback.extract_tb(error.__traceback__)[-1].filename
    return isinstance(error, TimeoutError) or here == str(item.path)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    if item.get_closest_marker("quiet") is None:
        return (yield)
    if getattr(item, "execution_count", 1) > 1:
        _wait_calm()
    before_s, began_s = others_s(), time.monotonic()
    try:
        return (yield)
    except (AssertionError, TimeoutError) as error:
        share = (others_s() - before_s) / (time.monotonic() - began_s)
        if share <= OTHERS or not _judged(error, item):
            raise
        said = f"others used {share:.1f} pCPUs of this machine, which decides how it is balanced: {error}"[:500]
        if "CI" in os.environ:
            raise Disturbed(said) from error
        pytest.skip(said)
