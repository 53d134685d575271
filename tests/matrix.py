# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rows of the public CI: each ansible-core, each Python.

    core 2.18      modules, roles, command and ansible-test sanity under that ansible-core, in an environment of its own
    python 3.9     the unit tests under that Python
    refusal 3.6    a host with that Python is refused in one line, by the oldest core that still reaches it
    all [ROW]...   every row of .github/workflows/ci.yml that can be executed here; of the others it says "only read"

It needs nothing but a Python that ansible-core knows; ``all`` needs PyYAML, too.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Optional

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / ".build/matrix"
WORKFLOW = ROOT / ".github/workflows/ci.yml"
# 3.12 runs each of these cores, so it is asked for first.
CONTROLLERS = ("3.12", "3.13", "3.11", "3.14", "3.10")
OLDEST_CORE = "2.16"
TOOLS = (
    "pytest>=8.3,<10",
    "pytest-xdist>=3.6,<4",
    "hypothesis>=6.100,<7",
    "jsonschema>=3.2,<5",
    "PyYAML",
)
# Up to 2.17 it asks for empty __init__.py files in module_utils, where no package could say what it is. 2.18 does not.
LEFT_OUT = dict.fromkeys(("2.16", "2.17"), ("--skip-test", "empty-init"))
HOW = ("--quiet", "--numprocesses=2", "-m", "not nightly")
NEEDS = {
    "test_daemon.py": False,  # libvirt's binding, which only the distribution's Python has
    "test_picture.py": False,  # the lab, which has libvirt's binding
    "test_one_plan.py": False,  # ansible-core, which needs a newer Python than hosts do
    "test_monitoring.py": (ROOT / ".build/prometheus/usr/bin/promtool").is_file(),
}
WITH_LIBVIRT = ("test_cli.py::test_a_pass_by_hand_keeps_to_the_mode_of_the_policy",)
DEVEL = "https://github.com/ansible/ansible/archive/devel.tar.gz"


class NotHere(Exception):
    """What a row needs and this machine does not have; the text is one line."""


# ---------------------------------------------------------------- environments


def interpreter(version: str) -> str:
    """A Python of that version that runs: in PATH, or what pyenv installed."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    places = [shutil.which(f"python{version}"), *sorted(pyenv.glob(f"{version}.*/bin/python{version}"))]
    for place in filter(None, places):
        code = "import ensurepip, sys; print('%d.%d' % sys.version_info[:2])"
        done = subprocess.run([str(place), "-c", code], capture_output=True, text=True, check=False)
        if done.stdout.strip() == version:
            return str(place)
    raise NotHere(f"no Python {version} on this machine")


def environment(name: str, python: str, *requirements: str) -> Path:
    """The virtual environment *name* with what it is to have; it is made once."""
    place = BUILD / name / "venv"
    done = place / "made-of"
    # Its scripts name its place: one that was made elsewhere, in a checkout that moved, does not run.
    made_of = "\n".join([str(place), python, *requirements])
    if not done.is_file() or done.read_text() != made_of:
        shutil.rmtree(place, ignore_errors=True)
        call([python, "-m", "venv", str(place)])
        pip = [str(place / "bin/python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        if subprocess.run([*pip, *requirements], check=False).returncode:
            raise NotHere(f"not to be had here: {' '.join(requirements)}")
        done.write_text(made_of)
    return place / "bin"


def core_environment(core: str) -> Path:
    what = DEVEL if core == "devel" else f"ansible-core=={core}.*"
    reasons = []
    for version in CONTROLLERS:
        try:
            return environment(f"core-{core}", interpreter(version), what, *TOOLS)
        except NotHere as reason:
            reasons.append(str(reason))
    raise NotHere(reasons[-1])


def call(command: list[str], **variables: str) -> None:
    """Run it; CalledProcessError if it fails."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "PYTHON"))}
    subprocess.run(command, cwd=ROOT, env={**inherited, "LC_ALL": "C.UTF-8", **variables}, check=True)


# ---------------------------------------------------------------- rows


def run_core(core: str) -> None:
    tools = core_environment(core)
    # That file wants ansible-core and the distribution's libvirt in one process; `make faces` has them.
    faces = ["tests/faces", "--ignore=tests/faces/test_bad_input.py"]
    call([str(tools / "pytest"), *HOW, *faces], PATH=f"{tools}:{os.environ['PATH']}")
    call(["tests/sanity.sh", *LEFT_OUT.get(core, ())], KVMSCHED_BUILD=str(tools.parents[1]))


def run_python(version: str) -> None:
    tools = environment(f"python-{version}", interpreter(version), *TOOLS)
    # What needs more of a machine than a Python and pip have.
    left = [name for name, there in NEEDS.items() if not there]
    print("left out:", ", ".join(left) or "nothing", flush=True)
    ignored = [f"--ignore=tests/unit/{name}" for name in left]
    ignored += [f"--deselect=tests/unit/{name}" for name in WITH_LIBVIRT]
    call([str(tools / "pytest"), *HOW, "tests/unit", *ignored])


def run_refusal(version: str) -> None:
    tools, python = core_environment(OLDEST_CORE), interpreter(version)
    for module in sorted((ROOT / "plugins/modules").glob("*.py")):
        command = [str(tools / "ansible"), "localhost", "-m", module.stem, "-e", f"ansible_python_interpreter={python}"]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        print(f"{module.stem}: {''.join(re.findall('msg.: .(.*).$', done.stdout, re.MULTILINE))}")
        if "needs Python 3.9 or newer" not in done.stdout or "Traceback" in done.stdout + done.stderr:
            raise subprocess.CalledProcessError(done.returncode, command, done.stdout)


RUNNERS = {"core": run_core, "python": run_python, "refusal": run_refusal}


# ---------------------------------------------------------------- all of them


class Row(NamedTuple):
    """One job of the workflow with its matrix filled in, and the lines that it runs."""

    name: str
    lines: list[str]

    @property
    def ours(self) -> Optional[list[str]]:
        """What this script is asked for by it."""
        for line in self.lines:
            if "tests/matrix.py " in line:
                return shlex.split(line.split("tests/matrix.py ")[1])
        return None


def rows(workflow: dict[str, Any]) -> Iterator[Row]:
    for name, job in workflow["jobs"].items():
        matrix = job.get("strategy", {}).get("matrix", {})
        for values in itertools.product(*([str(value) for value in column] for column in matrix.values())):
            chosen = dict(zip(matrix, values))
            lines = [line for step in job["steps"] for line in filled(step.get("run", ""), chosen).splitlines()]
            yield Row(filled(job.get("name", name), chosen), [line for line in lines if line.strip()])


def filled(text: str, values: dict[str, str]) -> str:
    return re.sub(r"\$\{\{ *matrix\.([\w-]+) *\}\}", lambda found: values[found[1]], text)


def run_all(names: list[str]) -> int:
    import yaml

    told, failed = [], False
    for row in rows(yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))):
        if names and row.name not in names:
            continue
        began_s = time.monotonic()
        print(f"== {row.name}", flush=True)
        try:
            if row.ours is None:
                raise NotHere("this machine is not of that kind")
            RUNNERS[row.ours[0]](row.ours[1])
            result = f"passed in {time.monotonic() - began_s:.0f} s"
        except NotHere as reason:
            result = f"only read: {reason}"
        except subprocess.CalledProcessError as error:
            result, failed = f"FAILED: {shlex.join(error.cmd)}", True
        told.append((row.name, result))
    width = max((len(name) for name, _result in told), default=0)
    print("", *(f"{name:<{width}}  {result}" for name, result in told), sep="\n")
    return int(failed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*RUNNERS, "all"])
    parser.add_argument("which", nargs="*", metavar="VERSION or ROW")
    options = parser.parse_args()
    if options.what == "all":
        return run_all(options.which)
    for version in options.which:
        try:
            RUNNERS[options.what](version)
        except NotHere as reason:
            print(f"matrix: {reason}", file=sys.stderr)
            return 1
        except subprocess.CalledProcessError as error:
            return error.returncode or 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
