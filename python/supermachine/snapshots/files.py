"""Snapshot files: what is in one, whether it is whole, and how it travels.

``docs/reference/snapshot-format.md`` describes the files. All functions take snapshots of version 9, which this package
writes, and of version 8; those that read take exports of either as well.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .._core import _SnapshotV8, _SnapshotV9

__all__ = ["Section", "SnapshotInfo", "export", "flatten", "import_", "inspect", "verify"]

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class Section:
    """A piece of state in a snapshot."""

    kind: str
    index: int
    version: int
    #: Whether a reader that does not know this kind must refuse the snapshot.
    required: bool
    #: Length of the data.
    size: int


@dataclass(frozen=True)
class SnapshotInfo:
    """What a snapshot says of itself. Version 8 says less: what it does not say is ``None`` or empty."""

    #: Version of the format, 8 or 9, and of 9 the minor version.
    version: int
    minor: int
    #: Whether it is packed in an export.
    exported: bool
    #: Length of the file, and what it takes on disk, in bytes.
    file_bytes: int
    disk_bytes: int
    #: Names the whole of the snapshot: a BLAKE3 digest in hexadecimal.
    id: str | None
    #: Id of the snapshot that this is a diff to; ``None`` when it is whole.
    parent: str | None
    #: Of the guest.
    architecture: str
    #: Who wrote it, and the version of what it wrote.
    engine: str | None
    engine_version: int | None
    cpu_features: tuple[str, ...]
    #: BLAKE3 digests of what the guest booted.
    kernel: str | None
    initramfs: str | None
    #: Digest of the image that is the guest's root.
    image: str | None
    #: Types of the devices, in bus order; empty when unknown.
    devices: tuple[str, ...]
    vcpus: int
    memory_bytes: int
    #: Guest physical address of the RAM.
    ram_gpa: int
    #: Where RAM begins in the snapshot file.
    ram_offset: int
    #: How much RAM a diff holds; ``None`` when it is whole.
    present_bytes: int | None
    #: Length of the root's disk, and how much of it the file holds; ``None`` when the guest has none.
    root_disk_bytes: int | None
    root_disk_held_bytes: int | None
    created: datetime | None
    sections: tuple[Section, ...]
    #: Vsock ports that the guest listens on, as version 8 tells.
    listeners: tuple[int, ...] = ()


def inspect(path: str | os.PathLike[str]) -> SnapshotInfo:
    """Reads and checks everything but RAM, which takes no longer for a guest with more of it."""
    from .._core import read_snapshot

    found = read_snapshot(os.fspath(path))
    file = (found["export"], found["file_bytes"], found["disk_bytes"], found["ram_offset"])
    if found["v9"] is not None:
        return _info_v9(found["v9"], found["disk"], *file)
    assert found["v8"] is not None
    return _info_v8(found["v8"], *file)


def _info_v9(
    state: _SnapshotV9,
    disk: tuple[int, int] | None,
    exported: bool,
    file_bytes: int,
    disk_bytes: int,
    ram_offset: int,
) -> SnapshotInfo:
    identity, present = state["identity"], state["present"]
    return SnapshotInfo(
        version=9,
        minor=state["minor"],
        exported=exported,
        file_bytes=file_bytes,
        disk_bytes=disk_bytes,
        id=state["id"],
        parent=identity["parent"],
        architecture=identity["architecture"],
        engine=identity["engine"],
        engine_version=identity["engine_version"],
        cpu_features=tuple(identity["cpu_features"]),
        kernel=_known(identity["kernel"]),
        initramfs=_known(identity["initramfs"]),
        image=identity["image"],
        devices=tuple(identity["devices"]),
        vcpus=identity["vcpus"],
        memory_bytes=identity["memory_bytes"],
        ram_gpa=identity["ram_gpa"],
        ram_offset=ram_offset,
        present_bytes=None if present is None else sum(end - start for start, end in present),
        root_disk_bytes=None if disk is None else disk[0],
        root_disk_held_bytes=None if disk is None else disk[1],
        created=_EPOCH + timedelta(microseconds=identity["created_unix_ns"] // 1000),
        sections=tuple(
            Section(kind, index, version, required, len(data))
            for kind, index, version, required, data in state["sections"]
        ),
    )


def _info_v8(state: _SnapshotV8, exported: bool, file_bytes: int, disk_bytes: int, ram_offset: int) -> SnapshotInfo:
    from .._core import device_names_v8

    return SnapshotInfo(
        version=8,
        minor=0,
        exported=exported,
        file_bytes=file_bytes,
        disk_bytes=disk_bytes,
        id=None,
        parent=None,
        architecture="aarch64",
        engine=None,
        engine_version=None,
        cpu_features=(),
        kernel=None,
        initramfs=None,
        image=None,
        devices=tuple(device_names_v8([len(device["queues"]) for device in state["devices"]])),
        vcpus=len(state["vcpus"]),
        memory_bytes=state["memory_bytes"],
        ram_gpa=state["ram_gpa"],
        ram_offset=ram_offset,
        present_bytes=None,
        root_disk_bytes=None,
        root_disk_held_bytes=None,
        created=None,
        sections=(),
        listeners=tuple(port for _, _, port, _, _ in state["listeners"]),
    )


def _known(digest: str) -> str | None:
    """A guest that came from a snapshot of version 8 has booted nothing that is known, which is all zeros."""
    return digest if digest.strip("0") else None


def verify(path: str | os.PathLike[str]) -> str | None:
    """Reads and checks all of a snapshot and gives its id.

    Version 8 has no checksums and no id: of it, everything is checked that can be, and the id is ``None``.
    """
    from .._core import verify_snapshot

    return verify_snapshot(os.fspath(path))


def export(path: str | os.PathLike[str], out: str | os.PathLike[str], *, replace: bool = False) -> int:
    """Packs a snapshot, after it was verified, into one compressed file at `out`, and gives the length of that.

    The file is in Zstandard's seekable format: every ``zstd -d`` unpacks it to the snapshot file.
    """
    from .._core import export_snapshot

    return export_snapshot(os.fspath(path), os.fspath(out), replace)


def import_(path: str | os.PathLike[str], dest: str | os.PathLike[str], *, replace: bool = False) -> str | None:
    """Unpacks an export, or copies a snapshot, to `dest`, and gives its id as :func:`verify` does.

    The snapshot is there once all of it was verified; when anything fails nothing is.
    """
    from .._core import import_snapshot

    return import_snapshot(os.fspath(path), os.fspath(dest), replace)


def flatten(paths: Sequence[str | os.PathLike[str]], dest: str | os.PathLike[str], *, replace: bool = False) -> str:
    """Makes one whole snapshot at `dest` of a whole one and the diffs after it, each to the one before.

    Gives its id. All files are verified.
    """
    from .._core import flatten_snapshots

    return flatten_snapshots([os.fspath(path) for path in paths], os.fspath(dest), replace)
