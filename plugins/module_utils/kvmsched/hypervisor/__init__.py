# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The only layer that knows libvirt: observe() a host, apply() changes to it, survive what hangs.

Read in this order: ``connection`` (calls that can be abandoned) and ``errors`` (what they mean). Then ``qemu`` (the
process behind a domain), ``domain`` and ``host`` (what is understood of each). Then ``read`` (observe), ``write``
(apply) and ``events``. No rule of a policy is in here.
"""

from __future__ import annotations

from typing import Collection, Iterable, Sequence

from ..model import Outcome, Snapshot
from .connection import THREAD, Calls, Line, acting_refusal, hanging, uri_parts
from .errors import Unavailable, explain
from .events import watch_events
from .qemu import Processes
from .read import ALL_PARTS, Reader, XmlOf
from .write import Change, Writer

__all__ = [
    "ALL_PARTS",
    "THREAD",
    "Change",
    "Hypervisor",
    "Line",
    "Unavailable",
    "XmlOf",
    "acting_refusal",
    "explain",
    "hanging",
    "watch_events",
]


class Hypervisor:
    """One host's libvirt at *uri*; ValueError if that is no URI.

    *deadline_s* is the time that domains which hang may cost a pass: half of it while observing, half while
    applying; and how long libvirt itself may take to answer. *parts* is what is observed of the domains, for each
    part costs libvirt questions to every QEMU.
    """

    def __init__(self, uri: str, read_only: bool, deadline_s: float, parts: Sequence[str] = ALL_PARTS) -> None:
        self.uri, self.deadline_s = uri, deadline_s
        where = uri_parts(uri)
        # Whether this process sees the same kernel as that libvirt: /proc and /sys are then the better sources.
        self.local = not where.netloc and "+" not in where.scheme and where.scheme != "test"
        self._calls = Calls(uri, read_only, deadline_s)
        processes = Processes(self.local, session=where.path == "/session")
        self._reader = Reader(self._calls, self.local, parts, processes)
        self._writer = Writer(self._calls, processes, self._reader.note_hung)

    def close(self) -> None:
        self._calls.close()

    def observe(self, xml_of: XmlOf = "all", anew: Collection[str] = ()) -> Snapshot:
        """Read the host; where *new* ones are read, the domains *anew* (UUIDs) as well.

        What hung once is not asked again but where *all* are read; nor then before its last call returned.
        """
        return self._reader.observe(xml_of, anew)

    def apply(self, changes: Iterable[Change]) -> Outcome:
        """Make *changes*, one domain after the other: first its record, then its moves.

        A domain whose record can't be written is not changed. What fails is a Failure of that domain alone.
        """
        return self._writer.apply(changes)
