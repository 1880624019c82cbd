#!/usr/bin/env bash
# Proves on a Mac what cannot be proved elsewhere (docs/concepts/macos.md): everything runs, and the last line says how it went.
# Needs Apple silicon, macOS 15 or newer on bare metal, Xcode's command line tools, Rust and Python 3.10 or newer.
set -uo pipefail
cd "$(dirname "$0")/.."

[ "$(uname -sm)" = "Darwin arm64" ] || { echo "this is for a Mac with Apple silicon" >&2; exit 2; }
export MACOSX_DEPLOYMENT_TARGET=15.0
entitlements=rust/worker/entitlements.plist
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0 failed=0

# prove NAME COMMAND…
prove() {
    local name=$1
    shift
    if "$@" >"$work/log" 2>&1; then
        passed=$((passed + 1))
        echo "passed  $name"
    else
        failed=$((failed + 1))
        echo "FAILED  $name"
        sed 's/^/        /' "$work/log" | tail -60
    fi
}

sign() { codesign --sign - --force --entitlements "$entitlements" "$@"; }

# The executables of a package's tests and its programs, built as `cargo test` would.
executables() {
    cargo test --locked --no-run --message-format=json -p "$1" 2>"$work/build" |
        python3 -c 'import json, sys
for line in sys.stdin:
    found = json.loads(line)
    if found.get("executable"): print(found["target"]["name"], found["executable"])'
}

# test_package PACKAGE: each test program, signed, as a proof of its own.
test_package() {
    local package=$1 name path
    if ! executables "$package" >"$work/executables"; then
        cp "$work/build" "$work/log"
        prove "$package is built" false
        return
    fi
    # All are signed before any runs: the tests of the worker start the worker.
    while read -r name path; do sign "$path" 2>/dev/null; done <"$work/executables"
    while read -r name path; do
        case "$package $name" in
            "supermachine-worker supermachine-worker") [[ $path == */deps/* ]] || continue ;;
            # Below.
            "supermachine-engine restore_order") assumptions=$path; continue ;;
        esac
        prove "$package: $name" env CARGO_MANIFEST_DIR="$PWD/rust/${package#supermachine-}" "$path"
    done <"$work/executables"
}

echo "== $(sw_vers -productName) $(sw_vers -productVersion), $(sysctl -n machdep.cpu.brand_string)"
prove "this Mac offers hardware virtualisation" test "$(sysctl -n kern.hv_support)" = 1
prove "lint" cargo clippy --locked --workspace --exclude supermachine-agent --all-targets -- -D warnings

echo "== Rust, over Apple's Hypervisor.framework"
for package in soft snapshot proto devices engine machine image worker; do
    test_package "supermachine-$package"
done

echo "== The package"
python3 -m venv "$work/venv"
prove "it installs from source" "$work/venv/bin/pip" install --quiet '.[dev]'
wheel() {
    "$work/venv/bin/pip" wheel --quiet --no-deps --wheel-dir "$work/dist" . && ls "$work"/dist/*-macosx_15_0_arm64.whl
}
prove "its wheel is for macOS 15 on Apple silicon" wheel
worker=$("$work/venv/bin/python" -c 'from supermachine.host import bundle; print(bundle.worker())')
entitled() { codesign --display --entitlements - "$worker" 2>&1 | grep -q com.apple.security.hypervisor; }
prove "the worker is signed with the entitlement" entitled
prove "the worker's Hypervisor.framework may be missing" \
    sh -c "otool -l '$worker' | grep -A2 LC_LOAD_WEAK_DYLIB | grep -q Hypervisor"
unsigned() {
    # A worker without a signature of ours is signed at its first use, and once.
    cp "$worker" "$work/unsigned" && codesign --remove-signature "$work/unsigned" && codesign --sign - "$work/unsigned" &&
        SUPERMACHINE_CACHE="$work/cache" SUPERMACHINE_WORKER="$work/unsigned" "$work/venv/bin/python" -c '
import os
from supermachine.host import bundle, codesign_macos
first = bundle.worker()
assert first != os.environ["SUPERMACHINE_WORKER"] and codesign_macos.is_entitled(first)
inode = os.stat(first).st_ino
assert bundle.worker() == first and os.stat(first).st_ino == inode'
}
prove "an unsigned worker is signed at its first use, once" unsigned
prove "doctor chooses hvf" sh -c "'$work/venv/bin/supermachine' doctor --json | grep -q '\"chosen\": \"hvf\"'"
prove "the demonstration" "$work/venv/bin/python" demo/demo.py
prove "the tests of the Python interface" "$work/venv/bin/pytest" -q tests/api tests/vm

echo "== What the software framework assumes of Apple's"
if "${assumptions:-false}" >"$work/log" 2>&1; then
    echo "holds   all of it"
else
    echo "differs in what follows; rust/hvf-soft says what was assumed, and may be made less strict where it is:"
    grep -E '^test .*FAILED|panicked|can go before|can be left out' "$work/log" | sed 's/^/        /'
fi

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
