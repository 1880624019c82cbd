"""Tars of what is in a guest, and into it."""

from __future__ import annotations

import os
import posixpath
import stat
import tarfile
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any

from ..errors import CopyTooLarge, InvalidArchive, NotSupported
from ..oci.archive import Bounded
from .copying import MAX_ENTRIES

if TYPE_CHECKING:
    from .paths import GuestPath, Status

#: Bytes that are moved at once.
_BLOCK = 256 << 10


# Out.


def pack(top: GuestPath, name: str, write: Callable[[bytes], Any], *, one_device: bool = False) -> None:
    """Writes a tar of what is at a path, beneath `name`; of `one_device` without what is mounted below it. Blocks."""
    status = top.lstat()
    device = status.st_dev if one_device else None
    with tarfile.open(fileobj=Out(write), mode="w|", format=tarfile.PAX_FORMAT, bufsize=_BLOCK) as tar:  # type: ignore[call-overload]
        links: dict[tuple[int, int], str] = {}
        for entries, (there, found, member) in enumerate(walk(top, status, name, device=device)):
            if entries > MAX_ENTRIES:
                raise CopyTooLarge(f"{top} has more than {MAX_ENTRIES} files and directories")
            _add(tar, there, found, member, links)


class Out:
    """A file for `tarfile` whose bytes a function takes."""

    def __init__(self, write: Callable[[bytes], Any]) -> None:
        self._write = write

    def write(self, data: bytes) -> int:
        self._write(bytes(data))
        return len(data)


def walk(
    top: GuestPath, status: Status, name: str, device: int | None = None
) -> Iterator[tuple[GuestPath, Status, str]]:
    """All that is below; with a `device`, of other file systems no more than where they are mounted."""
    todo = [(top, status, name)]
    while todo:
        there, found, member = todo.pop()
        yield there, found, member
        if not stat.S_ISDIR(found.st_mode) or (device is not None and found.st_dev != device):
            continue
        try:
            entries = there.entries()
        except (FileNotFoundError, NotADirectoryError):
            continue  # it has gone meanwhile
        todo.extend((p, s, f"{member}/{p.name}") for p, s in sorted(entries, key=lambda e: e[0].name, reverse=True))


def _add(
    tar: tarfile.TarFile, there: GuestPath, status: Status, member: str, links: dict[tuple[int, int], str]
) -> None:
    info = tarfile.TarInfo(member)
    info.mode = stat.S_IMODE(status.st_mode)
    info.uid, info.gid, info.mtime = status.st_uid, status.st_gid, int(status.st_mtime)
    mode = status.st_mode
    first = links.get((status.st_dev, status.st_ino)) if status.st_nlink > 1 and stat.S_ISREG(mode) else None
    if first is not None:
        info.type, info.linkname = tarfile.LNKTYPE, first
    elif stat.S_ISDIR(mode):
        info.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(mode):
        info.type, info.linkname = tarfile.SYMTYPE, str(there.readlink())
    elif stat.S_ISFIFO(mode):
        info.type = tarfile.FIFOTYPE
    elif stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        info.type = tarfile.CHRTYPE if stat.S_ISCHR(mode) else tarfile.BLKTYPE
        info.devmajor, info.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
    elif stat.S_ISREG(mode):
        info.size = status.st_size
        links[status.st_dev, status.st_ino] = member
        with there.open("rb") as file:
            tar.addfile(info, _Sized(file, info.size))
        return
    else:
        return  # a socket
    tar.addfile(info)


class _Sized:
    """Just so many bytes, however the file has changed since its size was asked for."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._left = size

    def read(self, count: int = -1) -> bytes:
        count = self._left if count < 0 else min(count, self._left)
        data = self._file.read(count)
        data += bytes(count - len(data))
        self._left -= count
        return data


# In.


def bounded(file: IO[bytes]) -> Any:
    """The file for `tarfile`, which refuses headers of an absurd size."""
    return Bounded(file, tarfile.ReadError("an extended header of an absurd size"))


def unpack(tar: tarfile.TarFile, top: GuestPath, *, keep_kinds: bool = False, top_too: bool = False) -> None:
    """Unpacks a tar that is open into a directory of a guest, with the owners that it says. Blocks.

    With `keep_kinds` a directory is not replaced by something else, nor the other way round. With `top_too` the
    directory itself gets what the tar says of it. Raises `InvalidArchive` for
    what would go elsewhere, `NotSupported` for a device.
    """
    times: list[tuple[GuestPath, tarfile.TarInfo]] = []
    count = 0
    while (info := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]
        count += 1
        if count > MAX_ENTRIES:
            raise CopyTooLarge(f"the archive has more than {MAX_ENTRIES} members")
        target = _inside(top, info.name)
        if target is None:
            if top_too and info.isdir():
                top.chown(info.uid, info.gid)
                top.chmod(info.mode & 0o7777)
            times.append((top, info))
            continue
        if not target.parent.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
        _check_kind(target, info, keep_kinds)
        _make(tar, info, target, top)
        if not info.islnk() and not info.issym():
            target.chmod(info.mode & 0o7777)
            times.append((target, info))
    for target, info in reversed(times):
        if info.isdir() and (target != top or top_too):
            target.utime(ns=(int(info.mtime * 1e9), int(info.mtime * 1e9)))


def _inside(top: GuestPath, name: str) -> GuestPath | None:
    """Where a member goes; ``None`` for the directory itself. Raises InvalidArchive for what goes elsewhere."""
    clean = posixpath.normpath("/" + name.lstrip("/"))
    if ".." in name.split("/"):
        raise InvalidArchive(f"the archive's member {name[:200]!r} is outside of where it is unpacked")
    return None if clean == "/" else top / clean.lstrip("/")


def _check_kind(target: GuestPath, info: tarfile.TarInfo, keep_kinds: bool) -> None:
    try:
        there = target.lstat()
    except FileNotFoundError:
        return
    is_directory = stat.S_ISDIR(there.st_mode)
    if is_directory and info.isdir():
        return
    if is_directory != info.isdir():
        if keep_kinds:
            what = "directory with non-directory" if is_directory else "non-directory with directory"
            raise InvalidArchive(f"cannot overwrite {what}: {target}")
        if is_directory:
            target.rmtree()
            return
    # A new file in its place, so that what a link leads to is not written to.
    target.unlink(missing_ok=True)


def _make(tar: tarfile.TarFile, info: tarfile.TarInfo, target: GuestPath, top: GuestPath) -> None:
    if info.isdir():
        target.mkdir(exist_ok=True)
    elif info.issym():
        target.symlink_to(info.linkname)
    elif info.islnk():
        source = _inside(top, info.linkname)
        if source is None:
            raise InvalidArchive(f"the archive's member {info.name[:200]!r} is a link to a directory")
        target.hardlink_to(source)
        return
    elif info.isfifo():
        target._do(lambda f: f.make_fifo(target._bytes, 0o600))
    elif info.isreg():
        source_file = tar.extractfile(info)
        assert source_file is not None
        with target.open("wb", buffering=0) as file:
            while block := source_file.read(_BLOCK):
                file.write(block)
        target.utime(ns=(int(info.mtime * 1e9), int(info.mtime * 1e9)))
    else:
        raise NotSupported(f"the archive's member {info.name[:200]!r} is a device, which cannot be made")
    target.chown(info.uid, info.gid, follow_symlinks=False)
