"""What guests boot is packed with absolute branches: unpacked, it is what it was."""

from __future__ import annotations

import importlib.util
import random
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
#: Pieces at 0x2000 of their file; the worker's test has the same (rust/snapshot/src/boot_files/branches.rs).
VECTORS = {
    "x86_64": (
        "90e810000000e8f0ffffffe80000fe01e8ffffff7fe8e8000000e8f0ffff",
        "90e812200000e8f71f0000e80c20fe01e8ffffff7fe8fe200000e8f0ffff",
    ),
    "aarch64": (
        "1000009400000090010000b01f2003d5f0ffff97e3ffff90100000",
        "10080094000000d0010000f01f2003d5f4070094e3ffffd0100000",
    ),
}


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("guest_branches", ROOT / "guest" / "branches.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


branches = _load()
#: Bytes of which many are a CALL, its offset's end, a BL or an ADRP.
CODE = st.lists(st.sampled_from([0xE8, 0, 0xFF, 1, 2, 0x94, 0x97, 0x90, 0xB0, 0x7F]), max_size=200).map(bytes)


@pytest.mark.parametrize("architecture", branches.ARCHITECTURES)
def test_branches_are_absolute_in_what_is_packed(architecture: str) -> None:
    before, packed = (bytes.fromhex(text) for text in VECTORS[architecture])
    assert branches.to_absolute(architecture, before, 0x2000) == packed
    assert branches.to_absolute(architecture, packed, 0x2000, back=True) == before


@given(piece=CODE, place=st.sampled_from([0, 4, 0x1000, 1 << 24, 1 << 26]))
@pytest.mark.parametrize("architecture", branches.ARCHITECTURES)
def test_any_bytes_are_as_they_were(architecture: str, piece: bytes, place: int) -> None:
    absolute = branches.to_absolute(architecture, piece, place)
    assert branches.to_absolute(architecture, absolute, place, back=True) == piece


@pytest.mark.parametrize("architecture", branches.ARCHITECTURES)
def test_a_file_of_several_pieces(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("zstd") is None:
        pytest.skip("zstd is not installed")
    monkeypatch.setattr(branches, "PIECE", 4096)
    data = bytes(random.Random(5).choices([0xE8, 0, 0xFF, 0x94, 0x90, 0xD0], k=10_001))
    packed = branches.pack(architecture, data)
    assert branches.unpack(packed) == data
    # RFC 8878, 3.1.1.1.1: the flags of the content size, without which no worker takes a frame.
    frame = packed[len(branches.MARK + architecture.encode()) + 8 :]
    assert frame.startswith(b"\x28\xb5\x2f\xfd") and frame[4] & 0xE0
    assert branches.unpack(branches._zstd([], data)) == data
    with pytest.raises(ValueError, match="not known"):
        branches.unpack(packed.replace(architecture.encode(), b"x" * len(architecture)))
