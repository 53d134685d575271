#!/usr/bin/env bash
# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Makes .build/venv with the tools of tests/requirements.txt, and installs the distribution's packages
# that they need. Does nothing, quickly, where all is there.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly python=/usr/bin/python3 venv=.build/venv prometheus=.build/prometheus log=$PWD/.build/prepare.log

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
    "$python" -c 'import prometheus_client' 2>/dev/null || echo python3-prometheus-client
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

# What the venv was made from: another requirement or another Python makes it anew.
fingerprint() {
    { "$python" -VV && cat tests/requirements.txt; } | sha256sum
}

make_venv() {
    say "installing the tools into $venv (once, about a minute)"
    rm -rf "$venv"
    # The distribution's site packages: python3-libvirt comes from there.
    quietly "$python" -m venv --system-site-packages "$venv"
    quietly "$venv/bin/python" -m pip install --disable-pip-version-check --requirement tests/requirements.txt
    fingerprint >"$venv/fingerprint"
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
[[ -f $venv/fingerprint && "$(fingerprint)" == "$(<"$venv/fingerprint")" ]] || make_venv
[[ -x $prometheus/usr/bin/promtool ]] || get_prometheus
