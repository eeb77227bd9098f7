# Everything a user or a developer runs. `make help` lists it. Each target sets up what it needs (deploy/setup).
SHELL := /bin/bash
.DEFAULT_GOAL := help
BIN := .venv/bin

# Arguments that are passed on: make test ARGS="-k journal", make demo ARGS=--keep, make bench ARGS=--quick
ARGS ?=
# Test processes; two, since the tests wait more than they compute.
JOBS ?= 2

.PHONY: help setup demo test quick simulate guest faults defects fuzz memory lint style types imports format bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install missing Debian packages and create .venv, for running only
	@deploy/setup run

demo: ## Three controllers, real data, kill -9 and takeover, on this machine (ARGS=--keep to look around after)
	@deploy/setup demo
	@$(BIN)/python -m deploy.demo.run $(ARGS)

test: ## Run the whole test suite (ARGS="-k journal" for a part; SIMULATE_MINUTES=5: of fresh simulated seeds)
	@deploy/setup test
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup $(ARGS)

quick: ## Run the tests that take a moment
	@deploy/setup test
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m "not slow and not guest" $(ARGS)

simulate: ## Simulate whole systems under faults (SEEDS=FIRST:COUNT or SEEDS=COUNT, MINUTES=5, ARGS=--marks)
	@deploy/setup test
	@$(BIN)/python -m tests.simulation $(if $(SEEDS),--seeds $(SEEDS)) $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

guest: ## Run only the tests with a real kernel's clients
	@deploy/setup test
	@$(BIN)/python -m pytest -m guest $(ARGS)

fuzz: ## Fuzz what comes from outside, a minute for each target (ARGS="--seconds 600 nbd_handshake")
	@deploy/setup test
	@$(BIN)/python -m tests.fuzz $(ARGS)

# Two idle cores take about 40 minutes. MINUTES=n: cases drawn with SEEDS, until the time is up. EVERY=1: every call; hours.
faults: ## Kill real controllers at steps and calls, fill disks, cut links; an hour (MINUTES=20: a part)
	@deploy/setup test
	@REMOTECOPY_FAULTS=$(if $(EVERY),every,all) REMOTECOPY_FAULTS_MINUTES=$(MINUTES) \
		REMOTECOPY_FAULTS_ORDER=$(if $(MINUTES),$(or $(SEEDS),$(shell date +%s))) \
		$(BIN)/python -m pytest -n $(JOBS) tests/faults $(ARGS)

defects: ## Plant every known mistake in a copy of the source, and see it caught: 15 minutes (MINUTES=5, ARGS="--only flush")
	@deploy/setup test
	@$(BIN)/python -m tests.simulation.defects $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

lint: style imports types ## Run all static checks, the fast ones first

style: ## ruff: rules and format
	@deploy/setup lint
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { $(BIN)/ruff format --check .; exit 1; }

imports: ## import-linter: which part may import which
	@deploy/setup lint
	@$(BIN)/lint-imports --no-logo || exit 1

types: ## mypy --strict
	@deploy/setup lint
	@$(BIN)/mypy

format: ## Bring all Python files into ruff's format
	@deploy/setup lint
	@$(BIN)/ruff check --quiet --fix --select I . ; $(BIN)/ruff format .

bench: ## Measure against qemu-nbd, nbdkit and qemu-storage-daemon (ARGS=--quick for a rough look)
	@deploy/setup bench
	@$(BIN)/python -m tests.bench $(ARGS)

.PHONY: memory
memory: ## Show a controller's memory under full mixed load, at intervals (ARGS="--seconds 60")
	@deploy/setup bench
	@$(BIN)/python -m tests.bench.memory $(ARGS)

clean: ## Remove .venv and all caches
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
