#!/usr/bin/env bash
# Lints for a target that this machine is not: what ships to Macs for aarch64-apple-darwin (docs/concepts/macos.md says what that
# proves), and for aarch64-unknown-linux-gnu the crates that have code for arm64 hosts alone. With Debian's rustc and
# clippy, and on top of the sources of the standard library for Macs; where rustup has the target (rustup target add),
# that toolchain does the same.
set -euo pipefail
cd "$(dirname "$0")/.."
source tests/packages.sh

target="$1"
packages=(rustc-web cargo-web rust-web-clippy gcc-aarch64-linux-gnu)
# The extension module is of Python's stable ABI, so that no interpreter for the target is needed.
export PYO3_NO_PYTHON=1
case "$target" in
    aarch64-apple-darwin)
        packages+=(rust-web-src)
        what=(--workspace --exclude supermachine-agent --exclude supermachine-hvf-soft)
        how=(-Zbuild-std)
        export MACOSX_DEPLOYMENT_TARGET=15.0
        # Nothing is linked, so that objects of C libraries need not be of the right kind.
        export CC_aarch64_apple_darwin="$PWD/tests/check_target_cc.sh" AR_aarch64_apple_darwin=ar
        ;;
    aarch64-unknown-linux-gnu)
        packages+=(libstd-rust-web-dev:arm64)
        what=(-p supermachine-engine -p supermachine-machine -p supermachine-worker --all-targets)
        how=()
        export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc AR_aarch64_unknown_linux_gnu=aarch64-linux-gnu-ar
        ;;
    *)
        echo "nothing is known of $target" >&2
        exit 2
        ;;
esac
# Each toolchain's builds apart from those of others.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/$target"

if rustup target list --installed 2>/dev/null | grep -qx "$target"; then
    exec cargo clippy --locked --target "$target" "${what[@]}" -- -D warnings
fi
needs "not checked for $target" " (or: rustup target add $target)" "${packages[@]}"
# A nightly feature builds the standard library; these are the names of Debian's executables, past any rustup's.
export RUSTC_BOOTSTRAP=1 RUSTC=/usr/bin/rustc CARGO=/usr/bin/cargo PATH="/usr/bin:$PATH"
exec /usr/bin/cargo-clippy clippy --locked "${how[@]}" --target "$target" "${what[@]}" -- -D warnings
