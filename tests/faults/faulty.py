# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A pass in which something breaks at an exact instant: the same code that the modules run, with a hook in it.

As a program (``python faulty.py memory balance apply SIGKILL``) it runs one pass, sends itself that
signal at that instant, and prints what became of the pass.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, Union

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

FLOOR_KIB = 96 * 1024
DOCUMENT: dict[str, Any] = {
    "deadline": 6.0,
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


def run(resource: str, release: bool = False, names: str = "kvmsched-test-*") -> Union[MemoryResult, VcpuResult]:
    """One pass of *resource* over the domains *names*, with the policy of the fault tests."""
    policy = config.load({**DOCUMENT, "domains": [names]})
    how = passes.Conduct(deadline_s=policy.deadline_s, lock_timeout_s=20, holder="a fault test")
    if resource == "memory":
        return passes.run_memory(how, policy.memory, release=release)
    return passes.run_vcpu(how, policy.vcpu, release=release)


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

    A *patient* one gives nobody up: for a fault that ends by itself, some time later than a healthy libvirt answers.
    """

    resource: str
    state: str = "balance"
    instant: str = "observe"
    number: signal.Signals = signal.SIGCONT
    inside: Callable[[Sequence[str]], list[str]] = list
    patient: bool = False
    process: subprocess.Popen[str] = field(init=False)

    def __post_init__(self) -> None:
        command = [sys.executable, __file__, self.resource, self.state, self.instant, self.number.name]
        command += ["patient"] if self.patient else []
        self.process = subprocess.Popen(
            self.inside(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def wait_stopped(self) -> None:
        """Wait until it stopped itself."""
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def end(self, number: Optional[signal.Signals] = None) -> tuple[int, str]:
        """Send it a signal, let it end by itself, and return its exit status and what it printed."""
        if number is not None:
            self.process.send_signal(number)
        try:
            output, _errors = self.process.communicate(timeout=HANG_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        return self.process.returncode, output


def unhurried() -> None:
    """Let no call of this process be given up."""
    DOCUMENT["deadline"] = float(HANG_S)
    connection._STALL_S = float(HANG_S)


def main(resource: str, state: str, instant: str, name: str, *patient: str) -> int:
    number = signal.Signals[name]
    if patient:
        unhurried()
    try:
        with breaking({instant: lambda: os.kill(os.getpid(), number)}):
            result = run(resource, release=state == "release")
    except passes.PassError as error:
        print(f"failed: {error}")
        return 1
    for move in result.outcome.moves:
        print(f"moved: {move}")
    for failure in result.outcome.failures:
        print(f"failure: {failure.domain} {failure.code}: {failure.reason}")
    print(f"failed: {result.failed}" if result.failed else "ended well")
    return 1 if result.failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
