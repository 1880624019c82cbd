"""Whether what is installed makes wheels that are small and run on old hosts, and that their tools are locked."""

from __future__ import annotations

import importlib.metadata
import io
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
from supermachine.host import bundle

import wheels

#: What zig's builds take beyond those of this machine's compilers: what is statically linked of C, mostly.
ZIG = 200_000
#: Functions that glibc had before 2.18, too: it moved them from libraries of their own, or out of headers.
MOVED = re.compile(
    r"pthread_\w+|dl(sym|open|close|error|addr)|(f|l)?stat(at)?(64)?|fstatat64|__libc_start_main|sem_\w+|timer_\w+"
)


def test_a_wheel_of_what_is_installed_is_not_too_large() -> None:
    """The other architecture's is looked at where it is built, in site.py."""
    try:
        files = importlib.metadata.files("supermachine") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("supermachine is not installed beside the tests")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as wheel:
        for file in files:
            path = file.locate()
            if "__pycache__" not in file.parts and path.is_file():  # type: ignore[attr-defined]
                wheel.write(str(path), str(file))
    names = zipfile.ZipFile(packed).namelist()
    assert any(name.endswith("_bin/supermachine-worker") for name in names)
    assert any(name.endswith("aarch64/Image.zst") for name in names)
    assert len(packed.getbuffer()) + ZIG <= wheels.MAX_SIZE


def test_what_is_called_is_in_the_c_library_of_old_hosts() -> None:
    """manylinux_2_17 is glibc 2.17, which a wheel cannot be linked with for a newer function, unless it is weak."""
    if sys.platform != "linux" or shutil.which("nm") is None:
        pytest.skip("no nm of Linux is installed")
    from supermachine import _core

    newer = []
    for path in (str(_core.__file__), bundle.worker(), bundle.policy_process()):
        done = subprocess.run(["nm", "-D", "--undefined-only", path], capture_output=True, text=True, check=True)
        for kind, name, minor in re.findall(r"(\w) (\w+)@GLIBC_2\.(\d+)", done.stdout):
            if kind == "U" and int(minor) > 17 and not MOVED.fullmatch(name):
                newer.append(f"{path}: {name} of glibc 2.{minor}")
    assert newer == []


def test_tools_of_the_wheels_are_locked_with_hashes() -> None:
    entries = re.split(r"\n(?=\S)", (wheels.ROOT / "requirements-wheels.lock").read_text())
    locked = {e.partition("==")[0]: e for e in entries if not e.startswith("#")}
    assert {"maturin", "ziglang", "cargo-zigbuild"} <= set(locked)
    assert all("--hash=sha256:" in entry for entry in locked.values() if entry.strip())
