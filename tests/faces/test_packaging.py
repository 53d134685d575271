# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The collection as users get it: a tarball, an installation, a checkout of any name, a Python without libvirt."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from face import REPOSITORY

MODULES = ("kvm_mem_balance", "kvm_sched_info", "kvm_sched_install", "kvm_vcpu_pin")
TEST_DRIVER = "uri=test:///default"


class Answer(NamedTuple):
    """What an ad-hoc run says of a host (SUCCESS, CHANGED or FAILED!), and the module's result."""

    status: str
    result: dict[str, Any]
    output: str


def run(command: list[str], cwd: Path, **environment: str) -> str:
    """Run *command* with the tools of this venv, untouched by the settings of this checkout."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")}
    path = f"{Path(sys.executable).parent}:{inherited['PATH']}"
    merged = {**inherited, "PATH": path, "ANSIBLE_NOCOLOR": "1", **environment}
    done = subprocess.run(
        command, cwd=cwd, env=merged, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    assert done.returncode in (0, 2), f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


def ad_hoc(module: str, arguments: str, cwd: Path, python: str = "", **environment: str) -> Answer:
    """Run `ansible localhost -m module -a arguments`, under *python* if it is given."""
    command = ["ansible", "localhost", "-m", module, "-a", arguments]
    if python:
        command += ["-e", f"ansible_python_interpreter={python}"]
    output = run(command, cwd, **environment)
    answer = re.search(r"^localhost \| (\S+) => (\{.*\})", output, re.DOTALL | re.MULTILINE)
    assert answer, output
    return Answer(answer[1], json.loads(answer[2]), output)


@pytest.fixture(scope="module")
def tarball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tarball")
    run(["ansible-galaxy", "collection", "build", "--output-path", str(place)], REPOSITORY)
    return next(place.glob("kvmsched-kvm-*.tar.gz"))


@pytest.fixture(scope="module")
def collections(tarball: Path) -> Path:
    """A place where the tarball is installed; nothing here points back at the checkout."""
    place = tarball.parent / "collections"
    said = run(["ansible-galaxy", "collection", "install", "--offline", str(tarball), "-p", str(place)], tarball.parent)
    assert "installed successfully" in said
    return place


@pytest.fixture
def bare_python(tmp_path: Path) -> str:
    """A Python that cannot import libvirt, as version managers and container images have it."""
    subprocess.run(["/usr/bin/python3", "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    python = str(tmp_path / "bare/bin/python")
    assert subprocess.run([python, "-c", "import libvirt"], capture_output=True, check=False).returncode != 0
    return python


def test_the_tarball_holds_what_a_user_needs_and_nothing_else(tarball: Path) -> None:
    with tarfile.open(tarball) as archive:
        files = [member.name for member in archive.getmembers() if not member.isdir()]
    for needed in (
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "meta/runtime.yml",
        "plugins/module_utils/kvmsched/model.py",
    ):
        assert needed in files
    assert {f"plugins/modules/{name}.py" for name in MODULES} <= set(files)
    tops = {name.split("/")[0] for name in files}
    known = {"MANIFEST.json", "FILES.json", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"}
    known |= {"CODE_OF_CONDUCT.md", "MAINTAINERS.md", "REUSE.toml", "LICENSES"}
    assert tops <= known | {"changelogs", "docs", "meta", "monitoring", "playbooks", "plugins", "roles", "scripts"}
    assert not [name for name in files if "__pycache__" in name or name.endswith(".pyc")]


@pytest.fixture(scope="module")
def manual(collections: Path) -> list[str]:
    """What ansible-doc says of each module."""
    names = [f"kvmsched.kvm.{module}" for module in MODULES]
    said = run(["ansible-doc", *names], collections, ANSIBLE_COLLECTIONS_PATH=str(collections))
    return re.split(r"^> ", said, flags=re.MULTILINE)[1:]


@pytest.mark.parametrize("module", MODULES)
def test_the_documentation_can_be_read_where_it_is_installed(module: str, manual: list[str]) -> None:
    (said,) = [page for page in manual if f"/{module}.py" in page.splitlines()[0]]
    assert module in said
    assert "OPTIONS" in said


def test_role_filter_and_playbooks_are_found_where_they_are_installed(collections: Path) -> None:
    place = {"ANSIBLE_COLLECTIONS_PATH": str(collections)}
    assert "kvmsched_mode" in run(["ansible-doc", "-t", "role", "kvmsched.kvm.kvmsched"], collections, **place)
    assert "hostvars" in run(["ansible-doc", "-t", "filter", "kvmsched.kvm.fleet_report"], collections, **place)
    names = ("dry_run", "rollout", "release")
    playbooks = [f"kvmsched.kvm.{name}" for name in names]
    command = ["ansible-playbook", *playbooks, "--syntax-check", "-e", "kvmsched_hosts=localhost"]
    said = run(command, collections, **place)
    for name in names:
        assert f"/kvm/playbooks/{name}.yml" in said


def test_an_installed_module_runs_by_its_full_name(collections: Path, tmp_path: Path) -> None:
    answer = ad_hoc("kvmsched.kvm.kvm_sched_info", TEST_DRIVER, tmp_path, ANSIBLE_COLLECTIONS_PATH=str(collections))
    assert answer.status in ("SUCCESS", "CHANGED"), answer.output
    assert answer.result["changed"] is False
    assert answer.result["snapshot"]["domains"][0]["name"] == "test"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a clone would hold if all here were committed, in a folder of another name."""
    place = tmp_path_factory.mktemp("clone") / "some other-name.d"
    tracked = ["git", "-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(tracked, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        source, target = REPOSITORY / name, place / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            target.symlink_to(os.readlink(source))
        elif source.exists():
            target.write_bytes(source.read_bytes())
    return place


RUN_BY = ("kvm_sched_info", "kvmsched.kvm.kvm_sched_info", "kvm_mem_balance", "kvm_vcpu_pin")


@pytest.fixture(scope="module")
def tasks(checkout: Path) -> str:
    """What a play in the checkout says, with a task for each of these names."""
    play = {"hosts": "localhost", "gather_facts": False}
    named = [{"name": name, name: {"uri": "test:///default"}} for name in RUN_BY]
    (checkout / "names.json").write_text(json.dumps([{**play, "tasks": named}]))
    return run(["ansible-playbook", "names.json"], checkout)


@pytest.mark.parametrize("module", RUN_BY)
def test_a_checkout_of_any_name_runs_modules_by_short_and_full_name(module: str, tasks: str) -> None:
    said = tasks.partition(f"TASK [{module}] ")[2].partition("TASK [")[0]
    assert re.search(r"^(ok|changed): \[localhost\]", said, re.MULTILINE), tasks


def test_a_python_without_libvirt_hands_over_to_the_distribution_s(checkout: Path, bare_python: str) -> None:
    answer = ad_hoc("kvm_sched_info", TEST_DRIVER, checkout, bare_python)
    assert answer.status in ("SUCCESS", "CHANGED"), answer.output


def test_where_no_python_has_libvirt_one_line_names_the_package(
    checkout: Path, bare_python: str, tmp_path: Path
) -> None:
    # Shadow the binding for every interpreter, the distribution's own as well: none can import it then.
    shadow = tmp_path / "shadow"
    shadow.mkdir()
    (shadow / "libvirt.py").write_text("raise ImportError(\"No module named 'libvirt'\")\n")
    for python in (bare_python, "/usr/bin/python3"):
        answer = ad_hoc("kvm_sched_info", TEST_DRIVER, checkout, python, PYTHONPATH=str(shadow))
        assert answer.status == "FAILED!"
        assert "install python3-libvirt" in answer.result["msg"]
        assert "\n" not in answer.result["msg"]
        assert "Traceback" not in answer.output
