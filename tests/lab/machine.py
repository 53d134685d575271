# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make this machine able to run guests: packages, libvirt's daemons, and whether KVM really works."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import shlex
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence, Union

from .truth import process_start

Say = Callable[[str], None]

DIRECTORY = Path(os.environ.get("KVMSCHED_LAB", "/var/lib/libvirt/images/kvmsched-lab"))  # QEMU's user gets in there
PACKAGES = {  # what is needed -> the package that has it
    "libvirtd": "libvirt-daemon-system",
    "virsh": "libvirt-clients",
    "qemu-system-x86_64": "qemu-system-x86",
    "gcc": "gcc",
    "qemu-img": "qemu-utils",
}
FOR_HOSTS = {
    "mmdebstrap": "mmdebstrap",
    "systemd-nspawn": "systemd-container",
    "ip": "iproute2",
    "ssh": "openssh-client",
}
FOR_MACHINES = {
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "setpriv": "util-linux",
    "ssh": "openssh-client",
    "lz4": "lz4",
    "zstd": "zstd",
}
FILES = {"/usr/include/stdlib.h": "libc6-dev"}
BINDINGS = {"libvirt": "python3-libvirt", "jsonschema": "python3-jsonschema"}
KERNELS = ("linux-image-cloud-amd64", "linux-image-kvm", "linux-image-virtual", "linux-image-generic")
DAEMONS = ("virtlogd", "libvirtd")
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def quiet(_line: str) -> None:
    """Say nothing."""


def prepare(say: Say = quiet) -> None:
    """Install the packages that are missing and start libvirt's daemons where nothing else does."""
    with exclusive():
        install(say)
        start_daemons(say)


@contextlib.contextmanager
def exclusive(path: Union[str, Path] = "/run/kvmsched-lab.lock") -> Iterator[None]:
    """Hold the lab's lock: one process at a time installs, builds or starts daemons. Another *path* is another lock."""
    with open(path, "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# ---------------------------------------------------------------- packages


def install(say: Say = quiet, hosts: bool = False, machines: bool = False) -> None:
    """Install the packages that are missing (Debian and Ubuntu), those for *hosts* or *machines* too."""
    missing = missing_packages(hosts, machines)
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise RuntimeError(f"missing here, and there is no apt-get to install it: {', '.join(missing)}")
    say(f"installing {' '.join(missing)}")
    _apt("update")
    _apt(
        "install", "--yes", "--no-install-recommends", *[_available_kernel() if p == KERNELS[0] else p for p in missing]
    )
    importlib.invalidate_caches()


def missing_packages(hosts: bool = False, machines: bool = False) -> list[str]:
    """Packages that the lab needs and does not find."""
    programs = {**PACKAGES, **(FOR_HOSTS if hosts else {}), **(FOR_MACHINES if machines else {})}
    missing = [package for program, package in programs.items() if not shutil.which(program, path=_path())]
    missing += [package for file, package in FILES.items() if not os.path.exists(file)]
    missing += [package for module, package in BINDINGS.items() if not importlib.util.find_spec(module)]
    kernels = [path for path in Path("/boot").glob("vmlinuz-*") if os.path.isdir(f"/lib/modules/{path.name[8:]}")]
    return missing if kernels else [*missing, KERNELS[0]]


def environment() -> dict[str, str]:
    """The environment for programs that a user's PATH may not have."""
    return {**os.environ, "PATH": _path()}


def _path() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def _available_kernel() -> str:
    for package in KERNELS:
        if subprocess.run(["apt-cache", "show", package], capture_output=True, check=False).stdout:
            return package
    raise RuntimeError(f"none of these packages is available: {', '.join(KERNELS)}")


def _apt(*arguments: str) -> None:
    quietly(["apt-get", "--quiet", *arguments], DEBIAN_FRONTEND="noninteractive")


def quietly(command: Sequence[str], **variables: str) -> None:
    """Run a command; RuntimeError with the end of what it said if it failed."""
    done = subprocess.run(
        command,
        env={**environment(), **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stdout[-2000:]}")


# ---------------------------------------------------------------- daemons


def connect(uri: str = "qemu:///system", wait_s: float = 180) -> Any:
    """Open a libvirt connection; wait for a daemon that is just starting."""
    import libvirt

    libvirt.registerErrorHandler(lambda *_arguments: None, None)
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return libvirt.open(uri)
        except libvirt.libvirtError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def start_daemons(say: Say = quiet) -> None:
    """Start virtlogd and libvirtd unless something answers already; they stay until stop_daemons()."""
    import libvirt

    try:
        connect(wait_s=0).close()
        return
    except libvirt.libvirtError:
        pass
    if os.path.isdir("/run/systemd/system"):
        say("starting libvirtd")
        subprocess.run(["systemctl", "start", "libvirtd"], check=True, capture_output=True)
    else:
        for daemon in DAEMONS:
            if not _daemon_pid(daemon):
                say(f"starting {daemon}")
                subprocess.run([daemon, "--daemon"], check=True, env=environment())
                _note(daemon).write_text(_daemon_identity(daemon), encoding="utf-8")
    connect().close()


def stop_daemons() -> list[str]:
    """End the daemons that start_daemons() started without systemd, unless a guest still runs; return their names."""
    if any(_note(daemon).exists() for daemon in DAEMONS):
        connection = connect()
        guests = connection.numOfDomains()
        connection.close()
        if guests:
            raise RuntimeError(f"{guests} guests still run: the daemons are left alone")
    stopped = []
    for daemon in reversed(DAEMONS):
        note = _note(daemon)
        if note.exists():
            if note.read_text(encoding="utf-8") == _daemon_identity(daemon):
                os.kill(_daemon_pid(daemon), signal.SIGTERM)
                stopped.append(daemon)
            note.unlink()
    return stopped


def _note(daemon: str) -> Path:
    return Path(f"/run/kvmsched-lab-{daemon}")


def _daemon_pid(daemon: str) -> int:
    """The pid of a running system daemon, 0 if there is none."""
    try:
        pid = int(Path(f"/run/{daemon}.pid").read_text(encoding="utf-8"))
        running = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip() == daemon
    except (OSError, ValueError):
        return 0
    return pid if running else 0


def _daemon_identity(daemon: str) -> str:
    pid = _daemon_pid(daemon)
    return f"{pid} {process_start(pid)}" if pid else ""


def qemu_pid(guest: str, run_directory: Path = Path("/run/libvirt")) -> int:
    """The pid that libvirt has for a guest's QEMU."""
    return int((run_directory / "qemu" / f"{guest}.pid").read_text(encoding="utf-8"))


# ---------------------------------------------------------------- the end


class Endings:
    """From now on SIGTERM and SIGHUP end this process by an exception, so that it cleans up."""

    def __init__(self) -> None:
        self._before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, _exit) for number in ENDINGS[1:]}

    @contextlib.contextmanager
    def put_off(self) -> Iterator[None]:
        """Let nobody interrupt the cleaning up; then all is as before."""
        if not self._before:
            yield
            return
        interrupt = {number: signal.signal(number, signal.SIG_IGN) for number in ENDINGS}
        try:
            yield
        finally:
            for number, handler in {**interrupt, **self._before}.items():
                signal.signal(number, handler)


def _exit(number: int, _frame: Any) -> None:
    raise SystemExit(128 + number)


# ---------------------------------------------------------------- KVM


def kvm_works(kernel: Path, initramfs: Path) -> bool:
    """Whether a lab guest really boots under KVM: on some machines /dev/kvm opens and even starts a BIOS, no more.

    Tried once per boot of this machine.
    """
    verdict = Path("/run/kvmsched-lab-kvm")
    if not verdict.exists():
        verdict.write_text(
            "kvm" if os.path.exists("/dev/kvm") and _boots_under_kvm(kernel, initramfs) else "no", encoding="utf-8"
        )
    return verdict.read_text(encoding="utf-8") == "kvm"


def _boots_under_kvm(kernel: Path, initramfs: Path, timeout_s: float = 60) -> bool:
    guest = ["-kernel", str(kernel), "-initrd", str(initramfs), "-append", "console=ttyS0 quiet"]
    devices = ["-nodefaults", "-display", "none", "-serial", "stdio"]
    command = ["qemu-system-x86_64", "-accel", "kvm", "-m", "256", *guest, *devices]
    qemu = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    timer = threading.Timer(timeout_s, qemu.kill)
    timer.start()
    try:
        assert qemu.stdout
        return any(b" ready" in line for line in qemu.stdout)
    finally:
        timer.cancel()
        qemu.kill()
        qemu.wait()
