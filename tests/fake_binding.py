# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Give the room hypervisor another libvirt and another clock than this machine's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from kvmsched.hypervisor import connection, domain, errors, events, host, qemu, read, write

FILES = (connection, domain, errors, events, host, qemu, read, write)


def use(monkeypatch: pytest.MonkeyPatch, libvirt: Any, opened: Callable[..., Any], clock: Any) -> None:
    """Let all files of the room see *libvirt* and *clock*; *opened* is what opening a connection does."""
    for file in FILES:
        if hasattr(file, "libvirt"):
            monkeypatch.setattr(file, "libvirt", libvirt)
        if hasattr(file, "time"):
            monkeypatch.setattr(file, "time", clock)
    monkeypatch.setattr(connection, "_open", opened)
