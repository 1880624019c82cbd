"""Every Python example of the README and of docs/ runs, on the image that ships with the project."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: Documents whose examples need something prepared for them, and the tests that do so.
_ELSEWHERE = {
    "inspect.md": "tests/fleet/test_inspect.py",
    "pytest.md": "tests/integrations/test_pytest_plugin.py",
    "snapshot-format.md": "tests/snapshot/test_snapshot_docs.py",
}


def _program(document: Path) -> str:
    """All examples of a document in their order: later ones build on earlier ones."""
    return "\n".join(_BLOCK.findall(document.read_text(encoding="utf-8")))


DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_what_is_tested_elsewhere_is() -> None:
    for name, test in _ELSEWHERE.items():
        assert name in (ROOT / test).read_text(encoding="utf-8")


def test_every_link_leads_to_a_file() -> None:
    pages = [*ROOT.glob("*.md"), *DOCUMENTS]
    missing = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert not missing


@pytest.mark.vm
@pytest.mark.parametrize(
    "document",
    [d for d in DOCUMENTS if d.name not in _ELSEWHERE and _program(d)],
    ids=lambda d: d.relative_to(ROOT).as_posix(),
)
def test_the_examples_run(document: Path, tmp_path: Path) -> None:
    # As a reader would run them: a program of its own, in a directory where the demo is.
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    places = {"SUPERMACHINE_CACHE": str(tmp_path / "cache"), "SUPERMACHINE_DATA": str(tmp_path / "data")}
    environment = {**os.environ, **places}
    done = subprocess.run(
        [sys.executable, "-c", _program(document)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
