"""Packs what a guest boots: branches with absolute targets, then zstd, which finds a function's callers alike then.

branches.py pack ARCH FILE OUT        ARCH is aarch64 or x86_64
branches.py unpack FILE OUT           also what is packed by zstd alone

A packed file is a skippable frame of zstd's (RFC 8878, 3.1.2) with MARK and the architecture, and frames of zstd. A
frame gives PIECE bytes of the file, the last one less, in which each branch says where it leads to in the file; see
`to_absolute`. The worker's rust/snapshot/src/boot_files/branches.rs does what `unpack` does.
"""

from __future__ import annotations

import array
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

MARK = b"supermachine branches 1 "
#: RFC 8878 has sixteen of them.
SKIPPABLE = 0x184D2A5B
#: A piece is decompressed by one thread: smaller ones pack less, larger ones leave processors idle at a boot.
PIECE = 4 << 20
ARCHITECTURES = ("aarch64", "x86_64")


def to_absolute(architecture: str, piece: bytes, place: int, *, back: bool = False) -> bytes:
    """A piece that is at `place` in its file, with absolute targets; with `back` as it was."""
    return (_arm64 if architecture == "aarch64" else _x86_64)(piece, place, back)


def _arm64(piece: bytes, place: int, back: bool) -> bytes:
    """BL and ADRP, whose offsets are in words and in pages of 4 KiB (Arm ARM, C6.2)."""
    assert place % 4 == 0
    whole = len(piece) // 4 * 4
    words = array.array("I", piece[:whole])
    if sys.byteorder == "big":
        words.byteswap()
    sign = -1 if back else 1
    for number, word in enumerate(words, place // 4):
        if word & 0xFC000000 == 0x94000000:
            words[number - place // 4] = 0x94000000 | (word + sign * number) & 0x03FFFFFF
        elif word & 0x9F000000 == 0x90000000:
            page = (word >> 29 & 3) | (word >> 3 & 0x1FFFFC)
            page += sign * (number >> 10)
            words[number - place // 4] = word & 0x9F00001F | (page & 3) << 29 | (page >> 2 & 0x7FFFF) << 5
    if sys.byteorder == "big":
        words.byteswap()
    return words.tobytes() + piece[whole:]


def _x86_64(piece: bytes, place: int, back: bool) -> bytes:
    """CALL with an offset of 32 bits (Intel SDM, volume 2), where it leads to a place in 0 … 2^25.

    What would not be in that range takes the numbers of those that are, so that each has its own.
    """
    out = bytearray(piece)
    most = 1 << 25
    at = 0
    while (at := piece.find(b"\xe8", at) + 1) and at + 4 <= len(piece):
        (value,) = struct.unpack_from("<i", piece, at)
        here = place + at
        # Whether it is changed or not, so that what is no branch is found to be none on the way back, too.
        at += 4
        if back:
            if 0 <= value < most:
                new = value - here
            elif -here <= value < 0:
                new = value + most
            else:
                continue
        elif -here <= value < most - here:
            new = value + here
        elif most - here <= value < most:
            new = value - most
        else:
            continue
        struct.pack_into("<i", out, at - 4, new)
    return bytes(out)


def pieces(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Each with its place."""
    for place in range(0, len(data), PIECE):
        yield place, data[place : place + PIECE]


def pack(architecture: str, data: bytes) -> bytes:
    """As it is in the package. Needs the program zstd."""
    mark = MARK + architecture.encode()
    packed = [struct.pack("<II", SKIPPABLE, len(mark)) + mark]
    for place, piece in pieces(data):
        # The frame says its size, which a worker needs before it decompresses.
        how = ["--ultra", "-22", "-T1", f"--stream-size={len(piece)}"]
        packed.append(_zstd(how, to_absolute(architecture, piece, place)))
    return b"".join(packed)


def unpack(data: bytes) -> bytes:
    """As a guest has it. Needs the program zstd."""
    head = struct.pack("<I", SKIPPABLE)
    plain = _zstd(["-d"], data)
    if not data.startswith(head):
        return plain
    mark = data[8 : 8 + struct.unpack_from("<I", data, 4)[0]]
    architecture = mark.removeprefix(MARK).decode()
    if not mark.startswith(MARK) or architecture not in ARCHITECTURES:
        raise ValueError(f"packed in a way that is not known here: {mark[:100]!r}")
    return b"".join(to_absolute(architecture, piece, place, back=True) for place, piece in pieces(plain))


def _zstd(arguments: list[str], data: bytes) -> bytes:
    return subprocess.run(["zstd", "-q", "-c", *arguments], input=data, capture_output=True, check=True).stdout


def main(arguments: list[str]) -> int:
    """Does what the command line says."""
    match arguments:
        case ["pack", architecture, source, target] if architecture in ARCHITECTURES:
            Path(target).write_bytes(pack(architecture, Path(source).read_bytes()))
        case ["unpack", source, target]:
            Path(target).write_bytes(unpack(Path(source).read_bytes()))
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
