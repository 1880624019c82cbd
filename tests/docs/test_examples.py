"""Every Python example of the README and of docs/ runs, on the image that ships with the project."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _examples() -> Iterator[tuple[str, str]]:
    for document in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = document.read_text(encoding="utf-8")
        for block in _BLOCK.finditer(text):
            line = text.count("\n", 0, block.start()) + 2
            yield f"{document.relative_to(ROOT)}:{line}", block[1]


EXAMPLES = dict(_examples())


def test_there_are_examples() -> None:
    assert any(name.startswith("README.md:") for name in EXAMPLES)


@pytest.mark.vm
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    # As a reader would: a program of its own. Relative paths are those of the project.
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    environment = {**os.environ, "SUPERMACHINE_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", EXAMPLES[name]],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
