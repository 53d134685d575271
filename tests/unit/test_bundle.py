# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bundles: read leniently or refused in one line, the same plan every time, and no names where none are wanted."""

from __future__ import annotations

import copy
import json
import random
import re
import uuid
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from examples import TIMES, seeds
from kvmsched import config, model
from kvmsched.app import bundle, record
from kvmsched.policy.memory import MemoryHistory
from kvmsched.policy.memory.history import DomainHistory
from kvmsched.policy.vcpu import VcpuHistory
from kvmsched.policy.vcpu.history import PlannedPin, Smoothed
from schemas import PUBLISHED, REPOSITORY, text_of

MIB = 1024
SCHEMA = record.schema()


def plans(whole: bundle.Bundle) -> list[Any]:
    policy = config.load(whole.policy)
    return [model.to_json(plan(whole, policy).plan) for plan in (bundle.plan_memory, bundle.plan_vcpu)]


def example() -> dict[str, Any]:
    """The bundle that the documentation shows."""
    text = (REPOSITORY / "docs/cli.md").read_text(encoding="utf-8")
    found = re.search(r"^```json\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert found
    return dict(json.loads(found[1]))


# ---------------------------------------------------------------- the format


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.name)
def test_the_published_schemas_are_the_package_s(path: Path) -> None:
    jsonschema.Draft7Validator.check_schema(PUBLISHED[path])
    assert path.read_text(encoding="utf-8") == text_of(PUBLISHED[path]), "python tests/schemas.py writes them"


def test_the_documented_example_fits_the_schema_and_is_planned_as_documented() -> None:
    jsonschema.Draft7Validator(SCHEMA).validate(example())
    memory, vcpu = plans(bundle.read(json.dumps(example())))
    assert {move["domain"]: move["after_kib"] > move["before_kib"] for move in memory["moves"]} == {
        "db": True,
        "web": False,
    }
    assert len(vcpu["moves"]) == 1
    documentation = (REPOSITORY / "docs/cli.md").read_text(encoding="utf-8")
    for plan in (memory, vcpu):
        for move in plan["moves"]:
            assert move["reason"] in documentation


def test_what_is_written_is_read_again_and_fits_the_schema() -> None:
    whole = bundle.read(json.dumps(example()))
    written = bundle.write(whole)
    jsonschema.Draft7Validator(SCHEMA).validate(json.loads(written))
    again = bundle.read(written)
    assert again == whole and plans(again) == plans(whole)


def test_what_may_be_left_out_is_filled_in() -> None:
    first = {"host": {"topology": {"pcpus": [{"id": 4}, {"id": 6}]}}, "domains": [{"name": "a", "vcpus": [{}, {}]}]}
    whole = bundle.read(json.dumps({"snapshots": [first, first]}))
    before, now = whole.snapshots
    assert (now.monotonic_s - before.monotonic_s, now.wall_s - before.wall_s) == (5, 5)
    (domain,) = now.domains
    assert domain.uuid == str(uuid.uuid5(uuid.NAMESPACE_DNS, "a")) and [v.id for v in domain.vcpus] == [0, 1]
    assert domain.vcpus[0].pin == {4, 6}
    first["domains"] = [{"name": "a", "balloon": {"maximum_kib": 9, "usable_kib": 1}}]
    (domain,) = bundle.read(json.dumps({"snapshots": [first]})).snapshots[0].domains
    assert domain.balloon is not None
    assert (domain.balloon.actual_kib, domain.balloon.rss_kib, domain.balloon.period_s) == (9, 9, 5)
    assert domain.balloon.last_update_s > 0
    first["domains"][0]["balloon"]["last_update_s"] = 1700000000
    assert bundle.read(json.dumps({"snapshots": [first]})).snapshots[0].wall_s == 1700000000


def changed(path: list[Any], value: Any) -> str:
    document = example()
    place = document
    for key in path[:-1]:
        place = place[key]
    if value is KeyError:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return json.dumps(document)


DOMAIN = ["snapshots", 1, "domains", 0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not valid JSON"),
        ("[]", "snapshots"),
        ("[" * 100_000, "nested too deeply"),
        ('{"snapshots": 1, "snapshots": 2}', "twice"),
        ("{}", "missing snapshots"),
        ('{"snapshots": []}', "at least one"),
        ('{"snapshots": [5]}', "snapshots[0]: got 5, expected an object"),
        (changed(["format"], 99), "format: got 99, this version reads formats up to 1"),
        (changed(["spare"], 1), "spare"),
        (changed(["snapshots", 0, "host"], KeyError), "snapshots[0]: missing host"),
        (changed(["snapshots", 0, "host", "topology"], []), "snapshots[0].host.topology: got [], expected an object"),
        (changed(["snapshots", 0, "format"], 2), "snapshots[0].format: got 2"),
        (changed(["snapshots", 1, "wall_s"], 1_600_000_000), "snapshots[1].monotonic_s"),
        (changed(["snapshots", 1, "wall_s"], "now"), "snapshots[1].wall_s: got 'now', expected a number"),
        (changed(["snapshots", 1, "wall_s"], float("nan")), "NaN"),
        (changed([*DOMAIN, "name"], KeyError), "snapshots[1].domains[0]: missing name"),
        (changed([*DOMAIN, "name"], "web"), "stands there twice"),
        (changed([*DOMAIN, "nmae"], "x"), "got 'nmae'"),
        (changed([*DOMAIN, "vcpus", 0, "pin"], "x"), "domains[0].vcpus[0].pin: got 'x', expected a CPU set"),
        (changed([*DOMAIN, "vcpus", 0, "pin"], [0]), "domains[0].vcpus[0].pin: got [0], expected a CPU set as text"),
        (changed([*DOMAIN, "vcpus", 0, "time_ns"], 1.5), "time_ns: got 1.5, expected a whole number"),
        (changed([*DOMAIN, "balloon"], {"unused_kib": 1}), "balloon: missing actual_kib, maximum_kib"),
        (changed([*DOMAIN, "balloon", "usable_kib"], -1), "balloon.usable_kib: got -1, needed: 0 or more"),
        (changed([*DOMAIN, "balloon", "usable_kib"], "1G"), "usable_kib: got '1G', expected a whole number"),
        (changed(["history"], {"memory": {"domains": {"x": {}}}}), "history.memory.domains.x: missing"),
        (changed(["history"], {"vcpu": {"foreign": {"x": {}}}}), "a key: got 'x', expected a number"),
        (changed(["snapshots", 0, "domains", 0, "name"], "x" * 5000), ""),
    ],
)
def test_what_is_wrong_is_named_in_one_line(text: str, words: str) -> None:
    if not words:
        bundle.read(text)
        return
    with pytest.raises(bundle.BundleError) as caught:
        bundle.read(text)
    line = str(caught.value)
    assert words in line and "\n" not in line and len(line) < 1000, line


def test_nothing_in_a_bundle_is_worse_than_a_refusal() -> None:
    """Any part of it replaced by anything: it is read, or refused in one line. All pairs are tried in fuzzing only."""
    original = example()
    junk: list[Any] = [None, True, -1, 10**30, 1e300, "", "x", [], [[]], {}, {"a": 1}]
    tried, step = 0, max(1, 4 // TIMES)
    for number, path in enumerate(_of_each_kind(_paths(original))):
        for value in junk[number % step :: step]:
            document = copy.deepcopy(original)
            place: Any = document
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = value
            tried += 1
            try:
                plans(bundle.read(json.dumps(document)))
            except ValueError as error:
                assert "\n" not in str(error) and str(error)
    assert tried > 500 // step


def _of_each_kind(paths: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """The first and the last of those that differ by their place in lists only."""
    kinds: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
    for path in paths:
        kinds.setdefault(tuple("*" if isinstance(key, int) else key for key in path), []).append(path)
    return [path for alike in kinds.values() for path in dict.fromkeys((alike[0], alike[-1]))]


def _paths(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [here] if here else []
    for key, item in items:
        found += _paths(item, (*here, key))
    return found


# ---------------------------------------------------------------- names out


def crowd(seed: int) -> bundle.Bundle:
    """A host whose guests have names and UUIDs that sort differently, rules, records, owners and a history."""
    chance = random.Random(seed)
    names = [f"{word}-{chance.randrange(1000)}" for word in chance.sample(WORDS, 8)]
    uuids = {name: str(uuid.UUID(int=chance.getrandbits(128))) for name in names}
    host_uuid = str(uuid.UUID(int=chance.getrandbits(128)))
    load = {name: chance.uniform(0, 0.9) for name in names}
    actual = {name: chance.randrange(256, 4096) * MIB for name in names}
    used = {name: chance.randrange(100 * MIB, actual[name]) for name in names}
    pins = {name: str(chance.randrange(2)) for name in names}
    snapshots = []
    for tick in range(2):
        domains = []
        for name in names:
            free = actual[name] - used[name]
            original = {"original_kib": actual[name], "previous_kib": actual[name], "intended_kib": actual[name]}
            domains.append(
                {
                    "name": name,
                    "uuid": uuids[name],
                    "busy": f"job of {name} on secret-host.example" if chance.random() < 0.1 else None,
                    "owner": {"settings": {"weight": "3"} if chance.random() < 0.3 else {}},
                    "record": {"host_uuid": host_uuid, "domain_id": 1, "memory": {**original, "when_s": 5}},
                    "vcpus": [{"pin": pins[name], "time_ns": int(tick * 5e9 * load[name])}],
                    "balloon": {
                        "actual_kib": actual[name],
                        "maximum_kib": 4096 * MIB,
                        "unused_kib": free // 2,
                        "usable_kib": free,
                    },
                }
            )
        host = {
            "name": "secret-host.example",
            "uuid": host_uuid,
            "uri": "qemu+ssh://root@secret-host.example/system?keyfile=x",
            "topology": {"pcpus": [{"id": number} for number in range(4)]},
            "memory": {"total_kib": 32768 * MIB, "available_kib": chance.randrange(1024, 8192) * MIB},
        }
        lost = {"domain": "lost-one", "uuid": "10000000-0000-4000-8000-00000000000f", "code": "hung"}
        skips = [{**lost, "reason": f"lost-one ({lost['uuid']}) did not answer"}]
        snapshots.append({"wall_s": 1700000000 + 5 * tick, "host": host, "domains": domains, "skips": skips})
    policy = {
        "domains": ["*", "nobody*"],
        "exclude": [names[0], uuids[names[1]], "stranger"],
        "rules": [
            {"match": "*a*", "memory": {"weight": 2, "floor": "300M"}},
            {"match": names[2], "memory": {"floor": "700M"}, "vcpu": {"mode": "ignore"}},
            {"match": uuids[names[3]], "memory": {"mode": "grow-only"}},
            {"match": "elsewhere", "memory": {"mode": "ignore"}},
        ],
    }
    whole = bundle.read(json.dumps({"snapshots": snapshots, "policy": policy, "kvmsched": "0.1.0"}))
    first = whole.snapshots[0].domains[4]
    history = bundle.History(
        MemoryHistory("soft", {first.uuid: DomainHistory(1, first.balloon.actual_kib if first.balloon else 0)}),
        VcpuHistory(
            number=4,
            loads={f"{d.uuid}/{d.id}/0": Smoothed(0.4, 0.01) for d in whole.snapshots[0].domains},
            moves={f"{first.uuid}/1/0": PlannedPin(frozenset({1}), first.vcpus[0].pin, 0.0, 3)},
            backed_off={"10000000-0000-4000-8000-00000000000f": 9.0},
        ),
    )
    return bundle.Bundle(whole.snapshots, whole.policy, history, whole.kvmsched)


WORDS = ("zebra", "apple", "maple", "quartz", "brown", "yak", "delta", "omega", "kiwi", "nova")


@pytest.mark.parametrize("seed", seeds(3))
def test_an_anonymised_bundle_gives_the_same_plan_but_for_names(seed: int) -> None:
    whole = crowd(seed)
    hidden = bundle.anonymised(whole)
    before, after = whole.snapshots[-1].domains, hidden.snapshots[-1].domains
    said, meant = json.dumps(plans(hidden)), json.dumps(plans(whole)).replace("secret-host.example", "host")
    for old, new in zip(before, after):
        meant = meant.replace(old.uuid, new.uuid)
    for old, new in zip(before, after):
        meant = re.sub(rf"\b{old.name}\b", new.name, meant)
    # Rules that match nobody are left out of an anonymised bundle.
    meant, said = (re.sub(r'"(unmatched|idle_rules)": \[[^]]*\]', "", text) for text in (meant, said))
    assert said == meant
    assert '"after_kib"' in meant or seed, "the first one moves memory"
    assert len(plans(hidden)[0]["unmatched"]) == len(plans(whole)[0]["unmatched"]) == 2

    text = json.dumps(model.to_json(hidden))
    secrets = [d.name for d in before] + [d.uuid for d in before] + [whole.snapshots[0].host.uuid, "secret", "root@"]
    secrets += ["lost-one", "10000000-0000-4000-8000-00000000000f", "nobody", "stranger", "elsewhere"]
    assert [secret for secret in secrets if secret in text] == []
    jsonschema.Draft7Validator(SCHEMA).validate(json.loads(text))
    assert bundle.read(text) == hidden
    assert bundle.anonymised(hidden) == hidden


def test_the_names_of_cgroups_may_tell_of_customers() -> None:
    document = example()
    document["snapshots"][1]["host"]["rooms"] = [{"name": "/sys/fs/cgroup/acme.slice", "left_kib": 1048576}]
    document["snapshots"][1]["domains"][0]["balloon"]["rooms"] = ["/sys/fs/cgroup/acme.slice"]
    hidden = bundle.anonymised(bundle.read(json.dumps(document)))
    assert "acme" not in json.dumps(model.to_json(hidden))
    host, (domain, *_others) = hidden.snapshots[1].host, hidden.snapshots[1].domains
    assert domain.balloon and [room.name for room in host.rooms] == [*domain.balloon.rooms] == ["room-1"]


def test_what_is_told_of_files_addresses_and_slips_has_no_names() -> None:
    document = example()
    document["policy"] = {
        "daemon": {"metrics_listen": "kvm1.acme.example:9757", "metrics_textfile": "/srv/acme/k.prom"}
    }
    domain, other = document["snapshots"][1]["domains"][:2]
    domain["busy"] = "internal error: unable to connect to '/var/lib/libvirt/qemu/domain-3-acme-web/monitor.sock'"
    domain["owner"] = {"settings": {}, "error": "got element <acme-billing>, allowed: attributes only"}
    other["owner"] = {"settings": {"memory": "ignore-for-acme", "vcpu": "acme"}}
    whole = bundle.read(json.dumps(document))
    hidden = bundle.anonymised(whole)
    assert "acme" not in json.dumps(model.to_json(hidden))
    for ours, theirs in zip(plans(hidden), plans(whole)):
        assert [s["code"] for s in ours["skips"]] == [s["code"] for s in theirs["skips"]]


@pytest.mark.parametrize("number", ["1e999", "9" * 400])
def test_absurd_numbers_are_refused_in_one_line(number: str) -> None:
    text = json.dumps(example()).replace('"snapshots": [{', f'"snapshots": [{{"wall_s": {number}, ', 1)
    with pytest.raises(bundle.BundleError):
        bundle.read(text)


def test_a_slip_in_an_owner_s_metadata_stays_a_slip_without_its_words() -> None:
    document = example()
    document["snapshots"][1]["domains"][0]["owner"] = {"settings": {"floor": "1G", "customer": "ACME"}}
    whole = bundle.read(json.dumps(document))
    hidden = bundle.anonymised(whole)
    assert "ACME" not in json.dumps(model.to_json(hidden)) and "customer" not in json.dumps(model.to_json(hidden))
    assert [s["code"] for s in plans(hidden)[0]["skips"]] == [s["code"] for s in plans(whole)[0]["skips"]]


def test_room_that_was_to_be_kept_is_part_of_what_a_plan_depends_on() -> None:
    whole = bundle.read(json.dumps({**example(), "room": {"kib": 1 << 20, "cells": "0"}}))
    memory = bundle.plan_memory(whole, config.load(whole.policy)).plan
    assert memory.room is not None and (memory.room.kib, memory.room.cells) == (1 << 20, {0})
    assert bundle.read(bundle.write(whole)) == whole and bundle.anonymised(whole).room == whole.room
