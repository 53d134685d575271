# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hypervisor hosts: systemd, libvirtd and sshd of the distribution in a container that boots, with guests of its own.

A fleet of them lives in a mount and a network namespace of its own: its mounts, bridge and addresses are nowhere else,
and gone when the last process in there has ended. Memory, pCPUs and their load are those of the machine.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import time
import uuid
from pathlib import Path
from typing import Iterator, Mapping, Optional, Sequence

from . import image, machine, own, system

NETWORK = "10.77.0"
BRIDGE = "fleet"
# Where systemd-nspawn makes a container's cgroup, within its own: two in one would end each other's processes.
CGROUPS = tuple(Path("/sys/fs/cgroup") / name for name in ("", "systemd", "unified"))
SSH = {
    "IdentitiesOnly": "yes",
    "UserKnownHostsFile": "/dev/null",
    "StrictHostKeyChecking": "no",
    "LogLevel": "ERROR",
}
BOOT_S, END_S = 300.0, 180.0
# A container has a boot_id of its own, but a unit with a /proc of its own would see the machine's.
BOOT_ID, COPY = "/proc/sys/kernel/random/boot_id", "/run/lab-boot-id"
BOOT = {
    "usr/lib/tmpfiles.d/lab.conf": f"C {COPY} - - - - {BOOT_ID}",
    "usr/lib/systemd/system/kvmsched.service.d/lab.conf": f"[Service]\nBindReadOnlyPaths=-{COPY}:{BOOT_ID}",
}
POLL_S = 0.1
CLEAN_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
}


class HostError(Exception):
    """A command failed on a host."""


class Host:
    """A host of a Fleet. ``with Lab(own=host) as lab`` has guests on it."""

    def __init__(self, fleet: Fleet, name: str, number: int, lower: str) -> None:
        self.name = name
        self.address = f"{NETWORK}.{number}"
        self.directory = fleet.directory / name  # at the same path inside: guests' files
        self._fleet = fleet
        self._root = fleet.directory / f"{name}.root"
        self._layer = fleet.directory / f"{name}.layer"
        self._lower = lower
        self._process: Optional[subprocess.Popen[bytes]] = None

    # -- its life

    def start(self) -> None:
        """Boot it (again); wait() waits until it is up."""
        if not self._layer.exists():
            self._prepare()
        log = (self._fleet.directory / f"{self.name}.log").open("ab")
        groups = [root / f"{self._fleet.directory.name}-{self.name}" for root in CGROUPS if _is_cgroup(root)]
        for group in groups:
            group.mkdir(exist_ok=True)
        enter = "".join(f"echo $$ >{group}/cgroup.procs; " for group in groups)
        # A host that reboots ends the container with 133.
        again = 'while "$@"; [ $? = 133 ]; do :; done'
        self._process = subprocess.Popen(
            self._fleet.inside(["sh", "-c", enter + again, "sh", *self._container()]),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=machine.environment(),
        )
        log.close()

    def _prepare(self) -> None:
        for part in (self.directory, self._root, self._layer / "upper", self._layer / "work"):
            part.mkdir(parents=True)
        self.directory.chmod(0o755)
        files = {
            "etc/hostname": self.name,
            "etc/machine-id": uuid.uuid4().hex,
            "etc/systemd/network/10-lab.network": f"[Match]\nName=host0\n[Network]\nAddress={self.address}/24\n",
            **BOOT,
            "root/.ssh/authorized_keys": self._fleet.key.with_suffix(".pub").read_text(encoding="utf-8").strip(),
        }
        for name, text in files.items():
            path = self._layer / "upper" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n", encoding="utf-8")
        (self._layer / "upper/root").chmod(0o700)
        overlay = f"lowerdir={self._lower},upperdir={self._layer}/upper,workdir={self._layer}/work"
        self._fleet.outside(["mount", "-t", "overlay", "overlay", "-o", overlay, str(self._root)])

    def _container(self) -> list[str]:
        # Without the fleets in there, whose mounts a host would hold.
        images = f"{machine.DIRECTORY}:{machine.DIRECTORY}:norbind"
        options = ["--quiet", "--keep-unit", "--register=no", "--boot", "--capability=all", "--console=pipe"]
        options += [f"--machine={self.name}", f"--network-bridge={BRIDGE}", f"--bind={images}"]
        return ["systemd-nspawn", *options, f"--directory={self._root}"]

    def wait(self) -> None:
        """Wait until all its services have started; HostError names those that failed."""
        end_s = time.monotonic() + BOOT_S
        while (state := self._state()) not in ("running", "degraded"):
            self._check(end_s, "to boot")
        if state == "degraded":
            failed = self.run("systemctl --failed --plain --no-legend", check=False)
            raise HostError(f"{self.name} is {state}: {failed}")
        while not self._hears(22):
            self._check(end_s, "to listen for ssh")
        machine.connect(self.uri).close()

    def _state(self) -> str:
        return self.run("systemctl is-system-running", check=False).strip() if self._leader() else ""

    def _hears(self, port: int) -> bool:
        probe = self._fleet.inside(["bash", "-c", f"exec 3<>/dev/tcp/{self.address}/{port}"])
        return not subprocess.run(probe, stderr=subprocess.DEVNULL, check=False).returncode

    def _check(self, end_s: float, what: str) -> None:
        assert self._process
        if self._process.poll() is not None or time.monotonic() > end_s:
            log = (self._fleet.directory / f"{self.name}.log").read_text(encoding="utf-8", errors="replace")
            raise TimeoutError(f"{self.name} was {what}, in vain:\n{log[-1500:]}")
        time.sleep(POLL_S)

    def reboot(self) -> None:
        """As an operator does it."""
        before = self._leader()
        self.run("systemctl reboot", check=False)
        end_s = time.monotonic() + END_S
        while self._leader() in (0, before):
            self._check(end_s, "to reboot")
        self.wait()

    def poweroff(self) -> None:
        """As an operator does it; start() boots it again."""
        self.run("systemctl poweroff", check=False)
        assert self._process
        self._process.wait(END_S)

    def reap(self) -> None:
        """When it was ended from outside."""
        if self._process:
            self._process.wait()

    def lose(self) -> None:
        """Pull its cable; find() plugs it in again."""
        self._fleet.outside(["ip", "link", "set", f"vb-{self.name}", "down"])

    def find(self) -> None:
        self._fleet.outside(["ip", "link", "set", f"vb-{self.name}", "up"])

    # -- what runs on it

    def inside(self, command: Sequence[str]) -> list[str]:
        """*command* as it must be run to run on the host, as root."""
        variables = [f"{name}={value}" for name, value in CLEAN_ENVIRONMENT.items()]
        leader = self._leader()
        if not leader:
            raise HostError(f"{self.name} is down")
        return ["nsenter", f"--target={leader}", "--all", "--", "env", "-i", *variables, *command]

    def run(self, command: str, check: bool = True) -> str:
        """Run a shell command; return what it wrote to stdout, HostError with its stderr if it failed."""
        done = subprocess.run(
            self.inside(["sh", "-c", command]), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if check and done.returncode:
            raise HostError(f"{self.name}: {command}: {done.returncode}\n{done.stderr}{done.stdout}")
        return done.stdout

    def read(self, path: str) -> str:
        return self.path(path).read_text(encoding="utf-8")

    def write(self, path: str, text: str) -> None:
        self.path(path).parent.mkdir(parents=True, exist_ok=True)
        self.path(path).write_text(text, encoding="utf-8")

    def path(self, inside: str) -> Path:
        """A file of the host, as seen from outside, while it is up."""
        return Path(f"/proc/{self._leader()}/root{inside}")

    def pid_outside(self, inside: int) -> int:
        """A process of the host, as the outside numbers it."""
        namespace = os.stat(f"/proc/{self._leader()}/ns/pid").st_ino
        for pid, numbers in _processes():
            with contextlib.suppress(OSError):
                if numbers[-1] == inside and os.stat(f"/proc/{pid}/ns/pid").st_ino == namespace:
                    return pid
        raise ProcessLookupError(f"{self.name} has no process {inside}")

    def _leader(self) -> int:
        """Its init, 0 while there is none."""
        mark = f"upperdir={self._layer}/upper"
        for pid, numbers in _processes():
            if len(numbers) > 1 and numbers[-1] == 1:
                with contextlib.suppress(OSError):
                    root = Path(f"/proc/{pid}/mountinfo").read_text(encoding="utf-8").partition("\n")[0]
                    if mark in root and os.readlink(f"/proc/{pid}/root") == "/":
                        return pid
        return 0

    # -- what a Lab needs to have guests on it

    @property
    def uri(self) -> str:
        """Its qemu:///system, from outside."""
        return f"qemu+unix:///system?socket={self.path('/run/libvirt/libvirt-sock')}"

    def qemu_pid(self, guest: str) -> int:
        """The outside's pid of a guest's QEMU."""
        return self.pid_outside(int(self.read(f"/run/libvirt/qemu/{guest}.pid")))

    def ensure(self) -> None:
        """Have libvirt answer."""
        self.run("systemctl start libvirtd")


class Fleet:
    """``with Fleet("kvmsched-h1", "kvmsched-h2") as fleet``: hosts that are up, and an inventory of them.

    ``bare`` are further hosts, without the packages that kvmsched needs. One fleet a process, at a time.
    """

    def __init__(self, *names: str, bare: Sequence[str] = (), say: machine.Say = machine.quiet) -> None:
        self.directory = machine.DIRECTORY / f"fleet-{os.getpid()}-{machine.process_start(os.getpid())}"
        self.key = self.directory / "key"
        self.inventory = self.directory / "hosts.ini"
        self.hosts: dict[str, Host] = {}
        self._names = {**dict.fromkeys(names, False), **dict.fromkeys(bare, True)}
        self._say = say
        self._holder: Optional[subprocess.Popen[bytes]] = None

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def __iter__(self) -> Iterator[Host]:
        return iter(self.hosts.values())

    def __enter__(self) -> Fleet:
        layers = prepare(self._say)
        clean()
        self._endings = machine.Endings()
        try:
            self.directory.mkdir()
            self._hold()
            machine.quietly(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key)])
            for number, (name, bare) in enumerate(self._names.items(), 2):
                lower = f"{layers.bare}" if bare else f"{layers.ready}:{layers.bare}"
                self.hosts[name] = Host(self, name, number, lower)
                self.hosts[name].start()
            self._write_inventory()
            for host in self:
                host.wait()
                self._say(f"{host.name} is up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        with self._endings.put_off():
            own.remove(self.directory)
            if self._holder:
                self._holder.wait()
            for host in self:
                host.reap()
            _remove_cgroups(self.directory.name)

    def _hold(self) -> None:
        """Make the namespaces, and keep them."""
        mark = shlex.quote(str(self.directory))
        commands = [
            f"mount --bind {mark} {mark}",  # by this mount all processes in here are found
            "ip link set lo up",
            f"ip link add {BRIDGE} type bridge",
            f"ip address add {NETWORK}.1/24 dev {BRIDGE}",
            f"ip link set {BRIDGE} up",
            "echo ready",
            "exec sleep infinity",
        ]
        namespace = ["unshare", "--mount", "--net", "--propagation", "private", "sh", "-c", " && ".join(commands)]
        self._holder = subprocess.Popen(namespace, stdout=subprocess.PIPE, env=machine.environment())
        if not self._holder.stdout or self._holder.stdout.readline() != b"ready\n":
            raise RuntimeError("can't make a namespace for the hosts")

    def inside(self, command: Sequence[str]) -> list[str]:
        """*command* as it must be run to reach the hosts' network."""
        assert self._holder
        return ["nsenter", f"--target={self._holder.pid}", "--mount", "--net", "--", *command]

    def outside(self, command: Sequence[str]) -> None:
        """Run *command* beside the hosts, in their network."""
        machine.quietly(self.inside(command))

    def _write_inventory(self) -> None:
        """Ansible itself runs in the machine's own network; its ssh runs in the hosts'."""
        ssh = self.directory / "ssh"
        ssh.write_text(f'#!/bin/sh\nexec {shlex.join(self.inside(["ssh"]))} "$@"\n', encoding="utf-8")
        ssh.chmod(0o755)
        options = {
            "ConnectTimeout": "20",  # a busy machine
            "ServerAliveInterval": "2",
            "ServerAliveCountMax": "10",
            "ControlMaster": "auto",
            "ControlPersist": "30",
            "ControlPath": f"{self.directory}/%h",
        }
        addresses = [f"{host.name} ansible_host={host.address}" for host in self]
        text = inventory(addresses, self.key, options, ansible_ssh_executable=str(ssh))
        self.inventory.write_text(text, encoding="utf-8")


def ssh_options(options: Mapping[str, str]) -> list[str]:
    """Those of an ssh to a host of the tests: no file of the user is read or written."""
    return ["-F", "none", *(part for name, value in {**SSH, **options}.items() for part in ("-o", f"{name}={value}"))]


def inventory(addresses: Sequence[str], key: Path, options: Mapping[str, str], **more: str) -> str:
    """For ansible --inventory: *addresses* are lines of hosts, *more* are further variables of them all."""
    variables: Mapping[str, str] = {
        "ansible_user": "root",
        "ansible_ssh_private_key_file": str(key),
        "ansible_ssh_transfer_method": "piped",
        "ansible_ssh_args": " ".join(ssh_options(options)),
        "ansible_ssh_pipelining": "true",
        "ansible_python_interpreter": "/usr/bin/python3",
        **more,
    }
    common = [f"{name}={value}" for name, value in variables.items()]
    return "\n".join(["[hypervisors]", *addresses, "", "[hypervisors:vars]", *common, ""])


def prepare(say: machine.Say = machine.quiet) -> system.System:
    """Install the packages that are missing, and make what the hosts boot, unless it is there."""
    with machine.exclusive():
        machine.install(say, hosts=True)
        machine.DIRECTORY.mkdir(parents=True, exist_ok=True)
        image.build(machine.DIRECTORY)
        return system.build(machine.DIRECTORY, say)


def clean() -> list[str]:
    """Remove fleets whose process is gone, or this one; return their names."""
    removed = own.clean("fleet")
    for name in removed:
        _remove_cgroups(name)
    return removed


def _remove_cgroups(fleet: str) -> None:
    groups = {group for root in CGROUPS for top in root.glob(f"{fleet}-*") for group in top.glob("**/")}
    end_s = time.monotonic() + END_S
    for group in sorted(groups, reverse=True):  # the inner ones first
        while group.exists():
            try:
                group.rmdir()
            except OSError:  # somebody in there is just ending
                if time.monotonic() > end_s:
                    raise
                time.sleep(POLL_S)


def _is_cgroup(directory: Path) -> bool:
    return (directory / "cgroup.procs").exists()


def _processes() -> Iterator[tuple[int, list[int]]]:
    """Every process: its pid here, and its pids from the outermost namespace to its own."""
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            text = status.read_text(encoding="utf-8", errors="replace")
            numbers = text.partition("\nNSpid:")[2].partition("\n")[0]
            yield int(status.parent.name), [int(number) for number in numbers.split()]
