# make demo    set up, then the whole path on the sample photos: runs/demo/report/index.html
# make test    set up, then every check and every test
# make lint    the checks alone        make bench   latency of the artifacts of runs/demo
# make clean   remove .venv and caches; runs/ stays
#
# Set-up happens once, and again when pyproject.toml or constraints.txt changed. Another Python: make PYTHON=python3.12

VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.10; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
PACKAGES := models export benchmarks optimize
WORKERS ?= 2
DEMO ?= runs/demo

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test lint bench clean

help:
	@sed -n 's/^# \{0,1\}//p' $(MAKEFILE_LIST)

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: Python: expected 3.10 to 3.13, got none; fix: make PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/python -m optimize run --teacher resnet18_unet -o $(DEMO)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/interrogate --quiet $(PACKAGES)

test: lint
	$(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

bench: $(READY)
	$(BIN)/python -m pytest benchmarks --benchmark-only $(if $(wildcard $(DEMO)/artifacts),--run $(DEMO)) $(PYTEST_ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
