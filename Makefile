# Two commands on a fresh machine: `make demo` and `make test`. Each sets up .venv when it is needed.

PYTHON ?= python3
# Which torch: PyPI's wheel for Linux carries CUDA; give another requirement or a wheel's path to change that.
TORCH ?= torch==2.13.0

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
SOURCES := $(wildcard csrc/*.cpp csrc/*.h) symground/ops/_build.py

.PHONY: demo test lint clean

demo: $(VENV)/demo.stamp
	$(BIN)/symground demo

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest

lint: $(VENV)/test.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/torch.stamp:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install "$(TORCH)"
	touch $@

# The extension is no condition: without a compiler the message says so, and plain PyTorch does its work.
$(VENV)/demo.stamp: $(VENV)/torch.stamp pyproject.toml setup.py $(SOURCES)
	$(PIP) install -e .
	-$(BIN)/symground build
	touch $@

$(VENV)/test.stamp: $(VENV)/torch.stamp pyproject.toml setup.py $(SOURCES)
	$(PIP) install -e '.[dev]'
	-$(BIN)/symground build
	touch $@ $(VENV)/demo.stamp

clean:
	rm -rf $(VENV) symground/ops/_C.so build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
