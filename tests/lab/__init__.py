# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real guests for tests and the demo: see README.md."""

from .guest import Guest
from .hosts import Fleet, Host, HostError
from .lab import Lab, RunningGuest
from .machines.host import Machine
from .machines.topology import Cell, Topology
from .own import OwnLibvirtd
from .tiny import TinyGuest
from .truth import Report, Share

__all__ = [
    "Cell",
    "Fleet",
    "Guest",
    "Host",
    "HostError",
    "Lab",
    "Machine",
    "OwnLibvirtd",
    "Report",
    "RunningGuest",
    "Share",
    "TinyGuest",
    "Topology",
]
