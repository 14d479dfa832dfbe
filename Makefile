# make demo    set everything up, then: text -> shards -> training -> export -> filled masks, on real text
# make test    set everything up, then run the linters and the tests
# make lint    linters and types alone
# make setup   the virtual environment alone

VENV ?= .venv
# The first Python of a supported version; PYTHON=/path/to/python chooses another.
PYTHON ?= $(shell for p in python3.11 python3.12 python3 python; do \
	$$p -c 'import sys, ensurepip, venv; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null \
	&& echo $$p && break; done)
BIN := $(VENV)/bin

.PHONY: demo test lint setup clean

demo: setup
	@$(BIN)/python launch_scripts/demo.py

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(VENV)/.installed

# torch comes first and pinned: a plain requirement would replace it by another build of several gigabytes.
$(VENV)/.installed: setup.py constraints.txt
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or 3.12 with venv found; set PYTHON=/path/to/python" >&2; exit 2; }
	@echo "Setting up $(VENV) with $(PYTHON) (once; a few minutes) ..."
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade pip setuptools wheel
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,fast]'
	@touch $@

clean:
	rm -rf $(VENV) runs build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
