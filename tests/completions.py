# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line's completion for zsh and fish: made of its parser, held against it by a test. Run it to write."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "plugins/module_utils"))

from kvmsched.app import arguments

HEAD = """\
# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Made by tests/completions.py of the command's own parser.
"""
GUESTS = "virsh --readonly --quiet list --name 2>/dev/null"
# What is offered for a value, by its metavar; of others nobody knows what they are.
NAMES, FILES = ("NAME", "DOMAIN"), ("BUNDLE", "POLICY", "FILE", "RECORD")
URIS = ("qemu:///system", "qemu:///session")


def commands() -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    """Each command with its help and its parser."""
    (action,) = (a for a in arguments.parser()._actions if isinstance(a, argparse._SubParsersAction))
    told = {choice.dest: choice.help or "" for choice in action._choices_actions}
    for name, parser in action.choices.items():
        yield name, told[name], parser


def text(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """The help of an option."""
    return parser._get_formatter()._expand_help(action) if action.help else ""


def in_fish(told: str) -> str:
    """The inside of a word in single quotes."""
    return told.replace("\\", "\\\\").replace("'", "\\'")


def in_zsh(told: str) -> str:
    """The same, where brackets and colons mean something to _arguments."""
    return re.sub(r"[][:\\]", r"\\\g<0>", told).replace("'", "'\\''")


def fish() -> str:
    lines = [HEAD, "complete -c kvmsched -f"]
    for name, told, parser in commands():
        lines.append(f"complete -c kvmsched -n __fish_use_subcommand -a {name} -d '{told}'")
        when = f"complete -c kvmsched -n '__fish_seen_subcommand_from {name}'"
        for action in parser._actions:
            if not action.option_strings:
                offered = _fish_offer(action)
                lines += [f"{when} {offered}"] if offered else []
                continue
            flags = " ".join(f"-l {o[2:]}" if o.startswith("--") else f"-s {o[1:]}" for o in action.option_strings)
            values = "" if action.nargs == 0 else f" -x {_fish_offer(action)}".rstrip().replace("-x -F", "-r -F")
            lines.append(f"{when} {flags}{values} -d '{in_fish(text(parser, action))}'")
    return "\n".join(lines) + "\n"


def choices(action: argparse.Action) -> Sequence[str]:
    return URIS if action.dest == "uri" else tuple(action.choices or ())


def _fish_offer(action: argparse.Action) -> str:
    if choices(action):
        return f"-a '{' '.join(choices(action))}'"
    if action.metavar in NAMES:
        return f"-a '({GUESTS})'"
    return "-F" if action.metavar in FILES else ""


def zsh() -> str:
    lines = ["#compdef kvmsched", HEAD, "_kvmsched_guests() {", f'    compadd -- ${{(f)"$({GUESTS})"}}', "}", ""]
    lines += ["_kvmsched() {", "    local -a commands", "    commands=("]
    lines += [f"        '{name}:{told}'" for name, told, _parser in commands()]
    lines += [
        "    )",
        "    if (( CURRENT == 2 )); then",
        "        _describe command commands",
        "        return",
        "    fi",
    ]
    lines += ["    shift words", "    (( CURRENT-- ))", "    case $words[1] in"]
    for name, _told, parser in commands():
        lines.append(f"        {name})")
        lines.append(" \\\n                ".join(["            _arguments", *_zsh_specs(parser)]))
        lines.append("            ;;")
    return "\n".join([*lines, "    esac", "}", '_kvmsched "$@"']) + "\n"


def _zsh_specs(parser: argparse.ArgumentParser) -> Iterator[str]:
    place = 0
    for action in parser._actions:
        for option in action.option_strings:
            value = "" if action.nargs == 0 else f":value:{_zsh_offer(action)}"
            yield f"'{option}[{in_zsh(text(parser, action))}]{value}'"
        if not action.option_strings:
            # All the rest may be described once only: an argument that comes once has the number of its place.
            place += 1
            where = "*" if action.nargs in ("*", "+") else str(place)
            yield f"'{where}: :{_zsh_offer(action)}'"


def _zsh_offer(action: argparse.Action) -> str:
    if choices(action):
        return f"({' '.join(in_zsh(choice) for choice in choices(action))})"
    if action.metavar in NAMES:
        return "_kvmsched_guests"
    return "_files" if action.metavar in FILES else "( )"


PUBLISHED: dict[Path, Callable[[], str]] = {
    REPOSITORY / "roles/kvmsched/files/_kvmsched": zsh,
    REPOSITORY / "roles/kvmsched/files/kvmsched.fish": fish,
}

if __name__ == "__main__":
    for path, made in PUBLISHED.items():
        path.write_text(made(), encoding="utf-8")
