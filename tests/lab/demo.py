# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo: both modules on four real guests, from an uneven host to a balanced one, and back.

Root runs it by ``make demo``. It touches no other guest, and ends with 0 only if all that it checks is true.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from lab import Guest, Lab, machine, picture, truth
from lab.bars import COLOURS, Pen, Segment

PREFIX = "kvmsched-demo-"
MAXIMUM_MIB, STARVATION_MIB, WASTE_MIB = 512, 60, 120
PIN = {"domains": [f"{PREFIX}*"], "interval": 3}
MEMORY = {"domains": [f"{PREFIX}*"], "starvation": f"{STARVATION_MIB}M", "waste": f"{WASTE_MIB}M", "reclaim": "eager"}
MODULES: dict[str, dict[str, Any]] = {"kvm_vcpu_pin": PIN, "kvm_mem_balance": MEMORY}
MOST_PASSES = 6
QUIET = 0.3  # a machine with less other load than that leaves only one good place for each guest
BAR_WIDTH = 44
TOLERANCE_MIB = 3
KIB = 1024


def guest(name: str, cpu: float, current_mib: int, hold_mib: int, cache_mib: int = 0) -> Guest:
    return Guest(
        f"{PREFIX}{name}",
        cpu=[cpu],
        pin={0: "0"},
        memory_mib=MAXIMUM_MIB,
        current_mib=current_mib,
        hold_mib=hold_mib,
        cache_mib=cache_mib,
    )


WEB = guest("web", 0.5, current_mib=320, hold_mib=150)
DB = guest("db", 0.5, current_mib=448, hold_mib=60, cache_mib=220)
BATCH = guest("batch", 0.2, current_mib=336, hold_mib=240)
LAZY = guest("lazy", 0.2, current_mib=512, hold_mib=30)
STORY = {
    WEB: ("blue", "busy, has the memory that it needs"),
    DB: ("magenta", "busy, most of its memory is a warm cache"),
    BATCH: ("cyan", "quiet, almost out of memory"),
    LAZY: ("yellow", "quiet, holds far more memory than it uses"),
}


# What the picture shows of a run, by the titles.
SCENES = ("The host before", "For real, until nothing is left to do", "The host after")


class Failed(Exception):
    """A step did not do what it should; the rest would make no sense."""


@dataclass(frozen=True)
class State:
    """What release must bring back, from the kernel and from the guests."""

    affinity: dict[str, frozenset[int]]
    total_kib: dict[str, int]


class Demo:
    def __init__(self, ansible: str) -> None:
        self.ansible = ansible
        self.pen = Pen.of(sys.stdout)
        self.started_s = time.monotonic()
        self.checks = self.excused = 0
        self.wrong: list[str] = []
        self.others = 0.0  # load on the fullest pCPU that is none of the guests'

    # -- telling

    def say(self, text: str, colour: str = "grey") -> None:
        elapsed_s = time.monotonic() - self.started_s
        print(self.pen.paint(f"[{elapsed_s:3.0f} s] {text}", colour), flush=True)

    def title(self, text: str) -> None:
        print()
        self.say(text, "bold")

    def check(self, true: bool, text: str, of_places: bool = False) -> None:
        """Show whether something that the demo promises is true.

        What it promises about the guests' places (*of_places*) it can promise on a quiet machine only.
        """
        excused = not true and of_places and self.others > QUIET
        self.checks += not excused
        self.excused += excused
        if excused:
            line = f"- not so: {text} (other work fills a pCPU to {self.others * 100:.0f} %)"
        else:
            line = f"✔ {text}" if true else f"✘ NOT TRUE: {text}"
            self.wrong += [] if true else [text]
        print("  " + self.pen.paint(line, "yellow" if excused else "green" if true else "red"), flush=True)

    # -- the modules

    def module(self, name: str, check_mode: bool = False, **options: Any) -> dict[str, Any]:
        """Run a module as a user would; show its command line, its diff and its reasons; return its result."""
        arguments = json.dumps({**MODULES[name], **options})
        command = ["ansible", "localhost", "-m", name, *(["-C"] if check_mode else []), "-D", "-a", arguments]
        print("\n  " + self.pen.paint("$ " + shlex.join(command), "bold"), flush=True)
        quiet = {"ANSIBLE_LOCALHOST_WARNING": "0", "ANSIBLE_INVENTORY_UNPARSED_WARNING": "0", "ANSIBLE_NOCOLOR": "1"}
        environment = {**os.environ, **quiet, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
        environment.pop("ANSIBLE_FORCE_COLOR", None)
        done = subprocess.run(
            [self.ansible, *command[1:]], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        parts = re.split(r"^localhost \| \w+!? => ", done.stdout, maxsplit=1, flags=re.MULTILINE)
        if done.returncode or len(parts) != 2:
            raise Failed(f"{name} failed:\n{done.stdout}{done.stderr}")
        result: dict[str, Any] = json.JSONDecoder().raw_decode(parts[1])[0]
        self._show_result(parts[0], result)
        return result

    def _show_result(self, diff: str, result: dict[str, Any]) -> None:
        colours = {"-": "red", "+": "green"}
        for line in diff.strip().splitlines():
            if not line.startswith(("---", "+++", "@@")):
                print("    " + self.pen.paint(line, colours.get(line[:1], "")))
        for entry in [*result.get("moves", ()), *result.get("unmet", ()), *result.get("skips", ())]:
            print("    " + self.pen.paint(f"{_short(entry['domain'])}: {entry['reason']}", "grey"))
        word = self.pen.paint(
            "changed" if result["changed"] else "unchanged", "yellow" if result["changed"] else "green"
        )
        why = f" ({result['trigger']})" if result.get("trigger") else ""
        print(f"    {word}: {result.get('msg', '')}{why}", flush=True)

    def until_unchanged(self, name: str) -> dict[str, Any]:
        """Run a module until it has nothing left to do; check that, and return the result of the first pass."""
        places = name == "kvm_vcpu_pin"
        results = [self.module(name)]
        while not _settled(results[-1]) and len(results) < MOST_PASSES:
            results.append(self.module(name))
        changes = sum(result["changed"] for result in results)
        self.check(changes > 0, f"{name} changed the host in {changes} pass{'es' * (changes != 1)}", places)
        self.check(_settled(results[-1]), f"{name} then found nothing more to do: unchanged", places)
        return results[0]

    # -- showing the host

    def sign(self, one: Guest) -> str:
        """What stands for a guest in a bar of all guests."""
        return "█" if self.pen.colour else _short(one.name)[0]

    def show(self, lab: Lab) -> float:
        """Show the load of its pCPUs and the memory of its guests; return the highest load by others on a pCPU."""
        others = self._show_cpu(lab)
        self._show_memory(lab)
        return others

    def _show_cpu(self, lab: Lab, window_s: float = 3) -> float:
        busy = truth.pcpu_busy_ns()
        shares = {name: vcpus[0] for name, vcpus in lab.measure(window_s).items()}
        load = {pcpu: (ns - busy[pcpu]) / window_s / 1e9 for pcpu, ns in truth.pcpu_busy_ns().items() if pcpu in busy}
        homes = {name: lab[name].affinity() for name in shares}
        most_others = 0.0
        print(f"\n  CPU      0 %{'100 %':>{BAR_WIDTH - 3}}")
        for pcpu in sorted(load):
            here = [one for one in STORY if homes[one.name] == {pcpu}]
            if pcpu > 1 and not here and load[pcpu] < 0.1:
                continue
            parts = [Segment(shares[one.name].run, self.sign(one), STORY[one][0]) for one in here]
            others = max(0.0, load[pcpu] - sum(part.amount for part in parts))
            most_others = max(most_others, others)
            drawn = self.pen.draw([*parts, Segment(others, "░", "grey")], 1.0, BAR_WIDTH)
            wanted = others + sum(shares[one.name].run + shares[one.name].wait for one in here)
            colour = "red" if wanted > 1.05 else "green"
            print(f"  pCPU {pcpu:<2} {drawn}  " + self.pen.paint(f"wanted {wanted * 100:3.0f} %", colour))
        for one in STORY:
            share = shares[one.name]
            name = self.pen.paint(f"{self.sign(one)} {_short(one.name):<6}", STORY[one][0])
            where = ",".join(map(str, sorted(homes[one.name])))
            wants = f"wants {(share.run + share.wait) * 100:3.0f} %, gets {share.run * 100:3.0f} %"
            print(f"          {name} on pCPU {where:<5} {wants}")
        print("          " + self.pen.paint("░ everything else on this machine", "grey"))
        return most_others

    def _show_memory(self, lab: Lab) -> None:
        print(f"\n  Memory   0{f'{MAXIMUM_MIB} MiB':>{BAR_WIDTH - 1}}")
        for one in STORY:
            stats = {key: value / KIB for key, value in lab[one.name].domain.memoryStats().items()}
            actual, unused, usable = stats["actual"], stats["unused"], stats["usable"]
            cache = max(0.0, usable - unused)
            used = actual - unused - cache
            parts = [Segment(used, "█", STORY[one][0]), Segment(cache, "▒", STORY[one][0])]
            parts += [Segment(unused, "░", STORY[one][0]), Segment(MAXIMUM_MIB - actual, "·", "grey")]
            marks = {"red": actual - usable + STARVATION_MIB, "yellow": actual - unused + WASTE_MIB}
            drawn = self.pen.draw(parts, MAXIMUM_MIB, BAR_WIDTH, marks)
            print(f"  {_short(one.name):<8}{drawn}  {actual:3.0f}M  {self._verdict(usable, unused)}")
        print("          " + self.pen.paint("█ used  ▒ cache  ░ unused  · not given to it", "grey"))
        left, right = self.pen.paint("│", "red"), self.pen.paint("│", "yellow")
        print(f"          starved: its memory ends before its left mark {left}, wasteful: beyond its right one {right}")

    def _verdict(self, usable_mib: float, unused_mib: float) -> str:
        figures = f"usable {usable_mib:3.0f}M  unused {unused_mib:3.0f}M  "
        if usable_mib < STARVATION_MIB:
            return figures + self.pen.paint(f"starved (usable below {STARVATION_MIB}M)", "red")
        if unused_mib > WASTE_MIB:
            return figures + self.pen.paint(f"wasteful (unused above {WASTE_MIB}M)", "yellow")
        return figures + self.pen.paint("balanced", "green")

    # -- the story

    def play(self) -> None:
        self.title("Preparing this machine")
        with Lab(say=self.say) as lab:
            self.say(
                "guests run under " + ("KVM" if lab.hypervisor == "kvm" else "QEMU's emulation: KVM does not work here")
            )
            self.boot(lab)
            before = _state(lab)
            self.predict(before, lab)
            self.balance(lab)
            self.release(before, lab)
            self.title("Removing the guests")
            running = list(lab.guests.values())
        self.check(not any(one.qemu_state for one in running) and not _left(lab.uri), "no guest is left")

    def boot(self, lab: Lab) -> None:
        self.title("Booting four guests of at most 512 MiB, all pinned to pCPU 0")
        for one, (colour, story) in STORY.items():
            print("  " + self.pen.paint(f"{self.sign(one)} {_short(one.name):<6}", colour) + f" {story}")
        lab.start(*STORY)
        self.title("The host before")
        self.others = self.show(lab)

    def predict(self, before: State, lab: Lab) -> None:
        self.title("Check mode: what would change, and why")
        for name in MODULES:
            changed = self.module(name, check_mode=True)["changed"]
            self.check(changed, f"{name} would change something", of_places=name == "kvm_vcpu_pin")
        self.check(_state(lab) == before, "check mode changed nothing: same affinity (kernel), same memory (guests)")

    def balance(self, lab: Lab) -> None:
        self.title("For real, until nothing is left to do")
        pinned, _balanced = [self.until_unchanged(name) for name in MODULES]
        before, after = (pinned[when]["imbalance_pct"] for when in ("before", "after"))
        fell = f"the imbalance of the pCPUs falls from {before:.0f} to {after:.0f} points with the first pass"
        self.check(after < before, fell, of_places=True)
        self.title("The host after")
        self.others = max(self.others, self.show(lab))
        homes = {one: lab[one.name].affinity() for one in STORY}
        self.check(homes[WEB] != homes[DB], "the two busy guests are on different pCPUs", of_places=True)
        self.check(homes[BATCH] != homes[LAZY], "the two quiet guests are on different pCPUs", of_places=True)
        reports = {one: lab[one.name].report() for one in STORY}
        usable_mib = reports[BATCH].available_kib / KIB
        self.check(
            usable_mib > STARVATION_MIB - TOLERANCE_MIB, f"batch can still get {usable_mib:.0f}M, by its own kernel"
        )
        unused_mib = reports[LAZY].free_kib / KIB
        self.check(unused_mib < WASTE_MIB + TOLERANCE_MIB, f"lazy has only {unused_mib:.0f}M unused, by its own kernel")
        cached_mib = reports[DB].cached_kib / KIB
        self.check(cached_mib >= DB.cache_mib, f"db kept its cache of {cached_mib:.0f}M")
        self.check(_all_well(lab), "no guest lost a process")

    def release(self, before: State, lab: Lab) -> None:
        self.title("The batch job has ended, so that the guests can have back what they had: state=released")
        lab[BATCH.name].hold(BATCH.hold_mib / 2)
        lab[BATCH.name].wait_held()
        time.sleep(2)  # libvirt asks its statistics once a second
        for name in MODULES:
            self.module(name, state="released")
        self.title("The host released")
        self.show(lab)
        now = _state(lab)
        self.check(now.affinity == before.affinity, "every vCPU's affinity is as before, by the kernel")
        self.check(_near(now.total_kib, before.total_kib), "every guest's memory is as before, by the guests")
        self.check(_all_well(lab), "no guest lost a process")


def _settled(result: dict[str, Any]) -> bool:
    return not result["changed"] and not {"settling", "hung"} & set(result.get("skip_counts", ()))


def _short(name: str) -> str:
    return name[len(PREFIX) :] if name.startswith(PREFIX) else name


def _state(lab: Lab) -> State:
    return State(
        {name: one.affinity() for name, one in lab.guests.items()},
        {name: one.report().total_kib for name, one in lab.guests.items()},
    )


def _near(now_kib: dict[str, int], before_kib: dict[str, int]) -> bool:
    return all(abs(now_kib[name] - before_kib[name]) <= TOLERANCE_MIB * KIB for name in before_kib)


def _all_well(lab: Lab) -> bool:
    return all(one.alive and one.hog_kills == 0 for one in lab.guests.values())


def _left(uri: str) -> list[str]:
    connection = machine.connect(uri)
    names = [domain.name() for domain in connection.listAllDomains()]
    connection.close()
    return [name for name in names if name.startswith(PREFIX)]


class Copied(io.TextIOBase):
    """A stream that keeps what is written through it. With *coloured* it says of itself that it is a terminal."""

    encoding = "utf-8"

    def __init__(self, stream: TextIO, coloured: bool) -> None:
        self._stream, self._coloured, self._texts = stream, coloured, list[str]()

    def write(self, text: str) -> int:
        self._texts.append(text)
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._coloured or self._stream.isatty()

    @property
    def text(self) -> str:
        return "".join(self._texts)


def scenes(text: str) -> list[str]:
    """The lines that the picture shows: SCENES, and of the passes the first of each module, with its reasons."""
    chosen: list[str] = []
    shown = repeated = False
    seen: set[str] = set()
    for line in text.splitlines():
        plain = picture.plain(line)
        if title := re.fullmatch(r"\[ *\d+ s\] (.*)", plain):
            shown, repeated = title[1] in SCENES, False
            line = f"\033[{COLOURS['bold']}m{title[1]}\033[0m"
        elif command := re.match(r"  \$ ansible localhost -m (\w+)", plain):
            repeated = command[1] in seen
            seen |= {command[1]} if shown else set()
            line = f"\033[{COLOURS['bold']}m{command[0]}\033[0m"
        if shown and not repeated and not re.match(r"    [-+]|  [✔✘-] ", plain):
            chosen.append(line)
    return [line for line, after in zip(chosen, [*chosen[1:], ""]) if line or after]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    beside_python = shutil.which("ansible", path=str(Path(sys.executable).parent))
    found = os.environ.get("KVMSCHED_ANSIBLE") or shutil.which("ansible") or beside_python
    parser.add_argument("--ansible", default=found, help="the ansible command (default: %(default)s)")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw what was shown, as SVG, too")
    options = parser.parse_args(arguments)
    if os.geteuid() != 0 or not shutil.which(options.ansible or ""):
        print("demo: needs " + ("an ansible command" if os.geteuid() == 0 else "root"), file=sys.stderr)
        return 2
    said = sys.stdout = Copied(sys.stdout, options.picture is not None)
    demo = Demo(options.ansible)
    try:
        demo.play()
    except (Failed, RuntimeError, TimeoutError) as error:
        print(demo.pen.paint(f"\ndemo: {error}", "red"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted; the guests are removed", file=sys.stderr)
        return 130
    elapsed_s = time.monotonic() - demo.started_s
    good = not demo.wrong
    summary = f"{demo.checks - len(demo.wrong)} of {demo.checks} checks are true, {elapsed_s:.0f} s"
    summary += f"; {demo.excused} could not be judged on a busy machine" * bool(demo.excused)
    print("\n" + demo.pen.paint(f"{'✔' if good else '✘'} {summary}", "green" if good else "red"))
    if good and options.picture:
        title = "kvmsched's demo: four guests on one pCPU, one of them starved; the two passes; the host after"
        options.picture.write_text(picture.drawn(scenes(said.text), title), encoding="utf-8")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
