# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes wrong with libvirt or one of its domains, and what each error means."""

from __future__ import annotations

import errno
import threading
from typing import Any, Optional

from ..model import FailureCode
from ..units import one_line
from .binding import libvirt

# What libvirt passes on where a QEMU dies under it, before its process is gone.
NO_PROCESS = (errno.ESRCH, errno.ECONNRESET, errno.EPIPE)
# Some codes have no name in the binding of libvirt 8.
OPERATION_UNSUPPORTED = 84


class Unavailable(Exception):
    """libvirt itself can't be reached or does not answer; the text is one line for people."""


class Hung(Exception):
    """A call did not return in its time and was abandoned, or not even begun for want of time.

    ``thread`` is the abandoned one.
    """

    thread: Optional[threading.Thread] = None


class Gone(Exception):
    """The domain that was observed, or a vCPU of it, does not run any more; another run may have its UUID."""


class Busy(Exception):
    """A change would have to wait."""


class Unread(Exception):
    """Nothing is known of a domain. ``maximum_kib`` is what it is charged at."""

    def __init__(self, handle: Any, text: str) -> None:
        super().__init__(text)
        told = handle.maxMemory()
        self.maximum_kib = told if isinstance(told, int) else 0


class Unreadable(Unread):
    """Its definition is out of bounds."""


class Passing(Unread, Busy):
    """It has a state, but for a moment only, in which libvirt can't tell of it: it has no QEMU yet, or no more."""


def explain(error: Exception) -> tuple[FailureCode, str]:
    """Return a fixed word and one line for what went wrong with one domain.

    ``gone`` (it ended, or was started anew), ``busy`` (a job or another client holds it), ``hung``,
    ``denied``, ``unsupported``, ``away`` (libvirt itself), ``unreadable`` (its XML), ``error``.
    """
    if isinstance(error, (Hung, Gone, Busy, Unreadable, Unavailable)):
        words: dict[type[Exception], FailureCode] = {
            Hung: "hung",
            Gone: "gone",
            Busy: "busy",
            Passing: "busy",
            Unreadable: "unreadable",
            Unavailable: "away",
        }
        word = words[type(error)]
        return word, str(error) or "it did not answer in time, what was asked may still happen; try virsh domcontrol"
    if not isinstance(error, libvirt.libvirtError):
        return "error", one_line(error)
    code, text = error.get_error_code(), one_line(error)
    if code == libvirt.VIR_ERR_NO_DOMAIN:
        return "gone", "it ended in the middle of the pass"
    if code == libvirt.VIR_ERR_OPERATION_TIMEOUT:
        return "busy", f"another job holds it, virsh domjobinfo shows it: {text}"
    if code in (libvirt.VIR_ERR_OPERATION_DENIED, libvirt.VIR_ERR_ACCESS_DENIED):
        return "denied", f"libvirt refuses the change, root and group libvirt may make it: {text}"
    if code in (libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED, OPERATION_UNSUPPORTED):
        return "unsupported", f"this libvirt can't do it: {text}"
    return "error", text


def connection_lost(error: Exception) -> bool:
    """Return whether the RPC layer failed: the driver's own errors have the same codes, but another domain."""
    return isinstance(error, libvirt.libvirtError) and error.get_error_domain() == libvirt.VIR_FROM_RPC


def or_gone(error: Exception, handle: Any, ended: bool) -> Exception:
    """Return *error*, or Gone where the domain ended meanwhile: libvirt has many codes for that."""
    if connection_lost(error) or (handle.isActive() and not ended):
        return error
    return Gone(f"it ended in the middle of the pass: {one_line(error)}")
