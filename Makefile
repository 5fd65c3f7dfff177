# `make help` lists the targets. Everything runs in .venv, with the versions of requirements.lock.

# The Python to install with; when empty, the first Python >= 3.11 on PATH.
PYTHON ?=
SCHEDULER_DAILY_ARGS ?=
SCHEDULER_BACKFILL_ARGS ?=

BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo bench bench-small test test-fuzz test-matrix test-faults lint coverage lock clean scheduler-daily scheduler-backfill

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## make .venv with the locked dependencies

demo: $(INSTALLED)  ## see one day's run, from Beat's ring to 1,000 completed jobs
	@$(BIN)/python -m demo

test: $(INSTALLED)  ## run the whole test suite
	@$(BIN)/python -m pytest

test-fuzz: $(INSTALLED)  ## 20,000 odd inputs everywhere; 5,000 batches through both publishers
	@FUZZ_INPUTS=20000 $(BIN)/python -m pytest tests/test_fuzz.py tests/test_differential.py

test-matrix: $(INSTALLED)  ## run it on PostgreSQL 15, Redis 7, PgBouncer, RabbitMQ
	@scripts/install-pgbouncer.sh
	@$(BIN)/python -m matrix

bench: $(INSTALLED)  ## ticks against the stores' floor and Celery's idioms, 1,000,000 users: ten minutes
	@$(BIN)/python -m benchmarks --write docs

bench-small: $(INSTALLED)  ## the same with 20,000 users; red where the ratios are too low
	@$(BIN)/python -m benchmarks --small

test-faults: $(INSTALLED)  ## kill, stall, cut, flush, restart: 300 faults, at most 10 minutes
	@$(BIN)/python -m faults

lint: $(INSTALLED)  ## ruff, mypy, import-linter
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

coverage: $(INSTALLED)  ## run the tests and show branch coverage
	@$(BIN)/python -m pytest --cov --cov-report=term

lock:  ## write requirements.lock anew from pyproject.toml (needs uv and a network)
	uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-header --upgrade --quiet -o requirements.lock

clean:  ## remove .venv and everything that tools have left here
	rm -rf .venv build dist htmlcov .coverage .coverage.* .hypothesis .import_linter_cache \
		.mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

scheduler-daily: $(INSTALLED)  ## scheduler daily $(SCHEDULER_DAILY_ARGS)
	@$(BIN)/scheduler daily $(SCHEDULER_DAILY_ARGS)

scheduler-backfill: $(INSTALLED)  ## scheduler backfill $(SCHEDULER_BACKFILL_ARGS)
	@$(BIN)/scheduler backfill $(SCHEDULER_BACKFILL_ARGS)

$(INSTALLED): pyproject.toml requirements.lock scripts/install.sh
	@PYTHON='$(PYTHON)' scripts/install.sh
