"""Files and trees between host and guest, streamed."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import NotSupported

if TYPE_CHECKING:
    from .paths import GuestPath, Status

_BLOCK = 256 * 1024


def copy_in(source: str | os.PathLike[str], target: GuestPath) -> GuestPath:
    origin = Path(source)
    status = origin.stat()
    if target.is_dir():
        target = target / (origin.name or origin.resolve().name)
    _in(origin, status, target)
    return target


def _in(origin: Path, status: os.stat_result, target: GuestPath) -> None:
    if stat.S_ISLNK(status.st_mode):
        target.unlink(missing_ok=True)
        target.symlink_to(origin.readlink())
        return
    if stat.S_ISDIR(status.st_mode):
        target.mkdir(exist_ok=True)
        for entry in sorted(origin.iterdir()):
            _in(entry, entry.lstat(), target / entry.name)
    elif stat.S_ISREG(status.st_mode):
        with origin.open("rb") as reader, target.open("wb", buffering=0) as writer:
            while block := reader.read(_BLOCK):
                writer.write(block)
    else:
        raise NotSupported(f"{origin} is neither a file, a directory nor a link; it cannot be copied")
    # After the contents: a read-only directory could not be filled.
    target.chmod(stat.S_IMODE(status.st_mode))
    target.utime(ns=(status.st_atime_ns, status.st_mtime_ns))


def copy_out(source: GuestPath, target: str | os.PathLike[str]) -> str:
    place = Path(target)
    status = source.stat()
    if place.is_dir():
        place = place / (source.name or "root")
    _out(source, status, place)
    return str(place)


def _out(source: GuestPath, status: Status, place: Path) -> None:
    """Writes beneath `place` only: names come from the guest, and links in it are never followed."""
    if stat.S_ISLNK(status.st_mode):
        _vacate(place)
        place.symlink_to(str(source.readlink()))
        return
    if stat.S_ISDIR(status.st_mode):
        if place.is_symlink() or not place.is_dir():
            _vacate(place)
            place.mkdir()
        for entry, entry_status in source.entries():
            if entry.name in ("", ".", "..") or "/" in entry.name or entry.parent != source:
                raise OSError(f"the guest lists {entry.name!r} in {source}, which is not a name")
            _out(entry, entry_status, place / entry.name)
    elif stat.S_ISREG(status.st_mode):
        if place.is_symlink():
            place.unlink()
        with place.open("wb") as writer:
            source._do(lambda files: files.read(source._bytes, 0, 0, writer.write))
    else:
        raise NotSupported(f"{source} is neither a file, a directory nor a link; it cannot be copied")
    # Never setuid or setgid on the host: owners differ there.
    place.chmod(stat.S_IMODE(status.st_mode) & 0o777)
    os.utime(place, ns=(status.st_atime_ns, status.st_mtime_ns))


def _vacate(place: Path) -> None:
    if place.is_symlink() or place.is_file():
        place.unlink()
    elif place.is_dir():
        shutil.rmtree(place)
