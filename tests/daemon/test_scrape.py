# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real Prometheus scrapes a real daemon."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import LISTEN, PATIENCE_S, POLL_S, REPOSITORY, Daemon, policy, running

PROMETHEUS = REPOSITORY / ".build/prometheus/usr/bin/prometheus"
ADDRESS = "127.0.0.1:19090"
CONFIGURATION = f"""
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
  - job_name: kvmsched
    static_configs: [{{targets: ["{LISTEN}"]}}]
"""


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with running(policy({"mode": "observe", "period": 1})) as daemon:
        yield daemon


@pytest.fixture
def prometheus(daemon: Daemon, tmp_path: Path) -> Iterator[None]:
    (tmp_path / "prometheus.yml").write_text(CONFIGURATION, encoding="utf-8")
    command = [str(PROMETHEUS), f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    server = subprocess.Popen([*command, f"--web.listen-address={ADDRESS}"], stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        server.terminate()
        server.wait()


def ask(query: str) -> list[float]:
    """The values of an instant query; none while there is no answer yet."""
    try:
        with urllib.request.urlopen(
            f"http://{ADDRESS}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        ) as answer:
            return [float(row["value"][1]) for row in json.load(answer)["data"]["result"]]
    except (urllib.error.URLError, ConnectionError):
        return []


def wait(query: str) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not ask(query):
        assert time.monotonic() < end_s, f"Prometheus never saw {query}"
        time.sleep(POLL_S)


def test_a_real_prometheus_scrapes_it(daemon: Daemon, prometheus: None) -> None:
    wait('up{job="kvmsched"} == 1')
    wait('kvmsched_mode_effective{mode="observe"} == 1')
    wait('increase(kvmsched_passes_total{resource="memory", result="ok"}[10s]) > 0')
    wait('time() - kvmsched_last_success_timestamp_seconds{resource="vcpu"} < 30')
    wait('rate(kvmsched_pass_duration_seconds_sum{phase="observe", resource="memory"}[10s]) > 0')
    daemon.end()
    wait('up{job="kvmsched"} == 0')
