#!/usr/bin/env bash
# Builds guest/aarch64/initramfs.cpio.zst: the agent as a static executable, in a cpio archive.
# Needs Debian's rustc-web, libstd-rust-web-dev:arm64, gcc-aarch64-linux-gnu, python3 and zstd (or set RUSTC to a compiler
# that has the target's standard library). The same sources and compiler give the same bytes, wherever they are.
set -euo pipefail
cd "$(dirname "$0")/.."

target=aarch64-unknown-linux-gnu
build=${CARGO_TARGET_DIR:-target}/guest
export RUSTC=${RUSTC:-/usr/bin/rustc}
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_PROFILE_RELEASE_DEBUG=false CARGO_PROFILE_RELEASE_PANIC=abort CARGO_PROFILE_RELEASE_STRIP=true
export CARGO_PROFILE_RELEASE_LTO=fat CARGO_PROFILE_RELEASE_CODEGEN_UNITS=1 CARGO_PROFILE_RELEASE_OPT_LEVEL=s
export CARGO_ENCODED_RUSTFLAGS=$(printf '%s\x1f%s\x1f%s\x1f%s' \
    -Ctarget-feature=+crt-static -Crelocation-model=static \
    "--remap-path-prefix=$PWD=." "--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=cargo")

cargo build --quiet --locked --release --package supermachine-agent --target "$target" --target-dir "$build"
out=${1:-guest/aarch64}
mkdir -p "$out"
python3 guest/cpio.py "$build/$target/release/supermachine-agent" "$build/initramfs.cpio"
zstd -q -19 -f "$build/initramfs.cpio" -o "$out/initramfs.cpio.zst"
