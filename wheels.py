"""Builds wheels for Linux on any x86_64 Linux host: manylinux and musllinux, x86_64 and arm64.

`make wheels` runs it in an environment of its own (requirements-wheels.lock): zig is the C compiler and the linker, so
that a wheel needs no newer C library than its name says. Rust's targets have to be there: `rustup target add TARGET`.
Wheels for macOS are built on macOS (.github/workflows/release.yml).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent
#: Rust's target, and the tag of the oldest C library that the wheel works with (PEP 600, PEP 656).
KINDS = {
    "manylinux-x86_64": ("x86_64-unknown-linux-gnu", "manylinux_2_17"),
    "musllinux-x86_64": ("x86_64-unknown-linux-musl", "musllinux_1_2"),
    "manylinux-aarch64": ("aarch64-unknown-linux-gnu", "manylinux_2_17"),
    "musllinux-aarch64": ("aarch64-unknown-linux-musl", "musllinux_1_2"),
}
#: Bytes of a wheel at most. A guest's kernel and agent are some 4.5 MB for each architecture.
MAX_SIZE = 15_000_000


def build(kind: str, place: Path) -> Path:
    """The wheel, in `place`; the build's files are kept below it for the next time. Raises CalledProcessError."""
    target, tag = KINDS[kind]
    source, out = place / "source", place / kind
    _copy(source)
    shutil.rmtree(out, ignore_errors=True)
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]]),
        "CARGO_BUILD_TARGET": target,
        "CARGO_TARGET_DIR": str(place / "target"),
        "MATURIN_PEP517_ARGS": f"--zig --compatibility {tag}",
        # The extension is of Python's stable ABI, so that no interpreter for the target is needed.
        "PYO3_NO_PYTHON": "1",
    }
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(out), str(source)]
    subprocess.run(command, env=environment, check=True)
    (wheel,) = out.glob("*.whl")
    return wheel


def _copy(source: Path) -> None:
    """The sources that git has: a build puts executables among them. What has not changed keeps its time, for Cargo."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    wanted = [name for name in names.split("\0") if name and not name.startswith(("tests/", "fuzz/", "docs/"))]
    for name in wanted:
        here, there = ROOT / name, source / name
        if not here.is_file() or (there.is_file() and there.read_bytes() == here.read_bytes()):
            continue
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(here, there)
    left = {path for path in source.rglob("*") if path.is_file()} - {source / name for name in wanted}
    for path in left:
        if not {"_bin", "_guest", "_licenses"} & set(path.parts) and path.suffix != ".so":
            path.unlink()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python wheels.py", description=__doc__)
    parser.add_argument("kind", nargs="*", metavar="KIND", help=f"{', '.join(KINDS)}; default: all")
    parser.add_argument("--place", type=Path, default=ROOT / "target" / "wheels")
    args = parser.parse_args()
    if unknown := set(args.kind) - KINDS.keys():
        parser.error(f"no kind of wheel: {', '.join(sorted(unknown))}")
    failed = False
    for kind in args.kind or KINDS:
        wheel = build(kind, args.place.absolute())
        size = wheel.stat().st_size
        print(f"{wheel}: {size / 1e6:.1f} MB")
        if size > MAX_SIZE:
            print(f"{wheel.name} is larger than {MAX_SIZE / 1e6:.0f} MB", file=sys.stderr)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
