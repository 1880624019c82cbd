"""Arrows between Rust crates run one way: the table of architecture.md is what Cargo builds, and has no circle."""

from __future__ import annotations

import json
import re
import subprocess
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
_PREFIX = "supermachine-"
_ROW = re.compile(r"^\| `([\w-]+)` \| .* \| (.*?) ?\|$", re.MULTILINE)


def _built() -> dict[str, set[str]]:
    """Crate to the crates of this workspace that it is built from; what only its tests use (hvf-soft) is left out."""
    command = ["cargo", "metadata", "--no-deps", "--locked", "--offline", "--format-version=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return {
        package["name"].removeprefix(_PREFIX): {
            dependency["name"].removeprefix(_PREFIX)
            for dependency in package["dependencies"]
            if dependency["name"].startswith(_PREFIX) and dependency["kind"] is None and not dependency["optional"]
        }
        for package in json.loads(done.stdout)["packages"]
    }


def _documented() -> dict[str, set[str]]:
    text = (ROOT / "docs" / "concepts" / "architecture.md").read_text(encoding="utf-8")
    crates = text[text.index("## Crates") : text.index("python/supermachine/ is thin")]
    return {name: set(re.findall(r"`([\w-]+)`", needs)) for name, needs in _ROW.findall(crates)}


def test_the_table_is_what_is_built() -> None:
    assert _documented() == _built()


def test_there_is_no_circle() -> None:
    assert len(list(TopologicalSorter(_built()).static_order())) > 1


def test_leaves_know_nobody_and_devices_know_no_engine() -> None:
    built = _built()
    for leaf in ("soft", "snapshot"):
        assert built[leaf] == {"support"}
    assert "engine" not in built["devices"] | built["snapshot"] | built["proto"]
    assert "machine" not in built["python"]
