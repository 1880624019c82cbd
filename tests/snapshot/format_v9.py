"""Version 9 of the snapshot file, read by nothing but docs/reference/snapshot-format.md, `struct` and a slow BLAKE3."""

from __future__ import annotations

import struct

from blake3_reference import blake3

HEADER = struct.Struct("<8sIIQQQQ32s32s16s32s")
SECTION = struct.Struct("<16sIIQII")
PAGE = 4096


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), bit by bit."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def ram_digest(ram: bytes) -> bytes:
    """BLAKE3 of the BLAKE3s of the pages that are not zero, and of the runs that they form."""
    contents, layout = b"", b""
    first = None
    pages = [ram[n : n + PAGE] for n in range(0, len(ram), PAGE)]
    for number, page in enumerate([*pages, bytes(PAGE)]):
        if any(page):
            contents += page
            first = number if first is None else first
        elif first is not None:
            layout += struct.pack("<QQ", first, number - first)
            first = None
    return blake3(blake3(contents) + blake3(layout))


class _Cursor:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, form: str) -> int:
        (value,) = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return value

    def bytes(self, count: int) -> bytes:
        assert self.at + count <= len(self.data)
        self.at += count
        return self.data[self.at - count : self.at]

    def text(self) -> str:
        return self.bytes(self.take("H")).decode()

    def texts(self) -> list[str]:
        return [self.text() for _ in range(self.take("I"))]

    def option(self, take):
        flag = self.take("B")
        assert flag in (0, 1)
        return take() if flag else None

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.take("B")
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value


def _identity(data: bytes) -> dict:
    cursor = _Cursor(data)
    identity = {
        "architecture": cursor.text(),
        "engine": cursor.text(),
        "engine_version": cursor.take("I"),
        "cpu_features": cursor.texts(),
        "kernel": cursor.bytes(32).hex(),
        "initramfs": cursor.bytes(32).hex(),
        "image": cursor.option(cursor.text),
        "devices": cursor.texts(),
        "vcpus": cursor.take("I"),
        "memory_bytes": cursor.take("Q"),
        "ram_gpa": cursor.take("Q"),
        "parent": cursor.option(lambda: cursor.bytes(32).hex()),
        "created_unix_ns": cursor.take("Q"),
    }
    assert cursor.at == len(data)
    return identity


def _extents(data: bytes) -> list[tuple[int, int]]:
    cursor = _Cursor(data)
    extents, end = [], 0
    while cursor.at < len(data):
        start = end + cursor.varint()
        end = start + cursor.varint()
        extents.append((start * PAGE, end * PAGE))
    return extents


def decode(data: bytes) -> tuple[dict, bytes]:
    """The snapshot as `_core.read_snapshot` gives it, and RAM; checks every checksum."""
    magic, minor, count, length, ram_offset, memory_bytes, flags, of_sections, of_ram, zeros, header = (
        HEADER.unpack_from(data)
    )
    assert magic == b"SMSNAP\x09\0"
    assert (flags, zeros) == (minor, bytes(16))
    assert header == blake3(data[:128])
    body = data[HEADER.size : HEADER.size + length]
    assert of_sections == blake3(body)
    assert ram_offset == -(-(HEADER.size + length) // 65536) * 65536
    assert not any(data[HEADER.size + length : ram_offset])
    ram, held = data[ram_offset : ram_offset + memory_bytes], data[ram_offset + memory_bytes :]
    assert len(ram) == memory_bytes
    assert of_ram == ram_digest(ram)

    sections, at = [], 0
    for _ in range(count):
        kind, index, version, size, flags, checksum = SECTION.unpack_from(body, at)
        content = body[at + SECTION.size : at + SECTION.size + size]
        assert checksum == crc32c(body[at : at + 36] + content)
        assert flags in (0, 1)
        sections.append((kind.rstrip(b"\0").decode(), index, version, flags == 1, content))
        at += SECTION.size + size
        assert not any(body[at : -(-at // 8) * 8])
        at = -(-at // 8) * 8
    assert at == len(body)
    identity = _identity(sections.pop(0)[4])
    present = _extents(sections.pop(0)[4]) if sections and sections[0][0] == "ram-extents" else None
    assert (flags_of(data) == 1) == (bool(sections) and sections[0][0] == "disk")
    if flags_of(data):
        _check_disk(sections.pop(0)[4], held, whole=present is None)
    else:
        assert not held
    found = {
        "id": header.hex(),
        "minor": minor,
        "ram_digest": of_ram.hex(),
        "identity": identity,
        "sections": sections,
        "present": present,
    }
    return found, ram


def flags_of(data: bytes) -> int:
    return HEADER.unpack_from(data)[6]


def _check_disk(data: bytes, held: bytes, *, whole: bool) -> None:
    size, digest, length = struct.unpack_from("<Q32sI", data)
    present, zeros = _extents(data[44 : 44 + length]), _extents(data[44 + length :])
    assert all(0 <= start < end <= size for start, end in (*present, *zeros))
    assert not (whole and zeros)
    assert len(held) == sum(end - start for start, end in present)
    assert digest == blake3(held)


def disk(files: list[bytes]) -> bytes:
    """The disk of a chain."""
    whole = bytearray()
    for data in files:
        _, _, count, length, ram_offset, memory_bytes, *_ = HEADER.unpack_from(data)
        body, at = data[HEADER.size : HEADER.size + length], 0
        for _ in range(count):
            kind, _, _, size, _, _ = SECTION.unpack_from(body, at)
            content = body[at + SECTION.size : at + SECTION.size + size]
            at += SECTION.size + -(-size // 8) * 8
            if kind.rstrip(b"\0") != b"disk":
                continue
            bytes_, _, listed = struct.unpack_from("<Q32sI", content)
            whole = whole or bytearray(bytes_)
            where = ram_offset + memory_bytes
            for start, end in _extents(content[44 : 44 + listed]):
                whole[start:end] = data[where : where + end - start]
                where += end - start
            for start, end in _extents(content[44 + listed :]):
                whole[start:end] = bytes(end - start)
    return bytes(whole)


def identity(**changes) -> dict:
    """Of a guest with four pages of RAM."""
    return {
        "architecture": "aarch64",
        "engine": "soft",
        "engine_version": 1,
        "cpu_features": ["lse", "sha2"],
        "kernel": "11" * 32,
        "initramfs": "22" * 32,
        "image": "sha256:" + "33" * 32,
        "devices": ["block", "vsock"],
        "vcpus": 1,
        "memory_bytes": 4 * PAGE,
        "ram_gpa": 0x4000_0000,
        "parent": None,
        "created_unix_ns": 1_700_000_000_123_456_789,
        **changes,
    }
