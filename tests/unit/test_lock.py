# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One pass at a time on a host."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import kvmsched
import pytest
from kvmsched import lock

PACKAGE_PARENT = str(Path(kvmsched.__file__).parent.parent)


@pytest.fixture(autouse=True)
def own_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


URI = "qemu:///session"


def test_the_holder_is_named_and_the_lock_is_free_again(own_directory: Path) -> None:
    script = (
        "import sys, time; from kvmsched import lock\n"
        f"with lock.hold({URI!r}, 0, 'kvm_vcpu_pin'):\n    print('held', flush=True); sys.stdin.read()\n"
    )
    environment = {**os.environ, "PYTHONPATH": PACKAGE_PARENT}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as other:
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == "held\n"
        named = rf"kvm_vcpu_pin \(pid {other.pid}\) holds this host.*lock_timeout"
        with pytest.raises(lock.LockError, match=named), lock.hold(URI, 0.2, "me"):
            pass
        other.stdin.close()
        with lock.hold(URI, 10, "me"):
            assert "me" in (own_directory / "kvmsched" / "lock").read_text()


def test_a_holder_that_was_killed_holds_nothing(own_directory: Path) -> None:
    (own_directory / "kvmsched").mkdir()
    (own_directory / "kvmsched" / "lock").write_text("kvm_vcpu_pin (pid 1)\n")
    with lock.hold(URI, 0, "me"):
        pass


DAEMON = (
    "import sys; from kvmsched import lock\n"
    f"with lock.announce({URI!r}, 'act') as set_mode:\n"
    "    print('announced', flush=True)\n"
    "    for mode in sys.stdin:\n"
    "        set_mode(mode.strip()); print('set', flush=True)\n"
)


def test_an_acting_daemon_is_known_by_its_pid_until_it_is_gone() -> None:
    assert lock.acting_daemon(URI) is None
    environment = {**os.environ, "PYTHONPATH": PACKAGE_PARENT}
    with subprocess.Popen(
        [sys.executable, "-c", DAEMON], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as daemon:
        assert daemon.stdin is not None and daemon.stdout is not None
        assert daemon.stdout.readline() == "announced\n"
        assert lock.acting_daemon(URI) == daemon.pid
        there = rf"pid {daemon.pid}\) manages this host already"
        with pytest.raises(lock.LockError, match=there), lock.announce(URI, "observe"):
            pass
        with lock.hold(URI, 0, "a pass"):  # two locks: the daemon holds the host's own only during its passes
            pass
        daemon.stdin.write("observe\n")
        daemon.stdin.flush()
        assert daemon.stdout.readline() == "set\n"
        assert lock.acting_daemon(URI) is None
        daemon.stdin.write("act\n")
        daemon.stdin.flush()
        assert daemon.stdout.readline() == "set\n"
        daemon.kill()
        daemon.wait()
    assert lock.acting_daemon(URI) is None


def test_a_daemon_is_not_in_its_own_way() -> None:
    with lock.announce(URI, "act"):
        assert lock.acting_daemon(URI) is None


def test_a_daemon_that_could_not_say_who_it_is_is_there_all_the_same(own_directory: Path) -> None:
    with lock.announce(URI, "act"):
        (own_directory / "kvmsched" / "daemon").write_text("")
        assert lock.acting_daemon(URI) == 0


def test_a_link_in_place_of_the_lock_is_not_followed(own_directory: Path) -> None:
    (own_directory / "kvmsched").mkdir()
    (own_directory / "kvmsched" / "lock").symlink_to(own_directory / "victim")
    with pytest.raises(lock.LockError, match="can't be opened"), lock.hold(URI, 0, "me"):
        pass
    assert not (own_directory / "victim").exists()


def test_only_the_system_libvirt_shares_a_lock_between_users() -> None:
    assert lock.directory_for("qemu:///system") == "/run/kvmsched"
    assert lock.directory_for("qemu:///session") != "/run/kvmsched"
