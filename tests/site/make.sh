#!/usr/bin/env bash
# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Makes the site in .build/site-html: the guides, and a page for each module, the role and the filter. A warning fails it.
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly tools="$PWD/.build/site" source="$PWD/.build/site-source" html="$PWD/.build/site-html"
# Its scripts name their place: what was made in a checkout that has moved since does not run.
made_of="$(printf '%s\n' "$tools" && cat tests/requirements-site.txt)"
[[ -f $tools/made-of && "$(<"$tools/made-of")" == "$made_of" ]] || {
    rm -rf "$tools"
    /usr/bin/python3 -m venv "$tools"
    "$tools/bin/pip" install --quiet --disable-pip-version-check --requirement tests/requirements-site.txt
    printf '%s\n' "$made_of" >"$tools/made-of"
}
rm -rf "$source" "$html"
# The pages lie as in the checkout, so that their links lead to one another.
tree="$(tests/tree.sh "$source.tree")"
mkdir -p "$source"
cp -R "$tree"/{docs,roles,monitoring,scripts,.github,Makefile,LICENSE,galaxy.yml} "$tree"/*.md "$source"
cp tests/site/{conf.py,index.md,elsewhere.rst} "$source"
mkdir "$source/static"
cp tests/site/site.css "$source/static"
# Of another site, and of the role's own documentation there is a page below.
rm -rf "$source"/docs/docsite "$source"/.github/*.md
mkdir "$source/modules"
export ANSIBLE_COLLECTIONS_PATH="${tree%/ansible_collections/*}" PATH="$tools/bin:$PATH"
unset ANSIBLE_CONFIG
antsibull-docs collection --use-current --squash-hierarchy --no-add-antsibull-docs-version --dest-dir "$source/modules" kvmsched.kvm
# The theme has its own table of contents beside each page, and takes another one for an error.
sed --in-place '/^\.\. contents::/,/^$/d' "$source"/modules/*.rst
sphinx-build --quiet --fail-on-warning --keep-going -b html "$source" "$html"
printf 'site: %s/index.html\n' "$html"
