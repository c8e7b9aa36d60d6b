# The checks one by one; `bash .ci/run` does all of them in an environment of its own.
PYTHON ?= .venv/bin/python

.PHONY: check test lint types docs site bench

check: lint types docs site test

test:
	$(PYTHON) -m pytest -n auto

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types:
	$(PYTHON) -m mypy

docs:
	$(PYTHON) docs/generate.py --check

site:
	$(PYTHON) -m sphinx -E -W --keep-going -n -q -b html docs docs/_build/html

bench:
	@for script in zoo saturating_stack; do echo "== benchmarks.$$script"; $(PYTHON) -m benchmarks.$$script || exit 1; done
