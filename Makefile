# `make` lists the targets. Everything runs in .venv; nothing is installed outside of it.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
BIN := .venv/bin
IMAGE := gen/conductor.pb\#format=binpb
REPLICAS ?= 1
WORKERS ?= 1
ARGS ?=
EXTRAS ?=
STAGES ?=
JOBS ?= 2

.PHONY: help setup setup-dev gen format check breaking test test-all up down demo demo-data bench bench-stages eval-research chaos fuzz clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.setup $(if $(EXTRAS),.venv/.setup-extras) $(if $(STAGES),.venv/.setup-stages) ## Install what running needs; EXTRAS=1: meaning, re-ranking, models; STAGES=1: stages of data too

setup-dev: .venv/.setup-dev ## Install what developing needs as well

.venv/.setup: requirements.lock pyproject.toml | .venv/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.venv/.setup-extras: requirements-extras.lock .venv/.setup
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-extras.lock
	@touch $@

.venv/.setup-stages: requirements-stages.lock .venv/.setup
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-stages.lock
	@touch $@

.venv/.setup-dev: requirements-dev.lock .venv/.setup
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@

# The first of these Pythons that is new enough makes the environment.
.venv/bin/python:
	@for python in "$(PYTHON)" python3.11 python3.12 python3.13; do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    "$$python" -m venv .venv || { echo "Cannot make .venv: install the venv module of $$python (python3-venv)."; exit 1; }; \
	    exit 0; \
	  fi; \
	done; \
	echo "Python 3.11 or newer is needed: install it, or name it with make setup PYTHON=/path/to/python."; exit 1

gen: setup-dev ## Write gen/ anew from protos/
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m ops.generate

format: setup-dev ## Format Python and protos
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/buf format protos -w

check: setup-dev ## Format, lint, types, contract, generated code, import rules, envoy.yaml
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/buf lint '$(IMAGE)'
	$(BIN)/buf format protos -d --exit-code
	@$(MAKE) breaking
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m ops.generate --check
	$(BIN)/pytest -q tests/test_architecture.py
	$(BIN)/envoy --mode validate -c envoy.yaml --log-level warning

# Against the last release; before the first, against the first contract ever committed.
breaking: setup-dev
	@base=$$(git describe --tags --abbrev=0 --match 'v[0-9]*' 2>/dev/null || \
	  git log --diff-filter=A --format=%H -- gen/conductor.pb 2>/dev/null | tail -n 1); \
	if [ -z "$$base" ] || ! git cat-file -e "$$base:gen/conductor.pb" 2>/dev/null; then \
	  echo "buf breaking: no earlier contract in this checkout to compare with"; exit 0; \
	fi; \
	echo "buf breaking against $$base"; \
	git show "$$base:gen/conductor.pb" | $(BIN)/buf breaking '$(IMAGE)' --against '-#format=binpb'

# A file of tests stays with one worker: what it starts it shares. Long files are first (tests/conftest.py). More workers than processors would starve what is timed.
# Compiled modules are kept, whatever the environment says: hundreds of services start.
test: setup-dev ## Run all tests; [JOBS=4] files at once
	PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder

fuzz: setup-dev ## Search with the tests of properties: new examples each time, many more; [ARGS="-k report"]
	PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -q -n $(JOBS) -m hypothesis --hypothesis-profile=search --timeout=3600 $(ARGS)

test-all: test ## The same; nothing is left out of `test`

# Several Conductors need PostgreSQL; where the machine has none, it comes with what developing needs.
up: $(if $(filter-out 1,$(REPLICAS)),setup-dev,setup) ## Start everything in the background: http://127.0.0.1:8080 [REPLICAS=3] [WORKERS=2]
	@$(BIN)/python -m ops.up --detach --replicas $(REPLICAS) --workers $(WORKERS)

down: ## Stop what `up` started
	@$(BIN)/python -m ops.up down

demo: setup ## Run an objective from start to report, and show what happens
	@$(BIN)/python -m ops.demo

demo-data: setup .venv/.setup-stages ## Turn a public table into a model and a report, a script answering at the gates
	@$(BIN)/python -m ops.demo_data

bench: setup-dev ## Measure both engines; [ARGS="--store sqlite --only throughput --events 0,10000"]
	@$(BIN)/python -m bench $(ARGS)

eval-research: setup-dev ## Measure the Researcher on real questions, from documentation packages; [ARGS="--scale 100,1000"]
	@$(BIN)/python -m bench.research $(ARGS)

bench-stages: setup-dev ## Run the stages on public tables, beside what others reach; [ARGS="penguins credit --flaml --python PATH"]
	@$(BIN)/python -m bench.stages $(ARGS)

chaos: setup-dev ## Run the system under faults and check every promise; [ARGS="--minutes 30 --setting postgres" SOAK="--runs 10000"]
	@$(BIN)/python -m tests.chaos $(ARGS)
	@$(BIN)/python -m tests.chaos.soak $(SOAK)

clean: ## Stop, and remove var/ (database, workspaces, logs) and caches; reports stay
	@if [ -x $(BIN)/python ]; then $(BIN)/python -m ops.up down; fi
	rm -rf var build .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
