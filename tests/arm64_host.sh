#!/usr/bin/env bash
# soft's tests as an arm64 host has them, which this machine need not be: built by Debian's compilers, run by QEMU's user
# emulation. `arm64_host.sh COUNT` is the number of sequences in each differential run.
#
# QEMU before 8.1 does not see that code changes by way of another mapping of its memory. Code memory that is used a
# second time is then run as it was: no test here may fill it or have all of it forgotten.
set -euo pipefail
cd "$(dirname "$0")/.."
source tests/packages.sh

export SUPERMACHINE_DIFF_COUNT="${1:-500}"
target=aarch64-unknown-linux-gnu
packages=(rustc-web cargo-web libstd-rust-web-dev:arm64 gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static)
needs "not run as on an arm64 host" "" "${packages[@]}"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/$target"
export RUSTC=/usr/bin/rustc CARGO=/usr/bin/cargo PATH="/usr/bin:$PATH"
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
# Static, so that no C library for arm64 need be where a dynamic linker looks.
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-C target-feature=+crt-static"
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64-static -cpu max"
# Compiling takes longer than running. A test that hangs ends the run.
plain=(--config 'profile.dev.package.supermachine-soft.opt-level=0')
exec timeout --verbose 1200 /usr/bin/cargo test --quiet --locked --target "$target" "${plain[@]}" -p supermachine-soft \
    --test differential --test translated -- --test-threads=2
