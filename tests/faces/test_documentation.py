# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of modules and role are those of the policy document: the same names, types, words and defaults.

What is said twice is the same: the role's variables and their defaults, and what the dry run hands to the modules.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from face import REPOSITORY
from kvmsched.config import DAEMON_VCPU, SCHEMA

PARTS = {"kvm_mem_balance": "memory", "kvm_vcpu_pin": "vcpu", "kvm_sched_info": "vcpu"}
# What concerns one run of a module, and is no part of a policy.
OF_A_RUN = {"uri", "state", "subsets", "room", "room_cells"}
# What needs a memory of earlier passes, or is said of single domains only, in rules.
NOT_OF_A_MODULE = {
    "memory": {"ceiling", "weight", "mode", "grace"},
    "vcpu": {"avg_change_pct", "hold", "half_life", "cooldown", "mode", "grace"},
}
# A name is "raw": Ansible would make a text of what YAML takes for a number.
TYPES = {
    "raw": "string",
    "str": "string",
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "list": "array",
    "dict": "object",
}
ROLE = REPOSITORY / "roles/kvmsched"


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
        yield from differences(option.get("suboptions", option.get("options", {})), inner, key)


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


# ---------------------------------------------------------------- the role and the playbooks


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def variables() -> dict[str, Any]:
    """What the role's argument specification says of its variables."""
    return dict(read_yaml(ROLE / "meta/argument_specs.yml")["argument_specs"]["main"]["options"])


def calm(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with the daemon's own defaults, and without the mode, which is a variable of its own."""
    copy = json.loads(json.dumps(schema))
    for name, default in DAEMON_VCPU.items():
        copy["vcpu"]["properties"][name]["default"] = default
    del copy["daemon"]["properties"]["mode"]
    return dict(copy)


def names(options: dict[str, Any], inner: str, where: str = "") -> Iterator[str]:
    for name, option in options.items():
        yield f"{where}{name}"
        yield from names(option.get("items", option).get(inner, {}), inner, f"{where}{name}.")


@pytest.mark.parametrize("variable", ["kvmsched_policy", "kvmsched_policy_override"])
def test_the_role_knows_the_whole_policy_document_and_nothing_else(variable: str, variables: dict[str, Any]) -> None:
    options, schema = variables[variable]["options"], calm(SCHEMA["properties"])
    assert not list(differences(options, schema, variable))
    assert set(names(options, "options")) == set(names(schema, "properties"))
    mode = variables["kvmsched_mode"]
    assert not list(differences({"mode": mode}, SCHEMA["properties"]["daemon"]["properties"], "kvmsched_mode"))


def test_the_role_s_variables_are_specified_with_their_defaults(variables: dict[str, Any]) -> None:
    assert {name: option["default"] for name, option in variables.items()} == read_yaml(ROLE / "defaults/main.yml")
    text = (ROLE / "README.md").read_text(encoding="utf-8")
    for name, option in variables.items():
        default = option["default"] if isinstance(option["default"], str) else json.dumps(option["default"])
        assert f"| `{name}` | `{default}` |" in text, name


def test_the_dry_run_hands_the_whole_policy_to_the_modules(documented: dict[str, Any]) -> None:
    _begin, play = read_yaml(REPOSITORY / "playbooks/dry_run.yml")
    (given,) = play["module_defaults"].values()
    for module in ("kvm_mem_balance", "kvm_vcpu_pin"):
        (task,) = [task for task in play["tasks"] if f"kvmsched.kvm.{module}" in task]
        # Check mode waits neither for the lock nor for memory to arrive.
        wanted = set(documented[module]) - OF_A_RUN - {"lock_timeout", "arrival_timeout"}
        assert {*given, *task[f"kvmsched.kvm.{module}"]} == wanted
