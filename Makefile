# For GNU make; `make` alone lists the words. One environment serves them all: it is made at the
# first need, and brought up to date when pyproject.toml has changed.

PYTHON ?= python3
VENV = .venv
LOWEST = .venv-lowest
NEWEST = .venv-newest
ARGS =

export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PIP_NO_INPUT = 1

RUN = $(VENV)/bin/python -m

.DEFAULT_GOAL = help
.PHONY: help demo test test-fast test-thorough test-slow test-lowest test-newest bench growth overhead crashes clusters soak docs notebooks \
	screenshots lint types format clean

help: ## list these words
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo 'make ... PYTHON=python3.13   make the environment with another Python; VENV=... elsewhere'

demo: $(VENV)/.installed ## see it at work on real files; ARGS="FOLDER" names yours
	$(RUN) at_once_dask $(ARGS)

test: lint types ## lint, types, then the tests; ARGS goes to pytest
	$(RUN) pytest $(ARGS)

test-fast: $(VENV)/.installed-test ## the tests that start no cluster: under a minute
	$(RUN) pytest tests/unit $(ARGS)

test-thorough: $(VENV)/.installed-test ## what `make test` leaves for continuous integration
	$(RUN) pytest -m thorough $(ARGS)

test-slow: $(VENV)/.installed-test ## the tests that take minutes
	$(RUN) pytest -m slow $(ARGS)

test-lowest: $(LOWEST)/.installed-test ## the tests, on the oldest versions we say we work with
	$(LOWEST)/bin/python -m pytest $(ARGS)

test-newest: $(NEWEST)/.installed-test ## the tests, on the newest Dask that there is today
	$(NEWEST)/bin/python -m pip install --quiet --upgrade dask distributed
	$(NEWEST)/bin/python -m pytest $(ARGS)

bench: $(VENV)/.installed-bench ## how fast, beside other tools; ARGS="--scenario ms --peer pool-map"
	$(VENV)/bin/python benchmarks/speed.py $(ARGS)

growth: $(VENV)/.installed-bench ## how cost grows with inputs and workers; the driver's memory
	$(VENV)/bin/python benchmarks/growth.py
	$(VENV)/bin/python benchmarks/workers.py
	$(VENV)/bin/python benchmarks/memory.py

overhead: $(VENV)/.installed ## what the page and the capturing of output cost when nobody looks
	$(VENV)/bin/python benchmarks/overhead.py $(ARGS)

crashes: $(VENV)/.installed-bench ## what one bad input costs, here and with other tools
	$(VENV)/bin/python benchmarks/crashes.py $(ARGS)
	$(VENV)/bin/python benchmarks/segfault.py

clusters: $(VENV)/.installed-bench ## borrowed clusters whose machines come and go, beside client.map and dask.bag
	$(VENV)/bin/python benchmarks/clusters.py $(ARGS)

soak: $(VENV)/.installed ## 100,000 inputs, one in a hundred bad: a quarter of an hour
	$(VENV)/bin/python benchmarks/soak.py $(ARGS)

docs: $(VENV)/.installed-docs ## the manual, as pages: docs/_build/html/index.html
	$(RUN) sphinx -q -E -W --keep-going -c docs . docs/_build/html

notebooks: $(VENV)/.installed-test ## run the notebooks, and store what they show
	$(VENV)/bin/python notebooks/execute.py $(ARGS)

screenshots: $(VENV)/.installed-test ## take the pictures in the README; needs a browser
	$(VENV)/bin/python docs/screenshots.py

lint: $(VENV)/.installed-test ## ruff: mistakes, and the format; which room imports from which
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(VENV)/bin/lint-imports --no-cache

types: $(VENV)/.installed-test ## mypy
	$(RUN) mypy

format: $(VENV)/.installed-test ## let ruff put the format right
	$(RUN) ruff check --fix
	$(RUN) ruff format

clean: ## remove the environments and all that was made here
	rm -rf .venv .venv-* build dist *.egg-info .*_cache .hypothesis
	rm -rf at_once_demo at_once_log.jsonl docs/_build
	find . -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/pip
	$(RUN) pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/bin/pip
	$(RUN) pip install --quiet --editable '.[test]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-bench: pyproject.toml | $(VENV)/bin/pip
	$(RUN) pip install --quiet --editable '.[bench]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-docs: pyproject.toml | $(VENV)/bin/pip
	$(RUN) pip install --quiet --editable '.[docs]'
	@touch $(VENV)/.installed $@

$(NEWEST)/.installed-test: pyproject.toml | $(NEWEST)/bin/pip
	$(NEWEST)/bin/python -m pip install --quiet --editable '.[test]'
	@touch $@

# Each dependency at its lower bound: `>=` in pyproject.toml becomes `==`.
$(LOWEST)/.installed-test: pyproject.toml | $(LOWEST)/bin/pip
	$(LOWEST)/bin/python -m pip install --quiet --editable '.[test]' $$($(LOWEST)/bin/python -c \
		'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
		print(*(bound.replace(">=", "==") for bound in project["dependencies"]))')
	@touch $@

# venv puts pip in last: where it is missing, making the environment was broken off.
%/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'at_once_dask needs Python 3.11 or later, and "$(PYTHON)" is not;' \
		'name one that is: make $(MAKECMDGOALS) PYTHON=python3.13' >&2; exit 1; }
	$(PYTHON) -m venv $*
