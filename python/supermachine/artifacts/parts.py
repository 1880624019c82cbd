"""Which files a snapshot has, and which parts of them travel by themselves. One more part is one more row of `of`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from .. import _core
from ..errors import BadSnapshot, InstallationError
from ..host import bundle
from ..oci.model import Descriptor
from .model import KERNEL_TYPE, PART_TYPE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .._core import _Snapshot

#: The files of a snapshot, in the order of their numbers in the table of frames.
FILES = ("snapshot",)
#: The order in which parts are fetched is that of the table: what a guest needs first comes first.
META, HOT, RAM, DISK = "meta", "ram.hot", "ram", "disk"
#: Pages that are blocks of the root image, which who has that does not fetch: of those that are needed first; others.
HOT_ROOT, ROOT = "ram.hot.root", "ram.root"
#: Pages of a snapshot that must be much like the kernel's for the snapshot to be packed against that: fewer do not make
#: up for a blob that others may have to fetch.
_MIN_ALIKE = 128
#: Pages of a snapshot that must be blocks of the root image for it to be said which they are.
_MIN_SAME = 128


@dataclass(frozen=True)
class Part:
    """A stretch of one of the files."""

    name: str
    file: int
    #: Bytes, multiples of 4096.
    origin: int
    length: int
    #: Pages of it, in order: these alone; and without these.
    order: Sequence[tuple[int, int]] | None = None
    without: Sequence[tuple[int, int]] = ()
    #: A part whose pages need not be sent where a base has the same.
    shares: bool = False

    @property
    def is_kernels(self) -> bool:
        """Whether it may have the kernel's pages, and begins where RAM does."""
        return self.name in (HOT, RAM)


def of(
    found: _Snapshot,
    hot: Sequence[tuple[int, int]],
    same: tuple[Sequence[tuple[int, int]], Sequence[tuple[int, int]]] = ((), ()),
) -> list[Part]:
    """The parts of a snapshot; `hot` are the pages of RAM that a clone needs first, in that order: start and end.

    `same` are pages of those, and others, that are blocks of the root image.
    """
    offset = found["ram_offset"]
    length = _memory(found)
    hot_root, root = same
    parts = [
        Part(META, 0, 0, offset),
        Part(HOT, 0, offset, length, order=hot, without=sorted(hot_root)),
        Part(RAM, 0, offset, length, without=sorted([*hot, *root]), shares=True),
    ]
    if hot_root or root:
        parts[2:2] = [Part(HOT_ROOT, 0, offset, length, order=hot_root), Part(ROOT, 0, offset, length, order=root)]
    if found["disk"] is not None and found["disk"][1]:
        # The blocks of the root's disk, behind RAM.
        parts.append(Part(DISK, 0, offset + length, found["disk"][1]))
    return parts


def _memory(found: _Snapshot) -> int:
    if found["v9"] is None:
        raise BadSnapshot("a snapshot of version 8 cannot be pushed", hint="snapshots of version 9 can")
    return found["v9"]["identity"]["memory_bytes"]


@dataclass(frozen=True)
class KernelFile:
    """A guest's kernel, as installations have it."""

    path: Path
    digest: str
    data: bytes

    @classmethod
    def of(cls, architecture: str) -> KernelFile | None:
        """This installation's, where it has one."""
        try:
            path = Path(bundle.kernel(architecture))
            data = path.read_bytes()
        except (InstallationError, OSError):
            return None
        return cls(path, f"sha256:{_core.sha256(data)}", data)


@dataclass(frozen=True)
class Packed:
    """The blobs of a snapshot, in files of a directory that somebody removes."""

    table: bytes
    layers: list[Descriptor]
    files: list[Path]
    #: Bytes of the guest's that were found in the base.
    shared: int = 0
    #: What frames are packed against. It is the last of the layers.
    kernel: KernelFile | None = None
    #: Which blocks of the root image the pages of these parts are.
    root: Mapping[str, bytes] = field(default_factory=dict)

    @contextmanager
    def open(self, number: int) -> Iterator[BinaryIO]:
        """One of the blobs."""
        with self.files[number].open("rb") as source:
            yield source


def pack(
    path: Path,
    found: _Snapshot,
    hot: Sequence[tuple[int, int]],
    place: Path,
    base: tuple[Path, int] | None,
    kernel: KernelFile | None = None,
    root: Path | None = None,
) -> Packed:
    """Packs a snapshot's parts into files in `place`, against `kernel` where that pays.

    `base` is a whole snapshot and where its RAM begins; `root` is the guest's root image.
    """
    same = _Same([], [], {})
    if root is not None:
        same = _same(path, found, hot, base, root)
    if kernel is not None:
        packed, alike = _pack(path, found, hot, place, base, kernel, same)
        if alike >= _MIN_ALIKE:
            return packed
    return _pack(path, found, hot, place, base, None, same)[0]


class _Same(NamedTuple):
    """Pages of RAM that are blocks of the root image."""

    hot: Sequence[tuple[int, int]]
    rest: Sequence[tuple[int, int]]
    #: Which blocks, for each of the parts.
    said: Mapping[str, bytes]


def _same(
    path: Path, found: _Snapshot, hot: Sequence[tuple[int, int]], base: tuple[Path, int] | None, root: Path
) -> _Same:
    first, rest = _core.root_pages(
        str(path),
        str(root),
        origin=found["ram_offset"],
        length=_memory(found),
        first=hot,
        base=None if base is None else (str(base[0]), base[1]),
    )
    if sum(end - start for start, end in [*first[0], *rest[0]]) < _MIN_SAME:
        return _Same([], [], {})
    return _Same(first[0], rest[0], {HOT_ROOT: first[1], ROOT: rest[1]})


def _pack(
    path: Path,
    found: _Snapshot,
    hot: Sequence[tuple[int, int]],
    place: Path,
    base: tuple[Path, int] | None,
    kernel: KernelFile | None,
    same: _Same,
) -> tuple[Packed, int]:
    rows, layers, files, shared, alike = [], [], [], 0, 0
    loaded = None if kernel is None else _core.Kernel(str(kernel.path), kernel.data)
    for part in of(found, hot, (same.hot, same.rest)):
        out = place / part.name
        out.unlink(missing_ok=True)
        out.touch(mode=0o600)
        row, size, digest, as_in_base, like = _core.pack_part(
            str(path),
            str(out),
            name=part.name,
            file=part.file,
            origin=part.origin,
            length=part.length,
            order=part.order,
            without=part.without,
            base=(str(base[0]), base[1]) if base is not None and part.shares else None,
            kernel=loaded if part.is_kernels else None,
            first=part.name == HOT,
        )
        rows.append(row)
        shared += as_in_base * 4096
        alike += like
        if not size:
            continue  # the table says all of it
        layers.append(Descriptor(PART_TYPE.format(part.name), f"sha256:{digest}", size))
        files.append(out)
    if kernel is not None:
        layers.append(Descriptor(KERNEL_TYPE, kernel.digest, len(kernel.data)))
        files.append(kernel.path)
    return Packed(bytes([len(rows)]) + b"".join(rows), layers, files, shared, kernel, same.said), alike
