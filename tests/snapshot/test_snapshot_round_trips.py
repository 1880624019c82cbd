"""What is written is read: by another implementation of each format, in both directions."""

from __future__ import annotations

import os
from pathlib import Path

import format_v8
import format_v9
import pytest
import strategies
from blake3_reference import blake3
from hypothesis import HealthCheck, given, settings
from supermachine import _core

ROUND_TRIP = settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def test_the_other_implementation_is_right():
    assert blake3(b"").hex() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    # The specification's test vector: 251 is the period of its input.
    data = bytes(n % 251 for n in range(5121))
    assert blake3(data).hex() == "628bd2cb2004694adaab7bbd778a25df25c47b9d4155a55f8fbd79f2fe154cff"
    assert format_v9.crc32c(b"123456789") == 0xE3069283


@ROUND_TRIP
@given(snapshot=strategies.snapshots_v8())
def test_version_8(tmp_path: Path, snapshot):
    state, ram = snapshot
    path = tmp_path / "v8"
    expected = format_v8.encode(state, ram)
    path.write_bytes(expected)
    found = _core.read_snapshot(str(path))
    assert found["v8"] == state
    assert found["ram_offset"] == len(expected) - len(ram)
    _core.write_snapshot_v8(str(path), state, ram, True)
    assert path.read_bytes() == expected
    assert _core.verify_snapshot(str(path)) is None


@ROUND_TRIP
@given(snapshot=strategies.snapshots_v9())
def test_version_9(tmp_path: Path, snapshot):
    identity, sections, ram, present = snapshot
    path = str(tmp_path / "v9")
    snapshot_id = _core.write_snapshot_v9(path, identity, sections, ram, present, True)
    kept = ram
    if present is not None:
        kept = bytearray(len(ram))
        for start, end in present:
            kept[start:end] = ram[start:end]
    decoded, decoded_ram = format_v9.decode(Path(path).read_bytes())
    assert decoded_ram == kept
    merged = present and _merged(present)
    assert decoded == {
        "id": snapshot_id,
        "minor": 0,
        "ram_digest": decoded["ram_digest"],
        "identity": identity,
        "sections": sections,
        "present": merged,
    }
    assert _core.read_snapshot(path)["v9"] == decoded
    assert _core.verify_snapshot(path) == snapshot_id


def _merged(extents: list[tuple[int, int]]) -> list[tuple[int, int]]:
    out: list[tuple[int, int]] = []
    for start, end in extents:
        if out and out[-1][1] == start:
            out[-1] = (out[-1][0], end)
        else:
            out.append((start, end))
    return out


@ROUND_TRIP
@given(snapshot=strategies.snapshots_v8())
def test_exports_come_back(tmp_path: Path, snapshot):
    state, ram = snapshot
    path, packed, back = (str(tmp_path / name) for name in ("v8", "packed", "back"))
    _core.write_snapshot_v8(path, state, ram, True)
    assert _core.export_snapshot(path, packed, True) == os.stat(packed).st_size
    assert _core.read_snapshot(packed)["v8"] == state
    assert _core.import_snapshot(packed, back, True) is None
    assert Path(back).read_bytes() == Path(path).read_bytes()


@pytest.mark.parametrize("pages", [1, 16, 17, 64])
def test_zeros_are_holes(tmp_path: Path, pages: int):
    """Version 9 leaves out pages of 4 KiB, version 8 chunks of 64 KiB."""
    memory_bytes = pages * 65536
    ram = bytearray(memory_bytes)
    ram[0] = 1
    _core.write_snapshot_v9(
        str(tmp_path / "v9"), format_v9.identity(memory_bytes=memory_bytes), [], bytes(ram), None, False
    )
    state = {**format_v8.small(), "memory_bytes": memory_bytes}
    _core.write_snapshot_v8(str(tmp_path / "v8"), state, bytes(ram), False)
    for name, most in (("v9", 3 * 4096), ("v8", 2 * 65536)):
        found = os.stat(tmp_path / name)
        # What a file system takes for itself is not more than what the file's first part does.
        assert found.st_blocks * 512 <= most + 65536
        assert found.st_mode & 0o7777 == 0o600
