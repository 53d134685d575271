# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line of ``kvmsched``: which commands and options there are, and the help that teaches them."""

from __future__ import annotations

import argparse
from typing import Any, Callable, NoReturn

from .. import __version__, config
from . import view

_DESCRIPTION = """\
Balances the CPU and the memory of the KVM guests on this host, through libvirt.

A pass looks at the host, decides what should change, and changes it: which pCPU a vCPU is
pinned to, and how much memory each guest's balloon leaves it. Begin with a look:

  kvmsched top                        what runs here, who starves, who hoards
  kvmsched once --dry-run             what a pass would change, and why; touches nothing
  kvmsched once                       make that pass
  kvmsched explain db1                why a guest has what it has
  kvmsched release                    give every guest back what it had
"""
_EXIT_CODES = """\
exit status:
  0  done, whether or not anything had to change
  1  failed: the host can't be observed or is held by another pass, every change failed,
     or not all could be released
  2  refused: wrong usage, or a policy or bundle with a mistake; nothing was touched
  3  status: no daemon runs here
"""
_RUN = """\
It balances what the policy says, logs each move with its reason, and exports metrics.
SIGHUP re-reads the policy, SIGTERM stops it. With `daemon: {mode: observe}` in the policy
it only says what it would do. On a host it is started by systemd: systemctl start kvmsched
"""
_ONCE = """\
Without --dry-run it changes the running guests, as root or as a member of the group
libvirt. A second pass on a steady host finds nothing to do. While a daemon acts on this
host, nothing is written: the daemon does that.

  kvmsched once --dry-run --diff      what would change, and why
  kvmsched once memory                balance memory only
  kvmsched once --json | jq .changed  for scripts
"""
_RELEASE = """\
Pins go back to what they were before the first change. Memory does as far as it is safe: a
guest that by now uses more than it had keeps what it needs, is named, and the command
fails; run it again later. Do this before a live migration, for pins travel with a guest.

  kvmsched release                    all guests
  kvmsched release db1 'web*'         only these
"""
_TOP = """\
Keys: q quits; c, w, m, u and n sort by CPU, waiting, memory, usable memory and name; space
looks at once. RUN and WAIT are percent of one pCPU, summed over a guest's vCPUs: what they
got, and what they wanted and had to wait for. It reads only, and needs no daemon.

  kvmsched top                        until q
  kvmsched top --once                 a table, for a pipe
  kvmsched top -b -d 10 >> load.log   one every ten seconds
"""
_EXPLAIN = """\
Where the daemon runs it tells what that saw last, with the guest's last moves. Elsewhere it
looks for itself, read-only, which takes some seconds.
"""
_STATUS = """\
The running version, its mode, its policy and what its last passes came to. Exit status 3: no
daemon runs here.
"""
_SNAPSHOT = """\
Two looks at the host, the policy, what the daemon remembers, and the version, as one JSON
document. Attach it to a bug report: `kvmsched plan` comes to the same plan on any machine.
It is read-only. docs/schemas/bundle.schema.json describes the format.

  kvmsched snapshot --anonymise -o bundle.json
  kvmsched snapshot | kvmsched plan -
"""
_PLAN = """\
The same bundle gives the same plan anywhere: no libvirt is needed, and nothing is changed.
A bundle may be written by hand: docs/cli.md has an example.

  kvmsched plan bundle.json
  kvmsched plan bundle.json memory --policy stricter.json --diff
"""
_CHECK = """\
JSON needs nothing else; a file named .yaml or .yml needs the Python package yaml. Checking
needs the package jsonschema. docs/policy.md describes every key.

  kvmsched check policy.json
  kvmsched check --defaults
"""


class UsageError(Exception):
    """A command line that makes no sense; the text is one line for people."""


class _Parser(argparse.ArgumentParser):
    """One line for a mistake, and help texts that keep their own line breaks."""

    def __init__(self, **more: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **more)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def parser() -> argparse.ArgumentParser:
    """The whole command line; documentation and completion are held against it."""
    top = _Parser(prog="kvmsched", description=_DESCRIPTION, epilog=_EXIT_CODES)
    top.add_argument("--version", action="version", version=f"kvmsched {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", dest="name", required=True)

    def command(name: str, text: str, more: str) -> _Parser:
        one: _Parser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.\n\n{more}")
        return one

    _add_changing(command)
    _add_looking(command)
    _add_replaying(command)
    return top


_Command = Callable[[str, str, str], _Parser]


def _add_changing(command: _Command) -> None:
    run = command("run", "run the daemon: a pass every few seconds, until it is stopped", _RUN)
    _host_options(run)
    once = command("once", "make one pass, or say what it would change", _ONCE)
    _resource(once)
    once.add_argument("-n", "--dry-run", action="store_true", help="change nothing, only say what would change")
    _output(once)
    _host_options(once)
    release = command("release", "give guests back the pins and the memory that they had", _RELEASE)
    text = "a name, a pattern such as 'web*', or a UUID (all)"
    release.add_argument("names", nargs="*", type=_name, metavar="NAME", help=text)
    release.add_argument("-n", "--dry-run", action="store_true", help="change nothing, only say what would change")
    release.add_argument(
        "--give-only", action="store_true", help="give memory back, take none, leave pins: for when the daemon failed"
    )
    _output(release)
    _host_options(release)


def _add_looking(command: _Command) -> None:
    top = command("top", "show guests and pCPUs, again and again", _TOP)
    top.add_argument("-d", "--delay", type=_seconds, default=3.0, metavar="SECONDS", help="between two looks (3)")
    top.add_argument("-n", "--iterations", type=_count, metavar="N", help="end after so many looks")
    top.add_argument("-b", "--batch", action="store_true", help="plain text, for pipes and logs")
    top.add_argument("--once", action="store_true", help="the same as --batch --iterations 1")
    top.add_argument("-s", "--sort", choices=sorted(view.SORTS), default="cpu", help="the order of the guests (cpu)")
    _host_options(top)
    explain = command("explain", "say what a guest wants, what it gets, and why", _EXPLAIN)
    explain.add_argument("domain", type=_name, metavar="DOMAIN", help="its name or UUID")
    _json_option(explain)
    _host_options(explain)
    state = command("status", "say what the daemon on this host does", _STATUS)
    _json_option(state)
    _uri_option(state)


def _add_replaying(command: _Command) -> None:
    snapshot = command("snapshot", "write down all that a plan depends on: a bundle", _SNAPSHOT)
    snapshot.add_argument("-a", "--anonymise", action="store_true", help="replace names, UUIDs and the host's name")
    snapshot.add_argument(
        "-i", "--interval", type=_seconds, metavar="SECONDS", help="between the two looks (vcpu.interval)"
    )
    snapshot.add_argument("-o", "--output", metavar="FILE", help="write to FILE, not to standard output")
    _host_options(snapshot)
    plan = command("plan", "decide again what a bundle holds, on any machine", _PLAN)
    plan.add_argument("bundle", metavar="BUNDLE", help="a file that snapshot wrote, or - for standard input")
    _resource(plan)
    _output(plan)
    _policy_option(plan, "decide by this policy, not by the bundle's own")
    check = command("check", "check a policy document: every mistake at once", _CHECK)
    check.add_argument("policy", nargs="?", metavar="POLICY", help="a file, or - for standard input (the host's own)")
    check.add_argument("--defaults", action="store_true", help="print the policy that an empty document means")


def _resource(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "resource", nargs="?", choices=("memory", "vcpu", "both"), default="both", help="what to balance (both)"
    )


def _output(one: argparse.ArgumentParser) -> None:
    one.add_argument("--diff", action="store_true", help="show each change as a line before and a line after")
    _json_option(one, "print JSON, with the keys that the modules return")


def _json_option(one: argparse.ArgumentParser, text: str = "print JSON") -> None:
    one.add_argument("--json", action="store_true", help=text)


def _uri_option(one: argparse.ArgumentParser) -> None:
    one.add_argument("--uri", default="qemu:///system", help="libvirt's connection URI (%(default)s)")


def _policy_option(one: argparse.ArgumentParser, text: str) -> None:
    one.add_argument("--policy", metavar="FILE", help=text)


def _host_options(one: argparse.ArgumentParser) -> None:
    _uri_option(one)
    _policy_option(one, f"the policy ($KVMSCHED_POLICY, else {config.INSTALLED}, else the defaults)")


def _name(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError(f"got {text!r}, allowed: a guest's name or UUID")
    return text


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"got {text!r}, allowed: 0.1 to 3600 seconds")
    return seconds


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"got {text!r}, allowed: 1 to 1000000")
    return int(text)
