# `make help` explains every target. PYTHON chooses the interpreter the environment is made with.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
LOCAL := $(or $(NATSKIT_LOCAL),.local)
BIN := .venv/bin
# Extra words for pyinfra, such as DEPLOY="--data proxy_port=8443"
DEPLOY ?=
# Extra words for pytest, such as TESTS="tests/unit -k claims"
TESTS ?=

.DEFAULT_GOAL := help
.PHONY: help up plan down status logs test lint bench clean lock console

help: ## Explain the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile

up: .venv/platform console ## Bring up the whole platform on this machine, data in .local/
	@$(BIN)/pyinfra -y inventories/local.py deploy.py $(DEPLOY) 2>&1 | scripts/quietly
	@$(BIN)/natskit --platform $(LOCAL) ready

plan: .venv/platform console ## Show what `make up` would change, and change nothing
	@$(BIN)/pyinfra --dry inventories/local.py deploy.py $(DEPLOY)

down: ## Stop all of it; the data stays
	@scripts/down $(LOCAL)

status: .venv/platform ## Ask every part something real
	@$(BIN)/natskit --platform $(LOCAL) status

logs: ## Follow all logs
	@tail -n 30 -F $(LOCAL)/log/*.log

test: lint console ## Everything: unit, real servers, real browser
	@scripts/chromium
	@$(BIN)/pytest $(TESTS)

lint: .venv/dev ## Format check, lint, strict types
	@$(BIN)/ruff format --check --quiet . || { echo "run: $(BIN)/ruff format ." >&2; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary

bench: .venv/dev console ## Measure; results in bench/RESULTS.md
	@scripts/chromium
	@$(BIN)/python -m bench

clean: down ## Stop it and remove data and environment
	@rm -rf $(LOCAL) .venv web/dist web/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis natskit.egg-info

lock: .venv/dev ## Pin the newest versions that fit pyproject.toml and web/package.json
	@for name in platform node dev; do \
	  extras="--extra $$name"; [ $$name = dev ] && extras="--extra platform --extra dev"; \
	  $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	    --no-header --upgrade $$extras pyproject.toml -o requirements/$$name.lock; \
	done
	@cd web && npm update --package-lock-only

console: web/dist/index.html

web/dist/index.html: web/package-lock.json web/build.mjs $(wildcard web/src/* web/console/*) | .venv/platform
	@scripts/build-console

.venv/platform .venv/dev: .venv/%: requirements/%.lock pyproject.toml
	@scripts/environment $(PYTHON) $*
