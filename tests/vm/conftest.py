"""Real guests on real images: the demo's busybox, and a Python made from Debian's packages by real tools."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from supermachine import VM

BUSYBOX = Path(__file__).parents[2] / "demo" / "busybox.oci.tar"
TOOLS = ("mmdebstrap", "umoci")
PACKAGES = "python3,libpython3.11-testsuite,busybox-static,base-files,netbase"


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of this run's own."""
    path = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUPERMACHINE_CACHE", str(path))
        yield path


@pytest.fixture(scope="session")
def busybox() -> str:
    """The image that ships with the project."""
    return str(BUSYBOX)


@pytest.fixture(scope="module")
def guest(busybox: str) -> Iterator[VM]:
    """A busybox guest that the tests of a module share."""
    with VM(busybox) as vm:
        yield vm


@pytest.fixture(scope="session")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OCI layout with Debian's Python for arm64, its own tests included; packed by umoci."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing and "CI" in os.environ:
        pytest.fail(f"{', '.join(missing)} must be there in CI")
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed")
    place = tmp_path_factory.mktemp("debian")
    rootfs, layout = place / "rootfs.tar", place / "oci"
    image = f"{layout}:latest"
    config = ["--architecture", "arm64", "--os", "linux", "--config.cmd", "python3", "--config.workingdir", "/srv"]
    config += ["--config.env", "PATH=/usr/bin:/bin", "--config.env", "GREETING=good day", "--config.user", "www-data"]
    commands = [
        ["mmdebstrap", "--quiet", "--variant=extract", "--architectures=arm64", f"--include={PACKAGES}",
         "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr", "bookworm", str(rootfs)],
        ["umoci", "init", "--layout", str(layout)],
        ["umoci", "new", "--image", image],
        ["umoci", "raw", "add-layer", "--image", image, str(rootfs)],
        ["umoci", "config", "--image", image, *config],
    ]  # fmt: skip
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
    return layout
