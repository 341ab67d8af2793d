# `make quickstart` and `make test` do everything on a fresh machine with Python.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# For pip: another index, say, that has PyTorch for machines without a GPU.
PIP_ARGS ?=
# One thread for each process of the tests: several of each would wait for one another.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

.PHONY: quickstart test test-all lint clean

quickstart: $(VENV)/.installed
	rm -rf outputs/quickstart
	$(BIN)/accelerate launch recipes/quickstart.py

test: $(VENV)/.installed lint
	$(PYTEST)

test-all: $(VENV)/.installed lint
	$(PYTEST) -m "slow or not slow"

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) outputs
