"""``docker cp``: tars out of a container's guest and into it."""

from __future__ import annotations

import base64
import json
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..guest import tars
from ..oci.archive import compression_of, decompress
from .errors import BadRequest, NotFound
from .logs import timestamp

if TYPE_CHECKING:
    from ..guest.paths import GuestPath, Status
    from ..machine.vm import VM

#: Go's os.FileMode: bits beyond the permissions, by what Linux has.
_GO_KINDS = {
    stat.S_IFDIR: 1 << 31,
    stat.S_IFLNK: 1 << 27,
    stat.S_IFBLK: 1 << 26,
    stat.S_IFIFO: 1 << 25,
    stat.S_IFSOCK: 1 << 24,
    stat.S_IFCHR: (1 << 26) | (1 << 21),
}
_GO_BITS = ((stat.S_ISUID, 1 << 23), (stat.S_ISGID, 1 << 22), (stat.S_ISVTX, 1 << 20))


def place(vm: VM, path: str) -> tuple[GuestPath, Status]:
    """A path in the guest and what is there. Raises NotFound."""
    if "\0" in path or not path:
        raise BadRequest("path is empty, or holds a NUL")
    found = vm.path("/" + path.lstrip("/"))
    try:
        status = found.lstat()
        if path.endswith(("/", "/.")) and stat.S_ISLNK(status.st_mode):
            found = found.resolve()
            status = found.lstat()
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"Could not find the file {path[:500]} in container") from None
    return found, status


def describe(vm: VM, path: str) -> str:
    """``X-Docker-Container-Path-Stat``"""
    found, status = place(vm, path)
    target = ""
    if stat.S_ISLNK(status.st_mode):
        target = str(found.resolve())
    said = {
        "name": found.name or "/",
        "size": status.st_size,
        "mode": go_mode(status.st_mode),
        "mtime": timestamp(status.st_mtime_ns),
        "linkTarget": target,
    }
    return base64.b64encode(json.dumps(said).encode()).decode()


def go_mode(mode: int) -> int:
    extra = sum(bit for mine, bit in _GO_BITS if mode & mine)
    return (mode & 0o777) | _GO_KINDS.get(stat.S_IFMT(mode), 0) | extra


# Out.


def pack(vm: VM, path: str, write: Callable[[bytes], Any]) -> None:
    """Writes a tar of what is at a path, beneath its own name. Blocks."""
    found, _ = place(vm, path)
    tars.pack(found, "." if path.endswith("/.") else found.name or "/", write)


def pack_root(vm: VM, write: Callable[[bytes], Any]) -> None:
    """Writes a tar of the root, without what is mounted below it. Blocks."""
    tars.pack(vm.path("/"), ".", write, one_device=True)


# In.


def unpack(vm: VM, directory: str, archive: Path, *, keep_kinds: bool, limit: int) -> None:
    """Unpacks a tar into a directory of the guest, with the owners that it says. Blocks.

    With `keep_kinds` a directory is not replaced by something else, nor the other way round.
    """
    top, status = place(vm, directory)
    if stat.S_ISLNK(status.st_mode):
        top = top.resolve()
        status = top.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise BadRequest(f"extraction point is not a directory: {directory[:500]}")
    plain = archive
    if (compression := compression_of(archive)) is not None:
        plain = archive.with_suffix(".plain")
        decompress(archive, compression, plain, limit)
    try:
        with plain.open("rb") as file, tarfile.open(fileobj=tars.bounded(file), mode="r:") as tar:
            tars.unpack(tar, top, keep_kinds=keep_kinds)
    except tarfile.TarError as error:
        raise BadRequest(f"the archive is no tar, or a damaged one: {error}") from None
    finally:
        if plain is not archive:
            plain.unlink(missing_ok=True)
