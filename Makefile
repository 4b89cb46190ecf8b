# Everything a newcomer needs: `make demo` and `make test`. Both set up what they need first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
JOBS   ?= 2
STAMP  := $(VENV)/.ready

.PHONY: setup demo test lint docs bench clean
setup: $(STAMP)

# Made again only when what is to be installed has changed; interrupted half-way, it is simply run again.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	$(BIN)/lipcert demo --out runs/demo

test: setup
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: setup
	$(BIN)/sphinx-build -W --keep-going -q docs docs/_build

bench: setup
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) build dist docs/_build
