# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Everything is made in .build, from the machine's own /usr/bin/python3 and the package registries.
SHELL := /bin/bash
bin := $(CURDIR)/.build/venv/bin
shell_files = .ci/run $(shell git -c safe.directory='*' ls-files --cached --others --exclude-standard '*.sh' '*.bash')

export LC_ALL := C.UTF-8
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
export PATH := $(bin):$(PATH)
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

.PHONY: help demo test nightly check unit types lint sanity docs faces lab integration faults chaos daemon fleet build
.PHONY: bench-fleet bench-memory bench-pass bench-vcpu prepare clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1: /p' Makefile | awk -F': ' '{ printf "  make %-14s %s\n", $$1, $$2 }'

demo: prepare ## Balance a few small real guests before your eyes (root)
	@cd tests && python -m lab.demo $(ARGS)

# First what needs no guests, two at a time; then one after the other, for guests need the machine to themselves.
# What fails keeps none of its neighbours from being run: one run tells all that is wrong.
test: prepare ## Run every test but the nightly ones (root)
	@$(MAKE) --no-print-directory --keep-going --jobs=2 --output-sync=target lab check sanity docs faces
	@$(MAKE) --no-print-directory --keep-going integration daemon faults fleet ARGS='-m "not nightly"'
	@echo "== all tests passed"

nightly: ## Run what takes too long for each change: all faults, long loads, ten minutes of chaos (root)
	@$(MAKE) --no-print-directory integration fleet ARGS='-m nightly'
	@$(MAKE) --no-print-directory daemon ARGS='--minutes=30'
	@$(MAKE) --no-print-directory faults ARGS='--chaos-s=600'

check: lint types unit ## Run what needs no guests, in under a minute

lint: prepare ## Run ruff and shellcheck
	@echo "== ruff, shellcheck"
	@ruff check --quiet .
	@ruff format --check --quiet . || { echo "ruff format would change files: run it"; exit 1; }
	@shellcheck $(shell_files)

types: prepare ## Run mypy
	@echo "== mypy"
	@mypy --cache-dir=/dev/null

unit: prepare ## Run the unit tests
	@echo "== unit tests"
	@pytest --quiet --numprocesses=auto tests/unit $(ARGS)

sanity: prepare ## Run ansible-test sanity
	@echo "== ansible-test sanity"
	@tests/sanity.sh $(ARGS)

docs: prepare ## Run ansible-lint, and check documentation and change log
	@echo "== ansible-lint, documentation, change log"
	@ansible-lint -q
	@antsibull-docs lint-collection-docs --plugin-docs --validate-collection-refs all .
	@antsibull-changelog lint

faces: prepare ## Run the modules and the command on libvirt's test driver
	@echo "== modules and command, on test:///"
	@pytest --quiet --numprocesses=2 tests/faces $(ARGS)

lab: prepare ## Install what guests and hosts need, and make the hosts' system, once (root)
	@echo "== lab"
	@cd tests && /usr/bin/python3 -m lab prepare --hosts

integration: prepare ## Run the modules and the command on real guests (root)
	@echo "== integration tests"
	@pytest tests/integration $(ARGS)

faults: prepare ## Break QEMUs, libvirtd, guests and passes, at chosen instants and at random (root)
	@echo "== faults"
	@pytest tests/faults $(ARGS)

chaos: prepare ## Ten minutes of chaos on six guests (root); ARGS="--chaos-seed=2 --chaos-s=60"
	@pytest tests/faults/test_chaos.py --capture=no --chaos-s=600 $(ARGS)

daemon: prepare ## Run the daemon on real guests, two minutes of them with changing load (root); ARGS="--minutes=30"
	@echo "== daemon"
	@pytest tests/daemon $(ARGS)

fleet: prepare ## Run the tests on whole hosts with systemd (root)
	@echo "== fleet"
	@pytest tests/fleet $(ARGS)

build: prepare ## Build the collection's tarball into .build
	@ansible-galaxy collection build --force --output-path .build

bench-fleet: prepare ## Measure what a module run costs beside a ping, on one host and on many (root); .build/bench-fleet.json
	@python benchmarks/bench_fleet.py --json .build/bench-fleet.json $(ARGS)

bench-memory: prepare ## Measure the memory policies; tables, and .build/bench-memory.json
	@python benchmarks/bench_memory.py --json .build/bench-memory.json $(ARGS)

bench-pass: prepare ## Measure a pass beside the libvirt calls that it can't avoid (root); .build/bench-pass.json
	@python benchmarks/bench_pass.py --json .build/bench-pass.json $(ARGS)

bench-vcpu: prepare ## Measure the vCPU policy; tables, and .build/bench-vcpu.json
	@pip install --quiet --disable-pip-version-check --requirement benchmarks/requirements.txt
	@python benchmarks/bench_vcpu.py --json .build/bench-vcpu.json $(ARGS)

prepare:
	@tests/prepare.sh

clean: ## Remove what was built
	rm -rf .build .mypy_cache .pytest_cache .ruff_cache .hypothesis
