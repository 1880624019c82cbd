"""README.md, "On the command line": each line does what it says, with the names of a registry and of files put in."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from supermachine import VM

from ..real import RealRegistry, free_port
from ..vm.conftest import packages_layout
from .test_tour import ROOT

README = ROOT / "README.md"
#: Speaks Docker's API, as the tests of its users do.
DOCKERS = """
import docker
def test_it_answers():
    assert docker.from_env().ping()
"""


def lines(text: str) -> list[str]:
    """The commands of the block, without what is said of them."""
    block = re.search(r"^## On the command line\n+```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert block is not None
    return [line.split("  # ")[0].strip() for line in block[1].splitlines()]


@pytest.mark.vm
def test_every_line_of_the_readme(tmp_path: Path) -> None:
    commands = lines(README.read_text(encoding="utf-8"))
    assert len(commands) == 8
    (tmp_path / "bin").mkdir()
    for name, words in (("supermachine", "-m supermachine"), ("pytest", "-m pytest -p no:cacheprovider")):
        (tmp_path / "bin" / name).write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "image.oci.tar").symlink_to(ROOT / "demo" / "busybox.oci.tar")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_docker.py").write_text(DOCKERS)
    with VM(str(tmp_path / "image.oci.tar"), memory="128m") as vm:
        vm.snapshot(tmp_path / "snapshot")
    python = packages_layout(tmp_path, "python3-minimal,python-is-python3,base-files,base-passwd")
    registry = RealRegistry(tmp_path / "registry")
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "SUPERMACHINE_CACHE": str(tmp_path / "cache"),
        "SUPERMACHINE_RUNTIME": str(tmp_path / "run"),
        "SUPERMACHINE_KEYS": str(tmp_path / "keys"),
        "SUPERMACHINE_REGISTRY_MIRRORS": f"docker.io={registry.host}",
    }
    try:
        registry.push(f"oci:{python}", "library/python:3.12-slim")
        registry.push(f"oci-archive:{ROOT / 'demo' / 'busybox.oci.tar'}", "team/image:tag")
        put_in = {
            "IMAGE": f"{registry.host}/team/image:tag sleep 1000",
            "FILE": "snapshot",
            "NAME": "mine",
            "8080": str(free_port()),
        }
        said = []
        for command in commands:
            words = {**put_in, "IMAGE": f"{registry.host}/team/image:tag"} if "push" in command else put_in
            typed = re.sub("|".join(words), lambda found, words=words: words[found[0]], command)  # type: ignore[misc]
            done = subprocess.run(
                ["bash", "-e", "-c", typed], cwd=tmp_path, env=environment, timeout=300, check=False, text=True,
                stdin=subprocess.DEVNULL, capture_output=True,
            )  # fmt: skip
            assert done.returncode == 0, f"$ {typed}\n{done.stdout}{done.stderr}"
            said.append(done.stdout)
    finally:
        subprocess.run(["bash", "-c", "supermachine rm -f web"], env=environment, capture_output=True, check=False)
        registry.close()
    restored, _, started, images, inspected, pushed, tested, doctor = said
    assert restored == "1\n"
    assert started.strip() == "web"
    assert "python" in images
    assert "soft" in inspected
    assert "@sha256:" in pushed and "ed25519:" in pushed
    assert "1 passed" in tested
    assert "soft" in doctor
