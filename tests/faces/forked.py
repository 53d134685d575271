# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Modules and command as `face` runs them, without the price of Ansible and of a new Python for each.

One process of the distribution's Python has imported both, and forks a child for each run. So each run is a process of
its own, with its own environment, libvirt connections and end. What Ansible itself does is left out: it hands options
to a module as here, by JSON, and prints what the module said.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable, Optional

MODULES = ("kvm_mem_balance", "kvm_sched_info", "kvm_vcpu_pin")

if __name__ != "__main__":
    from face import GUESTS, REPOSITORY, Answer, bare_environment

# ---------------------------------------------------------------- what tests call


def run(module: str, check: bool = False, environment: Optional[dict[str, str]] = None, **options: Any) -> Answer:
    """Run *module* here; without ``domains`` it is confined to the guests of the tests."""
    options.setdefault("domains", [GUESTS])
    given = {**options, "_ansible_check_mode": check, "_ansible_diff": True, "_ansible_module_name": module}
    done = _server().ask(module, [json.dumps({"ANSIBLE_MODULE_ARGS": given})], {**os.environ, **(environment or {})})
    assert not done.stderr, done.stderr
    values = json.loads(done.stdout)
    # As Ansible shows it: what its JSON escapes stands there as it is.
    text = json.dumps(values, ensure_ascii=False)
    assert "Traceback" not in text, text
    assert done.returncode == bool(values.get("failed")), text
    return Answer(bool(values.get("failed")), values, text, values.get("moves", []))


def run_ok(module: str, check: bool = False, **options: Any) -> Answer:
    """The same, where the module must not fail."""
    answer = run(module, check, **options)
    assert not answer.failed, answer.text
    return answer


def kvmsched(*arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command. Whatever happens, a mistake is one line, and nobody sees a traceback."""
    done = _server().ask("kvmsched", list(arguments), {**bare_environment(), **environment}, stdin)
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    assert "a mistake of kvmsched" not in done.stderr, done.stderr
    return done


def ok(*arguments: str, **more: str) -> str:
    done = kvmsched(*arguments, **more)
    assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def ok_json(*arguments: str, **more: str) -> dict[str, Any]:
    return dict(json.loads(ok(*arguments, "--json", **more)))


class _Server:
    """The process that forks; it ends when whoever began it does."""

    def __init__(self) -> None:
        import ansible

        self._place = tempfile.TemporaryDirectory()
        # Of this environment's packages the distribution's Python gets Ansible alone, as on a host.
        (Path(self._place.name) / "ansible").symlink_to(Path(str(ansible.__file__)).parent)
        path = [bare_environment()["PYTHONPATH"], self._place.name, str(REPOSITORY / ".ansible/collections")]
        self._process = subprocess.Popen(
            ["/usr/bin/python3", __file__],
            env={**bare_environment(), "PYTHONPATH": os.pathsep.join(path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(
        self, name: str, arguments: list[str], environment: dict[str, str], stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps([name, arguments, environment, stdin]) + "\n")
        self._process.stdin.flush()
        return subprocess.CompletedProcess([name, *arguments], *json.loads(self._process.stdout.readline()))


_servers: list[_Server] = []


def _server() -> _Server:
    if not _servers:
        _servers.append(_Server())
    return _servers[0]


# ---------------------------------------------------------------- the process that forks


def _serve() -> None:
    importlib.import_module("libvirt")
    importlib.import_module("jsonschema")
    kvmsched_main = importlib.import_module("kvmsched.app.cli").main
    basic = importlib.import_module("ansible.module_utils.basic")
    mains = {
        name: importlib.import_module(f"ansible_collections.kvmsched.kvm.plugins.modules.{name}").main
        for name in MODULES
    }

    def work(name: str, arguments: list[str]) -> int:
        if name == "kvmsched":
            return int(kvmsched_main(arguments))
        basic._ANSIBLE_ARGS, basic._ANSIBLE_PROFILE = arguments[0].encode(), "legacy"
        mains[name]()
        raise AssertionError("a module ends its process")

    for line in sys.stdin:
        name, arguments, environment, stdin = json.loads(line)
        print(json.dumps(_forked(lambda: work(name, arguments), environment, stdin)), flush=True)  # noqa: B023


def _forked(work: Callable[[], int], environment: dict[str, str], stdin: str) -> tuple[int, str, str]:
    """Return status, output and errors of *work* in a child."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(stdin.encode())
        given.seek(0)
        child = os.fork()
        if not child:
            for number, file in enumerate((given, out, err)):
                os.dup2(file.fileno(), number)
            os.environ.clear()
            os.environ.update(environment)
            _end(work)
        _child, status = os.waitpid(child, 0)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
        return os.waitstatus_to_exitcode(status), texts[0], texts[1]


def _end(work: Callable[[], int]) -> None:
    """Do *work* and end this process with its status; what nobody caught is told on stderr."""
    status = 1
    try:
        status = work()
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve()
