# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bundle: all that a plan depends on, in one JSON document that gives the same plan anywhere.

It is what users attach to bug reports, and may be written by hand: what follows from the rest is filled in. A record
begins with one, on one line, and each of its hours does: see record.py, which reads both.
"""

from __future__ import annotations

import inspect
import json
import re
import typing
import uuid
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Callable, Iterable, Literal, Mapping, Optional, Sequence, TypeVar, Union

from .. import __version__, config, model, passes
from ..model import Balloon, Domain, Host, Snapshot, Vcpu
from ..policy import memory as memory_policy
from ..policy import vcpu as vcpu_policy
from ..policy.memory import MemoryHistory
from ..policy.vcpu import VcpuHistory
from ..units import CPUSET_HELP, escaped, format_cpuset, shown

FORMAT = 1

# What read() assumes where a bundle written by hand says nothing.
_STEP_S = 5.0
_EPOCH_S = 1_000_000_000.0
_PERIOD_S = 5


@dataclass(frozen=True)
class History:
    """What the daemon remembered when the snapshots were taken, by resource; null: nothing, as in a single pass."""

    memory: Optional[MemoryHistory] = None
    vcpu: Optional[VcpuHistory] = None


@dataclass(frozen=True)
class Decided:
    """What a pass over one resource came to.

    ``moves`` are those that it planned; a reason that is left out is that of the same move in the pass before.
    ``made`` are those that were made, null: all of them. ``failed`` is why the whole pass failed; ``forgot``: what
    was remembered was given up for that.
    """

    moves: tuple[model.Move, ...] = ()
    made: Optional[tuple[model.Move, ...]] = None
    failures: tuple[model.Failure, ...] = ()
    failed: str = ""
    forgot: bool = False

    @property
    def changes(self) -> tuple[model.Move, ...]:
        """The moves that were made."""
        return self.moves if self.made is None else self.made


@dataclass(frozen=True)
class Bundle:
    """All that a plan depends on, and what a record needs to go on from it.

    ``snapshots`` are at least one, oldest first, and the last is the look itself; a plan of vCPUs, and taking memory
    from anybody, needs two. ``policy`` is a policy document, ``kvmsched`` the version that wrote the bundle.
    ``history`` is what the passes of the look were handed, ``room`` what was to be kept for a guest to start.
    ``last_s`` is when each resource had its last pass, in monotonic seconds: that snapshot is among ``snapshots``.
    Null: there was none, and the earlier snapshots are looks of their own. ``decided`` is what the passes of the look
    came to. ``mode`` is what the daemon was allowed to do; empty: no daemon wrote this. ``policy_hash`` is the SHA-256
    of the policy's file. ``acted``: a daemon changed this host meanwhile, whoever wrote this.
    """

    snapshots: tuple[Snapshot, ...]
    policy: dict[str, Any] = field(default_factory=dict)
    history: History = History()
    kvmsched: str = ""
    format: int = FORMAT
    room: Optional[model.RoomRequest] = None
    last_s: Optional[dict[str, float]] = None
    decided: dict[str, Decided] = field(default_factory=dict)
    mode: str = ""
    policy_hash: str = ""
    acted: bool = False


def plan_memory(bundle: Bundle, policy: config.Policy) -> passes.MemoryResult:
    """Return what a pass over memory would come to, by *policy*. ValueError where that does not fit the host."""
    memory = replace(policy.memory, room=bundle.room)
    plan, learnt = memory_policy.decide(bundle.snapshots, memory, bundle.history.memory)
    return passes.Result(bundle.snapshots[-1], plan, learnt, model.Outcome(), {}, warnings=plan.warnings)


def plan_vcpu(bundle: Bundle, policy: config.Policy) -> passes.VcpuResult:
    """Return the same for the vCPUs, where a daemon's memory is in it with a daemon's budget."""
    calm = policy.vcpu if bundle.history.vcpu is None else vcpu_policy.budgeted(policy.vcpu, bundle.snapshots[-1])
    plan, learnt = vcpu_policy.decide(bundle.snapshots, calm, bundle.history.vcpu)
    return passes.Result(bundle.snapshots[-1], plan, learnt, model.Outcome(), {}, warnings=plan.warnings)


class BundleError(ValueError):
    """A bundle that can't be understood; the text is one line that names the place."""


# ---------------------------------------------------------------- reading


def read(text: Union[str, bytes]) -> Bundle:
    """Return the bundle in *text*; BundleError names the first thing in it that is wrong."""
    try:
        data = model.parse_json(text)
    except ValueError as error:
        raise BundleError(str(error)) from None
    return decoded(data)


def decoded(data: Any, lost: Callable[[str], None] = lambda _line: None) -> Bundle:
    """Return the bundle that *data* is, which is changed; BundleError as in read().

    What another version remembered, and this one can't understand, is left out, and *lost* is told.
    """
    if not isinstance(data, dict):
        raise BundleError(f"got {type(data).__name__}, expected an object with the key snapshots")
    if data.get("format", FORMAT) != FORMAT:
        raise BundleError(f"format: got {data['format']!r}, this version reads formats up to {FORMAT}")
    try:
        _fill_in(data)
        _forget_unknown_histories(data, lost)
        bundle = model.from_json(Bundle, data)
    except OverflowError:
        raise BundleError("got a number that nothing is counted in, needed: sizes and times") from None
    except ValueError as error:
        raise BundleError(str(error).replace("Bundle.", "", 1)) from None
    for mistake in mistakes(bundle):
        raise BundleError(mistake)
    return bundle


_HISTORIES = {f.name: typing.get_args(typing.get_type_hints(History)[f.name])[0] for f in fields(History)}


def _forget_unknown_histories(data: dict[str, Any], lost: Callable[[str], None]) -> None:
    """Take the histories out of a bundle that are none to this version. Who wrote by hand is told of the mistake."""
    for histories in _objects([data.get("history")] if data.get("kvmsched") else []):
        for name, cls in _HISTORIES.items():
            try:
                model.decoded(Optional[cls], histories.get(name), name)
            except ValueError:
                histories[name] = None
                lost(f"what kvmsched {shown(data['kvmsched'])} remembered of {name} is of no use to {__version__}")


def _fill_in(data: dict[str, Any]) -> None:
    """Complete a bundle that was written by hand, in place; what is of a wrong type is left for from_json to name."""
    previous: dict[str, Any] = {}
    for snapshot in _objects(data.get("snapshots")):
        _fill_in_times(snapshot, previous)
        previous = snapshot
        online: list[int] = []
        for host in _objects([snapshot.get("host")]):
            for key, value in _HOST_DEFAULTS.items():
                host.setdefault(key, value)
            for topology in _objects([host.get("topology")]):
                online = [p["id"] for p in _objects(topology.get("pcpus")) if isinstance(p.get("id"), int)]
        for domain in _objects(snapshot.get("domains")):
            _fill_in_domain(domain, format_cpuset(online), snapshot["wall_s"])


_HOST_DEFAULTS = {"uuid": str(uuid.UUID(int=0)), "name": "host", "uri": "qemu:///system", "driver": "QEMU"}


def _fill_in_times(snapshot: dict[str, Any], previous: Mapping[str, Any]) -> None:
    """Let each snapshot be five seconds after the one before; one clock follows from the other."""
    wall_s, last_s = snapshot.get("wall_s"), previous.get("monotonic_s", -_STEP_S)
    step_s = _STEP_S
    if previous and _is_number(wall_s) and _is_number(previous["wall_s"]):
        step_s = wall_s - previous["wall_s"]
    snapshot.setdefault("monotonic_s", last_s + step_s if _is_number(last_s) else 0.0)
    if "wall_s" in snapshot:
        return
    updates = [
        balloon["last_update_s"]
        for domain in _objects(snapshot.get("domains"))
        for balloon in _objects([domain.get("balloon")])
        if _is_number(balloon.get("last_update_s"))
    ]
    if updates and max(updates) > 0:
        snapshot["wall_s"] = float(max(updates))
    elif _is_number(snapshot["monotonic_s"]):
        snapshot["wall_s"] = _EPOCH_S + snapshot["monotonic_s"]
    else:
        snapshot["wall_s"] = _EPOCH_S


def _fill_in_domain(domain: dict[str, Any], online: str, wall_s: Any) -> None:
    domain.setdefault("uuid", str(uuid.uuid5(uuid.NAMESPACE_DNS, str(domain.get("name")))))
    domain.setdefault("id", 1)
    for position, vcpu in enumerate(_objects(domain.get("vcpus"))):
        vcpu.setdefault("id", position)
        vcpu.setdefault("pin", online)
    for balloon in _objects([domain.get("balloon")]):
        for key, other in (("actual_kib", "maximum_kib"), ("maximum_kib", "actual_kib"), ("rss_kib", "actual_kib")):
            if other in balloon:
                balloon.setdefault(key, balloon[other])
        if balloon.get("unused_kib") is not None or balloon.get("usable_kib") is not None:
            balloon.setdefault("period_s", _PERIOD_S)
            balloon.setdefault("last_update_s", int(wall_s) if _is_number(wall_s) else 0)


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def mistakes(bundle: Bundle) -> Iterable[str]:
    """Yield what is of the right type and still can't be."""
    if not bundle.snapshots:
        yield "snapshots: got none, needed: at least one"
    for index, snapshot in enumerate(bundle.snapshots):
        where = f"snapshots[{index}]"
        if snapshot.format != model.SNAPSHOT_FORMAT:
            yield f"{where}.format: got {snapshot.format}, this version reads format {model.SNAPSHOT_FORMAT}"
        if snapshot.wall_s >= LATEST_S:
            yield f"{where}.wall_s: got {snapshot.wall_s:g}, needed: seconds since 1970"
        if index and snapshot.monotonic_s <= bundle.snapshots[index - 1].monotonic_s:
            yield f"{where}.monotonic_s: got {snapshot.monotonic_s:g}, needed: later than the snapshot before"
        yield from _twice((p.id for p in snapshot.host.topology.pcpus), f"{where}.host.topology.pcpus: the id")
        yield from _twice((d.uuid for d in snapshot.domains), f"{where}.domains: the uuid")
        for number, domain in enumerate(snapshot.domains):
            yield from _twice((v.id for v in domain.vcpus), f"{where}.domains[{number}].vcpus: the id")
        wrong = out_of_range(model.to_json(snapshot), where)
        if wrong:
            yield wrong
    for name, found in (("last_s", bundle.last_s or {}), ("decided", bundle.decided)):
        if not found.keys() <= _HISTORIES.keys():
            yield f"{name}: got {shown(list(found))}, needed: memory and vcpu"


def _twice(ids: Iterable[Any], what: str) -> Iterable[str]:
    seen = set()
    for one in ids:
        if one in seen:
            yield f"{what} {one} stands there twice"
        seen.add(one)


# All that is observed is counted in KiB, ns or s.
_MOST = 2.0**63
# The year 36,812: no clock is set so far, and calendars end not much later.
LATEST_S = 2**40


def out_of_range(value: Any, where: str) -> Optional[str]:
    """Return the first number below zero, or absurd: nothing that is observed counts so."""
    items: Iterable[tuple[str, Any]] = ()
    if isinstance(value, dict):
        items = ((f"{where}.{key}", item) for key, item in value.items())
    elif isinstance(value, list):
        items = ((f"{where}[{index}]", item) for index, item in enumerate(value))
    elif _is_number(value) and not 0 <= value < _MOST:
        return f"{where}: got {str(value)[:20]}, needed: 0 or more, and less than {_MOST:g}"
    return next((found for name, item in items for found in [out_of_range(item, name)] if found), None)


def write(bundle: Bundle) -> str:
    """Return *bundle* as text for people, what it is before what it holds; what only records have is left out."""
    data = model.to_json(bundle)
    always, records = ("format", "kvmsched", "policy", "history", "room"), ("last_s", "decided", "mode", "policy_hash")
    order = (*always, *(key for key in (*records, "acted") if data[key]), "snapshots")
    return escaped(json.dumps({key: data[key] for key in order}, indent=1, ensure_ascii=False)) + "\n"


# ---------------------------------------------------------------- names out

T = TypeVar("T")
D = TypeVar("D", bound=Union[model.Move, model.Failure])
_DAEMON_KEPT = ("mode", "period", "memory_period", "vcpu_period")
# What the history of the vCPUs keeps by UUID, or by UUID and numbers.
_BY_UUID = ("loads", "moves", "waited", "trials", "planned", "resting", "mismatches", "backed_off")
_PATHS = re.compile(r"[^\s'\"(]*/[^\s'\")]*")


def anonymised(bundle: Bundle) -> Bundle:
    """Return the same bundle without any name, UUID or host name; its plan is the same but for those.

    New names and UUIDs sort as the old ones do, for ties are broken by them. Patterns of the policy
    become the names that they match, and rules one rule for each domain.
    """
    return Anonymiser(bundle).bundle()


def uuids_in(history: VcpuHistory) -> Iterable[str]:
    """Return the UUIDs of the domains that are remembered."""
    return (key.split("/")[0] for name in _BY_UUID for key in getattr(history, name))


class Anonymiser:
    """Gives new names to all that *bundle* names, and to *more* UUIDs that what follows it has."""

    def __init__(self, bundle: Bundle, more: Iterable[str] = ()) -> None:
        self.original = bundle
        memory, vcpu = bundle.history.memory, bundle.history.vcpu
        uuids = {d.uuid for s in bundle.snapshots for d in s.domains} | {
            k.uuid for s in bundle.snapshots for k in s.skips
        }
        uuids |= {*more, *(memory.domains if memory else ())}
        uuids |= set(uuids_in(vcpu) if vcpu else ())
        names = {d.name for s in bundle.snapshots for d in s.domains} | {
            k.domain for s in bundle.snapshots for k in s.skips
        }
        hosts = {s.host.uuid for s in bundle.snapshots}
        others = {d.record.host_uuid for s in bundle.snapshots for d in s.domains if d.record} - hosts
        self.uuids = {old: str(uuid.UUID(int=number)) for number, old in enumerate(sorted(uuids), 1)}
        self.hosts = {old: f"host-{number}" for number, old in enumerate([*sorted(hosts), *sorted(others)], 1)}
        balloons = [d.balloon for s in bundle.snapshots for d in s.domains if d.balloon]
        rooms = {r.name for s in bundle.snapshots for r in s.host.rooms} | {r for b in balloons for r in b.rooms}
        self.rooms = {old: f"room-{number}" for number, old in enumerate(sorted(rooms), 1)}
        width = len(str(len(names)))
        self.names = {old: f"vm{number:0{width}}" for number, old in enumerate(sorted(names), 1)}
        host_names = {s.host.name: "host" for s in bundle.snapshots}
        words = {**host_names, **self.hosts, **self.uuids, **self.names}
        longest_first = sorted(filter(None, words), key=lambda word: (-len(word), word))
        self._words = words
        self._known = re.compile(r"(?<![\w.-])(?:" + "|".join(map(re.escape, longest_first)) + r")(?![\w-])")

    def bundle(self) -> Bundle:
        return self.renamed(self.original)

    def renamed(self, bundle: Bundle) -> Bundle:
        """Return the same for another bundle, of what the first one names."""
        history = bundle.history
        return replace(
            bundle,
            snapshots=tuple(self.snapshot(snapshot) for snapshot in bundle.snapshots),
            policy=self._policy(bundle.policy),
            # The policy is not that of the file any more.
            policy_hash="",
            decided={name: self.decided(one) for name, one in bundle.decided.items()},
            history=History(
                replace(history.memory, domains=self._keys(history.memory.domains)) if history.memory else None,
                self._vcpu_history(history.vcpu) if history.vcpu else None,
            ),
        )

    def named(self, one: D) -> D:
        """Return a move or a failure, without the names in its words."""
        uuid_ = self.uuids.get(one.uuid, "")
        return replace(
            one, domain=self.names.get(one.domain, "unknown"), uuid=uuid_, reason=self.text(one.reason) or ""
        )

    def decided(self, one: Decided) -> Decided:
        """Return what a pass came to, without names."""
        return Decided(
            moves=tuple(self.named(move) for move in one.moves),
            made=None if one.made is None else tuple(self.named(move) for move in one.made),
            failures=tuple(self.named(failure) for failure in one.failures),
            failed=self.text(one.failed) or "",
            forgot=one.forgot,
        )

    def snapshot(self, snapshot: Snapshot) -> Snapshot:
        host = replace(
            snapshot.host,
            uuid=self.hosts[snapshot.host.uuid],
            name="host",
            uri=re.sub(r"//[^/]*/", "///", snapshot.host.uri).split("?")[0],
            rooms=tuple(replace(room, name=self.rooms[room.name]) for room in snapshot.host.rooms),
        )
        skips = tuple(
            replace(s, domain=self.names[s.domain], uuid=self.uuids[s.uuid], reason=self.text(s.reason) or "")
            for s in snapshot.skips
        )
        return replace(snapshot, host=host, domains=tuple(map(self._domain, snapshot.domains)), skips=skips)

    def _domain(self, domain: Domain) -> Domain:
        owner = model.Owner(self._owner(domain), domain.owner.error and "got what is not shown here")
        record = domain.record
        return replace(
            domain,
            uuid=self.uuids[domain.uuid],
            name=self.names[domain.name],
            busy=self.text(domain.busy),
            balloon=replace(domain.balloon, rooms=tuple(map(self.rooms.__getitem__, domain.balloon.rooms)))
            if domain.balloon
            else None,
            owner=owner,
            record=replace(record, host_uuid=self.hosts[record.host_uuid]) if record else None,
            record_error=self.text(domain.record_error),
        )

    @staticmethod
    def _owner(domain: Domain) -> dict[str, str]:
        """Return what its owner wrote, where it is policy; a slip could be anything, and becomes another word."""
        settings = dict(domain.owner.settings)
        if settings.get("vcpu", config.VCPU_MODES[0]) not in config.VCPU_MODES:
            settings["vcpu"] = "unknown"
        try:
            config.owner_memory(replace(domain, owner=replace(domain.owner, error=None)))
        except ValueError:
            return {**({"vcpu": settings["vcpu"]} if "vcpu" in settings else {}), "unknown": ""}
        return settings

    def text(self, text: Optional[str]) -> Optional[str]:
        """Return *text* without names; what libvirt says may have them in paths, too."""
        return text and self._known.sub(lambda found: self._words[found[0]], _PATHS.sub("(path)", text))

    def _keys(self, by_uuid: Mapping[str, T]) -> dict[str, T]:
        """Return the same mapping, its keys being UUIDs or uuid/number."""
        return {"/".join([self.uuids[key.split("/")[0]], *key.split("/")[1:]]): value for key, value in by_uuid.items()}

    def _vcpu_history(self, history: VcpuHistory) -> VcpuHistory:
        return replace(
            history,
            **typing.cast(Any, {name: self._keys(getattr(history, name)) for name in _BY_UUID}),
        )

    # ------------------------------------------------------------ the policy, by name

    def _policy(self, document: Mapping[str, Any]) -> dict[str, Any]:
        # What the daemon's part says of addresses and files no plan depends on.
        policy = {key: value for key, value in document.items() if key != "daemon"}
        daemon = {key: value for key, value in document.get("daemon", {}).items() if key in _DAEMON_KEPT}
        if daemon:
            policy["daemon"] = daemon
        domains = {d.uuid: d for s in self.original.snapshots for d in s.domains}.values()
        for key in ("domains", "exclude"):
            if key in policy and policy[key] != ["*"]:
                policy[key] = self._matched(policy[key], domains)
        if "rules" in policy:
            policy["rules"] = [rule for domain in domains for rule in self._rules(policy["rules"], domain)]
        return policy

    def _matched(self, patterns: Sequence[str], domains: Iterable[Domain]) -> list[str]:
        """Return the new UUIDs of what *patterns* match; a pattern that matches nothing goes on matching nothing."""
        selection = config.Selection(tuple(patterns))
        chosen = [self.uuids[d.uuid] for d in domains if selection.matches(d)]
        return [*chosen, *(f"unmatched-{number}" for number, _old in enumerate(selection.unmatched(domains), 1))]

    def _rules(self, rules: Sequence[Mapping[str, Any]], domain: Domain) -> Iterable[dict[str, Any]]:
        """Yield all that the rules say of *domain*, as one rule."""
        parsed = [config.Rule(rule["match"], rule.get("memory", {}), rule.get("vcpu", {})) for rule in rules]
        matching = [rule for rule in parsed if config.matches(rule.pattern, domain)]
        memory: dict[str, Any] = {}
        vcpu: dict[str, Any] = {}
        for rule in sorted(matching, key=lambda rule: rule.specificity(domain)):
            memory.update(rule.memory)
            vcpu.update(rule.vcpu)
        if matching:
            yield {"match": self.uuids[domain.uuid], "memory": memory, "vcpu": vcpu}


# ---------------------------------------------------------------- the schema

# What read() fills in: what a bundle written by hand may leave out.
_FILLED_IN: dict[type, dict[str, str]] = {
    Snapshot: {
        "monotonic_s": "five seconds after the snapshot before, or as far as wall_s is",
        "wall_s": "the youngest last_update_s, else an instant that follows from monotonic_s",
    },
    Host: {key: str(value) for key, value in _HOST_DEFAULTS.items()},
    Domain: {"uuid": "made from the name", "id": "1"},
    Vcpu: {"id": "its position in the list", "pin": "every online pCPU"},
    Balloon: {
        "actual_kib": "maximum_kib",
        "maximum_kib": "actual_kib",
        "rss_kib": "actual_kib",
        "period_s": "5 where unused_kib or usable_kib is given, else 0",
        "last_update_s": "the snapshot's wall_s where unused_kib or usable_kib is given, else 0",
    },
}


def line_schema(title: str, step: Any) -> dict[str, Any]:
    """Return the JSON Schema of what is a bundle, or else a *step*: the dataclasses that they consist of."""
    definitions: dict[str, Any] = {}
    bundle, other = (_object_schema(cls, definitions) for cls in (Bundle, step))
    bundle["properties"]["format"] = {"const": FORMAT}
    definitions["Snapshot"]["properties"]["format"] = {"const": model.SNAPSHOT_FORMAT}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": title,
        # Not oneOf: whoever writes a bundle by hand is told what is wrong with it, not that it is neither.
        "if": {"not": {"required": ["us"]}},
        "then": bundle,
        "else": other,
        "definitions": {name: definitions[name] for name in sorted(definitions)},
    }


def _object_schema(cls: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    filled_in = _FILLED_IN.get(cls, {})
    properties = {}
    for one in fields(cls):
        properties[one.name] = _schema_of(hints[one.name], definitions)
        if one.name in filled_in:
            properties[one.name] = {**properties[one.name], "description": f"If left out: {filled_in[one.name]}"}
        elif one.default is None or isinstance(one.default, (str, int, float)):
            properties[one.name] = {**properties[one.name], "default": one.default}
    needed = [one.name for one in fields(cls) if model.required(one) and one.name not in filled_in]
    return {
        "description": " ".join(inspect.cleandoc(cls.__doc__ or "").replace("``", "").split()),
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        **({"required": needed} if needed else {}),
    }


def _schema_of(wanted: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, args = typing.get_origin(wanted), typing.get_args(wanted)
    if is_dataclass(wanted):
        name = getattr(wanted, "__name__", "")
        if name not in definitions:
            definitions[name] = {}
            definitions[name] = _object_schema(wanted, definitions)
        return {"$ref": f"#/definitions/{name}"}
    if origin is Union:
        return {"anyOf": [_schema_of(one, definitions) for one in args]}
    if origin is Literal:
        return {"enum": list(args)}
    if origin is tuple:
        return {"type": "array", "items": _schema_of(args[0], definitions)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema_of(args[1], definitions)}
    if origin is frozenset:
        return {"type": "string", "description": f"{CPUSET_HELP}; empty for none"}
    return dict(_PLAIN[wanted])


_PLAIN: Mapping[Any, Mapping[str, Any]] = {
    Any: {},
    bool: {"type": "boolean"},
    float: {"type": "number"},
    int: {"type": "integer"},
    str: {"type": "string"},
    type(None): {"type": "null"},
}
