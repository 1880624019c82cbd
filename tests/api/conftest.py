"""A `VM` whose worker is the stand-in: processes and files of this host, with the protocol in between."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from supermachine import VM, images
from supermachine.images import ImageConfig, Platform, ResolvedImage

CONFIG = ImageConfig(entrypoint=("/bin/echo",), cmd=("from", "cmd"), env=("PATH=/usr/bin:/bin", "FROM_IMAGE=1"))


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ResolvedImage:
    script = tmp_path / "worker"
    source = Path(__file__).with_name("stand_in.py")
    script.write_text(f"#!{sys.executable} -E\nimport runpy\nrunpy.run_path({str(source)!r}, run_name='__main__')\n")
    script.chmod(0o755)
    empty = tmp_path / "empty"
    empty.touch()
    monkeypatch.setenv("SUPERMACHINE_WORKER", str(script))
    monkeypatch.setenv("SUPERMACHINE_KERNEL", str(empty))
    monkeypatch.setenv("SUPERMACHINE_INITRAMFS", str(empty))
    # It has no card for a cable.
    monkeypatch.setenv("SUPERMACHINE_NETWORK", "none")
    image = ResolvedImage("stand-in:latest", "sha256:" + "0" * 64, Platform("linux", "arm64"), CONFIG, empty, 0)
    monkeypatch.setattr(images, "resolve", lambda *_args, **_options: image, raising=False)
    return image


@pytest.fixture
def guest(stand_in: ResolvedImage):
    with VM("stand-in") as machine:
        yield machine
