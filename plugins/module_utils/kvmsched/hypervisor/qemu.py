# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find a domain's QEMU process, and tell what hinders a question to it, without asking it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Container, Optional

from .. import procfs
from ..model import Domain
from .binding import libvirt
from .errors import OPERATION_UNSUPPORTED

# A monitor command that is under way for so long is not just another client's poll.
_OCCUPIED_MS = 1000


@dataclass(frozen=True)
class Hindrance:
    """Why a change of a domain would have to wait. ``silent``: its QEMU answers nothing, so it is not even asked."""

    reason: str
    silent: bool = False


def no_answer(why: str) -> Hindrance:
    """Return that a QEMU does not answer, and *why*."""
    return Hindrance(f"QEMU does not answer: {why}", silent=True)


def stopped_process(process: Optional[procfs.Process]) -> Optional[Hindrance]:
    """Return what a stopped *process* hinders; None of one that runs or is not known."""
    if process is None or not process.stopped:
        return None
    return no_answer(f"its process {process.pid} is stopped (SIGSTOP?)")


def hindrance(handle: Any, process: Optional[procfs.Process]) -> Optional[Hindrance]:
    """Return why a change of this domain would have to wait, asked in ways that never wait themselves."""
    stopped = stopped_process(process)
    if stopped:
        return stopped
    try:
        state, _details, ms = handle.controlInfo()
        if state == libvirt.VIR_DOMAIN_CONTROL_ERROR:
            return no_answer("its monitor failed, virsh domcontrol says how")
        if state == libvirt.VIR_DOMAIN_CONTROL_OCCUPIED and ms >= _OCCUPIED_MS:
            return no_answer(f"a command to it is under way for {ms / 1000:.0f} s")
        if _has_job(handle):
            return Hindrance("a job is under way (migration, backup, dump...), virsh domjobinfo shows it")
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
            raise
    return None


def _has_job(handle: Any) -> bool:
    """Return whether something is done to a domain. Of one that migrates in only its source tells how far that is."""
    try:
        return bool(handle.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE)
    except libvirt.libvirtError as error:
        if error.get_error_code() != OPERATION_UNSUPPORTED:
            raise
        return True


class Processes:
    """The QEMU processes of the domains, where this process can see them: *local*."""

    def __init__(self, local: bool, session: bool) -> None:
        self._local, self._session = local, session
        # By UUID and id, for another run of a domain is another process.
        self._processes: dict[tuple[str, int], procfs.Process] = {}
        self._threads: dict[tuple[str, int], procfs.VcpuThreads] = {}

    def keep(self, runs: Container[tuple[str, int]]) -> None:
        """Forget all but the domains of these UUIDs and ids."""
        # A call that was abandoned may go on at any time, and add to these.
        self._processes = {run: process for run, process in list(self._processes.items()) if run in runs}
        self._threads = {run: threads for run, threads in list(self._threads.items()) if run in runs}

    def look(self, domain: Domain) -> Optional[procfs.Process]:
        """Return a domain's process as it is now; None where it can't be seen, or ended."""
        if not self._local:
            return None
        known = self._processes.get((domain.uuid, domain.id))
        process = known.again() if known else procfs.qemu_process(domain.name, self._session)
        if process is not None:
            self._processes[domain.uuid, domain.id] = process
        return process

    def known(self, domain: Domain) -> Optional[procfs.Process]:
        """Return a domain's process as it was last seen."""
        return self._processes.get((domain.uuid, domain.id))

    def all(self) -> list[procfs.Process]:
        return list(self._processes.values())

    def ended(self, domain: Domain) -> bool:
        """Return whether the process that was observed is gone; libvirt itself takes half a second to see that."""
        return domain.started_s is not None and self.look(domain) is None

    def threads(self, domain: Domain) -> Optional[procfs.VcpuThreads]:
        """Return where the kernel tells of a domain's vCPUs, faster than libvirt by far, and without ever hanging."""
        run = (domain.uuid, domain.id)
        process = self._processes.get(run)
        if run not in self._threads and process is not None:
            self._threads[run] = procfs.VcpuThreads(process.pid)
        return self._threads.get(run)
