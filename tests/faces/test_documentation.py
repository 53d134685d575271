# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules' options are those of the policy document: one schema, one set of names, types, words and defaults."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from face import REPOSITORY
from kvmsched.config import SCHEMA

PARTS = {"kvm_mem_balance": "memory", "kvm_vcpu_pin": "vcpu", "kvm_sched_info": "vcpu"}
# What concerns one run of a module, and is no part of a policy.
OF_A_RUN = {"uri", "state", "subsets"}
# What needs a memory of earlier passes, or is said of single domains only, in rules.
NOT_OF_A_MODULE = {
    "memory": {"ceiling", "weight", "mode", "grace"},
    "vcpu": {"avg_change_pct", "hold", "half_life", "cooldown", "mode", "grace"},
}
TYPES = {"str": "string", "int": "integer", "float": "number", "list": "array", "dict": "object"}


@pytest.fixture(scope="module")
def documented() -> dict[str, Any]:
    """What ansible-doc says of each module's options."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("ansible-doc")), "--json", *(f"kvmsched.kvm.{name}" for name in PARTS)],
        cwd=REPOSITORY,
        env={**os.environ, "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg")},
        check=True,
        capture_output=True,
        text=True,
    )
    return {name.split(".")[-1]: found["doc"]["options"] for name, found in json.loads(done.stdout).items()}


def differences(options: dict[str, Any], schemas: dict[str, Any], where: str) -> Iterator[str]:
    """One line for each point in which documented *options* are not as *schemas* have them."""
    for name, option in options.items():
        key, schema = f"{where}.{name}", schemas.get(name)
        if schema is None:
            yield f"{key}: not in the policy document"
            continue
        if TYPES[option["type"]] != schema.get("type", "string"):
            yield f"{key}: type {option['type']}, in the policy document {schema.get('type', 'string')}"
        if option.get("choices") != schema.get("enum"):
            yield f"{key}: choices {option.get('choices')}, in the policy document {schema.get('enum')}"
        if "default" in option and option["default"] != schema.get("default", []):
            yield f"{key}: default {option['default']}, in the policy document {schema.get('default')}"
        inner = schema.get("items", schema).get("properties", {})
        yield from differences(option.get("suboptions", {}), inner, key)


@pytest.mark.parametrize("module", PARTS)
def test_options_are_those_of_the_policy_document(module: str, documented: dict[str, Any]) -> None:
    options = {name: option for name, option in documented[module].items() if name not in OF_A_RUN}
    whole = SCHEMA["properties"]
    assert not list(differences(options, {**whole, **whole[PARTS[module]]["properties"]}, module))


@pytest.mark.parametrize("module", ["kvm_mem_balance", "kvm_vcpu_pin"])
def test_no_part_of_the_policy_document_is_forgotten(module: str, documented: dict[str, Any]) -> None:
    part = PARTS[module]
    wanted = set(SCHEMA["properties"][part]["properties"]) - NOT_OF_A_MODULE[part]
    assert wanted <= set(documented[module])
    assert not NOT_OF_A_MODULE[part] & set(documented[module])
    rule = documented[module]["rules"]["suboptions"]
    for name, schema in SCHEMA["properties"]["rules"]["items"]["properties"].items():
        assert set(schema.get("properties", {})) == set(rule[name].get("suboptions", {}))
