"""Makes the golden files of the version that this build writes, and the fuzzers' first inputs, where there are none.

Released files are never made again: python tests/snapshot/make_golden.py
"""

from __future__ import annotations

import json
import struct
import tempfile
from pathlib import Path

import format_v8
import format_v9
from supermachine import _core

GOLDEN = Path(__file__).with_name("golden")
#: By which the fuzzer's target numbers sections.
KINDS = ("identity", "ram-extents", "vcpu", "device")
SEEDS = Path(__file__).parents[2] / "fuzz" / "seeds"


def plain(value):
    """As JSON has it: bytes in hexadecimal, and what is wider than 64 bits as text."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, int) and value >= 2**64 else value


def keep(name: str, path: Path) -> None:
    packed = GOLDEN / f"{name}.zst"
    if packed.exists():
        return
    _core.export_snapshot(str(path), str(packed), False)
    found = _core.read_snapshot(str(path))
    expected = {"state": plain(found["v8"] or found["v9"]), "ram_offset": found["ram_offset"]}
    (GOLDEN / f"{name}.json").write_text(json.dumps(expected, indent=1) + "\n")


def seed(target: str, name: str, content: bytes) -> None:
    path = SEEDS / target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_bytes(content)


def make(directory: Path) -> None:
    state = format_v8.small()
    state["vcpus"].append(format_v8.vcpu(2))
    state["devices"].append({"driver_features": (0, 0), "status": 0, "interrupt_status": 0, "queues": []})
    state["memory_bytes"] = 3 * 65536
    ram = bytearray(3 * 65536)
    ram[65536:65600] = bytes(range(64))
    path = directory / "v8"
    # Not by the writer that is tested.
    path.write_bytes(format_v8.encode(state, bytes(ram)))
    keep("v8", path)

    page = format_v9.PAGE
    ram = bytearray(4 * page)
    ram[page : page + 256] = bytes(range(256))
    sections = [("vcpu", 0, 1, True, bytes(range(200))), ("gic", 0, 1, True, b""), ("note", 7, 3, False, b"optional")]
    path = directory / "whole"
    whole = _core.write_snapshot_v9(str(path), format_v9.identity(), sections, bytes(ram), None, False)
    keep("v9.0-whole", path)
    ram[2 * page :] = b"\x05" * (2 * page)
    diff = directory / "diff"
    identity = format_v9.identity(parent=whole, image=None, cpu_features=[])
    _core.write_snapshot_v9(str(diff), identity, sections[:1], bytes(ram), [(0, page), (2 * page, 4 * page)], False)
    keep("v9.0-diff", diff)

    held = bytes(range(256)) * 48
    path, diff = directory / "disk-whole", directory / "disk-diff"
    disk = (16 * page, [(page, 2 * page), (8 * page, 10 * page)], [], held)
    whole = _core.write_snapshot_v9(str(path), format_v9.identity(), sections, bytes(4 * page), None, False, disk)
    keep("v9.1-whole", path)
    identity = format_v9.identity(parent=whole)
    disk = (16 * page, [(0, page)], [(9 * page, 11 * page)], b"\x06" * page)
    _core.write_snapshot_v9(str(diff), identity, sections[:1], bytes(4 * page), [], False, disk)
    keep("v9.1-diff", diff)

    small = format_v8.encode(format_v8.small(), bytes(4096))
    seed("v8", "small", small)
    for name in ("v8", "v9.0-whole", "v9.0-diff", "v9.1-whole"):
        seed("export", name, (GOLDEN / f"{name}.zst").read_bytes())
    for name in ("whole", "diff"):
        file = directory / name
        data = file.read_bytes()
        (length,) = struct.unpack_from("<Q", data, 16)
        body, records, at = data[160 : 160 + length], b"", 0
        while at < len(body):
            kind, index, version, size, flags, _ = format_v9.SECTION.unpack_from(body, at)
            name_of_kind = kind.rstrip(b"\0").decode()
            which = KINDS.index(name_of_kind) if name_of_kind in KINDS else len(KINDS) - 1
            records += struct.pack("<BBBH", which + 6 * index, flags, version, size)
            records += body[at + 40 : at + 40 + size]
            at += 40 + -(-size // 8) * 8
        # The last byte says four pages of RAM.
        seed("v9", f"{name}-sections", b"\x02" + records + b"\xff\x03")
    seed("v9", "header", b"\x01" + (directory / "whole").read_bytes()[:600])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        make(Path(place))
