# make demo         quickstart on a fresh machine: environment, install, run
# make test         the test suite
# make test-slow    the long tests
# make test-peers   the tests against other packages
# make test-slurm   a grid through a Slurm of one node, which is installed where root can do so (Debian, Ubuntu)
# make check        format, lint, types, layers
# make format       repair format and lint
# make cards        the cards of conf/, from the dataclasses they name
# make docs         the documentation, in docs/_build/html; nothing is fetched to build or to view it
# make bench        the tables of docs/benchmarks*.md, with CIFAR-10 images as class folders in IMAGES=DIR
# make clean        take away the environment and the caches
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2

.PHONY: demo test test-slow test-peers test-slurm check format cards docs bench clean help

help:
	@grep -E '^# make' Makefile | cut -c3-

# The stamps are touched by a finished installation; a second make does not install again.
$(VENV)/.lab: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "error: $$($(PYTHON) --version 2>&1) found, Python 3.11 to 3.13 needed; name one: make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e . -c constraints.txt
	@touch $@

$(VENV)/.lab-dev: $(VENV)/.lab
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $@

demo: $(VENV)/.lab
	$(BIN)/python -m lab.train experiment=quickstart

test: $(VENV)/.lab-dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-slow: $(VENV)/.lab-dev
	$(BIN)/python -m pytest -m slow

test-peers: $(VENV)/.lab-dev
	$(BIN)/python -m pytest -m peer

# Where there is no Slurm and none can be installed, a line says so, and nothing fails.
test-slurm: $(VENV)/.lab-dev
	@if reason=$$($(BIN)/python scripts/slurm/node.py install 2>&1); then $(BIN)/python -m pytest -rs -n 0 -m slurm tests/runs/test_slurm_scenario.py; \
	  else echo "test-slurm is left out: $$reason"; fi

check: $(VENV)/.lab-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layers.py

format: $(VENV)/.lab-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

cards: $(VENV)/.lab-dev
	$(BIN)/python scripts/cards.py

$(VENV)/.lab-docs: $(VENV)/.lab
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]' -c constraints.txt
	@touch $@

docs: $(VENV)/.lab-docs
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

$(VENV)/.lab-bench: $(VENV)/.lab-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]' -c constraints.txt
	@touch $@

bench: $(VENV)/.lab-bench
	$(BIN)/python scripts/benchmarks/sharpness.py $(if $(IMAGES),--images $(IMAGES)) --write docs/benchmarks_sharpness.md
	$(BIN)/python scripts/benchmarks/curvature.py $(if $(IMAGES),--images $(IMAGES)) --write docs/benchmarks.md
	$(BIN)/python scripts/benchmarks/noise.py $(if $(IMAGES),--images $(IMAGES)) --write docs/benchmarks_noise.md
	$(BIN)/python scripts/benchmarks/escape.py --write docs/benchmarks_escape.md
	$(BIN)/python scripts/benchmarks/audit.py --write docs/audit.md

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache docs/_build docs/generated docs/examples
