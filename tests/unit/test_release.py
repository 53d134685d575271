# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A release: one version and one home in all files, and a tarball whose bytes depend on its files alone."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
from pathlib import Path

import pytest
import release
from kvmsched import __version__

CONTENTS = {"README.md": b"read me", "bin/run": b"#!/bin/sh\n", "plugins/a.py": b"a = 1\n", "plugins/b.py": b""}


def tarball(place: Path, seed: int) -> Path:
    """A collection as ansible-galaxy packs it: in the order of the disk, with this machine's clock and owners."""
    chance = random.Random(seed)
    names = list(CONTENTS)
    chance.shuffle(names)
    files = json.dumps({"files": [{"name": name} for name in names], "format": 1}).encode()
    manifest = {"file_manifest_file": {"name": "FILES.json", "chksum_sha256": hashlib.sha256(files).hexdigest()}}
    contents = {"MANIFEST.json": json.dumps(manifest).encode(), "FILES.json": files}
    contents.update({name: CONTENTS[name] for name in names})
    path = place / f"{seed}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime, member.uid = len(content), chance.randrange(2**31), chance.randrange(1000)
            member.mode = 0o775 if name == "bin/run" else chance.choice([0o600, 0o644, 0o664])
            archive.addfile(member, io.BytesIO(content))
    return path


def test_the_same_files_give_the_same_bytes_whoever_packs_them_when(tmp_path: Path) -> None:
    paths = [tarball(tmp_path, seed) for seed in range(4)]
    assert len({path.read_bytes() for path in paths}) == 4
    for path in paths:
        release.repack(path, 1_700_000_000)
    assert len({path.read_bytes() for path in paths}) == 1
    with tarfile.open(paths[0]) as archive:
        found = {member.name: member for member in archive.getmembers()}
        read = {name: getattr(archive.extractfile(name), "read", bytes)() for name in found}
    assert {name: read[name] for name in CONTENTS} == CONTENTS
    assert found["bin/run"].mode == 0o755 and found["README.md"].mode == 0o644
    told = json.loads(read["MANIFEST.json"])["file_manifest_file"]["chksum_sha256"]
    assert told == hashlib.sha256(read["FILES.json"]).hexdigest(), "the manifest follows what was sorted"


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """What tells the version, of a release that is all right."""
    (tmp_path / "changelogs/fragments").mkdir(parents=True)
    (tmp_path / "galaxy.yml").write_text("version: 1.2.0\n")
    (tmp_path / "CHANGELOG.md").write_text('<a id="v1-2-0"></a>\n')
    (tmp_path / "changelogs/changelog.yaml").write_text("releases:\n  1.2.0: {}\n")
    package = tmp_path / release.PACKAGE.relative_to(release.ROOT)
    package.parent.mkdir(parents=True)
    package.write_text('__version__ = "1.2.0"\n')
    assert not list(release.disagreements(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("galaxy.yml", "version: 1.3.0\n", "make stamp"),
        (str(release.PACKAGE.relative_to(release.ROOT)), '__version__ = "1.1.0"\n', "make stamp"),
        ("CHANGELOG.md", '<a id="v1-1-0"></a>\n', "CHANGELOG.md has no 1.2.0"),
        ("changelogs/changelog.yaml", "releases:\n  1.1.0: {}\n", "changelog.yaml has no 1.2.0"),
        ("changelogs/fragments/new.yml", "---\nbugfixes: [kvmsched - one]\n", "new.yml is in no release"),
    ],
)
def test_what_is_of_another_version_is_told(released: Path, file: str, text: str, told: str) -> None:
    (released / file).write_text(text)
    assert any(told in line for line in release.disagreements(released))


def test_a_stamp_brings_one_version_to_all_that_tells_it(released: Path) -> None:
    (released / "galaxy.yml").write_text("version: 1.3.0-rc.1\n")
    (released / "README.md").write_text("install ./kvmsched-kvm-1.2.0.tar.gz and kvmsched.kvm\n")
    release.stamp(released)
    assert (released / release.PACKAGE.relative_to(release.ROOT)).read_text() == '__version__ = "1.3.0-rc.1"\n'
    assert (released / "README.md").read_text() == "install ./kvmsched-kvm-1.3.0-rc.1.tar.gz and kvmsched.kvm\n"


def test_the_package_has_the_version_of_the_collection() -> None:
    assert __version__ == release.galaxy()["version"]


def test_every_link_home_begins_with_the_one_home() -> None:
    values = release.galaxy()
    for name in ("issues", "documentation", "homepage"):
        assert values[name].startswith(values["repository"]), name
    assert "galaxy.yml" in {path.name for path in release.homed()}


def test_all_that_leads_home_moves_with_it(tmp_path: Path) -> None:
    old, new = release.galaxy()["repository"], "https://forge.example.net/people/balance"
    for path in release.homed():
        copy = tmp_path / path.relative_to(release.ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    release.move_home(new, tmp_path)
    told = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.rglob("*") if path.is_file()}
    assert {"galaxy.yml", "README.md", "alerts.yml", "dashboard.json", "links.yml", "config.yml"} <= set(told)
    assert [name for name, text in told.items() if old in text or release.on_its_host(old) in text] == []
    assert "repository: people/balance\n" in told["links.yml"] and f"repository: {new}\n" in told["galaxy.yml"]
    with pytest.raises(release.Refused, match="allowed: https://HOST/PATH"):
        release.move_home("http://forge.example.net/", tmp_path)


def test_the_change_log_has_no_module_markup() -> None:
    text = "  - kvm_vcpu_pin - O(floating=auto) of V(a) and RV(left[].kib), in C(docs/); not f(x) or PINNED(x).\n"
    told = "  - kvm_vcpu_pin - ``floating=auto`` of ``a`` and ``left[].kib``, in ``docs/``; not f(x) or PINNED(x).\n"
    assert release.as_rst(text) == told == release.as_rst(told)
