"""What the guests of the comparison run: programs built here, and Debian's Python, in an initramfs."""

from __future__ import annotations

import importlib.util
import stat
import struct
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAMS = Path(__file__).with_name("programs")

_spec = importlib.util.spec_from_file_location("cpio", ROOT / "guest" / "cpio.py")
assert _spec is not None and _spec.loader is not None
_cpio = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_cpio)

#: Names in Debian's root that no program here opens; the kernel unpacks the rest on both sides.
UNUSED = ("dev", "var", "usr/share/doc", "usr/share/locale", "usr/share/man", "usr/share/zoneinfo")

Member = tuple[str, int, tuple[int, int], bytes]


@dataclass(frozen=True)
class Guest:
    """Files to boot from."""

    kernel: Path
    #: Debian's stock kernel for clouds.
    debian_kernel: Path
    #: Nothing but the first process.
    small: Path
    #: With Debian's Python, busybox and the programs.
    full: Path
    #: A "kernel" that powers off with its first instructions: what a machine needs to come and go.
    nothing: Path


def _compile(name: str, place: Path) -> bytes:
    out = place / name
    source = PROGRAMS / f"{name}.c"
    command = ["aarch64-linux-gnu-gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-o", str(out), str(source)]
    subprocess.run([*command, "-lm"], check=True)
    return out.read_bytes()


def archive(members: Iterator[Member]) -> bytes:
    """A whole initramfs."""
    entries = [_cpio.entry(n, *member) for n, member in enumerate(members, 1)]
    return b"".join([*entries, _cpio.entry(0, "TRAILER!!!", 0)])


def nodes() -> Iterator[Member]:
    """What every initramfs begins with."""
    for name, mode, device in _cpio.NODES:
        yield name, mode, device, b""


def first(place: Path) -> Iterator[Member]:
    """What is in every initramfs here."""
    yield from nodes()
    yield "init", stat.S_IFREG | 0o755, (0, 0), _compile("init", place)


def extract(tar: Path, packages: str) -> Path:
    """Unpacked Debian packages for arm64 as a tar file, fetched when it is not there."""
    if not tar.exists():
        options = ["--quiet", "--variant=extract", "--architectures=arm64", f"--include={packages}"]
        options += ["--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"]
        subprocess.run(["mmdebstrap", *options, "bookworm", str(tar)], check=True)
    return tar


def _debian_kernel(place: Path) -> bytes:
    with tarfile.open(extract(place / "kernel.tar", "linux-image-cloud-arm64")) as tar:
        for info in tar:
            if "/boot/vmlinuz-" in info.name and (content := tar.extractfile(info)):
                return content.read()
    raise RuntimeError("Debian's kernel package holds no kernel")


def _debian(place: Path) -> Iterator[Member]:
    tar = extract(place / "rootfs.tar", "python3,busybox-static,coreutils,openssl,base-files")
    yield from packed(tar, UNUSED)


def packed(tar: Path, unused: tuple[str, ...]) -> Iterator[Member]:
    """A root's files, but for those whose names begin with one of these."""
    with tarfile.open(tar) as archive:
        for info in archive:
            name = info.name.removeprefix("./")
            if name in ("", ".") or name.startswith(unused):
                continue
            if info.isdir():
                yield name, stat.S_IFDIR | info.mode, (0, 0), b""
            elif info.issym():
                yield name, stat.S_IFLNK | 0o777, (0, 0), info.linkname.encode()
            elif content := archive.extractfile(info):
                yield name, stat.S_IFREG | info.mode, (0, 0), content.read()


def _full(place: Path) -> Iterator[Member]:
    yield from first(place)
    for name in ("integers", "floats"):
        yield name, stat.S_IFREG | 0o755, (0, 0), _compile(name, place)
    yield "loop.py", stat.S_IFREG | 0o644, (0, 0), (PROGRAMS / "loop.py").read_bytes()
    yield from _debian(place)


def _nothing() -> bytes:
    """PSCI SYSTEM_OFF behind the header of an arm64 Image (kernel Documentation/arch/arm64/booting.rst)."""
    branch_over_header, flags = 0x14000010, 0b1010
    header = struct.pack("<2I6Q2I", branch_over_header, 0, 0, 4096, flags, 0, 0, 0, 0x644D5241, 0)
    # movz w0, #8; movk w0, #0x8400, lsl #16; hvc #0; b .
    return header + struct.pack("<4I", 0x52800100, 0x72B08000, 0xD4000002, 0x14000000)


def unpack(packed: Path, kernel: Path) -> None:
    """Writes a kernel of `guest/` as a guest has it."""
    script = str(ROOT / "guest" / "branches.py")
    subprocess.run([sys.executable, script, "unpack", str(packed), str(kernel)], check=True)


def build(place: Path) -> Guest:
    """Builds everything in this directory; Debian's packages are fetched once."""
    place.mkdir(parents=True, exist_ok=True)
    guest = Guest(place / "Image", place / "Image.debian", place / "small.cpio", place / "full.cpio", place / "nothing")
    packed = ROOT / "guest" / "aarch64" / "Image.zst"
    unpack(packed, guest.kernel)
    guest.debian_kernel.write_bytes(_debian_kernel(place))
    guest.small.write_bytes(archive(first(place)))
    guest.full.write_bytes(archive(_full(place)))
    guest.nothing.write_bytes(_nothing())
    return guest
