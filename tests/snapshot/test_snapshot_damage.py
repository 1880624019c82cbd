"""Files that were damaged, cut off or made to mislead: a typed error or the value that is there, with little memory."""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

import child
import format_v8
import format_v9
import pytest
from blake3_reference import blake3
from make_golden import GOLDEN
from supermachine import _core
from supermachine.errors import BadSnapshot, SnapshotDamaged

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux counts it")

_FLIPS = """
import format_v8
path, version, state_bytes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
data = bytearray(open(path, "rb").read())
def read():
    # Writing to a hole makes the file take more on disk.
    return {**_core.read_snapshot(path), "disk_bytes": None}
original = read()
whole_id = _core.verify_snapshot(path)
limit(MEMORY)
noticed = unnoticed = 0
with open(path, "r+b", buffering=0) as file:
    for at in range(len(data)):
        for flip in (0x01, 0x80, 0xFF) if at < state_bytes else (0x10,):
            file.seek(at)
            file.write(bytes([data[at] ^ flip]))
            try:
                found = read()
            except errors.BadSnapshot as error:
                assert str(error) and error.code.startswith("snapshot."), error
                noticed += 1
            else:
                unnoticed += 1
                if version == 9:
                    assert at >= state_bytes, f"byte {at} changed and the snapshot opens"
                    assert found == original
                elif at < state_bytes:
                    data[at] ^= flip
                    assert found["v8"] == format_v8.decode(bytes(data))[0], f"byte {at}"
                    data[at] ^= flip
                else:
                    assert found == original
            if version == 9:
                try:
                    _core.verify_snapshot(path)
                except errors.BadSnapshot:
                    pass
                else:
                    raise AssertionError(f"byte {at} changed and the snapshot is whole")
        file.seek(at)
        file.write(data[at : at + 1])
assert _core.verify_snapshot(path) == whole_id
print(noticed, unnoticed)
""".replace("MEMORY", str(child.MEMORY))

_CUTS = """
import os
path, state_bytes = sys.argv[1], int(sys.argv[2])
limit(MEMORY)
length = os.stat(path).st_size
for end in range(length - 1, -1, -1):
    os.truncate(path, end)
    for look in (_core.read_snapshot, _core.verify_snapshot):
        try:
            look(path)
        except errors.BadSnapshot as error:
            assert str(error), end
        else:
            raise AssertionError(f"cut off at {end} and not noticed")
""".replace("MEMORY", str(child.MEMORY))


@pytest.fixture
def small_v8(tmp_path: Path) -> tuple[Path, int]:
    """A file, and how much of it is in use before RAM."""
    path = tmp_path / "v8"
    path.write_bytes(format_v8.encode(format_v8.small(), bytes(range(256)) * 16))
    metadata = path.read_bytes()[:16384]
    # The last byte of all, of a listener's kind of socket, is a zero.
    return path, len(metadata.rstrip(b"\0")) + 1


@pytest.fixture
def small_v9(tmp_path: Path) -> tuple[Path, int]:
    path = tmp_path / "v9"
    identity = format_v9.identity(parent="44" * 32, memory_bytes=2 * format_v9.PAGE)
    sections = [("vcpu", 0, 1, True, bytes(range(100))), ("note", 0, 1, False, b"optional")]
    ram = bytes(range(256)) * 16 + bytes(format_v9.PAGE)
    _core.write_snapshot_v9(str(path), identity, sections, ram, [(0, format_v9.PAGE)], False)
    (length,) = struct.unpack_from("<Q", path.read_bytes(), 16)
    return path, format_v9.HEADER.size + length


def test_every_changed_byte_of_version_8(small_v8):
    path, state_bytes = small_v8
    noticed, _ = map(int, child.run(_FLIPS, path, 8, state_bytes).split())
    # Header, counts, ids, reserved bytes and padding; values have nothing that would tell.
    assert noticed > 16384 - state_bytes


def test_every_changed_byte_of_version_9(small_v9):
    path, state_bytes = small_v9
    noticed, _ = map(int, child.run(_FLIPS, path, 9, state_bytes).split())
    assert noticed == 3 * state_bytes


@pytest.mark.parametrize("version", ["small_v8", "small_v9"])
def test_every_length(version: str, request: pytest.FixtureRequest):
    path, state_bytes = request.getfixturevalue(version)
    child.run(_CUTS, path, state_bytes)


_EXPORT = """
path = sys.argv[1]
data = open(path, "rb").read()
def state():
    found = _core.read_snapshot(path)
    return found["v8"], found["v9"], found["ram_offset"]
original, whole_id = state(), _core.verify_snapshot(path)
limit(MEMORY)
same = 0
with open(path, "r+b", buffering=0) as file:
    for at in range(len(data)):
        for flip in (0x01, 0x80, 0xFF):
            file.seek(at)
            file.write(bytes([data[at] ^ flip]))
            for look, expected in ((state, original), (lambda: _core.verify_snapshot(path), whole_id)):
                try:
                    assert look() == expected, f"byte {at} changed and something else is read"
                    same += 1
                except errors.BadSnapshot:
                    pass
        file.seek(at)
        file.write(data[at : at + 1])
# Zstandard has bits that mean nothing; and what is damaged may not be what is looked at.
print(same < len(data))
""".replace("MEMORY", str(child.MEMORY))


@pytest.mark.parametrize("name", ["v8", "v9.0-diff", "v9.0-whole"])
def test_every_changed_byte_of_an_export(tmp_path: Path, name: str):
    path = tmp_path / "export"
    path.write_bytes((GOLDEN / f"{name}.zst").read_bytes())
    assert child.run(_EXPORT, path) == "True\n"


def test_one_byte_more(small_v8, small_v9):
    for path, _ in (small_v8, small_v9):
        with path.open("ab") as file:
            file.write(b"\0")
        with pytest.raises(BadSnapshot, match="1 bytes follow its end"):
            _core.read_snapshot(str(path))


def forged_v9(sections: list[tuple[str, int, bytes]], memory_bytes: int = 4096, **header) -> bytes:
    """The part before RAM, all of its checksums right."""
    body = b""
    for kind, flags, content in sections:
        head = struct.pack("<16sIIQI", kind.encode(), 0, 1, len(content), flags)
        body += head + struct.pack("<I", format_v9.crc32c(head + content)) + content
        body = body.ljust(-(-len(body) // 8) * 8, b"\0")
    length = header.get("length", len(body))
    ram_offset = -(-(160 + length) // 65536) * 65536
    start = struct.pack(
        "<8sIIQQQQ32s32s16s",
        b"SMSNAP\x09\0",
        0,
        header.get("count", len(sections)),
        length,
        ram_offset,
        memory_bytes,
        0,
        blake3(body),
        bytes(32),
        bytes(16),
    )
    return start + blake3(start) + body


_READ = """
limit(MEMORY)
try:
    _core.read_snapshot(sys.argv[1])
except errors.BadSnapshot as error:
    print(error)
else:
    raise AssertionError("it was read")
""".replace("MEMORY", str(child.MEMORY))


def header_v8(**changes: int) -> bytes:
    fields = {
        "version": 8,
        "mach_time": 0,
        "cntvct": 0,
        "memory_bytes": 4096,
        "gic_blob_len": 0,
        "n_vcpus": 1,
        "reserved": 0,
        "ram_gpa": 0,
        "ram_offset": 16384,
        **changes,
    }
    return format_v8.HEADER.pack(format_v8.MAGIC, *fields.values())


@pytest.mark.parametrize(
    ("start", "length"),
    [
        pytest.param(header_v8(gic_blob_len=2**64 - 1), 20480, id="v8 blob"),
        pytest.param(header_v8(gic_blob_len=2**40, ram_offset=2**41), 2**41 + 4096, id="v8 blob of holes"),
        pytest.param(header_v8(gic_blob_len=16 << 20, ram_offset=16 << 20), (16 << 20) + 4096, id="v8 largest blob"),
        pytest.param(header_v8(n_vcpus=2**32 - 1), 20480, id="v8 vCPUs"),
        pytest.param(header_v8(n_vcpus=2**32 - 1, ram_offset=16 << 20), (16 << 20) + 4096, id="v8 vCPUs of zeros"),
        pytest.param(header_v8(memory_bytes=2**63), 2**42, id="v8 RAM"),
        pytest.param(header_v8(ram_offset=2**64 - 16384), 20480, id="v8 place of RAM"),
        pytest.param(header_v8() + struct.pack("<Q5I", 0, *[2**32 - 1] * 5), 20480, id="v8 registers"),
        pytest.param(forged_v9([], length=2**63), 2**42, id="v9 sections"),
        pytest.param(forged_v9([], length=32 << 20, count=65536), (33 << 20) + 4096, id="v9 sections of holes"),
        pytest.param(forged_v9([], count=2**32 - 1), 69632, id="v9 count"),
        pytest.param(forged_v9([], memory_bytes=2**63 - 4096), 2**42, id="v9 RAM"),
        pytest.param(forged_v9([("identity", 1, struct.pack("<HHII", 0, 0, 0, 2**32 - 1))]), 69632, id="v9 features"),
    ],
)
def test_claimed_lengths_take_no_memory(tmp_path: Path, start: bytes, length: int):
    path = tmp_path / "forged"
    path.write_bytes(start)
    os.truncate(path, length)
    assert str(path) in child.run(_READ, path)


def test_many_small_extents_take_memory_in_proportion(tmp_path: Path):
    """Every other page: no extents are encoded in less. Written by hand, for the writer would need the RAM."""
    memory_bytes = 8 << 30
    path = tmp_path / "diff"
    encoded = struct.pack("<H", 7) + b"aarch64" + struct.pack("<H", 4) + b"soft" + struct.pack("<II", 1, 0)
    encoded += bytes(64) + b"\0" + struct.pack("<IIQQ", 0, 1, memory_bytes, 0)
    encoded += b"\1" + bytes(32) + struct.pack("<Q", 0)
    extents = b"\0\1" + b"\1\1" * 20_000
    path.write_bytes(forged_v9([("identity", 1, encoded), ("ram-extents", 1, extents)], memory_bytes))
    (ram_offset,) = struct.unpack_from("<Q", path.read_bytes(), 24)
    os.truncate(path, ram_offset + memory_bytes)
    found = child.run(f"limit({child.MEMORY})\nprint(len(_core.read_snapshot(sys.argv[1])['v9']['present']))", path)
    assert int(found) == 20_001


def test_errors_name_what_is_wrong(tmp_path: Path, small_v8, small_v9):
    path, _ = small_v9
    good = path.read_bytes()
    at = good.index(bytes(range(100)))
    path.write_bytes(good[:at] + b"\xff" + good[at + 1 :])
    with pytest.raises(SnapshotDamaged, match="section vcpu 0") as caught:
        _core.read_snapshot(str(path))
    assert caught.value.code == "snapshot.damaged"
    assert caught.value.hint
    path.write_bytes(good[:-8192] + b"\xff" + good[-8191:])
    _core.read_snapshot(str(path))
    with pytest.raises(SnapshotDamaged, match="the RAM has digest"):
        _core.verify_snapshot(str(path))

    path, _ = small_v8
    state = format_v8.small()
    state["vcpus"][0]["redist"] = state["vcpus"][0]["redist"][1:]
    path.write_bytes(format_v8.encode(state, bytes(4096)))
    with pytest.raises(BadSnapshot, match="GICR_IGROUPR0"):
        _core.read_snapshot(str(path))
    state = format_v8.small()
    state["vcpus"][0]["sys"][1] = (0xC081, 0)
    path.write_bytes(format_v8.encode(state, bytes(4096)))
    with pytest.raises(BadSnapshot, match="0xc081"):
        _core.read_snapshot(str(path))
