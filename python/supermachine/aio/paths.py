"""Paths in a guest, as coroutines where the guest is asked."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from typing import IO, TYPE_CHECKING, Any

from ..guest import paths as _paths
from ..guest.paths import MAX_READ
from .calls import call

if TYPE_CHECKING:
    from ..guest.paths import PathLike, Status


class GuestPath:
    """A path in the guest; what asks the guest is a coroutine. See :class:`supermachine.GuestPath`."""

    __slots__ = ("_path",)

    def __init__(self, path: _paths.GuestPath) -> None:
        self._path = path

    # What a path says of itself, as `pathlib.PurePosixPath`.

    def __truediv__(self, other: str | os.PathLike[str]) -> GuestPath:
        return GuestPath(self._path / other)

    def __str__(self) -> str:
        return str(self._path)

    def __fspath__(self) -> str:
        return str(self._path)

    def __repr__(self) -> str:
        return repr(self._path)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GuestPath) and self._path == other._path

    def __hash__(self) -> int:
        return hash(self._path)

    @property
    def parts(self) -> tuple[str, ...]:
        return self._path.parts

    @property
    def name(self) -> str:
        return self._path.name

    @property
    def stem(self) -> str:
        return self._path.stem

    @property
    def suffix(self) -> str:
        return self._path.suffix

    @property
    def suffixes(self) -> list[str]:
        return self._path.suffixes

    @property
    def parent(self) -> GuestPath:
        return GuestPath(self._path.parent)

    @property
    def parents(self) -> tuple[GuestPath, ...]:
        return tuple(GuestPath(path) for path in self._path.parents)

    def is_absolute(self) -> bool:
        return self._path.is_absolute()

    def is_relative_to(self, other: PathLike) -> bool:
        return self._path.is_relative_to(other)

    def match(self, pattern: str) -> bool:
        return self._path.match(pattern)

    def joinpath(self, *segments: PathLike) -> GuestPath:
        return GuestPath(self._path.joinpath(*segments))

    def relative_to(self, other: PathLike) -> GuestPath:
        return GuestPath(self._path.relative_to(other))

    def with_name(self, name: str) -> GuestPath:
        return GuestPath(self._path.with_name(name))

    def with_stem(self, stem: str) -> GuestPath:
        return GuestPath(self._path.with_stem(stem))

    def with_suffix(self, suffix: str) -> GuestPath:
        return GuestPath(self._path.with_suffix(suffix))

    def with_segments(self, *segments: PathLike) -> GuestPath:
        return GuestPath(self._path.with_segments(*segments))

    def as_posix(self) -> str:
        return self._path.as_posix()

    def absolute(self) -> GuestPath:
        return GuestPath(self._path.absolute())

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """What a version of `pathlib.PurePosixPath` has beside that."""
            value = getattr(self._path, name)
            if not callable(value):
                return _wrap(value)

            def pure(*args: Any, **options: Any) -> Any:
                return _wrap(value(*args, **options))

            return pure

    # What the guest is asked for.

    async def stat(self, *, follow_symlinks: bool = True) -> Status:
        return await call(self._path.stat, follow_symlinks=follow_symlinks)

    async def lstat(self) -> Status:
        return await call(self._path.lstat)

    async def exists(self, *, follow_symlinks: bool = True) -> bool:
        return await call(self._path.exists, follow_symlinks=follow_symlinks)

    async def is_file(self) -> bool:
        return await call(self._path.is_file)

    async def is_dir(self) -> bool:
        return await call(self._path.is_dir)

    async def is_symlink(self) -> bool:
        return await call(self._path.is_symlink)

    async def is_socket(self) -> bool:
        return await call(self._path.is_socket)

    async def is_fifo(self) -> bool:
        return await call(self._path.is_fifo)

    async def is_block_device(self) -> bool:
        return await call(self._path.is_block_device)

    async def is_char_device(self) -> bool:
        return await call(self._path.is_char_device)

    async def entries(self) -> list[tuple[GuestPath, Status]]:
        """What is in a directory, with the status of each entry (links not followed) in the same answer."""
        return [(GuestPath(path), status) for path, status in await call(self._path.entries)]

    async def iterdir(self) -> AsyncIterator[GuestPath]:
        for path, _status in await call(self._path.entries):
            yield GuestPath(path)

    async def glob(self, pattern: str) -> AsyncIterator[GuestPath]:
        """`*`, `?`, `[…]` and `**` as in `pathlib`."""
        for path in await call(lambda: list(self._path.glob(pattern))):
            yield GuestPath(path)

    async def rglob(self, pattern: str) -> AsyncIterator[GuestPath]:
        async for path in self.glob(f"**/{pattern}"):
            yield path

    async def walk(self) -> AsyncIterator[tuple[GuestPath, list[str], list[str]]]:
        """Top down, links not followed, as `pathlib.Path.walk`."""
        for path, directories, files in await call(lambda: list(self._path.walk())):
            yield GuestPath(path), directories, files

    async def readlink(self) -> GuestPath:
        return GuestPath(await call(self._path.readlink))

    async def resolve(self, strict: bool = False) -> GuestPath:
        return GuestPath(await call(self._path.resolve, strict))

    async def read_bytes(self, *, max_bytes: int = MAX_READ) -> bytes:
        """The whole file, which has at most `max_bytes`. Raises FileTooLarge for a longer one."""
        return await call(self._path.read_bytes, max_bytes=max_bytes)

    async def read_text(
        self, encoding: str | None = None, errors: str | None = None, *, max_bytes: int = MAX_READ
    ) -> str:
        """The whole file as text; see `read_bytes`."""
        return await call(self._path.read_text, encoding, errors, max_bytes=max_bytes)

    async def write_bytes(self, data: Any) -> int:
        return await call(self._path.write_bytes, data)

    async def write_text(
        self, data: str, encoding: str | None = None, errors: str | None = None, newline: str | None = None
    ) -> int:
        return await call(self._path.write_text, data, encoding, errors, newline)

    async def open(
        self,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """As `open`, for reading (seekable) or for writing (not seekable); what the file does blocks."""
        return await call(self._path.open, mode, buffering, encoding, errors, newline)

    async def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        await call(self._path.mkdir, mode, parents, exist_ok)

    async def touch(self, mode: int = 0o666, exist_ok: bool = True) -> None:
        await call(self._path.touch, mode, exist_ok)

    async def unlink(self, missing_ok: bool = False) -> None:
        await call(self._path.unlink, missing_ok)

    async def rmdir(self) -> None:
        await call(self._path.rmdir)

    async def rmtree(self) -> None:
        """Removes a directory with all that is in it, as `shutil.rmtree`."""
        await call(self._path.rmtree)

    async def rename(self, target: PathLike) -> GuestPath:
        return GuestPath(await call(self._path.rename, target))

    replace = rename

    async def symlink_to(self, target: PathLike, target_is_directory: bool = False) -> None:
        await call(self._path.symlink_to, target, target_is_directory)

    async def hardlink_to(self, target: PathLike) -> None:
        await call(self._path.hardlink_to, target)

    async def chmod(self, mode: int) -> None:
        await call(self._path.chmod, mode)

    async def chown(self, uid: int = -1, gid: int = -1, *, follow_symlinks: bool = True) -> None:
        """As `os.chown`: -1 leaves an id as it is."""
        await call(self._path.chown, uid, gid, follow_symlinks=follow_symlinks)

    async def utime(self, *, ns: tuple[int, int]) -> None:
        """As `os.utime`: access and modification time in nanoseconds."""
        await call(self._path.utime, ns=ns)


def _wrap(value: Any) -> Any:
    if isinstance(value, _paths.GuestPath):
        return GuestPath(value)
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return tuple(_wrap(item) for item in value)
    return value
