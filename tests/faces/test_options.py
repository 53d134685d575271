# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What modules make of options and of Ansible's own, in this process: in check mode, so nothing of it is touched."""

from __future__ import annotations

import importlib
import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from face import REPOSITORY

COLLECTION = "ansible_collections.kvmsched.kvm.plugins"


@pytest.fixture(autouse=True)
def collection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / ".ansible/collections"))


def answer(capsys: pytest.CaptureFixture[str], module: str, **options: Any) -> dict[str, Any]:
    main = importlib.import_module(f"{COLLECTION}.modules.{module}").main
    with patch_module_args({"_ansible_check_mode": True, **options}), pytest.raises(SystemExit):
        main()
    return dict(json.loads(capsys.readouterr().out.splitlines()[-1]))


@pytest.mark.parametrize("state", ["present", "absent"])
@pytest.mark.parametrize(("text", "told"), [(5, "5"), (None, "None"), (["a"], "['a']")])
def test_what_is_no_text_is_no_file(state: str, text: Any, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = answer(capsys, "kvm_sched_install", state=state, files={"/nowhere/x": text})
    assert said.get("failed") and said["msg"] == f"files: /nowhere/x: got {told}, allowed: a text"


@pytest.mark.parametrize("wanted", [True, False])
def test_a_diff_is_there_for_who_asks_for_it(wanted: bool, capsys: pytest.CaptureFixture[str]) -> None:
    said = answer(capsys, "kvm_sched_install", _ansible_diff=wanted, files={"/nowhere/x": "a"})
    assert said["changed"] and ("diff" in said) is wanted
    said = answer(capsys, "kvm_mem_balance", _ansible_diff=wanted, uri="test:///default", rules=[])
    assert said["changed"] and ("diff" in said) is wanted


@pytest.mark.parametrize(
    ("params", "installed", "sought"),
    [
        ({"rules": [{"match": "a"}], "uri": "test:///default"}, None, ["libvirt, jsonschema"]),
        ({"rules": None, "uri": "test:///default"}, "/p.json", ["libvirt, jsonschema"]),
        ({"rules": None, "uri": "test:///default"}, None, []),
        ({"rules": None, "uri": "qemu+ssh://kvm2/system"}, "/p.json", []),
        ({"rules": [], "uri": "test:///default"}, "/p.json", []),
        ({"uri": "test:///default"}, "/p.json", []),
    ],
)
def test_who_reads_a_document_goes_on_where_that_can_be_done(
    params: dict[str, Any], installed: str | None, sought: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a Python that has libvirt alone, as a virtual environment does."""
    face = importlib.import_module(f"{COLLECTION}.module_utils.ansible_face")
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    monkeypatch.setattr(face.config, "installed", lambda: installed)
    probed: list[str] = []
    monkeypatch.setattr(face, "probe_interpreters_for_module", lambda _paths, name: probed.append(name))
    face.require_libvirt(SimpleNamespace(params=params))
    assert probed == sought
