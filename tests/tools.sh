#!/usr/bin/env bash
# Installs the Debian packages that tests compare with, when it may; otherwise names what is missing.
set -euo pipefail
source "$(dirname "$0")/packages.sh"

packages=(
    gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static qemu-system-arm qemu-system-x86
    rustc-web libstd-rust-web-dev:arm64 e2fsprogs kmod
    cargo-web rust-web-clippy rust-web-src
    umoci skopeo buildah docker-registry erofs-utils mmdebstrap fakeroot cpio bzip2 xz-utils zstd
    docker.io docker-compose redis-server openssh-server postgresql-15 nghttp2-server ngtcp2-server iperf3 python3-websockets iproute2 openssl
    fish zsh strace
)

mapfile -t missing < <(not_installed "${packages[@]}")
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    # For libstd-rust-web-dev:arm64, the standard library that the guests' agent is built with.
    dpkg --print-foreign-architectures | grep -qx arm64 || dpkg --add-architecture arm64
    apt-get update -q
    apt-get install -q -y --no-install-recommends "${missing[@]}"
else
    echo "not installed, so the tests that need them will be skipped: ${missing[*]}" >&2
    echo "install them with: sudo dpkg --add-architecture arm64 && sudo apt-get update &&" \
        "sudo apt-get install ${missing[*]}" >&2
fi
