# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Everything is made in .build, from the machine's own /usr/bin/python3 and the package registries.
SHELL := /bin/bash
bin := $(CURDIR)/.build/venv/bin
shell_files = .ci/run scripts/kvmsched $(shell git -c safe.directory='*' ls-files --cached --others --exclude-standard '*.sh' '*.bash')

export LC_ALL := C.UTF-8
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
export PATH := $(bin):$(PATH)
unexport PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE VIRTUAL_ENV

.PHONY: help demo test stages hosts guests others hypervisors nightly check unit fuzz types lint sanity docs faces page lab integration faults chaos daemon fleet machines kvm
.PHONY: matrix picture site stamp changelog home release prepare clean mutants lab-up lab-tell lab-down machine-up machine-down
.PHONY: bench-fleet bench-memory bench-pass bench-record bench-replay bench-vcpu

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1: /p' Makefile | awk -F': ' '{ printf "  make %-14s %s\n", $$1, $$2 }'

demo: ## Balance a few small real guests before your eyes (root)
	@tests/prepare.sh demo
	@cd tests && python -m lab.demo $(ARGS)

# First what does not mind company, three at a time; then what judges how this machine is shared, alone.
# What fails keeps none of its neighbours from being run: one run tells all that is wrong, and once more at its end.
test: prepare ## Run every test but the nightly ones (root)
	@set -o pipefail; $(MAKE) --no-print-directory stages 2>&1 | tee .build/test.log || { \
	    echo "== what failed (all of it is in .build/test.log)"; \
	    grep --before-context=12 '^make.*[*][*][*]' .build/test.log | cut --characters=-300 | tail --lines=80; exit 1; }
	@echo "== all tests passed"

stages:
	@$(MAKE) --no-print-directory lab
	@failed=0; \
	$(MAKE) --no-print-directory --keep-going --jobs=3 --output-sync=target hosts guests others || failed=1; \
	$(MAKE) --no-print-directory --keep-going integration daemon ARGS='-m "quiet and not nightly"' || failed=1; \
	exit $$failed

hosts:
	@$(MAKE) --no-print-directory fleet ARGS='-m "not nightly"'

guests:
	@failed=0; \
	for part in integration daemon faults; do \
	    $(MAKE) --no-print-directory $$part ARGS='-m "not quiet and not nightly"' || failed=1; \
	done; \
	exit $$failed

# What only computes gives way to what waits for guests, which takes longest.
others:
	@nice $(MAKE) --no-print-directory sanity faces check fuzz docs hypervisors

hypervisors:
	@$(MAKE) --no-print-directory kvm ARGS='-m "not nightly"'

nightly: ## Run what takes too long for each change: all faults, long loads, ten minutes of chaos and of fuzzing (root)
	@$(MAKE) --no-print-directory fuzz EXAMPLES=40 ARGS='--times=20 -m ""'
	@$(MAKE) --no-print-directory faces integration fleet ARGS='-m nightly'
	@$(MAKE) --no-print-directory daemon ARGS='--minutes=30'
	@$(MAKE) --no-print-directory faults ARGS='--chaos-s=600'
	@$(MAKE) --no-print-directory faults ARGS='--machine=bookworm --chaos-s=600'
	@$(MAKE) --no-print-directory kvm
	@$(MAKE) --no-print-directory page

check: lint types unit ## Run ruff, shellcheck, mypy and the unit tests

lint: prepare ## Run ruff and shellcheck
	@echo "== ruff, shellcheck"
	@ruff check --quiet .
	@ruff format --check --quiet . || { echo "ruff format would change files: run it"; exit 1; }
	@shellcheck $(shell_files)

types: prepare ## Run mypy
	@echo "== mypy"
	@mypy --cache-dir=.build/mypy

unit: prepare ## Run the unit tests
	@echo "== unit tests"
	@pytest --quiet --numprocesses=auto tests/unit $(ARGS)

fuzz: prepare ## Feed it what hostile guests, owners, users and a broken libvirt might; ARGS="--times=20 -m ''" EXAMPLES=40 for more
	@echo "== fuzz"
	@pytest --quiet --numprocesses=2 -m "not nightly" tests/fuzz $(ARGS)
	@KVMSCHED_EXAMPLES=$(or $(EXAMPLES),4) pytest --quiet --numprocesses=2 $$(grep --files-with-matches '^from examples import' tests/unit/*.py)

mutants: prepare ## Change each code of a skip or a failure, and see mypy or a unit test object; ARGS=--misspelt for a minute
	@python tests/mutants.py $(ARGS)

sanity: prepare ## Run ansible-test sanity
	@echo "== ansible-test sanity"
	@tests/sanity.sh $(ARGS)

docs: prepare ## Check documentation: spelling, sentences, links, ansible-lint, galaxy-importer, licences, change log
	@echo "== spelling and sentences, ansible-lint, galaxy-importer, documentation, licences, change log"
	@.build/spelling/bin/python tests/spelling.py
	@pytest --quiet tests/unit/test_docs.py
	@ansible-lint -q
	@antsibull-docs lint-collection-docs --plugin-docs --validate-collection-refs all .
	@antsibull-changelog lint
	@.build/release/bin/reuse lint --quiet || .build/release/bin/reuse lint
	@python tests/release.py importer

faces: prepare ## Run the modules and the command on libvirt's test driver
	@echo "== modules and command, on test:///"
	@pytest --quiet --numprocesses=2 -m "not nightly" tests/faces $(ARGS)

page: ## Look at a replay's page in a real Chromium, and at its picture (root, where Chromium is not installed yet)
	@tests/prepare.sh page
	@echo "== a replay's page, in Chromium, and its picture"
	@pytest --quiet tests/page $(ARGS)

lab: prepare ## Install what guests and hosts need, and make the hosts' system, once (root)
	@echo "== lab"
	@cd tests && /usr/bin/python3 -m lab prepare --hosts

lab-up: prepare ## Start four guests to play with, leave them running, and say how (root)
	@cd tests && /usr/bin/python3 -m lab up

lab-tell: ## Tell one of them another load: GUEST=kvmsched-lab-web SAY="cpu 90" (root)
	@cd tests && /usr/bin/python3 -m lab tell "$(GUEST)" "$(SAY)"

lab-down: ## End the guests of lab-up, and no others (root)
	@cd tests && /usr/bin/python3 -m lab down

integration: prepare ## Run the modules and the command on real guests (root)
	@echo "== integration tests"
	@pytest tests/integration $(ARGS)

faults: prepare ## Break QEMUs, libvirtd, guests and passes, at chosen instants and at random (root)
	@echo "== faults"
	@pytest tests/faults $(ARGS)

chaos: prepare ## Ten minutes of chaos on six guests (root); ARGS="--chaos-seed=2 --chaos-s=60"
	@pytest tests/faults/test_chaos.py --capture=no --chaos-s=600 $(ARGS)

daemon: prepare ## Run the daemon on real guests, a minute of it with changing load (root); ARGS="--minutes=30"
	@echo "== daemon"
	@pytest tests/daemon $(ARGS)

fleet: prepare ## Run the tests on whole hosts with systemd (root)
	@echo "== fleet"
	@pytest tests/fleet $(ARGS)

machines: prepare ## Make the emulated KVM hypervisors of the tests, and keep their first boots (root)
	@cd tests && python -m lab machines

kvm: prepare ## Run the tests on these, which are made where they are missing (root)
	@echo "== emulated KVM hypervisors"
	@pytest tests/machines $(ARGS)

machine-up: prepare ## Start such a machine to play with, and say how to enter it: SUITE=trixie (root)
	@cd tests && python -m lab machine-up $(SUITE)

machine-down: prepare ## End it (root)
	@cd tests && python -m lab machine-down

matrix: prepare ## Run the rows of the public CI that this machine can run; ARGS="'ansible-core 2.16' 'Python 3.9'"
	@python tests/matrix.py all $(ARGS)

picture: prepare ## Make the demo's picture, docs/pictures/demo.svg, from a run of it (root)
	@cd tests && python -m lab.demo --picture ../docs/pictures/demo.svg

site: ## Make the documentation's site in .build/site-html
	@tests/site/make.sh

stamp: prepare ## Bring the version of galaxy.yml to all that tells it
	@python tests/release.py stamp

changelog: prepare ## Bring the fragments into CHANGELOG.md, under the version of galaxy.yml
	@python tests/release.py changelog

home: prepare ## Let all links lead to the home URL=https://...
	@python tests/release.py home "$(URL)"

release: prepare ## Build the tarball, twice the same, and hold it against all that it has to be; ARGS=--dry-run
	@python tests/release.py release $(ARGS)

bench-fleet: prepare ## Measure what a module run costs beside a ping, on one host and on many (root); .build/bench-fleet.json
	@python benchmarks/bench_fleet.py --json .build/bench-fleet.json $(ARGS)

bench-memory: prepare ## Measure the memory policies; tables, and .build/bench-memory.json
	@python benchmarks/bench_memory.py --json .build/bench-memory.json $(ARGS)

bench-pass: prepare ## Measure a pass beside the libvirt calls that it can't avoid (root); .build/bench-pass.json
	@python benchmarks/bench_pass.py --json .build/bench-pass.json $(ARGS)

bench-record: prepare ## Measure what recording 20 guests costs beside a daemon (root); .build/bench-record.json
	@python benchmarks/bench_record.py --json .build/bench-record.json $(ARGS)

bench-replay: prepare ## Measure what a record of a day takes, and how long it takes to replay it; .build/bench-replay.json
	@/usr/bin/python3 benchmarks/bench_replay.py --json .build/bench-replay.json $(ARGS)

bench-vcpu: prepare ## Measure the vCPU policy; tables, and .build/bench-vcpu.json
	@pip install --quiet --disable-pip-version-check --requirement benchmarks/requirements.txt
	@python benchmarks/bench_vcpu.py --json .build/bench-vcpu.json $(ARGS)

prepare:
	@tests/prepare.sh

clean: ## Remove what was built
	rm -rf .build .mypy_cache .pytest_cache .ruff_cache .hypothesis
