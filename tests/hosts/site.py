"""supermachine and what it needs, as a directory for PYTHONPATH on an emulated host; and its Rust tests, to run there.

For this machine's own architecture it is what is installed beside the running tests. For the other one the wheel is
built by the same build backend, with Debian's cross compilers.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from wheels import MAX_SIZE

from .disk import ROOT, cache_directory

PROJECT = "supermachine"
#: Debian's compiler, which has the standard library of both architectures (libstd-rust-web-dev).
RUSTC = "/usr/bin/rustc"
SOURCES = ("Cargo.lock", "Cargo.toml", "LICENSE", "README.md", "build_backend.py", "guest", "pyproject.toml", "python",
           "rust", "rustfmt.toml", "sbom.py", "third_party.py")  # fmt: skip
BUILT_TIMEOUT = 3600


class SiteError(Exception):
    """supermachine could not be prepared for a host."""


def directory(architecture: str) -> Path:
    """The directory for hosts of this architecture, made anew."""
    out = cache_directory() / f"site-{architecture}"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for name in _needed(PROJECT):
        if name != PROJECT or architecture == platform.machine():
            _copy_distribution(name, out)
    if architecture != platform.machine():
        with zipfile.ZipFile(_cross_wheel(architecture)) as wheel:
            for member in wheel.infolist():
                # ZipFile.extract drops the permissions, and the worker is an executable.
                Path(wheel.extract(member, out)).chmod((member.external_attr >> 16) & 0o777 or 0o644)
    return out


def _needed(project: str) -> list[str]:
    """The distribution and all that it needs without extras."""
    names: list[str] = []
    waiting = [project]
    while waiting:
        name = waiting.pop()
        if name in names:
            continue
        try:
            requirements = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            if name == PROJECT:
                raise SiteError(f"{PROJECT} is not installed beside the tests (pip install '.[dev]')") from None
            # Needed only where a marker says so.
            continue
        names.append(name)
        wanted = [need for need in requirements if "extra ==" not in need]
        waiting += [match.group() for need in wanted if (match := re.match(r"[\w.-]+", need))]
    return names


def _copy_distribution(name: str, out: Path) -> None:
    for file in importlib.metadata.files(name) or []:
        source = Path(str(file.locate()))
        if ".." in file.parts or not source.is_file():
            continue
        target = out / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)


def test_program(architecture: str, package: str, test: str) -> Path:
    """The executable of a file of Rust tests, for hosts of this architecture."""
    # As the tests here, or the wheel for there, are built, so that what it needs is there already.
    environment, how = dict(os.environ), ["--workspace"]
    if architecture != platform.machine():
        environment, how = _cross_environment(architecture), ["--release", "-p", package]
    command = ["cargo", "test", "--quiet", "--locked", "--no-run", *how, "--test", test]
    # Diagnostics are text then, on standard error.
    command.append("--message-format=json-render-diagnostics")
    said = _build(f"the test {test} of {package}", command, environment)
    messages = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    (executable,) = [
        Path(message["executable"])
        for message in messages
        if message.get("executable") and message["target"]["name"] == test
    ]
    return executable


def _build(what: str, command: list[str], environment: dict[str, str]) -> str:
    """Builds `what`; gives the standard output of the command that does."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=BUILT_TIMEOUT,
        env=environment,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode:
        raise SiteError(f"{what} could not be built: {done.stderr[-3000:]}")
    return done.stdout


def _build_directory(architecture: str) -> Path:
    return cache_directory() / f"build-{architecture}"


def _cross_environment(architecture: str) -> dict[str, str]:
    """What makes Cargo build for another architecture, with Debian's compilers."""
    target, compiler = f"{architecture}-unknown-linux-gnu", f"{architecture}-linux-gnu-gcc"
    missing = [tool for tool in (compiler, RUSTC, "cargo") if shutil.which(tool) is None]
    if missing:
        raise SiteError(f"what runs on {architecture} is built with {', '.join(missing)}, which is not installed")
    upper = target.upper().replace("-", "_")
    lower = target.replace("-", "_")
    return {
        **os.environ,
        "RUSTC": RUSTC,
        "CARGO_BUILD_TARGET": target,
        "CARGO_TARGET_DIR": str(_build_directory(architecture) / "target"),
        f"CARGO_TARGET_{upper}_LINKER": compiler,
        f"CC_{lower}": compiler,
        f"AR_{lower}": f"{architecture}-linux-gnu-ar",
        # It runs on what Debian 12 has, so that is what it may be linked with.
        "MATURIN_PEP517_ARGS": "--compatibility linux",
    }


def _cross_wheel(architecture: str) -> Path:
    """The wheel for another architecture. Built from a copy, for the build puts an executable into the source tree."""
    environment = _cross_environment(architecture)
    work = _build_directory(architecture)
    source, wheels = work / "source", work / "wheels"
    renew(source, ROOT, SOURCES)
    shutil.rmtree(wheels, ignore_errors=True)
    wheels.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    _build(f"the wheel for {architecture}", [*command, "-w", str(wheels), str(source)], environment)
    (wheel,) = wheels.glob("*.whl")
    if (size := wheel.stat().st_size) > MAX_SIZE:
        raise SiteError(f"{wheel.name} has {size / 1e6:.1f} MB, which is more than a wheel may have")
    return wheel


def renew(copy: Path, root: Path, names: Sequence[str]) -> None:
    """Makes the copy the same as these files and directories are now, but for what builds put among them.

    Cargo builds again what is younger than its last build, and a source's own time does not say when it came here: it
    may have changed while that build ran, or be of another checkout. So what is new in the copy gets the time of now,
    and what is not keeps the time that it has there.
    """
    before = copy.with_name(copy.name + ".before")
    shutil.rmtree(before, ignore_errors=True)
    if copy.exists():
        copy.rename(before)
    copy.mkdir(parents=True)

    def take(source: str, target: str) -> None:
        old = before / Path(target).relative_to(copy)
        if old.is_file() and old.read_bytes() == Path(source).read_bytes():
            old.rename(target)
            shutil.copymode(source, target)
        else:
            shutil.copy(source, target)

    made = shutil.ignore_patterns("_bin", "_guest", "_licenses", "*.so", "target")
    for name in names:
        if (root / name).is_dir():
            shutil.copytree(root / name, copy / name, ignore=made, copy_function=take)
        else:
            take(str(root / name), str(copy / name))
    shutil.rmtree(before, ignore_errors=True)
