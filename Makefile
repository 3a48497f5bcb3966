PYTHON ?= python3
BIN := .venv/bin
SERVERS := $(BIN)/python -m example_project.servers

.PHONY: help demo serve test test-all lint audit format docs screenshots chaos crash-points mutants bench
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

demo: .venv/installed ## run the examples: product images, a merge sort and an import in stages
	$(SERVERS) -- $(BIN)/python manage.py demo

serve: .venv/installed ## run the admin with example data, and a worker, until Ctrl-C
	$(SERVERS) --keep-data -- $(BIN)/python manage.py serve

# Tests mostly wait, for processes to start and for leases to expire: two at a time for each of two cores.
PARALLEL := -n 4 --dist worksteal

test: .venv/installed ## run the tests on SQLite and on PostgreSQL
	$(SERVERS) -- $(BIN)/python -m pytest $(PARALLEL)
	$(SERVERS) --postgres -- $(BIN)/python -m pytest $(PARALLEL)

test-all: .venv/installed ## run the tests with the lowest to the newest versions of everything (an hour or two)
	$(BIN)/nox

lint: .venv/installed audit ## check style, types and dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

audit: .venv/installed ## check the dependencies for known vulnerabilities; with AUDIT=required, fail if PyPI is unreachable
	$(BIN)/python .ci/audit.py

format: .venv/installed ## format the files
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/installed ## compare with other queues, and write docs/benchmarks.md (25 minutes; needs npm)
	$(SERVERS) --postgres -- $(BIN)/python -m benchmarks

docs: .venv/installed ## build the documentation in build/docs; a warning is an error
	$(BIN)/sphinx-build -W --keep-going -n -q -b html docs build/docs

screenshots: .venv/installed ## take the pictures of the admin in docs/images, with Chromium
	$(SERVERS) -- $(BIN)/python manage.py test --settings tests.settings tests.browser.screenshots

MINUTES ?= 10
SEED ?= 1
chaos: .venv/installed ## inject faults at random times for MINUTES=10 (SEED=1), and write docs/chaos.md
	$(BIN)/python -m tests.chaos.campaign --minutes $(MINUTES) --seed $(SEED)

SECONDS ?= 1500
crash-points: .venv/installed ## kill, fail, hang or repeat every operation on Redis and the database
	$(BIN)/python -m tests.chaos --points 5000 --seconds $(SECONDS) --seed $(SEED)

mutants: .venv/installed ## break the code in ten ways, each of which the chaos tests must notice
	$(BIN)/python -m tests.chaos.mutants

# The stamp comes last, so that an interrupted installation is repeated.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@
