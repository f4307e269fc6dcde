# Two commands do all the set-up: `make quickstart` and `make test`. Both make .venv first, once.
# PYTHON=... chooses the interpreter; otherwise the first suitable one on the path is taken.
SUITABLE := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c '$(SUITABLE)' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin

.PHONY: quickstart test lint format clean

quickstart: .venv/ready
	$(BIN)/python run.py

test: .venv/ready
	$(BIN)/python -m pytest

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis

.venv/ready: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed and was not found; say make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -c '$(SUITABLE)' || { echo "$(PYTHON) is not Python 3.11 to 3.13" >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch .venv/ready
