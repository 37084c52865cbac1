# make demo   install what the demo needs, then run it: pictures -> shards -> two Ray Train workers -> evaluation (minutes)
# make test   install everything, then run the tests
# make check  lint, types, import rules
# make soak   repetitions, full-size and comparison runs (long)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PROJECT := pyproject.toml constraints.txt

.PHONY: demo test check soak clean

demo: $(VENV)/.installed-demo
	$(BIN)/python jobs/demo.py

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest

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
