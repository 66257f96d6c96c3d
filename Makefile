# Every target sets up what it needs; `make` alone lists them.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# TORCH=cpu takes PyTorch's builds without CUDA: 1 GB in the place of 6.
TORCH ?= default
CPU_INDEX := https://download.pytorch.org/whl/cpu
FRESH := $(CURDIR)/build/wheel/venv/bin
QUIET := --quiet --disable-pip-version-check
# One thread a worker: several multi-threaded processes on few cores stall each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help install train test test-slow test-wheel lint format docs bench mutate torture reproduce clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(READY)  ## Set up the virtual environment (VENV=.venv, 6 GB; 1 GB with TORCH=cpu)

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
ifeq ($(TORCH),cpu)
	$(BIN)/pip install --disable-pip-version-check torch torchvision --index-url $(CPU_INDEX)
endif
	$(BIN)/pip install --disable-pip-version-check --editable '.[dev]'
	touch $@

train: $(READY)  ## Train MADE on handwritten digits, evaluate it exactly, draw samples
	$(BIN)/armodels train

test: lint  ## Lint and run the tests (under three minutes)
	$(PYTEST) -m "not slow"

test-slow: $(READY)  ## Run every test, also the slow ones
	$(PYTEST)

# From a folder where nothing but the wheel can be imported. What users get, and its dependencies
# alone, trains first; the tests need tools of [dev].
test-wheel:  ## Build the wheel and run the tests from it, in an empty directory
	rm -rf build/wheel build/lib
	$(PYTHON) -m venv build/wheel/venv
	mkdir build/wheel/empty
ifeq ($(TORCH),cpu)
	$(FRESH)/pip install $(QUIET) torch torchvision --index-url $(CPU_INDEX)
endif
	$(FRESH)/pip wheel $(QUIET) --no-deps --wheel-dir build/wheel .
	$(FRESH)/pip install $(QUIET) build/wheel/*.whl
	$(FRESH)/pip check
	cd build/wheel/empty && $(FRESH)/armodels train trainer.max_steps=20 out=run
	cd build/wheel/empty && $(FRESH)/armodels eval run && rm -r run
	$(FRESH)/pip install $(QUIET) "$$(echo build/wheel/*.whl)[dev]"
	$(FRESH)/pip check
	cp -r tests build/wheel/empty
	cd build/wheel/empty && OMP_NUM_THREADS=1 $(FRESH)/python -m pytest tests -m "not slow" \
		-n auto --dist loadfile --rootdir=. -c $(CURDIR)/pyproject.toml

lint: $(READY)  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## Mend style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)  ## Build the site of documentation into build/site (NOTEBOOKS=false: none is run)
	OMP_NUM_THREADS=1 NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(READY)  ## Measure the speed of sampling, training and coding side by side
	$(BIN)/python scripts/benchmark.py

mutate: $(READY)  ## Plant known bugs one by one and show that the tests catch each
	$(BIN)/python scripts/mutate.py

torture: $(READY)  ## Kill, damage, misconfigure and attack the real program; count what survives
	$(BIN)/python scripts/torture.py

reproduce: $(READY)  ## Train what docs/results.md has no record of, and write its tables
	$(BIN)/python scripts/reproduce.py run

clean:  ## Remove the virtual environment and caches, never outputs/
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache build *.egg-info
