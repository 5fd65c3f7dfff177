# `make help` lists the targets. Everything runs in .venv, with the versions in requirements-dev.lock.

# The Python for .venv; if empty, the first Python >= 3.11 on PATH.
PYTHON ?=
# Arguments for pytest, for example: make test ARGS='-n 0 tests/fanout/test_daily.py -k dry_run'
ARGS ?=
SCHEDULER_DAILY_ARGS ?=
SCHEDULER_BACKFILL_ARGS ?=

BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo bench bench-small test test-slow test-pools test-clocks test-fuzz test-outage test-matrix \
	test-faults lint coverage lock build clean scheduler-daily scheduler-backfill

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## create .venv with the locked dependencies

demo: $(INSTALLED)  ## show one day's run, from Beat's trigger to 1,000 completed jobs
	@$(BIN)/python -m demo

test: $(INSTALLED)  ## run the test suite without its slow tests, or the tests that ARGS='...' selects
	@$(BIN)/python -m pytest $(or $(ARGS),-m 'not slow')

test-slow: $(INSTALLED)  ## run the slow tests: processes that are killed, Beat, many rows, the wheel
	@$(BIN)/python -m pytest -m slow $(ARGS)

test-pools: $(INSTALLED)  ## run each thing that a handler can do in each of Celery's pools
	@$(BIN)/python -m pytest -p tests.conftest -p tests.worker.conftest pools $(ARGS)

test-fuzz: $(INSTALLED)  ## try 20,000 odd inputs, 5,000 URLs of each server, 5,000 messages and 5,000 batches
	@FUZZ_INPUTS=20000 $(BIN)/python -m pytest tests/test_fuzz.py tests/publisher/test_differential.py

test-outage: $(INSTALLED)  ## take Redis away from Beat for more than a minute (3 minutes)
	@OUTAGE_SECONDS=70 $(BIN)/python -m pytest -n 2 tests/test_beat.py -k outlives

test-matrix: $(INSTALLED)  ## run the tests on PostgreSQL 15, Redis 7, PgBouncer and RabbitMQ
	@scripts/install-pgbouncer.sh
	@$(BIN)/python -m matrix

test-clocks: $(INSTALLED)  ## run ticks, passes and workers on hosts whose clock is wrong
	@scripts/install-faketime.sh
	@$(BIN)/python -m pytest -p tests.conftest clocks $(ARGS)

bench: $(INSTALLED)  ## measure ticks with up to 1,000,000 users, and update docs/performance.md (10 minutes)
	@$(BIN)/python -m benchmarks --write docs

bench-small: $(INSTALLED)  ## measure ticks with 20,000 users; fail if they are too slow
	@$(BIN)/python -m benchmarks --small

test-faults: $(INSTALLED)  ## kill, cut, stall, flush and restart processes and servers (10 minutes)
	@scripts/install-faketime.sh || true  # without it, the suite says which faults it does not play
	@$(BIN)/python -m faults

lint: $(INSTALLED)  ## run ruff, mypy and import-linter
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

coverage: $(INSTALLED)  ## run the tests and show branch coverage
	@$(BIN)/python -m pytest --cov --cov-report=term

COMPILE := uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header --upgrade --quiet

lock:  ## update both locks from pyproject.toml (needs uv and a network)
	$(COMPILE) --all-extras -o requirements-dev.lock
	$(COMPILE) --constraint requirements-dev.lock -o requirements.lock

build: $(INSTALLED)  ## build the sdist and the wheel into dist/
	@$(BIN)/python -m hatchling build

clean:  ## remove .venv and all files that tools have created
	rm -rf .venv build dist htmlcov .coverage .coverage.* .hypothesis .import_linter_cache \
		.mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

scheduler-daily: $(INSTALLED)  ## run: scheduler daily $(SCHEDULER_DAILY_ARGS)
	@$(BIN)/scheduler daily $(SCHEDULER_DAILY_ARGS)

scheduler-backfill: $(INSTALLED)  ## run: scheduler backfill $(SCHEDULER_BACKFILL_ARGS)
	@$(BIN)/scheduler backfill $(SCHEDULER_BACKFILL_ARGS)

$(INSTALLED): pyproject.toml requirements-dev.lock scripts/install.sh
	@PYTHON='$(PYTHON)' scripts/install.sh
