# Two commands: `make demo` builds, installs and runs the main job; `make test` passes the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint rust-test python-test tools guest-check guest-initramfs guest-kernels

demo: $(VENV)/installed
	$(BIN)/python demo/demo.py

test: tools lint rust-test python-test

tools:
	./tests/tools.sh

lint: $(VENV)/installed guest-check
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked --keep-going -- -D warnings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict python/supermachine

rust-test:
	cargo test --workspace --locked

python-test: $(VENV)/installed
	$(BIN)/pytest

# Whether the committed guest files are those that their sources give, by what guest/manifest.json tells of both.
guest-check:
	$(PYTHON) guest/manifest.py check

# After a change to the agent.
guest-initramfs:
	./guest/build-initramfs.sh

# After a change to the kernel's configuration; takes the better part of an hour.
guest-kernels:
	./guest/build-kernel.sh x86_64
	./guest/build-kernel.sh aarch64

$(VENV)/installed: pyproject.toml Cargo.toml Cargo.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet '.[dev]'
	touch $@
