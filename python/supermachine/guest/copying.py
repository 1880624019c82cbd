"""Files and trees between host and guest, streamed.

Of a tree everything is copied that can be: files with their holes, hard links among themselves, directories, symbolic
links, FIFOs. A socket or a device is nothing without its process or its host; a file may vanish while others are
copied. Those are left out, and a warning names them. What else fails ends the copy, and the error says that what is
there is a part.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import descriptors
from ..errors import CopyIncomplete, CopyTooLarge, NotSupported, SupermachineError, VMTimeout
from .paths import GuestPath

if TYPE_CHECKING:
    from .._core import Files
    from .paths import FileSystem, Status

_BLOCK = 256 * 1024
#: Bytes of contents that one copy moves unless told otherwise; holes do not count.
DEFAULT_MAX_BYTES = 64 << 30
#: Files and directories of one copy: who made them may mean to fill the file system that they come to.
MAX_ENTRIES = 4_000_000
#: Bytes that are read of a file that says it has none: those of /proc have contents all the same.
_UNSIZED = 16 << 20
#: Names in a warning.
_NAMED = 10


class SkippedFiles(UserWarning):
    """What a copy has left out: sockets, devices, and files that vanished meanwhile."""


class _Copy:
    """What one copy has done, and what it may do."""

    def __init__(self, what: str, max_bytes: int | None, timeout: float | None) -> None:
        self.what = what
        self._left = DEFAULT_MAX_BYTES if max_bytes is None else max_bytes
        self._limit = self._left
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._timeout = timeout
        self.entries = 0
        self._skipped: list[str] = []
        #: Where the first name of each file with several has gone, by device and inode.
        self.links: dict[tuple[int, int], Any] = {}

    def entry(self) -> None:
        self.entries += 1
        if self.entries > MAX_ENTRIES:
            raise CopyTooLarge(f"{self.what} has more than {MAX_ENTRIES} files and directories")
        self.on_time()

    def moved(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise CopyTooLarge(f"{self.what} has more than {self._limit} bytes", hint="max_bytes= sets the limit")
        self.on_time()

    def on_time(self) -> None:
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise VMTimeout(f"{self.what} was not copied within {self._timeout:g} seconds")

    def skip(self, path: object, why: str) -> None:
        self._skipped.append(f"{path} ({why})")

    @contextlib.contextmanager
    def whole(self, target: object, *, tree: bool) -> Iterator[None]:
        """Says of a tree that ended half way that it did, and of one that did not what it is without."""
        try:
            yield
        except (OSError, SupermachineError) as error:
            if not tree or not isinstance(error, OSError) or isinstance(error, CopyIncomplete):
                raise
            told = CopyIncomplete(
                f"{self.what} was copied in part, {self.entries} entries, to {target}: {error}",
                cause=getattr(error, "cause", None) or str(error),
                hint="remove what is there, and copy again",
            )
            told.errno = error.errno
            raise told from error
        if self._skipped:
            more = len(self._skipped) - _NAMED
            named = ", ".join(self._skipped[:_NAMED]) + (f" and {more} more" if more > 0 else "")
            # A sys.stderr that is closed is a ValueError.
            with contextlib.suppress(ValueError):
                warnings.warn(f"{self.what} was copied without {named}", SkippedFiles, stacklevel=5)


def _kind(mode: int) -> str:
    return "a socket" if stat.S_ISSOCK(mode) else "a device"


def _is_left_out(mode: int) -> bool:
    return stat.S_ISSOCK(mode) or stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


def copy_in(
    source: str | os.PathLike[str],
    target: GuestPath,
    *,
    into: bool = False,
    max_bytes: int | None = None,
    timeout: float | None = None,
) -> GuestPath:
    """See :meth:`supermachine.VM.copy_in`. With `into` the target was written with a slash at its end."""
    origin = Path(source)
    status = origin.stat()
    if _is_left_out(status.st_mode):
        raise NotSupported(f"{origin} is {_kind(status.st_mode)}; it cannot be copied")
    tree = stat.S_ISDIR(status.st_mode)
    if target.is_dir():
        target = target / (origin.name or origin.resolve().name)
    elif into and (not tree or target.exists()):
        raise NotADirectoryError(20, "Not a directory", f"{target}/")
    copy = _Copy(str(origin), max_bytes, timeout)
    with copy.whole(target, tree=tree), target._fs.within(timeout) as fs:
        _In(copy, fs).run(origin, status, GuestPath(target, filesystem=fs))
    return target


class _In:
    def __init__(self, copy: _Copy, fs: FileSystem) -> None:
        self._copy = copy
        self._fs = fs

    def run(self, origin: Path, status: os.stat_result, target: GuestPath) -> None:
        """Depth first, without recursion: trees are as deep as their makers like."""
        todo: list[tuple[Path, os.stat_result | None, GuestPath, bool]] = [(origin, status, target, False)]
        while todo:
            here, found, there, done = todo.pop()
            if done:
                assert found is not None
                self._finish(there, found)
                continue
            if found is None:
                try:
                    found = here.lstat()
                except _OTHERWISE:
                    self._copy.skip(here, "it vanished")
                    continue
            self._copy.entry()
            if not stat.S_ISDIR(found.st_mode):
                self._leaf(here, found, there)
                continue
            try:
                names = sorted(os.listdir(here), reverse=True)  # noqa: PTH208 - names alone
            except _OTHERWISE:
                self._copy.skip(here, "it vanished")
                continue
            self._made(there, lambda f, path: f.make_dir(path, 0o700, False, False), FileExistsError)
            todo.append((here, found, there, True))
            todo += [(here / name, None, there / name, False) for name in names]

    def _leaf(self, here: Path, found: os.stat_result, there: GuestPath) -> None:
        if _is_left_out(found.st_mode):
            self._copy.skip(here, _kind(found.st_mode))
            return
        first = self._copy.links.get((found.st_dev, found.st_ino)) if found.st_nlink > 1 else None
        if first is not None:
            there.unlink(missing_ok=True)
            there.hardlink_to(first)
            return
        try:
            if stat.S_ISLNK(found.st_mode):
                to = os.fsencode(_link(here))
                there.unlink(missing_ok=True)
                self._made(there, lambda f, path: f.symlink(to, path))
            elif stat.S_ISFIFO(found.st_mode):
                there.unlink(missing_ok=True)
                self._made(there, lambda f, path: f.make_fifo(path, 0o600))
                self._finish(there, found)
            else:
                self._file(here, there)
        except _Vanished:
            self._copy.skip(here, "it vanished")
            return
        if found.st_nlink > 1:
            self._copy.links[found.st_dev, found.st_ino] = there

    def _made(
        self, there: GuestPath, make: Callable[[Files, bytes], None], may: type[OSError] | tuple[()] = ()
    ) -> None:
        """Makes something that belongs to the machine's user; what is there already keeps its owner."""
        try:
            there._do(lambda f: make(f, there._bytes))
        except may:
            if not there.is_dir():
                raise
            return
        there._own(follow=False)

    def _finish(self, there: GuestPath, found: os.stat_result) -> None:
        # After the contents: a read-only directory could not be filled.
        there.chmod(stat.S_IMODE(found.st_mode))
        there.utime(ns=(found.st_atime_ns, found.st_mtime_ns))

    def _file(self, here: Path, there: GuestPath) -> None:
        try:
            # Not waiting for what has become a FIFO meanwhile.
            fd = descriptors.open_file(here, os.O_RDONLY | os.O_NONBLOCK)
        except _OTHERWISE:
            raise _Vanished from None
        try:
            # What it is now: it may have grown since it was listed, and may go on growing.
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise _Vanished
            with self._fs.connection() as files:
                new = there._write_new(files)
                try:
                    for count, is_hole in _extents(fd, found.st_size):
                        if is_hole:
                            files.write_hole(count)
                        else:
                            self._data(fd, count, files)
                except BaseException:
                    # The connection is in the middle of a file, and of no more use; what it has written is a part.
                    files.close()
                    if new:
                        with contextlib.suppress(OSError, SupermachineError):
                            there.unlink(missing_ok=True)
                    raise
                files.write_end()
            if new:
                there._own()
            self._finish(there, found)
        finally:
            os.close(fd)

    def _data(self, fd: int, count: int, files: Files) -> None:
        while count and (block := os.read(fd, min(count, _BLOCK))):
            self._copy.moved(len(block))
            files.write(block)
            count -= len(block)


class _Vanished(Exception):
    """What was listed is not there any more, or is something else."""


#: How that shows: the name is gone, or it or a directory on its way has become something of another kind.
_OTHERWISE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


def _link(path: Path | GuestPath) -> Path | GuestPath:
    """What a symbolic link leads to; it may be gone, or something else by now."""
    try:
        return path.readlink()
    except _OTHERWISE:
        raise _Vanished from None
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise _Vanished from None
        raise


def _extents(fd: int, size: int) -> Iterator[tuple[int, bool]]:
    """The parts of a file that has `size` bytes: how long, and whether it is a hole. The file is left at each."""
    at = 0
    while at < size:
        try:
            start = min(os.lseek(fd, at, os.SEEK_DATA), size)
            end = min(os.lseek(fd, start, os.SEEK_HOLE), size) if start < size else size
        except OSError as error:
            # ENXIO: no data from here on. Other errors: the file system does not tell.
            start, end = (size, size) if error.errno == 6 else (at, size)
        if start > at:
            yield start - at, True
        if end > start:
            os.lseek(fd, start, os.SEEK_SET)
            yield end - start, False
        at = max(end, start)


def copy_out(
    source: GuestPath,
    target: str | os.PathLike[str],
    *,
    max_bytes: int | None = None,
    timeout: float | None = None,
) -> str:
    """See :meth:`supermachine.VM.copy_out`."""
    place = Path(target)
    status = source.stat()
    if _is_left_out(status.st_mode):
        raise NotSupported(f"{source} is {_kind(status.st_mode)}; it cannot be copied")
    tree = stat.S_ISDIR(status.st_mode)
    if place.is_dir():
        place = place / (source.name or "root")
    elif os.fspath(target).endswith("/") and (not tree or os.path.lexists(place)):
        raise NotADirectoryError(20, "Not a directory", os.fspath(target))
    copy = _Copy(f"{source} of the guest", max_bytes, timeout)
    with copy.whole(place, tree=tree), source._fs.within(timeout) as fs:
        _Out(copy).run(GuestPath(source, filesystem=fs), status, place)
    return str(place)


class _Out:
    """Writes beneath its place only: names come from the guest, and links in what it writes are never followed."""

    def __init__(self, copy: _Copy) -> None:
        self._copy = copy

    def run(self, source: GuestPath, status: Status, place: Path) -> None:
        todo: list[tuple[GuestPath, Status, Path, bool]] = [(source, status, place, False)]
        while todo:
            there, found, here, done = todo.pop()
            if done:
                _finish(here, found)
                continue
            self._copy.entry()
            if not stat.S_ISDIR(found.st_mode):
                self._leaf(there, found, here)
                continue
            try:
                entries = there.entries()
            except _OTHERWISE:
                self._copy.skip(there, "it vanished")
                continue
            if here.is_symlink() or not here.is_dir():
                _vacate(here)
                here.mkdir(mode=0o700)
            else:
                here.chmod(0o700)
            todo.append((there, found, here, True))
            seen = set()
            for entry, entry_status in sorted(entries, key=lambda found: found[0].name, reverse=True):
                name = entry.name
                if name in ("", ".", "..") or "/" in name or entry.parent != there or name in seen:
                    raise OSError(f"the guest lists {name!r} in {there}, which is not a name, or twice")
                seen.add(name)
                todo.append((entry, entry_status, here / name, False))

    def _leaf(self, there: GuestPath, found: Status, here: Path) -> None:
        if _is_left_out(found.st_mode):
            self._copy.skip(there, _kind(found.st_mode))
            return
        first = self._copy.links.get((found.st_dev, found.st_ino)) if found.st_nlink > 1 else None
        try:
            if first is not None:
                _vacate(here)
                os.link(first, here, follow_symlinks=False)
                return
            if stat.S_ISLNK(found.st_mode):
                to = _link(there)
                _vacate(here)
                here.symlink_to(str(to))
            elif stat.S_ISFIFO(found.st_mode):
                _vacate(here)
                os.mkfifo(here, 0o600)
                _finish(here, found)
            elif stat.S_ISREG(found.st_mode):
                self._file(there, found, here)
            else:
                raise NotSupported(f"{there} is neither a file, a directory nor a link; it cannot be copied")
        except _Vanished:
            self._copy.skip(there, "it vanished")
            return
        if found.st_nlink > 1:
            self._copy.links[found.st_dev, found.st_ino] = here

    def _file(self, there: GuestPath, found: Status, here: Path) -> None:
        if os.path.lexists(here) and not stat.S_ISREG(here.lstat().st_mode):
            _vacate(here)
        new = not here.exists()
        fd = descriptors.open_file(here, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW)
        done = False
        try:
            written = 0

            def write(data: bytes) -> None:
                nonlocal written
                self._copy.moved(len(data))
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
                written += len(data)

            def hole(length: int) -> None:
                nonlocal written
                self._copy.on_time()
                written += length
                os.lseek(fd, written, os.SEEK_SET)
                os.ftruncate(fd, written)

            try:
                # No more than it was when it was listed: one that grows need not end.
                there._do(lambda files: files.read(there._bytes, 0, found.st_size or _UNSIZED, write, hole))
            except _OTHERWISE:
                raise _Vanished from None
            done = True
        finally:
            os.close(fd)
            if not done and new:
                with contextlib.suppress(OSError):
                    here.unlink()
        _finish(here, found)


def _finish(here: Path, found: Status) -> None:
    # Never setuid or setgid on the host: owners differ there.
    here.chmod(stat.S_IMODE(found.st_mode) & 0o777)
    os.utime(here, ns=(found.st_atime_ns, found.st_mtime_ns))


def _vacate(place: Path) -> None:
    """Makes room for something of another kind."""
    if place.is_symlink() or (os.path.lexists(place) and not place.is_dir()):
        place.unlink()
    elif place.is_dir():
        # From the leaves up, without recursion.
        todo, directories = [place], []
        while todo:
            directories.append(todo.pop())
            for path in directories[-1].iterdir():
                if path.is_dir() and not path.is_symlink():
                    todo.append(path)
                else:
                    path.unlink()
        for path in reversed(directories):
            path.rmdir()
