# `make help` lists the targets. Needs make and a Python from 3.11 on; everything else is
# installed into .venv from the pinned and hashed files in requirements/.

PYTHON ?=
VENV ?= .venv
COLLECTOR ?=
# More for pytest: make unit ARGS="-k ring -x"
ARGS ?=

BIN := $(VENV)/bin
# Nothing may be installed that the hashes do not name; no question may be asked.
PIP := $(BIN)/python -m pip --no-input --disable-pip-version-check install --quiet

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  Variables: PYTHON=python3.13  VENV=.venv  COLLECTOR=http://host:4317  ARGS='-k name'"

# --- Setting up --------------------------------------------------------------------------------

$(BIN)/python:
	@python="$(PYTHON)"; [ -n "$$python" ] || python=$$(.ci/find-python) || exit 1; \
	echo "creating $(VENV) with $$("$$python" --version)"; \
	"$$python" -m venv "$(VENV)"

# The package itself is installed editable: a change in relay/ needs no new install.
$(VENV)/.installed: requirements/run.txt requirements/build.txt pyproject.toml | $(BIN)/python
	@echo "installing otlp-relay into $(VENV)"
	@$(PIP) --require-hashes -r requirements/run.txt -r requirements/build.txt
	@$(PIP) --no-build-isolation --no-deps --editable .
	@touch $@

$(VENV)/.installed-dev: requirements/dev.txt $(VENV)/.installed
	@echo "installing what tests and development need"
	@$(PIP) --require-hashes -r requirements/dev.txt
	@touch $@

$(VENV)/.installed-bench: requirements/bench.txt $(VENV)/.installed-dev
	@$(PIP) --require-hashes -r requirements/bench.txt
	@touch $@

.PHONY: install dev
install: $(VENV)/.installed ## set up .venv and leave the command at .venv/bin/otlp-relay
	@echo "ready: $(BIN)/otlp-relay"

dev: $(VENV)/.installed-dev ## the same with all that tests and development need

# --- Running -----------------------------------------------------------------------------------

.PHONY: run
run: $(VENV)/.installed ## demo on the embedded sink; with COLLECTOR=http://host:4317 the daemon
ifeq ($(strip $(COLLECTOR)),)
	@$(BIN)/otlp-relay demo
else
	@RELAY_EXPORTER_ENDPOINT="$(COLLECTOR)" $(BIN)/otlp-relay run
endif

# --- Checking ----------------------------------------------------------------------------------

.PHONY: test lint types unit e2e format
test: lint types unit e2e ## everything that must pass, what answers fastest first

lint: $(VENV)/.installed-dev ## ruff, rules and layout
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev ## mypy --strict
	$(BIN)/mypy

unit: $(VENV)/.installed-dev ## tests of single parts
	$(BIN)/python -m pytest tests --ignore=tests/e2e $(ARGS)

e2e: $(VENV)/.installed-dev ## tests with real processes, SDKs and collectors
	$(BIN)/python -m pytest tests/e2e $(ARGS)

format: $(VENV)/.installed-dev ## let ruff lay out the code and mend what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# --- Measuring ---------------------------------------------------------------------------------

.PHONY: bench
bench: $(VENV)/.installed-bench ## measure it beside other collectors; hours (ARGS=--quick: minutes)
	@$(BIN)/python -m benchmarks $(ARGS)

# --- Searching for faults ----------------------------------------------------------------------

.PHONY: chaos fuzz soak
chaos: $(VENV)/.installed-dev ## random faults between relay and collector (MINUTES=10; ARGS="--seed 1")
	$(BIN)/python -m tests.chaos --minutes $(or $(MINUTES),10) $(ARGS)

fuzz: $(VENV)/.installed-dev ## search for inputs that break what parses (MINUTES=1)
	$(BIN)/python -m tests.campaigns.fuzz --seconds $$(( $(or $(MINUTES),1) * 60 )) $(ARGS)
	$(BIN)/python -m tests.campaigns.filters --seconds $$(( $(or $(MINUTES),1) * 30 ))

soak: $(VENV)/.installed-dev ## steady load with outages: does anything grow? (MINUTES=30)
	$(BIN)/python -m benchmarks.soak --minutes $(or $(MINUTES),30) $(ARGS)

.PHONY: docs
docs: $(VENV)/.installed-dev ## write the reference pages from the code and build the site into site/
	PYTHONPATH=. $(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# --- Dependencies and packages -----------------------------------------------------------------

# One resolution for every platform and Python that pyproject.toml allows, with the hashes of all
# files of a release. The files name no index: pip uses the one that the machine is set up with.
# UPGRADE=--upgrade moves to the newest releases; without it only what must change changes.
UPGRADE ?=
COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-header --no-annotate --no-config $(UPGRADE)

.PHONY: requirements
requirements: $(VENV)/.installed-dev ## pin and hash the dependencies anew (UPGRADE=--upgrade for newer ones)
	$(COMPILE) pyproject.toml -o requirements/run.txt
	$(COMPILE) pyproject.toml --extra fast -c requirements/run.txt -o requirements/fast.txt
	$(COMPILE) --group pyproject.toml:build -o requirements/build.txt
	$(COMPILE) pyproject.toml --group test -c requirements/run.txt -o requirements/test.txt
	$(COMPILE) pyproject.toml --group dev -c requirements/test.txt -c requirements/build.txt \
		-o requirements/dev.txt
	$(COMPILE) --group pyproject.toml:bench -c requirements/dev.txt -o requirements/bench.txt
	$(BIN)/python requirements/record_wheels.py

.PHONY: audit
audit: $(VENV)/.installed-dev ## ask the package index for known vulnerabilities of what runs
	$(BIN)/pip-audit --strict --progress-spinner off --require-hashes --disable-pip -r requirements/run.txt

.PHONY: package
package: $(VENV)/.installed-dev ## build sdist and wheel into dist/
	@rm -rf dist
	$(BIN)/python -m build --no-isolation

.PHONY: image
image: ## build the container image with docker, podman or buildah, whichever is there
	@deploy/image/build $(or $(TAG),otlp-relay:latest)

.PHONY: clean
clean: ## remove what the targets made, .venv included
	rm -rf .venv .venv-* dist build site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find relay proto_stubs tests -name __pycache__ -type d -prune -exec rm -rf {} +
