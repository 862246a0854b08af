# Each target is a thin call; `python -m cskt demo` needs no make. Windows: see README.md.
PYTHON ?= python3
VENV ?= .venv
# Linux without a GPU: make demo PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu" (without CUDA)
PIP_FLAGS ?=
BIN := $(VENV)/bin

.PHONY: demo test lint clean

demo: $(VENV)/.core
	$(BIN)/python -m cskt demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

clean:
	rm -rf $(VENV) demo logs build dist .pytest_cache .mypy_cache .ruff_cache

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cskt needs Python 3.11 or newer; set PYTHON=")'
	@test ! -e $(VENV) || { echo '$(VENV) is there, but is no Python environment; remove it or set VENV='; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.core: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install $(PIP_FLAGS) --constraint constraints.txt --editable .
	touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install $(PIP_FLAGS) --constraint constraints.txt --editable '.[dev]'
	touch $@
