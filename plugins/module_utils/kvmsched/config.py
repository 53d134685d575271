# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The policy document: its schema, its defaults, and the settings that hold for one domain.

``SCHEMA`` is the one description of every option; modules and role are held against it by a test.
``load`` turns a document into a Policy and reports all mistakes at once, one line each.
"""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any, Iterable, Iterator, Mapping, Optional, Sequence

from .model import Domain, Owner, Snapshot, parse_json
from .units import AMOUNT_HELP, CPUSET_HELP, Amount, CpuSet, parse_amount, parse_cpuset

# ---------------------------------------------------------------- the policy, parsed


@dataclass(frozen=True)
class Selection:
    """Which domains a pass may touch: case-sensitive globs on names, or exact UUIDs; ``exclude`` wins."""

    domains: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    def matches(self, domain: Domain) -> bool:
        if self.domains == ("*",) and not self.exclude:
            return True
        return _matches_any(self.domains, domain) and not _matches_any(self.exclude, domain)

    def unseen(self, snapshot: Snapshot) -> tuple[str, ...]:
        """A line for each domain that a pass may touch and that could not be observed, though it runs."""
        lost = (skip for skip in snapshot.skips if skip.code != "gone")
        return tuple(f"{s.domain}: {s.reason}" for s in lost if self.matches(Domain(s.uuid, s.domain, 0)))

    def unmatched(self, domains: Iterable[Domain]) -> tuple[str, ...]:
        """The patterns that match no domain at all; ``*`` is no such pattern."""
        known = list(domains)
        patterns = [p for p in (*self.domains, *self.exclude) if p != "*"]
        return tuple(p for p in patterns if not any(_matches_any((p,), d) for d in known))


def _matches_any(patterns: Iterable[str], domain: Domain) -> bool:
    return any(p.lower() == domain.uuid or fnmatchcase(domain.name, p) for p in patterns)


@dataclass(frozen=True)
class MemorySettings:
    """What holds for one domain's memory. Percentages are of the domain's maximum (decision 21).

    ``floor`` None: max(128M, 10 % of the maximum). ``ceiling`` None: the maximum. ``mode``: auto,
    grow-only (never shrunk) or ignore (never touched).
    """

    starvation: Amount = Amount(kib=150 * 1024)
    waste: Amount = Amount(kib=300 * 1024)
    floor: Optional[Amount] = None
    ceiling: Optional[Amount] = None
    weight: float = 1.0
    mode: str = "auto"

    def starvation_kib(self, maximum_kib: int) -> int:
        return self.starvation.of(maximum_kib)

    def waste_kib(self, maximum_kib: int) -> int:
        return self.waste.of(maximum_kib)

    def floor_kib(self, maximum_kib: int) -> int:
        floor = max(128 * 1024, maximum_kib // 10) if self.floor is None else self.floor.of(maximum_kib)
        return min(floor, self.ceiling_kib(maximum_kib))

    def ceiling_kib(self, maximum_kib: int) -> int:
        return maximum_kib if self.ceiling is None else min(maximum_kib, self.ceiling.of(maximum_kib))


@dataclass(frozen=True)
class VcpuSettings:
    """What holds for one domain's vCPUs: auto, ignore (left alone), dedicated (its pCPUs are given to no other)."""

    mode: str = "auto"


@dataclass(frozen=True)
class Rule:
    """Settings for the domains that a pattern names; the most specific matching rule has the last word."""

    pattern: str
    memory: Mapping[str, Any] = field(default_factory=dict)
    vcpu: Mapping[str, Any] = field(default_factory=dict)

    @property
    def specificity(self) -> tuple[int, int]:
        """Exact UUID or name before globs; among globs the one with more literal characters."""
        literal = sum(1 for char in self.pattern if char not in "*?[]!")
        return (0 if any(char in self.pattern for char in "*?[") else 1, literal)


@dataclass(frozen=True)
class MemoryPolicy:
    """How memory is balanced. ``host_reserve`` None: max(1G, 5 % of MemTotal); a percentage is of MemTotal.

    ``arrival_timeout_s`` bounds the wait for memory that was taken, and then for what was given, to arrive.
    """

    strategy: str = "fair"
    reclaim: str = "eager"
    cache: str = "share"
    host_reserve: Optional[Amount] = None
    stats_period_s: int = 5
    arrival_timeout_s: float = 10.0
    grace_s: int = 600
    min_change: Optional[Amount] = None
    settings: MemorySettings = MemorySettings()
    selection: Selection = Selection()
    rules: tuple[Rule, ...] = ()

    def settings_for(self, domain: Domain) -> MemorySettings:
        """The settings of one domain: host-wide, then rules from general to special, then its owner's word.

        ValueError, in one line, where they contradict each other or the owner's XML can't be understood.
        """
        settings = self.settings
        for rule in _rules_for(self.rules, domain):
            settings = replace(settings, **rule.memory)
        if domain.owner != Owner():
            settings = replace(settings, **owner_memory(domain))
        for contradiction in _contradictions(settings, domain.balloon.maximum_kib if domain.balloon else None):
            raise ValueError(contradiction)
        return settings

    def reserve_kib(self, total_kib: int) -> int:
        if self.host_reserve is None:
            return max(1024 * 1024, total_kib // 20)
        return self.host_reserve.of(total_kib)


@dataclass(frozen=True)
class VcpuPolicy:
    """How vCPUs are placed. ``pcpus`` None: all that are online and not isolated; ``max_moves`` None: no limit.

    ``avg_change_pct`` is the seed's gate, change of the average load per pCPU since the last pass
    (0: off); ``hold`` the number of passes in a row that must find a reason before one acts;
    ``interval_s`` how long load is measured where no earlier sample exists.
    """

    interval_s: float = 2.0
    threshold_pct: float = 5.0
    avg_change_pct: float = 0.0
    granularity: str = "pcpu"
    pcpus: Optional[CpuSet] = None
    reserved: CpuSet = frozenset()
    max_moves: Optional[int] = None
    emulator: str = "float"
    hold: int = 1
    half_life_s: float = 0.0
    cooldown_s: float = 0.0
    grace_s: int = 600
    settings: VcpuSettings = VcpuSettings()
    selection: Selection = Selection()
    rules: tuple[Rule, ...] = ()

    def settings_for(self, domain: Domain) -> VcpuSettings:
        """The settings of one domain, in the same order of precedence as for memory."""
        settings = self.settings
        for rule in _rules_for(self.rules, domain):
            settings = replace(settings, **rule.vcpu)
        mode = domain.owner.settings.get("vcpu")
        if mode is not None:
            settings = replace(settings, mode=_choice(mode, VCPU_MODES, "vcpu"))
        return settings


@dataclass(frozen=True)
class DaemonPolicy:
    """How the daemon runs. A pass of memory every ``memory_period_s``, of the vCPUs every ``vcpu_period_s``.

    ``mode``: act, or observe (decides, logs and exports, but writes nothing; it sets a statistics
    period only if ``observe_sets_stats_period``). ``on_stop``: leave, or release all domains.
    ``metrics_listen`` is "address:port" or none; ``metrics_textfile`` a file for node_exporter's
    textfile collector.
    """

    mode: str = "act"
    memory_period_s: float = 5.0
    vcpu_period_s: float = 5.0
    on_stop: str = "leave"
    observe_sets_stats_period: bool = False
    metrics_listen: str = "127.0.0.1:9757"
    metrics_textfile: Optional[str] = None


@dataclass(frozen=True)
class Policy:
    """The whole document, parsed. ``deadline_s``: what all that hangs may cost a pass; ``lock_timeout_s``: see lock."""

    deadline_s: float = 10.0
    lock_timeout_s: float = 10.0
    memory: MemoryPolicy = MemoryPolicy()
    vcpu: VcpuPolicy = VcpuPolicy()
    daemon: DaemonPolicy = DaemonPolicy()


def _rules_for(rules: Iterable[Rule], domain: Domain) -> list[Rule]:
    return sorted((r for r in rules if _matches_any((r.pattern,), domain)), key=lambda r: r.specificity)


# ---------------------------------------------------------------- the schema

MEMORY_MODES = ("auto", "grow-only", "ignore")
VCPU_MODES = ("auto", "ignore", "dedicated")

_AMOUNT = {"type": "string", "description": AMOUNT_HELP}
_PATTERN = {"type": "string", "pattern": r"\S", "description": "a name, a shell pattern for names, or a UUID"}
_PATTERNS = {"type": "array", "items": _PATTERN}

_MEMORY_SETTINGS: dict[str, Any] = {
    "starvation": {**_AMOUNT, "default": "150M"},
    "waste": {**_AMOUNT, "default": "300M"},
    "floor": _AMOUNT,
    "ceiling": _AMOUNT,
    "weight": {"type": "number", "minimum": 0.01, "maximum": 1000, "default": 1.0},
    "mode": {"enum": list(MEMORY_MODES), "default": "auto"},
}
_VCPU_SETTINGS: dict[str, Any] = {"mode": {"enum": list(VCPU_MODES), "default": "auto"}}

_MEMORY_HOST: dict[str, Any] = {
    "strategy": {"enum": ["fair", "pairwise"], "default": "fair"},
    "reclaim": {"enum": ["eager", "lazy"], "default": "eager"},
    "cache": {"enum": ["share", "keep"], "default": "share"},
    "host_reserve": _AMOUNT,
    "stats_period": {"type": "integer", "minimum": 0, "maximum": 3600, "default": 5},
    "arrival_timeout": {"type": "number", "minimum": 0, "maximum": 600, "default": 10.0},
    "grace": {"type": "integer", "minimum": 0, "maximum": 86400, "default": 600},
}
_VCPU_HOST: dict[str, Any] = {
    "interval": {"type": "number", "minimum": 0.1, "maximum": 3600, "default": 2.0},
    "threshold": {"type": "number", "minimum": 0, "maximum": 100, "default": 5.0},
    "avg_change_pct": {"type": "number", "minimum": 0, "maximum": 1000, "default": 0.0},
    "granularity": {"enum": ["pcpu", "core", "llc", "cell"], "default": "pcpu"},
    "pcpus": {"type": "string", "description": CPUSET_HELP},
    "reserved": {"type": "string", "description": CPUSET_HELP},
    "max_moves": {"type": "integer", "minimum": 0, "maximum": 1000000},
    "emulator": {"enum": ["float", "spread", "reserved"], "default": "float"},
    "hold": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 1},
    "half_life": {"type": "number", "minimum": 0, "maximum": 86400, "default": 0.0},
    "cooldown": {"type": "number", "minimum": 0, "maximum": 86400, "default": 0.0},
    "grace": {"type": "integer", "minimum": 0, "maximum": 86400, "default": 600},
}
_PERIOD: dict[str, Any] = {"type": "number", "minimum": 1, "maximum": 3600}
_DAEMON: dict[str, Any] = {
    "mode": {"enum": ["act", "observe"], "default": "act"},
    "period": {**_PERIOD, "default": 5.0},
    "memory_period": {**_PERIOD, "description": "seconds between passes of memory; default: period"},
    "vcpu_period": {**_PERIOD, "description": "seconds between passes of the vCPUs; default: period"},
    "on_stop": {"enum": ["leave", "release"], "default": "leave"},
    "observe_sets_stats_period": {"type": "boolean", "default": False},
    "metrics_listen": {
        "type": "string",
        "pattern": r"^(none|(\[[0-9a-fA-F:.]+\]|[0-9A-Za-z.-]+):[0-9]{1,5})$(?!\n)",
        "description": "address:port, such as 127.0.0.1:9757 or [::1]:9757, or none",
        "default": "127.0.0.1:9757",
    },
    "metrics_textfile": {
        "type": "string",
        "pattern": r"^/.*\.prom$(?!\n)",
        "description": "an absolute path that ends in .prom",
    },
}
# What the daemon takes where its policy is silent: it looks often, so it can wait for certainty (decision 28).
DAEMON_VCPU = {"hold": 3, "half_life": 30.0, "cooldown": 60.0}
_PASS: dict[str, Any] = {
    "deadline": {"type": "number", "minimum": 0.1, "maximum": 600, "default": 10.0},
    "lock_timeout": {"type": "number", "minimum": 0, "maximum": 3600, "default": 10.0},
}


def _object(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": properties, **more}


SCHEMA: dict[str, Any] = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "title": "kvmsched policy",
    **_object(
        {
            "domains": {**_PATTERNS, "default": ["*"]},
            "exclude": {**_PATTERNS, "default": []},
            **_PASS,
            "memory": _object({**_MEMORY_HOST, **_MEMORY_SETTINGS}),
            "vcpu": _object({**_VCPU_HOST, **_VCPU_SETTINGS}),
            "daemon": _object(_DAEMON),
            "rules": {
                "type": "array",
                "items": _object(
                    {
                        "match": _PATTERN,
                        "memory": _object(_MEMORY_SETTINGS),
                        "vcpu": _object(_VCPU_SETTINGS),
                    },
                    required=["match"],
                ),
            },
        }
    ),
}


def defaults(schema: Mapping[str, Any] = SCHEMA) -> dict[str, Any]:
    """The document of all the defaults that the schema names: it means the same as an empty one."""
    found = {}
    for key, part in schema["properties"].items():
        if "default" in part:
            found[key] = part["default"]
        elif part.get("type") == "object":
            found[key] = defaults(part)
    return found


# ---------------------------------------------------------------- reading a document


class ConfigError(ValueError):
    """A policy that is refused; ``mistakes`` holds one line for each, naming the key, what came and what is allowed."""

    def __init__(self, mistakes: Iterable[str]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("; ".join(self.mistakes))


# Where a host has its own policy; the variable names another file, for commands and modules alike.
INSTALLED = "/etc/kvmsched/policy.json"
INSTALLED_VARIABLE = "KVMSCHED_POLICY"


def installed() -> Optional[str]:
    """The path of this host's own policy, or None if it has none; what the variable names must be there."""
    path = os.environ.get(INSTALLED_VARIABLE)
    return path or (INSTALLED if os.path.exists(INSTALLED) else None)


def load_file(path: str) -> Policy:
    """The Policy that the file *path* describes; ConfigError names the file with each mistake."""
    document, _hash = read(path)
    try:
        return load(document)
    except ConfigError as error:
        raise ConfigError(f"{path}: {line}" for line in error.mistakes) from None


def read(path: str) -> tuple[dict[str, Any], str]:
    """Return the document in the file *path*, and the SHA-256 of its bytes in hex. ConfigError where it can't be read.

    JSON; a file named .yaml or .yml is YAML, which needs the package yaml (python3-yaml).
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise ConfigError([f"{path}: can't be read: {error.strerror}"]) from None
    return parsed(content, path), hashlib.sha256(content).hexdigest()


def parsed(content: bytes, name: str) -> dict[str, Any]:
    """The document that *content* is, told as *name*: see read()."""
    try:
        document = _parse_yaml(content) if name.endswith((".yaml", ".yml")) else parse_json(content)
    except ValueError as error:
        raise ConfigError([f"{name}: {' '.join(str(error).split())}"]) from None
    if not isinstance(document, dict):
        raise ConfigError([f"{name}: got {_shown(document)}, allowed: a mapping"])
    return document


def _parse_yaml(content: bytes) -> Any:
    try:
        import yaml
    except ImportError:
        raise ValueError("reading YAML needs the Python package yaml (python3-yaml), JSON needs none") from None

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Which takes no key twice, as JSON's does: the last one would win without a word."""

        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            keys = [key.value for key, _value in node.value if key.tag != "tag:yaml.org,2002:merge"]
            twice = next((key for index, key in enumerate(keys) if key in keys[:index]), None)
            if twice is not None:
                raise ValueError(f"the key {twice} stands there twice")
            return node

    try:
        return yaml.load(content, Loader)
    except RecursionError:
        raise ValueError("not valid YAML: nested too deeply") from None
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {error}") from None


def load_daemon(document: Mapping[str, Any]) -> Policy:
    """The same as load() for the daemon, which has defaults of its own for what makes it calm."""
    policy = load(document)
    given = document.get("vcpu", {})
    calm = {key: value for key, value in DAEMON_VCPU.items() if key not in given}
    return replace(policy, vcpu=replace(policy.vcpu, **_renamed(calm, {**_VCPU_NAMES, "hold": "hold"})))


def load(document: Mapping[str, Any], *, typed: bool = False) -> Policy:
    """Return the Policy that *document* describes; ConfigError lists every mistake in it.

    *typed*: the types were checked already, as Ansible does with a module's options. Only then is
    python3-jsonschema not needed (decision 31).
    """
    try:
        errors = [] if typed else _structure_errors(document)
        reader = _Reader([line for error in errors for line in _explained(error)])
        policy = reader.policy(_without(errors, document))
    except RecursionError:  # YAML can name a part of itself
        raise ConfigError(["policy: got a document that is nested without end, allowed: keys and values"]) from None
    if reader.mistakes:
        raise ConfigError(reader.mistakes)
    return policy


def _structure_errors(document: Any) -> list[Any]:
    """jsonschema's error for each wrong type, unknown key or word in *document*."""
    if document == {}:
        return []
    try:
        # To import it takes longer than most passes do, which need it only where a policy document is read.
        import jsonschema
    except ImportError:
        raise ConfigError(
            ["policy: reading a policy document needs the Python package jsonschema (python3-jsonschema)"]
        ) from None
    return sorted(jsonschema.Draft7Validator(SCHEMA).iter_errors(document), key=lambda e: [str(p) for p in e.path])


def _without(errors: Iterable[Any], document: Any) -> Any:
    """*document* without what the errors are in, so that the values of all the rest can be judged as well."""
    paths = {tuple(e.absolute_path) for e in errors if e.validator not in ("additionalProperties", "required")}
    return _pruned(document, paths, ()) if () not in paths else {}


def _pruned(value: Any, paths: set[tuple[Any, ...]], here: tuple[Any, ...]) -> Any:
    if isinstance(value, dict):
        return {k: _pruned(item, paths, (*here, k)) for k, item in value.items() if (*here, k) not in paths}
    if isinstance(value, list):
        # Positions stay what they are, for mistakes are told by them.
        return [None if (*here, i) in paths else _pruned(item, paths, (*here, i)) for i, item in enumerate(value)]
    return value


def _explained(error: Any) -> list[str]:
    """A jsonschema error in our words: the key, what came, what is allowed."""
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path).lstrip(".")
    if error.validator == "additionalProperties":
        allowed = ", ".join(error.schema["properties"])
        unknown = [str(child) for child in error.instance if child not in error.schema["properties"]]
        return [f"{_join(key, child)}: unknown key, allowed: {allowed}" for child in unknown]
    if error.validator == "required":
        missing = [child for child in error.validator_value if child not in error.instance]
        return [f"{_join(key, child)}: missing, required here" for child in missing]
    return [f"{key or 'policy'}: got {_shown(error.instance)}, allowed: {_allowed(error.schema)}"]


def _allowed(schema: Mapping[str, Any]) -> str:
    if schema.get("type") == "boolean":
        return "true or false"
    if "enum" in schema:
        return ", ".join(schema["enum"])
    if "minimum" in schema:
        return f"{_TYPE_NAMES[schema['type']]} from {schema['minimum']} to {schema['maximum']}"
    return str(schema.get("description", _TYPE_NAMES[schema["type"]]))


_TYPE_NAMES = {
    "object": "a mapping",
    "array": "a list",
    "string": "a text",
    "number": "a number",
    "integer": "a whole number",
}


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _join(key: str, child: str) -> str:
    return f"{key}.{child}" if key else str(child)


class _Reader:
    """Turns a document of the right types into a Policy, collecting what is wrong with its values."""

    def __init__(self, mistakes: list[str]) -> None:
        self.mistakes = mistakes

    def policy(self, document: Mapping[str, Any]) -> Policy:
        for key in ("domains", "exclude"):
            self._check_patterns(document.get(key, ()), key)
        selection = Selection(tuple(document.get("domains", ("*",))), tuple(document.get("exclude", ())))
        rules = tuple(self._rule(index, rule) for index, rule in enumerate(document.get("rules", ())) if rule)
        memory = self._memory(document.get("memory", {}))
        vcpu = self._vcpu(document.get("vcpu", {}))
        daemon = self._daemon(document.get("daemon", {}))
        self._check_ranges(document, _PASS, "")
        return Policy(
            **_renamed(document, {"deadline": "deadline_s", "lock_timeout": "lock_timeout_s"}),
            memory=replace(memory, selection=selection, rules=rules),
            vcpu=replace(vcpu, selection=selection, rules=rules),
            daemon=daemon,
        )

    def _check_patterns(self, patterns: Sequence[Any], key: str) -> None:
        """A blank pattern, as an unset variable makes one, would match nothing without a word."""
        for index, pattern in enumerate(patterns):
            if isinstance(pattern, str) and not pattern.strip():
                self.mistakes.append(f"{key}[{index}]: got {_shown(pattern)}, allowed: {_PATTERN['description']}")

    def _rule(self, index: int, rule: Mapping[str, Any]) -> Rule:
        where = f"rules[{index}]"
        memory = self._memory_settings(rule.get("memory", {}), f"{where}.memory")
        # What it says of one of a pair alone, another rule may set right.
        whole = [key for pair in _PAIRS for key in pair if memory.keys() >= set(pair)]
        self._check_thresholds(MemorySettings(**_only(memory, whole)), f"{where}.memory")
        return Rule(rule.get("match", ""), memory, dict(rule.get("vcpu", {})))

    def _memory(self, part: Mapping[str, Any]) -> MemoryPolicy:
        part = _whole(part, _MEMORY_HOST)
        self._check_ranges(part, _MEMORY_HOST, "memory")
        settings = MemorySettings(**self._memory_settings(part, "memory"))
        self._check_thresholds(settings, "memory")
        policy = MemoryPolicy(settings=settings, **_only(part, ("strategy", "reclaim", "cache")))
        if "host_reserve" in part:
            policy = replace(policy, host_reserve=self._amount(part["host_reserve"], "memory.host_reserve"))
        names = {"stats_period": "stats_period_s", "arrival_timeout": "arrival_timeout_s", "grace": "grace_s"}
        return replace(policy, **_renamed(part, names))

    def _memory_settings(self, part: Mapping[str, Any], where: str) -> dict[str, Any]:
        self._check_ranges(part, _MEMORY_SETTINGS, where)
        settings = _only(part, ("weight", "mode"))
        for key in ("starvation", "waste", "floor", "ceiling"):
            if key in part:
                settings[key] = self._amount(part[key], f"{where}.{key}")
        return settings

    def _check_thresholds(self, settings: MemorySettings, where: str) -> None:
        keys = tuple(f"{where}.{key}: " for pair in _PAIRS for key in pair)
        if not any(mistake.startswith(keys) for mistake in self.mistakes):  # else they may contradict its stand-in
            self.mistakes += [f"{where}.{line}" for line in _contradictions(settings, None)]

    def _vcpu(self, part: Mapping[str, Any]) -> VcpuPolicy:
        part = _whole(part, _VCPU_HOST)
        self._check_ranges(part, _VCPU_HOST, "vcpu")
        values = _only(part, ("avg_change_pct", "granularity", "max_moves", "emulator", "hold"))
        values.update(_renamed(part, _VCPU_NAMES))
        for key in ("pcpus", "reserved"):
            if key in part:
                values[key] = self._parsed(parse_cpuset, part[key], f"vcpu.{key}", frozenset())
        return VcpuPolicy(settings=VcpuSettings(**_only(part, ("mode",))), **values)

    def _daemon(self, part: Mapping[str, Any]) -> DaemonPolicy:
        self._check_ranges(part, _DAEMON, "daemon")
        names = ("mode", "on_stop", "observe_sets_stats_period", "metrics_listen", "metrics_textfile")
        values = _only(part, names)
        for key in ("memory_period", "vcpu_period"):
            values[f"{key}_s"] = part.get(key, part.get("period", _DAEMON["period"]["default"]))
        port = str(values.get("metrics_listen")).rpartition(":")[2]
        if port.isdigit() and not 1 <= int(port) <= 65535:
            self.mistakes.append(f"daemon.metrics_listen: got port {port}, allowed: 1 to 65535")
        return DaemonPolicy(**values)

    def _check_ranges(self, part: Mapping[str, Any], schemas: Mapping[str, Any], where: str) -> None:
        for key, schema in schemas.items():
            # Not "value < minimum": a NaN is outside every range.
            if key in part and "minimum" in schema and not schema["minimum"] <= part[key] <= schema["maximum"]:
                self.mistakes.append(f"{_join(where, key)}: got {part[key]!r}, allowed: {_allowed(schema)}")

    def _amount(self, text: str, key: str) -> Amount:
        amount: Amount = self._parsed(parse_amount, text, key, Amount(kib=0))
        return amount

    def _parsed(self, parse: Any, text: str, key: str, fallback: Any) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            self.mistakes.append(f"{key}: got {_shown(text)}, allowed: {error}")
            return fallback


_VCPU_NAMES = {
    "interval": "interval_s",
    "threshold": "threshold_pct",
    "half_life": "half_life_s",
    "cooldown": "cooldown_s",
    "grace": "grace_s",
}


def _only(part: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: part[key] for key in keys if key in part}


def _whole(part: Mapping[str, Any], schemas: Mapping[str, Any]) -> dict[str, Any]:
    """*part* with its whole numbers as such: for JSON Schema 5.0 is one, and templates write it so."""
    whole = {key for key in part if schemas.get(key, {}).get("type") == "integer"}
    return {key: int(value) if key in whole and value % 1 == 0 else value for key, value in part.items()}


def _renamed(part: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {field_name: part[key] for key, field_name in names.items() if key in part}


# ---------------------------------------------------------------- one domain's settings


# Thresholds that can contradict each other.
_PAIRS = (("starvation", "waste"), ("floor", "ceiling"))


def _contradictions(settings: MemorySettings, maximum_kib: Optional[int]) -> Iterator[str]:
    """Thresholds that no guest can satisfy at once; *maximum_kib* makes sizes and percentages comparable."""
    low, high = settings.starvation, settings.waste
    whole = maximum_kib or 100 * 1024 * 1024
    if low.of(whole) <= 0:
        yield f"starvation: got {low}, allowed: more than 0"
    elif not _one_kind(low, high):
        yield f"waste: got {high} beside starvation {low}, allowed: both sizes or both percentages"
    elif high.of(whole) <= low.of(whole):
        yield f"waste: got {high}, allowed: more than starvation ({low})"
    floor, ceiling = settings.floor, settings.ceiling
    if floor is not None and ceiling is not None and (maximum_kib or _one_kind(floor, ceiling)):
        if floor.of(whole) > ceiling.of(whole):
            yield f"floor: got {floor}, allowed: at most the ceiling ({ceiling})"


def _one_kind(one: Amount, other: Amount) -> bool:
    return (one.kib is None) == (other.kib is None)


def owner_memory(domain: Domain) -> dict[str, Any]:
    """The owner's memory settings, from attributes of the same names; ``memory`` is the mode."""
    if domain.owner.error:
        raise ValueError(f"metadata: {domain.owner.error}")
    written = domain.owner.settings
    unknown = sorted(set(written) - OWNER_KEYS)
    if unknown:
        raise ValueError(f"metadata: unknown attribute {unknown[0]}, allowed: {', '.join(sorted(OWNER_KEYS))}")
    settings: dict[str, Any] = {}
    for key in ("starvation", "waste", "floor", "ceiling"):
        if key in written:
            try:
                settings[key] = parse_amount(written[key])
            except ValueError as error:
                raise ValueError(f"metadata {key}: got {written[key]!r}, allowed: {error}") from None
    if "weight" in written:
        settings["weight"] = _weight(written["weight"])
    if "memory" in written:
        settings["mode"] = _choice(written["memory"], MEMORY_MODES, "memory")
    return settings


OWNER_KEYS = frozenset({f.name for f in fields(MemorySettings)} - {"mode"} | {"memory", "vcpu"})


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0.01 <= weight <= 1000:
        raise ValueError(f"metadata weight: got {text!r}, allowed: 0.01 to 1000")
    return weight


def _choice(text: str, allowed: tuple[str, ...], key: str) -> str:
    if text not in allowed:
        raise ValueError(f"metadata {key}: got {text!r}, allowed: {', '.join(allowed)}")
    return text
