# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What passes of a whole fleet came to, as one document, and that document as a table for people."""

from __future__ import annotations

DOCUMENTATION = r"""
name: fleet_report
short_description: Make one report of the passes of many hosts
version_added: 1.0.0
description:
  - Takes what M(kvmsched.kvm.kvm_mem_balance) and M(kvmsched.kvm.kvm_vcpu_pin) returned for each host, most often in
    check mode, and returns one document that says how each host is, and what was or would be moved there.
  - A host that could not be reached, or where a module failed, is a row like the others, with the reason.
positional: _input
author:
  - the kvmsched authors (!UNKNOWN)
options:
  _input:
    description: The names of the hosts.
    type: list
    elements: str
    required: true
  hostvars:
    description: The variables of all hosts, C(hostvars).
    type: dict
    required: true
  memory:
    description: The variable in which the result of M(kvmsched.kvm.kvm_mem_balance) was registered.
    type: str
    default: kvmsched_memory
  vcpu:
    description: The variable in which the result of M(kvmsched.kvm.kvm_vcpu_pin) was registered.
    type: str
    default: kvmsched_vcpu
"""

EXAMPLES = r"""
---
- name: Report on the fleet
  ansible.builtin.debug:
    msg: "{{ (ansible_play_hosts_all | kvmsched.kvm.fleet_report(hostvars)).text }}"
  run_once: true
"""

RETURN = r"""
_value:
  description: The report.
  type: dict
  contains:
    hosts:
      description:
        - One entry for each host, those in trouble first, then by what would move. C(state) is V(ok), V(unreachable)
          or V(failed), C(reason) says why, C(memory) and C(vcpu) hold the figures before and after, moves and what is
          lacking.
      type: list
      elements: dict
    totals:
      description: The numbers of hosts by their state, and sums over all hosts.
      type: dict
    text:
      description: The same as lines for people.
      type: list
      elements: str
"""

from collections import Counter
from typing import Any, Iterable, Iterator, Mapping

_RESULTS = ("moves", "unmet", "skip_counts", "failures", "before", "after")
_HEADINGS = ("HOST", "STARVED", "WASTEFUL", "UNKNOWN", "LACKING", "IMBALANCE", "MOVES")


def fleet_report(
    names: Iterable[str], hostvars: Mapping[str, Any], memory: str = "kvmsched_memory", vcpu: str = "kvmsched_vcpu"
) -> dict[str, Any]:
    hosts = [_host(name, hostvars[name].get(memory) or {}, hostvars[name].get(vcpu) or {}) for name in names]
    hosts.sort(key=lambda host: (host["state"] == "ok", -len(host["moves"]), host["host"]))
    totals = {
        "hosts": dict(Counter(host["state"] for host in hosts)),
        "moves": sum(len(host["moves"]) for host in hosts),
        **{key: sum(host[key] or 0 for host in hosts) for key in ("starved", "wasteful", "unknown")},
    }
    return {
        "hosts": hosts,
        "totals": totals,
        "text": [_printable(line) for line in (*_table(hosts), "", *_moves(hosts), _sum(totals))],
    }


def _host(name: str, memory: Mapping[str, Any], vcpu: Mapping[str, Any]) -> dict[str, Any]:
    state, reason = _state(memory, vcpu)
    before = memory.get("before") or {}
    return {
        "host": name,
        "state": state,
        "reason": reason,
        **{key: before.get(key) for key in ("starved", "wasteful", "unknown")},
        "imbalance_pct": (vcpu.get("before") or {}).get("imbalance_pct"),
        "imbalance_after_pct": (vcpu.get("after") or {}).get("imbalance_pct"),
        "moves": [*memory.get("moves", []), *vcpu.get("moves", [])],
        "memory": {key: memory[key] for key in _RESULTS if key in memory},
        "vcpu": {key: vcpu[key] for key in _RESULTS if key in vcpu},
    }


def _state(*results: Mapping[str, Any]) -> tuple[str, str]:
    for result in results:
        if result.get("unreachable"):
            return "unreachable", _line(result)
    reasons = dict.fromkeys(_line(result) for result in results if result.get("failed") or "moves" not in result)
    return ("failed", "; ".join(reasons)) if reasons else ("ok", "")


def _printable(line: str) -> str:
    """What a guest's name or a host's answer smuggles in reaches no terminal."""
    return "".join(char if char.isprintable() else "?" for char in line)


def _line(result: Mapping[str, Any]) -> str:
    """Say why. Where a module did not even start, older Ansible has the reason only in what its shell wrote."""
    wrote = str(result.get("module_stdout") or result.get("module_stderr") or "").splitlines()[-1:]
    return " ".join(" ".join([str(result.get("msg") or "not looked at"), *wrote]).split())


def _table(hosts: list[dict[str, Any]]) -> Iterator[str]:
    rows = [_HEADINGS, *(_row(host) for host in hosts)]
    widths = [max(len(row[column]) for row in rows if len(row) > 2) for column in range(len(_HEADINGS))]
    widths[0] = max(len(row[0]) for row in rows)
    for row in rows:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)).rstrip()


def _row(host: Mapping[str, Any]) -> tuple[str, ...]:
    if host["state"] != "ok":
        return (host["host"], f"{host['state']}: {host['reason']}")
    if _empty(host):
        return (host["host"], "no guest to balance runs here")
    lacking = sum(unmet["kib"] for unmet in host["memory"].get("unmet", []))
    imbalance = "-"
    if host["imbalance_pct"] is not None:
        imbalance = f"{host['imbalance_pct']:.0f} -> {host['imbalance_after_pct']:.0f}"
    figures = ("-" if host[key] is None else str(host[key]) for key in ("starved", "wasteful", "unknown"))
    return (host["host"], *figures, f"{lacking // 1024}M", imbalance, str(len(host["moves"])))


def _empty(host: Mapping[str, Any]) -> bool:
    """A row of zeros would look like a host where all is well."""
    skipped = any(host[what].get("skip_counts") for what in ("memory", "vcpu"))
    return host["memory"].get("before", {}).get("actual_kib") == 0 and not skipped and not host["moves"]


def _moves(hosts: list[dict[str, Any]]) -> Iterator[str]:
    for host in hosts:
        lines = [f"  {_told(move)}: {move['reason']}" for move in host["moves"]]
        lines += [f"  {u['domain']} lacks {u['kib'] // 1024}M: {u['reason']}" for u in host["memory"].get("unmet", [])]
        if lines:
            yield from (host["host"], *lines, "")


def _told(move: Mapping[str, Any]) -> str:
    domain = move["domain"]
    if move["kind"] == "balloon":
        return f"{domain} {move['before_kib'] // 1024}M -> {move['after_kib'] // 1024}M"
    if move["kind"] == "pin":
        return f"{domain} {move['thread']} {move['id']} pCPU {move['before']} -> {move['after']}"
    return f"{domain} statistics period {move['before_s']} -> {move['after_s']} s"


def _sum(totals: Mapping[str, Any]) -> str:
    hosts = ", ".join(f"{count} {state}" for state, count in sorted(totals["hosts"].items()))
    return (
        f"{_count(sum(totals['hosts'].values()), 'host')} ({hosts}): {_count(totals['starved'], 'guest')} starved, "
        f"{totals['wasteful']} wasteful, {totals['unknown']} unknown; {_count(totals['moves'], 'change')}"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Any]:
        return {"fleet_report": fleet_report}
