# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hear what happens to domains, as libvirt's events tell it."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any, Callable

from .. import baseline
from .binding import libvirt

# Pauses between two attempts to connect: the first, and what they double up to.
_SOON_S, _LATE_S = 1.0, 30.0


Happened = Callable[[str, str], None]


def watch_events(uri: str, happened: Happened) -> None:
    """Call *happened* with a word and a domain's UUID as things happen on *uri*, for as long as this process lives.

    The words: started, stopped, resumed, suspended, reboot, balloon, pin (any cputune), device,
    policy (its owner's), and connected, of no domain: what happened before was not told. It is called
    from a thread that must not be delayed. A lost connection is opened again, quietly: the passes
    tell of it. Call this once, before the first Hypervisor is used,
    for libvirt uses an event loop only for connections that were opened after it was there.
    """
    libvirt.registerErrorHandler(lambda *_ignored: None, None)
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=_turn_events, name="libvirt events", daemon=True).start()
    threading.Thread(target=_listen, args=(uri, happened), name="libvirt event connection", daemon=True).start()


def _turn_events() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


def _listen(uri: str, happened: Happened) -> None:
    pause_s = _SOON_S
    while True:
        lost = threading.Event()
        with contextlib.suppress(libvirt.libvirtError), contextlib.closing(libvirt.openReadOnly(uri)) as connection:
            connection.registerCloseCallback(lambda _connection, _reason, opaque: opaque.set(), lost)
            with contextlib.suppress(libvirt.libvirtError):  # the test driver knows no keep-alive
                connection.setKeepAlive(5, 3)
            _subscribe(connection, happened)
            happened("connected", "")
            pause_s = _SOON_S
            lost.wait()
        time.sleep(pause_s)
        pause_s = min(_LATE_S, 2 * pause_s)


def _subscribe(connection: Any, happened: Happened) -> None:
    def lifecycle(_connection: Any, domain: Any, event: int, _detail: int, _opaque: Any) -> None:
        if event in _LIFECYCLE:
            happened(_LIFECYCLE[event], domain.UUIDString())

    def metadata(_connection: Any, domain: Any, _kind: int, namespace: Any, _opaque: Any) -> None:
        if namespace == baseline.OWNER_URI:
            happened("policy", domain.UUIDString())

    def simple(_connection: Any, domain: Any, *rest: Any) -> None:
        happened(rest[-1], domain.UUIDString())

    wanted = [
        (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, lifecycle, None),
        (libvirt.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE, metadata, None),
        (libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, simple, "reboot"),
        (libvirt.VIR_DOMAIN_EVENT_ID_BALLOON_CHANGE, simple, "balloon"),
        (libvirt.VIR_DOMAIN_EVENT_ID_TUNABLE, simple, "pin"),
        (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED, simple, "device"),
        (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, simple, "device"),
    ]
    for number, callback, word in wanted:
        with contextlib.suppress(libvirt.libvirtError):  # what a driver does not know does not happen there
            connection.domainEventRegisterAny(None, number, callback, word)


# virDomainEventType; a domain that is defined or undefined does not start or stop by that.
_LIFECYCLE = {2: "started", 3: "suspended", 4: "resumed", 5: "stopped", 8: "stopped"}
