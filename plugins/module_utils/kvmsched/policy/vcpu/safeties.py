# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules that keep guests from harm or from needless moves, each with a switch for tests that show it is needed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Safeties:
    """One field for each such rule; decide() has all of them on.

    ``allowed``: no vCPU leaves the set where it may run. ``dedicated``: nobody is given what is another's own.
    ``confined``: foreign load stays on the pCPUs that it is confined to. ``doubt``: a plan must be good however
    loads are read. ``passing``: foreign load that a single window saw does not count in full. ``rest``: what was
    moved stays for some passes.
    """

    allowed: bool = True
    dedicated: bool = True
    confined: bool = True
    doubt: bool = True
    passing: bool = True
    rest: bool = True


ALL = Safeties()
