# make demo   install what the demo needs, then run it: pictures -> shards -> two Ray Train workers -> evaluation (minutes)
# make quick  install everything, then run the tests that need no Ray: tests/house, tests/unit and tests/world (6 minutes on 2 cores)
# make test   install everything, then run all tests, also those on real Ray clusters: tests/system (17 minutes on 2 cores)
# make check  lint, types, import rules
# make docs   the documentation as a site with search, in build/site
# make soak   repetitions, full-size and comparison runs (long)
#
# quick and test run WORKERS processes of pytest, each of which takes whole files; one of them takes all that share one Ray.
# They wait more than they compute: on 2 cores, 3 are a third faster than 2, and hold up to 10 GiB.
# They end with the slowest tests and pytest's count of all. One file: .venv/bin/python -m pytest tests/unit/model/test_clip.py
VENV ?= .venv
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
# The first that fits: this machine's own python3, or another of its Pythons; PYTHON=... names one.
PYTHON ?= $(shell for one in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$one -c '$(FITS)' 2> /dev/null && echo $$one && break; done)
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2> /dev/null)
BIN := $(VENV)/bin
PROJECT := pyproject.toml constraints.txt
WORKERS ?= 3
API := rayclip training.loss model.clip model.tokenizer pipeline.dataset.manifest training.data.sample_order
# Tests start hundreds of interpreters; without bytecode each would compile the project again.
export PYTHONDONTWRITEBYTECODE :=
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --no-loadscope-reorder --durations=20

.PHONY: demo quick test check soak docs clean

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

# An environment of another Python, or a broken one, is made again; uv, where it is installed, brings a Python that fits.
MADE := $(VENV)/.python-$(VERSION)
$(MADE):
	@if $(PYTHON) -c '$(FITS)' 2> /dev/null; then $(PYTHON) -m venv --clear $(VENV); \
	elif command -v uv > /dev/null; then uv venv --clear --seed --python 3.12 $(VENV); \
	else echo 'make: RayCLIP needs Python 3.11 to 3.14$(if $(VERSION),; $(PYTHON) is $(VERSION)). Install one, e.g.' \
	"\`apt-get install python3.12 python3.12-venv\` or \`pip install uv\`, and run make again; PYTHON=... names one." >&2; exit 1; fi
	@touch $@

# What the tests need holds all that the demo needs.
$(VENV)/.installed-demo: $(MADE) $(PROJECT)
	@test -e $(VENV)/.installed-test || $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/.installed-test: $(MADE) $(PROJECT)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[test]'
	$(BIN)/python -m venv $(VENV)/ministack  # an S3 server that survives SIGKILL; it pins packages that ours need newer
	$(VENV)/ministack/bin/python -m pip install --disable-pip-version-check -q ministack==1.5.33
	@touch $@

# The pages lie under build/pages as they do here, with all that they may link to.
docs: $(VENV)/.installed-docs
	rm -rf build/pages && mkdir -p build/pages
	git ls-files -z '*.md' '*.ipynb' '*.png' '*.py' '*.yaml' '*.yml' '*.txt' '*.toml' infra LICENSE NOTICE Makefile | tar --null -T - -cf - | tar -xf - -C build/pages
	for one in $(API); do printf '::: %s\n\n' $$one; done > build/pages/api.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -q
	@echo 'build/site/index.html; to look at it: $(BIN)/mkdocs serve'

$(VENV)/.installed-docs: $(MADE) $(PROJECT)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info
