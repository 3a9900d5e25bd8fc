# `make demo` runs the main job on a small model, `make test` the fast tests, `make test-all` all
# tests. Each makes the environment in .venv first. PYTHON=python3.12 make ... chooses another Python.
PYTHON ?= python3
BIN := .venv/bin

# Every test is in exactly one of the two parts (tests/repository/test_commands.py).
FAST := -m "not slow" --numprocesses 2 --dist worksteal
SLOW := -m "slow"

.PHONY: demo test test-all lint audit readme
demo: .venv/ready
	@$(BIN)/python jobs/eval_image.py

# Fast tests start no processes and no servers, and run side by side.
test: .venv/ready
	@$(BIN)/python -m pytest $(FAST)

# Slow tests share one Ray, and so run one after the other.
test-all: test
	@$(BIN)/python -m pytest $(SLOW)

lint: .venv/ready
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

# The table and the picture of README.md, from a run of the demo.
readme: .venv/ready
	@$(BIN)/python jobs/bench/readme.py

# Known weaknesses of the versions in constraints.txt; not part of `test`, because it asks a server.
audit: .venv/ready
	@$(BIN)/python -c "from urllib.request import urlopen; urlopen('https://api.osv.dev/v1/query', b'{\"package\": {\"name\": \"jinja2\", \"ecosystem\": \"PyPI\"}}', timeout=20)" \
		2>/dev/null || { echo 'Nothing was audited: https://api.osv.dev cannot be reached from here.' >&2; exit 1; }
	@$(BIN)/uv tool run --quiet pip-audit@2.10.1 --vulnerability-service osv --no-deps --disable-pip \
		--requirement constraints.txt

# The versions of constraints.txt, installed by uv because pip takes three times as long. Compiled
# at once: each of Ray's workers would do it again where PYTHONDONTWRITEBYTECODE is set.
.venv/ready: pyproject.toml constraints.txt
	@echo "Setting up .venv (once, about two minutes) ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ApET needs Python 3.11 or newer; PYTHON=... chooses one")'
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	@touch $@
