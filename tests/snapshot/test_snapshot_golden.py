"""What any release has written is read as it was meant then."""

from __future__ import annotations

import json
from pathlib import Path

import format_v8
import format_v9
import pytest
from make_golden import GOLDEN, plain
from supermachine import _core, snapshots

NAMES = sorted(path.stem for path in GOLDEN.glob("*.zst"))


def test_there_are_golden_files():
    assert {"v8", "v9.0-whole", "v9.0-diff", "v9.1-whole", "v9.1-diff"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_golden_file_is_read(tmp_path: Path, name: str):
    packed, expected = GOLDEN / f"{name}.zst", json.loads((GOLDEN / f"{name}.json").read_text())
    path = tmp_path / "snapshot"
    snapshot_id = snapshots.import_(packed, path)
    for file in (packed, path):
        found = _core.read_snapshot(str(file))
        assert plain(found["v8"] or found["v9"]) == expected["state"]
        assert found["ram_offset"] == expected["ram_offset"]
        assert snapshots.verify(file) == snapshot_id == expected["state"].get("id")
    data = path.read_bytes()
    state = format_v8.decode(data)[0] if name.startswith("v8") else format_v9.decode(data)[0]
    assert plain(state) == expected["state"]


def test_the_golden_diff_builds_on_the_golden_whole(tmp_path: Path):
    files = []
    for name in ("v9.0-whole", "v9.0-diff"):
        files.append(tmp_path / name)
        snapshots.import_(GOLDEN / f"{name}.zst", files[-1])
    flat = tmp_path / "flat"
    snapshots.flatten(files, flat)
    found, ram = format_v9.decode(flat.read_bytes())
    page = format_v9.PAGE
    assert ram == bytes(page) + bytes(range(256)) + bytes(page - 256) + b"\x05" * (2 * page)
    assert found["present"] is None
    assert found["identity"]["parent"] is None
    assert found["sections"] == [("vcpu", 0, 1, True, bytes(range(200)))]


def test_the_golden_disk_is_that_of_both_files(tmp_path: Path):
    files = []
    for name in ("v9.1-whole", "v9.1-diff"):
        files.append(tmp_path / name)
        snapshots.import_(GOLDEN / f"{name}.zst", files[-1])
    page = format_v9.PAGE
    held = bytes(range(256)) * 16
    expected = b"\x06" * page + held + bytes(6 * page) + held + bytes(7 * page)
    assert format_v9.disk([file.read_bytes() for file in files]) == expected
    snapshots.flatten(files, tmp_path / "flat")
    assert format_v9.disk([(tmp_path / "flat").read_bytes()]) == expected
    info = snapshots.inspect(tmp_path / "flat")
    assert (info.minor, info.root_disk_bytes, info.root_disk_held_bytes) == (1, 16 * page, 3 * page)
