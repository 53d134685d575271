# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A pass in which something breaks at an exact instant: the same code that the modules run, with a hook in it.

As a program (``python faulty.py memory balance kill apply``) it runs one pass and kills itself at that
instant, or tells how the pass ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "plugins/module_utils"))

from kvmsched import config, hypervisor, passes
from kvmsched.hypervisor import Hypervisor

# The instants of a pass, in their order: before anything was asked; when the domains were described and their
# statistics are asked for; between the plan and its first write; when a record is written and its change is not.
INSTANTS = ("observe", "statistics", "apply", "change")

DOCUMENT = {
    "domains": ["kvmsched-test-*"],
    "deadline": 4.0,
    "memory": {"starvation": "40M", "waste": "80M", "floor": "96M", "arrival_timeout": 5.0, "host_reserve": "256M"},
    "vcpu": {"interval": 1.0, "pcpus": "0-1"},
}


def run(resource: str, release: bool = False, check: bool = False) -> passes.Result[Any]:
    """One pass of *resource* (memory or vcpu) with the policy of the fault tests."""
    policy = config.load(DOCUMENT)
    how = passes.Conduct(check=check, deadline_s=policy.deadline_s, lock_timeout_s=20, holder="a fault test")
    if resource == "memory":
        return passes.run_memory(how, policy.memory, release=release)
    return passes.run_vcpu(how, policy.vcpu, release=release)


@contextlib.contextmanager
def breaking(instant: str, fault: Callable[[], object]) -> Iterator[None]:
    """Let *fault* happen once, at that instant of the next pass."""
    pending = [fault]

    def now() -> None:
        if pending:
            pending.pop()()

    def before(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            now()
            return original(*arguments, **options)

        return wrapped

    place, name = {
        "observe": (Hypervisor, "observe"),
        "statistics": (Hypervisor, "_statistics"),
        "apply": (Hypervisor, "apply"),
        "change": (hypervisor, "_make"),
    }[instant]
    original = getattr(place, name)
    setattr(place, name, before(original))
    try:
        yield
    finally:
        setattr(place, name, original)


def main(resource: str, state: str, fault: str = "", instant: str = "observe") -> int:
    faults: dict[str, Callable[[], object]] = {
        "": lambda: None,
        "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    }
    try:
        with breaking(instant, faults[fault]):
            result = run(resource, release=state == "release")
    except passes.PassError as error:
        print(f"failed: {error}")
        return 1
    for move in result.outcome.moves:
        print(f"moved: {move}")
    for failure in result.outcome.failures:
        print(f"failure: {failure.domain} {failure.code} {failure.reason}")
    print(f"ended: {result.failed or 'well'}")
    return 1 if result.failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
