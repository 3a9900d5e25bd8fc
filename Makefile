# Two commands: `make demo` runs the main job on a small model, `make test` runs the tests.
# Both make the environment in .venv first, if it is not there yet. PYTHON=python3.12 make ... chooses another Python.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint
demo: .venv/ready
	@$(BIN)/python jobs/eval_image.py

test: .venv/ready
	@$(BIN)/python -m pytest

lint: .venv/ready
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

# The versions of constraints.txt, installed by uv because pip takes three times as long.
.venv/ready: pyproject.toml constraints.txt
	@echo "Setting up .venv (once, about two minutes) ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ApET needs Python 3.11 or newer; PYTHON=... chooses one")'
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	@touch $@
