# The targets a developer, an operator or CI uses. `make` alone lists them.
#
# Variables given on the command line (make demo SPEED=60 KILL=none) reach every program below through the environment:
# GNU make exports what the command line or the caller's environment sets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules
# Every process of a stack and every worker of the tests would translate all of the source again for itself.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
# What pytest gets besides its own configuration, for example PYTEST_ARGS='-x -k placement'.
PYTEST_ARGS ?=

STAMP := $(VENV)/.installed
CODE := services tests tools examples bench

.PHONY: help fuzz setup test-deploy test-image audit chart-readme proto proto-deps proto-baseline fmt fmt-check lint types test test-unit demo up down status \
        bench sim chaos clean lock settings-doc api-doc system-packages

help: ## this list
	@echo "callmesh. Usage: make <target> [VARIABLE=value ...]"; echo
	@awk -F ':.*## ' '/^[a-z][a-z%-]*:.*## /{printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf '%s\n' '' 'Variables (all optional):' \
	  '  PYTHON=python3      the interpreter that .venv is made with (3.11 or newer)' \
	  '  RUN_DIR=.run        where a local stack keeps its data, logs and secrets' \
	  '  PORT_BASE=7100      first port of the local stack; two stacks need two bases and two RUN_DIRs' \
	  '  MEMBERS=1           members of the local MongoDB replica set, 1 or 3' \
	  '  ROUTERS=1           routers of each region' \
	  '  DIALLER=beijing     region whose dialler `up` starts, or none' \
	  '  MONGO_URI= AMQP_URI=  real servers to use in place of the local ones' \
	  '  CALLS= DAY= HOURS= SPEED= KILL= AGENTS= SEED= KEEP=   the demo: see `callmesh demo --help`' \
	  '  RUNS= SEED=         simulation and fuzz: how many runs, from which seed' \
	  "  PYTEST_ARGS=        more arguments for pytest, e.g. '-x -k placement'"

# --- the working place ---------------------------------------------------------------------------------------------

setup: $(STAMP) proto system-packages ## make .venv, install the locked packages, generate stubs, look for RabbitMQ

$(STAMP): requirements-dev.txt requirements.in pyproject.toml
	@tools/make_venv.sh "$(PYTHON)" "$(VENV)"
	@touch $@

system-packages:
	@tools/system_packages.sh

proto: $(STAMP) ## generate the Python stubs of proto/ (does nothing when they are fresh)
	@$(PY) tools/make_proto.py

proto-deps: $(STAMP)
	@$(PY) tools/make_proto_deps.py

proto-baseline: proto-deps ## record today's protos as the baseline of the breaking-change check
	@$(BIN)/buf build proto --exclude-source-info -o proto/baseline.binpb
	@echo "wrote proto/baseline.binpb: commit it together with the reason for the change"

lock: $(STAMP) ## pin and hash requirements*.in into requirements*.txt (add UPGRADE=1 for the newest versions)
	@$(PY) tools/lock.py $(if $(UPGRADE),--upgrade)

api-doc: proto ## write docs/api from the protos' comments and the scope tables
	@$(PY) tools/make_api_doc.py

settings-doc: proto ## write docs/settings.md from the services' settings classes
	@$(PY) tools/make_settings_doc.py

# --- checks --------------------------------------------------------------------------------------------------------

fmt: proto-deps ## format the Python code (imports included) and the protos
	@$(BIN)/ruff check -q --select I --fix $(CODE)
	@$(BIN)/ruff format $(CODE)
	@$(BIN)/buf format -w proto

fmt-check: proto-deps
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/buf format --diff --exit-code proto

lint: proto fmt-check ## ruff, the import contracts, buf lint, buf breaking
	@$(BIN)/ruff check $(CODE)
	@PYTHONPATH=services $(BIN)/lint-imports --no-cache --no-logo
	@$(BIN)/buf lint
	@if [ -f proto/baseline.binpb ]; then \
	  $(BIN)/buf breaking proto --against proto/baseline.binpb && echo "buf breaking: nothing broken"; \
	else echo "buf breaking: no proto/baseline.binpb yet (make proto-baseline), skipped"; fi

types: proto ## mypy over services/ and bench/
	@$(BIN)/mypy

test: setup ## every test: unit to end to end
	@$(PY) -m pytest -n 3 --no-loadscope-reorder $(PYTEST_ARGS)

test-deploy: setup ## the chart rendered and validated, the alerts tested
	@$(PY) -m pytest tests/deploy $(PYTEST_ARGS)

test-image: setup ## the image built by a real Docker engine and each of its roles run (skips where none runs)
	@TEST_IMAGE=1 $(PY) -m pytest -n0 tests/image $(PYTEST_ARGS)

audit: setup ## known vulnerabilities of what the product runs on, and its bill of materials: AUDIT_SERVICE= AUDIT_URL=
	@$(PY) tools/audit.py

chart-readme: setup ## deploy/helm/callmesh/README.md from values.yaml
	@$(PY) tools/chart_readme.py

test-unit: proto ## the tests that start nothing
	@$(PY) -m pytest -m 'not integration and not e2e' $(PYTEST_ARGS)

# --- the platform on this machine ----------------------------------------------------------------------------------

demo: setup ## the whole platform, a day of calls, a region lost halfway, a report
	@$(BIN)/callmesh demo

up: setup ## start the local stack and wait until it is healthy
	@$(BIN)/callmesh up

down: $(STAMP) ## stop what `make up` started
	@$(BIN)/callmesh down

status: $(STAMP) ## each process of the local stack with port, state and uptime
	@$(BIN)/callmesh status

bench: setup ## every benchmark in bench/, figures into build/reports/
	@$(PY) tools/run_all.py bench

bench-%: setup ## one benchmark: chassis, engine, routing, metrics, queueing, recovery, regions, locate, crm, tickets, marketing, menus, forecast, blending
	@PYTHONPATH=services:. $(PY) -m bench.$*

sim: proto ## the seeded simulation of routers, network and store
	@$(PY) tools/run_all.py simulation

fuzz: setup ## every RPC with random and hostile messages: RUNS= SEED=
	@PYTHONPATH=services:. $(PY) tests/fuzz/__main__.py

chaos-%: setup ## one of them: leader, store, region, rollout
	@PYTHONPATH=services:. $(PY) -m bench.chaos.$*

chaos: setup ## kill -9, partitions and outages under load
	@$(PY) tools/run_all.py chaos

clean: ## remove what is generated (.venv and a running stack's data stay)
	@rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage
	@find services tests tools bench -name __pycache__ -type d -prune -exec rm -rf {} +
	@find services/callmesh -mindepth 1 -maxdepth 1 -type d -exec rm -rf {} +
	@rm -rf services/*.egg-info
