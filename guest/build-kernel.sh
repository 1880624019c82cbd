#!/usr/bin/env bash
# Builds a guest's kernel: build-kernel.sh ARCH [OUT]; ARCH is aarch64 or x86_64, OUT is guest/ARCH unless named.
#
# The source is the Debian package that kernel/source.env names, fetched with apt-get (or set SOURCE_DEB to a copy, for
# instance from snapshot.debian.org once the archive has a newer one). The same source, configuration and compiler give
# the same bytes, wherever and whenever they are built; other compilers are refused unless ANY_COMPILER=1.
# Needs Debian 12 on amd64 with gcc-12, gcc-12-aarch64-linux-gnu, bc, bison, flex, make, xz-utils and zstd; about 20
# minutes of two cores and 2 GiB of disk.
set -euo pipefail
cd "$(dirname "$0")/.."
source guest/kernel/source.env

arch=${1:-}
case $arch in
    aarch64) kernel_arch=arm64 target=Image result=arch/arm64/boot/Image compiler=$compiler_aarch64 ;;
    x86_64) kernel_arch=x86 target=vmlinux result=vmlinux compiler=$compiler_x86_64 ;;
    *) echo "usage: $0 aarch64|x86_64 [OUT]" >&2; exit 2 ;;
esac
out=${2:-guest/$arch}
build=$(realpath -m "${CARGO_TARGET_DIR:-target}/guest/kernel-$arch")
prefix=$arch-linux-gnu-

check() {
    local found
    found=$("$2" --version | head -n 1)
    if [ "$found" != "$1" ] && [ -z "${ANY_COMPILER:-}" ]; then
        echo "$2 is \"$found\", but the committed files are built with \"$1\"; ANY_COMPILER=1 builds with it all the same" >&2
        exit 1
    fi
}
check "$compiler" "${prefix}gcc-12"
check "$linker" "${prefix}ld"

rm -rf "$build"
mkdir -p "$build" "$out"
deb=${SOURCE_DEB:-$build/${package}.deb}
if [ -z "${SOURCE_DEB:-}" ]; then
    (cd "$build" && apt-get -q download "$package=$version" && mv "$package"_*.deb "$deb")
fi
echo "$sha256  $deb" | sha256sum --check --quiet

# Built in its own directory, so that no path of this machine can get into it.
dpkg-deb --fsys-tarfile "$deb" | tar -xO "./usr/src/$package.tar.xz" | tar -xJ -C "$build"
cat guest/kernel/common.config "guest/kernel/$arch.config" >"$build/$package/.config"
guest=$PWD/guest
cd "$build/$package"

export KBUILD_BUILD_TIMESTAMP='2026-01-01 00:00:00 UTC' KBUILD_BUILD_VERSION=1
export KBUILD_BUILD_USER=supermachine KBUILD_BUILD_HOST=guest LC_ALL=C TZ=UTC
make=(make --no-print-directory "ARCH=$kernel_arch" "CROSS_COMPILE=$prefix" "CC=${prefix}gcc-12" HOSTCC=gcc)
unset MAKEFLAGS MAKELEVEL
"${make[@]}" -s olddefconfig

# An option that does not exist any more, or whose needs are not met, vanishes without a word.
while read -r line; do
    option=${line#\# } option=${option%%[ =]*}
    case $line in
        "# CONFIG_"*" is not set") if grep -q "^$option=" .config; then echo "$option is set all the same" >&2; exit 1; fi ;;
        CONFIG_*) grep -qxF "$line" .config || { echo "$line took no effect" >&2; exit 1; } ;;
    esac
done < <(cat "$guest/kernel/common.config" "$guest/kernel/$arch.config")

"${make[@]}" -j"${JOBS:-$(nproc)}" "$target"
cd "$OLDPWD"
kernel=$build/$package/$result
if [ "$arch" = x86_64 ]; then
    "${prefix}strip" --strip-all --remove-section=.comment -o "$build/vmlinux" "$kernel"
    kernel=$build/vmlinux
fi
chmod 0644 "$kernel"
python3 guest/branches.py pack "$arch" "$kernel" "$out/$target.zst"
[ "$out" != "guest/$arch" ] || python3 guest/manifest.py record "$arch/$target.zst"
