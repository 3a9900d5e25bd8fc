# `make demo` runs the main job on a small model, `make test` the fast tests, `make test-all` all
# tests. Each sets up .venv first. `PYTHON=python3.12 make ...` chooses another Python.
PYTHON ?= python3
BIN := .venv/bin

# Every test is in exactly one of the two parts (tests/repository/test_fast_and_slow.py).
FAST := -m "not slow" --numprocesses 2 --dist worksteal
SLOW := -m "slow" --numprocesses 2 --dist loadfile

.PHONY: demo test test-all test-versions test-oldest lint audit readme
demo: .venv/ready
	@$(BIN)/python jobs/eval_image.py

# Fast tests start no processes and no servers, and run side by side.
test: .venv/ready
	@$(BIN)/python -m pytest $(FAST)

# Two files run at a time. The tests of a file, and all that one worker runs, share their Ray.
test-all: test
	@$(BIN)/python -m pytest $(SLOW)

# Attach, decode and jobs with the oldest and the newest versions that pyproject.toml allows.
ATTACH := tests/apet/attach tests/apet/decoding tests/apet/test_transformers_api.py \
	tests/apet/core/test_triton_kernels.py
JOBS := tests/pipelines/inference tests/cluster/test_job.py tests/cluster/test_checkpoint_layouts.py
test-versions: .venv-oldest/ready .venv-newest/ready
	@.venv-oldest/bin/python -m pytest $(ATTACH) $(JOBS)
	@.venv-newest/bin/python -m pytest $(ATTACH) $(JOBS)

# The part that CI runs: there, .venv has the newest versions.
test-oldest: .venv-oldest/ready
	@.venv-oldest/bin/python -m pytest $(FAST) $(ATTACH)

lint: .venv/ready
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

# The table and the picture of README.md, from a run of the demo.
readme: .venv/ready
	@$(BIN)/python jobs/bench/readme.py

# Known vulnerabilities of the versions in constraints.txt. Not part of `test`: it needs a network.
audit: .venv/ready
	@$(BIN)/python -c "from urllib.request import urlopen; \
		urlopen('https://api.osv.dev/v1/query', timeout=20, \
		data=b'{\"package\": {\"name\": \"jinja2\", \"ecosystem\": \"PyPI\"}}')" 2>/dev/null \
		|| { echo 'Nothing was audited: cannot reach https://api.osv.dev from here.' >&2; exit 1; }
	@$(BIN)/uv tool run --quiet pip-audit@2.10.1 --vulnerability-service osv --no-deps --disable-pip \
		--requirement constraints.txt

# Installs the versions of constraints.txt, with uv because pip takes three times as long. Bytecode
# is compiled here: with PYTHONDONTWRITEBYTECODE, each of Ray's workers would compile it again.
.venv/ready: pyproject.toml constraints.txt
	@echo "Setting up .venv (once, about two minutes) ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) \
		and "ApET needs Python 3.11 or newer: choose one with PYTHON=...")'
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python \
		--constraint constraints.txt --editable '.[dev]'
	@touch $@

.venv-oldest/ready: CONSTRAINTS := constraints-oldest.txt
.venv-newest/ready: CONSTRAINTS := constraints.txt
.venv-oldest/ready .venv-newest/ready: pyproject.toml constraints.txt constraints-oldest.txt
.venv-oldest/ready .venv-newest/ready: | .venv/ready
	@echo "Setting up $(@D) ..."
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(@D)
	@$(BIN)/uv pip install --quiet --python $(@D)/bin/python \
		--constraint $(CONSTRAINTS) --editable '.[dev]'
	@touch $@
