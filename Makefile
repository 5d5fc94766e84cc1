# Everything a checkout can do. Each target sets up what it needs: a tool environment with uv (.tools) and the locked packages (.venv).
PYTHON ?= python3
UV_VERSION := 0.13.8
UV := .tools/bin/uv
RUN := .venv/bin
OFFLINE := HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 DO_NOT_TRACK=1
export UV_PYTHON_DOWNLOADS := never
export UV_HTTP_TIMEOUT ?= 300

.PHONY: help setup demo test check format docs bench mutants clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    tune the bundled backbone on handwritten digits, four ways, and compare"
	@echo "make test    run the tests"
	@echo "make check   formatting, lint, types"
	@echo "make format  format the code and apply safe lint fixes"
	@echo "make docs    write the pages of docs/ and the recipes that come from the code"
	@echo "make mutants plant faults and see whether the conformance tests find them"
	@echo "make bench   measure speed and memory against the literal formulation"

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$$($(PYTHON) --version) found; promptvit needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	$(PYTHON) -m venv .tools
	.tools/bin/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

.venv/.ready: $(UV) pyproject.toml uv.lock
	$(UV) sync --quiet --locked --all-extras --python $(PYTHON)
	@touch $@

setup: .venv/.ready

demo: setup
	$(OFFLINE) $(RUN)/promptvit demo

test: setup
	$(OFFLINE) $(RUN)/pytest --numprocesses auto --dist worksteal --durations 25

check: setup
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/pyright --pythonpath $(RUN)/python

format: setup
	$(RUN)/ruff format .
	$(RUN)/ruff check --fix .

docs: setup
	$(OFFLINE) $(RUN)/python -m scripts.docs
	$(RUN)/python -m scripts.recipes

mutants: setup
	$(OFFLINE) $(RUN)/python -m scripts.mutants

bench: setup
	$(OFFLINE) $(RUN)/python -m benchmarks.run --json docs/results/benchmark.json

clean:
	rm -rf .venv .tools .pytest_cache .ruff_cache .hypothesis dist
