# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Malformed options, hundreds of them: each is refused in one line that names the option, and nothing is changed.

The modules run in this process, over libvirt's test driver, whose domain must stay as it is.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from typing import Any

import libvirt
import pytest
from ansible.module_utils.testing import patch_module_args
from face import REPOSITORY

TEST = "test:///default"
ODD = ["", " ", "lots", "1;2", "\u202e1", "None", "0x10", [], {}, [1], {"a": 1}]
# Python takes these for digits: a float of Ansible's may be written so, a size or a set of CPUs not.
FOREIGN = ["\u0663\u0660", "\uff11\uff15\uff10"]
SIZES = [
    *(*ODD, *FOREIGN, "1\n2", "-5M", "300", "1MB", "1.5.2G", "nan", "inf", "1e3M", "nanM"),
    *("101%", "-1%", "5%%", "99999T", "9" * 400 + "G"),
]
FLOATS = [*ODD, "1\n2", "nan", "inf", "-inf", "-1", -0.5, "1e999", "1,5", "9" * 400]
INTEGERS = [*ODD, "1\n2", "nan", "-1", 1.5, -3, 10**30]
CPUSETS = [*ODD, *FOREIGN, "1\n2", "0-", "-1", "a", "0-1-2", "1-0", "0,,1", "^0", "0-99999999999", "0 1", "0-1,"]
WORDS = [*ODD, "greedy", "FAIR", "fair ", 5, True]
LISTS = [{"a": 1}, [83], ["a", True], [None], [["a"]]]
URIS = ["", " ", "lots", "qemu+ssh://[::1/system", "qemu+ssh://h\u2100st/system", "test:///default\n", "test:///a\0b"]
RULES = [
    [{}],
    [{"match": ""}],
    [{"match": 5, "memory": {"floor": "x"}}],
    [{"match": "a", "disk": {}}],
    [{"match": "a", "memory": {"florr": "1G"}}],
    [{"match": "a", "memory": {"mode": "off"}}],
    [{"match": "a", "memory": {"weight": "nan"}}],
    [{"match": "a", "memory": {"weight": -1}}],
    [{"match": "a", "memory": {"weight": 1e300}}],
    [{"match": "a", "memory": {"reclaim": "eager"}}],
    [{"match": "a", "vcpu": {"mode": "float"}}],
    [{"match": "a", "vcpu": {"pcpus": "0-"}}],
    [{"match": "a", "vcpu": {"widen": "maybe"}}],
    *([{"match": "a", "memory": {"ceiling": size}}] for size in SIZES if isinstance(size, str)),
]
CASES: dict[str, dict[str, list[Any]]] = {
    "kvm_mem_balance": {
        **dict.fromkeys(("starvation", "waste", "host_reserve", "floor"), SIZES),
        "room": [size for size in SIZES if size != "0"],
        **dict.fromkeys(("deadline", "lock_timeout", "arrival_timeout"), FLOATS),
        **dict.fromkeys(("strategy", "reclaim", "cache", "state"), WORDS),
        **dict.fromkeys(("domains", "exclude"), LISTS),
        "stats_period": INTEGERS,
        "uri": URIS,
        "rules": RULES,
        "no_such_option": ["1"],
    },
    "kvm_vcpu_pin": {
        **dict.fromkeys(("pcpus", "reserved"), CPUSETS),
        **dict.fromkeys(("deadline", "lock_timeout", "interval", "threshold"), FLOATS),
        **dict.fromkeys(("granularity", "floating", "emulator", "state"), WORDS),
        "max_moves": INTEGERS,
        "uri": URIS,
        "no_such_option": ["1"],
    },
    "kvm_sched_info": {
        **dict.fromkeys(("deadline", "interval"), FLOATS),
        "subsets": [["cpu"], [""], [5]],
        "uri": URIS,
        "no_such_option": ["1"],
    },
}
FLAT = [
    pytest.param(module, option, value, id=f"{module}-{option}-{number}")
    for module, options in CASES.items()
    for option, values in options.items()
    for number, value in enumerate(values)
]


@pytest.fixture(scope="module", autouse=True)
def nothing_changes() -> Iterator[None]:
    sys.path.insert(0, str(REPOSITORY / ".ansible" / "collections"))
    with_domain = libvirt.open(TEST)  # the state of test:///default lives while a connection to it does
    before = with_domain.listAllDomains()[0].XMLDesc(0)
    yield
    assert with_domain.listAllDomains()[0].XMLDesc(0) == before
    with_domain.close()


@pytest.mark.parametrize(("module", "option", "value"), FLAT)
def test_it_is_refused_in_one_line(capsys: pytest.CaptureFixture[str], module: str, option: str, value: Any) -> None:
    main = importlib.import_module(f"ansible_collections.kvmsched.kvm.plugins.modules.{module}").main
    with patch_module_args({"uri": TEST, option: value}), pytest.raises(SystemExit):
        main()
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer.get("failed") and not answer.get("changed"), answer
    line = answer["msg"]
    assert "\n" not in line and "Traceback" not in line and len(line) < 700, line
    assert option in line, line
