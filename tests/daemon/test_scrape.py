# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real Prometheus scrapes a real daemon, and follows the rules that are shipped."""

from __future__ import annotations

import contextlib
import http
import json
import re
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from lab import Guest, Lab
from running import LISTEN, PATIENCE_S, POLL_S, REPOSITORY, policy, running

PROMETHEUS = REPOSITORY / ".build/prometheus/usr/bin/prometheus"
MONITORING = REPOSITORY / "monitoring"
ADDRESS = "127.0.0.1:19090"
CONFIGURATION = f"""
global: {{scrape_interval: 3s, scrape_timeout: 3s, evaluation_interval: 1s}}
rule_files: [alerts.yml]
scrape_configs:
  - job_name: kvmsched
    static_configs: [{{targets: ["{LISTEN}"]}}]
"""
# Several scrapes, of which some may be late.
WINDOW = "20s"
STARVED, HUNG = "kvmsched-test-starved", "kvmsched-test-hung"


def in_haste(rules: str) -> str:
    """The shipped rules, with seconds in the place of what they wait for."""
    return re.sub(r"\[\d+[mh]\]", f"[{WINDOW}]", re.sub(r"for: \d+[mhd]", "for: 3s", rules))


@contextlib.contextmanager
def prometheus(directory: Path) -> Iterator[None]:
    (directory / "prometheus.yml").write_text(CONFIGURATION, encoding="utf-8")
    (directory / "alerts.yml").write_text(in_haste((MONITORING / "alerts.yml").read_text()), encoding="utf-8")
    command = [str(PROMETHEUS), f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data"]
    server = subprocess.Popen([*command, f"--web.listen-address={ADDRESS}"], stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(directory / "data", ignore_errors=True)


def api(path: str, **parameters: str) -> Any:
    """What Prometheus answers; nothing while it starts. HTTPError where it can't understand the query."""
    try:
        with urllib.request.urlopen(f"http://{ADDRESS}/api/v1/{path}?{urllib.parse.urlencode(parameters)}") as answer:
            return json.load(answer)["data"]
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.SERVICE_UNAVAILABLE:
            raise
        return {}
    except (urllib.error.URLError, ConnectionError):
        return {}


def ask(query: str) -> list[Any]:
    """The result of an instant query."""
    return list(api("query", query=query).get("result", []))


def firing() -> dict[str, dict[str, Any]]:
    alerts = [alert for alert in api("alerts").get("alerts", []) if alert["state"] == "firing"]
    return {alert["labels"]["alertname"]: alert for alert in alerts}


def until(done: Callable[[], object], what: Callable[[], object]) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < end_s, what()
        time.sleep(POLL_S)


def wait(query: str) -> None:
    until(lambda: ask(query), lambda: f"Prometheus never saw {query}")


def wait_firing(*names: str) -> dict[str, dict[str, Any]]:
    until(lambda: set(names) <= firing().keys(), lambda: f"only these fire: {sorted(firing())}")
    return firing()


def wait_calm(*names: str) -> None:
    """Wait until none of them fires: a scrape that a busy machine answers late looks like one that nobody answers."""
    until(lambda: not set(names) & firing().keys(), lambda: f"these fire: {sorted(firing())}")


def dashboard_queries() -> list[str]:
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    whole = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    return [re.sub(r"\$(job|instance|domain)", ".+", query.replace("$__rate_interval", WINDOW)) for query in whole]


def test_a_real_prometheus_scrapes_it(tmp_path: Path) -> None:
    with running(policy({"mode": "observe", "period": 1})) as daemon, prometheus(tmp_path):
        wait('up{job="kvmsched"} == 1')
        wait('kvmsched_mode_effective{mode="observe"} == 1')
        wait(f'increase(kvmsched_passes_total{{resource="memory", result="ok"}}[{WINDOW}]) > 0')
        wait('time() - kvmsched_last_success_timestamp_seconds{resource="vcpu"} < 30')
        wait(f'rate(kvmsched_pass_duration_seconds_sum{{phase="observe", resource="memory"}}[{WINDOW}]) > 0')
        wait_calm("KvmschedDown", "KvmschedNoPass", "KvmschedOnlyObserves", "KvmschedPolicyRefused")
        daemon.reload("{")
        wait_firing("KvmschedPolicyRefused")
        daemon.end()
        wait_firing("KvmschedDown")


def test_guests_that_starve_or_hang_fire_their_alerts_and_every_query_finds_its_series(tmp_path: Path) -> None:
    document = policy({"period": 1}, memory={"starvation": "60M", "waste": "120M", "reclaim": "eager"}, deadline=2)
    with Lab() as lab:
        full = Guest(STARVED, memory_mib=192, hold_mib=110, cpu=[0.1])
        starved, hung = lab.start(full, Guest(HUNG, memory_mib=192, cpu=[0.1]))
        with running(document) as daemon, prometheus(tmp_path):
            alerts = wait_firing("KvmschedGuestStarved", "KvmschedMemoryUnmet")
            labels, annotations = (alerts["KvmschedGuestStarved"][part] for part in ("labels", "annotations"))
            assert labels["domain"] == STARVED and labels["instance"] == LISTEN
            assert re.fullmatch(rf"{STARVED} on {LISTEN} starves: [\d.]+MiB usable", annotations["summary"])
            daemon.wait(lambda: "at its limit 192M" in (daemon.domains()[STARVED]["unmet"] or ""), "to tell its limit")
            wait_calm("KvmschedGuestHangs")
            hung.signal_qemu(signal.SIGSTOP)
            try:
                wait_firing("KvmschedGuestHangs")
                daemon.wait(lambda: daemon.domains()[HUNG]["actual_kib"] is None, "to miss a guest")
                assert "QEMU does not answer" in daemon.domains()[HUNG]["memory_skip"]
                every_query_finds_its_series([*dashboard_queries(), *(rule["expr"] for rule in rules())])
            finally:
                hung.signal_qemu(signal.SIGCONT)
            starved.hold(20)
            wait_calm("KvmschedGuestStarved", "KvmschedMemoryUnmet", "KvmschedGuestHangs")


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def every_query_finds_its_series(queries: list[str]) -> None:
    for query in queries:
        if not re.search(" (>|>=|==) ", query):
            wait(query)
        for selector in re.findall(r"\b(?:up|kvmsched_\w+)(?:\{[^}]*\})?", query):
            wait(selector)
