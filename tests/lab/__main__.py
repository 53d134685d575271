# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``python3 -m lab prepare [--hosts] | up | tell GUEST COMMAND | down | machines | clean [--all] | stop``."""

from __future__ import annotations

import argparse
import sys

from . import hosts, lab, machine, own, up
from .machines import system, tested
from .machines import up as machines


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m lab", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    preparing = verbs.add_parser("prepare", help="install missing packages, start libvirt's daemons")
    preparing.add_argument("--hosts", action="store_true", help="also make what whole hosts boot")
    cleaning = verbs.add_parser("clean", help="remove the lab's guests that were left over")
    cleaning.add_argument("--all", action="store_true", help="also those that a running process uses")
    verbs.add_parser("up", help="start guests to play with, and leave them running")
    telling = verbs.add_parser("tell", help="tell one of these another load, as in: tell kvmsched-lab-web 'cpu 90'")
    telling.add_argument("guest")
    telling.add_argument("command", help="cpu PERCENT, mem MIB, cache MIB: see init.c")
    verbs.add_parser("down", help="end the guests of up")
    verbs.add_parser("machines", help="make the emulated machines of the tests, and keep their first boots")
    entering = verbs.add_parser("machine-up", help="start an emulated machine with KVM to play with")
    entering.add_argument("suite", nargs="?", default=system.SUITES[0], choices=system.SUITES)
    verbs.add_parser("machine-down", help="end the machine of machine-up")
    verbs.add_parser("stop", help="end the daemons that the lab started")
    options = parser.parse_args(arguments)
    if options.verb == "up":
        return up.up(print)
    if options.verb == "down":
        return up.down()
    if options.verb == "tell":
        return up.tell(options.guest, options.command)
    if options.verb == "machines":
        return tested.make(print)
    if options.verb == "machine-up":
        return machines.up(options.suite, print)
    if options.verb == "machine-down":
        return machines.down()
    if options.verb == "prepare":
        machine.prepare(print)
        if options.hosts:
            hosts.prepare(print)
    elif options.verb == "clean":
        removed = hosts.clean() + own.clean() + own.clean("machine")
        removed += lab.clean(machine.connect(), everybody=options.all)
        print("removed:", " ".join(removed) or "nothing")
    else:
        print("ended:", " ".join(machine.stop_daemons()) or "nothing")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
