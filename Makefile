# Two commands: `make demo` builds, installs and runs the main job; `make test` passes the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint rust-test python-test tools

demo: $(VENV)/installed
	$(BIN)/python demo/demo.py

test: tools lint rust-test python-test

tools:
	./tests/tools.sh

lint: $(VENV)/installed
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked --keep-going -- -D warnings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict python/supermachine

rust-test:
	cargo test --workspace --locked

python-test: $(VENV)/installed
	$(BIN)/pytest

$(VENV)/installed: pyproject.toml Cargo.toml Cargo.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet '.[dev]'
	touch $@
