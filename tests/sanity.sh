#!/usr/bin/env bash
# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# ansible-test sanity on a copy of the checkout, with whatever Python versions the machine has.
# usage: tests/sanity.sh [arguments of ansible-test sanity]
set -euo pipefail
cd "$(dirname "$0")/.."

build="${KVMSCHED_BUILD:-$PWD/.build}" # tests/matrix.py has one for each ansible-core
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

# A home of its own keeps ansible-test's caches and environments in .build. ansible-test hides the environment from pip,
# so what configures pip there goes into a file, over the user's own one.
make_home() {
    rm -rf "$home/.pip" "$home/.config"
    mkdir -p "$home/.ansible/test/cache" "$home/.pip" "$home/.config/pip"
    [[ ! -e $HOME/.config/pip/pip.conf ]] || cp "$HOME/.config/pip/pip.conf" "$home/.pip/pip.conf"
    {
        printf '%s\n' "[global]" "quiet = 2"
        env | sed -n 's/^PIP_\([A-Z_]*\)=/\1 = /p' | while read -r key rest; do
            key="${key,,}"
            echo "${key//_/-} $rest"
        done
        [[ -z ${https_proxy:-} ]] || echo "proxy = $https_proxy"
    } >"$home/.config/pip/pip.conf"
}

# ansible-test downloads a script that brings pip into its environments. Where that is out of reach, the pip that comes
# with each Python stands in. Packages come from pip's own index either way.
provide_pip() {
    local version url=https://ci-files.testing.ansible.com/ansible-test/get-pip-24.2.py
    "$build/venv/bin/python" -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1], timeout=10)' "$url" \
        2>/dev/null && return
    for version in 23_1_2 24_2 25_2; do # of ansible-core 2.17, of 2.18 and 2.19, of 2.20 and 2.21
        cp tests/get_pip.py "$home/.ansible/test/cache/get_pip_$version.py"
    done
}

link_pythons
make_home
provide_pip
tree="$(tests/tree.sh "$build/tree")"
cd "$tree"
HOME="$home" PATH="$build/venv/bin:$pythons:/usr/bin:/bin" ansible-test sanity --color no "$@"
