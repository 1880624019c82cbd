#!/usr/bin/env bash
# Lints what ships to Macs for aarch64-apple-darwin, without a Mac: with Debian's rustc, clippy and sources of the
# standard library (packages rustc-web, rust-web-clippy, rust-web-src), which are checked along. Where rustup has the
# target (rustup target add aarch64-apple-darwin), that toolchain does the same. docs/macos.md says what this proves.
set -euo pipefail
cd "$(dirname "$0")/.."

target=aarch64-apple-darwin
export MACOSX_DEPLOYMENT_TARGET=15.0
# The extension module is of Python's stable ABI, so that no interpreter for the target is needed.
export PYO3_NO_PYTHON=1
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/macos"
# Nothing is linked, so that objects of C libraries need not be of the right kind.
export CC_aarch64_apple_darwin="$PWD/tests/check_macos_cc.sh" AR_aarch64_apple_darwin=ar

shipped=(--workspace --exclude supermachine-agent --exclude supermachine-hvf-soft)

if rustup target list --installed 2>/dev/null | grep -qx "$target"; then
    exec cargo clippy --locked --target "$target" "${shipped[@]}" -- -D warnings
fi
missing=()
for package in rustc-web cargo-web rust-web-clippy rust-web-src; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -ne 0 ]; then
    echo "not checked for macOS; missing: ${missing[*]} (or: rustup target add $target)" >&2
    # Elsewhere than in continuous integration this is a warning.
    [ "${CI:-}" != true ]
    exit
fi
# A nightly feature builds the standard library; these are the names of Debian's executables, past any rustup's.
export RUSTC_BOOTSTRAP=1 RUSTC=/usr/bin/rustc CARGO=/usr/bin/cargo PATH="/usr/bin:$PATH"
exec /usr/bin/cargo-clippy clippy --locked -Zbuild-std --target "$target" "${shipped[@]}" -- -D warnings
