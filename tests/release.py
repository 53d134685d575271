# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The collection as a release: one version, one home, one tarball that is the same wherever it is built.

galaxy.yml is the source of both: ``stamp`` brings its version to the package, ``home URL`` a home to all links.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Optional

import yaml
from readme import README, commands

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "plugins/module_utils/kvmsched/__init__.py"
# Who tells the version, and where.
STAMPED = {PACKAGE: r'(?<=__version__ = ")[^"]*', README: r"(?<=kvmsched-kvm-)\S+(?=\.tar\.gz)"}
# Where nothing is: the home until the project has one. `make home URL=...` settles it.
PLACEHOLDER = "https://example.org/kvmsched/kvmsched"
JUDGE = ROOT / ".build/release/bin"


class Refused(Exception):
    """What can't be released; each of the arguments is one line."""


def galaxy(root: Path = ROOT) -> dict[str, Any]:
    return dict(yaml.safe_load((root / "galaxy.yml").read_text(encoding="utf-8")))


def run(*command: str, cwd: Path = ROOT, **environment: str) -> str:
    """What the command printed, untouched by Ansible settings of the caller; Refused with all of that if it failed."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**inherited, **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if done.returncode:
        raise Refused(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def git(*arguments: str) -> str:
    return run("git", "-c", "safe.directory=*", *arguments).strip()


# ---------------------------------------------------------------- one source


def stamp(root: Path = ROOT) -> None:
    """Give the package, and the tarball of README's lines, the version of galaxy.yml."""
    for path, place in STAMPED.items():
        file = root / path.relative_to(ROOT)
        file.write_text(re.sub(place, galaxy(root)["version"], file.read_text(encoding="utf-8")), encoding="utf-8")


def as_rst(text: str) -> str:
    """A fragment's *text* without the markup of module documentation, which stays raw in a change log."""
    return re.sub(r"\b(?:O|RV|V|C|I|B)\(([^()]*)\)", r"``\1``", text)


def changelog() -> None:
    """Bring the fragments into the change log, under the version of galaxy.yml."""
    for path in (ROOT / "changelogs/fragments").glob("*.y*ml"):
        path.write_text(as_rst(path.read_text(encoding="utf-8")), encoding="utf-8")
    print(run("antsibull-changelog", "release", "--update-existing").strip())


def homed(root: Path = ROOT) -> Iterator[Path]:
    """The files that name the home."""
    home = galaxy(root)["repository"].encode()
    for name in git("ls-files").splitlines():
        path = root / name
        if path.is_file() and not path.is_symlink() and name != "tests/release.py" and home in path.read_bytes():
            yield path


def move_home(url: str, root: Path = ROOT) -> None:
    """Let every link that leads home lead to *url*."""
    old = galaxy(root)["repository"]
    if not re.fullmatch(r"https://[\w.-]+/[\w./-]*\w", url):
        raise Refused(f"home: got {url!r}, allowed: https://HOST/PATH without a slash at its end")
    for path in list(homed(root)):
        path.write_bytes(path.read_bytes().replace(old.encode(), url.encode()))
        print(path.relative_to(root))
    # The documentation site makes a link of its own of where the repository is on its host.
    links = root / "docs/docsite/links.yml"
    there = f"repository: {on_its_host(url)}\n"
    links.write_text(links.read_text().replace(f"repository: {on_its_host(old)}\n", there))


def on_its_host(url: str) -> str:
    return url.split("/", 3)[3]


def disagreements(root: Path = ROOT) -> Iterator[str]:
    """What is not of one version, a line each."""
    version = galaxy(root)["version"]
    told = re.search(r'__version__ = "([^"]*)"', (root / PACKAGE.relative_to(ROOT)).read_text(encoding="utf-8"))
    if not told or told[1] != version:
        yield f"the package says {told and told[1]}, galaxy.yml {version}: make stamp"
    changes = yaml.safe_load((root / "changelogs/changelog.yaml").read_text(encoding="utf-8"))
    if version not in changes["releases"]:
        yield f"changelogs/changelog.yaml has no {version}: make changelog"
    anchor = "v" + version.replace(".", "-")
    if f'<a id="{anchor}"></a>' not in (root / "CHANGELOG.md").read_text(encoding="utf-8"):
        yield f"CHANGELOG.md has no {version}: make changelog"
    for fragment in sorted((root / "changelogs/fragments").glob("*.y*ml")):
        yield f"changelogs/fragments/{fragment.name} is in no release: make changelog"


def not_ready() -> Iterator[str]:
    """What keeps this checkout from being published; a dry run goes on all the same."""
    version = galaxy()["version"]
    if galaxy()["repository"] == PLACEHOLDER:
        yield f"the home is a placeholder ({PLACEHOLDER}): make home URL=https://..."
    if changed := git("status", "--porcelain"):
        yield f"not everything is committed: {changed.splitlines()[0].strip()}"
    if version not in git("tag", "--points-at", "HEAD").splitlines():
        yield f"this commit has no tag {version}: git tag -s {version}"


# ---------------------------------------------------------------- the tarball


def build(place: Path, epoch_s: int) -> Path:
    """The tarball of this checkout, made in *place*: the same bytes for the same files, whenever and wherever."""
    tree = Path(run("tests/tree.sh", str(place / "tree")).strip())
    tool = str(Path(sys.executable).with_name("ansible-galaxy"))
    run(tool, "collection", "build", "--force", "--output-path", str(place), cwd=tree)
    (tarball,) = place.glob("*.tar.gz")
    repack(tarball, epoch_s)
    shutil.rmtree(place / "tree")
    return tarball


def repack(tarball: Path, epoch_s: int) -> None:
    """Sort what ansible-galaxy packed as it found it, and take out clocks and owners; the manifests follow."""
    with tarfile.open(tarball) as archive:
        members = [(member, _content(archive, member)) for member in archive.getmembers()]
    contents = {member.name: content for member, content in members}
    listed = json.loads(contents["FILES.json"] or b"")
    listed["files"].sort(key=lambda file: str(file["name"]))
    files = _json(listed)
    manifest = json.loads(contents["MANIFEST.json"] or b"")
    manifest["file_manifest_file"]["chksum_sha256"] = hashlib.sha256(files).hexdigest()
    contents.update({"FILES.json": files, "MANIFEST.json": _json(manifest)})
    first = {"MANIFEST.json": 0, "FILES.json": 1}  # a reader of the stream finds them at once
    members.sort(key=lambda pair: (first.get(pair[0].name, 2), pair[0].name))
    with (
        tarball.open("wb") as raw,
        gzip.GzipFile("", "wb", 9, raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for member, _old in members:
            _add(archive, member, contents[member.name], epoch_s)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Optional[bytes]:
    file = archive.extractfile(member) if member.isfile() else None
    return file.read() if file else None


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode()


def _add(archive: tarfile.TarFile, member: tarfile.TarInfo, content: Optional[bytes], epoch_s: int) -> None:
    plain = tarfile.TarInfo(member.name)
    plain.type, plain.linkname, plain.mtime = member.type, member.linkname, epoch_s
    plain.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
    plain.size = len(content or b"")
    archive.addfile(plain, io.BytesIO(content or b""))


def epoch() -> int:
    """When the sources were made: SOURCE_DATE_EPOCH, else the time of the commit."""
    return int(os.environ.get("SOURCE_DATE_EPOCH") or git("log", "-1", "--format=%ct"))


# ---------------------------------------------------------------- what judges it


def imported(tarball: Path, lint: bool = True) -> str:
    """What galaxy-importer, which Galaxy runs on an upload, says of the tarball; Refused if it is not content."""
    with tempfile.TemporaryDirectory(prefix="kvmsched-importer-") as home:
        settings = {"GALAXY_IMPORTER_CHECK_REQUIRED_TAGS": "1", "GALAXY_IMPORTER_RUN_ANSIBLE_LINT": str(int(lint))}
        path = f"{JUDGE}:/usr/bin:/bin"
        # A home of its own: it writes importer_result.json and caches where it is.
        log = run(
            *(str(JUDGE / "python"), "-m", "galaxy_importer.main", str(tarball)),
            cwd=Path(home),
            **{**settings, "HOME": home, "PATH": path},
        )
    if bad := [line for line in log.splitlines() if re.match(r"(WARNING|ERROR|CRITICAL|Traceback)", line)]:
        raise Refused("galaxy-importer is not content:", *bad)
    if "Importer processing completed successfully" not in log:
        raise Refused(f"galaxy-importer did not come to its end:\n{log}")
    return log


def installed(tarball: Path) -> str:
    """Type README's lines to install the tarball in an empty home, and verify what lies there by its manifest."""
    with tempfile.TemporaryDirectory(prefix="kvmsched-home-") as home:
        shutil.copy(tarball, home)
        there = {"HOME": home, "ANSIBLE_NOCOLOR": "1"}
        said = [run("bash", "-c", line, cwd=Path(home), **there) for line in commands("Install it", "tarball")]
        if not any("installed successfully" in text for text in said):
            raise Refused("README's lines installed nothing:", *said)
        return run("ansible-galaxy", "collection", "verify", "--offline", "kvmsched.kvm", cwd=Path(home), **there)


def release(dry_run: bool) -> None:
    """Build the tarball twice, hold it against all that it has to be, and leave it in .build/dist."""
    faults = [*disagreements(), *([] if dry_run else not_ready())]
    if faults:
        raise Refused(*faults)
    for line in not_ready():
        print(f"dry run: {line}")
    with tempfile.TemporaryDirectory(prefix="kvmsched-release-") as first, tempfile.TemporaryDirectory() as second:
        epoch_s = epoch()
        one, two = (build(Path(place), epoch_s) for place in (first, second))
        sums = [hashlib.sha256(tarball.read_bytes()).hexdigest() for tarball in (one, two)]
        if sums[0] != sums[1]:
            raise Refused(f"two builds differ: {sums[0]} and {sums[1]}")
        print(imported(one).strip())
        print(installed(one).strip())
        dist = ROOT / ".build/dist"
        dist.mkdir(parents=True, exist_ok=True)
        shutil.copy(one, dist)
    print(f"{sums[0]}  .build/dist/{one.name}" + (" (dry run)" if dry_run else ""))


def judge_checkout() -> None:
    """Let galaxy-importer judge what this checkout would be, released or not."""
    with tempfile.TemporaryDirectory(prefix="kvmsched-release-") as place:
        imported(build(Path(place), epoch()), lint=False)  # `make docs` lints the checkout itself


def main(arguments: Optional[Iterable[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(dest="task", required=True)
    tasks.add_parser("stamp", help="give the package the version of galaxy.yml")
    tasks.add_parser("changelog", help="bring the fragments into the change log")
    tasks.add_parser("home", help="set where the project is at home").add_argument("url")
    tasks.add_parser("importer", help="let galaxy-importer judge this checkout")
    tasks.add_parser("release", help="build and judge a release").add_argument("--dry-run", action="store_true")
    options = parser.parse_args(None if arguments is None else list(arguments))
    try:
        if options.task == "stamp":
            stamp()
        elif options.task == "changelog":
            changelog()
        elif options.task == "home":
            move_home(options.url)
        elif options.task == "importer":
            judge_checkout()
        else:
            release(options.dry_run)
    except Refused as refusal:
        print(*(f"release: {line}" for line in refusal.args), sep="\n", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
