# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is installed on a host, in a directory that stands for it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kvmsched.app import installation
from kvmsched.app.installation import COMMAND, LIBRARY, Difference, Root

PACKAGE = Path(installation.__file__).parents[1]
FILES = {"__init__.py": b"", "app/__init__.py": b"", "app/cli.py": b"def main(): return print('one') or 0\n"}
OTHER = {**FILES, "app/cli.py": b"def main(): return print('two') or 0\n"}
POLICY = {"vcpu": {"threshold": 7}, "memory": {"starvation": "60M"}}


@pytest.fixture(autouse=True)
def strict_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.fixture
def host(tmp_path: Path) -> Root:
    return Root(str(tmp_path))


def make(differences: list[Difference]) -> list[str]:
    for difference in differences:
        difference.make()
    return [difference.path for difference in differences]


def files(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


def test_all_of_the_package_travels() -> None:
    on_disk = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py")}
    assert set(installation.sources()) == on_disk
    assert installation.sources()["config.py"] == (PACKAGE / "config.py").read_bytes()


def test_nothing_is_done_by_asking(host: Root, tmp_path: Path) -> None:
    assert len(host.present(FILES, POLICY, {})) == 3 and not list(tmp_path.iterdir())


def test_installed_once_others_can_read_it_and_it_is_settled(host: Root, tmp_path: Path) -> None:
    assert make(host.present(FILES, POLICY, {})) == [LIBRARY, COMMAND, "/etc/kvmsched/policy.json"]
    assert not host.present(FILES, POLICY, {}) and not host.present(FILES, None, {})
    for path in tmp_path.rglob("*"):
        mode = stat.S_IMODE(path.lstat().st_mode)
        wanted = 0o755 if path.is_dir() or path.name == "kvmsched" else 0o644
        assert path.is_symlink() or mode == wanted, f"{path} {mode:o}"
    assert json.loads((tmp_path / "etc/kvmsched/policy.json").read_text()) == POLICY


def test_the_command_runs_the_release_that_it_began_with(host: Root, tmp_path: Path) -> None:
    make(host.present(FILES, None, {}))
    script = (tmp_path / COMMAND[1:]).read_text().replace(LIBRARY, str(tmp_path / LIBRARY[1:]))
    run = [sys.executable, "-c", script]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == "one\n"
    make(host.present(OTHER, None, {}))
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == "two\n"


def test_another_content_is_another_release_and_the_old_one_goes(host: Root, tmp_path: Path) -> None:
    make(host.present(FILES, None, {}))
    (difference,) = host.present(OTHER, None, {})
    assert difference.before == installation.release(FILES) != difference.after == installation.release(OTHER)
    difference.make()
    library = tmp_path / LIBRARY[1:]
    assert {path.name for path in library.iterdir()} == {"current", difference.after}
    assert (library / "current").resolve().name == difference.after


CLOSED = {"library": "", "release": "current", "package": "current/kvmsched", "part": "current/kvmsched/app"}
DAMAGES = ["changed", "gone", "added", "closed", "turned back", "half", *CLOSED, "library, turned back"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_mended(damage: str, host: Root, tmp_path: Path) -> None:
    make(host.present(FILES, None, {}))
    library = tmp_path / LIBRARY[1:]
    module = library / "current/kvmsched/app/cli.py"
    if damage == "changed":
        module.write_bytes(b"")
    elif damage == "gone":
        module.unlink()
    elif damage == "added":
        module.with_name("more.py").write_bytes(b"")
    elif damage == "closed":
        module.chmod(0o600)
    elif damage in CLOSED:
        (library / CLOSED[damage]).chmod(0o700)
    elif damage.endswith("turned back"):
        library.chmod(0o700 if damage.startswith("library") else 0o755)
        (library / "current").unlink()
        (library / "current").symlink_to("0.0.1")
    else:
        (library / ".new-1").mkdir()
    assert make(host.present(FILES, None, {})) == [LIBRARY]
    assert files(library / "current/kvmsched") == {name: content.decode() for name, content in FILES.items()}
    assert len(list(library.iterdir())) == 2 and not host.present(FILES, None, {})
    assert {stat.S_IMODE(path.stat().st_mode) for path in (library, *library.rglob("*/")) if path.is_dir()} == {0o755}


def test_what_python_compiled_is_no_damage(host: Root, tmp_path: Path) -> None:
    make(host.present(FILES, None, {}))
    cache = tmp_path / LIBRARY[1:] / "current/kvmsched/__pycache__"
    cache.mkdir()
    (cache / "x.pyc").write_bytes(b"")
    assert not host.present(FILES, None, {})


def test_the_same_policy_is_the_same_file(host: Root) -> None:
    make(host.present(FILES, POLICY, {}))
    before = host.policy_hash()
    assert not host.present(FILES, dict(reversed(POLICY.items())), {})
    (difference,) = host.present(FILES, {"vcpu": {"threshold": 8}}, {})
    assert (difference.part, json.loads(difference.before), json.loads(difference.after)) == (
        "policy",
        POLICY,
        {"vcpu": {"threshold": 8}},
    )
    difference.make()
    assert host.policy_hash() != before


def test_a_policy_that_nobody_else_can_read_is_opened(host: Root, tmp_path: Path) -> None:
    make(host.present(FILES, POLICY, {}))
    (tmp_path / "etc/kvmsched/policy.json").chmod(0o600)
    (difference,) = host.present(FILES, POLICY, {})
    assert "mode 0600" in difference.before and "mode 0644" in difference.after
    difference.make()
    assert not host.present(FILES, POLICY, {})


def test_a_policy_whose_directory_nobody_else_can_enter_is_opened(host: Root, tmp_path: Path) -> None:
    """As root made it by hand, with a umask of 077, before the installation or after it."""
    (tmp_path / "etc/kvmsched").mkdir(parents=True)
    make(host.present(FILES, POLICY, {}))
    assert not host.present(FILES, POLICY, {})
    (tmp_path / "etc").chmod(0o711)
    (tmp_path / "etc/kvmsched").chmod(0o700)
    (difference,) = host.present(FILES, POLICY, {})
    assert (difference.part, difference.path) == ("policy", "/etc/kvmsched")
    assert "mode 0700" in difference.before and "mode 0755" in difference.after
    difference.make()
    assert not host.present(FILES, POLICY, {})
    assert (tmp_path / "etc").stat().st_mode & 0o777 == 0o711, "what is not ours stays as it is"


def test_other_files_come_and_go_with_it(host: Root, tmp_path: Path) -> None:
    unit, drop_in = "/etc/systemd/system/kvmsched.service", "/etc/systemd/system/kvmsched.service.d/role.conf"
    assert make(host.present(FILES, None, {unit: "[Unit]\n", drop_in: "[Service]\n"}))[2:] == [unit, drop_in]
    assert not host.present(FILES, None, {unit: "[Unit]\n", drop_in: "[Service]\n"})
    (difference,) = host.present(FILES, None, {unit: "[Unit]\n", drop_in: ""})
    difference.make()
    assert (difference.part, difference.after) == ("others", "") and not (tmp_path / drop_in[1:]).parent.exists()
    make(host.absent([unit, drop_in]))
    assert (tmp_path / unit[1:]).parent.exists() and not files(tmp_path)


def test_absent_leaves_what_is_not_its_own(host: Root, tmp_path: Path) -> None:
    assert not host.absent([])
    make(host.present(FILES, POLICY, {}))
    (tmp_path / "etc/kvmsched/notes").write_text("mine")
    assert [difference.after for difference in host.absent([])] == ["", "", ""]
    make(host.absent([]))
    assert files(tmp_path) == {"etc/kvmsched/notes": "mine"} and not host.absent([]) and host.policy_hash() == ""
    make(host.present(FILES, POLICY, {}))
    (tmp_path / "etc/kvmsched/notes").unlink()
    make(host.absent([]))
    assert not (tmp_path / "etc/kvmsched").exists()


def test_what_cannot_be_written_leaves_what_was_there(
    host: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Injected: no full disk can be had here."""
    make(host.present(FILES, POLICY, {}))

    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(installation.os, "replace", full)
    for difference in host.present(OTHER, {}, {}):
        with pytest.raises(OSError, match="No space"):
            difference.make()
    assert json.loads((tmp_path / "etc/kvmsched/policy.json").read_text()) == POLICY
    assert (tmp_path / LIBRARY[1:] / "current/kvmsched/app/cli.py").read_bytes() == FILES["app/cli.py"]
    assert not [path for path in (tmp_path / "etc/kvmsched").iterdir() if path.name != "policy.json"]
    monkeypatch.undo()
    make(host.present(OTHER, {}, {}))
    assert not host.present(OTHER, {}, {})
