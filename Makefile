# Everything runs in .venv, built by pip from pinned versions. Override PYTHON to choose the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist worksteal

.PHONY: demo test test-slow coverage check docs clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

# `gjwm run` goes on where an interrupted demo stopped.
demo: $(VENV)/.installed
	$(BIN)/gjwm run train.steps=1000 decode.steps=400    # half of the recipe: minutes count here
	$(BIN)/gjwm video

# What a change must pass before it is pushed: a few minutes on two cores.
test: $(VENV)/.installed
	$(PYTEST) -m "not slow"

# The rest: whole runs, kill -9 trials, compilation, benchmarks, the wheel.
test-slow: $(VENV)/.installed
	$(PYTEST) -m slow

coverage: $(VENV)/.installed
	$(PYTEST) -m "not slow" --cov --cov-report=term:skip-covered

check: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	touch $@

docs: $(VENV)/.docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs docs/_build

clean:
	rm -rf $(VENV) docs/_build build dist *.egg-info .pytest_cache .ruff_cache .coverage
