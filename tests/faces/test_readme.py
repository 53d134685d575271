# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every line that README.md tells its reader to type, typed.

They run in an empty home, where only README's own lines install the collection. The hypervisor is this machine: passes
are told to look at libvirt's test driver, and the dry run finds that in the place of qemu:///system. What brings the
daemon to a host is only read here: tests/fleet runs that, and tests/fleet/test_newcomer.py types the way from an empty
system to a dry run, as it stands.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import release
from face import REPOSITORY
from kvmsched.app import arguments
from readme import README, commands, said

TOOLS = Path(sys.executable).parent
HOST = "localhost ansible_connection=local ansible_python_interpreter=/usr/bin/python3"
# In the place of libvirt's binding: the real one, whose system's QEMU is the test driver.
SHADOW = """\
import sys

del sys.modules["libvirt"]
sys.path.remove(__file__.rpartition("/")[0])
import libvirt

for _name in ("open", "openReadOnly"):
    def _there(uri, _open=getattr(libvirt, _name)):
        return _open("test:///default" if uri == "qemu:///system" else uri)
    setattr(libvirt, _name, _there)
"""
SUDO = """\
#!/bin/sh
while [ $# -gt 0 ]; do case $1 in -u) shift 2 ;; -*) shift ;; *) break ;; esac; done
exec "$@"
"""
ELSEWHERE = {"make", "kvmsched"}
ON_HOSTS = ("kvmsched.kvm.rollout", "kvmsched.kvm.release")


class Reader:
    """A home where one types README's lines."""

    def __init__(self, home: Path) -> None:
        self.home = home
        (home / "bin").mkdir()
        (home / "shadow").mkdir()
        (home / "shadow/libvirt.py").write_text(SHADOW)
        (home / "bin/sudo").write_text(SUDO)
        (home / "bin/sudo").chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "PYTHON"))}
        self.environment = {
            **kept,
            "HOME": str(home),
            "PATH": f"{home / 'bin'}:{TOOLS}:/usr/bin:/bin",
            "PYTHONPATH": str(home / "shadow"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_INVENTORY": str(home / "hosts.ini"),
        }

    def types(self, lines: Sequence[str], where: Path | None = None) -> str:
        """What a shell says to the lines; each of them must succeed."""
        return said(["bash", "-euc", "\n".join(lines)], where or self.home, self.environment)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """One who installed the collection from a checkout, and told of one hypervisor."""
    reader = Reader(tmp_path_factory.mktemp("home"))
    built = reader.home / "built"
    lines = [line.replace("/tmp/kvmsched", str(built)) for line in commands("Install it", "checkout")]
    assert "installed successfully" in reader.types(lines, REPOSITORY)
    told = [line.replace("kvm1.example.org ansible_user=root", HOST) for line in commands("Install it", "hypervisors")]
    assert HOST in told[0] and told[1] == "export ANSIBLE_INVENTORY=~/hosts.ini"
    reader.types(told)
    return reader


def test_the_lines_are_found() -> None:
    lines = commands()
    assert len(lines) == len(
        re.findall(r"^    \S", re.sub(r"```.*?```", "", README.read_text(), flags=re.DOTALL), re.M)
    )
    known = ("scripts/kvmsched", "make", "python3", "ansible-galaxy", "cd", "printf", "export", "ansible", "kvmsched")
    assert {line.split()[0] for line in lines} == {*known, "ansible-playbook", "ansible-doc"}


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("scripts/")])
def test_it_can_be_tried_without_root_or_guests(line: str, reader: Reader) -> None:
    # The guests of this machine's own libvirt are none of a test's.
    elsewhere = "" if " plan " in line or "--uri" in line else " --uri test:///default"
    answer = reader.types([line + elsewhere], REPOSITORY)
    # README shows what the first one says.
    told = f"```text\n{answer}```\n" in README.read_text(encoding="utf-8")
    assert told or "1 guest, 2 vCPUs" in answer or "would make 1 change" in answer


def test_a_release_s_tarball_is_installed_by_one_line(reader: Reader, tmp_path: Path) -> None:
    (tarball,) = (reader.home / "built").glob("*.tar.gz")
    other = Reader(tmp_path)
    other.types([f"cp {tarball} .", *commands("Install it", "tarball")])
    assert "kvm_mem_balance" in other.types(["ansible-doc --list kvmsched.kvm"])
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    line = next(line for line in commands("Try it") if " plan " in line)
    assert "starved 1 -> 0" in other.types([f"tar -xzf {tarball}", line], unpacked)
    assert tarball.name == f"kvmsched-kvm-{release.galaxy()['version']}.tar.gz"


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("ansible hypervisors ")])
def test_a_pass_by_hand(line: str, reader: Reader) -> None:
    # The lock and the guests of this machine's own libvirt are none of a test's.
    before, _a, options = line.partition(" -a ")
    answer = reader.types([f"{before} -a 'uri=test:///default {options}'"])
    assert re.search(r"^localhost \| (SUCCESS|CHANGED) =>", answer, re.MULTILINE), answer


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith(("ansible-playbook", "ansible-doc"))])
def test_playbooks_and_documentation(line: str, reader: Reader) -> None:
    if any(name in line for name in ON_HOSTS):
        assert "playbook: " in reader.types([f"{line} --syntax-check"])
    else:
        answer = reader.types([line])
        assert "1 host" in answer or "OPTIONS" in answer, answer


@pytest.mark.parametrize("line", [line for line in commands() if line.split()[0] in ELSEWHERE])
def test_what_runs_elsewhere_is_there(line: str, reader: Reader) -> None:
    """`make demo` and `make test` need real guests; the command needs a host where it is installed."""
    name, *words = shlex.split(line.partition(" > ")[0])
    if name == "make":
        assert f"\n{words[0]}:" in (REPOSITORY / "Makefile").read_text()
    else:
        assert arguments.parser().parse_args(words)
