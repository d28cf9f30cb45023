# make demo [INPUT=slide.h5ad] [OUT=demo] [ARGS="--library-key slide"]
# make test, make docs, make lint
# All of them install what they need into .venv, once, and again when pyproject.toml or constraints.txt change.

PYTHON ?= python3
OUT ?= demo
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test docs lint help

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

demo: $(VENV)/.installed-test
	$(BIN)/python -m stage_sc.demo $(if $(INPUT),"$(INPUT)") --out "$(OUT)" $(ARGS)

test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

docs: $(VENV)/.installed-doc
	$(BIN)/python -m sphinx -M html docs docs/_build -W --keep-going

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.installed-%: pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$*]"
	@touch $@

# A first install takes some minutes, mostly for torch.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "stage_sc needs Python 3.11 or newer, but $(PYTHON) is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name another one: make $(or $(MAKECMDGOALS),demo) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	@echo "Installing into $(VENV); this takes some minutes once."
