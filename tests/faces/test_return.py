# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a module returns, its documentation names, down to the last key."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from face import REPOSITORY
from forked import run_ok

TEST = "test:///default"
# What Ansible itself adds, or every module may return.
OF_ANSIBLE = {"changed", "diff", "invocation", "warnings", "deprecations", "failed", "ansible_facts"}


def documented(module: str) -> dict[str, Any]:
    text = (REPOSITORY / f"plugins/modules/{module}.py").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text.split('RETURN = r"""')[1].split('"""')[0]))


def unknown(value: Any, docs: dict[str, Any], where: str) -> Iterator[str]:
    """The keys of *value* that its documentation does not have; a dict without ``contains`` has any."""
    for one in value if isinstance(value, list) else [value]:
        for key, inner in one.items() if isinstance(one, dict) else ():
            if key not in docs:
                yield f"{where}{key}"
            elif docs[key].get("contains"):
                yield from unknown(inner, docs[key]["contains"], f"{where}{key}.")


@pytest.mark.parametrize("module", ["kvm_mem_balance", "kvm_sched_info", "kvm_vcpu_pin"])
def test_what_is_returned_is_documented(module: str) -> None:
    values = run_ok(module, True, uri=TEST, domains=["*"]).values
    found = {key: value for key, value in values.items() if key not in OF_ANSIBLE}
    assert not list(unknown(found, documented(module), ""))


@pytest.mark.parametrize("module", ["kvm_mem_balance", "kvm_vcpu_pin"])
@pytest.mark.parametrize(("key", "name"), [("skips", "Skip"), ("unmet", "Unmet"), ("failures", "Failure")])
def test_the_entries_of_lists_are_documented(module: str, key: str, name: str) -> None:
    """Libvirt's test driver has no guest that would be in them."""
    model = importlib.import_module("kvmsched.model")
    documents = documented(module)
    if key in documents:
        assert set(getattr(model, name).__dataclass_fields__) <= set(documents[key]["contains"])
