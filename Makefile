# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# make help says what there is. Everything runs in an environment of its own: .venv, or .venv-onedl with STACK=onedl.

STACK ?= openmmlab
PYTHON ?= python3
JOBS ?= 2
VENV := $(if $(filter onedl,$(STACK)),.venv-onedl,.venv)
ifeq ($(filter openmmlab onedl,$(STACK)),)
$(error STACK=$(STACK) is not known: it is openmmlab or onedl)
endif
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test reliability lint format clean

help:
	@echo 'make setup    an environment with the pinned stack and this package; the second time it costs nothing'
	@echo 'make quickstart  set up, then train and evaluate Mask R-CNN with DAT++: no data, no GPU needed'
	@echo 'make test     set up, then run the tests on CPU; ARGS="-k ops -x" goes to pytest'
	@echo '              JOBS=8 runs that many files at a time'
	@echo 'make reliability  kill, starve and mislead trainings for an hour, and write down what they did'
	@echo 'make lint     set up, then check style; make format repairs what can be repaired'
	@echo 'make clean    remove the environments and everything built; compiled mmcv wheels stay in the cache'
	@echo
	@echo 'STACK=openmmlab   the last OpenMMLab releases, in .venv (the default)'
	@echo 'STACK=onedl       the maintained OneDL forks, in .venv-onedl'
	@echo 'PYTHON=python3.11 the Python to make the environment with: 3.10, 3.11 or 3.12'

setup: $(READY)
	@echo "$(VENV) is ready; to work in it: . $(BIN)/activate"

# The file says that set-up went through; it is older than what set-up reads when that has changed.
$(READY): $(wildcard requirements/*.*) setup.py dat_mm/version.py
	@'$(PYTHON)' -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2> /dev/null || { \
	    echo; echo "setup stopped: PYTHON=$(PYTHON) is not Python 3.10, 3.11 or 3.12;" \
	        "it says: $$('$(PYTHON)' --version 2>&1)"; \
	    echo '  -> name one, as in: make setup PYTHON=python3.11'; exit 1; }
	@'$(PYTHON)' requirements/install.py '$(STACK)' '$(VENV)'
	@touch $@

quickstart: setup
	@$(BIN)/python -W ignore tools/quickstart.py $(ARGS)

# Test files side by side, each with one thread: the machine is as busy, and nothing waits for a thread.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

# The long versions of what goes wrong on clusters; the table in docs/reliability.md is what was seen.
reliability: setup
	RELIABILITY=full OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/reliability tests/slurm $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/oxlint --deny-warnings dat_mm

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-onedl build dist dat_mm/.mim *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
