"""docs/how-to/cookbook.md: its files of tests run as the page says. Its programs run in test_examples.py."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "cookbook.md"
FILES = dict(re.findall(r'^```python title="([\w.]+)"\n(.*?)^```$', PAGE.read_text(), re.MULTILINE | re.DOTALL))


def _passes(tmp_path: Path, name: str, *before: str) -> None:
    (tmp_path / name).write_text(FILES[name])
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    environment = {**os.environ, "SUPERMACHINE_CACHE": str(tmp_path / "cache")}
    words = [*before, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *_plugin(), name]
    done = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _plugin() -> list[str]:
    """The plugin's name where the package is not installed, but lies in a path."""
    from importlib.metadata import entry_points

    installed = any(found.name == "supermachine" for found in entry_points(group="pytest11"))
    return [] if installed else ["-p", "supermachine.integrations.pytest_plugin"]


def test_all_files_of_the_page_are_run() -> None:
    assert set(FILES) == {"test_database.py", "test_containers.py"}


@pytest.mark.vm
def test_a_database_for_each_test(tmp_path: Path) -> None:
    _passes(tmp_path, "test_database.py")


@pytest.mark.vm
def test_testcontainers_unchanged(tmp_path: Path) -> None:
    image = f"demo/busybox:1={ROOT / 'demo' / 'busybox.oci.tar'}"
    _passes(tmp_path, "test_containers.py", sys.executable, "-m", "supermachine", "docker", "--image", image, "--")


def test_every_page_is_in_the_site() -> None:
    named = set(re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert named == {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
