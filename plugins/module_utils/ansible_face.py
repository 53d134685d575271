# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Ansible face of a pass: options in, one pass, result out. The modules are its documentation."""

from __future__ import annotations

import importlib
import platform
import sys
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NoReturn

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.respawn import has_respawned, probe_interpreters_for_module, respawn_module

from .kvmsched import config, hypervisor, model, passes, report
from .kvmsched.policy.vcpu_load import measure

# Where distributions put the Python that their python3-libvirt belongs to.
DISTRIBUTION_PYTHONS = ("/usr/bin/python3", "/usr/libexec/platform-python")

# ---------------------------------------------------------------- options; described in the modules and doc_fragments

_COMMON: dict[str, Any] = {
    "uri": {"type": "str", "default": "qemu:///system"},
    "domains": {"type": "list", "elements": "str", "default": ["*"]},
    "exclude": {"type": "list", "elements": "str", "default": []},
    "deadline": {"type": "float", "default": 10.0},
}

_RULE: dict[str, Any] = {
    "match": {"type": "str", "required": True},
    "memory": {
        "type": "dict",
        "options": {
            "starvation": {"type": "str"},
            "waste": {"type": "str"},
            "floor": {"type": "str"},
            "ceiling": {"type": "str"},
            "weight": {"type": "float"},
            "mode": {"type": "str", "choices": ["auto", "grow-only", "ignore"]},
        },
    },
    "vcpu": {
        "type": "dict",
        "options": {"mode": {"type": "str", "choices": ["auto", "ignore", "dedicated"]}},
    },
}

_CHANGE: dict[str, Any] = {
    **_COMMON,
    "state": {"type": "str", "choices": ["balanced", "released"], "default": "balanced"},
    "lock_timeout": {"type": "float", "default": 10.0},
    "rules": {"type": "list", "elements": "dict", "options": _RULE},
}

_MEMORY: dict[str, Any] = {
    **_CHANGE,
    "strategy": {"type": "str", "choices": ["fair", "pairwise"], "default": "fair"},
    "starvation": {"type": "str", "default": "150M"},
    "waste": {"type": "str", "default": "300M"},
    "host_reserve": {"type": "str"},
    "floor": {"type": "str"},
    "reclaim": {"type": "str", "choices": ["eager", "lazy"], "default": "eager"},
    "cache": {"type": "str", "choices": ["share", "keep"], "default": "share"},
    "stats_period": {"type": "int", "default": 5},
    "arrival_timeout": {"type": "float", "default": 10.0},
}

_VCPU: dict[str, Any] = {
    **_CHANGE,
    "interval": {"type": "float", "default": 2.0},
    "threshold": {"type": "float", "default": 5.0},
    "granularity": {"type": "str", "choices": ["pcpu", "core", "llc", "cell"], "default": "pcpu"},
    "pcpus": {"type": "str"},
    "reserved": {"type": "str"},
    "max_moves": {"type": "int"},
    "emulator": {"type": "str", "choices": ["float", "spread", "reserved"], "default": "float"},
}

_SUBSETS = ["host", "topology", "vcpus", "memory"]

_INFO: dict[str, Any] = {
    **_COMMON,
    "subsets": {"type": "list", "elements": "str", "choices": _SUBSETS, "default": _SUBSETS},
    "interval": {"type": "float", "default": 2.0},
}


def memory_module() -> AnsibleModule:
    return AnsibleModule(argument_spec=_MEMORY, supports_check_mode=True)


def vcpu_module() -> AnsibleModule:
    return AnsibleModule(argument_spec=_VCPU, supports_check_mode=True)


def info_module() -> AnsibleModule:
    return AnsibleModule(argument_spec=_INFO, supports_check_mode=True)


# ---------------------------------------------------------------- dependencies


def require_libvirt(module: AnsibleModule) -> None:
    """Return only where libvirt can be imported: respawn under the distribution's Python, else fail in one line."""
    cause = seek(module, "libvirt")
    if cause:
        looked_at = ", ".join(dict.fromkeys([sys.executable, *DISTRIBUTION_PYTHONS]))
        module.fail_json(
            msg=f"libvirt's Python binding is missing on {platform.node()}: install python3-libvirt "
            f"(looked in {looked_at}: {cause})"
        )


def seek(module: AnsibleModule, library: str) -> str:
    """Go on under a Python that has *library*: this one or, respawned, the distribution's; return why there is none."""
    try:
        importlib.import_module(library)
        return ""
    except ImportError as error:
        cause = str(error)
    if not has_respawned():
        # The probe runs each interpreter; a path that does not exist is no candidate.
        interpreter = probe_interpreters_for_module(list(DISTRIBUTION_PYTHONS), library)
        if interpreter:
            respawn_module(interpreter)  # runs the module there and ends this process
    return cause


# ---------------------------------------------------------------- the passes


def run_memory(module: AnsibleModule) -> None:
    """One pass of kvm_mem_balance; ends the process."""
    require_libvirt(module)
    names = ("strategy", "starvation", "waste", "host_reserve", "floor", "reclaim", "cache")
    policy = _policy(module, "memory", (*names, "stats_period", "arrival_timeout"))
    how = _conduct(module, policy)
    rules, source = _rules(module, policy)
    try:
        result = passes.run_memory(how, replace(policy.memory, rules=rules), release=_releases(module))
    except passes.PassError as error:
        fail(module, str(error))
    _finish(module, result, source)


def run_vcpu(module: AnsibleModule) -> None:
    """One pass of kvm_vcpu_pin; ends the process."""
    require_libvirt(module)
    names = ("interval", "threshold", "granularity", "pcpus", "reserved", "max_moves", "emulator")
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
    vcpus = sum(len(domain.vcpus) for domain in last.domains)
    pcpus = len(last.host.topology.pcpus)
    module.exit_json(
        changed=False,
        msg=f"{last.host.name}: {len(last.domains)} running domains, {vcpus} vCPUs on {pcpus} pCPUs",
        snapshot=_subset(model.to_json(last), subsets),
        load=_load(samples, last.domains, subsets),
        unmatched=list(selection.unmatched(samples[-1].domains)),
        timings_s=timings_s,
    )


def _policy(module: AnsibleModule, part: str, names: Iterable[str]) -> config.Policy:
    """The policy that the module's options describe; fails naming the option that is wrong."""
    params = {name: value for name, value in module.params.items() if value is not None}
    document = {name: params[name] for name in ("domains", "exclude", "deadline", "lock_timeout") if name in params}
    document[part] = {name: params[name] for name in names if name in params}
    rules = _without_none(params.get("rules") or [])
    if rules:
        document["rules"] = rules
    try:
        return config.load(document, typed=not rules)
    except config.ConfigError as error:
        prefix = f"{part}."
        mistakes = [line[len(prefix) :] if line.startswith(prefix) else line for line in error.mistakes]
        fail(module, "; ".join(mistakes))


def _rules(module: AnsibleModule, policy: config.Policy) -> tuple[tuple[config.Rule, ...], str]:
    """The rules that hold and where they come from: the option, else the policy installed on this host (decision 31).

    A host that is only looked at from afar has another policy than the machine that the module runs on.
    """
    if module.params["rules"] is not None:
        return policy.memory.rules, "options"
    path = config.installed()
    if path is None or hypervisor.acting_refusal(module.params["uri"]):
        return (), "none"
    try:
        return config.load_file(path).memory.rules, path
    except config.ConfigError as error:
        fail(module, "; ".join(error.mistakes))


def fail(module: AnsibleModule, line: str) -> NoReturn:
    module.fail_json(msg=line)
    raise SystemExit(1)  # never reached; for type checkers that don't see into ansible-core


def _without_none(value: Any) -> Any:
    """Ansible fills suboptions that were not given with None."""
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
    values = report.values(result, module.check_mode)
    values["policy_source"] = source
    values["diff"] = report.diff(report.made(result, module.check_mode))
    for line in result.warnings:
        module.warn(line)
    if result.failed:
        module.fail_json(**{**values, "msg": result.failed})
    module.exit_json(**values)


# What each subset shows, of the host and of each domain.
_OF_HOST = {"host": ("memory", "rooms"), "topology": ("topology", "busy_ns", "bound_ns")}
_OF_DOMAIN = {"vcpus": ("vcpus", "threads", "cpuset", "numa_pcpus", "cgroup_pcpus"), "memory": ("balloon",)}


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
    """How busy each pCPU was, and how much each vCPU ran and waited, in percent of one pCPU."""
    loads = measure(samples, lambda _domain, vcpu: vcpu.affinity or vcpu.pin)
    result: dict[str, Any] = {"interval_s": round(loads.window_s, 3)}
    if "topology" in subsets:
        result["pcpus"] = [{"id": pcpu, "busy_pct": _pct(busy)} for pcpu, busy in sorted(loads.busy.items())]
    if "vcpus" in subsets:
        result["vcpus"] = [
            {
                "domain": domain.name,
                "uuid": domain.uuid,
                "id": vcpu.id,
                "run_pct": _pct(demand.run) if demand else None,
                "delay_pct": _pct(demand.wait) if demand else None,
            }
            for domain in domains
            for vcpu in domain.vcpus
            for demand in [loads.demand.get((domain.uuid, vcpu.id))]
        ]
    return result


def _pct(fraction: float) -> float:
    return round(fraction * 100, 1)
