# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A hypervisor in a machine that QEMU emulates whole: KVM works in it; pCPUs and cells are what a test asks for.

It is reached on loopback only, and has no way out. Its first boot is kept as a snapshot: later starts go on from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
import shlex
import shutil
import socket
import subprocess
import time
import uuid
from pathlib import Path
from typing import Optional, Sequence

from .. import hosts, image, machine, own
from ..guest import Files
from ..hosts import HostError
from .far import Far
from .system import DIRECTORY, build
from .topology import Topology

# AMD's virtualisation with nested paging, SMT that Linux sees, and nothing that the emulator lacks.
LACKS = (
    *("rdseed", "sha-ni", "rdpid", "fxsr-opt", "misalignsse", "3dnowprefetch", "osvw", "perfctr-core", "clzero"),
    *("xsaveerptr", "wbnoinvd", "ibpb", "amd-stibp", "nrip-save", "xsavec", "xsaves"),
)
CPU = "EPYC-Rome,+svm,+topoext,x-force-features=on," + ",".join(f"-{feature}" for feature in LACKS)
# Any other clock than tsc is a trip to the emulator's main loop at each look.
CLOCK = "tsc=reliable clocksource=tsc no_timer_check"
# Emulated CPUs may run code that the kernel patches at that instant: it panics then, mostly while it boots.
PANIC = "panic=1"
KERNEL_ARGUMENTS = (
    f"root=/dev/vda rw console=ttyS0 quiet mitigations=off {CLOCK} {PANIC} nokaslr audit=0 nowatchdog net.ifnames=0"
)
# As its first guest starts the kernel patches its scheduler, at which emulated CPUs may panic: so one is always there.
HOLDS = "import fcntl, os, signal; vm = fcntl.ioctl(os.open('/dev/kvm', os.O_RDWR), 0xAE01, 0); signal.pause()"
HOLDER = f'[Service]\nExecStart=/usr/bin/python3 -c "{HOLDS}"\n[Install]\nWantedBy=multi-user.target\n'
ROOT = "root@127.0.0.1"
WIRE = "10.78.0"
COLLECTION = "/usr/local/lib/kvmsched-collection"
# Bounds on waiting: no healthy machine comes near them. BOOT_S is of its own clock.
BOOT_S, CONNECT_S, MONITOR_S = 600.0, 1800.0, 900.0
POLL_S = 0.5


class Machine:
    """``with Machine("trixie", Topology(sockets=1)) as machine, Lab(own=machine) as lab``: guests there have type kvm.

    *arguments* are further ones of its kernel (``isolcpus=7``). Machines of one process with other *number*s reach each
    other as ``machine.wire_address``. One that is *kept* outlives this process: see up.py.
    """

    def __init__(
        self,
        suite: str = "bookworm",
        topology: Optional[Topology] = None,
        arguments: str = "",
        number: int = 1,
        say: machine.Say = machine.quiet,
        kept: bool = False,
    ) -> None:
        owner = "kept" if kept else f"{os.getpid()}-{machine.process_start(os.getpid())}"
        self.name = f"kvmsched-m{number}"
        self.suite = suite
        self.topology = topology or Topology()
        self.directory = machine.DIRECTORY / f"machine-{owner}" / f"m{number}"  # at the same path inside: guests' files
        self.wire_address = f"{WIRE}.{number}"
        self.inventory = self.directory / "hosts.ini"
        self.uri = f"qemu+unix:///system?socket={self.directory}/libvirt"
        self.image = image.Image(*(machine.DIRECTORY / name for name in ("vmlinux", "initramfs", "blank.img")))
        self.kernel = Far(self.ssh)
        self._arguments = arguments
        self._number = number
        self._say = say
        self._kept = kept
        self._disk = self.directory / "disk.qcow2"
        self._port = 0
        self._qemu: Optional[subprocess.Popen[bytes]] = None
        self._master: Optional[subprocess.Popen[bytes]] = None
        self._consoles: dict[str, subprocess.Popen[bytes]] = {}

    # -- its life

    def __enter__(self) -> Machine:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        with self._endings.put_off():
            self.cut_power()
            shutil.rmtree(self.directory, ignore_errors=True)
            with contextlib.suppress(OSError):  # the other machines of this process are there
                self.directory.parent.rmdir()

    def start(self) -> None:
        """Have it up, from its snapshot; there is none before its first start."""
        machine.install(self._say, machines=True)
        DIRECTORY.mkdir(parents=True, exist_ok=True)
        if not self.directory.parent.exists():
            own.clean("machine")
        self._endings = machine.Endings()
        try:
            self.directory.mkdir(parents=True)
            with machine.exclusive(DIRECTORY / "lock"):
                self._system = build(self.suite, self._say)
                self._guest_files = _guest_files()
                snapshot = self._snapshot()
            machine.quietly(["cp", "--sparse=always", "--reflink=auto", str(snapshot), str(self._disk)])
            self._boot("-loadvm", "up")
            self.run(f"date --utc --set=@{time.time():.3f}; mkdir --parents {self.directory}")
            self._say(f"{self.name} is up")
        except BaseException:
            self.__exit__()
            raise

    def _snapshot(self) -> Path:
        """The disk with the state after the first boot; the machines' lock must be held."""
        version = subprocess.run(["qemu-system-x86_64", "--version"], stdout=subprocess.PIPE, check=True).stdout
        # The place, too: the snapshot names its backing file by it.
        place = str(self._system.root)
        parts = [version.decode(), CPU, HOLDER, place, self._kernel_arguments(), *self.topology.options()]
        parts += [hashlib.sha256(path.read_bytes()).hexdigest() for path in self._guest_files]
        parts += [inspect.getsource(method) for method in (Machine._command, Machine._prepare)]
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
        done = self._system.root.with_name(f"{self.name}-{key}.qcow2")
        if not done.exists():
            self._say(f"booting {self.name} ({self.suite}) for the first time (some minutes)")
            backing = ["-b", str(self._system.root), "-F", "raw"]
            machine.quietly(["qemu-img", "create", "-q", "-f", "qcow2", *backing, str(self._disk)])
            self._boot()
            self._prepare()
            self._hang_up()
            answer = self._monitor("savevm up")
            if "rror" in answer:
                raise RuntimeError(f"{self.name}: no snapshot: {answer}")
            self.cut_power()
            new = done.with_suffix(".new")
            shutil.move(self._disk, new)
            new.rename(done)
        return done

    def _prepare(self) -> None:
        """What each start from the snapshot finds done."""
        self.run("systemctl is-system-running --wait", check=False)
        failed = "systemctl --failed --plain --no-legend"
        # Where others keep the machine from running, a unit may run out of its time: it has a second one.
        self.run(f"{failed} | cut --delimiter=' ' --fields=1 | xargs --no-run-if-empty systemctl restart")
        if left := self.run(failed):
            raise HostError(f"{self.name}: {left}")
        self.run(f"mkdir --parents {machine.DIRECTORY}; chmod 755 {machine.DIRECTORY}")
        for there, here in zip((self.image.kernel, self.image.initramfs), self._guest_files):
            self.write_bytes(str(there), here.read_bytes())
        self.run(f"truncate --size {image.BLANK_MIB}M {self.image.blank}")
        wire = f"[Match]\nName=eth1\n[Network]\nAddress={self.wire_address}/24\nLinkLocalAddressing=no\n"
        self.write("/etc/systemd/network/10-eth1.network", wire)
        self.run("networkctl reload")
        self.write("/etc/systemd/system/hold-kvm.service", HOLDER)
        self.run("systemctl enable --quiet --now hold-kvm")
        # So that libvirt knows its QEMU before the snapshot.
        self.run("virsh domcapabilities --virttype kvm && sync")

    def clock(self) -> float:
        """The seconds that it ran since its power is on, had it all the CPUs that it can use: never more than passed.

        Where others keep it from running, nothing in it is late.
        """
        if not self._qemu:
            return 0.0
        fields = Path(f"/proc/{self._qemu.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        cpu_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return cpu_s / min(self.topology.pcpus, os.cpu_count() or 1)

    def cut_power(self) -> None:
        """End it, and all that runs on it, as an outage does; boot() starts it again."""
        if self._qemu:
            self._qemu.kill()
            self._qemu.wait()
        self._qemu = None
        self._hang_up()

    def _hang_up(self) -> None:
        """End the connections to it."""
        self.kernel.close()
        for process in [*self._consoles.values(), *filter(None, [self._master])]:
            process.kill()
            process.wait()
        self._consoles.clear()
        self._master = None

    def boot(self) -> None:
        """Boot it from its disk, after its power was cut."""
        self._boot()
        self.run("systemctl is-system-running --wait", check=False)

    def reboot(self) -> None:
        """Have it shut down and boot again, as its administrator does."""
        before = self._boot_id()
        self.run("systemctl reboot", check=False)
        self._hang_up()
        end_s = self.clock() + BOOT_S
        while self._boot_id() in ("", before):
            if self.clock() > end_s:
                raise TimeoutError(f"{self.name} was to boot again, in vain:\n{self._log('console')}")
            time.sleep(POLL_S)
        self.connect()
        self.run("systemctl is-system-running --wait", check=False)

    def _boot_id(self) -> str:
        return self.run("cat /proc/sys/kernel/random/boot_id", check=False)

    def _boot(self, *options: str) -> None:
        self._port = _free_port()
        self._qemu = self._start("qemu", [*self._command(), *options])
        self.connect()
        self._write_inventory()
        machine.connect(self.uri, CONNECT_S).close()

    def connect(self) -> None:
        """Have a connection that all others go through; end the one that there is."""
        self._hang_up()
        end_s = self.clock() + BOOT_S
        while not self._is_reached():
            if not self._qemu or self._qemu.poll() is not None or self.clock() > end_s:
                raise TimeoutError(f"{self.name} was to boot, in vain:\n{self._log('qemu')}{self._log('console')}")
        self._forward("libvirt", "/run/libvirt/libvirt-sock")

    def _command(self) -> list[str]:
        mac = f"52:54:00:78:{self._number:02x}"
        way = f"user,id=way,restrict=on,hostfwd=tcp:127.0.0.1:{self._port}-:22"
        wire = f"socket,id=wire,mcast=230.0.0.9:{20000 + os.getpid() % 20000},localaddr=127.0.0.1"
        command = ["qemu-system-x86_64", "-name", self.name, "-nodefaults", "-display", "none", "-uuid", self._uuid()]
        command += ["-pidfile", f"{self.directory}/pid"]
        command += ["-machine", "q35", "-accel", "tcg,thread=multi,tb-size=1024", "-cpu", CPU]
        command += [*self.topology.options(), "-kernel", str(self._system.kernel), "-initrd", str(self._system.initrd)]
        command += ["-append", self._kernel_arguments(), "-serial", f"file:{self.directory}/console.log"]
        command += ["-monitor", f"unix:{self.directory}/monitor,server=on,wait=off"]
        command += ["-drive", f"if=none,id=disk,file={self._disk},format=qcow2,cache=unsafe"]
        command += ["-device", "virtio-blk-pci,drive=disk", "-device", "virtio-rng-pci"]
        command += ["-netdev", way, "-device", f"virtio-net-pci,netdev=way,romfile=,mac={mac}:00"]
        return [*command, "-netdev", wire, "-device", f"virtio-net-pci,netdev=wire,romfile=,mac={mac}:01"]

    def _uuid(self) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{self.name}.{self.suite}"))

    def _kernel_arguments(self) -> str:
        own_name = f"systemd.hostname={self.name} systemd.machine_id={self._uuid().replace('-', '')}"
        return f"{KERNEL_ARGUMENTS} {own_name} systemd.condition-first-boot=0 {self._arguments}".strip()

    def _start(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start what ends with this process, whatever happens to it; *name* is that of its log."""
        tied = [] if self._kept else ["setpriv", "--pdeathsig", "KILL"]
        with (self.directory / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [*tied, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=machine.environment(),
                start_new_session=self._kept,
            )

    def _log(self, name: str) -> str:
        with contextlib.suppress(FileNotFoundError):
            return (self.directory / f"{name}.log").read_text(encoding="utf-8", errors="replace")[-1500:]
        return ""

    def _monitor(self, command: str) -> str:
        """What QEMU's monitor answers."""
        prompt, answer = b"(qemu) ", b""
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(MONITOR_S)
            monitor.connect(str(self.directory / "monitor"))
            for line in ("", f"{command}\n"):
                monitor.sendall(line.encode())
                answer = b""
                while not answer.endswith(prompt):
                    answer += monitor.recv(4096)
        return answer.decode(errors="replace")

    # -- its ssh

    def ssh(self, command: str) -> list[str]:
        """What runs a shell command on it, as root."""
        return self._ssh(ROOT, command)

    def _ssh(self, *options: str) -> list[str]:
        control = {"ControlMaster": "no", "ControlPath": f"{self.directory}/ssh", "ConnectTimeout": "60"}
        where = ["-i", str(self._system.key), "-p", str(self._port)]
        return ["ssh", *hosts.ssh_options(control), *where, *options]

    def _is_reached(self) -> bool:
        """Whether there is a connection that all others go through; have one."""
        if not self._master or self._master.poll() is not None:
            # One that was killed leaves its socket, and the next would share its connection with nobody.
            (self.directory / "ssh").unlink(missing_ok=True)
            self._master = self._start("ssh", self._ssh("-M", "-N", ROOT))
        time.sleep(POLL_S)
        check = self._ssh("-O", "check", ROOT)
        return not subprocess.run(check, capture_output=True, check=False).returncode

    def _forward(self, name: str, there: str) -> None:
        """Make a socket of the machine one in its directory here."""
        forward = ["-o", "StreamLocalBindUnlink=yes", "-L", f"{self.directory}/{name}:{there}"]
        # Of one that it has already ssh makes no socket anew.
        subprocess.run(self._ssh("-O", "cancel", *forward, ROOT), capture_output=True, check=False)
        (self.directory / name).unlink(missing_ok=True)
        machine.quietly(self._ssh("-O", "forward", *forward, ROOT))

    def _write_inventory(self) -> None:
        """Variables of this host alone: inventories of several machines can be given together."""
        control = {"ControlMaster": "no", "ControlPath": f"{self.directory}/ssh"}
        own = f"ansible_host=127.0.0.1 ansible_port={self._port} ansible_ssh_private_key_file={self._system.key}"
        own += f" ansible_ssh_args={shlex.quote(' '.join(hosts.ssh_options(control)))}"
        text = hosts.inventory([f"{self.name} {own}"], self._system.key, control)
        self.inventory.write_text(text, encoding="utf-8")

    # -- what runs on it

    def run(self, command: str, check: bool = True, stdin: bytes = b"") -> str:
        """Run a shell command; return what it wrote to stdout, HostError with its stderr if it failed."""
        done = subprocess.run(self.ssh(command), input=stdin, capture_output=True, check=False)
        stdout, stderr = (part.decode(errors="replace") for part in (done.stdout, done.stderr))
        if check and done.returncode:
            raise HostError(f"{self.name}: {command}: {done.returncode}\n{stderr}{stdout}")
        return stdout

    def read(self, path: str) -> str:
        return self.run(f"cat {shlex.quote(path)}")

    def write(self, path: str, text: str) -> None:
        self.write_bytes(path, text.encode())

    def write_bytes(self, path: str, content: bytes) -> None:
        self.run(f"mkdir --parents $(dirname {shlex.quote(path)}) && cat >{shlex.quote(path)}", stdin=content)

    def push(self, tarball: Path) -> None:
        """Have the command ``kvmsched`` of a built collection there."""
        unpack = f"rm -rf {COLLECTION}; mkdir {COLLECTION} && tar --extract --gzip --directory {COLLECTION}"
        compile_all = f"python3 -m compileall -q {COLLECTION}/plugins/module_utils"
        link = f"ln --symbolic --force {COLLECTION}/scripts/kvmsched /usr/local/bin/kvmsched"
        self.run(f"{unpack} && {compile_all} && {link}", stdin=tarball.read_bytes())

    # -- what a Lab needs to have guests on it

    def qemu_pid(self, guest: str) -> int:
        """The machine's own pid of a guest's QEMU."""
        return int(self.read(f"/run/libvirt/qemu/{guest}.pid"))

    def ensure(self) -> None:
        """Have libvirt answer."""
        self.run("systemctl start libvirtd")

    def mirror(self, files: Files) -> None:
        """Have a guest's files there as they are here, and its console and its control port here as they are there."""
        old = self._consoles.pop(files.console.name, None)
        if old:
            old.kill()
            old.wait()
        self.run(f"rm --force {files.console} {files.control} {files.disk}")
        if files.disk.exists():
            self.write_bytes(str(files.disk), files.disk.read_bytes())
        self._forward(files.control.name, str(files.control))
        with files.console.open("wb") as console:
            follow = self.ssh(
                f"exec tail --bytes=+1 --follow=name --retry --sleep-interval=1 {files.console} 2>/dev/null"
            )
            tied = [] if self._kept else ["setpriv", "--pdeathsig", "KILL"]
            self._consoles[files.console.name] = subprocess.Popen(
                [*tied, *follow], stdin=subprocess.DEVNULL, stdout=console
            )


def _guest_files() -> tuple[Path, Path]:
    """The kernel, unpacked, and the initramfs of guests: what unpacks itself takes long in a machine."""
    with machine.exclusive():
        machine.DIRECTORY.mkdir(parents=True, exist_ok=True)
        built = image.build(machine.DIRECTORY)
    unpacked = DIRECTORY / built.kernel.name.replace("vmlinuz", "vmlinux")
    if not unpacked.exists():
        image.write(unpacked, image.unpacked_kernel(built.kernel.read_bytes()))
    return unpacked, built.initramfs


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
