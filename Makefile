# Every target sets up what it needs in a virtual environment of this folder.
# PYTHON chooses the interpreter: make test PYTHON=python3.12

PYTHON ?= python3
# Options for pytest: make test PYTEST_ARGS="tests/audit -x"
PYTEST_ARGS ?=

VENV := .venv$(if $(filter-out python3,$(PYTHON)),-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
# Whole files go to one worker, so that what a file compiles is compiled once.
PYTEST := $(BIN)/pytest -n auto --maxprocesses 8 --dist loadfile

# Most of the time of the tests is XLA's: what one run, worker or step of CI compiled, others load.
# Not so for demo and bench, whose compile times are figures.
test test-slow doctest: export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/$(VENV)/compiled
test test-slow doctest: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-slow doctest lint docs bench clean

help:
	@echo "make demo       train, unlearn and audit on embedded real data; writes runs/demo"
	@echo "make test       the tests; make test-slow: the long ones"
	@echo "make doctest    the examples in the docstrings"
	@echo "make lint       ruff and pyright"
	@echo "make docs       the documentation, into site/"
	@echo "make bench      the quick benchmarks"
	@echo "make clean      remove the environments and everything that was built"
	@echo "Another interpreter: make test PYTHON=python3.12"

demo: $(VENV)/.has-test
	$(BIN)/jaxunlearn compare --dataset digits --model mlp --forget random --fraction 0.2 \
	    --seeds 5 --out runs/demo

test: $(VENV)/.has-test
	$(PYTEST) $(PYTEST_ARGS)

test-slow: $(VENV)/.has-test
	$(PYTEST) -m slow $(PYTEST_ARGS)

doctest: $(VENV)/.has-test
	$(BIN)/pytest --doctest-modules jaxunlearn kernels/jaxunlearn_kernels

lint: $(VENV)/.has-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/.has-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/.has-test
	@set -e; for file in benchmarks/[!_]*.py; do \
	    name=$$(basename $$file .py); \
	    grep -q '"__main__"' $$file || continue; \
	    echo "==> benchmarks.$$name"; $(BIN)/python -m benchmarks.$$name --quick; \
	done

clean:
	rm -rf .venv .venv-* build dist site .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pip may be there while ensurepip is not (Debian packs it apart): then pip itself installs pip.
$(BIN)/python:
	@set -e; python=$$(.ci/find-python $(PYTHON)); echo "==> $(VENV) with $$python"; \
	"$$python" -m venv --clear $(VENV) >/dev/null 2>&1 \
	|| { "$$python" -m venv --clear --without-pip $(VENV) \
	     && "$$python" -m pip --python $@ install pip; } \
	|| { rm -rf $(VENV); \
	     echo "Cannot make a virtual environment with $$python: it needs the venv module and pip" \
	          "(on Debian or Ubuntu: apt install python3-venv python3-pip)." >&2; exit 1; }

# .has-EXTRA is newer than the files that say what to install, or the extra is installed again.
$(VENV)/.has-%: pyproject.toml constraints.txt | $(BIN)/python
	@echo "==> installing into $(VENV): some 300 MB the first time, a minute or more"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$*]"
	@touch $@
