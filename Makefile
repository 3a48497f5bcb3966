PYTHON ?= python3
BIN := .venv/bin
SERVERS := $(BIN)/python -m example_project.servers

.PHONY: help demo serve test test-all lint audit format docs screenshots chaos crash-points mutants bench
.DEFAULT_GOAL := help

help: ## what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

demo: .venv/installed ## product images, a merge sort and an import in stages, in batches, with what happened
	$(SERVERS) -- $(BIN)/python manage.py demo

serve: .venv/installed ## the admin with data in it, and a worker, until Ctrl-C
	$(SERVERS) --keep-data -- $(BIN)/python manage.py serve

# Tests mostly wait, for processes to start and for leases to expire: two at a time for each of two cores.
PARALLEL := -n 4 --dist worksteal

test: .venv/installed ## the tests, on SQLite and on PostgreSQL
	$(SERVERS) -- $(BIN)/python -m pytest $(PARALLEL)
	$(SERVERS) --postgres -- $(BIN)/python -m pytest $(PARALLEL)

test-all: .venv/installed ## the tests, from the lowest versions of everything to the newest Python and Django (an hour or two)
	$(BIN)/nox

lint: .venv/installed audit ## style, types and dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

audit: .venv/installed ## known vulnerabilities in the dependencies, by PyPI; AUDIT=required fails where it is out of reach
	$(BIN)/python .ci/audit.py

format: .venv/installed ## writes the style into the files
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/installed ## ours and the peers, one table, into docs/benchmarks.md (25 minutes; needs npm)
	$(SERVERS) --postgres -- $(BIN)/python -m benchmarks

docs: .venv/installed ## the documentation, into build/docs; a warning is an error
	$(BIN)/sphinx-build -W --keep-going -n -q -b html docs build/docs

screenshots: .venv/installed ## the pictures of the admin in docs/images, by Chromium
	$(SERVERS) -- $(BIN)/python manage.py test --settings tests.settings tests.browser.screenshots

MINUTES ?= 10
SEED ?= 1
chaos: .venv/installed ## faults at random times for MINUTES=10 (SEED=1), and docs/chaos.md, which says what held
	$(BIN)/python -m tests.chaos.campaign --minutes $(MINUTES) --seed $(SEED)

SECONDS ?= 1500
crash-points: .venv/installed ## every operation on Redis and the database: killed, failing, hanging, done twice there
	$(BIN)/python -m tests.chaos --points 5000 --seconds $(SECONDS) --seed $(SEED)

mutants: .venv/installed ## ten deliberate breaks, each of which the chaos tests must notice
	$(BIN)/python -m tests.chaos.mutants

# Last the stamp: an installation that stopped half-way is taken up again.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@
