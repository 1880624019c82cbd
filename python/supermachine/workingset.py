"""Working sets: which pages a fresh clone touches up to its first answer, so that later ones have them beforehand.

A file is eight bytes of magic, the CRC-32 of the rest, and for each run of pages a u32 of its first page and a u32 of
twice their number, plus one when the guest wrote to them; all little-endian. A damaged file counts as none.
"""

from __future__ import annotations

import contextlib
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from . import options
from ._core import MAX_WORKING_SET
from .errors import SupermachineError

if TYPE_CHECKING:
    from ._core import Worker
    from .images.cache import Cache

_MAGIC = b"SMWSET\x01\0"
#: Pages of 4 KiB that are recorded at most. More is no help.
_MAX_PAGES = 16_384
#: Seconds that the worker may take to tell.
_TIMEOUT = 5.0

Ranges = list[tuple[int, int, bool]]


def enabled(asked: bool | None) -> bool:
    """Whether to record and to use them: the argument, else unless SUPERMACHINE_NO_PREFAULT is set."""
    return not options.switch("SUPERMACHINE_NO_PREFAULT") if asked is None else asked


def encode(ranges: Ranges) -> bytes:
    body = b"".join(struct.pack("<II", start, count << 1 | written) for start, count, written in ranges)
    return _MAGIC + struct.pack("<I", zlib.crc32(body)) + body


def decode(data: bytes) -> Ranges:
    """Raises ValueError for what `encode` would not have written."""
    body = data[12:]
    if len(data) < 12 or data[:8] != _MAGIC or len(body) % 8 or len(body) > 8 * MAX_WORKING_SET:
        raise ValueError("not a working set")
    if struct.unpack_from("<I", data, 8)[0] != zlib.crc32(body):
        raise ValueError("a damaged working set")
    ranges = [(start, pages >> 1, bool(pages & 1)) for start, pages in struct.iter_unpack("<II", body)]
    end = 0
    for start, count, _ in ranges:
        if start < end or not count:
            raise ValueError("runs out of order")
        end = start + count
    if sum(count for _, count, _ in ranges) > _MAX_PAGES:
        raise ValueError("too many pages")
    return ranges


def load(path: Path) -> Ranges:
    """What was recorded; nothing when there is nothing that can be used."""
    try:
        with path.open("rb") as file:
            return decode(file.read(12 + 8 * MAX_WORKING_SET + 1))
    except (OSError, ValueError):
        return []


def record(worker: Worker, path: Path, cache: Cache) -> None:
    """Records what the guest has touched by now. Failing is no matter: the next clone is as slow as this one."""
    with contextlib.suppress(OSError, SupermachineError, ValueError, struct.error):
        ranges = worker.working_set(_TIMEOUT)
        if not ranges or len(ranges) > MAX_WORKING_SET:
            return
        data = encode(ranges)
        decode(data)
        with cache.scratch() as place:
            (place / "working-set").write_bytes(data)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            cache.publish(place / "working-set", path)


def beside(cache: Cache, snapshot_id: str) -> Path:
    """Where the working set of a snapshot outside the cache is kept."""
    return cache.directory / "working-sets" / snapshot_id


def prune(cache: Cache) -> int:
    """Removes those of snapshots outside the cache; gives the bytes freed."""
    freed = 0
    with contextlib.suppress(OSError):
        for path in (cache.directory / "working-sets").iterdir():
            freed += path.stat().st_blocks * 512
            path.unlink(missing_ok=True)
    return freed
