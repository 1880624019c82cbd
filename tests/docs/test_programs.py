"""Every program in examples/ runs as it stands, and is in the list there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRAMS = sorted(EXAMPLES.glob("*.py"))


def test_the_list_has_all_of_them() -> None:
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert PROGRAMS
    assert [p.name for p in PROGRAMS if f"`{p.name}`" not in text] == []


@pytest.mark.vm
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.stem)
def test_it_runs(program: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(program)], cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
