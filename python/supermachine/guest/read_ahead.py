"""What a first process of an image loads, read in its guest before that is baked: it is in the page cache then.

Each machine that goes on from the snapshot has it in memory in place of reading it from the image, which costs its
first process a dozen exits and a third of its time. Nothing of the image runs for it: its ELF files say themselves
what they are loaded with (System V gABI, chapter 5; ld.so(8)).
"""

from __future__ import annotations

import contextlib
import stat
import struct
from typing import TYPE_CHECKING, TypeAlias

from ..errors import SupermachineError, VMExited
from .paths import FileSystem, GuestPath

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .._core import Worker
    from ..images import ImageConfig

#: What is read of every image: the shell that commands are given to, and what is looked at for any process.
_ALWAYS = ("/bin/sh", "/etc/passwd", "/etc/group", "/etc/ld.so.cache")
#: Files, and bytes of them, at most: a snapshot has all of it.
_MAX_FILES = 64
_MAX_BYTES = 32 << 20
#: Places that are looked at for them at most.
_MAX_LOOKS = 512
#: Where loaders look beside the directory that they are in themselves; {} is the architecture.
_LIBRARIES = (
    "/lib",
    "/usr/lib",
    "/usr/local/lib",
    "/lib64",
    "/usr/lib64",
    "/usr/lib/{}-linux-gnu",
    "/lib/{}-linux-gnu",
)
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Whose files are the kernel's, and may have no end.
_KERNELS = (("/", "dev"), ("/", "proc"), ("/", "sys"))
#: Bytes of the first line of a script that the kernel looks at (binfmt_script).
_MAX_SHEBANG = 256

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NEEDED, _DT_STRTAB, _DT_RPATH, _DT_RUNPATH = 1, 5, 15, 29
#: More program headers, or entries of the dynamic section, than any file has that is of use.
_MAX_HEADERS = 64
_MAX_DYNAMIC = 1024
#: Linux's PATH_MAX.
_MAX_PATH = 4096


def fill(worker: Worker, config: ImageConfig, architecture: str) -> None:
    """Reads the program that the image runs, a shell, and what both are loaded with; passes over what cannot be."""
    search = config.environment.get("PATH", _DEFAULT_PATH).split(":")
    files = FileSystem(lambda: worker)
    try:
        with contextlib.suppress(OSError, SupermachineError):
            programs = [*(config.entrypoint or config.cmd)[:1], *_ALWAYS]
            _Reader(files, config.working_dir, architecture, search).read_all(programs)
    finally:
        # Connections do not outlive a snapshot.
        files.forget()


@contextlib.contextmanager
def _passing_over() -> Iterator[None]:
    """Goes on after what cannot be looked at, unless the machine is gone."""
    try:
        yield
    except VMExited:
        raise
    except OSError:
        pass


class _Reader:
    def __init__(self, files: FileSystem, working_dir: str, architecture: str, search: list[str]) -> None:
        self._files = files
        self._working_dir = working_dir
        self._search = search
        self._directories = [each.format(architecture) for each in _LIBRARIES]
        #: Names of libraries, and paths of files, that have been dealt with.
        self._seen: set[str] = set()
        self._bytes_left = _MAX_BYTES
        self._files_left = _MAX_FILES
        self._looks_left = _MAX_LOOKS

    def read_all(self, programs: Sequence[str]) -> None:
        waiting = [self._program(name) for name in programs]
        while waiting:
            path = self._first(waiting.pop(0))
            if path is not None and str(path) not in self._seen:
                self._seen.add(str(path))
                with _passing_over():
                    waiting += self._read(path)

    def _program(self, name: str) -> list[str]:
        """The places where it may be."""
        if "/" in name:
            return [name if name.startswith("/") else f"{self._working_dir}/{name}"]
        return [f"{directory}/{name}" for directory in self._search if directory]

    def _first(self, places: Sequence[str]) -> GuestPath | None:
        """What is there, by its own name."""
        for place in places:
            if self._looks_left == 0:
                break
            self._looks_left -= 1
            with _passing_over():
                return GuestPath(place, filesystem=self._files).resolve(strict=True)
        return None

    def _read(self, path: GuestPath) -> list[list[str]]:
        """Reads a file; gives what it is loaded with, each by the places where it may be."""
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or path.parts[:2] in _KERNELS or self._files_left == 0:
            return []
        if not 0 < status.st_size <= self._bytes_left:
            return []
        self._bytes_left -= status.st_size
        self._files_left -= 1
        data = path.read_bytes()
        if data.startswith(b"#!"):
            words = data[2:_MAX_SHEBANG].partition(b"\n")[0].decode("utf-8", "surrogateescape").split()
            return [self._program(word) for word in words[:2]]
        interpreter, libraries, places = needed(data)
        if interpreter is None:
            loader = []
        else:
            loader = [[interpreter]]
            home = self._first([interpreter])
            if home is not None and str(home.parent) not in self._directories:
                # A loader looks where it is installed itself.
                self._directories.insert(0, str(home.parent))
        origin = str(path.parent)
        places = [place.replace("$ORIGIN", origin).replace("${ORIGIN}", origin) for place in places]
        new = [name for name in libraries if name not in self._seen]
        self._seen.update(new)
        return loader + [
            [name] if "/" in name else [f"{place}/{name}" for place in (*places, *self._directories)] for name in new
        ]


def needed(data: bytes) -> tuple[str | None, list[str], list[str]]:
    """What a 64-bit little-endian ELF file names: an interpreter, libraries, and directories where to look for them.

    Nothing for a file that is none, or is damaged.
    """
    if data[:6] != b"\x7fELF\x02\x01":
        return None, [], []
    try:
        headers = list(_program_headers(data))
        interpreter = [_string(data, offset) for kind, offset, _, _ in headers if kind == _PT_INTERP]
        dynamic = [(offset, size // 16) for kind, offset, _, size in headers if kind == _PT_DYNAMIC]
        names, places = _libraries(data, headers, *dynamic[0]) if dynamic else ([], [])
    except (struct.error, OverflowError, ValueError):
        return None, [], []
    return next(iter(interpreter), None), names, places


#: Type, offset, address and size in the file.
_Header: TypeAlias = "tuple[int, int, int, int]"


def _program_headers(data: bytes) -> Iterator[_Header]:
    (start,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    for index in range(min(count, _MAX_HEADERS)):
        kind, _, offset, address, _, in_file = struct.unpack_from("<IIQQQQ", data, start + index * size)
        yield kind, offset, address, in_file


def _libraries(data: bytes, headers: list[_Header], offset: int, count: int) -> tuple[list[str], list[str]]:
    """What the dynamic section there, of so many entries, says."""
    entries = list(struct.iter_unpack("<QQ", data[offset : offset + min(count, _MAX_DYNAMIC) * 16]))
    table = next((value for tag, value in entries if tag == _DT_STRTAB), 0)
    within = (h for h in headers if h[0] == _PT_LOAD and h[2] <= table < h[2] + h[3])
    for _, start, address, _ in within:
        strings = table - address + start
        names = [_string(data, strings + value) for tag, value in entries if tag == _DT_NEEDED]
        places = [_string(data, strings + value) for tag, value in entries if tag in (_DT_RPATH, _DT_RUNPATH)]
        return names[:_MAX_FILES], [each for place in places for each in place.split(":") if each]
    return [], []


def _string(data: bytes, offset: int) -> str:
    """Raises ValueError where none of a path's length ends."""
    return data[offset : data.index(b"\0", offset, offset + _MAX_PATH)].decode("utf-8", "surrogateescape")
