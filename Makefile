# The two commands:   make demo   shows what shoal does, on real input
#                     make test   passes the tests
# Both install into .venv first. What runs is always the installed package, never the files in src/.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

SOURCES := pyproject.toml $(wildcard meson.build meson.options README.md) $(shell find src -type f ! -name '*.pyc' 2>/dev/null)

.PHONY: demo test vm-test bench lint format doc fuzz native-test clean system
.DELETE_ON_ERROR:

demo: $(VENV)/demo.stamp
	$(BIN)/python examples/demo.py

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# In a virtual machine with an older kernel and one cgroup v2 tree; see tests/vm/README.md.
vm-test: $(VENV)/test.stamp
	VM_PYTHON=$(CURDIR)/$(BIN)/python tests/vm/run.sh $(PYTEST_ARGS)

bench: $(VENV)/test.stamp
	$(BIN)/python bench/spawn.py $(BENCH_ARGS)
	$(BIN)/python bench/sandbox.py $(BENCH_ARGS)
	$(BIN)/python bench/executor.py $(BENCH_ARGS)
	$(BIN)/python bench/one_import.py $(BENCH_ARGS)
	$(BIN)/python bench/aio.py $(BENCH_ARGS)
	$(BIN)/python bench/manager.py $(BENCH_ARGS)

lint: $(VENV)/lint.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict src
	$(BIN)/mypy --strict tests/typing
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	PYTHONPATH=src $(BIN)/lint-imports

format: $(VENV)/lint.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

doc: $(VENV)/demo.stamp
	$(BIN)/python docs/generate_reference.py

# Hostile clients, and texts that are no queries; FUZZ_SECONDS=3600 make fuzz for longer, FUZZ_ARGS="--seed 7" to repeat one.
fuzz: $(VENV)/test.stamp
	$(BIN)/python tests/fuzz/wire.py --seconds $(or $(FUZZ_SECONDS),60) $(FUZZ_ARGS)
	$(BIN)/python tests/fuzz/names_query.py --seconds $(or $(FUZZ_SECONDS),60) $(FUZZ_ARGS)

native-test:
	$(MAKE) -C tests/native check

clean:
	rm -rf $(VENV) build dist bench/out tests/bin .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests examples docs bench -name __pycache__ -type d -prune -exec rm -rf {} +

# --- the environment --------------------------------------------------------------------------------------------
# One stamp for each set of extras, so that `make demo` does not wait for test tools.

$(VENV)/demo.stamp: $(VENV)/made.stamp $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check .
	@touch $@

$(VENV)/test.stamp: $(VENV)/made.stamp $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '.[test]'
	@touch $@ $(VENV)/demo.stamp

$(VENV)/lint.stamp: $(VENV)/made.stamp $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '.[test,lint]'
	@touch $@ $(VENV)/test.stamp $(VENV)/demo.stamp

$(VENV)/made.stamp:
	@$(MAKE) --no-print-directory system
	$(PYTHON) -m venv $(VENV)
	@touch $@

# What has to be on the machine before anything can be built. Each failed check names the package that mends it.
system:
	@test "$$(uname -s)" = Linux || { echo "shoal runs on Linux only."; exit 1; }
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON). Install it:  sudo apt-get install python3 python3-venv python3-dev"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed; $(PYTHON) is $$($(PYTHON) -V). Name another:  make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "Python cannot make virtual environments. Install what is missing:  sudo apt-get install python3-venv"; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' || { echo "The Python headers (Python.h) are missing. Install them:  sudo apt-get install python3-dev"; exit 1; }
	@command -v "$${CC:-gcc}" >/dev/null || { echo "There is no C compiler. Install one:  sudo apt-get install gcc libc6-dev"; exit 1; }
	@echo '#include <stdio.h>' | "$${CC:-gcc}" -E -x c - >/dev/null 2>&1 || { echo "The C library headers are missing. Install them:  sudo apt-get install libc6-dev"; exit 1; }
