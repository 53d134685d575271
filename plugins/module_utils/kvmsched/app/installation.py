# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What of this package lies on a host, and how it gets there: the package itself, the command, the policy, its units.

Each release has a directory of its own, named by its version and its content, and ``current`` leads to the one that the
command uses. So a switch is one rename, a daemon goes on with the release that it began with, and a tree that was
changed under the same version is another release.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import pkgutil
import shutil
import stat
import tempfile
from dataclasses import dataclass
from typing import Any, Callable, Iterable, Iterator, Mapping, Optional

from .. import __version__, config
from . import cli as _cli  # only what is imported travels with an Ansible module

LIBRARY = "/usr/local/lib/kvmsched"
COMMAND = "/usr/local/bin/kvmsched"
_TRAVELS = (_cli,)

# The distribution's Python, whatever comes first in PATH; apart from what a user's environment and home bring in.
_SCRIPT = f"""\
#!/usr/bin/python3 -IB
# SPDX-License-Identifier: GPL-3.0-or-later
# The command of kvmsched. Which release it runs is settled here: a switch under way mixes nothing.
import os
import sys

sys.path.insert(0, os.path.realpath("{LIBRARY}/current"))
try:
    from kvmsched.app.cli import main
except KeyboardInterrupt:
    raise SystemExit(130) from None
raise SystemExit(main())
"""


@dataclass(frozen=True)
class Difference:
    """One thing that is not as it is to be: before and after as texts ("": not there), and what makes it so.

    ``part`` is package, command, policy or others.
    """

    part: str
    path: str
    before: str
    after: str
    make: Callable[[], None]


# ---------------------------------------------------------------- the package that runs here


def sources() -> dict[str, bytes]:
    """Return the files of this package by their path in it, wherever it was loaded from."""
    root = __name__.rpartition(".app.")[0]
    return {name: pkgutil.get_data(root, name) or b"" for name in sorted(_names(root))}


def _names(package: str, inside: str = "") -> Iterator[str]:
    yield f"{inside}__init__.py"
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if module.ispkg:
            yield from _names(f"{package}.{module.name}", f"{inside}{module.name}/")
        else:
            yield f"{inside}{module.name}.py"


def release(files: Mapping[str, bytes]) -> str:
    """Return the name of what these files make, such as ``0.1.0-3fb2a91c04de``."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name} {len(files[name])}\n".encode())
        digest.update(files[name])
    return f"{__version__}-{digest.hexdigest()[:12]}"


def policy_text(document: Mapping[str, Any]) -> str:
    """Return the policy as it lies on a host: the same document is always the same text."""
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


# ---------------------------------------------------------------- a host


class Root:
    """A file system that the package is installed into. Nothing is changed but by what its methods return."""

    def __init__(self, root: str = "/") -> None:
        self._root = root

    def present(
        self, files: Mapping[str, bytes], document: Optional[Mapping[str, Any]], others: Mapping[str, str]
    ) -> list[Difference]:
        """Return what makes *files* the package of this host, and *document* its policy; None: its policy stays.

        *others* are the texts of what else belongs to it, by their paths; one without text is not to be there.
        """
        differences = [*self._package(files), *self._file("command", COMMAND, _SCRIPT, 0o755)]
        for path, text in others.items():
            differences += self._file("others", path, text, 0o644) if text else self._without("others", path)
        if document is not None:
            differences += self._file("policy", config.INSTALLED, policy_text(document), 0o644)
            differences += self._directory("policy", os.path.dirname(config.INSTALLED))
        return differences

    def absent(self, others: Iterable[str]) -> list[Difference]:
        """Return what takes all of it away."""
        differences = [
            *self._without("command", COMMAND),
            *self._no_package(),
            *self._without("policy", config.INSTALLED),
        ]
        return [*differences, *(difference for path in others for difference in self._without("others", path))]

    def policy_hash(self) -> str:
        """Return the SHA-256 of the policy's bytes, as the daemon tells it; "" without one."""
        content = _content(self._path(config.INSTALLED))
        return "" if content is None else hashlib.sha256(content).hexdigest()

    def _path(self, path: str) -> str:
        return os.path.join(self._root, path.lstrip("/"))

    # ------------------------------------------------------------ the package

    def _package(self, files: Mapping[str, bytes]) -> Iterator[Difference]:
        library, name = self._path(LIBRARY), release(files)
        before = self._current()
        if not _holds(os.path.join(library, name), files):
            yield Difference("package", LIBRARY, before, name, lambda: self._switch(files))
        elif before != name or self._others(name):
            # The release is there: an installation was interrupted, or somebody turned the link back.
            yield Difference("package", LIBRARY, before, name, lambda: self._lead_to(name))
        else:
            yield from self._directory("package", LIBRARY)

    def _current(self) -> str:
        try:
            return os.readlink(os.path.join(self._path(LIBRARY), "current"))
        except OSError:
            return ""

    def _others(self, name: str) -> list[str]:
        """Return what the library has beside that release: older ones, and leftovers of a broken installation."""
        with contextlib.suppress(FileNotFoundError):
            return [other for other in os.listdir(self._path(LIBRARY)) if other not in ("current", name)]
        return []

    def _switch(self, files: Mapping[str, bytes]) -> None:
        library, name = self._path(LIBRARY), release(files)
        _make_directory(library)
        fresh = tempfile.mkdtemp(prefix=".new-", dir=library)
        for path, content in files.items():
            target = os.path.join(fresh, "kvmsched", path)
            _make_directory(os.path.dirname(target))
            with open(target, "wb") as file:
                file.write(content)
            os.chmod(target, 0o644)
        os.chmod(fresh, 0o755)
        place = os.path.join(library, name)
        if os.path.lexists(place):
            os.rename(place, tempfile.mkdtemp(prefix=".old-", dir=library))
        os.rename(fresh, place)
        self._lead_to(name)

    def _lead_to(self, name: str) -> None:
        library = self._path(LIBRARY)
        _open(library)
        link = os.path.join(library, ".current")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(link)
        os.symlink(name, link)
        os.replace(link, os.path.join(library, "current"))
        for other in self._others(name):
            _remove(os.path.join(library, other))

    def _no_package(self) -> Iterator[Difference]:
        library = self._path(LIBRARY)
        if os.path.lexists(library):
            yield Difference(
                "package", LIBRARY, self._current() or "an unfinished installation", "", lambda: _remove(library)
            )

    # ------------------------------------------------------------ single files, and our directories

    def _file(self, part: str, path: str, text: str, mode: int) -> Iterator[Difference]:
        target, content = self._path(path), text.encode()
        before = _content(target)

        def make() -> None:
            _make_directory(os.path.dirname(target))
            _replace(target, content, mode)

        if before != content:
            yield Difference(part, path, "" if before is None else before.decode(errors="replace"), text, make)
        elif _rights(target) != (mode, os.geteuid()):
            yield Difference(part, path, _told(*_rights(target)), _told(mode, os.geteuid()), make)

    def _directory(self, part: str, path: str) -> Iterator[Difference]:
        """Open a directory of ours that is there: what lies in it is of no use to those who can't come in."""
        target = self._path(path)
        if os.path.isdir(target) and _rights(target) != (0o755, os.geteuid()):
            yield Difference(part, path, _told(*_rights(target)), _told(0o755, os.geteuid()), lambda: _open(target))

    def _without(self, part: str, path: str) -> Iterator[Difference]:
        target = self._path(path)

        def make() -> None:
            _remove(target)
            directory = os.path.dirname(target)
            if os.path.basename(directory).startswith("kvmsched"):
                with contextlib.suppress(OSError):  # the directory is ours, what else lies in there is not
                    os.rmdir(directory)

        if os.path.lexists(target):
            yield Difference(part, path, (_content(target) or b"").decode(errors="replace"), "", make)


# ---------------------------------------------------------------- files


def _holds(place: str, files: Mapping[str, bytes]) -> bool:
    """Return whether just these *files* lie in the release *place*, and others can read them."""
    directory = os.path.join(place, "kvmsched")
    paths = {name: os.path.join(directory, name) for name in files}
    modes = {place: 0o755, **{os.path.dirname(path): 0o755 for path in paths.values()}}
    modes.update(dict.fromkeys(paths.values(), 0o644))
    return (
        set(_walk(directory)) == set(files)
        and all(_rights(path) == (mode, os.geteuid()) for path, mode in modes.items())
        and all(_content(paths[name]) == content for name, content in files.items())
    )


def _walk(directory: str) -> Iterable[str]:
    for place, directories, names in os.walk(directory):
        if "__pycache__" in directories:
            directories.remove("__pycache__")
        for name in names:
            yield os.path.relpath(os.path.join(place, name), directory)


def _content(path: str) -> Optional[bytes]:
    """Return what the file holds; None if there is none."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _rights(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return stat.S_IMODE(status.st_mode), status.st_uid


def _told(mode: int, owner: int) -> str:
    return f"mode {mode:04o}, owner {owner}\n"


def _open(directory: str) -> None:
    os.chown(directory, os.geteuid(), -1)
    os.chmod(directory, 0o755)


def _make_directory(path: str) -> None:
    """Make the directory, open to readers whatever the umask; one that is there stays as it is."""
    if not os.path.isdir(path):
        _make_directory(os.path.dirname(path))
        os.mkdir(path)
        os.chmod(path, 0o755)


def _replace(path: str, content: bytes, mode: int) -> None:
    """Write all of *content*, or leave what was there before."""
    # Made beside its place, not in /tmp: there it gets the place's own SELinux label.
    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".new-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)
