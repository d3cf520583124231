# `make demo` and `make test` each set everything up on a fresh clone. Another interpreter: make PYTHON=python3.12 ...

find_python = for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done
PYTHON ?= $(shell $(find_python))

VENV := .venv
BIN := $(VENV)/bin
PACKAGES := plugins/mixar_adaptive plugins/mixar_diffusers plugins/mixar_eval plugins/mixar_fsq plugins/mixar_import \
	plugins/mixar_page plugins/mixar_zoo
STAMP := $(VENV)/.installed

# Threads of torch in each of the two workers of pytest: two with two threads each would fight over two cores.
OMP_NUM_THREADS ?= 1
PYTEST = OMP_NUM_THREADS=$(OMP_NUM_THREADS) $(BIN)/python -m pytest

.PHONY: help setup demo test test-slow check docs format clean
help:
	@echo "make demo       sample from the shipped models, and train a small one from scratch (minutes on two cores)"
	@echo "make test       ruff, mypy and the tests; ARGS='-k recipe' goes to pytest, OMP_NUM_THREADS=2 to torch"
	@echo "make test-slow  the tests that make virtual environments, start many processes or a browser, or try every published size"
	@echo "make check      ruff and mypy"
	@echo "make docs       a page for every public name, from its docstring, in build/docs"
	@echo "make format     let ruff format and repair what it can"
	@echo "make clean      remove the environment and caches"

setup: $(STAMP)

# Plugin packages of their own, installed the way a third party's would be.
$(STAMP): pyproject.toml $(PACKAGES:%=%/pyproject.toml)
	@test -n "$(PYTHON)" || { echo "error: no Python >= 3.11 with venv found; try make PYTHON=/path/to/python3" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' $(PACKAGES:%=-e ./%)
	touch $@

demo: setup
	$(BIN)/mixar demo

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check
	$(PYTEST) -n 2 --dist worksteal -m 'not slow' $(ARGS)

test-slow: setup
	$(PYTEST) -n 2 --dist worksteal -m slow $(ARGS)

# pdoc sees attrs' __init__ outside the module whose annotations it shows, and warns of each.
docs: setup
	$(BIN)/python -W "ignore:Error parsing type annotation" -m pdoc -d google --no-show-source -o build/docs \
		mixar mixar_core mixar_core.testing '!mixar.cli'

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build dist
