# The checks one by one; `bash .ci/run` does all of them in an environment of its own.
PYTHON ?= .venv/bin/python

.PHONY: check test lint types docs bench

check: lint types docs test

test:
	$(PYTHON) -m pytest -n auto

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types:
	$(PYTHON) -m mypy

docs:
	$(PYTHON) docs/generate.py --check

bench:
	@for script in zoo saturating_stack; do echo "== benchmarks.$$script"; $(PYTHON) -m benchmarks.$$script || exit 1; done
