"""The same sources give the same initramfs, byte for byte, in whatever directory they are built."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.real import unavailable

ROOT = Path(__file__).parents[2]
ARCHITECTURES = ("aarch64", "x86_64")
NEEDED = ("cargo", "zstd", "aarch64-linux-gnu-gcc", "x86_64-linux-gnu-gcc")


def same_tools(name: str) -> str:
    """Why this machine's compiler cannot give the committed bytes; "" when it can."""
    command = [sys.executable, "guest/manifest.py", "tools", name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.strip() if done.returncode else ""


def build(directory: Path) -> dict[str, str]:
    """The digests of what the script makes of a copy of the sources in this directory."""
    directory.mkdir(parents=True)
    for name in ("Cargo.lock", "Cargo.toml"):
        shutil.copy(ROOT / name, directory / name)
    ignored = shutil.ignore_patterns("target", "*.zst", "_bin", "_guest")
    for name in ("guest", "rust"):
        shutil.copytree(ROOT / name, directory / name, ignore=ignored)
    out = directory / "out"
    environment = {name: value for name, value in os.environ.items() if name not in ("CARGO_TARGET_DIR", "RUSTC")}
    # Whatever the builder's own shell asks of Cargo, it does not change the bytes.
    environment |= {"CARGO_INCREMENTAL": "1", "CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS": "true"}
    script = [str(directory / "guest" / "build-initramfs.sh"), "--out", str(out)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=1800, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return {
        name: hashlib.sha256((out / name / "initramfs.cpio.zst").read_bytes()).hexdigest() for name in ARCHITECTURES
    }


@pytest.mark.slow
def test_the_committed_initramfs_is_what_the_sources_give(tmp_path: Path) -> None:
    missing = [tool for tool in NEEDED if shutil.which(tool) is None]
    if not Path("/usr/bin/rustc").exists() or not list(Path("/usr/lib/rustlib").glob("aarch64-unknown-linux-gnu")):
        missing.append("rustc-web and libstd-rust-web-dev:arm64")
    if missing:
        unavailable(f"not installed: {', '.join(missing)}")
    first = build(tmp_path / "a")
    if differences := [why for name in ARCHITECTURES if (why := same_tools(f"{name}/initramfs.cpio.zst"))]:
        # Debian has newer packages than the committed files were built with: then two builds here must be the same.
        print("not compared with the committed files:", *differences)
        assert build(tmp_path / "another" / "longer path") == first
        return
    for name, digest in first.items():
        committed = hashlib.sha256((ROOT / "guest" / name / "initramfs.cpio.zst").read_bytes()).hexdigest()
        assert digest == committed, (
            f"guest/{name}/initramfs.cpio.zst is not what the sources give; build it again with: make guest-initramfs"
        )


def test_the_archive_is_one_that_cpio_reads(tmp_path: Path) -> None:
    if shutil.which("cpio") is None:
        unavailable("not installed: cpio")
    program, archive = tmp_path / "program", tmp_path / "archive"
    program.write_bytes(b"#!program of an odd length\n")
    subprocess.run([sys.executable, str(ROOT / "guest/cpio.py"), str(program), str(archive)], check=True, timeout=60)
    listed = subprocess.run(["cpio", "-itv"], input=archive.read_bytes(), capture_output=True, check=True, timeout=60)
    lines = [line.split() for line in listed.stdout.decode().splitlines()]
    assert [(line[0], line[-1]) for line in lines] == [
        ("drwxr-xr-x", "dev"),
        ("crw-------", "dev/console"),
        ("crw-rw-rw-", "dev/null"),
        ("-rwxr-xr-x", "init"),
    ]
    subprocess.run(["cpio", "-i", "--quiet", "init"], cwd=tmp_path, input=archive.read_bytes(), check=True, timeout=60)
    assert (tmp_path / "init").read_bytes() == program.read_bytes()
    assert (tmp_path / "init").stat().st_mode & stat.S_IXUSR
