"""Which files a snapshot has, and which parts of them travel by themselves. One more part is one more row of `of`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from .. import _core
from ..errors import BadSnapshot
from ..oci.model import Descriptor
from .model import PART_TYPE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .._core import _Snapshot

#: The files of a snapshot, in the order of their numbers in the table of frames.
FILES = ("snapshot",)
#: The order in which parts are fetched is that of the table: what a guest needs first comes first.
META, HOT, RAM, DISK = "meta", "ram.hot", "ram", "disk"


@dataclass(frozen=True)
class Part:
    """A stretch of one of the files."""

    name: str
    file: int
    #: Bytes, multiples of 4096.
    origin: int
    length: int
    #: Pages of it, in order: these alone; and without these.
    order: Sequence[tuple[int, int]] | None = None
    without: Sequence[tuple[int, int]] = ()
    #: A part whose pages need not be sent where a base has the same.
    shares: bool = False


def of(found: _Snapshot, hot: Sequence[tuple[int, int]]) -> list[Part]:
    """The parts of a snapshot; `hot` are the pages of RAM that a clone needs first, in that order: start and end."""
    if found["v9"] is None:
        raise BadSnapshot("a snapshot of version 8 cannot be pushed", hint="snapshots of version 9 can")
    offset = found["ram_offset"]
    length = found["v9"]["identity"]["memory_bytes"]
    parts = [
        Part(META, 0, 0, offset),
        Part(HOT, 0, offset, length, order=hot),
        Part(RAM, 0, offset, length, without=sorted(hot), shares=True),
    ]
    if found["disk"] is not None and found["disk"][1]:
        # The blocks of the root's disk, behind RAM.
        parts.append(Part(DISK, 0, offset + length, found["disk"][1]))
    return parts


@dataclass(frozen=True)
class Packed:
    """The blobs of a snapshot, in files of a directory that somebody removes."""

    table: bytes
    layers: list[Descriptor]
    files: list[Path]
    #: Bytes of the guest's that were found in the base.
    shared: int = 0

    @contextmanager
    def open(self, number: int) -> Iterator[BinaryIO]:
        """One of the blobs."""
        with self.files[number].open("rb") as source:
            yield source


def pack(
    path: Path, found: _Snapshot, hot: Sequence[tuple[int, int]], place: Path, base: tuple[Path, int] | None
) -> Packed:
    """Packs a snapshot's parts into files in `place`. `base` is a whole snapshot and where its RAM begins."""
    rows, layers, files, shared = [], [], [], 0
    for part in of(found, hot):
        out = place / part.name
        out.touch(mode=0o600)
        row, size, digest, same = _core.pack_part(
            str(path),
            str(out),
            name=part.name,
            file=part.file,
            origin=part.origin,
            length=part.length,
            order=part.order,
            without=part.without,
            base=(str(base[0]), base[1]) if base is not None and part.shares else None,
        )
        rows.append(row)
        shared += same * 4096
        if not size:
            continue  # the table says all of it
        layers.append(Descriptor(PART_TYPE.format(part.name), f"sha256:{digest}", size))
        files.append(out)
    return Packed(bytes([len(rows)]) + b"".join(rows), layers, files, shared)
