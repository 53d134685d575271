# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A pass in which something breaks at an exact instant: the same code that the modules run, with a hook in it.

As a program (``python faulty.py memory balance apply SIGKILL``) it runs one pass, sends itself that
signal at that instant, and prints what became of the pass. ``python faulty.py serve`` is for who is on another host.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Union

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "plugins/module_utils"))

from kvmsched import config, passes
from kvmsched.hypervisor import Hypervisor, connection, read, write
from kvmsched.passes import MemoryResult, VcpuResult

# The instants of a pass, in their order, each just before a function is called for the first time: nothing was
# asked yet; the domains are described, their statistics not; the plan is made; the first record is written, its
# change is not.
INSTANTS: dict[str, tuple[Any, str]] = {
    "observe": (Hypervisor, "observe"),
    "statistics": (read.Reader, "_statistics"),
    "apply": (Hypervisor, "apply"),
    "change": (write, "make"),
}
# One more, of memory passes: memory was taken, and is waited for.
ARRIVAL = {"arrival": (passes, "_wait_for")}
RESOURCES = ("memory", "vcpu")
# A pass that takes longer hangs: no healthy one comes near it.
HANG_S = 240
LOOK_S = 2.0

# For a fault that ends by itself: a pass that is so many times as patient gives nobody up.
PATIENT = float(HANG_S)

FLOOR_KIB = 96 * 1024
EVERYBODY = "kvmsched-test-*"
DEADLINE_S, LONGEST_DEADLINE_S = 6.0, 600.0
DOCUMENT: dict[str, Any] = {
    "memory": {
        "reclaim": "eager",
        "starvation": "40M",
        "waste": "80M",
        "floor": "96M",
        "arrival_timeout": 5.0,
        "host_reserve": "256M",
    },
    "vcpu": {"interval": 1.0, "pcpus": "0-1", "threshold": 1.0},
}


def run(
    resource: str, release: bool = False, names: str = EVERYBODY, patience: float = 1.0
) -> Union[MemoryResult, VcpuResult]:
    """One pass of *resource* over the domains *names*, with the policy of the fault tests.

    *patience*: how many times longer than on a real host somebody may take to answer.
    """
    deadline_s = min(DEADLINE_S * patience, LONGEST_DEADLINE_S)
    policy = config.load({**DOCUMENT, "deadline": deadline_s, "domains": [names]})
    how = passes.Conduct(deadline_s=policy.deadline_s, lock_timeout_s=20, holder="a fault test")
    with _patient(patience):
        if resource == "memory":
            return passes.run_memory(how, policy.memory, release=release)
        return passes.run_vcpu(how, policy.vcpu, release=release)


@contextlib.contextmanager
def _patient(patience: float) -> Iterator[None]:
    before_s = connection._STALL_S
    connection._STALL_S = before_s * patience
    try:
        yield
    finally:
        connection._STALL_S = before_s


@contextlib.contextmanager
def breaking(faults: Mapping[str, Callable[[], object]]) -> Iterator[None]:
    """Let each fault happen once, at its instant of the passes within."""
    with contextlib.ExitStack() as stack:
        for instant, fault in faults.items():
            stack.enter_context(_before(*{**INSTANTS, **ARRIVAL}[instant], fault))
        yield


@contextlib.contextmanager
def _before(place: Any, name: str, fault: Callable[[], object]) -> Iterator[None]:
    original = getattr(place, name)
    pending = [fault]

    def hooked(*arguments: Any, **options: Any) -> Any:
        if pending:
            pending.pop()()
        return original(*arguments, **options)

    setattr(place, name, hooked)
    try:
        yield
    finally:
        setattr(place, name, original)


# ---------------------------------------------------------------- a pass in a process of its own


@dataclass
class Child:
    """A pass that sends itself *number* at *instant*; *inside* wraps its command, e.g. into a namespace.

    *patience* and *names* are those of run(). *clock* is what bounds on waiting are bounds of.
    """

    resource: str
    state: str = "balance"
    instant: str = "observe"
    number: signal.Signals = signal.SIGCONT
    inside: Callable[[Sequence[str]], list[str]] = list
    patience: float = 1.0
    names: str = EVERYBODY
    clock: Callable[[], float] = time.monotonic
    process: subprocess.Popen[str] = field(init=False)

    def __post_init__(self) -> None:
        asked = (self.resource, self.state, self.instant, self.number.name, str(self.patience), self.names)
        command = self.inside([sys.executable, __file__, *asked])
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def wait_stopped(self) -> None:
        """Wait until it stopped itself."""
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        self.process.send_signal(number)

    def end(self) -> tuple[int, str]:
        """Let it end by itself, and return its exit status and what it printed."""
        end_s = self.clock() + HANG_S
        while True:
            try:
                output, _errors = self.process.communicate(timeout=LOOK_S)
                return self.process.returncode, output
            except subprocess.TimeoutExpired:
                if self.clock() > end_s:
                    self.process.kill()
                    raise


def main(resource: str, state: str, instant: str, name: str, patience: str, names: str) -> int:
    number = signal.Signals[name]
    try:
        with breaking({instant: lambda: os.kill(os.getpid(), number)}):
            result = run(resource, release=state == "release", names=names, patience=float(patience))
    except passes.PassError as error:
        print(f"failed: {error}")
        return 1
    for move in result.outcome.moves:
        print(f"moved: {move}")
    for failure in result.outcome.failures:
        print(f"failure: {failure.domain} {failure.code}: {failure.reason}")
    print(f"failed: {result.failed}" if result.failed else "ended well")
    return 1 if result.failed else 0


# ---------------------------------------------------------------- passes for who is on another host


def serve() -> int:
    """Run the passes that are asked for, a line each; say when one is at an instant, and wait for a line then."""
    for line in iter(sys.stdin.readline, ""):
        asked = json.loads(line)
        try:
            with breaking({instant: partial(_wait_at, instant) for instant in asked.pop("instants")}):
                result = run(**asked)
            print("result", base64.b64encode(pickle.dumps(result)).decode(), flush=True)
        except passes.PassError as error:
            print("failed", error, flush=True)
    return 0


def _wait_at(instant: str) -> None:
    print("at", instant, flush=True)
    if not sys.stdin.readline():
        os._exit(os.EX_NOINPUT)  # whoever asked is gone


if __name__ == "__main__":
    sys.exit(serve() if sys.argv[1:] == ["serve"] else main(*sys.argv[1:]))
