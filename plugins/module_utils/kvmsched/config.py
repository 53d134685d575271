# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The policy document: its schema, its defaults, and the settings that hold for one domain.

``SCHEMA`` is the one description of every option: the modules take theirs from it, and a test holds all documentation
and the role against it.
``load`` turns a document into a Policy and reports all mistakes at once, one line each.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any, Iterable, Iterator, Mapping, NamedTuple, Optional, Sequence

from .model import Domain, Left, Owner, RoomRequest, Snapshot, parse_json
from .units import (
    AMOUNT_HELP,
    CPUSET_HELP,
    SIZE_HELP,
    Amount,
    CpuSet,
    one_line,
    parse_amount,
    parse_cpuset,
    parse_size,
    shown,
    spelling_hint,
)

# ---------------------------------------------------------------- the policy, parsed


@dataclass(frozen=True)
class Selection:
    """Which domains a pass may touch: names, case-sensitive globs on names, or UUIDs; ``exclude`` wins.

    ``names_first``: a pattern that is a domain's name means that domain alone, for what a person asks for once. In a
    policy it must not: whoever names a domain ``db*`` would take the rule away from ``db1``. ``exact`` are those names.
    """

    domains: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    names_first: bool = False
    exact: frozenset[str] = frozenset()

    def matches(self, domain: Domain) -> bool:
        if self.domains == ("*",) and not self.exclude:
            return True
        return self._any(self.domains, domain) and not self._any(self.exclude, domain)

    def _any(self, patterns: Iterable[str], domain: Domain) -> bool:
        return any(matches(pattern, domain, pattern in self.exact) for pattern in patterns)

    def among(self, snapshot: Snapshot) -> Selection:
        """Return the same selection, knowing which of its patterns are names of domains in *snapshot*."""
        if not self.names_first:
            return self
        names = {domain.name for domain in snapshot.domains} | {skip.domain for skip in snapshot.skips}
        return replace(self, exact=frozenset(names.intersection(self.domains)))

    def names(self, domain: Domain) -> bool:
        """Return whether it chooses *domain* by more than "*"."""
        return self._any([p for p in self.domains if p != "*"], domain)

    def unseen(self, snapshot: Snapshot) -> tuple[Left, ...]:
        """Return the domains that a pass may touch and that could not be observed, though they run."""
        lost = (skip for skip in snapshot.skips if skip.code != "gone")
        mine = (skip for skip in lost if self.matches(Domain(skip.uuid, skip.domain, 0)))
        return tuple(Left(s.domain, s.uuid, s.reason, limited=s.code == "unreadable") for s in mine)

    def unmatched(self, domains: Iterable[Domain]) -> tuple[str, ...]:
        """Return the patterns that match no domain at all; ``*`` is no such pattern."""
        known = list(domains)
        patterns = [p for p in (*self.domains, *self.exclude) if p != "*"]
        return tuple(p for p in patterns if not any(matches(p, d, p in self.exact) for d in known))


_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def matches(pattern: str, domain: Domain, exact: bool = False) -> bool:
    """Return whether *pattern* names *domain*: by its UUID, its name, or, unless *exact*, as a glob.

    A UUID names no domain by its name: anybody may give a domain another's UUID as its name.
    """
    if pattern.lower() == domain.uuid:
        return True
    if _UUID.fullmatch(pattern):
        return False
    return pattern == domain.name or (not exact and fnmatchcase(domain.name, pattern))


@dataclass(frozen=True)
class MemorySettings:
    """What holds for one domain's memory. Percentages are of the domain's maximum (decision 21).

    ``floor`` None: max(128M, 10 % of the maximum), and no more than it had at first (Limits.beside). ``ceiling`` None:
    the maximum. ``mode``: auto, grow-only (never shrunk) or ignore (never touched). ``reclaim`` idle: a daemon takes
    what it left unused for long, by the word of its owner or of a rule. ``reclaim`` auto: only where autodeflate was
    seen to take it back.
    """

    starvation: Amount = Amount(kib=150 * 1024)
    waste: Amount = Amount(kib=300 * 1024)
    floor: Optional[Amount] = None
    ceiling: Optional[Amount] = None
    weight: float = 1.0
    mode: str = "auto"
    reclaim: str = "auto"

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
    """What holds for one domain's vCPUs. ``mode``: auto, ignore (skipped), dedicated (its pCPUs are its own).

    ``pcpus`` are all that it may use, if not None. ``widen``: a live pin of others is widened to what is allowed.
    """

    mode: str = "auto"
    pcpus: Optional[CpuSet] = None
    widen: bool = False


@dataclass(frozen=True)
class Rule:
    """Settings for the domains that a pattern names; the most specific matching rule has the last word."""

    pattern: str
    memory: Mapping[str, Any] = field(default_factory=dict)
    vcpu: Mapping[str, Any] = field(default_factory=dict)

    def specificity(self, domain: Domain) -> tuple[int, int]:
        """Return how closely it names *domain*: name or UUID before globs, among globs the most literal characters."""
        literal = sum(1 for char in self.pattern if char not in "*?[]!")
        return (int(self.pattern == domain.name or self.pattern.lower() == domain.uuid), literal)


@dataclass(frozen=True)
class MemoryPolicy:
    """How memory is balanced. ``host_reserve`` None: max(1G, 5 % of MemTotal); a percentage is of MemTotal.

    ``reclaim`` None: ``pairwise`` is eager, ``fair`` is auto (decision 42): see takes.
    ``arrival_timeout_s`` bounds the wait for memory that was taken, and then for what was given, to arrive.
    ``grow_only``: no domain is ever shrunk, whatever rules and owners say. ``room`` is kept for a guest to start.
    """

    strategy: str = "fair"
    reclaim: Optional[str] = None
    cache: str = "keep"
    host_reserve: Optional[Amount] = None
    stats_period_s: int = 5
    arrival_timeout_s: float = 10.0
    grace_s: int = 600
    min_change: Optional[Amount] = None
    grow_only: bool = False
    room: Optional[RoomRequest] = None
    settings: MemorySettings = MemorySettings()
    selection: Selection = Selection()
    rules: tuple[Rule, ...] = ()

    def settings_for(self, domain: Domain) -> MemorySettings:
        """Return the settings of one domain: host-wide, then rules from general to special, then its owner's word.

        ValueError, in one line, where they contradict each other or the owner's XML can't be understood.
        """
        settings = self.settings
        for rule in _rules_for(self.rules, domain):
            settings = replace(settings, **rule.memory)
        if domain.owner != Owner():
            settings = replace(settings, **owner_memory(domain))
        for contradiction in _contradictions(settings, domain.balloon.most_kib if domain.balloon else None):
            raise ValueError(str(contradiction))
        if self.grow_only and settings.mode == "auto":
            settings = replace(settings, mode="grow-only")
        return settings

    @property
    def takes(self) -> str:
        """Return when waste is taken: auto, lazy or eager."""
        return self.reclaim or ("eager" if self.strategy == "pairwise" else "auto")

    def reserve_kib(self, total_kib: int) -> int:
        if self.host_reserve is None:
            return max(1024 * 1024, total_kib // 20)
        return self.host_reserve.of(total_kib)


@dataclass(frozen=True)
class VcpuPolicy:
    """How vCPUs are placed. ``pcpus`` None: all that are online and not isolated; ``max_moves`` None: no limit.

    ``work_moves`` stands in no policy file: what a plan may move that serves clearly more; None: ``max_moves``.

    ``avg_change_pct`` is the gate of the first kvmsched, change of the average load per pCPU since the last pass
    (0: off). ``hold`` is the number of passes in a row that must find a reason before one acts.
    ``floating``: what becomes of vCPUs that the kernel may move: place (pinned), leave, or auto (pinned
    only where that serves them). ``interval_s`` how long load is measured where no earlier sample exists.
    """

    interval_s: float = 2.0
    threshold_pct: float = 5.0
    avg_change_pct: float = 0.0
    granularity: str = "pcpu"
    floating: str = "place"
    pcpus: Optional[CpuSet] = None
    reserved: CpuSet = frozenset()
    max_moves: Optional[int] = None
    work_moves: Optional[int] = None
    emulator: str = "float"
    hold: int = 1
    half_life_s: float = 0.0
    cooldown_s: float = 0.0
    grace_s: int = 600
    settings: VcpuSettings = VcpuSettings()
    selection: Selection = Selection()
    rules: tuple[Rule, ...] = ()

    def settings_for(self, domain: Domain) -> VcpuSettings:
        """Return the settings of one domain, in the same order of precedence as for memory."""
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

    ``mode``: act; grow-only (memory is given and never taken, pins are only planned); or observe (decides, logs and
    exports, but writes nothing; it sets a statistics period only if ``observe_sets_stats_period``).
    ``on_stop``: leave, or release all domains. ``metrics_listen`` is "address:port" or none; ``metrics_textfile``
    a file for node_exporter's textfile collector. ``record`` is a directory for the daemon's record of the host,
    None: none is kept; ``record_size_kib`` what the files in it may have together.
    """

    mode: str = "act"
    memory_period_s: float = 5.0
    vcpu_period_s: float = 5.0
    on_stop: str = "leave"
    observe_sets_stats_period: bool = False
    metrics_listen: str = "127.0.0.1:9757"
    metrics_textfile: Optional[str] = None
    record: Optional[str] = None
    record_size_kib: int = 1024 * 1024


@dataclass(frozen=True)
class Policy:
    """The whole document, parsed. ``deadline_s``: what all that hangs may cost a pass; ``lock_timeout_s``: see lock."""

    deadline_s: float = 10.0
    lock_timeout_s: float = 10.0
    memory: MemoryPolicy = MemoryPolicy()
    vcpu: VcpuPolicy = VcpuPolicy()
    daemon: DaemonPolicy = DaemonPolicy()


def _rules_for(rules: Iterable[Rule], domain: Domain) -> list[Rule]:
    return sorted((r for r in rules if matches(r.pattern, domain)), key=lambda r: r.specificity(domain))


def idle_rules(rules: Iterable[Rule], snapshot: Snapshot) -> tuple[str, ...]:
    """Return the patterns of those *rules* that match no running domain: a slip, or guests that do not run now."""
    known = [*snapshot.domains, *(Domain(skip.uuid, skip.domain, 0) for skip in snapshot.skips)]
    return tuple(rule.pattern for rule in rules if not any(matches(rule.pattern, domain) for domain in known))


# ---------------------------------------------------------------- the schema

MEMORY_MODES = ("auto", "grow-only", "ignore")
VCPU_MODES = ("auto", "ignore", "dedicated")
DAEMON_MODES = ("act", "grow-only", "observe")

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
# What a rule or an owner may say of one domain beside that; for the host ``reclaim`` means more.
_MEMORY_DOMAIN: dict[str, Any] = {**_MEMORY_SETTINGS, "reclaim": {"enum": ["auto", "idle"], "default": "auto"}}
_VCPU_SETTINGS: dict[str, Any] = {"mode": {"enum": list(VCPU_MODES), "default": "auto"}}
_VCPU_RULE: dict[str, Any] = {
    **_VCPU_SETTINGS,
    "pcpus": {"type": "string", "description": CPUSET_HELP},
    "widen": {"type": "boolean", "default": False},
}

_MEMORY_HOST: dict[str, Any] = {
    "strategy": {"enum": ["fair", "pairwise"], "default": "fair"},
    "reclaim": {"enum": ["auto", "eager", "lazy"]},
    "cache": {"enum": ["keep", "share"], "default": "keep"},
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
    "floating": {"enum": ["place", "leave", "auto"], "default": "place"},
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
    "mode": {"enum": list(DAEMON_MODES), "default": "act"},
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
    "record": {
        "type": "string",
        "pattern": r"^/[^\x00-\x1f]*[^/\x00-\x1f]$(?!\n)",
        "description": "the absolute path of a directory",
    },
    "record_size": {"type": "string", "description": f"{SIZE_HELP}, at least 1M", "default": "1G"},
}
_LEAST_RECORD_KIB = 1024
# What the daemon takes where its policy is silent: it looks often, so it can wait for certainty (decision 28).
DAEMON_VCPU = {"floating": "auto", "hold": 3, "half_life": 30.0, "cooldown": 60.0}
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
                        "memory": _object(_MEMORY_DOMAIN),
                        "vcpu": _object(_VCPU_RULE),
                    },
                    required=["match"],
                ),
            },
        }
    ),
}


def defaults(schema: Mapping[str, Any] = SCHEMA) -> dict[str, Any]:
    """Return the document of all the defaults that the schema names: it means the same as an empty one."""
    found = {}
    for key, part in schema["properties"].items():
        if "default" in part:
            found[key] = part["default"]
        elif part.get("type") == "object":
            found[key] = defaults(part)
    return found


# ---------------------------------------------------------------- reading a document


class Mistake(NamedTuple):
    """One mistake in a policy. ``source`` is the file or variable it stands in, where that is known.

    ``part`` (``memory``, ``rules[2].vcpu``) and ``name`` are its key; ``text`` says what came and what is allowed.
    """

    part: str
    name: str
    text: str
    source: str = ""

    @property
    def key(self) -> str:
        return _join(self.part, self.name)

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.source, self.key, self.text)))


class ConfigError(ValueError):
    """A policy that is refused for what was *found*; ``mistakes`` holds a line for each."""

    def __init__(self, found: Iterable[Mistake]) -> None:
        self.found = tuple(found)
        self.mistakes = tuple(map(str, self.found))
        super().__init__("; ".join(self.mistakes))

    def of(self, source: str) -> ConfigError:
        """Return the same, told of the file or variable that the policy came from."""
        return ConfigError(one._replace(source=source) for one in self.found)

    def of_options(self, part: str) -> ConfigError:
        """Return the same, told to one whose options are those of *part*."""
        return ConfigError(one._replace(part="") if one.part == part else one for one in self.found)


# Where a host has its own policy; the variable names another file, for commands and modules alike.
INSTALLED = "/etc/kvmsched/policy.json"
INSTALLED_VARIABLE = "KVMSCHED_POLICY"


def installed() -> Optional[str]:
    """Return the path of this host's own policy, or None if it has none; what the variable names must be there.

    One that can't be reached is there all the same: who reads it is refused, and acts by no defaults.
    """
    path = os.environ.get(INSTALLED_VARIABLE)
    if path:
        return path
    try:
        os.lstat(INSTALLED)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        pass
    return INSTALLED


def load_file(path: str) -> Policy:
    """Return the Policy that the file *path* describes; ConfigError names the file with each mistake."""
    document, _hash = read(path)
    try:
        return load(document)
    except ConfigError as error:
        raise error.of(path) from None


def read(path: str) -> tuple[dict[str, Any], str]:
    """Return the document in the file *path*, and the SHA-256 of its bytes in hex. ConfigError where it can't be read.

    JSON; a file named .yaml or .yml is YAML, which needs the package yaml (python3-yaml).
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise ConfigError([Mistake("", "", f"can't be read: {error.strerror}", path)]) from None
    return parsed(content, path), hashlib.sha256(content).hexdigest()


def parsed(content: bytes, name: str) -> dict[str, Any]:
    """Return the document that *content* is, told as *name*: see read()."""
    if len(content) > _LONGEST:
        raise ConfigError([Mistake("", "", f"got {len(content)} bytes, allowed: {_LONGEST}", name)])
    try:
        document = _parse_yaml(content) if name.endswith((".yaml", ".yml")) else parse_json(content)
    except ValueError as error:
        raise ConfigError([Mistake("", "", one_line(error), name)]) from None
    if not isinstance(document, dict):
        raise ConfigError([Mistake("", "", f"got {shown(document)}, allowed: a mapping", name)])
    return document


# A rule for each of 5,000 domains has 500 KiB, and makes 60,000 values.
_LONGEST = 4 * 1024 * 1024
_MOST_VALUES = 500_000


def _count_values(node: Any, counted: dict[int, int]) -> int:
    """Return how many values a YAML node stands for: each anchor counts as often as it is named.

    ValueError where they are too many: a few lines of nested anchors make billions.
    """
    if id(node) not in counted:
        counted[id(node)] = 1  # of one that names a part of itself, which load() refuses
        parts = node.value if isinstance(node.value, list) else ()
        inside = (part for pair in parts for part in (pair if isinstance(pair, tuple) else (pair,)))
        counted[id(node)] += sum(_count_values(part, counted) for part in inside)
        if counted[id(node)] > _MOST_VALUES:
            raise ValueError(f"its anchors make more than {_MOST_VALUES} values of it")
    return counted[id(node)]


def _parse_yaml(content: bytes) -> Any:
    try:
        import yaml
    except ImportError:
        raise ValueError("reading YAML needs the Python package yaml (python3-yaml), JSON needs none") from None

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Which takes no key twice, as JSON's does: the last one would win without a word."""

        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            seen: set[str] = set()
            for key, _value in node.value:
                if isinstance(key.value, str) and key.tag != "tag:yaml.org,2002:merge":
                    if key.value in seen:
                        raise ValueError(f"the key {one_line(key.value, 60)} stands there twice")
                    seen.add(key.value)
            return node

        def get_single_node(self) -> Any:
            node = super().get_single_node()
            if node is not None:
                _count_values(node, {})
            return node

    try:
        return yaml.load(content, Loader)
    except RecursionError:
        raise ValueError("not valid YAML: nested too deeply") from None
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:  # PyYAML's own on odd scalars
        raise ValueError(f"not valid YAML: {error}") from None


def load_daemon(document: Mapping[str, Any]) -> Policy:
    """Return the same as load() for the daemon, which has defaults of its own for what makes it calm."""
    policy = load(document)
    given = document.get("vcpu", {})
    calm = {key: value for key, value in DAEMON_VCPU.items() if key not in given}
    names = {**_VCPU_NAMES, "hold": "hold", "floating": "floating"}
    return in_its_mode(replace(policy, vcpu=replace(policy.vcpu, **_renamed(calm, names))))


def in_its_mode(policy: Policy) -> Policy:
    """Return *policy*, taking nothing from any guest where the daemon of this policy takes nothing."""
    return replace(policy, memory=replace(policy.memory, grow_only=policy.daemon.mode == "grow-only"))


def load(document: Mapping[str, Any], *, typed: bool = False) -> Policy:
    """Return the Policy that *document* describes; ConfigError lists every mistake in it.

    *typed*: the types were checked already, as Ansible does with a module's options. Only then is
    python3-jsonschema not needed (decision 31).
    """
    try:
        errors = [] if typed else _structure_errors(document)
        reader = _Reader([mistake for error in errors for mistake in _explained(error)])
        policy = reader.policy(_without(errors, document))
    except RecursionError:  # YAML can name a part of itself
        endless = "got a document that is nested without end, allowed: keys and values"
        raise ConfigError([Mistake("", "policy", endless)]) from None
    except (OverflowError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        # Python 3.11 and later, which jsonschema has write it, writes no number of so many digits.
        odd = f"got a number that is none ({one_line(error)}), allowed: see the schema"
        raise ConfigError([Mistake("", "policy", odd)]) from None
    if reader.mistakes:
        raise ConfigError(reader.mistakes)
    return policy


def _structure_errors(document: Any) -> list[Any]:
    """Yield jsonschema's error for each wrong type, unknown key or word in *document*."""
    if document == {}:
        return []
    try:
        # To import it takes longer than most passes do, which need it only where a policy document is read.
        import jsonschema
    except ImportError:
        missing = "reading a policy document needs the Python package jsonschema (python3-jsonschema)"
        raise ConfigError([Mistake("", "", missing)]) from None
    return sorted(jsonschema.Draft7Validator(SCHEMA).iter_errors(document), key=lambda e: [str(p) for p in e.path])


def _without(errors: Iterable[Any], document: Any) -> Any:
    """Return *document* without what the errors are in, so that the values of all the rest can be judged as well."""
    paths = {tuple(e.absolute_path) for e in errors if e.validator not in ("additionalProperties", "required")}
    return _pruned(document, paths, ()) if () not in paths else {}


def _pruned(value: Any, paths: set[tuple[Any, ...]], here: tuple[Any, ...]) -> Any:
    if isinstance(value, dict):
        return {k: _pruned(item, paths, (*here, k)) for k, item in value.items() if (*here, k) not in paths}
    if isinstance(value, list):
        # Positions stay what they are, for mistakes are told by them.
        return [None if (*here, i) in paths else _pruned(item, paths, (*here, i)) for i, item in enumerate(value)]
    return value


def _explained(error: Any) -> list[Mistake]:
    """Return a jsonschema error in our words: the key, what came, what is allowed."""
    path = list(error.absolute_path)
    if error.validator == "additionalProperties":
        allowed = ", ".join(error.schema["properties"])
        unknown = [one_line(child, 60) for child in error.instance if child not in error.schema["properties"]]
        return [Mistake(_path(path), child, f"unknown key, allowed: {allowed}") for child in unknown]
    if error.validator == "required":
        missing = [child for child in error.validator_value if child not in error.instance]
        return [Mistake(_path(path), child, "missing, required here") for child in missing]
    # An entry of a list goes by the list's name.
    names = next((n for n in range(len(path) - 1, -1, -1) if not isinstance(path[n], int)), 0)
    name = _path(path[names:]) or "policy"
    return [Mistake(_path(path[:names]), name, _refusal(error.instance, error.schema))]


def _path(path: Sequence[Any]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def no_pattern(key: str, value: object) -> Mistake:
    """Return the mistake that *value* is no text and so no pattern for domains."""
    return Mistake("", key, _refusal(value, _PATTERN))


def _refusal(value: object, schema: Mapping[str, Any]) -> str:
    """Return one line, with how to spell a text that YAML, or JSON, takes for a number, a date or a word as ``no``."""
    line = f"got {shown(value)}, allowed: {_allowed(schema)}"
    if schema.get("type") != "string" or value is None or isinstance(value, (str, list, dict)):
        return line
    if schema.get("description") in _SIZES:
        return line + spelling_hint(str(value))
    return f'{line}; what looks like a number, a date, yes or no needs quotes: "{one_line(str(value), 40)}"'


# A number between quotes is no size, either: it needs a unit.
_SIZES = frozenset((_AMOUNT["description"], _DAEMON["record_size"]["description"]))


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


def _join(key: str, child: str) -> str:
    return f"{key}.{child}" if key else str(child)


class _Reader:
    """Turns a document of the right types into a Policy, collecting what is wrong with its values."""

    def __init__(self, mistakes: list[Mistake]) -> None:
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
        """Refuse a blank pattern, as an unset variable makes one: it would match nothing without a word."""
        for index, pattern in enumerate(patterns):
            if isinstance(pattern, str) and not pattern.strip():
                text = f"got {shown(pattern)}, allowed: {_PATTERN['description']}"
                self.mistakes.append(Mistake("", f"{key}[{index}]", text))

    def _rule(self, index: int, rule: Mapping[str, Any]) -> Rule:
        where = f"rules[{index}]"
        memory = self._memory_settings(rule.get("memory", {}), f"{where}.memory")
        memory.update(_only(rule.get("memory", {}), ("reclaim",)))
        # What it says of one of a pair alone, another rule may set right.
        whole = [key for pair in _PAIRS for key in pair if memory.keys() >= set(pair)]
        self._check_thresholds(MemorySettings(**_only(memory, whole)), f"{where}.memory")
        vcpu = dict(rule.get("vcpu", {}))
        if "pcpus" in vcpu:
            vcpu["pcpus"] = self._parsed(parse_cpuset, vcpu["pcpus"], f"{where}.vcpu", "pcpus", frozenset())
        return Rule(rule.get("match", ""), memory, vcpu)

    def _memory(self, part: Mapping[str, Any]) -> MemoryPolicy:
        part = _whole(part, _MEMORY_HOST)
        self._check_ranges(part, _MEMORY_HOST, "memory")
        settings = MemorySettings(**self._memory_settings(part, "memory"))
        self._check_thresholds(settings, "memory")
        policy = MemoryPolicy(settings=settings, **_only(part, ("strategy", "reclaim", "cache")))
        if "host_reserve" in part:
            policy = replace(policy, host_reserve=self._amount(part["host_reserve"], "memory", "host_reserve"))
        names = {"stats_period": "stats_period_s", "arrival_timeout": "arrival_timeout_s", "grace": "grace_s"}
        return replace(policy, **_renamed(part, names))

    def _memory_settings(self, part: Mapping[str, Any], where: str) -> dict[str, Any]:
        self._check_ranges(part, _MEMORY_SETTINGS, where)
        settings = _only(part, ("weight", "mode"))
        for key in ("starvation", "waste", "floor", "ceiling"):
            if key in part:
                settings[key] = self._amount(part[key], where, key)
        return settings

    def _check_thresholds(self, settings: MemorySettings, where: str) -> None:
        names = {name for pair in _PAIRS for name in pair}
        # Of one that is wrong by itself the stand-in may contradict another.
        if not any(mistake.part == where and mistake.name in names for mistake in self.mistakes):
            self.mistakes += [mistake._replace(part=where) for mistake in _contradictions(settings, None)]

    def _vcpu(self, part: Mapping[str, Any]) -> VcpuPolicy:
        part = _whole(part, _VCPU_HOST)
        self._check_ranges(part, _VCPU_HOST, "vcpu")
        values = _only(part, ("avg_change_pct", "granularity", "floating", "max_moves", "emulator", "hold"))
        values.update(_renamed(part, _VCPU_NAMES))
        for key in ("pcpus", "reserved"):
            if key in part:
                values[key] = self._parsed(parse_cpuset, part[key], "vcpu", key, frozenset())
        return VcpuPolicy(settings=VcpuSettings(**_only(part, ("mode",))), **values)

    def _daemon(self, part: Mapping[str, Any]) -> DaemonPolicy:
        self._check_ranges(part, _DAEMON, "daemon")
        names = ("mode", "on_stop", "observe_sets_stats_period", "metrics_listen", "metrics_textfile", "record")
        values = _only(part, names)
        if "record_size" in part:
            size_kib = self._parsed(parse_size, part["record_size"], "daemon", "record_size", _LEAST_RECORD_KIB)
            if size_kib < _LEAST_RECORD_KIB:
                few = f"got {shown(part['record_size'])}, allowed: at least 1M"
                self.mistakes.append(Mistake("daemon", "record_size", few))
            values["record_size_kib"] = size_kib
        for key in ("memory_period", "vcpu_period"):
            values[f"{key}_s"] = part.get(key, part.get("period", _DAEMON["period"]["default"]))
        port = str(values.get("metrics_listen")).rpartition(":")[2]
        if port.isdigit() and not 1 <= int(port) <= 65535:
            self.mistakes.append(Mistake("daemon", "metrics_listen", f"got port {port}, allowed: 1 to 65535"))
        return DaemonPolicy(**values)

    def _check_ranges(self, part: Mapping[str, Any], schemas: Mapping[str, Any], where: str) -> None:
        for key, schema in schemas.items():
            # Not "value < minimum": a NaN is outside every range.
            if key in part and "minimum" in schema and not schema["minimum"] <= part[key] <= schema["maximum"]:
                self.mistakes.append(Mistake(where, key, f"got {shown(part[key])}, allowed: {_allowed(schema)}"))

    def _amount(self, text: str, part: str, name: str) -> Amount:
        amount: Amount = self._parsed(parse_amount, text, part, name, Amount(kib=0))
        return amount

    def _parsed(self, parse: Any, text: str, part: str, name: str, fallback: Any) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            self.mistakes.append(Mistake(part, name, f"got {shown(text)}, allowed: {error}"))
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
    """Return *part* with its whole numbers as such: for JSON Schema 5.0 is one, and templates write it so."""
    whole = {key for key in part if schemas.get(key, {}).get("type") == "integer"}
    return {key: int(value) if key in whole and value % 1 == 0 else value for key, value in part.items()}


def _renamed(part: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {field_name: part[key] for key, field_name in names.items() if key in part}


# ---------------------------------------------------------------- one domain's settings


# Thresholds that can contradict each other.
_PAIRS = (("starvation", "waste"), ("floor", "ceiling"))


def _contradictions(settings: MemorySettings, most_kib: Optional[int]) -> Iterator[Mistake]:
    """Yield thresholds that no guest can satisfy at once; *most_kib* makes sizes and percentages comparable."""
    low, high = settings.starvation, settings.waste
    whole = most_kib or 100 * 1024 * 1024
    if low.of(whole) <= 0:
        yield Mistake("", "starvation", f"got {low}, allowed: more than 0")
    elif not _one_kind(low, high):
        yield Mistake("", "waste", f"got {high} beside starvation {low}, allowed: both sizes or both percentages")
    elif high.of(whole) <= low.of(whole):
        yield Mistake("", "waste", f"got {high}, allowed: more than starvation ({low})")
    floor, ceiling = settings.floor, settings.ceiling
    if floor is not None and ceiling is not None and (most_kib or _one_kind(floor, ceiling)):
        if floor.of(whole) > ceiling.of(whole):
            yield Mistake("", "floor", f"got {floor}, allowed: at most the ceiling ({ceiling})")


def _one_kind(one: Amount, other: Amount) -> bool:
    return (one.kib is None) == (other.kib is None)


def owner_memory(domain: Domain) -> dict[str, Any]:
    """Return the owner's memory settings, from attributes of the same names; ``memory`` is the mode."""
    if domain.owner.error:
        raise ValueError(f"metadata: {domain.owner.error}")
    written = domain.owner.settings
    unknown = sorted(set(written) - OWNER_KEYS)
    if unknown:
        raise ValueError(
            f"metadata: unknown attribute {one_line(unknown[0], 60)}, allowed: {', '.join(sorted(OWNER_KEYS))}"
        )
    settings: dict[str, Any] = {}
    for key in ("starvation", "waste", "floor", "ceiling"):
        if key in written:
            try:
                settings[key] = parse_amount(written[key])
            except ValueError as error:
                raise ValueError(f"metadata {key}: got {shown(written[key])}, allowed: {error}") from None
    if "weight" in written:
        settings["weight"] = _weight(written["weight"])
    if "memory" in written:
        settings["mode"] = _choice(written["memory"], MEMORY_MODES, "memory")
    if "reclaim" in written:
        settings["reclaim"] = _choice(written["reclaim"], ("auto", "idle"), "reclaim")
    return settings


OWNER_KEYS = frozenset({f.name for f in fields(MemorySettings)} - {"mode"} | {"memory", "vcpu"})


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0.01 <= weight <= 1000:
        raise ValueError(f"metadata weight: got {shown(text)}, allowed: 0.01 to 1000")
    return weight


def _choice(text: str, allowed: tuple[str, ...], key: str) -> str:
    if text not in allowed:
        raise ValueError(f"metadata {key}: got {shown(text)}, allowed: {', '.join(allowed)}")
    return text
