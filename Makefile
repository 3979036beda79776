# The commands of the README. Each makes the environment in .venv when there is none; a second
# call installs nothing as long as setup.cfg and pyproject.toml stay as they are.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Two torch threads a process: what the suite and the quickstart are measured with.
export OMP_NUM_THREADS ?= 2

.PHONY: env quickstart quickstart-study test test-all lint types check matrix docs docs-serve clean

env: $(VENV)/.installed

$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

quickstart: env
	$(BIN)/bridger quickstart --out quickstart $(ARGS)

quickstart-study: env
	$(BIN)/bridger ablate examples/studies/quickstart.json --out quickstart-study $(ARGS)

test: env
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "not slow" $(ARGS)

test-all: env
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 $(ARGS)

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: env
	$(BIN)/mypy

check: lint types test

matrix: env
	$(BIN)/python tests/matrix.py $(ARGS)

# The theme speaks of its successor at every start.
docs: export NO_MKDOCS_2_WARNING := 1
docs: env
	$(BIN)/mkdocs build --strict $(ARGS)

docs-serve: export NO_MKDOCS_2_WARNING := 1
docs-serve: env
	$(BIN)/mkdocs serve --dev-addr 127.0.0.1:8000 $(ARGS)

clean:
	rm -rf $(VENV) build dist site *.egg-info quickstart quickstart-study
