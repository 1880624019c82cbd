"""What is in a volume as a tar, and a tar as what is in a volume: by a guest that has nothing but the volume.

A guest knows the file system, whatever state a killed machine has left it in, and what a damaged one does stays
in the guest. Its image is empty and always the same, so that all but the first go on from a baked snapshot.
"""

from __future__ import annotations

import contextlib
import io
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from ..errors import InvalidArchive, VolumeExists
from ..guest import tars
from ..oci.archive import compression
from ..oci.layout_writing import LAYER, LayoutWriter
from ..storage import volumes
from .vm import VM

#: Where the guest has the volume.
_PLACE = "/volume"
_MEMORY = "128m"
#: What tarfile goes back by, to see that the end of a member is there.
_LOOK_BACK = 512
_BLOCK = 256 << 10


def export_volume(name: str, file: IO[bytes]) -> None:
    """Writes a tar of what is in a volume, with owners, modes, times in seconds and links, without extended attributes.

    Sockets are left out. Others may have the volume read-only meanwhile. Raises `VolumeNotFound` and `VolumeInUse`.
    """
    volumes.inspect(name)
    with _guest(volumes.Volume(name, read_only=True)) as vm:
        tars.pack(vm.path(_PLACE), ".", file.write)


def import_volume(name: str, file: IO[bytes], size: int | str = volumes.DEFAULT_SIZE) -> None:
    """Unpacks a tar, plain or compressed by gzip, bzip2 or xz, into a volume.

    One that is not there is made, of this size.

    One that was made for it is removed when that fails. Raises `InvalidArchive`, `VolumeInUse`, and OSError with the
    guest's errno, as ENOSPC for what the volume has no room for.
    """
    made = False
    with contextlib.suppress(VolumeExists):
        volumes.make(name, size)
        made = True
    try:
        with _guest(volumes.Volume(name)) as vm:
            _unpack(file, vm)
    except BaseException:
        if made:
            volumes.remove(name)
        raise


def _unpack(file: IO[bytes], vm: VM) -> None:
    try:
        stream = _Forward(_plain(file))
        with tarfile.open(fileobj=tars.bounded(cast("IO[bytes]", stream)), mode="r:") as tar:
            tars.unpack(tar, vm.path(_PLACE), top_too=True)
    except _damages() as error:
        raise InvalidArchive(f"the archive is no tar, or a damaged one: {error}") from None


def _damages() -> tuple[type[Exception], ...]:
    """What the readers of archives raise for those that are damaged."""
    import gzip
    import lzma
    import zlib

    return (tarfile.TarError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError)


def _plain(file: IO[bytes]) -> IO[bytes]:
    """What a compressed file holds."""
    peeking: Any = file if hasattr(file, "peek") else io.BufferedReader(cast("io.RawIOBase", file))
    kind = compression(peeking.peek(6))
    if kind == "gzip":
        import gzip

        return cast("IO[bytes]", gzip.GzipFile(fileobj=peeking))
    if kind == "bzip2":
        import bz2

        return cast("IO[bytes]", bz2.BZ2File(peeking))
    if kind == "xz":
        import lzma

        return cast("IO[bytes]", lzma.LZMAFile(peeking))
    return cast("IO[bytes]", peeking)


class _Forward:
    """A stream that tarfile reads from its beginning to its end."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._at = 0
        self._last = b""
        self._again = b""

    def tell(self) -> int:
        return self._at

    def read(self, size: int) -> bytes:
        data, self._again = self._again[:size], self._again[size:]
        while len(data) < size and (more := self._stream.read(size - len(data))):
            data += more
        self._at += len(data)
        self._last = (self._last + data)[-_LOOK_BACK:]
        return data

    def seek(self, offset: int) -> int:
        back = self._at - offset
        if back > len(self._last):
            raise tarfile.ReadError("a member that lies before another")
        if back > 0:
            self._again, self._last = self._last[-back:] + self._again, self._last[:-back]
            self._at = offset
        while self._at < offset and self.read(min(offset - self._at, _BLOCK)):
            pass
        return self._at


@contextlib.contextmanager
def _guest(volume: volumes.Volume) -> Iterator[VM]:
    with tempfile.TemporaryDirectory(prefix="supermachine-") as directory:
        _write_image(Path(directory))
        with VM(f"oci:{directory}", memory=_MEMORY, disk=0, network="none", mounts={_PLACE: volume}) as vm:
            yield vm


def _write_image(directory: Path) -> None:
    """An OCI layout of an image that holds an empty directory, for either architecture."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        member = tarfile.TarInfo(_PLACE.lstrip("/"))
        member.type, member.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(member)
    writer = LayoutWriter(directory)
    packed = writer.put(LAYER, layer.getvalue())
    images: list[dict[str, object]] = [
        {"architecture": architecture, "os": "linux", "config": {}} for architecture in ("amd64", "arm64")
    ]
    writer.finish([writer.image(config, [packed]) for config in images])
