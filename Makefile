# make demo   install what the demo needs, then run it: pictures -> shards -> two Ray Train workers -> evaluation (minutes)
# make quick  install everything, then run the tests that need no Ray: tests/house, tests/unit and tests/world (7 minutes on 2 cores)
# make test   install everything, then run all tests, also those on real Ray clusters: tests/system (28 minutes on 2 cores)
# make check  lint, types, import rules
# make soak   repetitions, full-size and comparison runs (long)
#
# quick and test run WORKERS processes of pytest, each of which takes whole files; one of them takes all that share one Ray.
# They end with the slowest tests and pytest's count of all. One file: .venv/bin/python -m pytest tests/unit/model/test_clip.py
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PROJECT := pyproject.toml constraints.txt
WORKERS ?= 2
# Tests start hundreds of interpreters; without bytecode each would compile the project again.
export PYTHONDONTWRITEBYTECODE :=
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --no-loadscope-reorder --durations=20

.PHONY: demo quick test check soak clean

demo: $(VENV)/.installed-demo
	$(BIN)/python jobs/demo.py

quick: $(VENV)/.installed-test
	$(PYTEST) tests/house tests/unit tests/world

test: $(VENV)/.installed-test
	$(PYTEST)

check: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

soak: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m soak --timeout=3600

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# What the tests need holds all that the demo needs.
$(VENV)/.installed-demo: $(BIN)/python $(PROJECT)
	@test -e $(VENV)/.installed-test || $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/.installed-test: $(BIN)/python $(PROJECT)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[test]'
	$(PYTHON) -m venv $(VENV)/ministack  # an S3 server that survives SIGKILL; it pins packages that ours need newer
	$(VENV)/ministack/bin/python -m pip install --disable-pip-version-check -q ministack==1.5.33
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info
