"""Where the members of an uncompressed tar are, so that they can be read in place."""

from __future__ import annotations

import os
import posixpath
import stat
from pathlib import Path
from typing import IO, Any, BinaryIO

from .. import descriptors
from ..errors import ImageTooLarge, InvalidImage

_MAX_MEMBERS = 100_000
# Extended headers are read as a whole; real ones have a few hundred bytes.
_MAX_READ = 4 << 20
_MAX_LINKS = 16


class Archive:
    """An index of a tar: `find` gives (offset, length) of a regular file, links inside the archive followed."""

    def __init__(self, path: Path) -> None:
        import tarfile  # not needed for what is no archive, which is what most starts are about

        self.path = path
        self._files: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        with open_regular(path) as stream:
            size = os.fstat(stream.fileno()).st_size
            try:
                self._index(stream, size)
            except (tarfile.TarError, ValueError, OverflowError, MemoryError, RecursionError) as error:
                if isinstance(error, InvalidImage | ImageTooLarge):
                    raise
                raise InvalidImage(f"{path} is not a tar archive, or a damaged one", cause=str(error)) from None

    def _index(self, stream: BinaryIO, size: int) -> None:
        import tarfile

        bounded: Any = Bounded(stream, InvalidImage("the archive has an extended header of an absurd size"))
        with tarfile.open(fileobj=bounded, mode="r:") as tar:
            count = 0
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]
                count += 1
                if count > _MAX_MEMBERS:
                    raise ImageTooLarge(f"{self.path} has more than {_MAX_MEMBERS} members")
                name = posixpath.normpath(member.name.lstrip("/"))
                self._files.pop(name, None)
                self._links.pop(name, None)
                if member.issym():
                    self._links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
                elif member.islnk():
                    self._links[name] = posixpath.normpath(member.linkname.lstrip("/"))
                elif member.isreg() and not member.issparse():
                    if member.size < 0 or member.offset_data + member.size > size:
                        raise InvalidImage(f"{self.path} ends in the middle of {name[:200]!r}; it was cut")
                    self._files[name] = (member.offset_data, member.size)

    def find(self, name: str) -> tuple[int, int] | None:
        name = posixpath.normpath(name)
        for _ in range(_MAX_LINKS):
            target = self._links.get(name)
            if target is None:
                break
            name = target
        return self._files.get(name)

    def read(self, name: str, limit: int) -> bytes | None:
        """A small member as a whole; `None` if there is none of that name."""
        place = self.find(name)
        if place is None:
            return None
        if place[1] > limit:
            raise ImageTooLarge(f"{name[:200]} in {self.path} has {place[1]} bytes; {limit} is the limit")
        with open_regular(self.path) as stream:
            stream.seek(place[0])
            return stream.read(place[1])


class Bounded:
    """A file that refuses large reads, by an error: tarfile believes the sizes of extended headers."""

    def __init__(self, stream: IO[bytes], refusal: Exception) -> None:
        self._stream = stream
        self._refusal = refusal
        self.seek = stream.seek
        self.tell = stream.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_READ:
            raise self._refusal
        return self._stream.read(size)


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file only: a FIFO would block, a device might never end."""
    fd = descriptors.open_file(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise InvalidImage(f"{path} is not a regular file")
    return os.fdopen(fd, "rb")


_MAGIC = {b"\x1f\x8b": "gzip", b"\xfd7zXZ\x00": "xz", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd"}


def compression_of(path: Path) -> str | None:
    """What an archive is compressed with as a whole, by its first bytes."""
    with open_regular(path) as stream:
        return compression(stream.read(8))


def compression(start: bytes) -> str | None:
    """What a file that begins so, with 6 bytes or more, is compressed with."""
    return next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)


def decompress(path: Path, compression: str, target: Path, limit: int) -> None:
    """Writes the uncompressed archive to a new file; more than `limit` bytes are refused."""
    if compression == "zstd":
        from .._core import decompress_archive

        decompress_archive(str(path), str(target), limit)
        return
    import bz2
    import gzip
    import lzma
    import zlib

    openers: dict[str, Any] = {"gzip": gzip.open, "xz": lzma.open, "bzip2": bz2.open}
    written = 0
    try:
        with target.open("wb") as output, open_regular(path) as raw, openers[compression](raw, "rb") as stream:
            while piece := stream.read(1 << 20):
                written += len(piece)
                if written > limit:
                    raise ImageTooLarge(f"{path} has more than {limit} bytes when uncompressed")
                output.write(piece)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise InvalidImage(f"{path} is damaged or was cut", cause=str(error)) from None
