# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Ansible face of a pass: options in, one pass, result out. The modules are its documentation.

It is internal to this collection, as the package beside it is: semantic versioning does not cover it.
"""

from __future__ import annotations

import importlib
import platform
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NoReturn, Optional

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.respawn import has_respawned, probe_interpreters_for_module, respawn_module

from .kvmsched import config, hypervisor, leases, model, passes, report, units
from .kvmsched.policy.vcpu.demand import measure
from .kvmsched.units import counted, percent, printable

# Where distributions put the Python that their python3-libvirt belongs to.
DISTRIBUTION_PYTHONS = ("/usr/bin/python3", "/usr/libexec/platform-python")

# ---------------------------------------------------------------- options; described in the modules and doc_fragments

# What is said of single domains only, in rules, or needs a memory of earlier passes, which a module has not.
_NOT_OF_A_MODULE = {"ceiling", "weight", "mode", "grace", "avg_change_pct", "hold", "half_life", "cooldown"}
_TYPES = {"string": "str", "number": "float", "integer": "int", "boolean": "bool"}


def _option(schema: Mapping[str, Any], defaults: bool = True) -> dict[str, Any]:
    """Return the option of a module that a part of the policy document is."""
    if "enum" in schema:
        option: dict[str, Any] = {"type": "str", "choices": list(schema["enum"])}
    elif schema["type"] == "object":
        options = {name: _option(inner, defaults=False) for name, inner in schema["properties"].items()}
        for name in schema.get("required", ()):
            options[name]["required"] = True
        option = {"type": "dict", "options": options}
    elif schema["type"] == "array":
        items = _option(schema["items"])
        option = {"type": "list", "elements": items["type"]}
        option.update({"options": items["options"]} if "options" in items else {})
    else:
        # Names alone have a pattern. As text, Ansible would take 0123 for the domain "83", and say nothing.
        option = {"type": "raw" if "pattern" in schema else _TYPES[schema["type"]]}
    if defaults and "default" in schema:
        option["default"] = schema["default"]
    return option


def _options(part: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return the options for *names* of a part of the policy document, or for all that a module has."""
    chosen = names or [name for name in part if name not in _NOT_OF_A_MODULE]
    return {name: _option(part[name]) for name in chosen}


_POLICY = config.SCHEMA["properties"]
_COMMON: dict[str, Any] = {
    "uri": {"type": "str", "default": "qemu:///system"},
    **_options(_POLICY, "domains", "exclude", "deadline"),
}

_CHANGE: dict[str, Any] = {
    **_COMMON,
    "state": {"type": "str", "choices": ["balanced", "released"], "default": "balanced"},
    **_options(_POLICY, "lock_timeout", "rules"),
}

_MEMORY: dict[str, Any] = {
    **_CHANGE,
    **_options(_POLICY["memory"]["properties"]),
    "room": {"type": "str"},
    "room_cells": {"type": "str"},
}

_VCPU: dict[str, Any] = {**_CHANGE, **_options(_POLICY["vcpu"]["properties"])}

_SUBSETS = ["host", "topology", "vcpus", "memory"]

_INFO: dict[str, Any] = {
    **_COMMON,
    "subsets": {"type": "list", "elements": "str", "choices": _SUBSETS, "default": _SUBSETS},
    **_options(_POLICY["vcpu"]["properties"], "interval"),
}


def memory_module() -> AnsibleModule:
    return AnsibleModule(argument_spec=_MEMORY, supports_check_mode=True)


def vcpu_module() -> AnsibleModule:
    return AnsibleModule(argument_spec=_VCPU, supports_check_mode=True)


def info_module() -> AnsibleModule:
    return AnsibleModule(argument_spec=_INFO, supports_check_mode=True)


# ---------------------------------------------------------------- dependencies


def require_libvirt(module: AnsibleModule) -> None:
    """Return only where libvirt can be imported: respawn under the distribution's Python, else fail in one line.

    Where the pass reads a policy document, a Python that can read one is preferred; who reads it says if there is none.
    """
    if module.params.get("rules") or _installed(module):
        seek(module, "libvirt", "jsonschema")
    cause = seek(module, "libvirt")
    if cause:
        looked_at = ", ".join(dict.fromkeys([sys.executable, *DISTRIBUTION_PYTHONS]))
        module.fail_json(
            msg=f"libvirt's Python binding is missing on {platform.node()}: install python3-libvirt "
            f"(looked in {looked_at}: {cause})"
        )


def seek(module: AnsibleModule, *libraries: str) -> str:
    """Go on under a Python that has *libraries*: this one or, respawned, the distribution's; return what it lacks."""
    try:
        for library in libraries:
            importlib.import_module(library)
        return ""
    except ImportError as error:
        cause = str(error)
    if not has_respawned():
        # The probe runs each interpreter; a path that does not exist is no candidate.
        interpreter = probe_interpreters_for_module(list(DISTRIBUTION_PYTHONS), ", ".join(libraries))
        if interpreter:
            respawn_module(interpreter)  # runs the module there and ends this process
    return cause


# ---------------------------------------------------------------- the passes


def run_memory(module: AnsibleModule) -> None:
    """Make one pass of kvm_mem_balance, and end the process."""
    require_libvirt(module)
    names = ("strategy", "starvation", "waste", "host_reserve", "floor", "reclaim", "cache")
    policy = _policy(module, "memory", (*names, "stats_period", "arrival_timeout"))
    how = _conduct(module, policy)
    rules, source = _rules(module, policy)
    memory = replace(policy.memory, rules=rules, room=_room(module))
    try:
        result = passes.run_memory(how, memory, release=_releases(module))
    except passes.PassError as error:
        fail(module, str(error))
    _finish(module, result, source)


def run_vcpu(module: AnsibleModule) -> None:
    """Make one pass of kvm_vcpu_pin, and end the process."""
    require_libvirt(module)
    names = ("interval", "threshold", "granularity", "floating", "pcpus", "reserved", "max_moves", "emulator")
    policy = _policy(module, "vcpu", names)
    how = _conduct(module, policy)
    rules, source = _rules(module, policy)
    try:
        result = passes.run_vcpu(how, replace(policy.vcpu, rules=rules), release=_releases(module))
    except passes.PassError as error:
        fail(module, str(error))
    _finish(module, result, source)


def run_info(module: AnsibleModule) -> None:
    """Observe for kvm_sched_info; ends the process."""
    require_libvirt(module)
    policy = _policy(module, "vcpu", ("interval",))
    try:
        samples, timings_s = passes.run_info(_conduct(module, policy), policy.vcpu.interval_s)
    except passes.PassError as error:
        fail(module, str(error))
    selection, subsets = policy.vcpu.selection, module.params["subsets"]
    last = replace(samples[-1], domains=tuple(d for d in samples[-1].domains if selection.matches(d)))
    domains = counted(len(last.domains), "running domain")
    vcpus = counted(sum(len(domain.vcpus) for domain in last.domains), "vCPU")
    pcpus = counted(len(last.host.topology.pcpus), "pCPU")
    values = {
        "changed": False,
        "msg": f"{last.host.name}: {domains}, {vcpus} on {pcpus}",
        "snapshot": _subset(model.to_json(last), subsets),
        "load": _load(samples, last.domains, subsets),
        "unmatched": list(selection.unmatched(samples[-1].domains)),
        "timings_s": timings_s,
    }
    module.exit_json(**_harmless(values))


def _policy(module: AnsibleModule, part: str, names: Iterable[str]) -> config.Policy:
    """Return the policy that the module's options describe; fails naming the option that is wrong."""
    params = {name: value for name, value in module.params.items() if value is not None}
    document = {name: params[name] for name in ("domains", "exclude", "deadline", "lock_timeout") if name in params}
    document[part] = {name: params[name] for name in names if name in params}
    rules = _without_none(params.get("rules") or [])
    if rules:
        document["rules"] = rules
    _refuse_what_is_no_text(module, document)
    try:
        return config.load(document, typed=not rules)
    except config.ConfigError as error:
        fail(module, str(error.of_options(part)))


def _refuse_what_is_no_text(module: AnsibleModule, document: dict[str, Any]) -> None:
    patterns = [(f"{key}[{n}]", each) for key in ("domains", "exclude") for n, each in enumerate(document[key])]
    patterns += [(f"rules[{n}].match", rule["match"]) for n, rule in enumerate(document.get("rules", []))]
    mistakes = [config.no_pattern(where, value) for where, value in patterns if not isinstance(value, str)]
    if mistakes:
        fail(module, "; ".join(map(str, mistakes)))


def _room(module: AnsibleModule) -> Optional[model.RoomRequest]:
    """Hold the room that is asked for on this host, and return it; in check mode it is only planned with."""
    asked, uri = module.params["room"], module.params["uri"]
    cells = _room_cells(module)
    try:
        kib = 0 if asked in (None, "0") else units.parse_size(asked)
    except ValueError as error:
        fail(module, f"room: got {units.shown(asked)}, allowed: {error}")
    request = model.RoomRequest(kib, cells, time.time())
    if asked is None or _releases(module):
        return None
    if not module.check_mode and not hypervisor.acting_refusal(uri):
        try:
            if kib:
                leases.write(uri, "room", leases.ROOM_S, request)
            else:
                leases.end(uri, "room")
        except OSError as error:
            fail(
                module, f"room: it can't be asked for ({error.filename}: {error.strerror}); run as root, or with become"
            )
    return request if kib else None


def _room_cells(module: AnsibleModule) -> Optional[units.CpuSet]:
    cells = module.params["room_cells"]
    if cells is None:
        return None
    if module.params["room"] is None:
        fail(module, f"room_cells: got {units.shown(cells)} without room, allowed: beside room")
    try:
        return units.parse_cpuset(cells)
    except ValueError:
        fail(module, f"room_cells: got {units.shown(cells)}, allowed: numbers of NUMA cells such as 0 or 0-1")


def _rules(module: AnsibleModule, policy: config.Policy) -> tuple[tuple[config.Rule, ...], str]:
    """Return the rules and where they come from: the option, else the policy installed on this host (decision 31)."""
    if module.params["rules"] is not None:
        return policy.memory.rules, "options"
    path = _installed(module)
    if path is None:
        return (), "none"
    try:
        return config.load_file(path).memory.rules, path
    except config.ConfigError as error:
        fail(module, "; ".join(error.mistakes))


def _installed(module: AnsibleModule) -> Optional[str]:
    """Return the path of the installed policy whose rules hold for the pass, or None.

    A host that is only looked at from afar has another policy than the machine that the module runs on.
    """
    if module.params.get("rules", ()) is not None or hypervisor.acting_refusal(module.params["uri"]):
        return None
    return config.installed()


def fail(module: AnsibleModule, line: str) -> NoReturn:
    module.fail_json(msg=printable(line))
    raise SystemExit(1)  # never reached; for type checkers that don't see into ansible-core


def _without_none(value: Any) -> Any:
    """Drop suboptions that were not given: Ansible fills them with None."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_none(item) for item in value]
    return value


def _conduct(module: AnsibleModule, policy: config.Policy) -> passes.Conduct:
    return passes.Conduct(
        uri=module.params["uri"],
        check=module.check_mode,
        deadline_s=policy.deadline_s,
        lock_timeout_s=policy.lock_timeout_s,
        holder=module._name,
    )


def _releases(module: AnsibleModule) -> bool:
    return bool(module.params["state"] == "released")


# ---------------------------------------------------------------- results


def _finish(module: AnsibleModule, result: passes.Result[Any, Any], source: str) -> None:
    values = _harmless({**report.values(result, module.check_mode), "policy_source": source})
    if module._diff:
        values["diff"] = report.diff(report.made(result, module.check_mode))
    for line in result.warnings:
        module.warn(printable(line))
    if result.failed:
        module.fail_json(**{**values, "msg": printable(result.failed)})
    module.exit_json(**values)


def _harmless(value: Any) -> Any:
    """Return *value* with ``?`` for each character that does more than stand there: Ansible shows results as they are.

    Who names a domain chooses its characters. Its UUID, which stands beside its name, tells it apart.
    """
    if isinstance(value, str):
        return printable(value, len(value))
    if isinstance(value, dict):
        return {_harmless(key): _harmless(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_harmless(item) for item in value]
    return value


# What each subset shows, of the host and of each domain.
_OF_HOST = {"host": ("memory", "rooms"), "topology": ("topology", "busy_ns", "bound_ns", "foreign_ns", "pinners")}
_OF_DOMAIN = {
    "vcpus": (
        *("vcpus", "threads", "cpuset", "numa_pcpus", "cgroup_pcpus"),
        *("cpu_weight", "guest_threads", "cachetune", "start_unknown"),
    ),
    "memory": ("balloon",),
}


def _subset(snapshot: dict[str, Any], subsets: list[str]) -> dict[str, Any]:
    """Drop what was not asked for."""
    for values, parts in [(snapshot["host"], _OF_HOST), *((domain, _OF_DOMAIN) for domain in snapshot["domains"])]:
        for key in (key for part, keys in parts.items() if part not in subsets for key in keys):
            values.pop(key)
    for whole, parts in (("host", _OF_HOST), ("domains", _OF_DOMAIN)):
        if parts.keys().isdisjoint(subsets):
            snapshot.pop(whole)
    return snapshot


def _load(samples: list[model.Snapshot], domains: Iterable[model.Domain], subsets: list[str]) -> dict[str, Any]:
    """Return how busy each pCPU was, and how much each vCPU ran and waited, in percent of one pCPU."""
    loads = measure(samples)
    result: dict[str, Any] = {"interval_s": round(loads.window_s, 3)}
    if "topology" in subsets:
        result["pcpus"] = [{"id": pcpu, "busy_pct": percent(busy)} for pcpu, busy in sorted(loads.busy.items())]
    if "vcpus" in subsets:
        result["vcpus"] = [
            {
                "domain": domain.name,
                "uuid": domain.uuid,
                "id": vcpu.id,
                "run_pct": percent(demand.run) if demand else None,
                "delay_pct": percent(demand.wait) if demand else None,
            }
            for domain in domains
            for vcpu in domain.vcpus
            for demand in [loads.demand.get((domain.uuid, vcpu.id))]
        ]
    return result
