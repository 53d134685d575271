# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The policy document: what is refused and how, and which settings hold for a domain."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from kvmsched import config
from kvmsched.model import Balloon, Domain, Host, Owner, Skip, Snapshot, Topology
from kvmsched.units import Amount

UUID = "5f6b1c1e-0000-4000-8000-000000000001"


def domain(name: str, **owner: str) -> Domain:
    return Domain(uuid=UUID, name=name, id=1, balloon=Balloon(512 * 1024, 1024 * 1024), owner=Owner(owner))


def test_a_whole_number_is_one_however_it_is_written() -> None:
    policy = config.load({"memory": {"stats_period": 7.0, "grace": 60.0}, "vcpu": {"max_moves": 2.0, "hold": 3.0}})
    numbers = (policy.memory.stats_period_s, policy.memory.grace_s, policy.vcpu.max_moves, policy.vcpu.hold)
    assert numbers == (7, 60, 2, 3) and not any(isinstance(number, float) for number in numbers)


def test_an_empty_document_is_the_defaults() -> None:
    assert config.load({}) == config.Policy()


def leaves(schema: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    if schema.get("type") == "object":
        for key, part in schema["properties"].items():
            yield from leaves(part, (*path, key))
    elif path[0] != "rules":
        yield path, schema


def defaults() -> dict[str, Any]:
    document: dict[str, Any] = {}
    for path, schema in leaves(config.SCHEMA):
        if "default" in schema:
            place = document
            for key in path[:-1]:
                place = place.setdefault(key, {})
            place[path[-1]] = schema["default"]
    return document


def test_the_defaults_that_the_schema_names_are_the_real_ones() -> None:
    assert config.load(defaults()) == config.Policy()


# ---------------------------------------------------------------- what is refused


def nested(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    for key in reversed(path):
        value = {key: value}
    return value


WRONG_TYPES: list[Any] = [None, True, [], {}, [[]], {"a": 1}, b"5", object()]
WRONG_TEXTS = [
    "",
    " ",
    "150",
    "150MB",
    "-5M",
    "1e9",
    "NaN",
    "5%%",
    "101%",
    "99999T",
    "\x00",
    "\u0661M",
    "0-",
    "9-1",
    "x" * 5000,
]
WRONG_NUMBERS = [-1, -0.5, math.nan, math.inf, -math.inf, 10**400, "5", None, True]


def malformed() -> Iterator[tuple[str, Any]]:
    """At least one of each kind of mistake for every option of the schema, and some that span options."""
    for path, schema in leaves(config.SCHEMA):
        key = ".".join(path)
        if "enum" in schema:
            bad: list[Any] = ["", "Fair", "fair ", 1, None, ["fair"]]
        elif schema["type"] == "string":
            plain_number_is_a_cpu = key in ("vcpu.pcpus", "vcpu.reserved")
            bad = [*WRONG_TYPES, 150, 1.5, *(t for t in WRONG_TEXTS if not (plain_number_is_a_cpu and t == "150"))]
        elif schema["type"] == "array":
            bad = [None, "db*", 1, {}, [""], [1], [None], [["db*"]]]
        elif schema["type"] == "boolean":
            bad = [None, 0, "true", [], {}]
        else:
            bad = [*WRONG_NUMBERS, [], {}]
            bad += [1.5] if schema["type"] == "integer" else []
        for value in bad:
            yield key, nested(path, value)
        yield key, nested((*path[:-1], path[-1].upper()), schema.get("default"))
    for extra in ("unknown", "", "memory.waste", "\u202ememory", "x" * 300):
        yield extra, {extra: 1}
        yield extra, {"memory": {extra: 1}}
    for rule in (
        None,
        {},
        {"match": ""},
        {"match": 1},
        {"match": "a", "memory": {"strategy": "fair"}},
        {"match": "a", "x": 1},
    ):
        yield "rules[0]", {"rules": [rule]}
    yield "rules[0].memory.floor", {"rules": [{"match": "a", "memory": {"floor": "1MB"}}]}
    yield "memory.waste", {"memory": {"starvation": "300M", "waste": "150M"}}
    yield "memory.waste", {"memory": {"starvation": "300M"}}
    yield "memory.waste", {"memory": {"starvation": "5%"}}
    yield "memory.waste", {"memory": {"starvation": "10%", "waste": "10%"}}
    yield "memory.starvation", {"memory": {"starvation": "0K"}}
    yield "memory.floor", {"memory": {"floor": "2G", "ceiling": "1G"}}
    for document in (None, [], "memory", 5, [{"memory": {}}]):
        yield "policy", document


MALFORMED = list(malformed())


def test_there_are_enough_of_them() -> None:
    assert len(MALFORMED) >= 150


@pytest.mark.parametrize(("key", "document"), MALFORMED, ids=range(len(MALFORMED)))
def test_a_mistake_is_one_line_that_names_the_key_and_what_is_allowed(key: str, document: Any) -> None:
    with pytest.raises(config.ConfigError) as caught:
        config.load(document)
    line = next((line for line in caught.value.mistakes if key.lower()[:50] in line.lower()), None)
    assert line is not None, caught.value.mistakes
    assert "\n" not in line and len(line) < 1000
    assert "allowed: " in line or "required" in line


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(config.ConfigError) as caught:
        config.load({"memory": {"floor": "1MB", "host_reserve": "5"}, "vcpu": {"pcpus": "3-1", "threshold": math.nan}})
    assert len(caught.value.mistakes) == 4


@pytest.mark.parametrize("typed", [False, True])
def test_a_blank_pattern_is_refused_as_an_unset_variable_makes_one(typed: bool) -> None:
    with pytest.raises(config.ConfigError) as caught:
        config.load({"domains": ["db*", ""], "exclude": [" "]}, typed=typed)
    allowed = "allowed: a name, a shell pattern for names, or a UUID"
    assert caught.value.mistakes == (f"domains[1]: got '', {allowed}", f"exclude[0]: got ' ', {allowed}")


def test_a_pass_without_a_document_needs_no_jsonschema(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    assert config.load({"memory": {"waste": "400M"}}, typed=True).memory.settings.waste == Amount(kib=400 * 1024)
    with pytest.raises(config.ConfigError, match="python3-jsonschema"):
        config.load({"memory": {"waste": "400M"}})


# ---------------------------------------------------------------- which settings hold

RULES = [
    {"match": "*", "memory": {"weight": 2}},
    {"match": "db*", "memory": {"floor": "1G", "weight": 4}, "vcpu": {"mode": "dedicated"}},
    {"match": "db1", "memory": {"floor": "2G"}},
    {"match": UUID, "memory": {"ceiling": "4G"}},
]


def test_the_most_specific_rule_wins_key_by_key_in_any_order() -> None:
    for rules in (RULES, RULES[::-1]):
        policy = config.load({"rules": rules}).memory
        settings = policy.settings_for(domain("db1"))
        assert (settings.floor, settings.ceiling, settings.weight) == (
            Amount(kib=2 * 1024**2),
            Amount(kib=4 * 1024**2),
            4,
        )
        assert policy.settings_for(domain("web")).weight == 2


def test_the_owner_has_the_last_word() -> None:
    policy = config.load({"rules": RULES})
    assert policy.memory.settings_for(domain("db1", floor="512M", memory="ignore")).mode == "ignore"
    assert policy.vcpu.settings_for(domain("db1", vcpu="ignore")).mode == "ignore"
    assert policy.vcpu.settings_for(domain("db1")).mode == "dedicated"


@pytest.mark.parametrize(
    ("owner", "text"),
    [
        ({"floor": "1MB"}, "metadata floor: got '1MB', allowed: a size"),
        ({"weight": "nan"}, "metadata weight: got 'nan', allowed: 0.01 to 1000"),
        ({"memory": "off"}, "metadata memory: got 'off', allowed: auto, grow-only, ignore"),
        ({"flor": "1G"}, "metadata: unknown attribute flor"),
        ({"waste": "100M"}, "waste: got 100M, allowed: more than starvation"),
    ],
)
def test_what_an_owner_wrote_wrong_is_told(owner: dict[str, str], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        config.load({}).memory.settings_for(domain("db1", **owner))


def test_percentages_are_of_the_maximum() -> None:
    settings = config.load({"memory": {"starvation": "5%", "waste": "10%", "floor": "25%"}}).memory.settings
    assert (settings.starvation_kib(1000), settings.waste_kib(1000), settings.floor_kib(1000)) == (50, 100, 250)


def test_the_default_floor_and_reserve() -> None:
    policy = config.Policy().memory
    assert policy.settings.floor_kib(512 * 1024) == 128 * 1024
    assert policy.settings.floor_kib(8 * 1024**2) == 8 * 1024**2 // 10
    assert policy.settings.floor_kib(64 * 1024) == 64 * 1024, "no floor above what the domain can have"
    assert policy.reserve_kib(4 * 1024**2) == 1024**2
    assert policy.reserve_kib(100 * 1024**2) == 5 * 1024**2


def test_a_selection_takes_names_and_uuids_and_tells_what_matches_nothing() -> None:
    selection = config.Selection(("db*", UUID.upper(), "web9*"), ("db2",))
    assert selection.matches(domain("db1"))
    assert selection.matches(domain("anything")), "by its UUID"
    assert not selection.matches(domain("db2")), "exclude wins"
    assert not config.Selection(("DB*",)).matches(domain("db1")), "names are case-sensitive"
    assert selection.unmatched([domain("db1")]) == ("web9*", "db2")


# ---------------------------------------------------------------- whom a pattern names

OTHER = "5f6b1c1e-0000-4000-8000-000000000002"


def named(name: str, uuid: str = UUID) -> Domain:
    return Domain(uuid=uuid, name=name, id=1)


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("db1", "db1", True),
        ("db*", "db1", True),
        ("DB1", "db1", False),
        ("[prod] db1", "[prod] db1", True),  # as a glob it means "p db1", "r db1" ...
        ("vm[1]", "vm1", True),
        (UUID, "whoever", True),
        (UUID.upper(), "whoever", True),
        (OTHER, OTHER, False),  # a name that is somebody else's UUID
    ],
)
def test_a_pattern_is_a_name_before_it_is_a_glob(pattern: str, name: str, matches: bool) -> None:
    assert config.Selection((pattern,)).matches(named(name)) is matches
    assert config.matches(pattern, named(name)) is matches


def test_a_rule_that_names_a_domain_goes_before_one_that_matches_it() -> None:
    name = "[prod] db1"
    rules = [{"match": name, "memory": {"weight": 3}}, {"match": "*db1", "memory": {"weight": 2}}]
    for order in (rules, rules[::-1]):
        policy = config.load({"rules": order}).memory
        assert policy.settings_for(named(name)).weight == 3 and policy.settings_for(named("db1")).weight == 2


def snapshot_of(*names: str, lost: tuple[str, ...] = ()) -> Snapshot:
    domains = tuple(named(name, f"{UUID[:-2]}{number:02}") for number, name in enumerate(names))
    return Snapshot(
        0,
        0,
        Host("", "h", "u", "QEMU", Topology((), ())),
        domains,
        tuple(Skip(name, f"u-{name}", "hung", "") for name in lost),
    )


def test_what_a_person_names_is_that_domain_alone() -> None:
    asked = config.Selection(("vm[1]",), names_first=True)
    with_it, without = snapshot_of("vm[1]", "vm1"), snapshot_of("vm1", "vm2")
    assert [d.name for d in with_it.domains if asked.among(with_it).matches(d)] == ["vm[1]"]
    assert [d.name for d in without.domains if asked.among(without).matches(d)] == ["vm1"]


def test_nobody_takes_a_rule_away_from_others_by_a_name_like_it() -> None:
    everybody = snapshot_of("db*", "db1")
    policy = config.Selection(("*",), ("db*",)).among(everybody)
    assert not any(policy.matches(domain) for domain in everybody.domains)


def test_rules_that_match_nobody_are_told() -> None:
    rules = config.load({"rules": [{"match": name} for name in ("web*", "[prod] db1", "db1", "hung1")]}).memory.rules
    assert config.idle_rules(rules, snapshot_of("[prod] db1", "db2", lost=("hung1",))) == ("web*", "db1")
