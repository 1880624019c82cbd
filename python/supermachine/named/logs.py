"""What a machine's main process has written: files of JSON lines, bounded, of which the older is the one before.

A line is an object of `time` (RFC 3339, UTC), `stream` ("stdout" or "stderr") and `log`, the text with its line end.
Bytes that are no UTF-8 are lone surrogates, as `os.fsdecode` has them, so that nothing of what was written is lost.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from .. import descriptors, shortage

#: Bytes of one file, of which there are two.
MAX_BYTES = 8 << 20
#: Bytes of a line that are kept together; the rest is the next entry, as docker has it.
_MAX_LINE = 16 << 10
CURRENT, BEFORE = "log.jsonl", "log.1.jsonl"
#: Seconds between two looks at a file that is followed.
_LOOK = 0.05


class Entry(NamedTuple):
    """A line of output, or a part of a long one, which has no line end."""

    #: RFC 3339, UTC.
    time: str
    stream: str
    data: bytes


class LogWriter:
    """Writes entries, from any thread. What cannot be written is dropped and counted: output waits for no disk."""

    def __init__(self, directory: Path, max_bytes: int = MAX_BYTES) -> None:
        directory.mkdir(mode=0o700, exist_ok=True)
        self._directory = directory
        self._max = max_bytes
        self._lock = threading.Lock()
        self._partial: dict[str, bytes] = {}
        self._fd = -1
        self._size = 0
        self.dropped = 0

    def write(self, stream: str, data: bytes) -> None:
        """Notes what has come; what is after the last line end waits for the next."""
        with self._lock:
            whole = self._partial.pop(stream, b"") + data
            lines = whole.split(b"\n")
            rest = lines.pop()
            entries = [part for line in lines for part in _cut(line + b"\n")]
            while len(rest) >= _MAX_LINE:
                entries.append(rest[:_MAX_LINE])
                rest = rest[_MAX_LINE:]
            if rest:
                self._partial[stream] = rest
            self._append(stream, entries)

    def flush(self) -> None:
        """Writes what had no line end yet: there will be none."""
        with self._lock:
            for stream, rest in self._partial.items():
                self._append(stream, [rest])
            self._partial.clear()

    def close(self) -> None:
        self.flush()
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _append(self, stream: str, entries: list[bytes]) -> None:
        if not entries:
            return
        now = _now()
        text = b"".join(line(stream, entry, now) for entry in entries)
        try:
            if self._fd < 0 or self._size > self._max:
                self._rotate()
            self._size += os.write(self._fd, text)
        except OSError:
            self.dropped += len(entries)

    def moved(self, directory: Path) -> None:
        """The directory has another name now."""
        with self._lock:
            self._directory = directory

    def _rotate(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            (self._directory / CURRENT).replace(self._directory / BEFORE)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._fd = descriptors.open_file(self._directory / CURRENT, flags)
        self._size = os.fstat(self._fd).st_size


def line(stream: str, data: bytes, now: str | None = None) -> bytes:
    """An entry as the files have it."""
    said = {"time": now or _now(), "stream": stream, "log": data.decode("utf-8", "surrogateescape")}
    return json.dumps(said).encode("ascii") + b"\n"


def _cut(line: bytes) -> Iterator[bytes]:
    for at in range(0, len(line), _MAX_LINE):
        yield line[at : at + _MAX_LINE]


def _now() -> str:
    return _text(time.time())


def _text(moment: float) -> str:
    """Seconds since 1970 as RFC 3339 has them. Raises ValueError for what no calendar has."""
    try:
        at = datetime.datetime.fromtimestamp(moment, datetime.timezone.utc)
    except (OverflowError, OSError, ValueError):
        raise ValueError(f"{moment:g} is no time in seconds since 1970") from None
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")


def read(
    directory: Path,
    *,
    tail: int | None = None,
    follow: Callable[[], bool] | None = None,
    since: float | None = None,
    until: float | None = None,
) -> Iterator[Entry]:
    """The entries so far, or the last `tail` of them; with `follow`, further ones for as long as it says true.

    None is before `since` or after `until`, in seconds since 1970.
    """
    first = "" if since is None else _text(since)
    last = None if until is None else _text(until)

    def wanted(entries: Iterator[Entry]) -> Iterator[Entry]:
        # Times of one length and zone are in the order of their texts.
        return (entry for entry in entries if entry.time >= first and (last is None or entry.time <= last))

    files = _Files(directory)
    try:
        found: Iterator[Entry] | deque[Entry] = wanted(files.entries())
        if tail is not None:
            found = deque(found, maxlen=tail)
        yield from found
        while follow is not None and (until is None or time.time() <= until):
            # Asked before the look, so that the last words of a machine that ends meanwhile are seen.
            goes_on = follow()
            yield from wanted(files.entries())
            if not goes_on:
                return
            time.sleep(_LOOK)
    finally:
        files.close()


class _Files:
    """Both files in their order, and what is appended to them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._fd = -1
        self._rest = b""
        self._open(BEFORE)

    def _open(self, name: str) -> bool:
        try:
            with shortage.Told("what was written down cannot be read"):
                fd = descriptors.open_file(self._directory / name, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            return False
        self.close()
        self._fd, self._rest = fd, b""
        return True

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def entries(self) -> Iterator[Entry]:
        """What has come since the last time."""
        while True:
            if self._fd >= 0:
                yield from self._drain()
            following = self._following()
            if following is None:
                return
            if self._fd >= 0:
                # What was written between the last read and the change of files.
                yield from self._drain()
            if not self._open(following):
                return

    def _following(self) -> str | None:
        """The file after the one that has been read to its end."""
        if self._fd < 0:
            return CURRENT
        current, before = (self._inode(name) for name in (CURRENT, BEFORE))
        mine = os.fstat(self._fd).st_ino
        if current in (None, mine):
            return None
        # Where it is written faster than read, two files later: on with the oldest there is.
        return CURRENT if before in (None, mine) else BEFORE

    def _inode(self, name: str) -> int | None:
        with contextlib.suppress(OSError):
            return (self._directory / name).stat().st_ino
        return None

    def _drain(self) -> Iterator[Entry]:
        while data := os.read(self._fd, 1 << 18):
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                if (entry := _entry(line)) is not None:
                    yield entry


def _entry(line: bytes) -> Entry | None:
    """``None`` for a line that a full disk or a crash has cut off."""
    try:
        said = json.loads(line)
        return Entry(said["time"], said["stream"], said["log"].encode("utf-8", "surrogateescape"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
