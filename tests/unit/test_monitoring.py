# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The alert rules, the dashboard and the scrape example that are shipped, held against what the daemon exports."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import memory_worlds
import pytest
import yaml
from kvmsched import config, lock
from kvmsched.app import journal, publish
from kvmsched.model import Outcome, Skip, Unmet
from kvmsched.passes import Result, Tick
from kvmsched.policy import memory, vcpu
from kvmsched.policy.vcpu.demand import measure
from vcpu_worlds import FakeHost, Guest, cpus, topology

REPOSITORY = Path(__file__).resolve().parents[2]
MONITORING = REPOSITORY / "monitoring"
PROMTOOL = REPOSITORY / ".build/prometheus/usr/bin/promtool"
RULES = [rule for group in yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
RULE_TEST_FILES = [REPOSITORY / "tests/unit" / name for name in ("alerts_test.yml", "alerts_of_days_test.yml")]
RULE_TESTS = "".join(path.read_text() for path in RULE_TEST_FILES)
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
PANELS = DASHBOARD["panels"]
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
ANNOTATIONS = DASHBOARD["annotations"]["list"]
# What Prometheus adds to each series of a scrape.
OF_SCRAPE = {"job", "instance"}
SELECTOR = re.compile(r"\b(kvmsched_\w+)(?:\{([^}]*)\})?")


def promtool(*arguments: str, cwd: Path = REPOSITORY) -> None:
    # It does not live long enough to need its garbage collected.
    calm = {**os.environ, "GOGC": "off"}
    done = subprocess.run([PROMTOOL, *arguments], cwd=cwd, env=calm, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def dashboard_queries() -> list[str]:
    queries = [target["expr"] for panel in PANELS for target in panel.get("targets", [])]
    queries += [annotation["expr"] for annotation in ANNOTATIONS]
    return queries + [variable["definition"] for variable in VARIABLES.values() if "definition" in variable]


def queries() -> list[str]:
    return [rule["expr"] for rule in RULES] + dashboard_queries()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, set[str]]]:
    """What a daemon exports that has seen all that can be: each name with its labels, and their values."""
    skips = tuple(Skip(code, code, code, "why") for code in ("hung", "busy", "ignored"))
    now = memory_worlds.snapshot([memory_worlds.domain("hog", 1024, 4096, usable=50, unused=40)])
    plan, learnt = memory.decide(memory_worlds.pair(now), config.MemoryPolicy())
    plan = replace(plan, unmet=(Unmet("hog", now.domains[0].uuid, 4096, "no more"),))
    fed = Result(replace(now, skips=skips), plan, learnt, Outcome(plan.moves), {"observe": 0.25})
    samples = FakeHost(topology(2), [Guest("web", [0.5, 0.25], [cpus("0"), cpus("0-1")])]).window()
    pins, past = vcpu.decide(samples, config.VcpuPolicy())
    even = Result(replace(samples[-1], skips=skips), pins, past, Outcome(pins.moves), {"observe": 0.25})
    loads = measure(samples)
    tick = Tick(replace(now, domains=(*now.domains, *samples[-1].domains), skips=skips), fed, even)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lock, "SYSTEM_DIRECTORY", str(tmp_path_factory.mktemp("run")))
        teller = publish.Publisher("qemu:///system", journal.Journal(io.StringIO()))
        teller.take(tick, loads, mode="act")
        teller.tell(config.Policy(), mode="act", effective_mode="act")
        text = teller.metrics.render().decode()
        teller.close()
    found: dict[str, dict[str, set[str]]] = {}
    for name, labels in re.findall(r"^(\w+)(?:\{(.*)\})? ", text, re.MULTILINE):
        values = found.setdefault(name, {})
        for label, value in re.findall(r'(\w+)="([^"]*)"', labels):
            values.setdefault(label, set()).add(value)
    return found


# ---------------------------------------------------------------- what Prometheus itself says


def test_prometheus_takes_the_rules_and_the_scrape_example() -> None:
    promtool("check", "rules", str(MONITORING / "alerts.yml"))
    promtool("check", "config", str(MONITORING / "prometheus.yml"))


def test_each_rule_fires_when_it_should_and_not_when_it_should_not() -> None:
    promtool("test", "rules", *map(str, RULE_TEST_FILES))
    fired = set(re.findall(r'ALERTS\{alertname="(\w+)", alertstate="firing"', RULE_TESTS))
    assert fired == {rule["alert"] for rule in RULES}


def test_prometheus_can_parse_every_query_of_the_dashboard(tmp_path: Path) -> None:
    concrete = [re.sub(r"\$(\w+)", "5m", query) for query in dashboard_queries() if "label_values" not in query]
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(concrete)]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", str(tmp_path / "rules.yml"))


# ---------------------------------------------------------------- what they ask for is there


@pytest.mark.parametrize("query", [*queries(), RULE_TESTS])
def test_what_is_asked_for_is_exported(query: str, exported: dict[str, dict[str, set[str]]]) -> None:
    known: set[str] = {"resource", *OF_SCRAPE} if "up{" in query else set(OF_SCRAPE)
    for name, matchers in SELECTOR.findall(query):
        assert name in exported, query
        known |= exported[name].keys()
        for label, operator, value in re.findall(r'(\w+)(=~?)"([^"]*)"', matchers):
            assert label in exported[name].keys() | OF_SCRAPE, (name, label)
            fixed = operator == "=" and label in ("mode", "reason", "resource", "result")
            assert not fixed or value in exported[name][label], (name, label, value)
    for labels in re.findall(r"\b(?:by|on|ignoring|without) \(([^)]*)\)", query):
        assert set(labels.split(", ")) <= known, query


def test_legends_and_annotations_name_labels_that_are_there(exported: dict[str, dict[str, set[str]]]) -> None:
    for panel in PANELS:
        for target in panel.get("targets", []):
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= labels_of(target["expr"], exported)
    for annotation in ANNOTATIONS:
        used = set(re.findall(r"\{\{(\w+)\}\}", annotation["titleFormat"] + annotation["textFormat"]))
        assert used <= labels_of(annotation["expr"], exported), annotation["name"]
    for rule in RULES:
        used = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
        assert used <= labels_of(rule["expr"], exported), rule["alert"]


def labels_of(query: str, exported: dict[str, dict[str, set[str]]]) -> set[str]:
    """The labels of what a query returns."""
    gone = {label for labels in re.findall(r"\bwithout \(([^)]*)\)", query) for label in labels.split(", ")}
    kept = re.findall(r"\bby \(([^)]*)\)", query)
    if kept:
        return set(kept[0].split(", "))
    return set(OF_SCRAPE).union(*(exported[name] for name, _matchers in SELECTOR.findall(query))) - gone


def test_nothing_that_is_exported_is_unknown_to_the_docs(exported: dict[str, dict[str, set[str]]]) -> None:
    """The table of docs/daemon.md names each metric; some share a stem, and what differs stands in braces."""
    text = (REPOSITORY / "docs/daemon.md").read_text()
    told = set()
    for name in re.findall(r"`([a-z_{},]+)`", text):
        stem, _brace, rest = name.partition("{")
        parts, _brace, end = rest.partition("}")
        told |= {f"kvmsched_{stem}{part}{end}" for part in parts.split(",")}
    names = {re.sub("_(sum|count)$", "", name) for name in exported if "_process_" not in name}
    assert names - told == set()


# ---------------------------------------------------------------- the dashboard itself


def test_the_dashboard_is_sound() -> None:
    text = json.dumps(PANELS)
    used = {name for name in re.findall(r"\$\{?(\w+)", text) if not name.startswith("__")}
    assert used == set(VARIABLES)
    ids = [panel["id"] for panel in PANELS]
    assert len(ids) == len(set(ids)) and len({panel["title"] for panel in PANELS}) >= len(PANELS) - 2
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}" and panel["fieldConfig"]["defaults"]["unit"]
            names = [target["refId"] for target in panel["targets"]]
            assert names and len(names) == len(set(names))


def test_the_docs_explain_every_alert() -> None:
    table: dict[str, Any] = dict(
        re.findall(r"^\| `(Kvmsched\w+)` \| (.*) \|$", (REPOSITORY / "docs/monitoring.md").read_text(), re.MULTILINE)
    )
    assert list(table) == [rule["alert"] for rule in RULES]
    for rule in RULES:
        assert {"summary", "description", "runbook_url"} == set(rule["annotations"]) and rule["labels"]["severity"]


def test_the_dashboard_leads_to_what_explains_a_time_that_is_over() -> None:
    """By a link to click, and by the same address in its description, as it says itself."""
    (link,) = DASHBOARD["links"]
    home = yaml.safe_load((REPOSITORY / "galaxy.yml").read_text())["repository"]
    page, anchor = link["url"].removeprefix(f"{home}/blob/main/").split("#")
    assert link["type"] == "link" and link["targetBlank"] and link["url"] in DASHBOARD["description"]
    sections = re.findall(r"^## (.+)\n((?:(?!## ).*\n)*)", (REPOSITORY / page).read_text(), re.MULTILINE)
    (text,) = (text for heading, text in sections if heading.lower().replace(" ", "-") == anchor)
    assert "--at 03:41" in text and "--at 03:41" in DASHBOARD["description"]


def test_every_panel_says_what_it_shows() -> None:
    assert not [panel["title"] for panel in PANELS if panel["type"] != "row" and not panel["description"]]
