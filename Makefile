# Two commands on a fresh machine: `make demo` and `make test`. Each sets up .venv when it is needed.

PYTHON ?= python3
# Which torch: PyPI's wheel for Linux carries CUDA; give another requirement or a wheel's path to change that.
TORCH ?= torch==2.13.0

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
SOURCES := $(wildcard csrc/*.cpp csrc/*/*.cpp csrc/*/*.cu csrc/*/*.h) symground/ops/common/build.py

.PHONY: setup demo check test lint clean

setup: $(VENV)/test.stamp $(VENV)/build.stamp

demo: $(VENV)/demo.stamp $(VENV)/build.stamp
	$(BIN)/symground demo

# A process a core, each with one thread (tests/conftest.py); a file's tests stay together, and so do what they share.
test: $(VENV)/test.stamp $(VENV)/build.stamp
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

# What a change is tried with before `make test`: lint, and the tests that are quick and train nothing, with fewer draws.
check: lint $(VENV)/build.stamp
	SYMGROUND_FUZZ=300 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile -q \
		-m "not slow and not trains" --hypothesis-profile quick \
		tests/ops tests/kernels tests/data tests/models tests/analysis

lint: $(VENV)/test.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/torch.stamp:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install "$(TORCH)"
	touch $@

$(VENV)/demo.stamp: $(VENV)/torch.stamp pyproject.toml setup.py
	$(PIP) install -e .
	touch $@

$(VENV)/test.stamp: $(VENV)/torch.stamp pyproject.toml setup.py
	$(PIP) install -e '.[dev]'
	touch $@ $(VENV)/demo.stamp

# No condition for anything: without a compiler the message says so, and plain PyTorch does the extension's work.
$(VENV)/build.stamp: $(SOURCES) | $(VENV)/demo.stamp
	-$(BIN)/symground build
	touch $@

clean:
	rm -rf $(VENV) .editable symground/ops/_C.so build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
