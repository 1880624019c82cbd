"""The program of docs/how-to/inspect.md: an evaluation by Inspect whose sandboxes are machines of a fleet."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import BUSYBOX

pytest.importorskip("inspect_ai")
pytestmark = [pytest.mark.vm, pytest.mark.engine]

DOCUMENT = Path(__file__).parents[2] / "docs" / "how-to" / "inspect.md"


def test_an_evaluation_has_machines_of_a_fleet(tmp_path: Path) -> None:
    [program] = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "inspect_sandbox.py").write_text(program)
    command = [sys.executable, "inspect_sandbox.py", BUSYBOX, "local", str(tmp_path / "logs")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert (done.returncode, done.stdout) == (0, "1.0\n"), done.stderr
