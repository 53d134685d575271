#!/usr/bin/env bash
# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# ansible-test sanity on a copy of the checkout, with whatever Python versions the machine has.
# usage: tests/sanity.sh [arguments of ansible-test sanity]
set -euo pipefail
cd "$(dirname "$0")/.."

build="$PWD/.build"
readonly build pythons="$build/pythons" home="$build/home"

# ansible-test looks for python3.Y in PATH, and believes version managers' stand-ins that run nothing.
# So give it links to interpreters that do run, among them all that pyenv has installed.
link_pythons() {
    local candidate version
    rm -rf "$pythons"
    mkdir -p "$pythons"
    for candidate in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.*/bin/python3.* {/usr,/usr/local}/bin/python3.*; do
        [[ ${candidate##*/} =~ ^python3\.[0-9]+$ ]] || continue
        version="$("$candidate" -c 'import ensurepip, sys; print("python3.%d" % sys.version_info[1])' 2>/dev/null)" || continue
        ln -sfn "$candidate" "$pythons/$version"
    done
}

# A home of its own keeps ansible-test's caches and environments in .build; pip stays as the user configured it.
make_home() {
    local name
    mkdir -p "$home/.ansible/test/cache"
    for name in .config .pip .cache; do
        [[ ! -e $HOME/$name ]] || ln -sfn "$HOME/$name" "$home/$name"
    done
}

# ansible-test downloads a script that brings pip into its environments. Where that is out of reach, each Python's own
# pip stands in: the packages themselves come from the package index either way.
provide_pip() {
    local version file
    version="$(grep -rhoE "pip_version = '[0-9.]+'|return '[0-9.]+'" "$("$build/venv/bin/python" -c \
        'import ansible_test, os; print(os.path.dirname(ansible_test.__file__))')/_internal/python_requirements.py" |
        grep -oE '[0-9.]+' | tail -n 1)"
    file="$home/.ansible/test/cache/get_pip_${version//./_}.py"
    [[ ! -e $file ]] || return 0
    reachable "https://ci-files.testing.ansible.com/ansible-test/get-pip-$version.py" || cp tests/get_pip.py "$file"
}
