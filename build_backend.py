"""The build backend: maturin, after the worker executable and the guest files are in their place.

A wheel holds one extension module, one executable that owns a virtual machine, and what a guest boots. maturin builds
the first; this builds the second with Cargo and copies both others into the package, where maturin finds them.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import maturin
from maturin import get_requires_for_build_sdist, prepare_metadata_for_build_wheel

import sbom
import third_party

ROOT = Path(__file__).resolve().parent
PACKAGE = ROOT / "python" / "supermachine"
WORKER = "supermachine-worker"
#: The policy process of guests' networks.
NETD = "supermachine-netd"
MODULE = "supermachine-python"
#: What a guest boots, by the host's architecture: arm64 guests run everywhere, x86_64 guests where the host's CPU does.
GUEST_FILES = {
    "*": ("NOTICE", "aarch64/Image.zst", "aarch64/initramfs.cpio.zst"),
    "x86_64": ("x86_64/vmlinux.zst", "x86_64/initramfs.cpio.zst"),
}
#: What the worker is signed with on macOS, here or at its first use.
ENTITLEMENTS = ROOT / "rust" / "worker" / "entitlements.plist"

if sys.platform == "darwin":
    # The first macOS with an interrupt controller for guests; Cargo and maturin go by it, the wheel's tag included.
    os.environ.setdefault("MACOSX_DEPLOYMENT_TARGET", "15.0")

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]


def _target_directory() -> Path:
    """Where Cargo puts what it builds."""
    return Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target").absolute()


def _copy(source: Path, target: Path) -> None:
    """Copies whole or not at all: a worker that runs keeps its own file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    shutil.copyfile(source, part)
    shutil.copymode(source, part)
    part.replace(target)


def _sign(worker: Path) -> None:
    """Ad hoc, with the entitlement to make virtual machines. Where that fails it is done at the first use."""
    command = ["codesign", "--sign", "-", "--force", "--entitlements", str(ENTITLEMENTS), str(worker)]
    print("+", *command, file=sys.stderr, flush=True)
    if subprocess.run(command, check=False).returncode != 0:
        print("the worker is not signed yet; it will be at its first use", file=sys.stderr)


def _guest_files() -> tuple[str, ...]:
    target = os.environ.get("CARGO_BUILD_TARGET")
    architecture = target.split("-")[0] if target else platform.machine()
    return (*GUEST_FILES["*"], *GUEST_FILES.get(architecture, ()))


def _arguments(config_settings: dict[str, Any] | None) -> list[str]:
    """What maturin is told beside, as it looks for it: it takes the first that is there."""
    settings = config_settings or {}
    given = settings.get("maturin.build-args", settings.get("build-args", os.environ.get("MATURIN_PEP517_ARGS", "")))
    return shlex.split(given) if isinstance(given, str) else list(given or ())


def _cargo(arguments: list[str]) -> list[str]:
    """The command that builds executables for the target: with maturin's --zig, cargo-zigbuild for its glibc."""
    target = os.environ.get("CARGO_BUILD_TARGET")
    if "--zig" not in arguments or target is None:
        return ["cargo", "build"]
    glibc = re.search(r"manylinux_(\d+)_(\d+)", " ".join(arguments))
    return ["cargo", "zigbuild", "--target", f"{target}.{glibc[1]}.{glibc[2]}" if glibc else target]


def _with_sbom(config_settings: dict[str, Any] | None) -> dict[str, Any]:
    """The settings, and a list of what is in the wheel for its metadata (PEP 770)."""
    target = os.environ.get("CARGO_BUILD_TARGET")
    made = sbom.write(
        _target_directory() / "sbom" / "supermachine.cyclonedx.json", ROOT, [WORKER, NETD], target, list(_guest_files())
    )
    words = _arguments(config_settings)
    return {**(config_settings or {}), "maturin.build-args": [*words, "--sbom-include", str(made)]}


def prepare(config_settings: dict[str, Any] | None = None) -> None:
    """Builds the worker and puts it and the guest files into the package."""
    command = [*_cargo(_arguments(config_settings)), "--release", "--locked", "--package", WORKER, "--package", NETD]
    target = os.environ.get("CARGO_BUILD_TARGET")
    print("+", *command, file=sys.stderr, flush=True)
    try:
        subprocess.run(command, cwd=ROOT, check=True)
    except FileNotFoundError:
        raise SystemExit("cargo was not found; install Rust (https://rustup.rs), then try again") from None
    directory = _target_directory() / target if target else _target_directory()
    worker = PACKAGE / "_bin" / WORKER
    _copy(directory / "release" / WORKER, worker)
    _copy(directory / "release" / NETD, PACKAGE / "_bin" / NETD)
    if sys.platform == "darwin":
        _copy(ENTITLEMENTS, PACKAGE / "_bin" / ENTITLEMENTS.name)
        _sign(worker)
    licences = PACKAGE / "_licenses" / "third-party.txt"
    licences.parent.mkdir(exist_ok=True)
    licences.write_text(third_party.collect(ROOT, [WORKER, NETD, MODULE], target))
    names = _guest_files()
    for name in names:
        source = ROOT / "guest" / name
        if not source.is_file():
            raise SystemExit(f"{source} is missing: the source tree is incomplete")
        _copy(source, PACKAGE / "_guest" / name)
    # What an earlier build for another architecture left must not get into this wheel.
    for path in [*(PACKAGE / "_guest").rglob("*")]:
        if path.is_file() and path.relative_to(PACKAGE / "_guest").as_posix() not in names:
            path.unlink()


def build_wheel(
    wheel_directory: str,
    config_settings: dict[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    prepare(config_settings)
    return str(maturin.build_wheel(wheel_directory, _with_sbom(config_settings), metadata_directory))


def build_editable(
    wheel_directory: str,
    config_settings: dict[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    prepare(config_settings)
    return str(maturin.build_editable(wheel_directory, config_settings, metadata_directory))


def build_sdist(sdist_directory: str, config_settings: dict[str, Any] | None = None) -> str:
    return str(maturin.build_sdist(sdist_directory, config_settings))


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    return list(maturin.get_requires_for_build_wheel(config_settings))


get_requires_for_build_editable = get_requires_for_build_wheel
prepare_metadata_for_build_editable = prepare_metadata_for_build_wheel


if __name__ == "__main__":
    prepare()
