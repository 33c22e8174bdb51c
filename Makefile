# The only runner: every step of building, checking and showing the project is a target here.
# `make demo` and `make test` set everything up themselves on a new machine.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
SUITE ?= all
COUNT ?= 1000000
SEED ?= 0
# Two workers: the suite is made for two cores; more only raise its memory.
WORKERS ?= 2
PROTOS := $(wildcard proto/sidecar/wire/v1/*.proto)
PROTOC := .venv-proto/bin/python -m grpc_tools.protoc -Iproto

.PHONY: help setup demo test check fix proto golden gallery bench fuzz soak store chaos docs ci

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(VENV)/.installed ## virtual environment, packages, and Prometheus where it is missing
	@bash tools/install_services.sh

$(VENV)/.installed: pyproject.toml constraints.txt tools/install_packages.sh
	@PYTHON="$(PYTHON)" bash tools/install_packages.sh $(VENV)
	@touch $@

.venv-proto/.installed: proto/requirements.txt
	@$(PYTHON) -m venv .venv-proto
	@.venv-proto/bin/pip install --quiet --disable-pip-version-check -r proto/requirements.txt
	@touch $@

demo: setup ## the whole loop on a real model; ARGS=--exit ends it after the portrait
	@$(BIN)/python -m demo $(ARGS)

test: setup ## the tests, all but the soak
	@$(BIN)/python -m pytest -n $(WORKERS) -m "not soak and not gpu" $(ARGS)

check: $(VENV)/.installed .venv-proto/.installed ## lint, types, contracts, drift, budgets
	@$(BIN)/ruff format --check --quiet . || { echo "run: make fix"; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python tools/check_proto.py
	@$(BIN)/python tools/golden.py --check
	@$(BIN)/python tools/check_size.py
	@$(BIN)/hadolint Dockerfile

fix: $(VENV)/.installed ## format, and mend what ruff can mend
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --fix --quiet .

proto: .venv-proto/.installed ## generate the wire code and its baseline from proto/
	@PATH="$(CURDIR)/.venv-proto/bin:$$PATH" $(PROTOC) --python_out=. --grpc_python_out=. \
	  --mypy_out=quiet:. --mypy_grpc_out=quiet:. $(PROTOS)
	@cd proto && ../$(BIN)/buf lint && ../$(BIN)/buf build -o baseline.binpb

golden: $(VENV)/.installed ## rewrite every generated file: rules, dashboard, reference docs
	@$(BIN)/python tools/golden.py

$(VENV)/.benched: $(VENV)/.installed
	@$(BIN)/python -m pip --disable-pip-version-check --quiet install -c constraints.txt -e '.[bench]'
	@touch $@

# A peer that needs numpy below 2. Where it cannot be installed its row is skipped, with a word why.
.venv-whylogs/.installed: benchmarks/whylogs-requirements.txt
	@$(PYTHON) -m venv .venv-whylogs
	@.venv-whylogs/bin/pip install --quiet --disable-pip-version-check -r $< \
	  || echo "whylogs cannot be installed here: its row is skipped"
	@touch $@

# Peers whose dependencies would bring another torch, beside what they need and nothing else has.
.peers/.installed: benchmarks/visualise-requirements.txt $(VENV)/.installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
	  --target .peers -r $< || echo "peers cannot be installed here: the suite visualise is skipped"
	@mkdir -p .peers && touch $@

gallery: setup ## the pictures of docs/gallery.md, minutes on a CPU
	@$(BIN)/python tools/gallery.py

bench: setup $(VENV)/.benched .venv-whylogs/.installed .peers/.installed ## ratios against named peers; SUITE=hook runs one suite
	@$(BIN)/python -m benchmarks $(SUITE)

fuzz: setup ## damaged and hostile input to both lanes; COUNT items from SEED
	@$(BIN)/python -m benchmarks.fuzz $(COUNT) $(SEED)

soak: setup ## two hours of traffic as fast as possible: memory stays flat, every batch is accounted for
	@$(BIN)/python -m benchmarks.soak $(ARGS)

.venv-s3/.installed: tests/store/s3-requirements.txt
	@$(PYTHON) -m venv .venv-s3
	@.venv-s3/bin/pip install --quiet --disable-pip-version-check -r $<
	@touch $@

# Warnings are not errors here: the client of S3 has its own.
store: .venv-s3/.installed ## the artifact store against a real local S3
	@.venv-s3/bin/python -m pytest -p no:cacheprovider -W default -k s3 tests/store/test_shelves.py

chaos: setup ## COUNT=200 jobs while daemons and workers are killed at random: each is done exactly once
	@$(BIN)/python -m benchmarks.chaos $(if $(filter file,$(origin COUNT)),200,$(COUNT)) $(SEED)

docs: golden ## the reference pages under docs/

ci: check test ## what runs before a change lands
