# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line of ``kvmsched``: which commands and options there are, and the help that teaches them."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import re
import time
from typing import Any, Callable, Iterable, NoReturn, Optional, Sequence

from .. import __version__, config
from ..units import CpuSet, parse_cpuset, parse_size
from . import status_text

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
  1  failed: the host can't be observed, or another pass has its lock, every change failed,
     not all could be released, or the room that was asked for is not there
  2  refused: wrong usage, or a policy or bundle with a mistake; nothing was touched
  3  status: no daemon runs here; once --dry-run --exit-code: something would change
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
  kvmsched once --dry-run --exit-code for checks: 0 nothing to change, 3 something would
"""
_RELEASE = """\
Pins go back to what they were before the first change. Memory does as far as it is safe: a
guest that uses more today than it had keeps what it needs, is named, and the command
fails; run it again later. Do this before a live migration to a host without kvmsched, for
pins travel with a guest.

  kvmsched release                    all guests
  kvmsched release db1 'web*'         only these
"""
_REPAY = """\
Owed is what was taken from a guest below the memory that it had, without anybody asking for it.
Nothing is taken, pins stay, and what the host does not have stays owed. While a daemon acts on
this host only --dry-run works: that daemon pays back by itself, when nobody needs the memory.

  kvmsched repay --dry-run            who is owed what
  kvmsched repay db1                  only this guest
"""
_ROOM = """\
Guests give what serves them nothing, then cache, but never what they must keep. The room is
held for ten minutes. Nobody else gets it, but to stay alive or to get back what is owed. A
guest that starts within that time is who it is for. Where a daemon acts, this command only
asks, calls no libvirt, and the daemon makes the room.
Exit status 1: memory is missing; it says how much and why.

  kvmsched room 64G --wait            until it is there, or no guest can give more
  kvmsched room 32G --cells 0         on NUMA cell 0
  kvmsched room 0                     no longer
"""
_PAUSE = """\
Until then the daemon looks on and writes nothing; it also keeps to that if it is started anew
within that time. Passes by hand and by modules are not held up, and say that it is paused. The
pause ends by itself, with `kvmsched resume`, or when the host boots.

  kvmsched pause 1h
  kvmsched pause 90m
"""
_RESUME = """\
The daemon acts again in its next pass.
"""
_TOP = """\
Keys: q quits; c, w, m, u and n sort by CPU, waiting, memory, usable memory and name; up, down
and the page keys select a guest, and the line below tells why it has what it has; / filters by
name; space looks at once. Colours mean starved and wasteful; NO_COLOR keeps them away. RUN and
WAIT are percent of one pCPU, summed over a guest's vCPUs: what they got, and what they wanted
and had to wait for. It reads only, and needs no daemon.

  kvmsched top                        until q
  kvmsched top --once                 a table, for a pipe
  kvmsched top -b -d 10 >> load.log   one every ten seconds
"""
_EXPLAIN = """\
Where the daemon runs it tells what that saw last, with the guest's last moves. Elsewhere it
looks for itself, read-only, which takes some seconds. With --at it answers from a record.

  kvmsched explain db1 --at 03:41
"""
_STATUS = """\
The running version, its mode, its policy and what its last passes came to. Exit status 3: no
daemon runs here.
"""
_SNAPSHOT = """\
Two looks at the host, the policy, what the daemon remembers, and the version, as one JSON
document. Attach it to a bug report: `kvmsched plan` comes to the same plan on any machine.
It is a record of one look, laid out for people. It is read-only. docs/schemas/record.schema.json
of the collection describes the format.

  kvmsched snapshot --anonymise -o bundle.json
  kvmsched snapshot | kvmsched plan -
"""
_RECORD = """\
A look every five seconds, or as often as the policy says, until --for is over or it is stopped;
if it is killed, the last half minute is lost. It is read-only and runs beside a daemon. What
the daemon itself decides is in its own record: `daemon.record` in the policy.

  kvmsched record --for 1d monday.kvmrec.gz
  kvmsched record --from /var/lib/kvmsched/record --anonymise report.kvmrec.gz
"""
_REPLAY = """\
The demand that was recorded is kept, and the real decisions are made on it, with a model of what
moves change; its own error is printed. Without --policy it replays the record's own policy. A
column for each policy, beside what was recorded; `untouched` has no kvmsched at all. No libvirt
is needed, and nothing is changed. docs/replay.md of the collection says what the figures are
worth.

  kvmsched replay monday.kvmrec.gz --untouched
  kvmsched replay /var/lib/kvmsched/record --policy a.json --policy b.json --html report.html
  kvmsched replay planetlab/20110303 --pcpus 32 --untouched
"""
_PLAN = """\
The same bundle gives the same plan anywhere: no libvirt is needed, and nothing is changed.
Where the bundle has a policy, the Python package jsonschema is needed.
A bundle may be written by hand; docs/cli.md of the collection has an example. Of a record it is
the plan at the last look.

  kvmsched plan bundle.json
  kvmsched plan bundle.json memory --policy stricter.json --diff
"""
_CHECK = """\
Where a daemon runs, it also names rules that match no guest that runs here.
JSON needs nothing else; a file named .yaml or .yml needs the Python package yaml. Checking
needs the package jsonschema. docs/policy.md of the collection describes every key.

  kvmsched check policy.json
  kvmsched check --defaults
  kvmsched check --json | jq .mistakes
"""


class UsageError(Exception):
    """A command line that makes no sense; the text is one line for people."""


class _Parser(argparse.ArgumentParser):
    """One line for a mistake, and help texts that keep their own line breaks."""

    def __init__(self, **more: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **more)
        # What begins so is a value, which its own type refuses by name: before Python 3.14 -1G was an option.
        self._negative_number_matcher = re.compile(r"-\.?[0-9]")

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            allowed = [str(choice) for choice in action.choices]
            hint = _meant(str(value), allowed)
            raise argparse.ArgumentError(action, f"got {value!r}, allowed: {', '.join(allowed)}{hint}")


def _meant(word: str, known: Iterable[str]) -> str:
    """Return a question for who mistyped one of the *known* words; "" where none is near."""
    near = difflib.get_close_matches(word.partition("=")[0], list(known), n=1, cutoff=0.65)
    return f"; did you mean {near[0]}?" if near else ""


def parse(arguments: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Return what is asked for; UsageError names the command whose help has the answer."""
    whole = parser()
    options, unknown = whole.parse_known_args(arguments)
    if unknown:
        (commands,) = (action.choices for action in whole._actions if isinstance(action, argparse._SubParsersAction))
        asked = commands[options.name]
        texts = (text for action in asked._actions for text in action.option_strings)
        meant = _meant(unknown[0], texts)
        raise UsageError(f"unknown: {' '.join(unknown)}{meant} (see {asked.prog} --help)")
    return options


def parser() -> argparse.ArgumentParser:
    """Return the whole command line; documentation and completion are held against it."""
    top = _Parser(prog="kvmsched", description=_DESCRIPTION, epilog=_EXIT_CODES)
    top.add_argument("--version", action="version", version=f"kvmsched {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", dest="name", required=True)

    def command(name: str, text: str, more: str) -> _Parser:
        one: _Parser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.\n\n{more}")
        return one

    _add_changing(command)
    _add_leases(command)
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
    once.add_argument(
        "--exit-code", action="store_true", help="with --dry-run: exit status 3 where something would change"
    )
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


def _add_leases(command: _Command) -> None:
    """Add the commands for what somebody asks of a host, beside balance."""
    repay = command("repay", "give guests back what is owed to them, and nothing else", _REPAY)
    repay.add_argument("names", nargs="*", type=_name, metavar="NAME", help="a name, a pattern or a UUID (all)")
    repay.add_argument("-n", "--dry-run", action="store_true", help="change nothing, only say what would change")
    _output(repay)
    _host_options(repay)
    room = command("room", "make room for a guest that is to start, and hold it for ten minutes", _ROOM)
    room.add_argument("size", type=_size, metavar="SIZE", help="how much, such as 64G; 0 ends it")
    room.add_argument("--cells", type=_cells, metavar="CELLS", help="in these NUMA cells, such as 0 or 0-1 (any)")
    room.add_argument("--wait", action="store_true", help="wait until it is there, or can't be had")
    room.add_argument("--ask-only", action="store_true", help="make no pass and call no libvirt, only ask the daemon")
    _json_option(room)
    _host_options(room)
    pause = command("pause", "let the daemon change nothing for a while", _PAUSE)
    pause.add_argument("duration", type=_duration, metavar="DURATION", help="such as 90s, 30m, 1h or 2d")
    _uri_option(pause)
    resume = command("resume", "end a pause", _RESUME)
    _uri_option(resume)


def _add_looking(command: _Command) -> None:
    top = command("top", "show guests and pCPUs, again and again", _TOP)
    top.add_argument("-d", "--delay", type=_seconds, default=3.0, metavar="SECONDS", help="between two looks (3)")
    top.add_argument("-n", "--iterations", type=_count, metavar="N", help="end after so many looks")
    top.add_argument("-b", "--batch", action="store_true", help="plain text, for pipes and logs")
    top.add_argument("--once", action="store_true", help="the same as --batch --iterations 1")
    top.add_argument(
        "-s", "--sort", choices=sorted(status_text.SORTS), default="cpu", help="the order of the guests (cpu)"
    )
    _host_options(top)
    explain = command("explain", "say what a guest wants, what it gets, and why", _EXPLAIN)
    explain.add_argument("domain", type=_name, metavar="DOMAIN", help="its name or UUID")
    text = "at that time, from a record: 03:41, or '2026-11-29 03:41:05'"
    explain.add_argument("--at", type=_time, metavar="TIME", help=text)
    text = "the record (what the policy's daemon.record names)"
    explain.add_argument("--record", action="append", type=_path, metavar="RECORD", help=text)
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
    snapshot.add_argument("-o", "--output", type=_path, metavar="FILE", help="write to FILE, not to standard output")
    _host_options(snapshot)
    record = command("record", "record what happens on this host, to replay it anywhere", _RECORD)
    record.add_argument("file", type=_path, metavar="FILE", help="where to: a new file, or one that is written anew")
    text = "for how long, such as 30m, 1h or 1d (until it is stopped)"
    record.add_argument("--for", dest="seconds", type=_duration, metavar="DURATION", help=text)
    record.add_argument("--anonymise", action="store_true", help="leave out all names, UUIDs and the host's name")
    text = "copy these records instead: files, or directories of them"
    record.add_argument("--from", dest="sources", nargs="+", type=_path, metavar="RECORD", help=text)
    _host_options(record)
    replay = command("replay", "say what a policy would have done with what was recorded", _REPLAY)
    text = "files or directories of record; a bundle; a folder of PlanetLab's; a .csv"
    replay.add_argument("records", nargs="+", type=_path, metavar="RECORD", help=text)
    text = "a policy to try; may be given several times"
    replay.add_argument("--policy", action="append", type=_path, metavar="FILE", help=text)
    replay.add_argument("--untouched", action="store_true", help="and what leaving the host alone would have come to")
    text = "pass over looks that are nearer to each other: faster, and rougher (0: all)"
    replay.add_argument("--step", type=_step, default=0.0, metavar="SECONDS", help=text)
    replay.add_argument("--html", type=_path, metavar="FILE", help="write a report, one page that needs nothing else")
    text = "draw what the columns come to as a picture (needs matplotlib)"
    replay.add_argument("--png", type=_path, metavar="FILE", help=text)
    text = "RECORD has a directory for each host: write index.html and a page a host into it"
    replay.add_argument("--fleet", action="store_true", help=text)
    replay.add_argument("--pcpus", type=_count, default=0, metavar="N", help="the pCPUs of a trace's host")
    replay.add_argument("--memory", type=_size, metavar="SIZE", help="the memory of a trace's host (what guests have)")
    _json_option(replay)
    plan = command("plan", "decide again what a bundle holds, on any machine", _PLAN)
    text = "what snapshot or record wrote, or - for standard input"
    plan.add_argument("bundle", type=_path, metavar="BUNDLE", help=text)
    _resource(plan)
    _output(plan)
    _policy_option(plan, "decide by this policy, not by the bundle's own")
    check = command("check", "check a policy document: every mistake at once", _CHECK)
    text = "a file, or - for standard input (the host's own)"
    check.add_argument("policy", nargs="?", type=_path, metavar="POLICY", help=text)
    check.add_argument("--defaults", action="store_true", help="print the policy that an empty document means")
    _json_option(check)
    _uri_option(check)


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
    allowed = _not_blank("a URI such as qemu:///system")
    one.add_argument("--uri", type=allowed, default="qemu:///system", help="libvirt's connection URI (%(default)s)")


def _policy_option(one: argparse.ArgumentParser, text: str) -> None:
    one.add_argument("--policy", type=_path, metavar="FILE", help=text)


def _host_options(one: argparse.ArgumentParser) -> None:
    _uri_option(one)
    _policy_option(one, f"the policy ($KVMSCHED_POLICY, else {config.INSTALLED}, else the defaults)")


def _not_blank(allowed: str) -> Callable[[str], str]:
    """Return the type of a text that is none if it is blank, as an unset variable makes it."""

    def given(text: str) -> str:
        if not text.strip():
            raise argparse.ArgumentTypeError(f"got {text!r}, allowed: {allowed}")
        return text

    return given


_name = _not_blank("a guest's name or UUID")
_path = _not_blank("the name of a file or a directory")


def _size(text: str) -> int:
    try:
        return 0 if text == "0" else parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"got {text!r}, allowed: {error}") from None


def _cells(text: str) -> CpuSet:
    try:
        return parse_cpuset(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, allowed: numbers of NUMA cells such as 0 or 0-1") from None


_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST_PAUSE_S = 30 * 86400


def _duration(text: str) -> int:
    number, unit = text[:-1], text[-1:]
    seconds = int(number) * _UNITS_S[unit] if number.isdecimal() and len(number) < 8 and unit in _UNITS_S else 0
    if not 1 <= seconds <= _LONGEST_PAUSE_S:
        raise argparse.ArgumentTypeError(f"got {text!r}, allowed: 1s to 30d, such as 90s, 30m, 1h or 2d")
    return seconds


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"got {text!r}, allowed: 0.1 to 3600 seconds")
    return seconds


_DATES = ("", "%Y-%m-%d ", "%Y-%m-%dT")
_TIMES = tuple(date + clock for date in _DATES for clock in ("%H:%M", "%H:%M:%S"))


def _time(text: str) -> time.struct_time:
    """Return a time of day, of the year 1900 where no date is given."""
    for form in _TIMES:
        with contextlib.suppress(ValueError):
            return time.strptime(text, form)
    raise argparse.ArgumentTypeError(f"got {text!r}, allowed: a time such as 03:41, or '2026-11-29 03:41:05'")


def _step(text: str) -> float:
    return 0.0 if text == "0" else _seconds(text)


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"got {text!r}, allowed: 1 to 1000000")
    return int(text)
