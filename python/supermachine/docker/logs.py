"""What a container has written: a ring on disk, read by who asks for logs and by who is attached.

The ring is of two files. When the newer has half of what may be kept, the older is given up. A position is the number
of bytes written before it, and so outlives the files; who reads from one that is gone reads from the oldest there is.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from .. import descriptors

STDIN, STDOUT, STDERR = 0, 1, 2
#: Bytes that are kept of one container's output, with 13 of each piece's own.
MAX_BYTES = 16 << 20
#: Bytes of one look at the files.
_BLOCK = 256 << 10
#: Bytes of a line that ends nowhere, after which it is taken for one.
_MAX_LINE = 64 << 10
#: Nanoseconds since 1970, stream, length.
_HEAD = struct.Struct(">QBI")


class Record(NamedTuple):
    """Bytes that were written at once."""

    time_ns: int
    stream: int
    data: bytes


class _Segment(NamedTuple):
    path: Path
    descriptor: int
    #: Of its first byte.
    position: int


class Log:
    """The output of one container."""

    def __init__(self, directory: Path, max_bytes: int = MAX_BYTES) -> None:
        self._directory = directory
        self._most = max_bytes // 2
        self._segments: list[_Segment] = []
        #: Where the next record will be.
        self.end = 0
        self._waiting: set[asyncio.Future[None]] = set()
        self._closed = False

    @property
    def start(self) -> int:
        """Of the oldest record there is."""
        return self._segments[0].position if self._segments else self.end

    def append(self, stream: int, data: bytes) -> None:
        """Raises OSError when the disk does not take it."""
        if self._closed or not data:
            return
        record = _HEAD.pack(time.time_ns(), stream, len(data)) + data
        if not self._segments or self.end + len(record) - self._segments[-1].position > self._most:
            self._turn()
        view = memoryview(record)
        segment = self._segments[-1]
        at = self.end - segment.position
        while view:
            written = os.pwrite(segment.descriptor, view, at)
            view, at = view[written:], at + written
        self.end += len(record)
        self.wake()

    def _turn(self) -> None:
        path = self._directory / f"{self.end}.log"
        descriptor = descriptors.open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        self._segments.append(_Segment(path, descriptor, self.end))
        while len(self._segments) > 2:
            _drop(self._segments.pop(0))

    def read(self, position: int) -> tuple[list[Record], int]:
        """Records from there on, as many as one look gives, and where the next is."""
        position = max(position, self.start)
        if position >= self.end:
            return [], position
        segment = next(s for s in reversed(self._segments) if s.position <= position)
        following = [s.position for s in self._segments if s.position > position]
        length = min((following[0] if following else self.end) - position, _BLOCK)
        block = os.pread(segment.descriptor, length, position - segment.position)
        records, at = [], 0
        while at + _HEAD.size <= len(block):
            time_ns, stream, size = _HEAD.unpack_from(block, at)
            if at + _HEAD.size + size > len(block):
                break
            at += _HEAD.size
            records.append(Record(time_ns, stream, block[at : at + size]))
            at += size
        return records, position + at

    async def follow(self, position: int, ended: Callable[[], bool]) -> AsyncIterator[Record]:
        """Records from there on, and those to come until `ended`; `wake` has it ask again."""
        while True:
            finished = ended() or self._closed
            records, position = self.read(position)
            for record in records:
                yield record
            if records:
                continue
            if finished:
                return
            waiting = asyncio.get_running_loop().create_future()
            self._waiting.add(waiting)
            try:
                await waiting
            finally:
                self._waiting.discard(waiting)

    def wake(self) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    def close(self) -> None:
        """Removes the files."""
        self._closed = True
        self.wake()
        while self._segments:
            _drop(self._segments.pop())
        with contextlib.suppress(OSError):
            self._directory.rmdir()

    # Lines.

    def position_of_tail(self, count: int, streams: frozenset[int]) -> tuple[int, int]:
        """Where to read from for the last `count` lines, and how many lines to leave out from there on."""
        left = sum(starts for _, _, starts in self._starts(streams)) - count
        if left <= 0:
            return self.start, 0
        for position, leading, starts in self._starts(streams):
            if left < starts:
                return position, leading + left
            left -= starts
        return self.end, 0

    def _starts(self, streams: frozenset[int]) -> Iterator[tuple[int, int, int]]:
        """Of each record: its position, 1 when it begins within a line, and how many lines begin in it."""
        position = self.start
        within = dict.fromkeys(streams, 0)
        while True:
            records, following = self.read(position)
            if not records:
                return
            for record in records:
                if record.stream in streams:
                    open_ended = not record.data.endswith(b"\n")
                    leading = within[record.stream]
                    yield position, leading, record.data.count(b"\n") + open_ended - leading
                    within[record.stream] = int(open_ended)
                position += _HEAD.size + len(record.data)
            position = following


def _drop(segment: _Segment) -> None:
    os.close(segment.descriptor)
    with contextlib.suppress(OSError):
        segment.path.unlink()


class Lines:
    """Makes lines of the records of both streams; a line has the time of its first byte."""

    def __init__(self) -> None:
        self._begun: dict[int, tuple[int, list[bytes], int]] = {}

    def feed(self, record: Record) -> Iterator[Record]:
        """The lines that this record ends, with their ends."""
        for piece in _split(record.data):
            time_ns, parts, size = self._begun.pop(record.stream, (record.time_ns, [], 0))
            parts.append(piece)
            size += len(piece)
            if piece.endswith(b"\n") or size >= _MAX_LINE:
                yield Record(time_ns, record.stream, b"".join(parts))
            else:
                self._begun[record.stream] = (time_ns, parts, size)

    def rest(self) -> Iterator[Record]:
        """What is left at the end."""
        for stream, (time_ns, parts, _) in sorted(self._begun.items()):
            yield Record(time_ns, stream, b"".join(parts))
        self._begun = {}


def _split(data: bytes) -> list[bytes]:
    pieces = data.split(b"\n")
    return [piece + b"\n" for piece in pieces[:-1]] + ([pieces[-1]] if pieces[-1] else [])


def frame(stream: int, data: bytes) -> bytes:
    """As Docker tells the streams of a container without a terminal apart on one connection."""
    return struct.pack(">BxxxI", stream, len(data)) + data


def timestamp(time_ns: int) -> str:
    """RFC 3339 with nanoseconds, as docker writes times."""
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"
