#!/usr/bin/env bash
# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
#     tests/prepare.sh [demo|page]
#
# Makes .build/venv with the tools of tests/requirements.txt, .build/release with what judges a release, .build/spelling,
# and installs the distribution's packages that they need. Does nothing, quickly, where all is there. "demo": no
# more than .build/venv. "page": also Chromium and matplotlib, which `make page` alone needs.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly python=/usr/bin/python3 prometheus=.build/prometheus log=$PWD/.build/prepare.log

say() { printf '== %s\n' "$*"; }

fail() {
    printf 'prepare: %s\n' "$*" >&2
    exit 1
}

# Run a command quietly; show what it said only if it fails.
quietly() {
    "$@" >>"$log" 2>&1 || {
        tail -n 30 "$log" >&2
        fail "failed: $*"
    }
}

missing_packages() {
    [[ -x $python ]] || echo python3
    "$python" -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
    "$python" -c 'import libvirt' 2>/dev/null || echo python3-libvirt
    "$python" -c 'import jsonschema' 2>/dev/null || echo python3-jsonschema
    "$python" -c 'import systemd' 2>/dev/null || echo python3-systemd
    command -v git >/dev/null || echo git
    command -v shellcheck >/dev/null || echo shellcheck
}

install_packages() {
    command -v apt-get >/dev/null || fail "install what provides these on your distribution: $*"
    [[ $EUID -eq 0 ]] || fail "packages are missing, as root: apt-get install $*"
    say "installing $*"
    export DEBIAN_FRONTEND=noninteractive
    quietly apt-get update
    quietly apt-get install --yes --no-install-recommends "$@"
}

# What a venv is made from: another requirement or another Python makes it anew.
fingerprint() { # REQUIREMENTS
    { "$python" -VV && cat "$1"; } | sha256sum
}

make_venv() { # VENV REQUIREMENTS [ARGUMENT OF VENV]...
    local venv=$1 requirements=$2
    [[ ! -f $venv/fingerprint || "$(fingerprint "$requirements")" != "$(<"$venv/fingerprint")" ]] || return 0
    say "installing the tools into $venv (once, about a minute)"
    rm -rf "$venv"
    quietly "$python" -m venv "${@:3}" "$venv"
    quietly "$venv/bin/python" -m pip install --disable-pip-version-check --requirement "$requirements"
    fingerprint "$requirements" >"$venv/fingerprint"
}

# Unpacked, not installed: its package would start a server on this machine.
get_prometheus() {
    command -v dpkg-deb >/dev/null || fail "unpack Prometheus into $prometheus, so that usr/bin/promtool is in there"
    say "unpacking Prometheus into $prometheus"
    rm -rf "$prometheus" .build/prometheus_*.deb
    (cd .build && quietly apt-get download prometheus)
    quietly dpkg-deb --extract .build/prometheus_*.deb "$prometheus.new"
    rm .build/prometheus_*.deb
    mv "$prometheus.new" "$prometheus"
}

mkdir -p .build
: >"$log"
mapfile -t missing < <(missing_packages)
[[ ${#missing[@]} -eq 0 ]] || install_packages "${missing[@]}"
# The distribution's site packages: python3-libvirt comes from there.
make_venv .build/venv tests/requirements.txt --system-site-packages
[[ ${1:-} != demo ]] || exit 0
make_venv .build/release tests/requirements-release.txt
make_venv .build/spelling tests/requirements-spelling.txt
[[ -x $prometheus/usr/bin/promtool ]] || get_prometheus
if [[ ${1:-} == page ]]; then
    command -v chromium >/dev/null || install_packages chromium
    make_venv .build/page tests/page/requirements.txt --system-site-packages
fi
