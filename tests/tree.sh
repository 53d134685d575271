#!/usr/bin/env bash
# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Copies the checkout to TREE/ansible_collections/kvmsched/kvm, which ansible-test insists on, and prints that path.
# usage: tests/tree.sh TREE
set -euo pipefail
cd "$(dirname "$0")/.."

copy="$1/ansible_collections/kvmsched/kvm"
rm -rf "$copy"
mkdir -p "$copy"
# Everything but what git ignores and the link by which the checkout itself is found as a collection.
# A clone may belong to another user than the one who tests it: safe.directory.
git -c safe.directory='*' ls-files --cached --others --exclude-standard -z |
    while IFS= read -r -d '' file; do
        [[ $file == .ansible/* || ! -e $file ]] || printf '%s\0' "$file"
    done |
    tar --create --null --files-from=- | tar --extract --directory "$copy"
# A repository of its own, else ansible-test finds the checkout's, which ignores this place.
git -C "$copy" init --quiet
printf '%s\n' "$copy"
