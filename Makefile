# `make` alone lists what there is. Everything happens in .venv; nothing is installed anywhere else.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
# The first of these that is Python 3.11 or newer is used; `make PYTHON=/path/to/python3.12 …` names one.
PYTHON ?= python3 python3.12 python3.11 python3.13
# Further options for pip, e.g. `make PIP_ARGS='--find-links wheels --no-index' simulate` on a machine without a network.
PIP_ARGS ?=
# Overrides for the run, e.g. `make simulate ARGS='strategy=fed_sb federation.rounds=20'`.
ARGS ?=
# Test processes. Each one computes on a single thread, so this is also the number of cores that are used.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest

.PHONY: help simulate test test-fast setup lint format deploy-demo faults protocol frontend wheel clean

help: ## show this list
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

simulate: $(VENV)/.installed ## set up, fetch the quick-start model and data, and train with ten virtual clients
	$(BIN)/fedlora simulate $(ARGS)

test: $(VENV)/.installed-dev lint ## set up for development, then linters, types and the whole suite
	$(PYTEST) -n $(WORKERS) --dist worksteal $(ARGS)

test-fast: $(VENV)/.installed-dev ## only the tests that take seconds
	$(PYTEST) -m 'not slow' $(ARGS)

setup: $(VENV)/.installed-dev ## make .venv with everything that development needs

lint: $(VENV)/.installed-dev ## what pre-commit runs: style, format, types, forbidden code, links
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/check_forbidden.py
	$(BIN)/python tools/check_links.py

format: $(VENV)/.installed-dev ## put the code in form and repair what can be repaired
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

deploy-demo: $(VENV)/.installed-dev ## a server and three clients over mutual TLS train the quick start; compared with a simulation
	PYTHONPATH=. $(BIN)/python tools/deploy_demo.py $(ARGS)

faults: $(VENV)/.installed-dev ## kill, stop, fill, cut and spoil everything while it trains: a table, one row a fault
	PYTHONPATH=. $(BIN)/python -m benchmarks.faults $(ARGS)

protocol: $(VENV)/.installed-dev ## generate fedlora/link/v1/*_pb2* from link.proto
	$(BIN)/python tools/generate_protocol.py

frontend: $(VENV)/.installed ## fetch the dashboard's third-party scripts, as an installation does too
	$(BIN)/python -m fedlora.server.dashboard.vendor

wheel: $(VENV)/.installed-dev ## build the source archive and the wheel into dist/
	$(BIN)/python -m build

clean: ## remove .venv, build results and caches (not runs/, not the user's asset cache)
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamp files: an installation is made again whenever pyproject.toml, or what it builds of other people's scripts, is newer
# than its stamp.
FRONTEND := setup.py fedlora/server/dashboard/frontend/package-lock.json
$(VENV)/.installed: pyproject.toml $(FRONTEND) | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(FRONTEND) | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) -e '.[dev]'
	@touch $(VENV)/.installed $@

# Some distributions ship Python without `ensurepip`; then the machine's own pip fills the environment.
$(BIN)/python:
	@for candidate in $(PYTHON); do \
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python="$$candidate"; break; fi; \
	done; \
	if [ -z "$${python:-}" ]; then \
	  echo "fedlora needs Python 3.11 or newer; tried: $(PYTHON). Install one, or name it: make PYTHON=/path/to/python" >&2; exit 1; \
	fi; \
	echo "making $(VENV) with $$("$$python" --version); the first installation takes minutes (PyTorch is large)"; \
	if "$$python" -c 'import ensurepip' 2>/dev/null; then "$$python" -m venv $(VENV); \
	else "$$python" -m venv --without-pip $(VENV) && "$$python" -m pip --python $(BIN)/python install --quiet $(PIP_ARGS) pip; \
	fi || { rm -rf $(VENV); echo "no virtual environment could be made; on Debian: apt-get install python3-venv" >&2; exit 1; }
