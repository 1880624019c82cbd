"""Working sets: which pages a fresh clone touches up to its first answer, so that later ones have them beforehand.

A file is eight bytes of magic, the SHA-256 of the rest in hexadecimal digits, and for each run of pages a u32 of its
first page and a u32 of twice their number, plus one when the guest wrote to them; all little-endian, as every host is.
The runs are in the order of first touch where the engine sees that, otherwise ascending. A damaged file counts as none.
"""

from __future__ import annotations

import os

from .. import env
from .._core import MAX_WORKING_SET, sha256
from ..errors import SupermachineError

# As `typing` has it: this module is on the way of every `supermachine run`, and loads nothing that takes long.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import TypeAlias

    from .._core import Worker
    from ..cache.store import Cache

    Ranges: TypeAlias = list[tuple[int, int, bool]]

_MAGIC = b"SMWSET\x02\0"
_HEAD = len(_MAGIC) + 64
#: Pages of 4 KiB that are recorded at most. More is no help.
_MAX_PAGES = 16_384
#: Pages, of which all may be needed where one is now and then. A divisor of what RAM comes in multiples of.
_AROUND = 64
#: Seconds that the worker may take to tell.
_TIMEOUT = 5.0


def enabled(asked: bool | None) -> bool:
    """Whether to record and to use them: the argument, else unless SUPERMACHINE_NO_PREFAULT is set."""
    return not env.switch(env.NO_PREFAULT) if asked is None else asked


def encode(ranges: Ranges) -> bytes:
    words = (word for start, count, written in ranges for word in (start, count << 1 | written))
    body = b"".join(word.to_bytes(4, "little") for word in words)
    return _MAGIC + sha256(body).encode() + body


def decode(data: bytes) -> Ranges:
    """Raises ValueError for what `encode` would not have written."""
    body = data[_HEAD:]
    if len(data) < _HEAD or not data.startswith(_MAGIC) or len(body) % 8 or len(body) > 8 * MAX_WORKING_SET:
        raise ValueError("not a working set")
    if data[len(_MAGIC) : _HEAD] != sha256(body).encode():
        raise ValueError("a damaged working set")
    words = memoryview(body).cast("I").tolist()
    ranges = [(start, pages >> 1, bool(pages & 1)) for start, pages in zip(words[::2], words[1::2], strict=True)]
    end = 0
    for start, count, _ in sorted(ranges):
        if start < end or not count:
            raise ValueError("runs that overlap")
        end = start + count
    if sum(count for _, count, _ in ranges) > _MAX_PAGES:
        raise ValueError("too many pages")
    return ranges


def load(path: str | os.PathLike[str]) -> Ranges:
    """What was recorded; nothing when there is nothing that can be used."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            return decode(file.read(_HEAD + 8 * MAX_WORKING_SET + 1))
    except (OSError, ValueError):
        return []


def record(worker: Worker, path: Path, cache: Cache) -> None:
    """Records what the guest has touched by now. Failing is no matter: the next clone is as slow as this one."""
    import contextlib

    with contextlib.suppress(OSError, SupermachineError, ValueError, OverflowError):
        keep(worker.working_set(_TIMEOUT), path, cache)


def keep(ranges: Ranges | None, path: Path, cache: Cache) -> None:
    """Puts a working set at `path`, if it is one that can be used."""
    if not ranges or len(ranges) > MAX_WORKING_SET:
        return
    data = encode(ranges)
    decode(data)
    with cache.scratch() as place:
        (place / "working-set").write_bytes(data)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        cache.publish(place / "working-set", path)


def union(recorded: list[Ranges]) -> Ranges:
    """The pages of several, each in the order in which the first that has it does.

    Then what lies around pages that some have and others have not: memory that is free, of which a guest takes now this
    page and now that one.
    """
    found: Ranges = []
    seen: set[int] = set()

    def add(page: int, written: bool) -> None:
        if page in seen:
            return
        seen.add(page)
        if found and found[-1][0] + found[-1][1] == page and found[-1][2] == written:
            found[-1] = (found[-1][0], found[-1][1] + 1, written)
        else:
            found.append((page, 1, written))

    for start, count, written in (each for ranges in recorded for each in ranges):
        for page in range(start, start + count):
            add(page, written)
    now_and_then: set[int] = set()
    for ranges in recorded:
        now_and_then |= seen.difference(page for start, count, _ in ranges for page in range(start, start + count))
    for block in sorted({page // _AROUND for page in now_and_then}):
        for page in range(block * _AROUND, (block + 1) * _AROUND):
            if len(seen) < _MAX_PAGES:
                add(page, False)
    return found


def beside(cache: Cache, snapshot_id: str) -> Path:
    """Where the working set of a snapshot outside the cache is kept."""
    return cache.directory / "working-sets" / snapshot_id


def prune(cache: Cache) -> int:
    """Removes those of snapshots outside the cache; gives the bytes freed."""
    import contextlib

    freed = 0
    with contextlib.suppress(OSError):
        for path in (cache.directory / "working-sets").iterdir():
            freed += path.stat().st_blocks * 512
            path.unlink(missing_ok=True)
    return freed
