"""Paths in a guest, with the interface of `pathlib.Path`."""

from __future__ import annotations

import errno
import fnmatch
import io
import os
import stat as _stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING, Any, TypeAlias, TypeVar

from .. import shortage
from ..errors import FileTooLarge
from ..settings.parsing import encode

if TYPE_CHECKING:
    from .._core import Files, Remote, Worker

T = TypeVar("T")
PathLike: TypeAlias = "str | os.PathLike[str]"

#: Bytes of a path that Linux takes, its end included (include/uapi/linux/limits.h); this also bounds how deep the
#: directories are that a guest can make one believe in.
_PATH_MAX = 4096
#: Seconds in which the guest answers a file command; what is moved meanwhile earns more.
ANSWER_TIMEOUT = 180.0
#: Bytes of a file that is read as a whole, unless told otherwise.
MAX_READ = 1 << 30
#: Bytes of one write to the guest.
_BLOCK = 256 * 1024


class Status:
    """The fields of `os.stat_result`, of a file in a guest."""

    def __init__(self, fields: tuple[Any, ...]) -> None:
        self.st_atime_ns: int
        self.st_mtime_ns: int
        self.st_ctime_ns: int
        (
            self.st_dev,
            self.st_ino,
            self.st_mode,
            self.st_nlink,
            self.st_uid,
            self.st_gid,
            self.st_rdev,
            self.st_size,
            self.st_blocks,
            (self.st_atime_ns, self.st_mtime_ns, self.st_ctime_ns),
        ) = fields
        self.st_blksize = 4096

    @property
    def st_atime(self) -> float:
        return self.st_atime_ns / 1e9

    @property
    def st_mtime(self) -> float:
        return self.st_mtime_ns / 1e9

    @property
    def st_ctime(self) -> float:
        return self.st_ctime_ns / 1e9

    def __repr__(self) -> str:
        fields = ", ".join(f"{k}={v!r}" for k, v in vars(self).items())
        return f"Status({fields})"


class FileSystem:
    """The guest's file system: connections to the agent, lent to one caller at a time."""

    def __init__(
        self,
        worker: Callable[[], Worker | Remote],
        user: Callable[[], str] = str,
        answer_timeout: float | None = None,
    ) -> None:
        self._worker = worker
        self._answer_timeout = answer_timeout
        #: Whose the files are that are made from outside: docker's USER, "" for root.
        self._user = user
        self._owner: tuple[int, int] | None = None
        self._idle: list[Files] = []

    def owner(self) -> tuple[int, int]:
        """The ids of the machine's user, looked up in the guest's own files; (0, 0) when they do not have it."""
        if self._owner is None:
            from .users import ids

            with self.connection() as files:
                self._owner = ids(files, self._user())
        return self._owner

    @contextmanager
    def connection(self) -> Iterator[Files]:
        from .._core import Files

        worker = self._worker()
        try:
            files = self._idle.pop()
        except IndexError:
            usual = ANSWER_TIMEOUT
            timeout = usual if self._answer_timeout is None else min(self._answer_timeout, usual)
            with shortage.Told("the guest's files cannot be reached"):
                files = Files.open(worker, timeout)
        try:
            yield files
        finally:
            if files.reusable and len(self._idle) < 4:
                self._idle.append(files)
            else:
                files.close()

    @contextmanager
    def within(self, timeout: float | None) -> Iterator[FileSystem]:
        """The same, over connections whose answers come within so many seconds."""
        if timeout is None:
            yield self
            return
        hurried = FileSystem(self._worker, self._user, max(timeout, 0.0))
        try:
            yield hurried
        finally:
            hurried.forget()

    def forget(self) -> None:
        """Drops the connections of a virtual machine that is gone, and what was known of its guest."""
        self._owner = None
        while self._idle:
            self._idle.pop().close()


class GuestPath(PurePosixPath):
    """A path in the guest. Errors are `OSError` with the guest's errno. Relative paths start at ``/``."""

    __slots__ = ("_fs",)
    _fs: FileSystem

    # PurePath's own construction differs between 3.10 and 3.12; both make objects through __new__.
    def __new__(cls, *args: PathLike, filesystem: FileSystem | None = None) -> GuestPath:
        self = super().__new__(cls, *args)
        if filesystem is not None:
            self._fs = filesystem
        return self

    def __init__(self, *args: PathLike, filesystem: FileSystem | None = None) -> None:  # noqa: ARG002
        if PurePosixPath.__init__ is object.__init__:
            return
        super().__init__(*args)

    def _same(self, path: Any) -> GuestPath:
        made: GuestPath = type(self)(str(path))
        made._fs = self._fs
        return made

    def with_segments(self, *segments: PathLike) -> GuestPath:
        made = type(self)(*segments)
        made._fs = self._fs
        return made

    if "with_segments" not in PurePosixPath.__dict__ and not hasattr(PurePosixPath, "with_segments"):
        # Before 3.12 what derives a path does not ask the path; these are the ways to derive one.
        def _carry(self, made: Any) -> Any:
            made._fs = self._fs
            return made

        def _make_child(self, args: Any) -> Any:
            return self._carry(super()._make_child(args))  # type: ignore[misc]

        def __rtruediv__(self, key: Any) -> Any:
            return self._carry(super().__rtruediv__(key))

        def with_name(self, name: str) -> Any:
            return self._carry(super().with_name(name))

        def with_suffix(self, suffix: str) -> Any:
            return self._carry(super().with_suffix(suffix))

        def with_stem(self, stem: str) -> Any:
            return self._carry(super().with_stem(stem))

        def relative_to(self, *other: Any) -> Any:
            return self._carry(super().relative_to(*other))

        @property
        def parent(self) -> Any:
            return self._carry(super().parent)

        @property
        def parents(self) -> Any:
            return tuple(self._carry(p) for p in super().parents)

    @property
    def _bytes(self) -> bytes:
        path = encode(str(self) if self.is_absolute() else "/" + str(self))
        if len(path) >= _PATH_MAX:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(self))
        return path

    def _own(self, *, follow: bool = True) -> None:
        """Gives what was made just now to the machine's user; it is root's until then."""
        uid, gid = self._fs.owner()
        if (uid, gid) != (0, 0):
            self.chown(uid, gid, follow_symlinks=follow)

    def _write_new(self, files: Files, mode: int = 0o666, how: str = "truncate") -> bool:
        """Opens the file for writing, and says whether it was not there before."""
        try:
            files.write_open(self._bytes, mode, "create")
        except FileExistsError:
            if how == "create":
                raise
            files.write_open(self._bytes, mode, how)
            return False
        return True

    def _do(self, work: Callable[[Files], T]) -> T:
        with self._fs.connection() as files:
            return work(files)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    # What is there.

    def stat(self, *, follow_symlinks: bool = True) -> Status:
        return Status(self._do(lambda f: f.stat(self._bytes, follow_symlinks)))

    def lstat(self) -> Status:
        return self.stat(follow_symlinks=False)

    def _is(self, test: Callable[[int], bool], follow: bool = True) -> bool:
        try:
            return test(self.stat(follow_symlinks=follow).st_mode)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EBADF, errno.ELOOP):
                return False
            raise

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        return self._is(lambda _mode: True, follow_symlinks)

    def is_file(self) -> bool:
        return self._is(_stat.S_ISREG)

    def is_dir(self) -> bool:
        return self._is(_stat.S_ISDIR)

    def is_symlink(self) -> bool:
        return self._is(_stat.S_ISLNK, follow=False)

    def is_socket(self) -> bool:
        return self._is(_stat.S_ISSOCK)

    def is_fifo(self) -> bool:
        return self._is(_stat.S_ISFIFO)

    def is_block_device(self) -> bool:
        return self._is(_stat.S_ISBLK)

    def is_char_device(self) -> bool:
        return self._is(_stat.S_ISCHR)

    def entries(self) -> list[tuple[GuestPath, Status]]:
        """What is in a directory, with the status of each entry (links not followed) in the same answer."""
        found = self._do(lambda f: f.list(self._bytes))
        return [(self / os.fsdecode(name), Status(fields)) for name, fields in found]

    def iterdir(self) -> Iterator[GuestPath]:
        for path, _status in self.entries():
            yield path

    def walk(self) -> Iterator[tuple[GuestPath, list[str], list[str]]]:
        """Top down, links not followed, as `pathlib.Path.walk`."""
        todo = [self]
        while todo:
            path = todo.pop()
            entries = path.entries()
            directories = [p.name for p, s in entries if _stat.S_ISDIR(s.st_mode)]
            yield path, directories, [p.name for p, s in entries if not _stat.S_ISDIR(s.st_mode)]
            todo.extend(path / name for name in reversed(directories))

    def glob(self, pattern: str) -> Iterator[GuestPath]:
        """`*`, `?`, `[…]` and `**` as in `pathlib`."""
        if not pattern:
            raise ValueError(f"Unacceptable pattern: {pattern!r}")
        if pattern.startswith("/"):
            raise NotImplementedError("Non-relative patterns are unsupported")
        seen: set[str] = set()
        for path in self._glob(list(PurePosixPath(pattern).parts)):
            if str(path) not in seen:
                seen.add(str(path))
                yield path

    def _glob(self, parts: list[str]) -> Iterator[GuestPath]:
        # A stack of its own: a guest's directories may be deeper than Python's calls.
        todo: list[tuple[GuestPath, list[str]]] = [(self, parts)]
        while todo:
            path, parts = todo.pop()
            if not parts:
                yield path
                continue
            part, rest = parts[0], parts[1:]
            found: list[tuple[GuestPath, list[str]]] = []
            if part == "**":
                found.append((path, rest))
                found += [(p, parts) for p, s in path._entries_or_none() if _stat.S_ISDIR(s.st_mode)]
            elif any(c in part for c in "*?["):
                found += [(p, rest) for p, _ in path._entries_or_none() if fnmatch.fnmatchcase(p.name, part)]
            elif (path / part).exists():
                found.append((path / part, rest))
            todo.extend(reversed(found))

    def _entries_or_none(self) -> list[tuple[GuestPath, Status]]:
        try:
            return self.entries()
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return []

    def rglob(self, pattern: str) -> Iterator[GuestPath]:
        return self.glob(f"**/{pattern}")

    def readlink(self) -> GuestPath:
        return self._same(os.fsdecode(self._do(lambda f: f.read_link(self._bytes))))

    def resolve(self, strict: bool = False) -> GuestPath:
        missing: list[str] = []
        path: GuestPath = self
        while True:
            try:
                found = self._same(os.fsdecode(path._do(lambda f, path=path: f.resolve(path._bytes))))  # type: ignore[misc]
            except FileNotFoundError:
                if strict or path.parent == path:
                    raise
                missing.append(path.name)
                path = path.parent
            else:
                return found.joinpath(*reversed(missing)) if missing else found

    def absolute(self) -> GuestPath:
        return self._same(os.fsdecode(self._bytes))

    # Contents.

    def read_bytes(self, *, max_bytes: int = MAX_READ) -> bytes:
        """The whole file, which has at most `max_bytes`. Raises FileTooLarge for a longer one: a guest's file may have
        any length, also one that nobody has written.
        """
        if max_bytes < 0:
            raise ValueError(f"max_bytes is {max_bytes}; a number of bytes is needed")
        parts: list[bytes] = []
        left = max_bytes

        def take(count: int) -> None:
            nonlocal left
            left -= count
            if left < 0:
                raise FileTooLarge(
                    f"{self} of the guest has more than {max_bytes} bytes",
                    hint="max_bytes= sets the limit; open() reads a file in parts, copy_out() copies it",
                )

        def write(data: bytes) -> None:
            take(len(data))
            parts.append(data)

        def hole(length: int) -> None:
            take(length)
            parts.append(bytes(length))

        # One byte more tells that there is more.
        self._do(lambda f: f.read(self._bytes, 0, max_bytes + 1, write, hole))
        return b"".join(parts)

    def read_text(self, encoding: str | None = None, errors: str | None = None, *, max_bytes: int = MAX_READ) -> str:
        """The whole file as text; see `read_bytes`."""
        from .processes import decode

        return decode(self.read_bytes(max_bytes=max_bytes), encoding, errors)

    def write_bytes(self, data: Any) -> int:
        content = memoryview(data).cast("B")
        with self.open("wb") as file:
            for start in range(0, len(content), _BLOCK):
                file.write(content[start : start + _BLOCK])
        return len(content)

    def write_text(
        self, data: str, encoding: str | None = None, errors: str | None = None, newline: str | None = None
    ) -> int:
        if not isinstance(data, str):
            raise TypeError(f"data must be str, not {type(data).__name__}")
        with self.open("w", encoding=encoding, errors=errors, newline=newline) as file:
            return int(file.write(data))

    def open(
        self,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """As `open`, for reading (seekable) or for writing (not seekable); not for both at once."""
        kind = "".join(sorted(set(mode) - {"b", "t"}))
        if kind not in ("r", "w", "a", "x") or len(mode) != len(set(mode)) or {"b", "t"} <= set(mode):
            if "+" in mode:
                raise io.UnsupportedOperation("a guest's file is read or written, not both at once")
            raise ValueError(f"invalid mode: {mode!r}")
        binary = "b" in mode
        if binary and (encoding or errors or newline):
            raise ValueError("binary mode doesn't take encoding, errors or newline")
        raw: io.RawIOBase = _Reading(self) if kind == "r" else _Writing(self, kind)
        if binary and buffering == 0:
            return raw  # type: ignore[return-value]
        size = _BLOCK if buffering < 2 else buffering
        buffered: Any = io.BufferedReader(raw, size) if kind == "r" else io.BufferedWriter(raw, size)
        if binary:
            return buffered  # type: ignore[no-any-return]
        return io.TextIOWrapper(buffered, encoding, errors, newline, line_buffering=buffering == 1)

    # Changes.

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        try:
            self._do(lambda f: f.make_dir(self._bytes, mode & 0o7777, False, False))
        except FileNotFoundError:
            if not parents or self.parent == self:
                raise
            # With the usual mode, as pathlib and mkdir -p do.
            missing: GuestPath = self
            above: list[GuestPath] = []
            while (missing := missing.parent) != missing.parent and not missing.exists():
                above.append(missing)
            for path in reversed(above):
                path.mkdir(exist_ok=True)
            self.mkdir(mode, exist_ok=exist_ok)
        except FileExistsError:
            if not (exist_ok and self.is_dir()):
                raise
        else:
            self._own()

    def touch(self, mode: int = 0o666, exist_ok: bool = True) -> None:
        import time

        try:
            with self._fs.connection() as files:
                files.write_open(self._bytes, mode & 0o7777, "create")
                files.write_end()
            self._own()
        except FileExistsError:
            if not exist_ok:
                raise
            now = time.time_ns()
            self._do(lambda f: f.set_times(self._bytes, now, now))

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self._do(lambda f: f.unlink(self._bytes))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rmdir(self) -> None:
        self._do(lambda f: f.remove_dir(self._bytes))

    def rmtree(self) -> None:
        """Removes a directory with all that is in it, as `shutil.rmtree`."""
        self._do(lambda f: f.remove_tree(self._bytes))

    def rename(self, target: PathLike) -> GuestPath:
        made = self._same(target)
        self._do(lambda f: f.rename(self._bytes, made._bytes))
        return made

    replace = rename

    def symlink_to(self, target: PathLike, target_is_directory: bool = False) -> None:  # noqa: ARG002
        self._do(lambda f: f.symlink(encode(target), self._bytes))
        self._own(follow=False)

    def hardlink_to(self, target: PathLike) -> None:
        self._do(lambda f: f.link(self._same(target)._bytes, self._bytes))

    def chmod(self, mode: int) -> None:
        self._do(lambda f: f.chmod(self._bytes, mode & 0o7777))

    def chown(self, uid: int = -1, gid: int = -1, *, follow_symlinks: bool = True) -> None:
        """As `os.chown`: -1 leaves an id as it is."""
        self._do(lambda f: f.chown(self._bytes, uid & 0xFFFFFFFF, gid & 0xFFFFFFFF, follow_symlinks))

    def utime(self, *, ns: tuple[int, int]) -> None:
        """As `os.utime`: access and modification time in nanoseconds."""
        self._do(lambda f: f.set_times(self._bytes, ns[0], ns[1]))


class _Reading(io.RawIOBase):
    """A file of the guest, read from where the caller is."""

    def __init__(self, path: GuestPath) -> None:
        status = path.stat()
        if _stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        self._path = path
        self._position = 0
        self.name = str(path)
        # Shows at once what may not be read.
        path._do(lambda f: f.read(path._bytes, 0, 1, lambda _data: None))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        if not len(view):
            return 0
        parts: list[bytes] = []
        self._path._do(lambda f: f.read(self._path._bytes, self._position, len(view), parts.append))
        data = b"".join(parts)[: len(view)]
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        base = (0, self._position, self._path.stat().st_size if whence == 2 else 0)[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position


class _Writing(io.RawIOBase):
    """A file of the guest being written; closing it tells whether all of it arrived."""

    def __init__(self, path: GuestPath, kind: str) -> None:
        how = {"w": "truncate", "a": "append", "x": "create"}[kind]
        self.name = str(path)
        self._lent = path._fs.connection()
        self._files = self._lent.__enter__()
        self._open = False
        try:
            new = path._write_new(self._files, how=how)
        except BaseException:
            self._lent.__exit__(None, None, None)
            raise
        self._open = True
        if new:
            # On a connection of its own: this one is in the middle of a file.
            path._own()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self.closed:
            raise ValueError("I/O operation on closed file.")
        content = bytes(data)
        self._files.write(content)
        return len(content)

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        if self._open:
            self._open = False
            try:
                self._files.write_end()
            finally:
                self._lent.__exit__(None, None, None)
