# make run: environment + the whole pipeline.  make test: environment + tests.
# make test ARGS="-k name -n 0" hands arguments to pytest; -n: how many processes, default one for each core.
# PYTHON names the interpreter that makes the environment, VENV its folder.
PYTHON ?= python3
VENV ?= .venv
BIN = $(abspath $(VENV))/bin
PIP = $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
# Idle compute threads sleep: spinning ones are many times slower on a small machine that does anything else.
ENV = PATH="$(BIN):$$PATH" OMP_WAIT_POLICY=$${OMP_WAIT_POLICY:-PASSIVE}

.DEFAULT_GOAL := help
.PHONY: help run compare quick test lint format types clean

help:
	@echo "make run     environment, then the whole pipeline (dvc repro)"
	@echo "make quick   a small experiment in a minute: quick.args, and ARGS=\"-S train.epochs=8\" after it"
	@echo "make compare the experiments side by side: what was changed, and the numbers that decide (dvc exp show)"
	@echo "make test    environment, then the tests"
	@echo "make lint    ruff check, ruff format --check"
	@echo "make types   mypy"
	@echo "make format  ruff format, ruff check --fix"
	@echo "make clean   remove what the pipeline made here; the environment, DVC's cache and mlflow.db stay"

run: $(VENV)/.installed
	@git rev-parse --git-dir >/dev/null 2>&1 || { \
	  echo "This folder is not a git repository: the pipeline runs, dvc exp commands will not."; \
	  $(BIN)/dvc config --local core.no_scm true; }
	@$(ENV) dvc repro
	@$(BIN)/python -m ecggen.report.summary
	@$(BIN)/python -m ecggen.tracking || true  # the results stand, also where MLflow does not take their record

# In a folder of its own: params.yaml and results here stay as they are.
quick: $(VENV)/.installed
	@export $(ENV); name=quick-$$(date +%m%d-%H%M%S); \
	{ cat quick.args; echo "$(ARGS)"; } | xargs dvc exp run --temp --name $$name && \
	dvc metrics diff --all HEAD $$name

# Left out: hashes of files, and numbers that rise and fall with those shown; dvc metrics diff has them all.
compare:
	@$(ENV) dvc exp show --only-changed --hide-workspace $(ARGS) \
	  --drop '(.*/|Created|State|Executor|.*margin|r_I(\+II)?$$|person_I$$|coverage)'

test: $(VENV)/.installed-dev
	@$(ENV) OMP_NUM_THREADS=1 python -m pytest -n logical --dist worksteal $(ARGS)

lint: $(VENV)/.installed-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	@$(BIN)/mypy

format: $(VENV)/.installed-dev
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "error: $(PYTHON) is not Python 3.10 to 3.13: name one with make PYTHON=python3.11 ..." >&2; exit 1; }
	@echo "Making the environment $(VENV) ..."
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "error: $(PYTHON) has no working venv module (Debian and Ubuntu: apt install python3-venv)." >&2; exit 1; }

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the packages (a few minutes the first time) ..."
	@$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the packages and the test tools (a few minutes the first time) ..."
	@$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.installed

clean:
	rm -rf data/checked data/raw data/records data/windows data/transfer data/transfer_raw results/*/figures results/train/*.pt results/report/*.html
	rm -rf .pytest_cache .mypy_cache .ruff_cache *.egg-info
