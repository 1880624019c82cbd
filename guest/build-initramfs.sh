#!/usr/bin/env bash
# Builds guest/ARCH/initramfs.cpio.zst: the agent as a static executable, in a cpio archive.
#
#   build-initramfs.sh [--out DIR] [ARCH...]
#
# ARCH is aarch64 or x86_64; both when none is named. The same sources and compiler give the same bytes, wherever they are.
# Needs Debian's rustc-web, libstd-rust-web-dev:arm64, gcc-aarch64-linux-gnu, python3 and zstd, and Cargo (or set RUSTC to
# a compiler that has both targets' standard libraries).
set -euo pipefail
cd "$(dirname "$0")/.."

out=guest
if [ "${1:-}" = --out ]; then
    out=$2
    shift 2
fi
[ $# -gt 0 ] || set -- aarch64 x86_64

build=${CARGO_TARGET_DIR:-target}/guest
export RUSTC=${RUSTC:-/usr/bin/rustc}
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER=x86_64-linux-gnu-gcc
unset "${!CARGO_PROFILE_@}"
export CARGO_PROFILE_RELEASE_DEBUG=false CARGO_PROFILE_RELEASE_PANIC=abort CARGO_PROFILE_RELEASE_STRIP=true
export CARGO_PROFILE_RELEASE_LTO=fat CARGO_PROFILE_RELEASE_CODEGEN_UNITS=1 CARGO_PROFILE_RELEASE_OPT_LEVEL=s
unset RUSTFLAGS CARGO_BUILD_RUSTFLAGS CARGO_BUILD_TARGET RUSTC_WRAPPER
# An incremental build has other bytes.
export CARGO_INCREMENTAL=0
CARGO_ENCODED_RUSTFLAGS=$(printf '%s\x1f%s\x1f%s\x1f%s' \
    -Ctarget-feature=+crt-static -Crelocation-model=static \
    "--remap-path-prefix=$PWD=." "--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=cargo")
export CARGO_ENCODED_RUSTFLAGS

for arch in "$@"; do
    case $arch in
        aarch64 | x86_64) target=$arch-unknown-linux-gnu ;;
        *) echo "$arch: guests are aarch64 or x86_64" >&2; exit 2 ;;
    esac
    cargo build --quiet --locked --release --package supermachine-agent --target "$target" --target-dir "$build"
    mkdir -p "$out/$arch"
    python3 guest/cpio.py "$build/$target/release/supermachine-agent" "$build/initramfs-$arch.cpio"
    python3 guest/branches.py pack "$arch" "$build/initramfs-$arch.cpio" "$out/$arch/initramfs.cpio.zst"
done
[ "$out" != guest ] || python3 guest/manifest.py record "${@/%//initramfs.cpio.zst}"
