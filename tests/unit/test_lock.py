# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One pass at a time on a host."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
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


@contextlib.contextmanager
def another(script: str, word: str) -> Iterator[subprocess.Popen[str]]:
    """Another process, once it has said *word*."""
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": PACKAGE_PARENT},
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == f"{word}\n"
        yield process


def holder(name: str) -> str:
    """A script that holds the host by the *name* that this expression makes, until its input ends."""
    return (
        "import sys; from kvmsched import lock\n"
        f"with lock.acquire({URI!r}, 0, {name}):\n    print('held', flush=True); sys.stdin.read()\n"
    )


def test_the_holder_is_named_and_the_lock_is_free_again(own_directory: Path) -> None:
    with another(holder("'kvm_vcpu_pin'"), "held") as other:
        named = rf"kvm_vcpu_pin \(pid {other.pid}\) has this host's lock.*lock_timeout"
        with pytest.raises(lock.LockError, match=named), lock.acquire(URI, 0.2, "me"):
            pass
        other.communicate()
        with lock.acquire(URI, 10, "me"):
            assert "me" in (own_directory / "kvmsched" / "lock").read_text()


def test_a_holder_that_was_killed_holds_nothing(own_directory: Path) -> None:
    (own_directory / "kvmsched").mkdir()
    (own_directory / "kvmsched" / "lock").write_text("kvm_vcpu_pin (pid 1)\n")
    with lock.acquire(URI, 0, "me"):
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
    with another(DAEMON, "announced") as daemon:
        assert daemon.stdin is not None and daemon.stdout is not None
        assert lock.acting_daemon(URI) == daemon.pid
        there = rf"pid {daemon.pid}\) manages this host already"
        with pytest.raises(lock.LockError, match=there), lock.announce(URI, "observe"):
            pass
        with lock.acquire(URI, 0, "a pass"):  # two locks: the daemon holds the host's own only during its passes
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


@pytest.mark.parametrize("mode", ["act", "grow-only"])
def test_whoever_does_not_only_observe_acts(mode: str) -> None:
    with lock.announce(URI, mode):
        assert lock.daemon(URI) == ("act", os.getpid())


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
    with pytest.raises(lock.LockError, match="can't be opened"), lock.acquire(URI, 0, "me"):
        pass
    assert not (own_directory / "victim").exists()


@pytest.mark.parametrize("name", ["lock", "daemon"])
def test_a_fifo_in_place_of_a_file_holds_nobody_up(own_directory: Path, name: str) -> None:
    """A careless mkfifo, or one that is meant: reading it would wait for ever."""
    (own_directory / "kvmsched").mkdir()
    os.mkfifo(own_directory / "kvmsched" / name)
    if name == "lock":
        with (
            pytest.raises(lock.LockError, match=r"can't be opened \(it is no regular file"),
            lock.acquire(URI, 0, "me"),
        ):
            pass
    else:
        with pytest.raises(OSError, match="it is no regular file"):
            lock.daemon(URI)
        assert lock.acting_daemon(URI) is None


def test_what_a_holder_says_of_itself_is_cut(own_directory: Path) -> None:
    with another(holder("'x' * 10**6"), "held") as other:
        with pytest.raises(lock.LockError) as caught, lock.acquire(URI, 0, "me"):
            pass
        assert len(str(caught.value)) < 500
        other.communicate()


def test_who_may_use_its_directory_may_use_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon of a user in libvirt's group must not lock out root's colleagues there, nor be locked out.

    Whoever comes first makes the file, be the directory his own or another member's.
    """
    with tempfile.TemporaryDirectory() as directory:
        monkeypatch.setenv("XDG_RUNTIME_DIR", directory)
        os.chmod(directory, 0o711)
        shared = Path(directory, "kvmsched")
        shared.mkdir()
        user, group = (1234, 5678) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
        cases = [(user, 0o770, 0o660), (user, 0o700, 0o600), *([(0, 0o770, 0o660)] if os.geteuid() == 0 else [])]
        for owner, rights, expected in cases:
            os.chown(shared, owner, group)
            shared.chmod(rights)
            os.setegid(group)
            os.seteuid(user)
            try:
                with lock.acquire(URI, 0, "me"), lock.announce(URI, "observe"):
                    files = [(shared / name).stat() for name in ("lock", "daemon")]
            finally:
                os.seteuid(os.getuid())
                os.setegid(os.getgid())
            assert [(one.st_mode & 0o777, one.st_gid) for one in files] == [(expected, group)] * 2
            for name in ("lock", "daemon"):
                (shared / name).unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="root may look everywhere, and only root can become who may not")
def test_who_may_not_look_is_not_told_that_no_daemon_runs(own_directory: Path) -> None:
    with lock.announce(URI, "act"):
        os.seteuid(1234)
        try:
            with pytest.raises(PermissionError):
                lock.daemon(URI)
            assert lock.acting_daemon(URI) is None
        finally:
            os.seteuid(0)
        assert lock.daemon(URI) == ("act", os.getpid())


def test_only_the_system_libvirt_shares_a_lock_between_users() -> None:
    assert lock.directory_for("qemu:///system") == lock.SYSTEM_DIRECTORY
    assert lock.directory_for("qemu:///session") != "/run/kvmsched"
