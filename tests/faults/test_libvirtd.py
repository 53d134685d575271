# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What breaks in libvirtd, one of our own or a machine's: it is killed, restarted or hung, or it refuses us.

A pass in a process of its own stops itself at an instant, libvirtd is hurt, and the pass goes on. It
must end by itself, in one line where it failed, and leave what ``released`` restores.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Optional

import faulty
import pytest
from faulty_machine import Own
from herd import Herd, memory_guest, pinned_guest
from lab import Lab, OwnLibvirtd
from nightly import nightly


@pytest.fixture(scope="module")
def own_herds(own: Own) -> Iterator[dict[str, Herd]]:
    with Lab(own=own) as lab:
        memory = [memory_guest(f"own{number}") for number in range(2)]
        pinned = [pinned_guest(f"own{number}") for number in range(4)]
        lab.start(*memory, *pinned)
        yield {"memory": Herd(lab, "memory", memory), "vcpu": Herd(lab, "vcpu", pinned)}


@pytest.fixture
def own_herd(resource: str, own: Own, own_herds: dict[str, Herd]) -> Iterator[Herd]:
    """Guests under a libvirtd that may be broken, which a pass of *resource* wants to change."""
    herd = own_herds[resource]
    yield herd
    own.ensure()
    herd.reconnect()
    herd.release()
    herd.assert_restored()


def hurt(herd: Herd, instant: str, how: Callable[[], None], patience: Optional[float] = None) -> tuple[int, str]:
    """Let a pass run into that, and return its exit status and what it said."""
    child = herd.child(instant=instant, number=signal.SIGSTOP, patience=patience or herd.patience)
    child.wait_stopped()
    how()
    child.signal(signal.SIGCONT)
    status, output = child.end()
    assert "Traceback" not in output, output
    return status, output


@pytest.mark.parametrize("resource", faulty.RESOURCES)
@pytest.mark.parametrize(
    "instant", [*nightly("observe", "statistics", "apply"), pytest.param("change", marks=pytest.mark.machine)]
)
def test_a_restart_of_libvirtd_costs_nobody_its_turn(own: Own, own_herd: Herd, instant: str) -> None:
    # How long a start of libvirtd takes on this machine is not what is judged.
    status, output = hurt(own_herd, instant, own.restart, patience=faulty.PATIENT)
    assert status == 0 and "moved" in output and "failure" not in output, output


@pytest.mark.parametrize(
    ("resource", "instant"),
    [
        ("vcpu", "statistics"),
        ("memory", "change"),
        *nightly(("vcpu", "observe"), ("vcpu", "apply"), ("vcpu", "change"), ("memory", "statistics")),
    ],
)
# On a machine systemd starts one that was killed.
@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.machine)])
def test_without_libvirtd_a_pass_ends_in_one_line(
    own: Own, own_herd: Herd, instant: str, number: signal.Signals
) -> None:
    status, output = hurt(own_herd, instant, lambda: own.signal(number))
    assert status == 1 and output.count("failed: ") == 1, output
    if instant in ("observe", "statistics"):
        assert "failed: uri: libvirt at qemu:///system" in output, output


@pytest.mark.parametrize("resource", ["memory"])
def test_a_pass_that_fails_half_way_tells_what_it_changed(own: Own, own_herd: Herd) -> None:
    status, output = hurt(own_herd, "arrival", lambda: own.signal(signal.SIGKILL))
    assert status == 1 and output.count("moved: ") == len(own_herd.names), output
    assert "failed: uri: libvirt at qemu:///system" in output, output


@pytest.mark.parametrize("resource", ["vcpu"])
def test_a_refusal_by_polkit_is_told_in_one_line(own: Own, own_herd: Herd) -> None:
    """A member of the group libvirt, on a host where polkit decides and says nothing, for it does not run."""
    assert isinstance(own, OwnLibvirtd)
    configuration = own.directory / "etc" / "libvirtd.conf"
    configuration.write_text('auth_unix_rw = "polkit"\nunix_sock_rw_perms = "0777"\n')
    member = ["setpriv", "--reuid=65534", "--regid=libvirt", "--clear-groups", "--"]
    try:
        own.restart()
        status, output = own_herd.child(inside=lambda command: own.inside([*member, *command])).end()
    finally:
        configuration.unlink()
        own.restart()
    assert status == 1 and output.count("\n") == 1 and "failed: uri: libvirt" in output, output
