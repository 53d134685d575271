# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests to play with: they run until somebody ends them, by ``make lab-up`` and ``make lab-down``."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import replace

from . import demo, lab, machine
from .guest import Files, Guest
from .lab import Lab, RunningGuest

PREFIX = "kvmsched-lab-"
POLICY = machine.DIRECTORY / "policy.json"
# As in the demo: thresholds for guests of 512M, and takes from whoever wastes.
DOCUMENT = {
    "domains": [f"{PREFIX}*"],
    "memory": {"starvation": f"{demo.STARVATION_MIB}M", "waste": f"{demo.WASTE_MIB}M", "reclaim": "eager"},
}
PLAY = """
{guests}
Their policy is {policy}; no other guest is in it. To play, as root:

    export KVMSCHED_POLICY={policy}
    scripts/kvmsched top                                 what each has and wants (q ends it)
    scripts/kvmsched explain {prefix}batch          one guest: its limits, its reason
    scripts/kvmsched once --dry-run --diff               what a pass would change, and why
    scripts/kvmsched once                                change it; once more finds little or nothing to do
    make lab-tell GUEST={prefix}web SAY="cpu 90"    another load: cpu PERCENT, mem MIB, cache MIB
    scripts/kvmsched release '{prefix}*'            give each back what it had

`make lab-down` ends them.
"""


def guests() -> dict[Guest, str]:
    """Return the demo's guests under names of their own, each with one line about it."""
    return {
        replace(guest, name=guest.name.replace(demo.PREFIX, PREFIX)): story
        for guest, (_colour, story) in demo.STORY.items()
    }


def up(say: machine.Say) -> int:
    """Start the guests that do not run yet, and say how to play with them."""
    machine.prepare(say)
    wanted = guests()
    with contextlib.closing(machine.connect()) as connection:
        kept = lab.kept(connection)
        running = [guest for guest in wanted if guest.name in kept and connection.lookupByName(guest.name).isActive()]
        # One that was shut off by hand, or by a reboot of this machine, is begun anew.
        lab.remove_kept(connection, but=[guest.name for guest in running])
    missing = [guest for guest in wanted if guest not in running]
    if missing:
        with Lab(say, keep=True) as place:
            place.start(*missing)
    POLICY.write_text(json.dumps(DOCUMENT, indent=1) + "\n")
    told = "".join(f"  {guest.name:20} {story}\n" for guest, story in wanted.items())
    print(PLAY.format(guests=told, policy=POLICY, prefix=PREFIX))
    return 0


def down() -> int:
    """End the guests of up(), and no others."""
    with contextlib.closing(machine.connect()) as connection:
        print("ended:", " ".join(lab.remove_kept(connection)) or "nothing")
    POLICY.unlink(missing_ok=True)
    return 0


def tell(name: str, command: str) -> int:
    """Tell a guest of up() another load."""
    with contextlib.closing(machine.connect()) as connection:
        if name not in lab.kept(connection):
            print(f"no such guest: {name}, running: {' '.join(lab.kept(connection)) or 'none'}")
            return os.EX_USAGE
        files = Files.of(name, machine.DIRECTORY)
        RunningGuest(Guest(name), files, connection.lookupByName(name), machine.qemu_pid).tell(command)
    print(f"{name}: {command}")
    return 0
