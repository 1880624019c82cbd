"""What ELF files are loaded with, in the eyes of readelf, and of what is no such file."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from supermachine.guest.read_ahead import needed

from tests.real import require

PYTHON = Path(sys.executable).resolve()


def files() -> list[Path]:
    """Programs and libraries of this machine."""
    libraries = [path for path in Path("/usr/lib").rglob("*.so.*") if path.is_file() and not path.is_symlink()]
    programs = [path for path in Path("/usr/bin").iterdir() if path.is_file() and not path.is_symlink()]
    found = sorted(programs)[:150] + sorted(libraries)[:150] + [PYTHON]
    return [path for path in found if path.read_bytes()[:5] == b"\x7fELF\x02"]


def test_files_need_what_readelf_says() -> None:
    require("readelf")
    seen = 0
    for path in files():
        said = subprocess.run(["readelf", "-lWd", path], capture_output=True, text=True, check=True).stdout
        interpreter = re.search(r"\[Requesting program interpreter: (.*)\]", said)
        libraries = re.findall(r"\(NEEDED\).*\[(.*)\]", said)
        places = [
            place for run_path in re.findall(r"\((?:RPATH|RUNPATH)\).*\[(.*)\]", said) for place in run_path.split(":")
        ]
        assert needed(path.read_bytes()) == (interpreter and interpreter[1], libraries, [p for p in places if p]), path
        seen += len(libraries)
    assert seen > 50


@pytest.mark.parametrize("data", [b"", b"#!/bin/sh\n", b"\x7fELF", b"\x7fELF\x02\x01" + b"\xff" * 4000])
def test_what_is_no_elf_file_needs_nothing(data: bytes) -> None:
    assert needed(data) == (None, [], [])


@settings(max_examples=300, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 8191), st.binary(min_size=1, max_size=8)), max_size=12),
    length=st.integers(0, 1 << 20),
)
def test_damaged_files_end_in_no_error_and_in_no_time(changes: list[tuple[int, bytes]], length: int) -> None:
    data = bytearray(PYTHON.read_bytes()[:length])
    for at, new in changes:
        data[at : at + len(new)] = new
    began = time.process_time()
    _, libraries, places = needed(bytes(data))
    assert time.process_time() - began < 5
    assert len(libraries) <= 64
    assert all(isinstance(place, str) for place in places)


def test_a_file_of_nothing_but_dynamic_entries_is_read_up_to_a_limit() -> None:
    header = bytearray(64 + 56 * 2)
    header[:6] = b"\x7fELF\x02\x01"
    header[32:40] = (64).to_bytes(8, "little")
    header[54:58] = (56).to_bytes(2, "little") + (2).to_bytes(2, "little")
    # One segment that is the whole file, and one dynamic section that is most of it.
    size = 16 << 20
    for at, kind, offset in ((64, 1, 0), (120, 2, 4096)):
        header[at : at + 4] = kind.to_bytes(4, "little")
        header[at + 8 : at + 16] = offset.to_bytes(8, "little")
        header[at + 16 : at + 24] = offset.to_bytes(8, "little")
        header[at + 32 : at + 40] = (size - offset).to_bytes(8, "little")
    name = b"lib.so\0"
    data = bytes(header).ljust(1024, b"\0") + name.ljust(3072, b"\0")
    strings = (5).to_bytes(8, "little") + (1024).to_bytes(8, "little")
    library = (1).to_bytes(8, "little") + bytes(8)
    data += strings + library * ((size - 4096) // 16 - 1)
    assert needed(data) == (None, ["lib.so"] * 64, [])
