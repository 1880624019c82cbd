"""What others make and this repository runs is pinned."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_actions_are_pinned_by_digest() -> None:
    used = []
    for path in sorted((ROOT / ".github").rglob("*.y*ml")):
        for line in path.read_text().splitlines():
            if (found := re.search(r"\buses:\s*(\S+)(.*)", line)) is not None:
                used.append(found[1])
                assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", found[1]), f"{path}: {line.strip()}"
                assert re.fullmatch(r"\s+# v\d+(\.\d+)+", found[2]), (
                    f"{path}: {line.strip()} does not say which version"
                )
    assert used


def test_development_tools_are_locked_with_hashes() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    found = re.search(r"^dev = \[(.*)\]$", text, re.MULTILINE)
    assert found
    wanted = re.findall(r'"([\w-]+)', found[1])
    entries = re.split(r"\n(?=\S)", (ROOT / "requirements-dev.lock").read_text())
    locked = {e.partition("==")[0]: e for e in entries if not e.startswith("#")}
    assert wanted
    assert set(wanted) <= set(locked)
    assert all(re.search(r"==\S+", entry) and "--hash=sha256:" in entry for entry in locked.values() if entry.strip())


def test_engines_of_fleets_are_locked_with_hashes() -> None:
    entries = re.split(r"\n(?=\S)", (ROOT / "requirements-fleet.lock").read_text())
    locked = {e.partition("==")[0]: e for e in entries if not e.startswith("#")}
    assert {"ray", "distributed", "cloudpickle"} <= set(locked)
    assert all("--hash=sha256:" in entry for entry in locked.values() if entry.strip())
