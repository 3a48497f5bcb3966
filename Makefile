PYTHON ?= python3
BIN := .venv/bin
SERVERS := $(BIN)/python -m example_project.servers

.PHONY: help demo serve test lint audit format screenshots
.DEFAULT_GOAL := help

help: ## what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

demo: .venv/installed ## the images of a product, one after the other and in a batch, and how long each took
	$(SERVERS) -- $(BIN)/python manage.py demo

serve: .venv/installed ## the admin with data in it, and a worker, until Ctrl-C
	$(SERVERS) --keep-data -- $(BIN)/python manage.py serve

test: .venv/installed ## the tests, on SQLite and on PostgreSQL
	$(SERVERS) -- $(BIN)/python -m pytest
	$(SERVERS) --postgres -- $(BIN)/python -m pytest

lint: .venv/installed audit ## style, types and dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

audit: .venv/installed ## known vulnerabilities in the dependencies, by PyPI; AUDIT=required fails where it is out of reach
	$(BIN)/python .ci/audit.py

format: .venv/installed ## writes the style into the files
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

screenshots: .venv/installed ## the pictures of the admin in docs/images, by Chromium
	$(SERVERS) -- $(BIN)/python manage.py test --settings tests.settings tests.browser.screenshots

# Last the stamp: an installation that stopped half-way is taken up again.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@
