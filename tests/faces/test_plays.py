# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Parts of the role and of the playbooks that need no hypervisor: run here, with what a host would say in its place."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from face import REPOSITORY
from plays import ansible_playbook

ROLE_VARIABLES = str(REPOSITORY / "roles/kvmsched/vars/main.yml")
THERE = {"stat": {"exists": True}}


def read_yaml(path: str) -> Any:
    return yaml.safe_load((REPOSITORY / path).read_text(encoding="utf-8"))


def run_tasks(
    directory: Path, tasks: list[Any], *options: str, hosts: dict[str, dict[str, Any]], **play: Any
) -> subprocess.CompletedProcess[str]:
    """Run *tasks* here, for *hosts* with these variables, in a play with these keywords."""
    (directory / "play.yml").write_text(json.dumps([{"hosts": "all", "gather_facts": False, **play, "tasks": tasks}]))
    variables = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    (directory / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts, "vars": variables}}))
    return ansible_playbook("--inventory", str(directory / "hosts.json"), str(directory / "play.yml"), *options)


# ---------------------------------------------------------------- a release that failed

SYSTEMCTL = """\
#!/bin/sh
for word; do
    case $word in
    kvmsched*) unit={place}/$word ;;
    [a-z]*) verb=$word ;;
    esac
done
case $verb in
show) echo LoadState=loaded; echo ActiveState=$(cat $unit.active); echo UnitFileState=$(cat $unit.enabled) ;;
is-enabled) cat $unit.enabled; grep -q enabled $unit.enabled ;;
enable | disable) echo ${{verb}}d > $unit.enabled ;;
start) echo active > $unit.active ;;
stop) echo inactive > $unit.active ;;
esac
"""
DAEMON, RESCUE = "kvmsched.service", "kvmsched-rescue.service"
# By what the hosts are called: how the daemon is, whether it starts at boot, and how its rescue is.
UNITS = {
    "runs": ("active", "enabled", "inactive"),
    "by-hand": ("active", "disabled", "inactive"),
    "failed": ("failed", "enabled", "active"),
    "off": ("inactive", "disabled", "inactive"),
}


@pytest.mark.parametrize("check", [(), ("--check",)])
def test_after_a_release_that_failed_the_daemon_is_as_it_was(check: tuple[str, ...], tmp_path: Path) -> None:
    """Nobody else looks after the guests. What would remove anything is left out here: this is no host of its own."""
    hosts, before = {}, {}
    for host, (active, enabled, rescue) in UNITS.items():
        place = tmp_path / host
        place.mkdir()
        (place / "systemctl").write_text(SYSTEMCTL.format(place=place))
        (place / "systemctl").chmod(0o755)
        states = {f"{DAEMON}.active": active, f"{DAEMON}.enabled": enabled, f"{RESCUE}.active": rescue}
        for name, state in {**states, f"{RESCUE}.enabled": "static"}.items():
            before[place / name] = state
            (place / name).write_text(state)
        hosts[host] = {"place": str(place)}
    tasks = read_yaml("roles/kvmsched/tasks/absent.yml")
    last = [task["name"] for task in tasks].index("Release the guests")
    done = run_tasks(
        tmp_path,
        tasks[: last + 1],
        *check,
        hosts=hosts,
        environment={"PATH": "{{ place }}:/usr/bin:/bin"},
        module_defaults={"group/kvmsched.kvm.kvmsched": {"uri": "nonsense:///x"}},
        vars={
            **dict.fromkeys(("__kvmsched_systemd", "__kvmsched_unit_before"), THERE),
            "__kvmsched_unit": str(tmp_path),
            "__kvmsched_document": {},
            "kvmsched_force_absent": False,
        },
    )
    assert {path: path.read_text().strip() for path in before} == before, done.stdout
    # What a release would come to can't be said beside a daemon that was not stopped.
    fail = {"off"} if check else set(UNITS)
    said = done.stdout.partition("Say which guests were not released")[2]
    for host in UNITS:
        assert (f"{host}]: FAILED! " in said) is (host in fail), done.stdout
    assert "Nothing was removed, for not all guests were released: " in said and "nonsense:///x" in said


# ---------------------------------------------------------------- what is refused before anything is done


def test_where_somebody_else_installs_all_packages_must_be_there(tmp_path: Path) -> None:
    """Also the last one, without which the daemon refuses to start."""
    tasks = read_yaml("roles/kvmsched/tasks/install.yml")
    look = [task for task in tasks if task["name"].startswith(("Look whether", "Refuse a host"))]
    hosts = {name: {"__kvmsched_packages": ["python3-json", f"python3-{name}"]} for name in ("json", "nonesuch")}
    done = run_tasks(tmp_path, look, hosts=hosts, vars={"kvmsched_manage_packages": False})
    assert "json]: FAILED! " not in done.stdout, done.stdout
    line = "nonesuch lacks some of python3-json, python3-nonesuch: ModuleNotFoundError: No module named 'nonesuch'"
    assert f"kvmsched_manage_packages is false, and {line}" in done.stdout, done.stdout


def test_what_systemd_would_not_take_may_not_scrape(tmp_path: Path) -> None:
    addresses = {
        True: ["10.1.2.3", "10.1.2.0/24", "255.0.0.1/32", "0.0.0.0/0", "2001:db8::/32", "::1/128", "fe80::1", "any"],
        False: ["10.1.2.300", "10.1.2.0/33", "10.1.2", "10.1.2.3/", "01.1.2.3", "::/129", "2001:db8::/", "host"],
    }
    hosts = {f"h{n}{good}": {"allow": one} for good in addresses for n, one in enumerate(addresses[good])}
    tasks = read_yaml("roles/kvmsched/tasks/preflight.yml")
    (refuse,) = [task for task in tasks if task["name"] == "Refuse what is no address among those who may scrape"]
    play = {"vars": {"kvmsched_metrics_allow": ["10.9.9.9", "{{ allow }}"]}, "vars_files": [ROLE_VARIABLES]}
    done = run_tasks(tmp_path, [refuse], hosts=hosts, **play)
    for host, given in hosts.items():
        assert (f"{host}]: FAILED! " in done.stdout) is host.endswith("False"), (given, done.stdout)


@pytest.mark.parametrize(
    ("group", "more", "refusal"),
    [
        ("hypervisors", (), ""),
        ("hypervisors", ("kvmsched_hosts=kvm",), "kvmsched_hosts: got 'kvm' from the inventory"),
        ("kvm", ("kvmsched_hosts=kvm",), "kvmsched_hosts: got 'kvm' from the inventory"),
        ("kvm", ("-e", "kvmsched_hosts=kvm"), ""),
        ("kvm", (), "No host matches 'hypervisors'"),
    ],
)
def test_hosts_that_the_plays_would_not_take_are_refused(
    group: str, more: tuple[str, ...], refusal: str, tmp_path: Path
) -> None:
    inventory = tmp_path / "hosts.ini"
    of_inventory = more if len(more) == 1 else ()
    inventory.write_text("\n".join((f"[{group}]", "prod1", "[all:vars]", *of_inventory, "")))
    done = ansible_playbook("-i", str(inventory), "playbooks/parts/some_host.yml", *(more if len(more) == 2 else ()))
    assert (done.returncode != 0) is bool(refusal) and refusal in done.stdout, done.stdout


def test_every_playbook_begins_with_that() -> None:
    for path in (REPOSITORY / "playbooks").glob("*.yml"):
        assert read_yaml(f"playbooks/{path.name}")[0].get("ansible.builtin.import_playbook") == "parts/some_host.yml"


# ---------------------------------------------------------------- the gate of a roll-out


def told(mode: str, effective: str, paused_s: float = 0) -> dict[str, Any]:
    status = {"mode": mode, "effective_mode": effective, "paused_until_s": paused_s}
    return {"kvmsched_before": {"rc": 0, "stdout": json.dumps(status)}}


def test_who_does_not_act_yet_observes_first(tmp_path: Path) -> None:
    """A pause is none of that: each run would change a host that is paused, there and back."""
    hosts = {
        "bare": {"kvmsched_before": {"rc": 2, "msg": "No such file"}},
        "observes": told("observe", "observe"),
        "may-not-act": told("act", "observe"),
        "acts": told("act", "act"),
        "gives": told("grow-only", "grow-only"),
        "paused": told("act", "observe", 4e9),
        "paused-and-observes": told("observe", "observe", 4e9),
    }
    (_begin, _answer, roll) = read_yaml("playbooks/rollout.yml")
    (outer,) = [task for task in roll["tasks"] if task["name"] == "Observe, then act"]
    gate = {key: value for key, value in outer["block"][0].items() if key != "block"}
    done = run_tasks(tmp_path, [{**gate, "ansible.builtin.debug": {"msg": "first"}}], hosts=hosts)
    first = {host for host in hosts if f"ok: [{host}]" in done.stdout}
    assert first == {"bare", "observes", "may-not-act", "paused-and-observes"}, done.stdout
