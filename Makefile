# Needs Python 3.11 or later, git and make. Everything else is set up on first use and kept in .venv.
#   make up     start Baseload here and print its address and a key      make check  style, types, layers
#   make test   all tests                                                make help   the other targets

PYTHON ?= python3
PORT ?= 8080
DATA_DIR ?= baseload-data
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
.DEFAULT_GOAL := help
.SHELLFLAGS := -eu -c
.PHONY: help up setup test setup-dev check format guide bench-gateway bench-engine bench-core bench-twin bench-wake native native-test clean

up: setup $(VENV)/.warm  ## start Baseload in the foreground; Ctrl-C stops it
	@exec $(BIN)/baseload up --port $(PORT) --data-dir $(DATA_DIR) --show-key

test: setup-dev  ## run all tests
	$(BIN)/python -m pytest -q -n 2 --dist loadgroup

check: setup-dev  ## style, types and layers
	$(BIN)/ruff format --check src tests bench
	$(BIN)/ruff check src tests bench
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup-dev  ## format the code
	$(BIN)/ruff format src tests bench
	$(BIN)/ruff check --fix src tests bench

guide: setup  ## train the shipped model `guide` from scratch (about 8 minutes on 2 cores)
	$(BIN)/baseload train --config configs/guide.toml --fresh

bench-gateway: setup-dev  ## the gateway's added latency and requests per second (needs wrk and a C compiler)
	$(BIN)/python bench/gateway/run.py

bench-engine: setup-dev  ## the engine beside llama.cpp, OpenVINO and torch on a 386 M-parameter shape (25 minutes)
	$(BIN)/python bench/engine/run.py

bench-core: setup-dev  ## events per second of the control machine, and of the journal under it
	$(BIN)/python bench/core/machines.py
	$(BIN)/python bench/journal.py

bench-wake: setup-dev  ## how fast `baseload up` is ready, and a sleeping model answers
	$(BIN)/python bench/wake.py

bench-twin: setup-dev  ## events per second of the twin
	$(BIN)/python bench/twin/run.py

native: $(VENV)/.python  ## build the C++ kernels again after a change in native/ (or: cmake --build build/native)
	$(PIP) install --no-deps -e .

# Builds need a C++ compiler; cmake and ninja come from PyPI where the machine has none.
native-test: setup  ## the kernels' C++ tests: plain, with address and undefined-behaviour checks, with thread checks
	@command -v cmake >/dev/null && command -v ninja >/dev/null || $(PIP) install cmake ninja
	@for sanitize in "" address,undefined thread; do \
	  name=$${sanitize%%,*}; folder=build/native-$${name:-plain}; \
	  echo "== sanitizers: $${sanitize:-none}"; \
	  PATH="$(CURDIR)/$(BIN):$$PATH"; \
	  cmake -S native -B $$folder -G Ninja -DBASELOAD_TESTS=ON -DBASELOAD_SANITIZE=$$sanitize \
	    -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python >/dev/null; \
	  cmake --build $$folder >/dev/null; \
	  (cd $$folder && ctest --output-on-failure); \
	done

setup: $(VENV)/.ready
setup-dev: $(VENV)/.ready-dev

# Stamps: setting up again costs nothing until a lock file or pyproject.toml changes.
$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Baseload needs Python 3.11 or later; try make PYTHON=python3.12")'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@touch $@

$(VENV)/.ready: $(VENV)/.python requirements.lock pyproject.toml
	$(PIP) install --require-hashes -r requirements.lock
	$(PIP) install --no-deps -e .
	@touch $@

# The shipped model's programs are compiled once, so that its first wake is as fast as later ones.
$(VENV)/.warm: $(VENV)/.ready $(wildcard src/baseload/models/guide/*)
	@if [ -f src/baseload/models/guide/config.json ]; then $(BIN)/baseload models warm; fi
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready requirements-dev.lock
	$(PIP) install --require-hashes -r requirements-dev.lock
	@touch $@

clean:  ## remove what was built and cached, but not the data
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache src/*.egg-info
	find src tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16
